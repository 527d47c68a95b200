"""The command where something is missing: one line that names what to install, and what runs without it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import QUICK, assert_one_line_refusal, invoke

import interop
from interop import frameworks

pytestmark = pytest.mark.usefixtures("quick_compilation", "few_folds")


def in_a_new_interpreter(program, blocked=()):
    block = f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n"
    run = "from interop.cli import main\nsys.argv = ['convexmoe', *sys.argv[1:]]\nmain()"
    path = os.pathsep.join([str(Path(interop.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", block + program + "\n" + run, "fit", "--petals", "0"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


# What is amiss with the installation: (modules that cannot be imported, a program run first, parts of the message).
BAD_INSTALLATIONS = {
    "base only": ({"typer", "rich", "jax", "torch"}, "", ["typer and rich", 'pip install -e ".[jax]"']),
    "another distribution's interop": (
        (),
        "import interop; del interop.__distribution__",
        ["interop", "__init__.py", "fresh environment"],
    ),
}


@pytest.mark.parametrize("blocked, program, parts", BAD_INSTALLATIONS.values(), ids=BAD_INSTALLATIONS)
def test_a_bad_installation_is_one_line(blocked, program, parts):
    result = in_a_new_interpreter(program, blocked)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert all(part in line for part in parts), line


def test_control_a_good_installation_starts():
    result = in_a_new_interpreter("")
    assert result.returncode == 2
    assert "--petals" in result.stderr


def hide(monkeypatch, *modules):
    monkeypatch.setattr(
        frameworks, "is_installed", lambda module: module not in modules and find_spec(module) is not None
    )


MISSING = {
    "no framework": (["jax", "torch"], [], ["JAX or PyTorch", 'pip install -e ".[jax]"']),
    "no torch": (["torch"], ["--framework", "torch"], ["PyTorch", 'pip install -e ".[torch]"']),
    "no optax": (["optax"], ["--framework", "jax"], ["JAX", 'pip install -e ".[jax]"']),
    "no matplotlib": (["matplotlib"], [], ["matplotlib", 'pip install -e ".[plot]"']),
}


@pytest.mark.parametrize("hidden, options, parts", MISSING.values(), ids=MISSING)
def test_a_missing_extra_names_the_line_to_run(tmp_path, monkeypatch, hidden, options, parts):
    hide(monkeypatch, *hidden)
    assert_one_line_refusal(invoke("fit", *options, "--out", tmp_path / "run", *QUICK), *parts)
    assert os.listdir(tmp_path) == []


def test_torch_serves_where_jax_is_not_installed(tmp_path, monkeypatch):
    hide(monkeypatch, "jax")
    result = invoke("fit", "--out", tmp_path / "run", "--steps", "5")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["framework"] == "torch"
    assert metrics["parity"] is None
    assert 'pip install -e ".[interop]"' in result.stdout

"""A built wheel, installed alone in a new environment, works, and says what to install where something is missing."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "convexmoe", "convexmoe_jax", "convexmoe_torch", "interop")
TINY = """
import numpy as np
import convexmoe_{name} as cm
model = cm.VectorHull(5, petals=3, out_dim=2{rngs})
x = np.linspace(-1, 1, 35, dtype=np.float32).reshape(7, 5)
y = np.asarray(model({array}(x)){detach})
assert y.shape == (7, 2) and np.isfinite(y).all()
cm.save(model, "tiny.safetensors")
assert np.array_equal(np.asarray(cm.load("tiny.safetensors")({array}(x)){detach}), y)
assert {other!r} not in __import__("sys").modules
"""
PROGRAMS = {
    "jax": "import jax.numpy as jnp\nfrom flax import nnx\n"
    + TINY.format(name="jax", rngs=", rngs=nnx.Rngs(0)", array="jnp.asarray", detach="", other="torch"),
    "torch": "import torch\n"
    + TINY.format(name="torch", rngs="", array="torch.from_numpy", detach=".detach()", other="jax"),
}


class Environment(NamedTuple):
    folder: Path

    def run(self, command: str, *args: str) -> subprocess.CompletedProcess:
        program = [str(self.folder / "bin" / command), *args]
        # JAX's cache of programs asks for what only torch installs
        own = {name: value for name, value in os.environ.items() if name[:4] != "JAX_" and name != "PYTHONPATH"}
        return subprocess.run(program, cwd=self.folder, env=own, capture_output=True, text=True, timeout=600)

    def python(self, program: str) -> subprocess.CompletedProcess:
        return self.run("python", "-I", "-c", program)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that nothing is written beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist")]
    subprocess.run([*build, str(folder)], check=True, capture_output=True, timeout=120)
    [path] = (folder / "dist").glob("convexmoe-*.whl")
    return path


def install(wheel: Path, folder: Path, extra: str = "") -> Environment:
    """A new environment that holds the wheel, one extra of it, and nothing else, not even pip."""
    venv.create(folder)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    command += ["--no-compile", "-c", str(ROOT / "constraints.txt"), f"{wheel}{extra}"]
    pip = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert pip.returncode == 0, pip.stderr
    return Environment(folder)


def test_alone(wheel, tmp_path):
    base = install(wheel, tmp_path / "env")

    data = "from importlib.resources import files\n"
    data += "print(*(entry.name for entry in (files('interop') / 'data').iterdir()))"
    assert ".csv" in base.python(data).stdout
    for package in ("convexmoe", "convexmoe_jax", "convexmoe_torch", "interop"):
        typed = f"from importlib.util import find_spec\nprint(*find_spec('{package}').submodule_search_locations)"
        assert (Path(base.python(typed).stdout.strip()) / "py.typed").is_file()

    for package, extra in (("convexmoe_jax", "jax"), ("convexmoe_torch", "torch")):
        result = base.python(f"import {package}")
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: ") and f'pip install -e ".[{extra}]"' in last

    command = base.run("convexmoe", "--help")
    assert command.returncode != 0
    assert 'pip install -e ".[' in command.stderr
    assert "Traceback" not in command.stderr and len(command.stderr.strip().splitlines()) == 1


@pytest.mark.release
@pytest.mark.parametrize("extra", PROGRAMS)
def test_with_one_framework(wheel, tmp_path, extra):
    environment = install(wheel, tmp_path / "env", f"[{extra}]")
    result = environment.python(PROGRAMS[extra])
    assert result.returncode == 0, result.stderr
    command = environment.run("convexmoe", "--help")
    assert command.returncode == 0, command.stderr
    assert "fit" in command.stdout and "predict" in command.stdout

"""A wheel, built from the source distribution and installed alone in a new environment, works with each extra that a
user installs, and says what to install where something is missing.

The extras `test`, `docs`, `examples`, `peers` and `tables` are of a clone: what they run stands in no wheel.
"""

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


PROGRAMS["interop"] = """
import convexmoe_torch, numpy as np
from interop import check_parity, to_jax
model = convexmoe_torch.VectorHull(5, petals=3, out_dim=2)
assert check_parity(to_jax(model), model, np.eye(5)).ok
"""
# Another extra, what it is installed with, and a program with a hull of five inputs in hull.safetensors beside it.
MORE = {
    "solve": """
import cvxpy as cp
from interop import to_cvxpy
x = cp.Variable(5)
cp.Problem(cp.Minimize(to_cvxpy("hull.safetensors", x)[0]), [cp.abs(x) <= 1]).solve(solver=cp.CLARABEL)
assert abs(x.value).max() < 1.001
""",
    "torch,plot": """
import convexmoe_torch as ct, numpy as np
from interop.plots import plot_slices
model = ct.load("hull.safetensors")
assert len(plot_slices(model, np.random.default_rng(0).normal(size=(20, 5)).astype("float32"))) == 5
""",
    "torch,sklearn": """
import numpy as np
from interop.sklearn import ConvexRegressor
x = np.random.default_rng(0).normal(size=(60, 3))
y = (x**2).sum(axis=1)
assert ConvexRegressor(steps=20).fit(x, y).score(x, y) > 0.5
""",
    "torch,export": """
import convexmoe_torch as ct, numpy as np, onnxruntime, torch
model, x = ct.load("hull.safetensors").eval(), torch.zeros(7, 5)
torch.onnx.export(model, (x,), dynamo=True).save("hull.onnx")
session = onnxruntime.InferenceSession("hull.onnx", providers=["CPUExecutionProvider"])
[y] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
assert np.allclose(y, model(x).detach().numpy(), atol=1e-5)
""",
    "torch,plot,data": """
import numpy as np, pyarrow as pa, pyarrow.parquet
x = np.random.default_rng(0).normal(size=(40, 2))
pa.parquet.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "y": (x**2).sum(axis=1)}), "rows.parquet")
""",
    "torch,plot,excel": """
import numpy as np, openpyxl
book, x = openpyxl.Workbook(), np.random.default_rng(0).normal(size=(40, 2))
for row in [("a", "b", "y"), *((a, b, a * a + b * b) for a, b in x.tolist())]:
    book.active.append(row)
book.save("rows.xlsx")
""",
}
TABLES = {"torch,plot,data": "rows.parquet", "torch,plot,excel": "rows.xlsx"}  # which the command then fits


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
    """The wheel, built from the source distribution of a copy, so that nothing is written beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
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
def test_with_frameworks(wheel, tmp_path, extra):
    environment = install(wheel, tmp_path / "env", f"[{extra}]")
    result = environment.python(PROGRAMS[extra])
    assert result.returncode == 0, result.stderr
    command = environment.run("convexmoe", "--help")
    assert command.returncode == 0, command.stderr
    assert "fit" in command.stdout and "predict" in command.stdout


@pytest.mark.release
@pytest.mark.parametrize("extras", MORE)
def test_with_another_extra(wheel, tmp_path, extras):
    import convexmoe_torch

    environment = install(wheel, tmp_path / "env", f"[{extras}]")
    convexmoe_torch.save(convexmoe_torch.VectorHull(5, petals=3, out_dim=1), environment.folder / "hull.safetensors")
    result = environment.python(MORE[extras])
    assert result.returncode == 0, result.stderr
    if extras in TABLES:
        fit = environment.run("convexmoe", "fit", TABLES[extras], "--target", "y", "--steps", "20", "--out", "run")
        assert fit.returncode == 0, fit.stderr
        assert (environment.folder / "run" / "model.safetensors").exists()

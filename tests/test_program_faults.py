"""What `to_cvxpy` refuses, each with its fix; and what it needs: CVXPY, and no framework for a file."""

import json
import re
import subprocess
import sys

import cvxpy as cp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from cases import fields, random_weights
from small_hulls import hull, value

import convexmoe.files.format
import convexmoe_torch
from convexmoe.files.hulls import read_hull
from interop import to_cvxpy


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: cp.Variable(4), ValueError, "to_cvxpy.variable: expected shape (5,) or (rows, 5); got (4,)."),
        (lambda: cp.Variable(), ValueError, "to_cvxpy.variable: expected shape (5,) or (rows, 5); got ()."),
        (lambda: np.ones(5), TypeError, "to_cvxpy.variable: expected an expression of CVXPY; got ndarray."),
        (
            lambda: cp.square(cp.Variable(5)),
            ValueError,
            "to_cvxpy.variable: expected an affine expression; got convex.",
        ),
    ],
)
def test_a_wrong_variable_is_refused(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        to_cvxpy(hull(), make())


def test_a_complex_variable_is_refused():
    with pytest.raises(ValueError, match=r"to_cvxpy.variable: expected a real expression"):
        to_cvxpy(hull(), cp.Variable(5, complex=True))


def test_parameters_in_the_variable_and_in_the_weights_are_refused():
    with pytest.raises(ValueError, match=r"to_cvxpy.variable: expected an expression without parameters.*shift"):
        to_cvxpy(hull(), cp.Variable(5) + cp.Parameter(5, name="shift"), parameters=True)


@pytest.mark.parametrize("output", [1, -1, True, 0.0, "y"])
def test_a_wrong_output_is_refused(output):
    with pytest.raises(ValueError, match=r"to_cvxpy.output: expected None or a whole number from 0 to 0"):
        to_cvxpy(hull(), cp.Variable(5), output=output)


def test_a_hull_that_is_not_convex_is_refused(backend):
    shapes = backend.package.hull.legacy.parameter_shapes(5, 7, 3, 1)
    flat = {name: backend.array(np.ones(shape, np.float32)) for name, shape in shapes.items()}
    legacy = backend.package.NonConvexHull(backend.package.hull.nest(flat))
    with pytest.raises(TypeError, match=r"to_cvxpy.model: .*got NonConvexHull. Its gates are not convex"):
        to_cvxpy(legacy, cp.Variable(5))


@pytest.mark.parametrize("bad", [None, torch.nn.Linear(5, 1), 3])
def test_what_is_no_hull_is_refused(bad):
    with pytest.raises(TypeError, match=r"to_cvxpy.model: expected a VectorHull, a FoldedHull or the path"):
        to_cvxpy(bad, cp.Variable(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(backend, bad):
    config = fields()
    weights = random_weights(config)
    weights["readout.bias"][1, 0] = bad
    with pytest.raises(ValueError, match=r"to_cvxpy.model: .*readout.bias holds NaN or infinity"):
        to_cvxpy(backend.model(config, weights), cp.Variable(5))


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "hull.safetensors"
    with pytest.raises(ValueError, match="expected a file; found none"):
        to_cvxpy(path, cp.Variable(5))
    convexmoe_torch.save(hull(), path)
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match="expected a file whose content has the sha256 it states"):
        to_cvxpy(path, cp.Variable(5))
    level = convexmoe_torch.HierarchyLevelConfig("a", [convexmoe_torch.ExpertConfig("b")])
    many = convexmoe_torch.HierarchicalCELMoE(
        convexmoe_torch.CELMoEConfig(5, [level]), lambda *_: convexmoe_torch.LinearExpert(5)
    )
    convexmoe_torch.save(many, path)
    with pytest.raises(ValueError, match="expected a VectorHull; got a HierarchicalCELMoE"):
        to_cvxpy(path, cp.Variable(5))


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "sine"},
        {"petals": "3"},
        {"temperature": -1.0},
        {"temperature": None},
        {"strong_convexity": -1.0},
        {"normalization": {"input_mean": [0.0]}},
    ],
)
def test_a_config_out_of_range_is_refused_even_when_sealed(change, tmp_path):
    model, path = hull(), tmp_path / "hull.safetensors"
    header, arrays = convexmoe_torch.files.models.content_of(model)
    header |= {"schema": 1, "notes": {}, "config": header["config"] | change}
    convexmoe.files.format.write_sealed(path, header, arrays)
    with pytest.raises(ValueError, match="expected the config of a hull"):
        read_hull(path, "test")


def run(program, blocked, folder):
    """Run a program that cannot import some modules. They are looked for in vain: SciPy asks sys.modules for some."""
    start = (
        "import sys\nclass Blocked:\n    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {sorted(blocked)!r}:\n            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, timeout=120, cwd=folder
    )


def test_without_cvxpy_it_says_what_to_install(tmp_path):
    program = "from interop import to_cvxpy\ntry:\n    to_cvxpy('x', 0)\nexcept ImportError as error:\n    print(error)"
    result = run("import sys; sys.modules['cvxpy'] = None\n" + program, set(), tmp_path)
    assert (
        result.stdout.strip() == 'interop.to_cvxpy needs CVXPY; in a clone of convexmoe: pip install -e ".[solve]"'
    ), result.stderr


def test_a_file_is_read_without_any_framework(tmp_path):
    convexmoe_torch.save(hull(), tmp_path / "hull.safetensors")
    program = (
        "import cvxpy as cp, json\nfrom interop import to_cvxpy\nx = cp.Variable(5, value=[1.0] * 5)\n"
        "print(json.dumps(to_cvxpy('hull.safetensors', x).value.tolist()))"
    )
    blocked = {"jax", "jaxlib", "flax", "optax", "torch", "rich", "typer", "convexmoe_jax", "convexmoe_torch"}
    result = run(program, blocked, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == pytest.approx(value(hull(), np.ones(5)).tolist(), rel=1e-9)
    failed = run("from interop import to_cvxpy\nimport torch", blocked, tmp_path)  # the block is one
    assert failed.returncode != 0

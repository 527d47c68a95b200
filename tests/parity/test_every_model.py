"""Every model that can be loaded goes from one framework to the other; what cannot is named."""

import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from goldens import BOUND, MICE, archive
from tolerances import relative_error

import convexmoe_jax
import convexmoe_torch
from interop import from_torch_mice, to_jax, to_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPTIONS = {
    "hard": {},
    "smooth": {"temperature": "learned", "gate": True, "strong_convexity": 0.5, "trunk": "private", "depth": 2},
}
UNITS = {
    "input_mean": (1.0, -2.0, 3.0),
    "input_scale": (2.0, 0.5, 7.0),
    "output_mean": (5.0, 11.0),
    "output_scale": (13.0, 0.1),
}


def in_jax(model, x):
    return np.asarray(jax.jit(lambda x: model(x))(x))


def in_torch(model, x):
    return model(torch.tensor(x)).detach().numpy()


@pytest.mark.filterwarnings("ignore:torch-mice's models are not convex")
@pytest.mark.parametrize("path", MICE, ids=lambda path: path.stem)
def test_a_hull_of_torch_mice_goes_over_and_back(path, x64):
    data, state = archive(path)
    first = from_torch_mice(state, json.loads(str(data["meta"]))["petals"], framework="torch")
    there = to_jax(first)
    assert type(there) is convexmoe_jax.NonConvexHull
    assert np.abs(in_jax(there, data["x"]) - data["y"]).max() < BOUND
    back = to_torch(there)
    assert type(back) is convexmoe_torch.NonConvexHull
    assert np.array_equal(in_torch(back, data["x"]), in_torch(first, data["x"]))
    with torch.no_grad():  # a copy, and a control of the comparison
        first.get_parameter("output.bias").add_(1.0)
    assert np.array_equal(in_torch(back, data["x"]), in_torch(to_torch(to_jax(back)), data["x"]))
    assert not np.array_equal(in_torch(back, data["x"]), in_torch(first, data["x"]))


@pytest.mark.parametrize("units", [None, UNITS], ids=["plain", "units"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_folded_hull_goes_over_and_back(name, units, x64):
    made = None if units is None else convexmoe_jax.Normalization(**units)
    options = {"out_dim": 2, "dtype": np.float64, "normalization": made, "rngs": nnx.Rngs(3)}
    first = convexmoe_jax.VectorHull(3, 5, **options, **OPTIONS[name]).fold()
    x = np.random.default_rng(0).normal(size=(11, 3))
    there = to_torch(first)
    assert type(there) is convexmoe_torch.FoldedHull and there.config.to_json() == first.config.to_json()
    wanted = in_jax(first, x)
    assert relative_error(in_torch(there, x), wanted) < 1e-13
    back = to_jax(there)
    assert type(back) is convexmoe_jax.FoldedHull and np.array_equal(in_jax(back, x), wanted)
    with torch.no_grad():  # control: a changed weight is seen
        there.get_parameter("shifts").add_(1e-6)
    assert not any(parameter.requires_grad for parameter in there.parameters())
    assert not np.array_equal(in_jax(to_jax(there), x), wanted)


def fixed_hierarchies():
    """One of each package."""
    found = []
    for package, options in ((convexmoe_jax, {"rngs": nnx.Rngs(0)}), (convexmoe_torch, {})):
        level = package.HierarchyLevelConfig("only", {"core": package.ExpertConfig("core")})
        config = package.CELMoEConfig(5, [level])

        def expert(level, name, metadata, package=package, **options):
            return package.LinearExpert(5, **options)

        found.append(package.FixedHierarchy(package.HierarchicalCELMoE(config, expert, **options)))
    return found


def test_another_model_is_refused_by_name():
    fixed = dict(zip((to_torch, to_jax), fixed_hierarchies(), strict=True))
    for move, model in fixed.items():
        with pytest.raises(TypeError) as error:
            move(model)
        package = type(model).__module__.partition(".")[0]
        assert str(error.value) == (
            f"{move.__name__}.model: expected a VectorHull, FoldedHull, NonConvexHull or HierarchicalCELMoE of "
            f"{package}; got {package}.FixedHierarchy. "
            "Pass the hierarchy that it was made of, and fix the routes of its twin."
        )
    for move in fixed:
        with pytest.raises(TypeError, match=rf"{move.__name__}\.model: .* got builtins\.int\. Pass one of these\."):
            move(3)
    with pytest.raises(TypeError, match=r"of convexmoe_jax; got convexmoe_torch\.VectorHull\."):
        to_torch(convexmoe_torch.VectorHull(3, petals=4))


@pytest.mark.parametrize("package", [convexmoe_jax, convexmoe_torch], ids=lambda package: package.__name__)
def test_an_option_of_newer_torch_mice_is_refused(package):
    options = {"rngs": nnx.Rngs(0)} if package is convexmoe_jax else {}
    for value in (True, False):
        with pytest.raises(TypeError) as error:
            package.VectorHull(3, petals=4, invert=value, **options)
        assert str(error.value) == (
            f"VectorHull.invert: expected no such option; got {value}, an option of torch-mice 0.5, whose hull is "
            "another model. Leave it out, and see docs/pages/migrating.md; for a concave function pass "
            'curvature="concave".'
        )
    assert package.VectorHull(3, petals=4, **options).config.petals == 4

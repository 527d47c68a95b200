"""The twins compute the same: outputs, gradients, Hessians, ties, training; copies share no memory."""

import chex
import jax
import numpy as np
import pytest
import saved_models
import torch
from twins import CONFIGS, ROWS, SIZES, rows, tied_hull, torch_hull, trajectories

import convexmoe_jax
import convexmoe_torch
from interop import check_parity, to_jax, to_torch
from interop.parity import relative_error
from interop.weights import array_of, tensor_of

SEEDS = range(5)
TRAJECTORY = {"float32": 1e-5, "float64": 1e-12}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_gradients_and_hessians_agree(name, dtype, seed):
    with jax.enable_x64(dtype == "float64"):
        hull = torch_hull(seed, dtype, **CONFIGS[name])
        report = check_parity(to_jax(hull), hull, rows(seed))
    assert report.dtype == dtype and len(report.comparisons) == 3 + len(list(hull.parameters()))
    assert report.ok, f"\n{report}"


def test_every_size_is_another_prime():
    sizes = [*SIZES.values(), ROWS]
    assert len(set(sizes)) == len(sizes) and all(n > 1 and all(n % d for d in range(2, n)) for n in sizes)


@pytest.mark.parametrize("petals", [2, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_tie_shares_its_gradient_evenly_in_both(seed, petals, x64):
    hull, x = tied_hull(seed, petals)
    twin = to_jax(hull)
    report = check_parity(twin, hull, x)
    assert report.ok, f"\n{report}"
    grads = jax.grad(lambda p: convexmoe_jax.hull.apply(p, x, twin.config).sum())(twin.params)
    np.testing.assert_allclose(grads["shifts"], ROWS * SIZES["out_dim"] / petals, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["default", "smooth"])
def test_two_hundred_steps_of_adam_agree(name, dtype, seed):
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = trajectories(torch_hull(seed, dtype, **CONFIGS[name]), seed)
    assert ours[-1] != ours[0]
    assert relative_error(ours, theirs) <= TRAJECTORY[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_round_trip_keeps_every_bit(dtype):
    with jax.enable_x64(dtype == "float64"):
        there = to_jax(torch_hull(0, dtype, depth=2, gate=True, temperature="learned"))
        back = to_jax(to_torch(there))
        chex.assert_trees_all_equal_shapes_and_dtypes(there.params, back.params)
        chex.assert_trees_all_equal(bits(there.params), bits(back.params))
        assert there.config == back.config


def bits(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf).view(f"u{leaf.dtype.itemsize}"), params)


def test_copies_share_no_memory():
    hull = torch_hull(0, "float32")
    twin = to_jax(hull)
    before = np.array(twin.params["readout"]["weight"])
    with torch.no_grad():
        hull.readout["weight"].zero_()
    np.testing.assert_array_equal(twin.params["readout"]["weight"], before)
    third = to_torch(twin)
    with torch.no_grad():
        third.readout["weight"].fill_(7.0)
    np.testing.assert_array_equal(twin.params["readout"]["weight"], before)


def test_a_hierarchy_copied_shares_no_memory():
    model = saved_models.hierarchy()
    there = to_jax(model)
    before = convexmoe_jax.files.layers.neutral_arrays(there)
    with torch.no_grad():
        [parameter.add_(1.0) for parameter in model.parameters()]
    after = convexmoe_jax.files.layers.neutral_arrays(there)
    assert all(np.array_equal(value, after[name]) for name, value in before.items())
    back = to_torch(there)
    with torch.no_grad():
        [parameter.fill_(7.0) for parameter in back.parameters()]
    after = convexmoe_jax.files.layers.neutral_arrays(there)
    assert all(np.array_equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", ["hull", "hierarchy"])
def test_a_loaded_model_does_not_see_its_file_overwritten(kind, tmp_path):
    """Files are read through the page cache: a tensor that is a view of it would change with the file."""
    path = tmp_path / "model"
    convexmoe_torch.save(getattr(saved_models, kind)(), path)
    with jax.enable_x64(False):
        models = [convexmoe_torch.load(path), convexmoe_jax.load(path)]
    with path.open("r+b") as file:
        file.seek(-100, 2)
        file.write(bytes(100))
    with pytest.raises(ValueError, match="sha256"):  # control: what is read now is another content
        convexmoe_torch.load(path)
    convexmoe_torch.save(models[0], tmp_path / "again")
    convexmoe_jax.save(models[1], tmp_path / "third")
    convexmoe_torch.save(getattr(saved_models, kind)(), path)
    assert path.read_bytes() == (tmp_path / "again").read_bytes() == (tmp_path / "third").read_bytes()


def test_shared_memory_would_be_seen():
    """The control: an array that is not copied shows the change that the test above looks for."""
    tensor = torch.ones(3)
    aliased, copied = tensor.numpy(), np.asarray(array_of(tensor))
    tensor.zero_()
    assert (aliased == 0).all() and (copied == 1).all()
    assert tensor_of(copied).data_ptr() != copied.__array_interface__["data"][0]


def test_float64_weights_are_refused_where_jax_would_round_them():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        to_jax(torch_hull(0, "float64"))


@pytest.mark.parametrize("convert", [to_jax, to_torch])
def test_other_things_are_refused(convert):
    kinds = "VectorHull, FoldedHull, NonConvexHull or HierarchicalCELMoE"
    with pytest.raises(TypeError, match=rf"model: expected a {kinds} of convexmoe_(jax|torch); got builtins\.list\."):
        convert([])

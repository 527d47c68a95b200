"""Checkpoints of torch-mice 0.2.0 and celmoe-vp 1.1.1 load in both packages and compute what was recorded."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from goldens import BOUND, CELMOE, MICE, JaxExpert, TorchExpert, archive, config_of
from safetensors.numpy import save_file

import convexmoe_jax
import convexmoe_torch
from convexmoe.errors import InputError
from interop import from_celmoe, from_torch_mice

pytestmark = pytest.mark.filterwarnings("ignore:torch-mice's models are not convex")


def value_and_gradient(engine, model, x):
    """The output, and the gradient by x of the sum of its squares."""
    if engine.name == "torch":
        at = torch.tensor(x, requires_grad=True)
        y = model(at)
        y.square().sum().backward()
        return y.detach().numpy(), at.grad.numpy()
    y, gradient = jax.jit(lambda x: (model(x), jax.grad(lambda x: (model(x) ** 2).sum())(x)))(jnp.asarray(x))
    return np.asarray(y), np.asarray(gradient)


@pytest.mark.parametrize("path", MICE, ids=lambda path: path.stem)
def test_torch_mice_computes_what_was_recorded(engine, path):
    data, state = archive(path)
    with engine.precision("float64"):
        model = from_torch_mice(state, json.loads(str(data["meta"]))["petals"], framework=engine.name)
        y, gradient = value_and_gradient(engine, model, data["x"])
    assert np.abs(y - data["y"]).max() < BOUND
    assert np.abs(gradient - data["grad_x_of_sum_y_squared"]).max() < BOUND


@pytest.mark.parametrize(
    "change", [np.int64, bool, object, str, lambda value: value[:0]], ids=["int64", "bool", "object", "text", "empty"]
)
def test_weights_that_are_no_numbers_are_refused(engine, change):
    _, state = archive(MICE[0])
    value = np.asarray(state["petals.layer1.raw"])
    state["petals.layer1.raw"] = value.astype(change) if isinstance(change, type) else change(value)
    with pytest.raises(InputError, match=r"expected weights in floating point; got .* for petals.layer1.raw"):
        from_torch_mice(state, framework=engine.name)


@pytest.mark.parametrize("name", ["shifts", "petals.layer1.raw", "petals.extra_gate1_nets.2.lin.bias"])
def test_control_a_changed_weight_would_be_seen(engine, name):
    data, state = archive(MICE[0])
    state[name] = state[name] + 1e-6 * np.arange(state[name].size).reshape(state[name].shape)
    with engine.precision("float64"):
        y, _ = value_and_gradient(engine, from_torch_mice(state, framework=engine.name), data["x"])
    assert np.abs(y - data["y"]).max() > BOUND


def test_it_says_that_it_is_not_convex_and_is_not(engine):
    _, state = archive(MICE[0])
    with engine.precision("float64"), pytest.warns(UserWarning, match="are not convex"):
        model = from_torch_mice(
            {name: 4 * value for name, value in state.items() if name != "group_indices"}, framework=engine.name
        )
    assert type(model).__name__ == "NonConvexHull" and "Not convex" in type(model).__doc__
    with engine.precision("float64"):
        points = engine.array(np.random.default_rng(0).normal(size=(20, 5)) * 3)
        assert engine.package.find_violation(model, points, segments=20_000) is not None


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_files(engine, ending, tmp_path):
    data, state = archive(MICE[1])
    path = tmp_path / f"old{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save({name: torch.tensor(value) for name, value in state.items()}, path)
    with engine.precision("float64"):
        y, _ = value_and_gradient(engine, from_torch_mice(path, framework=engine.name), data["x"])
    assert np.abs(y - data["y"]).max() < BOUND


class Touch:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(tmp_path):
    made = tmp_path / "made"
    torch.save({"shifts": Touch(made)}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"expected a state dict of tensors; got 'bad\.pt'"):
        from_torch_mice(tmp_path / "bad.pt")
    assert not made.exists()
    pickle.loads(pickle.dumps(Touch(made)))  # control: it would have
    assert made.exists()


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad.pt", "bad.safetensors"):
        with pytest.raises(InputError, match=f"expected a state dict of tensors; got '{name}'"):
            from_torch_mice(tmp_path / name)
    with pytest.raises(InputError, match="expected a file; got"):
        from_torch_mice(tmp_path / "none.pt")
    with pytest.raises(InputError, match="expected a state dict; got list"):
        from_torch_mice([1, 2])


def faulty():
    """A change of the state dict, and what the message must name."""
    return {
        "missing and unexpected": (
            lambda s: s | {"new": s["shifts"]} | {"petals.layer0.raw": None},
            ["missing petals.layer0.raw", "unexpected new"],
        ),
        "one axis more": (
            lambda s: s | {"petals.gate0_net.lin.weight": s["petals.gate0_net.lin.weight"][None]},
            ["petals.gate0_net.lin.weight has shape [1, 12, 6], not 2 axes"],
        ),
        "another width": (
            lambda s: s | {"petals.layer1.raw": s["petals.layer1.raw"][:, :, 1:]},
            ["layer1.raw_weight has shape [11, 3, 2], not [12, 3, 2]"],
        ),
        "petals that differ": (
            lambda s: s | {"petals.extra_gate0_nets.1.lin.bias": s["shifts"]},
            ["petals.extra_gate0_nets.*.lin.bias differ in shape"],
        ),
        "other groups": (
            lambda s: s | {"group_indices": s["group_indices"][::-1]},
            ["group_indices are not those of neighbours"],
        ),
    }


@pytest.mark.parametrize("fault", faulty())
def test_faults_are_listed(engine, fault):
    _, state = archive(MICE[1])
    change, expected = faulty()[fault]
    changed = {name: value for name, value in change(state).items() if value is not None}
    with engine.precision("float64"), pytest.raises(InputError) as caught:
        from_torch_mice(changed, framework=engine.name)
    assert [part for part in expected if part not in str(caught.value)] == []


def test_another_number_of_petals():
    _, state = archive(MICE[1])
    with pytest.raises(InputError, match="expected the 3 that the checkpoint has; got 4"):
        from_torch_mice(state, 4)


@pytest.mark.parametrize("path", CELMOE, ids=lambda path: path.stem)
@pytest.mark.parametrize("other", ["convexmoe_jax", "convexmoe_torch"])
def test_celmoe_computes_what_was_recorded(engine, path, other):
    """The config may be of either package."""
    data, state = archive(path)
    meta = json.loads(str(data["meta"]))
    config = config_of({"convexmoe_jax": convexmoe_jax, "convexmoe_torch": convexmoe_torch}[other], meta)
    with engine.precision("float64"):
        if engine.name == "jax":
            model = from_celmoe(state, config, lambda *_, rngs: JaxExpert(meta["hidden"], rngs), framework="jax")
        else:
            model = from_celmoe(state, config, lambda *_: TorchExpert(meta["hidden"]))
        x, mask, context = (engine.array(data[name]) for name in ("x", "mask", "context"))
        output = model(x, meta["routing"], context=context, mask=mask)
    for level in output.levels.values():
        hidden = level.hidden.detach() if engine.name == "torch" else level.hidden
        assert np.abs(np.asarray(hidden) - data[f"level/{level.name}"]).max() < BOUND


def test_celmoe_faults_are_listed():
    data, state = archive(CELMOE[0])
    meta = json.loads(str(data["meta"]))
    state["extra"] = state.pop("fusion.norm.bias")
    with pytest.raises(ValueError, match=r"missing fusion\.norm\.bias; unexpected extra"):
        from_celmoe(state, config_of(convexmoe_torch, meta), lambda *_: TorchExpert(meta["hidden"]))

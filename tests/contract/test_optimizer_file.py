"""The state of an optimizer in the neutral file: back to the bit, the same bytes from both packages, one by one."""

import json
import weakref

import backends
import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hierarchies import Case, Level, random_weights
from safetensors import safe_open

import convexmoe.files.format
import convexmoe.files.schema
import convexmoe_jax
import convexmoe_torch
from interop import to_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOT_STATES = {
    "params": (lambda model, optimizer: nnx.state(model, nnx.Param).to_pure_dict(), "gave"),
    "an optimizer": (lambda model, optimizer: optimizer, "gave"),
    "an nnx.Optimizer": (lambda model, optimizer: nnx.Optimizer(model, optimizer, wrt=nnx.Param), "here opt_state"),
    "nothing": (lambda model, optimizer: None, "gave"),
}
SEEDS = (0, 1)
CASE = Case((Level("a", ("linear", "mlp7", "linear")), Level("b", ("linear",) * 2)))
RULES = {
    "adam": (lambda: convexmoe_jax.adam(1e-3), lambda p: torch.optim.Adam(p, 1e-3)),
    "adamw": (lambda: convexmoe_jax.adamw(1e-3, 0.1), lambda p: torch.optim.AdamW(p, 1e-3)),
    "sgd": (lambda: optax.sgd(1e-3, 0.9), lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9)),
}


def in_jax(kind, dtype="float32"):
    """A model in JAX, every weight random."""
    if kind == "hull":
        fields = cases.HULLS["everything"]
        return backends.BACKENDS[0].model(fields, cases.random_weights(fields), dtype)
    from engines import ENGINES

    return ENGINES[0].build(CASE, random_weights(CASE), dtype)


def random_state(optimizer, model, steps, seed):
    """An optax state of so many steps with random moments, for which no step is compiled."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return (
            jnp.full_like(leaf, steps) if leaf.dtype == jnp.int32 else jnp.asarray(rng.random(leaf.shape), leaf.dtype)
        )

    return jax.tree.map(draw, optimizer.init(nnx.state(model, nnx.Param)))


def stepped(optimizer, model, steps, seed):
    """An optax state after steps with random gradients."""
    params, rng = nnx.state(model, nnx.Param), np.random.default_rng(seed)
    state = optimizer.init(params)
    for _ in range(steps):
        gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), params)
        _, state = optimizer.update(gradient, state, params)
    return state


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def equal(first, second):
    pairs = zip(first, second, strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["hull", "hierarchy"])
def test_a_state_goes_round_both_packages_byte_for_byte(kind, rule, seed, tmp_path):
    make, make_torch = RULES[rule]
    model = in_jax(kind)
    state = random_state(make(), model, 5, seed)
    files = [tmp_path / name for name in ("jax", "torch", "again")]
    convexmoe_jax.save(model, files[0], optimizer=state, step=5)
    assert convexmoe_jax.read_optimizer(files[0]).step == convexmoe_torch.read_optimizer(files[0]).step == 5
    twin = convexmoe_torch.load(files[0])
    optimizer = convexmoe_torch.load_optimizer(files[0], make_torch(twin.parameters()), twin)
    convexmoe_torch.save(twin, files[1], optimizer=optimizer, step=5)
    back = convexmoe_jax.load(files[1])
    fresh = make().init(nnx.state(back, nnx.Param))
    restored = convexmoe_jax.load_optimizer(files[1], fresh, back)
    convexmoe_jax.save(back, files[2], optimizer=restored, step=5)
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    assert equal(leaves(restored), leaves(state))
    # control: another seed is another state, another step another file
    assert not equal(leaves(restored), leaves(random_state(make(), model, 5, seed + 1)))
    convexmoe_jax.save(back, files[2], optimizer=random_state(make(), model, 4, seed), step=4)
    assert files[0].read_bytes() != files[2].read_bytes()


def test_the_file_names_every_moment_by_its_parameter(tmp_path):
    model = in_jax("hierarchy")
    convexmoe_jax.save(model, tmp_path / "file", optimizer=random_state(RULES["adam"][0](), model, 2, 0))
    with safe_open(tmp_path / "file", framework="numpy") as file:
        names = set(file.keys())
        header = json.loads(file.metadata()["convexmoe"])
    own = {name.removeprefix("params/") for name in names if name.startswith("params/")}
    assert own == set(dict(to_torch(model).named_parameters()))
    assert names == {f"{prefix}/{name}" for prefix in ("params", "opt/mu", "opt/nu") for name in own}
    assert header["optimizer"] == {"rule": "adam", "step": 2}


def test_models_without_and_with_an_optimizer_load_alike(backend, tmp_path):
    model = in_jax("hull")
    convexmoe_jax.save(model, tmp_path / "with", optimizer=random_state(RULES["adam"][0](), model, 2, 0))
    convexmoe_jax.save(model, tmp_path / "without")
    first, second = (backend.weights(backend.package.load(tmp_path / name)) for name in ("with", "without"))
    assert all(np.array_equal(first[name], second[name]) for name in first) and first.keys() == second.keys()
    assert backend.package.read_optimizer(tmp_path / "without") is None


def fresh(backend, model, rule="adam"):
    """What the backend's `load_optimizer` takes: an initial optax state, or a new optimizer."""
    make, make_torch = RULES[rule]
    if backend.name == "jax":
        return make().init(nnx.state(model, nnx.Param))
    return make_torch(model.parameters())


def test_refusals_in_the_same_words(backend, tmp_path):
    model = in_jax("hull")
    path = tmp_path / "file"
    convexmoe_jax.save(model, path)
    own = backend.package.load(path)
    with pytest.raises(ValueError) as caught:
        backend.package.load_optimizer(path, fresh(backend, own), own)
    assert str(caught.value).replace(str(path), "FILE") == (
        "load_optimizer.path: expected a file with an optimizer; got 'FILE'. "
        "Write it with save(model, path, optimizer=...)."
    )
    convexmoe_jax.save(model, path, optimizer=random_state(RULES["adam"][0](), model, 2, 0))
    with pytest.raises(TypeError) as caught:
        backend.package.load_optimizer(path, fresh(backend, own, "sgd"), own)
    assert str(caught.value) == (
        "OptimizerState.rule: expected 'sgd', as the optimizer has; got 'adam'. "
        "Make the optimizer that the state is of."
    )
    fields = cases.HULLS["default"]
    other = backend.model(fields, cases.random_weights(fields), "float32")
    with pytest.raises(ValueError) as caught:
        backend.package.load_optimizer(path, fresh(backend, other), other)
    for part in ("unexpected mu/gate.bias", "nu/trunk.0.weight has shape [5, 13, 7], not [5, 7]"):
        assert part in str(caught.value)
    if backend.name == "torch":
        with pytest.raises(ValueError, match="expected an optimizer of the model's parameters; got one of others"):
            backend.package.save(own, path, optimizer=fresh(backend, other))
    with pytest.raises(ValueError, match=r"OptimizerState.step: expected a whole number from 0 to 2147483647; got -1"):
        backend.package.save(own, path, optimizer=fresh(backend, own, "sgd"), step=-1)


SPOILT = {
    "rule": {"rule": "lion", "step": 3},
    "step": {"rule": "adam", "step": -3},
    "true": {"rule": "adam", "step": True},
    "fields": {"rule": "adam"},
    "list": ["adam", 3],
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_header_with_a_bad_optimizer_is_refused(backend, name, tmp_path):
    model = in_jax("hull")
    header, arrays = convexmoe_jax.files.models.content_of(model)
    header |= {"schema": 1, "notes": {}, "optimizer": SPOILT[name]}
    convexmoe.files.format.write_sealed(tmp_path / "file", header, arrays)
    with pytest.raises(ValueError, match=r"expected an optimizer with its rule, one of .* and its step"):
        backend.package.load(tmp_path / "file")


def test_a_missing_moment_is_named_before_a_tensor_is_read(backend, tmp_path, monkeypatch):
    model = in_jax("hull")
    header, arrays = convexmoe_jax.files.models.content_of(model)
    header |= {"schema": 1, "notes": {}, "optimizer": {"rule": "sgd", "step": 3}}
    arrays |= {f"opt/trace/{name.removeprefix('params/')}": value for name, value in arrays.items()}
    del arrays["opt/trace/shifts"]
    convexmoe.files.format.write_sealed(tmp_path / "file", header, arrays)
    seen = watch(backend, monkeypatch)
    with pytest.raises(ValueError, match="got missing opt/trace/shifts"):
        backend.package.load(tmp_path / "file")
    assert seen == []


def watch(backend, monkeypatch):
    """The list that, for each tensor read from now on, gets how many of those before are still in memory."""
    counts, gone = [], []

    def read(self, key, inner=convexmoe.files.schema.TensorFile.read):
        value = inner(self, key)
        counts.append(len(counts) - len(gone))
        weakref.finalize(value, gone.append, key)
        return value

    monkeypatch.setattr(convexmoe.files.schema.TensorFile, "read", read)
    return counts


def test_tensors_are_read_one_by_one(backend, tmp_path, monkeypatch):
    model = in_jax("hull")
    convexmoe_jax.save(model, tmp_path / "file", optimizer=random_state(RULES["adam"][0](), model, 2, 0))
    counts = watch(backend, monkeypatch)
    backend.package.read_notes(tmp_path / "file")
    assert len(counts) > 20 and max(counts) <= 1


def test_control_a_reader_that_keeps_its_tensors_is_seen(backend, tmp_path, monkeypatch):
    model = in_jax("hull")
    convexmoe_jax.save(model, tmp_path / "file", optimizer=random_state(RULES["adam"][0](), model, 2, 0))
    counts, kept, hash_array = watch(backend, monkeypatch), [], convexmoe.files.format._hash_array
    monkeypatch.setattr(
        convexmoe.files.format, "_hash_array", lambda *arguments: kept.append(arguments) or hash_array(*arguments)
    )
    backend.package.read_notes(tmp_path / "file")
    assert max(counts) == len(counts) - 1


def params_of(model):
    return nnx.state(model, nnx.Param)


CHAINS = {
    "injected schedule": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=lambda n: 1e-2 / (1 + n), weight_decay=0.0
    ),
    "a chain in a chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.chain(optax.scale_by_adam(), optax.scale(-1e-3))
    ),
    "masked": lambda: optax.masked(optax.adam(lambda n: 1e-2 / (1 + n)), lambda p: jax.tree.map(lambda _: True, p)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_count_of_a_chain_comes_back(name, tmp_path):
    """The next update is that of the run which went on."""
    model, make = in_jax("hull"), CHAINS[name]
    state, params = stepped(make(), model, 5, 0), params_of(model)
    convexmoe_jax.save(model, tmp_path / "file", optimizer=state)
    again = convexmoe_jax.load_optimizer(tmp_path / "file", make().init(params), model)
    gradient = jax.tree.map(jnp.ones_like, params)
    first, second = (make().update(gradient, now, params) for now in (state, again))
    assert equal(leaves(first), leaves(second))
    # control: a count that was forgotten
    third = make().update(gradient, make().init(params), params)
    assert not equal(leaves(first), leaves(third))


@pytest.mark.parametrize("kind", ["hull", "hierarchy"])
def test_a_flax_optimizer_goes_through_the_file(kind, tmp_path):
    model = in_jax(kind)

    def step(optimizer, model):
        optimizer.update(model, jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), params_of(model)))

    optimizer = nnx.Optimizer(model, convexmoe_jax.adam(1e-2), wrt=nnx.Param)
    step(optimizer, model)
    convexmoe_jax.save(model, tmp_path / "file", optimizer=optimizer.opt_state)
    other = convexmoe_jax.load(tmp_path / "file")
    goes_on = nnx.Optimizer(other, convexmoe_jax.adam(1e-2), wrt=nnx.Param)
    goes_on.opt_state = convexmoe_jax.load_optimizer(tmp_path / "file", goes_on.opt_state, other)
    step(optimizer, model)
    step(goes_on, other)
    assert equal(leaves(params_of(model)), leaves(params_of(other)))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: optax.apply_if_finite(optax.adam(1e-3), 5), "ApplyIfFiniteState"),
        (lambda: optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()), "ReduceLROnPlateauState"),
        (lambda: optax.MultiSteps(optax.adam(1e-3), 3), "MultiStepsState"),
    ],
)
def test_a_state_with_more_to_remember_is_refused_by_name(make, name):
    model = in_jax("hull")
    with pytest.raises(TypeError, match=f"beside it steps alone; got {name}"):
        convexmoe_jax.files.optimizer.optimizer_state(make().init(params_of(model)), model)


def test_counts_that_differ_are_refused():
    model = in_jax("hull")
    state = convexmoe_jax.adam(lambda n: 1e-3).init(params_of(model))
    state = (state[0]._replace(count=jnp.asarray(3)), state[1]._replace(count=jnp.asarray(8)))
    with pytest.raises(ValueError, match=r"expected one number of steps; got the counts \[3, 8\]"):
        convexmoe_jax.files.optimizer.optimizer_state(state, model)


def halves(backend, model, moments=("mu", "nu"), **changes):
    """A state by hand: half of each weight, with changes."""
    weights = backend.package.hull.flatten(model.params)
    values = {name: backend.array(0.5 * backend.numpy(value)) for name, value in weights.items()}
    fields = {"rule": "adam", "step": 3, "moments": {moment: dict(values) for moment in moments}}
    return backend.package.OptimizerState(**(fields | changes))


BAD_STATES = {
    "no moments": ({"moments": {}}, "missing mu/shifts"),
    "one moment": ({"moments": ("mu",)}, "missing nu/shifts"),
    "another moment": ({"moments": ("mu", "nu", "xi")}, "unexpected xi/shifts"),
    "another rule": ({"rule": "lion"}, r"expected one of \['adam', 'sgd'\]; got 'lion'"),
    "Adam's for SGD": ({"rule": "sgd"}, "missing trace/shifts"),
    "before": ({"step": -1}, r"expected a whole number from 0 to 2147483647; got -1"),
    "after": ({"step": 2**31}, r"expected a whole number from 0 to 2147483647; got 2147483648"),
    "half a step": ({"step": 1.5}, r"expected a whole number .*; got 1.5"),
    "whole numbers": ({"dtype": "int32"}, r"expected arrays of one of .*; got int32"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_bad_state_leaves_the_file_as_it_was(backend, name, tmp_path):
    fields = cases.HULLS["default"]
    model = backend.model(fields, cases.random_weights(fields), "float32")
    path = tmp_path / "file"
    backend.package.save(model, path, optimizer=halves(backend, model))
    before = path.read_bytes()
    changes, words = dict(BAD_STATES[name][0]), BAD_STATES[name][1]
    if isinstance(changes.get("moments"), tuple):
        state = halves(backend, model, changes["moments"])
    elif changes.pop("dtype", None):
        state = halves(backend, model)
        state.moments["mu"]["shifts"] = backend.array(np.zeros(3, np.int32))
    else:
        state = halves(backend, model, **changes)
    with pytest.raises((TypeError, ValueError), match=words):
        backend.package.save(model, path, optimizer=state)
    assert path.read_bytes() == before
    with pytest.raises((TypeError, ValueError)):
        backend.package.files.optimizer.restore(fresh(backend, model), model, state)


def test_an_optimizer_of_a_copy_is_refused(tmp_path):
    """In PyTorch an optimizer knows its parameters: those of another model of the same file are others."""
    model = in_jax("hull")
    convexmoe_jax.save(model, tmp_path / "file", optimizer=random_state(RULES["adam"][0](), model, 2, 0))
    one, other = convexmoe_torch.load(tmp_path / "file"), convexmoe_torch.load(tmp_path / "file")
    with pytest.raises(ValueError, match="expected an optimizer of the model's parameters; got one of others"):
        convexmoe_torch.load_optimizer(tmp_path / "file", torch.optim.Adam(other.parameters()), one)


@pytest.mark.parametrize("name", NOT_STATES)
def test_load_optimizer_of_jax_says_what_it_wants(tmp_path, name):
    model, optimizer = in_jax("hull"), convexmoe_jax.adam(1e-3)
    state, path = random_state(optimizer, model, 3, seed=0), tmp_path / "run.safetensors"
    convexmoe_jax.save(model, path, optimizer=state)
    make, fix = NOT_STATES[name]
    with pytest.raises(TypeError, match=rf"expected the state of an optax optimizer; got .*init\(params\).*{fix}"):
        convexmoe_jax.load_optimizer(path, make(model, optimizer), model)
    convexmoe_jax.load_optimizer(path, optimizer.init(nnx.state(model, nnx.Param)), model)  # control

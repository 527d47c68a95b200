"""Routes are checked before they are narrowed: an integer beyond 32 bits is never another sample's expert."""

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from documented import numpy
from engines import ENGINES
from flax import nnx

import convexmoe_jax

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDE = 2**32 + np.array([1, 2])  # as int32 they are 1 and 2
X = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
HEAD = "HierarchicalCELMoE.routing['a']: expected"
BEYOND = f"{HEAD} integers in [0, 3); got {{}}. Index the level's experts."
NEITHER = f"{HEAD} names or integers; got {{}}."


def model_of(engine):
    """One level of three experts, without a fusion."""
    package = engine.package
    experts = [package.ExpertConfig(name) for name in "xyz"]
    config = package.CELMoEConfig(5, [package.HierarchyLevelConfig("a", experts)], use_learned_fusion=False)
    if engine.name == "torch":
        return package.HierarchicalCELMoE(config, lambda *_: package.LinearExpert(5))
    return package.HierarchicalCELMoE(config, lambda *_, rngs: package.LinearExpert(5, rngs=rngs), rngs=nnx.Rngs(0))


FAULTS = {
    "int64": (WIDE, BEYOND.format(2**32 + 1)),
    "uint64": (WIDE.astype(np.uint64), BEYOND.format(2**32 + 1)),
    "the largest uint64": (np.array([1, 2**64 - 1], np.uint64), BEYOND.format(2**64 - 1)),
    "uint32": (np.array([1, 2**32 - 1], np.uint32), BEYOND.format(2**32 - 1)),
    "list": ([2**32 + 1, 2], BEYOND.format(2**32 + 1)),
    "huge": ([1, 2**70], BEYOND.format(2**70)),
    "huge and negative": ([2**63, -1], BEYOND.format(2**63)),
    "integers of numpy": ([np.int64(2**32 + 1), np.uint8(2)], BEYOND.format(2**32 + 1)),
    "objects": (np.array([2**32 + 1, 2], object), BEYOND.format(2**32 + 1)),
    "range": (range(2**32, 2**32 + 2), BEYOND.format(2**32)),
    "negative": ([-1, 2], BEYOND.format(-1)),
    "bools": (np.array([True, False]), NEITHER.format("bool[2]")),
    "list of bools": ([True, False], f"{HEAD} experts among ['x', 'y', 'z']; got True at sample 0."),
    "bools of numpy": ([np.True_, np.False_], f"{HEAD} experts among ['x', 'y', 'z']; got np.True_ at sample 0."),
    "objects with a bool": (np.array([1, True], object), f"{HEAD} experts among ['x', 'y', 'z']; got 1 at sample 0."),
    "floats": (np.array([1.0, 2.0]), NEITHER.format("float64[2]")),
    "list of floats": ([1, 2.0], f"{HEAD} experts among ['x', 'y', 'z']; got 1 at sample 0."),
    "bytes": (b"\x01\x02", NEITHER.format("b'\\x01\\x02'")),
    "int4": (np.array([1, 2], ml_dtypes.int4), NEITHER.format("int4[2]")),
    "arrays": ([np.array([1]), np.array([2])], f"{HEAD} experts among ['x', 'y', 'z']; got array([1]) at sample 0."),
    "masked": (np.ma.array([1, 2], mask=[False, True]), f"{HEAD} a route for every sample; got 1 masked."),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_route_that_is_none_is_refused_in_the_same_words(engine, name):
    routes, message = FAULTS[name]
    with pytest.raises((ValueError, TypeError)) as error:
        engine.package.encode_routes(model_of(engine).config, {"a": routes}, 2)
    assert str(error.value).startswith(message)


def test_the_model_and_everything_else_that_takes_routes_refuse_them(engine):
    package, model = engine.package, model_of(engine)
    for call in (
        lambda: model(engine.array(X), {"a": WIDE}),
        lambda: package.FixedHierarchy(model, {"a": WIDE}),
        lambda: package.encode_routes(model.config, package.merged_routes({"a": WIDE[:1]}, {"a": [2]}), 2),
        lambda: package.routing_summary(model.config, {"a": WIDE}),
    ):
        with pytest.raises(ValueError, match=r"expected integers in \[0, 3\); got (4294967297|-1)"):
            call()
    for wrong in ([True], [1.5], np.array([2.0])):  # they would be joined as 1, 1 and 2
        with pytest.raises(TypeError, match=r"parts\['a'\]: expected names or integers; got"):
            package.merged_routes({"a": np.array([1])}, {"a": wrong})
    merged = package.merged_routes({"a": np.array([1], np.uint64)}, {"a": np.array([2], np.int64)})["a"]
    assert merged.tolist() == [1, 2] and "int" in str(merged.dtype)  # numpy would make them floats
    wanted = numpy(model(engine.array(X), {"a": [1, 2]}).fused_hidden)
    for routes in (np.array([1, 2], np.uint64), [np.uint64(1), 2], np.array([1, 2], object), range(1, 3)):
        assert np.array_equal(numpy(model(engine.array(X), {"a": routes}).fused_hidden), wanted)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_encoded_routes_have_one_dtype(engine, dtype):
    """Whatever they were: uint8 selects as a mask where PyTorch indexes, int8 overflows where they are counted on."""
    config = model_of(engine).config
    for routes in (np.array([1, 2], dtype), engine.array(np.array([1, 2], dtype))):
        encoded = engine.package.encode_routes(config, {"a": routes}, 2)["a"]
        assert str(encoded.dtype).endswith("int64" if engine.name == "torch" else "int32")
        assert encoded.tolist() == [1, 2]
    with warnings.catch_warnings(action="ignore"):
        chosen = torch.arange(3.0)[torch.tensor([1, 0, 1], dtype=torch.uint8)]
    assert chosen.tolist() == [0, 2]  # control: it is no index


def test_the_summary_broadcasts_a_level_as_a_call_does(engine):
    package = engine.package
    levels = [
        package.HierarchyLevelConfig("a", [package.ExpertConfig(name) for name in "xyz"]),
        package.HierarchyLevelConfig("b", [package.ExpertConfig("only")]),
    ]
    config = package.CELMoEConfig(5, levels, use_learned_fusion=False)
    wanted = {"a": {"x": 0, "y": 1, "z": 1}, "b": {"only": 2}}
    for routes in ([1, 2], engine.array(np.array([1, 2])), ["y", "z"]):
        assert package.routing_summary(config, {"a": routes}) == wanted
    with pytest.raises(ValueError, match=r"routing\['a'\]: expected one of \['x', 'y', 'z'\] a sample; got no routes"):
        package.routing_summary(config, {"b": [0, 0]})
    with pytest.raises(ValueError, match=r"routing: expected levels among .* got \['c'\]"):
        package.routing_summary(config, {"a": [1], "c": [0]})


def test_routes_of_numpy_are_int32_when_they_are_encoded():
    """So that `jit`, which narrows its arguments before a model sees them, has nothing to narrow."""
    config = model_of(ENGINES[0]).config
    for routes in (np.array([1, 2]), np.array([1, 2], np.uint64), [1, 2]):
        assert convexmoe_jax.encode_routes(config, {"a": routes}, 2)["a"].dtype == np.int32


def test_jax_checks_wide_integers_where_their_values_are_to_be_had(x64):
    """Arrays of 64 bits reach a program without them as they are; what compares them there cuts them off first."""
    import jax
    import jax.numpy as jnp

    wide, wide_unsigned = jnp.array(WIDE), jnp.array([2**64 - 1, 2], jnp.uint64)
    with jax.enable_x64(False):
        model = model_of(ENGINES[0])
        run = jax.jit(lambda x, routes: model(x, {"a": routes}).fused_hidden)
        assert np.isnan(run(X, wide)).all()
        assert np.isnan(run(X, wide_unsigned)).all(1).tolist() == [True, False]
        assert np.array_equal(run(X, jnp.array([1, 2])), run(X, np.array([1, 2])))
        assert jax.jit(lambda r: ((r >= 0) & (r < 3)).all())(wide)  # control: it would have passed
        with pytest.raises(ValueError, match=r"got 4294967297"):  # vmap shows the values of numpy as int32
            jax.vmap(lambda routes: model(X, {"a": routes}).fused_hidden)(WIDE[None])
        with pytest.raises(ValueError, match=r"got 4294967297"):
            jax.jit(lambda x: model(x, {"a": WIDE}).fused_hidden)(X)
        with pytest.raises(TypeError, match=r"names or integers; got bool\[2\]"):
            run(X, np.array([True, False]))


@pytest.mark.release
def test_torch_compiles_a_check_of_wide_integers():
    model = model_of(ENGINES[1])
    run = torch.compile(lambda x, routes: model(x, {"a": routes}).fused_hidden, fullgraph=True, backend="aot_eager")
    x = torch.from_numpy(X)
    assert run(x, torch.from_numpy(WIDE)).isnan().all()
    assert run(x, torch.tensor([2**63 + 1, 2], dtype=torch.uint64)).isnan().all(1).tolist() == [True, False]
    assert torch.equal(run(x, torch.tensor([1, 2])), model(x, {"a": ["y", "z"]}).fused_hidden)

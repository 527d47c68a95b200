"""What concerns one sample stays with it: its NaN, its route, its dropout; and bfloat16 sums are wide."""

import dataclasses

import engines
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from hierarchies import Case, Level, config_of, naive_expert, random_inputs, random_weights, rounded, uniform
from tolerances import relative_error

import convexmoe_jax
import convexmoe_torch

CASE = Case((Level("a", ("mlp7", "mlp7", "linear")), Level("b", ("linear",) * 3)), fusion=False)
SMALL = uniform("linear", 3)
MIXED = Case((Level("a", ("tanh", "linear", "identity"), loss_weight=0.25), Level("b", ("tanh",) * 2)))
ROW, ROUTE = 4, (1, 2)
# That row is the first of its expert, and the rows of the expert before fill no block.
ROUTES = {"only": [0, 0, 2, 2, 1, 1, 0, 1, 2, 0, 0, 1, 2]}
ROUTES |= {"a": [0, 0, 2, 2, 1, 1, 0, 1, 2, 0, 0, 1, 2], "b": [0, 1, 1, 0, 2, 2, 1, 2, 0, 1, 1, 0, 2]}


def poisoned_run(engine, every, case):
    """What is found with a NaN in one row, without it, and the names of what that row may touch."""
    inputs = random_inputs(case)
    inputs["routes"] = {level.name: np.array(ROUTES[level.name], np.int32) for level in case.levels}
    model = engine.build(case, random_weights(case), every=every)
    clean = engine.run(case, model, inputs)
    inputs["x"][ROW] = np.nan
    own = [f"level_modules.{lv.name}.e{route}." for lv, route in zip(case.levels, ROUTE, strict=False)]
    return engine.run(case, model, inputs), clean, own


def touched(found, clean, own):
    """Names of arrays that a NaN in ROW has changed and should not have."""
    wrong = []
    for name, value in found.items():
        if name == "total" or any(prefix in name for prefix in own):
            continue
        by_row = name in ("fused", "only", "a", "b", "gradient of x")
        value, wanted = (np.delete(v, ROW, 0) if by_row else v for v in (value, clean[name]))
        if relative_error(value, wanted) > 1e-12:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("every", ["reverse", "any"])
def test_a_nan_touches_its_own_row_and_experts_only(engine, every):
    if engine.name == "torch" and every == "any":
        pytest.skip("torch has one mode")
    found, clean, own = poisoned_run(engine, every, CASE if every == "reverse" else SMALL)
    assert touched(found, clean, own) == []
    assert np.isnan(found["fused"][ROW]).all()
    for prefix in own:  # the NaN is not swallowed either
        assert any(np.isnan(v).any() for name, v in found.items() if prefix in name)


def test_control_blocks_without_a_mask_would_poison_other_experts(monkeypatch):
    from convexmoe_jax.hierarchy import dispatch

    def block(rows, at, size, valid):
        return dispatch.jax.tree.map(lambda leaf: dispatch.lax.dynamic_slice_in_dim(leaf, at, size), rows)

    dispatch.dispatch.clear_cache()
    monkeypatch.setattr(dispatch, "block_of", block)
    assert touched(*poisoned_run(engines.JaxEngine(), "reverse", SMALL))
    dispatch.dispatch.clear_cache()


def test_the_order_of_the_batch_does_not_matter(engine):
    case = MIXED
    inputs = random_inputs(case)
    model = engine.build(case, random_weights(case))
    order = np.random.default_rng(3).permutation(len(inputs["x"]))
    moved = inputs | {name: inputs[name][order] for name in ("x", "shift", "mask")}
    moved |= {name: {key: value[order] for key, value in inputs[name].items()} for name in ("routes", "cotangents")}
    first, second = engine.run(case, model, inputs), engine.run(case, model, moved)
    for name, value in first.items():
        by_row = name in ("fused", "a", "b", "gradient of x", "gradient of shift")
        assert relative_error(second[name], value[order] if by_row else value) < 1e-12, name


def test_routes_of_other_samples_do_not_matter(engine):
    case = MIXED
    inputs = random_inputs(case)
    model = engine.build(case, random_weights(case))
    first = engine.run(case, model, inputs)["fused"]
    for lv in case.levels:
        inputs["routes"][lv.name][: ROW + 1] = (inputs["routes"][lv.name][: ROW + 1] + 1) % len(lv.kinds)
    second = engine.run(case, model, inputs)["fused"]
    assert relative_error(second[ROW + 1 :], first[ROW + 1 :]) < 1e-12
    assert all(relative_error(second[i], first[i]) > 1e-6 for i in range(ROW + 1))


def test_dropout_of_the_fusion(engine):
    """Off unless asked for, the same for the same key, of the stated share, and blind to the routes of others."""
    case = dataclasses.replace(uniform("linear", 3), fusion=True, dropout=0.25)
    model = engine.build(case, random_weights(case), "float32")
    inputs = rounded(random_inputs(case, 300), np.float32)
    other = {"only": (inputs["routes"]["only"] + 1) % 3}
    other["only"][:7] = inputs["routes"]["only"][:7]
    quiet, first, again, moved, changed = (
        engine.fused(model, inputs["x"], routes, seed)
        for routes, seed in [(inputs["routes"], s) for s in (None, 1, 1)] + [(other, 1), (inputs["routes"], 2)]
    )
    assert np.all(quiet != 0) and np.array_equal(first, again)
    assert abs(np.mean(first == 0) - 0.25) < 0.05 and not np.array_equal(first == 0, changed == 0)
    assert np.array_equal(first == 0, moved == 0) and np.array_equal(first[:7], moved[:7])
    kept = first != 0
    assert relative_error(first[kept], quiet[kept] / 0.75) < 1e-6


def naive_gradients(kind, weights, inputs):
    """Gradients of the fused output against its cotangent, where all rows go to e1."""
    p = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    prefix = "level_modules.only.e1."
    w = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
    output, _ = naive_expert(kind, w, torch.tensor(inputs["x"]), {}, 0)
    total = (torch.tensor(inputs["cotangents"]["fused"]) * output).sum()
    found = torch.autograd.grad(total, list(p.values()), materialize_grads=True, allow_unused=True)
    return {name: value.numpy() for name, value in zip(p, found, strict=True)}


@pytest.mark.parametrize("kind", ["linear", pytest.param("mlp7", marks=pytest.mark.release)])
def test_bfloat16_gradients_are_accumulated_in_float32(engine, kind):
    case, rows = uniform(kind, 3), 8192
    weights = rounded(random_weights(case), ml_dtypes.bfloat16)
    inputs = random_inputs(case, rows, spread="one")
    inputs["cotangents"] = {"fused": np.abs(inputs["cotangents"]["fused"]), "only": 0 * inputs["x"]}
    inputs["x"] = np.abs(inputs["x"])
    inputs = rounded(inputs, ml_dtypes.bfloat16)
    found = engine.run(case, engine.build(case, weights, "bfloat16"), inputs)
    wanted = naive_gradients(kind, widened(weights), widened(inputs))
    for name in weights:
        assert relative_error(found[f"gradient of {name}"], wanted[name]) < 0.01, name


def test_control_bfloat16_sums_would_be_seen():
    c = np.abs(np.random.default_rng(0).normal(size=8192)).astype(ml_dtypes.bfloat16)
    total = ml_dtypes.bfloat16(0)
    for value in c:
        total = total + value
    assert relative_error(total, c.astype(np.float64).sum()) > 0.01


def widened(tree):
    """Nested dicts with bfloat16, which numpy has no kind for, as float64."""
    if isinstance(tree, dict):
        return {name: widened(value) for name, value in tree.items()}
    return tree.astype(np.float64) if tree.dtype == ml_dtypes.bfloat16 else tree


class JaxDropping(convexmoe_jax.ExpertModule):
    def __call__(self, batch):
        hidden = convexmoe_jax.sample_dropout(batch.hidden, 0.25, batch.key)
        return convexmoe_jax.ExpertResult(convexmoe_jax.sample_dropout(hidden, 0.5, batch.key, index=1))


class TorchDropping(convexmoe_torch.ExpertModule):
    def forward(self, batch):
        hidden = convexmoe_torch.sample_dropout(batch.hidden, 0.25, batch.key)
        return convexmoe_torch.ExpertResult(convexmoe_torch.sample_dropout(hidden, 0.5, batch.key, index=1))


class TorchDroppingTogether(convexmoe_torch.ExpertModule):
    """Control: what torch's own dropout draws depends on which rows the expert has."""

    def forward(self, batch):
        return convexmoe_torch.ExpertResult(torch.nn.functional.dropout(batch.hidden, 0.625, batch.key is not None))


def dropped(engine, expert, routes, seed):
    """The output of a level of experts that drop, on ones."""
    config = config_of(engine.package, uniform("identity", 3))

    def factory(*_, **__):
        return expert()

    if engine.name == "jax":
        model = engine.package.HierarchicalCELMoE(config, factory, rngs=nnx.Rngs(0))
    else:
        model = engine.package.HierarchicalCELMoE(config, factory)
    return engine.fused(model, np.ones((400, 5), np.float32), {"only": routes}, seed)


def test_dropout_of_an_expert(engine):
    """Off without a key, the same for the same key, of the stated share, and blind to the routes of others."""
    expert = JaxDropping if engine.name == "jax" else TorchDropping
    routes = np.random.default_rng(0).integers(0, 3, 400).astype(np.int32)
    other = (routes + 1) % 3
    other[:7] = routes[:7]
    quiet, first, again, moved, changed = (
        dropped(engine, expert, *given) for given in [(routes, None), (routes, 1), (routes, 1), (other, 1), (routes, 2)]
    )
    assert np.array_equal(quiet, np.ones_like(quiet)) and np.array_equal(first, again)
    assert np.array_equal(first, moved)  # the experts are alike, so no sample may change at all
    assert np.mean(first != changed) > 0.2
    assert set(np.unique(first)) == {0.0, np.float32(np.float32(1 / 0.75) / 0.5)}
    # both dropouts act, each for itself: 0.75 * 0.5 are kept; no unit and no sample is special
    kept = first != 0
    assert abs(kept.mean() - 0.375) < 0.04
    assert np.abs(kept.mean(0) - 0.375).max() < 0.1 and len({row.tobytes() for row in kept}) > 25


def test_control_dropout_over_the_rows_of_an_expert_would_be_seen():
    engine = engines.ENGINES[1]
    routes = np.random.default_rng(0).integers(0, 3, 400).astype(np.int32)
    other = (routes + 1) % 3
    other[:7] = routes[:7]
    first, moved = (dropped(engine, TorchDroppingTogether, r, 1) for r in (routes, other))
    assert not np.array_equal(first[:7], moved[:7])


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), True, "half"])
def test_dropout_refuses_a_wrong_rate(engine, rate):
    with pytest.raises(ValueError, match=r"sample_dropout\.rate: expected a number in \[0, 1\); got"):
        engine.package.sample_dropout(engine.array(np.ones((2, 3))), rate, None)


def test_the_mean_of_a_half_precision_loss_does_not_overflow():
    """3,000 losses of 30 are more than float16 holds, their mean is not; torch leaves the mean to the expert."""
    engine = engines.ENGINES[0]

    class Thirty(convexmoe_jax.ExpertModule):
        def __call__(self, batch):
            return convexmoe_jax.ExpertResult(batch.hidden, {"loss": batch.hidden[0] * 0 + 30})

    config = config_of(engine.package, uniform("identity", 1))
    model = convexmoe_jax.HierarchicalCELMoE(config, lambda *_, rngs: Thirty(), rngs=nnx.Rngs(0))
    losses = model(engine.array(np.ones((3000, 5), np.float16))).losses
    assert losses["only.e0.loss"].dtype == "float16" and losses["only.e0.loss"] == 30

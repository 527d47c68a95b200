"""Both fusions of the levels' outputs: values, gradients, refusals, fixed routes; in both packages."""

import functools

import documented
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from documented import compiled, model_of, numpy
from engines import ENGINES
from flax import nnx
from fusions import (
    AWARE,
    LENGTH,
    LEVELS,
    POSITIONS,
    ROUTING,
    ROWS,
    WIDTH,
    X,
    config_of,
    linear_model,
    linear_of,
    options_of,
    shift_bias,
)
from tolerances import VALUES, relative_error

pytestmark = pytest.mark.usefixtures("quick_compilation")

GRADIENTS = 1e-12


@functools.cache
def weights_of(kind, widths=(WIDTH,) * LEVELS):
    """Neutral name -> array, in float64."""
    draw = np.random.default_rng(3)
    out = 1 if kind == "PositionAwareFusion" else WIDTH
    weights = {f"gates.{i}.weight": draw.normal(size=(out, width)) for i, width in enumerate(widths)}
    weights |= {"norm.weight": draw.normal(size=WIDTH), "norm.bias": draw.normal(size=WIDTH)}
    if kind == "PositionAwareFusion":
        weights["position_bias"] = draw.normal(size=(POSITIONS, LEVELS))
    return weights


@functools.cache
def hiddens_of(sequence, widths=(WIDTH,) * LEVELS):
    draw = np.random.default_rng(4)
    return tuple(draw.normal(size=(ROWS, LENGTH, width) if sequence else (ROWS, width)) for width in widths)


def naive(kind, weights, hiddens):
    """Row by row, position by position."""
    result = np.empty((*hiddens[0].shape[:-1], WIDTH))
    for place in np.ndindex(result.shape[:-1]):
        position = place[1] if len(place) == 2 else 0
        at = [hidden[place] for hidden in hiddens]
        gates = [weights[f"gates.{i}.weight"] for i in range(len(hiddens))]
        if kind == "PositionAwareFusion":
            scores = np.array([(gate @ h)[0] for gate, h in zip(gates, at, strict=True)])
            scores = np.exp(scores + weights["position_bias"][position])
            mixed = sum(score / scores.sum() * h for score, h in zip(scores, at, strict=True))
        else:
            mixed = sum(gate @ h for gate, h in zip(gates, at, strict=True)) / len(at)
        normal = (mixed - mixed.mean()) / np.sqrt(mixed.var() + 1e-5)
        result[place] = normal * weights["norm.weight"] + weights["norm.bias"]
    return result


def fusion_of(engine, kind, weights, levels=LEVELS, dropout=0.0):
    """A fusion with these weights, in float64."""
    options = options_of(engine) | ({"max_positions": POSITIONS} if kind == "PositionAwareFusion" else {})
    fusion = getattr(engine.package, kind)(WIDTH, levels, dropout, **options)
    if engine.name == "torch":
        fusion.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        return fusion
    for name, value in weights.items():
        *path, leaf = name.split(".")
        owner = fusion
        for part in path:
            owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
        value = jnp.asarray(value.T if name.startswith("gates") else value)
        if isinstance(owner, dict):
            owner[leaf][...] = value
        else:
            getattr(owner, leaf)[...] = value
    return fusion


def values_and_gradients(engine, kind, weights, hiddens):
    """The output, and the gradients of a weighted sum of it by all weights and inputs, by their neutral names."""
    cotangent = np.random.default_rng(5).normal(size=(*hiddens[0].shape[:-1], WIDTH))
    levels = LEVELS if kind == "PositionAwareFusion" else [hidden.shape[-1] for hidden in hiddens]
    with engine.precision("float64"):
        fusion = fusion_of(engine, kind, weights, levels)
        if engine.name == "torch":
            given = [torch.tensor(hidden, requires_grad=True) for hidden in hiddens]
            output = fusion(given)
            (output * torch.tensor(cotangent)).sum().backward()
            gradients = {name: p.grad.numpy() for name, p in fusion.named_parameters()}
            return output.detach().numpy(), gradients | {f"h{i}": h.grad.numpy() for i, h in enumerate(given)}
        graph, state = nnx.split(fusion)

        @jax.jit
        def run(state, hiddens):
            def total(state, hiddens):
                output = nnx.merge(graph, state)(hiddens)
                return (output * cotangent).sum(), output

            return jax.grad(total, argnums=(0, 1), has_aux=True)(state, hiddens)

        (by_state, by_hiddens), output = run(state, [jnp.asarray(hidden) for hidden in hiddens])
        flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(by_state)}
        gradients = {name: np.asarray(leaf[...]) for name, leaf in flat.items()}
        gradients = {name: g.T if name.startswith("gates") else g for name, g in gradients.items()}
        return np.asarray(output), gradients | {f"h{i}": np.asarray(h) for i, h in enumerate(by_hiddens)}


CASES = [
    ("PositionAwareFusion", True, (WIDTH,) * LEVELS),
    ("PositionAwareFusion", False, (WIDTH,) * LEVELS),
    ("LearnedFusion", True, (WIDTH,) * LEVELS),
    ("LearnedFusion", False, (WIDTH, 13, 3)),
]


@functools.cache
def found(engine, case):
    kind, sequence, widths = CASES[case]
    return values_and_gradients(engine, kind, weights_of(kind, widths), hiddens_of(sequence, widths))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{kind} {s} {w}" for kind, s, w in CASES])
def test_a_fusion_computes_its_formula(engine, case):
    kind, sequence, widths = CASES[case]
    weights, hiddens = weights_of(kind, widths), hiddens_of(sequence, widths)
    output, _ = found(engine, case)
    assert relative_error(output, naive(kind, weights, hiddens)) < VALUES["float64"]
    for name in weights:  # control: each weight matters
        other = naive(
            kind,
            weights | {name: weights[name] + 1e-9 * np.arange(weights[name].size).reshape(weights[name].shape)},
            hiddens,
        )
        seen = relative_error(output, other) > VALUES["float64"]
        assert seen or (name == "position_bias" and not sequence)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{kind} {s} {w}" for kind, s, w in CASES])
def test_both_packages_have_the_same_gradients(case):
    kind, sequence, widths = CASES[case]
    one, other = (found(engine, case)[1] for engine in ENGINES)
    assert one.keys() == other.keys() == weights_of(kind, widths).keys() | {f"h{i}" for i in range(len(widths))}
    for name, value in one.items():
        assert relative_error(value, other[name]) < GRADIENTS and np.abs(value).max() > 1e-3, name
    if kind == "PositionAwareFusion":  # positions that do not occur have none
        used = LENGTH if sequence else 1
        assert one["position_bias"][:used].any() and not one["position_bias"][used:].any()
    perturbed = weights_of(kind, widths) | {"norm.weight": 1.001 * weights_of(kind, widths)["norm.weight"]}
    wrong = values_and_gradients(ENGINES[1], kind, perturbed, hiddens_of(sequence, widths))[1]
    assert relative_error(one["h0"], wrong["h0"]) > GRADIENTS  # control


def test_a_level_is_weighed_by_its_own_position(engine):
    """A bias on one position and level shifts the mixture there alone."""
    kind, hiddens = "PositionAwareFusion", hiddens_of(True)
    weights = weights_of(kind)
    bias = weights["position_bias"].copy()
    bias[1, 0] = 40.0
    with engine.precision("float64"):
        fusion = fusion_of(engine, kind, weights | {"position_bias": bias})
        output = numpy(fusion([engine.array(hidden) for hidden in hiddens]))
    before = found(engine, 0)[0]
    first = hiddens[0][:, 1]
    normal = (first - first.mean(-1, keepdims=True)) / np.sqrt(first.var(-1, keepdims=True) + 1e-5)
    assert relative_error(output[:, 1], normal * weights["norm.weight"] + weights["norm.bias"]) < 1e-10
    assert relative_error(output[:, [0, 2]], before[:, [0, 2]]) < 1e-14
    assert relative_error(output[:, 1], before[:, 1]) > 1e-3  # control


def test_learned_fusion_takes_a_number_of_levels_or_their_widths(engine):
    fusion = engine.package.LearnedFusion
    shapes = []
    for levels in (3, (WIDTH,) * 3, [WIDTH] * 3, np.int64(3), np.full(3, WIDTH)):
        built = fusion(WIDTH, levels, 0.1, **options_of(engine, "float32"))
        gates = built.gates if engine.name == "torch" else built.gates.values()
        weights = [gate.weight if engine.name == "torch" else gate["weight"][...] for gate in gates]
        shapes.append([tuple(weight.shape) for weight in weights])
    assert shapes == [[(WIDTH, WIDTH)] * 3] * 5
    for wrong, kind, message in [
        (0, ValueError, "a whole number >= 1; got 0. Pass num_levels=1 or more."),
        ("2", TypeError, "a whole number >= 1; got '2'. Pass num_levels=1 or more."),
        ([WIDTH, 0], ValueError, "a whole number >= 1; got 0. Pass num_levels=1 or more."),
        ([], ValueError, "one level at least; got none. Pass the width of each level."),
    ]:
        with pytest.raises(kind) as error:
            fusion(WIDTH, wrong, **options_of(engine, "float32"))
        assert str(error.value) == f"LearnedFusion.num_levels: expected {message}"


@pytest.mark.parametrize("kind", ["LearnedFusion", "PositionAwareFusion"])
def test_another_number_of_levels_is_refused(engine, kind):
    fusion = getattr(engine.package, kind)(WIDTH, LEVELS, **options_of(engine, "float32"))
    hidden = engine.array(np.zeros((ROWS, WIDTH), np.float32))
    for number in (1, 3):
        with pytest.raises(ValueError) as error:
            fusion([hidden] * number)
        message = f"expected the outputs of {LEVELS} levels; got {number}. Build it with num_levels."
        assert str(error.value) == f"{kind}.hiddens: {message}"
    assert fusion([hidden] * LEVELS).shape == (ROWS, WIDTH)


@pytest.mark.parametrize("kind", ["LearnedFusion", "PositionAwareFusion"])
def test_dropout_is_for_training(engine, kind):
    rate, hiddens = 0.5, hiddens_of(True)
    with engine.precision("float64"):
        fusion = fusion_of(engine, kind, weights_of(kind), dropout=rate)
        given = [engine.array(hidden) for hidden in hiddens]
        if engine.name == "torch":
            trained, still = numpy(fusion(given)), numpy(fusion.eval()(given))
        else:
            trained, still = numpy(fusion(given, jax.random.key(0))), numpy(fusion(given))
    assert relative_error(still, naive(kind, weights_of(kind), hiddens)) < VALUES["float64"]
    kept = trained != 0
    assert 0.3 < kept.mean() < 0.7
    assert np.allclose(trained[kept], 2 * still[kept], rtol=1e-12, atol=0)
    with pytest.raises(ValueError) as error:
        getattr(engine.package, kind)(WIDTH, LEVELS, 1.0, **options_of(engine, "float32"))
    assert str(error.value) == f"{kind}.dropout: expected a number in [0, 1); got 1.0. Pass dropout=0.1."


def test_a_sequence_that_is_too_long_is_refused_before_any_expert_runs(engine):
    model = model_of(engine, config_of(engine.package, **AWARE))
    fixed = engine.package.FixedHierarchy(model, {"b": "y"})
    documented.SEEN.clear()
    x = engine.array(np.zeros((ROWS, 13, WIDTH), np.float32))
    for call in (model, fixed):
        with pytest.raises(ValueError) as error:
            call(x)
        assert str(error.value) == (
            "PositionAwareFusion.hiddens: expected at most 11 positions; got float32[5, 13, 7]. "
            "Raise fusion_max_positions."
        )
    with pytest.raises(ValueError, match=r"PositionAwareFusion\.hiddens: expected at most 11 positions"):
        model.fusion([x, x])
    assert documented.SEEN == []
    assert compiled(engine, model)(x[:, :POSITIONS]).shape == (ROWS, POSITIONS, WIDTH)
    assert documented.SEEN  # control


def test_a_config_that_cannot_be_fused_is_refused(engine):
    for options, message in [
        (
            {"fusion_type": "other"},
            "fusion_type: expected one of ['learned', 'position_aware']; got 'other'. "
            "Pass fusion_type='learned', for example.",
        ),
        (
            {"width": 3, **AWARE},
            "fusion_type: expected levels of width hidden_size=7 for 'position_aware'; got 3 on level 'a'. "
            "Pass fusion_type='learned', or change the level.",
        ),
        (
            {"fusion_max_positions": 0},
            "fusion_max_positions: expected a whole number >= 1; got 0. Pass fusion_max_positions=1 or more.",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            config_of(engine.package, **options)
        assert str(error.value) == f"CELMoEConfig.{message}"
    free = config_of(engine.package, width=3, use_learned_fusion=False, **AWARE)  # there is no fusion
    assert model_of(engine, free, linear_of(engine, 3)).fusion is None


def test_fixed_routes_give_what_the_model_gives(engine):
    model = shift_bias(linear_model(engine, **AWARE))
    wanted = numpy(compiled(engine, model, ROUTING)(engine.array(X)))
    fixed = compiled(engine, engine.package.FixedHierarchy(model, ROUTING))
    assert relative_error(numpy(fixed(engine.array(X))), wanted) < VALUES["float32"]
    turned = numpy(fixed(engine.array(X[:, ::-1].copy())))[:, ::-1]
    assert relative_error(turned, wanted) > 1e-3  # control: the positions count

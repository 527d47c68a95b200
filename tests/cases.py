"""One table of hulls and of input shapes, every dimension another prime; and what must fail, with its message."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Fields = dict[str, Any]
Weights = dict[str, np.ndarray]

ROWS = 11
SEEDS = (0, 1, 2)

UNITS = {
    "input_mean": (0.3, -1.5, 20.0, 0.0, 0.01),
    "input_scale": (0.5, 2.0, 30.0, 1.0, 0.02),
    "output_mean": (-4.0, 300.0),
    "output_scale": (0.25, 70.0),
}


def fields(**changes: Any) -> Fields:
    """Every field of a config; the defaults are small and each of another prime size."""
    base: Fields = {
        "in_dim": 5,
        "petals": 3,
        "out_dim": 2,
        "hidden_dim": 7,
        "depth": 1,
        "trunk": "shared",
        "group_size": 2,
        "temperature": 0.0,
        "activation": "softplus",
        "gate": False,
        "strong_convexity": 0.0,
        "normalization": None,
    }
    return base | changes


HULLS: dict[str, Fields] = {
    "default": fields(),
    "private": fields(trunk="private"),
    "deep": fields(depth=3, petals=13),
    "deep_private": fields(depth=4, trunk="private"),
    "plain_max": fields(group_size=1),
    "smooth": fields(temperature=0.37),
    "smooth_plain": fields(temperature=2.9, group_size=1, out_dim=1),
    "learned": fields(temperature="learned", out_dim=13),
    "relu": fields(activation="relu", depth=2),
    "huber_relu": fields(activation="huber_relu", depth=2, trunk="private"),
    "gate": fields(gate=True),
    "gate_private": fields(gate=True, trunk="private", depth=2, activation="relu"),
    "one_petal": fields(petals=1),
    "one_petal_learned": fields(petals=1, temperature="learned", trunk="private"),
    "two_petals": fields(petals=2, out_dim=3),
    "two_petals_plain": fields(petals=2, out_dim=3, group_size=1, temperature="learned"),
    "one_input": fields(in_dim=1),
    "strong": fields(strong_convexity=0.7),
    "units": fields(normalization=UNITS),
    "units_smooth": fields(normalization=UNITS, temperature=0.37),
    "everything": fields(
        petals=13,
        depth=3,
        trunk="private",
        temperature="learned",
        activation="huber_relu",
        gate=True,
        strong_convexity=1.3,
        normalization=UNITS,
    ),
}

CONTEXT = {"context_dim": 3, "context_hidden_dim": 11}
CONTEXT_UNITS = {"context_mean": (0.5, -2.0, 40.0), "context_scale": (0.1, 3.0, 20.0)}
SIGNS = (1, 0, -1, 1, 0)
# Hulls with a context, signs of slopes, another curvature or a bound.
SHAPED: dict[str, Fields] = {
    "context": fields(**CONTEXT),
    "context_units": fields(**CONTEXT, trunk="private", temperature=0.37, normalization=UNITS | CONTEXT_UNITS),
    "rising": fields(monotone=SIGNS, depth=2, gate=True, temperature="learned"),
    "concave": fields(curvature="concave", activation="relu", strong_convexity=0.7, normalization=UNITS),
    "nonnegative": fields(nonnegative=True, trunk="private", activation="huber_relu", strong_convexity=0.7),
    "all_rising": fields(**CONTEXT, monotone=(1, 1, -1, -1, 1), depth=2, group_size=1, out_dim=3),
    "all": fields(
        **CONTEXT,
        depth=2,
        trunk="private",
        temperature="learned",
        activation="huber_relu",
        gate=True,
        monotone=SIGNS,
        curvature="concave",
        nonnegative=True,
        normalization=UNITS | CONTEXT_UNITS | {"output_mean": (0.0, 0.0)},
    ),
}

LEADING_AXES = [(), (ROWS,), (1,), (ROWS, 13), (17, 1, ROWS), (0,), (13, 0)]


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape, written down apart from the packages."""
    D, P, O, H = (config[name] for name in ("in_dim", "petals", "out_dim", "hidden_dim"))
    unit = (P, H) if config["trunk"] == "private" else (H,)
    shapes = {"trunk.0.weight": (D, *unit), "trunk.0.bias": unit}
    for k in range(1, config["depth"]):
        shapes[f"trunk.{k}.raw_weight"] = (H, *unit)
        shapes[f"trunk.{k}.weight"] = (D, *unit)
        shapes[f"trunk.{k}.bias"] = unit
    shapes["readout.raw_weight"] = (H, P, O)
    shapes["readout.weight"] = (D, P, O)
    shapes["readout.bias"] = (P, O)
    shapes["shifts"] = (P,)
    if config["temperature"] == "learned":
        shapes["raw_temperature"] = (O,)
    if config["gate"]:
        shapes |= {"gate.weight": (D, H), "gate.bias": (H,)}
    if config.get("context_dim"):
        C, K = config["context_dim"], config["context_hidden_dim"]
        shapes |= {"context.0.weight": (C, K), "context.1.weight": (K, K), "context.0.bias": (K,)}
        shapes |= {"context.1.bias": (K,), "context.readout.shifts": (C + K, P)}
        free = D if config.get("monotone") is None else config["monotone"].count(0)
        shapes |= {"context.readout.weight": (C + K, free, O)} if free else {}
        shapes |= {"context.readout.bias": (C + K, O)}
        for k in range(config["depth"]):
            shapes |= {f"context.trunk.{k}.{head}": (C + K, *unit) for head in ("slope", "bias", "scale")}
            shapes |= {f"context.trunk.{k}.weight": (free, C, *unit)} if free else {}
    return shapes


def random_weights(config: Mapping[str, Any], seed: int = 0) -> Weights:
    """Weights in float64 in which nothing is zero: biases and shifts too would be noticed if they were left out."""
    rng = np.random.default_rng([seed, 7])
    weights = {}
    for name, shape in sorted(weight_shapes(config).items()):
        values = rng.standard_normal(shape)
        weights[name] = values / math.sqrt(shape[0]) if name.endswith(".weight") else values
    return weights


def random_inputs(config: Mapping[str, Any], shape: tuple[int, ...] = (ROWS,), seed: int = 0) -> np.ndarray:
    """Inputs in float64, in the units of the config, `(*shape, in_dim)`."""
    x = np.random.default_rng([seed, 11]).standard_normal((*shape, config["in_dim"]))
    units = config["normalization"]
    return x if units is None else x * units["input_scale"] + units["input_mean"]


def random_contexts(config: Mapping[str, Any], shape: tuple[int, ...] = (ROWS,), seed: int = 0) -> np.ndarray:
    """Contexts in float64, in the units of the config, `(*shape, context_dim)`."""
    c, units = (
        np.random.default_rng([seed, 13]).standard_normal((*shape, config["context_dim"])),
        config["normalization"],
    )
    return c if units is None else c * units["context_scale"] + units["context_mean"]


def random_arguments(
    config: Mapping[str, Any], shape: tuple[int, ...] = (ROWS,), seed: int = 0
) -> tuple[np.ndarray, ...]:
    """What a hull is called with: inputs, and contexts where it has them."""
    x = random_inputs(config, shape, seed)
    return (x, random_contexts(config, shape, seed)) if config.get("context_dim") else (x,)


def tied_weights(config: Mapping[str, Any]) -> Weights:
    """Weights under which all groups tie exactly: equal petals, values that every order of summation gives exactly."""
    weights = random_weights(config)
    eighths = {name: np.round(8 * value) / 8 for name, value in weights.items()}
    weights |= {name: eighths[name] for name in ("readout.weight", "readout.bias", "shifts")}
    weights["readout.raw_weight"] = np.full_like(weights["readout.raw_weight"], -1e4)  # softplus of it is 0
    for name, axis in {"readout.weight": 1, "readout.bias": 0, "shifts": 0}.items():
        first = np.take(weights[name], [0], axis=axis)
        weights[name] = np.repeat(first, config["petals"], axis=axis)
    return weights


def tied_inputs(config: Mapping[str, Any]) -> np.ndarray:
    """Inputs for `tied_weights`: multiples of 1/8."""
    return np.round(8 * random_inputs(config)) / 8


# Fields that a config must refuse: (fields, exception, message).
BAD_FIELDS = [
    (fields(in_dim=0), ValueError, "HullConfig.in_dim: expected a whole number >= 1; got 0. Pass in_dim=1 or more."),
    (fields(petals=2.0), TypeError, "HullConfig.petals: expected a whole number >= 1; got 2.0. Pass petals=1 or more."),
    (
        fields(petals=True),
        TypeError,
        "HullConfig.petals: expected a whole number >= 1; got True. Pass petals=1 or more.",
    ),
    (
        fields(out_dim=-1),
        ValueError,
        "HullConfig.out_dim: expected a whole number >= 1; got -1. Pass out_dim=1 or more.",
    ),
    (
        fields(hidden_dim="7"),
        TypeError,
        "HullConfig.hidden_dim: expected a whole number >= 1; got '7'. Pass hidden_dim=1 or more.",
    ),
    (
        fields(depth=0),
        ValueError,
        "HullConfig.depth: expected a whole number from 1 to 1000; got 0. Pass depth=1, for example.",
    ),
    (
        fields(trunk="both"),
        ValueError,
        "HullConfig.trunk: expected one of ['shared', 'private']; got 'both'. Pass trunk='shared', for example.",
    ),
    (
        fields(group_size=3),
        ValueError,
        "HullConfig.group_size: expected one of [2, 1]; got 3. Pass group_size=2, for example.",
    ),
    (
        fields(group_size=True),
        ValueError,
        "HullConfig.group_size: expected one of [2, 1]; got True. Pass group_size=2, for example.",
    ),
    (
        fields(activation="gelu"),
        ValueError,
        "HullConfig.activation: expected one of ['softplus', 'relu', 'huber_relu']; got 'gelu'. "
        "Pass activation='softplus', for example.",
    ),
    (
        fields(gate=1),
        ValueError,
        "HullConfig.gate: expected one of [False, True]; got 1. Pass gate=False, for example.",
    ),
    *(
        (
            fields(temperature=value),
            kind,
            f'HullConfig.temperature: expected 0, a number in [0.001, 1e+06] or "learned"; got {value!r}. '
            'Pass temperature=0.0 for the maximum or "learned".',
        )
        for value, kind in [
            (-1.0, ValueError),
            (math.nan, ValueError),
            (math.inf, ValueError),
            ("learnt", ValueError),
            (None, TypeError),
            (True, TypeError),
        ]
    ),
    *(
        (
            fields(strong_convexity=value),
            kind,
            f"HullConfig.strong_convexity: expected a number in [0, 1e+06]; got {value!r}. "
            "Pass strong_convexity=0.0 to leave it out.",
        )
        for value, kind in [(-0.1, ValueError), (math.nan, ValueError), (2e6, ValueError), ("1", TypeError)]
    ),
    (
        fields(normalization=UNITS, out_dim=3),
        ValueError,
        "HullConfig.normalization: expected 3 numbers for the output; got 2. Give one for each coordinate.",
    ),
    (
        fields(normalization=UNITS, in_dim=7),
        ValueError,
        "HullConfig.normalization: expected 7 numbers for the input; got 5. Give one for each coordinate.",
    ),
    (
        fields(normalization=UNITS | {"input_scale": (1.0, 1.0, 0.0, 1.0, 1.0)}),
        ValueError,
        "Normalization.input_scale: expected finite numbers > 0; got 0.0. Use 1.0 for a constant column.",
    ),
    (
        fields(normalization=UNITS | {"output_mean": (0.0, math.nan)}),
        ValueError,
        "Normalization.output_mean: expected finite numbers; got nan. Remove it.",
    ),
    (
        fields(normalization=UNITS | {"output_scale": (1.0,)}),
        ValueError,
        "Normalization.output_scale: expected 2 numbers, as output_mean has; got 1. Make them equal.",
    ),
]

# Inputs that the default hull, in float32, must refuse: (shape, dtype, exception, message).
BAD_INPUTS = [
    (
        (ROWS, 7),
        "float32",
        ValueError,
        "VectorHull.x: expected last axis in_dim=5; got float32[11, 7]. Build it with in_dim=7 or project the input.",
    ),
    ((), "float32", ValueError, "VectorHull.x: expected last axis in_dim=5; got float32[]. Give it one axis at least."),
    (
        (ROWS, 5),
        "float16",
        TypeError,
        "VectorHull.x: expected dtype float32, as the parameters have; got float16[11, 5]. "
        "Cast it to float32, or call predict(model, x), which takes any numbers.",
    ),
    (
        (ROWS, 5),
        "int32",
        TypeError,
        "VectorHull.x: expected dtype float32, as the parameters have; got int32[11, 5]. "
        "Cast it to float32, or call predict(model, x), which takes any numbers.",
    ),
]

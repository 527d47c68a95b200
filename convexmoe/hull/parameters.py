"""Names, shapes and initial laws of a hull's parameters.

Letters: D in, H hidden, P petals, O out, C context, F its features. Weights are laid out (in, [petal,] out).

What is stored is of any sign: `raw_weight`, and in a monotone hull the rows of `weight` on monotone inputs, stand for
non-negative numbers (`effective`). What a context adds to a parameter, or multiplies it by, has that parameter's name
under `context` (`context.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import dtype_name, fail, same_keys
from .activations import POSITIVE_SHARE
from .config import LEARNED, LEAST_TEMPERATURE, HullConfig

Tree = dict[str, Any]  # nested dicts of arrays; a torch module that is indexed by name serves as well

DTYPES = ("float16", "bfloat16", "float32", "float64")
TRUNK_SPREAD, READOUT_SPREAD = 0.5, 0.1  # of the logarithm of the weights that read hidden units
# Of the variance of a layer, for the affine parts of the petals: near each other, unless they outnumber the units.
PETAL_SHARE, ALONE_SHARE = 0.09, 1.0
HEAD_SPREAD = 0.1  # of what a context adds or multiplies at first
LEAST_INITIAL_TEMPERATURE, ALONE_TEMPERATURE, INPUTS_PER_TEMPERATURE = 0.3, 1.0, 25


class Law(NamedTuple):
    """The distribution a parameter is drawn from: "constant", "normal", "orthogonal" or "raw_log_normal"."""

    kind: str
    mean: float
    deviation: float


def parameter_shapes(config: HullConfig) -> dict[str, tuple[int, ...]]:
    """Return dotted name -> shape of every parameter, in the order of computation.

    >>> parameter_shapes(HullConfig(5, petals=3, out_dim=2, hidden_dim=7))["readout.weight"]
    (5, 3, 2)
    """
    D, H, P, O = config.in_dim, config.hidden_dim, config.petals, config.out_dim
    unit = (H,) if config.trunk == "shared" else (P, H)
    shapes: dict[str, tuple[int, ...]] = {}
    if config.gate:
        shapes |= {"gate.weight": (D, H), "gate.bias": (H,)}
    for k in range(config.depth):
        if k > 0:
            shapes[f"trunk.{k}.raw_weight"] = (H, *unit)
        shapes |= {f"trunk.{k}.weight": (D, *unit), f"trunk.{k}.bias": unit}
    shapes |= {"readout.raw_weight": (H, P, O), "readout.weight": (D, P, O), "readout.bias": (P, O)}
    shapes["shifts"] = (P,)
    if config.temperature == LEARNED:
        shapes["raw_temperature"] = (O,)
    return shapes | _context_shapes(config, unit)


def _context_shapes(config: HullConfig, unit: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the network that reads the context, and of its heads."""
    C, K = config.context_dim, config.context_hidden_dim
    if K is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {"context.0.weight": (C, K), "context.0.bias": (K,)}
    shapes |= {"context.1.weight": (K, K), "context.1.bias": (K,)}
    P, O, free = config.petals, config.out_dim, len(config.free_inputs)
    for k in range(config.depth):
        shapes |= {f"context.trunk.{k}.weight": (free, C, *unit)} if free else {}
        shapes |= {f"context.trunk.{k}.{head}": (C + K, *unit) for head in ("slope", "bias", "scale")}
    shapes |= {"context.readout.weight": (C + K, free, O)} if free else {}
    return shapes | {"context.readout.bias": (C + K, O), "context.readout.shifts": (C + K, P)}


def initial_law(name: str, config: HullConfig) -> Law:
    """Return the distribution of the parameter called `name`.

    Non-negative weights have a mean, so He's rule explodes with depth. Here they are log-normal with
    `E w = tau / N`, tau^2 = POSITIVE_SHARE and N the fan-in, on a standardized activation; the signed weights on the
    input have the variance `(1 - tau^2) / D`, in the first layer 1 / D, with biases `N(0, 1 / 4)`, shared with the gate
    where there is one.

    A hull starts near a function of |x|: the signed weights of a layer are orthogonal (its rows, of a narrow layer its
    columns), so that no direction bends more than another by chance; the weights that read units are nearly equal; the
    affine parts of the petals are small; a learned temperature, larger for more inputs, averages the petals until the
    data tell them apart. With independent weights 50 inputs bend at random, which 5,000 rows do not undo
    (`benchmarks/quality.py`). Where petals outnumber the units that they share, it is the petals that bend, and their
    affine parts have the variance 1 / D and a learned temperature is 1 at least.

    Source: Hoedt and Klambauer, Principled weight initialization for input-convex neural networks
    (arXiv 2312.12474), for log-normal weights. Differs from the source: the variance is split between the two
    paths, without which deep stacks die, and the spread is small, not such that `E w^2 = tau^2 / N`: then a few units
    are most of the next, and two to eight layers err by 2.1 at the start of that benchmark, where these err by 0.26.
    """
    N = config.hidden_dim
    first = name.startswith(("trunk.0.", "gate."))
    share = 1.0 - POSITIVE_SHARE
    if first:
        share = 0.5 if config.gate else 1.0
    alone = config.trunk == "shared" and config.petals > N
    if name.startswith("context."):
        return _context_law(name, config)
    if name == "raw_temperature":
        T = initial_temperature(config.in_dim, alone)
        return Law("constant", math.log(math.expm1(T - LEAST_TEMPERATURE)), 0.0)
    if name.endswith("raw_weight"):  # softplus(raw) = w sqrt(N) / tau has mean N^(-1/2)
        spread = READOUT_SPREAD if name.startswith("readout") else TRUNK_SPREAD
        return Law("raw_log_normal", -0.5 * math.log(N) - 0.5 * spread**2, spread)
    if name == "readout.weight":
        own = ALONE_SHARE if alone else PETAL_SHARE * share
        return Law("normal", 0.0, math.sqrt(own / config.in_dim))
    if name.endswith("weight"):
        return Law("orthogonal", 0.0, math.sqrt(share / config.in_dim))
    if name.endswith("bias") and first:
        return Law("normal", 0.0, math.sqrt(share / 4))
    return Law("constant", 0.0, 0.0)


def _context_law(name: str, config: HullConfig) -> Law:
    """Return the law of a parameter of the context: a network as the trunk is one, and small heads."""
    C, K = config.context_dim, config.context_hidden_dim or 0
    if name.startswith(("context.0.", "context.1.")):
        if name.endswith("bias"):
            return Law("normal", 0.0, 0.5)
        return Law("orthogonal", 0.0, 1.0 / math.sqrt(C if name.startswith("context.0.") else K))
    if name.endswith("shifts"):
        return Law("constant", 0.0, 0.0)
    inputs = C * len(config.free_inputs) if name.startswith("context.trunk") and name.endswith("weight") else C + K
    return Law("normal", 0.0, HEAD_SPREAD / math.sqrt(inputs))


def row_factors(name: str, config: HullConfig) -> list[float] | None:
    """Return by what the rows of a drawn `weight` are multiplied, one an input, so that raw ones have variance 1."""
    if config.signs is None or name.startswith("context.") or not name.endswith(".weight"):
        return None
    raw = 1.0 / initial_law(name, config).deviation
    return [raw if sign else 1.0 for sign in config.signs]


def initial_temperature(in_dim: int, alone: bool = False) -> float:
    """Return the first value of a learned temperature, in units of the output's deviation.

    Args:
        in_dim: inputs.
        alone: whether petals outnumber the units that they share.

    >>> initial_temperature(2), initial_temperature(2, alone=True), initial_temperature(64)
    (0.3, 1.0, 2.56)
    """
    least = ALONE_TEMPERATURE if alone else LEAST_INITIAL_TEMPERATURE
    return max(least, in_dim / INPUTS_PER_TEMPERATURE)


def nest(flat: dict[str, Any]) -> Tree:
    """Return the nested dict of a dict with dotted names.

    >>> nest({"trunk.0.bias": 1, "shifts": 2})
    {'trunk': {'0': {'bias': 1}}, 'shifts': 2}
    """
    tree: Tree = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[leaf] = value
    return tree


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Return the dict with dotted names of a nested dict; the inverse of `nest`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key: value}
    return flat


def map_tree(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Return the nested dict with `function` of each array."""
    return nest({name: function(value) for name, value in flatten(tree).items()})


class Operations(NamedTuple):
    """What the core needs of the library of a hull's parameters, beside operators.

    Args:
        softplus: u -> `log(1 + exp(u))`; act: (u, name) -> the standardized activation.
        constant: (numbers, like) -> an array of the dtype and on the device of another.
        broadcast: (array, shape) -> the array with that shape.
    """

    softplus: Callable[[Any], Any]
    act: Callable[[Any, str], Any]
    constant: Callable[[Any, Any], Any]
    broadcast: Callable[[Any, tuple[Any, ...]], Any]


def positive_weight(raw: Any, fan_in: int, operations: Operations) -> Any:
    """Return `c softplus(raw)`, `c = sqrt(POSITIVE_SHARE / fan_in)`, which is >= 0 for every raw value.

    c keeps raw values of one size at every width, so that one learning rate serves all.
    """
    return operations.softplus(raw) * positive_scale(fan_in)


def positive_scale(fan_in: int) -> float:
    """Return c in `positive_weight`."""
    return math.sqrt(POSITIVE_SHARE / fan_in)


def signed_weight(raw: Any, signs: tuple[int, ...], operations: Operations, axis: int = 0, offset: float = 0.0) -> Any:
    """Return a weight on inputs with the sign of each: `sign * positive_weight(raw + offset)`, as it is where it is 0.

    Args:
        raw: `[..., in_dim, ...]`, the inputs along `axis`; signs: -1, 0 or 1 for each input.
        operations: of its library.
    """
    shape = (-1, *[1] * (len(raw.shape) - 1 - axis))
    sign, free = (operations.constant(n, raw).reshape(shape) for n in (signs, [float(not s) for s in signs]))
    return free * raw + sign * positive_weight(raw + offset, len(signs), operations)


def effective(params: Tree, config: HullConfig, operations: Operations) -> Tree:
    """Return the tree with each `raw_weight` replaced by its `positive_weight`, `c softplus(raw_weight) >= 0`.

    The rows of `weight` on monotone inputs become `sign c softplus(row)`. A tree that is effective already is returned
    as it is.

    Args:
        params: as `nest` gives them; config: theirs; operations: of their library.
    """
    if "positive_weight" in params["readout"]:
        return params
    signs = config.signs

    def layer(raw: Tree) -> Tree:
        weight = raw["weight"]
        weights = {"weight": weight if signs is None else signed_weight(weight, signs, operations), "bias": raw["bias"]}
        if "raw_weight" in raw:
            weights["positive_weight"] = positive_weight(raw["raw_weight"], config.hidden_dim, operations)
        return weights

    trunk = {k: layer(raw) for k, raw in params["trunk"].items()}
    gate = {"gate": layer(params["gate"])} if config.gate else {}
    return {**params, **gate, "trunk": trunk, "readout": layer(params["readout"])}


def neighbor_means(weight: Any, roll: Callable[[Any, int, int], Any]) -> Any:
    """Return the means of each petal and the next one in a circle, of the axis before the last."""
    return 0.5 * (weight + roll(weight, -1, -2))


def averaged(weights: Tree, config: HullConfig, means: Callable[[Any], Any]) -> tuple[Tree, HullConfig]:
    """Return effective parameters, and a config without means, that give the same function.

    With a shared trunk the mean over neighboring petals can be taken of their read-outs, D + H numbers an output, in
    place of their values, one a row: cheaper for more rows than that. Other hulls are returned as they are.

    Args:
        weights, config: of the hull.
        means: `neighbor_means`, of the library of the weights.
    """
    if config.trunk == "private" or config.petals == 1 or config.group_size == 1:
        return weights, config
    readout = {name: means(weight) for name, weight in weights["readout"].items()}
    return {**weights, "readout": readout}, config.without_means


def check_parameters(config: HullConfig, params: Tree, kinds: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Return parameters by dotted name after their checks: arrays, names, shapes.

    Those to be stored are arrays of `kinds` of one floating dtype; without `kinds` effective ones are taken as well.
    """
    flat = flatten(params)
    for name, value in flat.items():
        if not (isinstance(value, kinds) if kinds else hasattr(value, "shape")):
            fix = "Convert it to an array of this framework first."
            fail("VectorHull", f"params[{name!r}]", "an array", type(value).__name__, fix, TypeError)
    dtype = dtype_name(flat["shifts"].dtype) if kinds and "shifts" in flat else None
    if dtype not in (*DTYPES, None):
        fail("VectorHull", "params", f"one of {list(DTYPES)}", str(dtype), "Cast the parameters.", TypeError)
    expected = {name: (shape, dtype) for name, shape in parameter_shapes(config).items()}
    if not kinds and any(name.endswith("positive_weight") for name in flat):
        expected = {name.replace("raw_weight", "positive_weight"): entry for name, entry in expected.items()}
    got = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in flat.items()}
    same_keys("VectorHull", expected, got)
    return {name: flat[name] for name in expected}

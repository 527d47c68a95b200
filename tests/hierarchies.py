"""Hierarchies as plain descriptions, and their naive twin: one sample after the other, without either package.

A description names the kind of every expert; both packages build the same hierarchy from it, and take the same weights
by the names that a torch checkpoint has.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ROWS, LENGTH, COMMON = 13, 3, 2


@dataclass(frozen=True)
class Level:
    """One level; the experts are called e0, e1, ...

    Args:
        name: of the level.
        kinds: one an expert, keys of SHAPES.
        width: of the output; None means the hierarchy's.
        stops: indices of the experts with stop_gradient_from_parent.
        scales: (index, gradient_scale) of the experts that have one.
        loss_weight: of all its experts.
        fallback: index of the fallback expert.
        enabled: as in the config.
    """

    name: str
    kinds: tuple[str, ...]
    width: int | None = None
    stops: tuple[int, ...] = ()
    scales: tuple[tuple[int, float], ...] = ()
    loss_weight: float = 1.0
    fallback: int | None = None
    enabled: bool = True


@dataclass(frozen=True)
class Case:
    """One hierarchy; `options` are those of the config."""

    levels: tuple[Level, ...]
    hidden_size: int = 5
    fusion: bool = True
    dropout: float = 0.0
    cut_input: bool = False

    @property
    def enabled(self) -> list[tuple[Level, int, int]]:
        """The levels that run, with the widths of their input and output."""
        found, width = [], self.hidden_size
        for level in self.levels:
            if level.enabled:
                out = level.width or self.hidden_size
                found.append((level, width, out))
                width = out
        return found


def uniform(kind, experts, **options):
    """One level of equal experts, whose output is the fused one."""
    return Case((Level("only", (kind,) * experts, **options),), fusion=False)


CASES = {
    "one_level": Case((Level("l", ("linear",) * 3),)),
    "two_widths": Case((Level("a", ("linear",) * 2, width=11), Level("b", ("linear",) * 3)), fusion=False),
    "mixed_experts": Case(
        (
            Level("a", ("mlp7", "tanh", "linear", "mlp11", "identity", "tanh"), loss_weight=0.25),
            Level("b", ("tanh", "tanh"), loss_weight=3.0),
        )
    ),
    "disabled_levels": Case(
        (
            Level("off", ("linear",) * 2, enabled=False),
            Level("a", ("linear",) * 2, width=3),
            Level("gone", ("mlp7",), width=7, enabled=False),
            Level("b", ("tanh",) * 3, width=11),
        )
    ),
    "five_levels": Case(tuple(Level(f"l{i}", ("linear",) * (1 + i % 3)) for i in range(5))),
    "stops_in_a_level": Case((Level("a", ("linear",) * 2, stops=(0,)), Level("b", ("linear",) * 3, stops=(0, 2)))),
    "scales_in_a_level": Case(
        (
            Level("a", ("linear",) * 2, scales=((0, 0.5),)),
            Level("b", ("tanh",) * 3, stops=(2,), scales=((0, 0.3), (2, 0.7))),
            Level("c", ("mlp7",) * 2, scales=((0, 0.25), (1, 0.25))),
        )
    ),
    "stops_at_the_input": Case(
        (Level("a", ("linear",) * 3, stops=(0, 2)), Level("b", ("linear",) * 2, stops=(0, 1))), cut_input=True
    ),
}


def _mlp(hidden):
    return lambda i, o: {"weight_1": (i, hidden), "bias_1": (hidden,), "weight_2": (hidden, o), "bias_2": (o,)}


SHAPES = {
    "linear": lambda i, o: {"weight": (i, o), "bias": (o,)},
    "mlp7": _mlp(7),
    "mlp11": _mlp(11),
    "tanh": lambda i, o: {"weight": (i, o)},  # with context, mask, state, losses and aux
    "identity": lambda i, o: {},
}


def config_of(package: Any, case: Case) -> Any:
    """The config of a package."""
    levels = []
    widths = {level.name: (i, o) for level, i, o in case.enabled}
    for level in case.levels:
        i, o = widths.get(level.name, (1, 1))
        experts = [
            package.ExpertConfig(
                f"e{n}",
                loss_weight=level.loss_weight,
                stop_gradient_from_parent=n in level.stops,
                gradient_scale=dict(level.scales).get(n, 1.0),
                metadata={"kind": kind, "in_dim": i, "out_dim": o},
            )
            for n, kind in enumerate(level.kinds)
        ]
        fallback = None if level.fallback is None else f"e{level.fallback}"
        made = package.HierarchyLevelConfig(level.name, experts, fallback, level.enabled, level.width)
        levels.append(made)
    return package.CELMoEConfig(case.hidden_size, levels, case.fusion, case.dropout, case.cut_input)


def random_weights(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by the names and in the layouts of a torch checkpoint."""
    shapes = {}
    for level, i, o in case.enabled:
        for n, kind in enumerate(level.kinds):
            for name, shape in SHAPES[kind](i, o).items():
                shapes[f"level_modules.{level.name}.e{n}.{name}"] = shape
    if case.fusion:
        for k, (_, _, o) in enumerate(case.enabled):
            shapes[f"fusion.gates.{k}.weight"] = (case.hidden_size, o)
        shapes |= {"fusion.norm.weight": (case.hidden_size,), "fusion.norm.bias": (case.hidden_size,)}
    draw = np.random.default_rng(seed).normal
    return {name: draw(size=shape) / shape[0] ** 0.5 for name, shape in shapes.items()}


def routes_of(spread: str, experts: int, rows: int, draw: np.random.Generator) -> np.ndarray:
    """Routes that are "uniform", of Zipf's law, or all to "one" expert."""
    if spread == "one":
        return np.full(rows, experts // 2, np.int32)
    if spread == "zipf":
        return np.minimum(draw.zipf(1.5, rows) - 1, experts - 1).astype(np.int32)
    return draw.integers(0, experts, rows).astype(np.int32)


def random_inputs(
    case: Case, rows: int = ROWS, *, spread: str = "uniform", sequence: bool = False, seed: int = 1
) -> dict[str, Any]:
    """Input, routes, context (one number a sample, and numbers for all), mask, and cotangents, in float64."""
    draw = np.random.default_rng(seed)
    inside = (LENGTH,) if sequence else ()
    outs = {level.name: out for level, _, out in case.enabled} | {"fused": case.hidden_size}
    if not case.fusion:
        outs["fused"] = case.enabled[-1][2]
    return {
        "x": draw.normal(size=(rows, *inside, case.hidden_size)),
        "routes": {lv.name: routes_of(spread, len(lv.kinds), rows, draw) for lv, _, _ in case.enabled},
        "shift": draw.normal(size=rows),
        "common": draw.normal(size=COMMON),  # of the size of some batches, and shared all the same
        "mask": draw.integers(0, 2, (rows, *inside)).astype(float),
        "scale": np.asarray(1.5),
        "cotangents": {name: draw.normal(size=(rows, *inside, out)) for name, out in outs.items()},
    }


def naive_expert(kind: str, w: dict[str, Any], x: Any, given: dict[str, Any], row: int) -> tuple[Any, dict]:
    """One expert on one sample: its output and its losses."""
    if kind == "identity":
        return x, {}
    if kind == "linear":
        return x @ w["weight"] + w["bias"], {}
    if kind.startswith("mlp"):
        u = x @ w["weight_1"] + w["bias_1"]
        return u * 0.5 * (1 + torch.erf(u / 2**0.5)) @ w["weight_2"] + w["bias_2"], {}
    h = torch.tanh(x @ w["weight"]) * given["mask"][row][..., None] * given["scale"]
    h = h + given["shift"][row] + given["common"].sum()
    return h, {"act": (h**2).mean(), "size": h.abs().sum()}


def naive(case: Case, weights: dict[str, np.ndarray], inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Outputs, losses, their total, and all gradients of the total: what both packages must give."""
    leaves = weights | {name: inputs[name] for name in ("x", "shift", "common")}
    p = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in leaves.items()}
    given = p | {name: torch.tensor(inputs[name], dtype=torch.float64) for name in ("mask", "scale")}
    samples, levels, losses = list(p["x"]), {}, {}
    for index, (level, _, _) in enumerate(case.enabled):
        collected: dict[str, list[Any]] = {}
        routes = inputs["routes"][level.name]
        for row, route in enumerate(routes.tolist()):
            x = samples[row]
            if index > 0 or case.cut_input:
                share = 0.0 if route in level.stops else dict(level.scales).get(route, 1.0)
                x = share * x + (1 - share) * x.detach()
            prefix = f"level_modules.{level.name}.e{route}."
            w = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
            samples[row], found = naive_expert(level.kinds[route], w, x, given, row)
            for name, value in found.items():
                collected.setdefault(f"{level.name}.e{route}.{name}", []).append(value)
        levels[level.name] = torch.stack(samples)
        losses |= {name: sum(values) / len(values) for name, values in collected.items()}
    fused = torch.stack(samples)
    if case.fusion:
        mixed = [h @ p[f"fusion.gates.{k}.weight"].T for k, h in enumerate(levels.values())]
        mean = sum(mixed) / len(mixed)
        centred = mean - mean.mean(-1, keepdim=True)
        fused = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5) ** 0.5
        fused = fused * p["fusion.norm.weight"] + p["fusion.norm.bias"]
    outputs = {"fused": fused} | levels
    loss_weight = {level.name: level.loss_weight for level in case.levels}
    total = sum((torch.tensor(inputs["cotangents"][name]) * value).sum() for name, value in outputs.items())
    total = total + sum(loss_weight[name.split(".")[0]] * value for name, value in losses.items())
    found = torch.autograd.grad(total, list(p.values()), allow_unused=True, materialize_grads=True)
    values = outputs | losses | {"total": total}
    result = {name: value.detach().numpy() for name, value in values.items()}
    return result | {f"gradient of {name}": g.numpy() for name, g in zip(p, found, strict=True)}


def rounded(tree: Any, dtype: Any) -> Any:
    """Nested dicts of arrays with the floats rounded to a dtype."""
    if isinstance(tree, dict):
        return {name: rounded(value, dtype) for name, value in tree.items()}
    return tree.astype(dtype) if tree.dtype.kind in "fV" else tree  # V: bfloat16

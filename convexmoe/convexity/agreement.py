"""Whether a function is what was traced of it, and what the rules say of that, at points near and far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import dtype_name
from .certificate import coarsest_dtype
from .facts import Array
from .graph import CONSTANT_OPERATION
from .problem import Engine, Problem, Trace
from .segments import TOLERANCES
from .walk import Walk

SCALES = (1.0, 1e-3, 0.1, 4.0, 30.0, 300.0, 1e4, 1e6, 1e8)  # how far from the example, in units of its size
FARTHEST = {"float16": 100.0}  # of a dtype that holds no more
FACTORS = (1.5, -0.5, -3.0, 0.1)  # what parameters and fixed arguments are multiplied by, in turn
# How far two programs of a function round apart, and one from exact arithmetic: in units of `TOLERANCES`, and at most.
APART, FROM_EXACT, MOST = 10, 1000, 0.3
FLOATS = ("float", "bfloat")
NEAR = 5.0  # how far from the example, in units of its size, a function must give numbers
STEEP = (0, 5)  # the points at which slopes are compared, beside those of other parameters
ASIDE = 1e-3  # how far from a point, in units of its size, slopes that differ must differ too: at a kink all are right
LARGEST_WALK = 100_000  # elements of all values of a program that is walked once more
LOOPS = ("scan", "while")  # which are not


def find_difference(engine: Engine, problem: Problem, trace: Trace, walk: Walk, structural: bool) -> str:
    """Return in words where a function differs from its trace, or from what the rules make of it; "" for nowhere."""
    tolerance = TOLERANCES.get(coarsest_dtype(walk, "float64") or "float64", MOST)
    is_small = sum(value.facts.size for value in walk.values.values()) <= LARGEST_WALK
    by_rules = is_small and not any(operation.name in LOOPS for operation in trace.graph.operations)
    problem = problem.filled()
    center, is_large = problem.center(), _may_overflow(problem, trace)
    compared = problem.is_known and not is_large
    points = [] if compared else _draw_points(problem, structural)
    for number, (row, leaves, arguments) in enumerate(points):
        is_near = center is not None and (np.abs(row - center) <= NEAR * np.maximum(1.0, np.abs(center))).all()
        given = problem.leaves if leaves is None else leaves
        try:
            program = trace.run(given, arguments)
        except Exception:  # what a program does not take is no other value
            continue
        slack = max(map(_size_of, (row, *program))) * min(APART * tolerance, MOST)
        expected = [("its traced program gives", program, program, slack)]
        if number == 0 and by_rules:  # one point tells another operator from its rule
            expected.append(_find_bounds(engine, problem, trace, given, arguments, min(FROM_EXACT * tolerance, MOST)))
        for way, call in problem.calls(leaves, arguments)[: None if number % 3 == 0 else 1]:
            try:
                values = call()
            except Exception:
                continue
            compared |= not way
            bad = [value for part in values for value in part[~np.isfinite(part)] if is_large or np.isnan(value)]
            if is_near and leaves is None and bad:
                return f"the function gives {bad[0]} at {_format(row)}: convexity is of real numbers"
            for what, lower, upper, slack in expected:
                if pair := _find_outside(values, lower, upper, slack):
                    return f"the function gives {pair[0]} at {_format(row)}{way}, where {what} {pair[1]}"
        share = FROM_EXACT * tolerance
        is_steep = (number in STEEP or leaves is not None) and share < MOST  # half precision rounds slopes too far
        if is_steep and (pair := _find_other_slope(problem, trace, row, leaves, arguments, share)):
            where = f"at {_format(row)}, where that of its traced program has"
            return f"the function's gradient has {pair[0]} {where} {pair[1]}"
    return "" if compared else "the function and its traced program could not be compared at any point"


def _find_bounds(
    engine: Engine, problem: Problem, trace: Trace, given: list[Any], arguments: list[Any], share: float
) -> tuple[str, list[Array], list[Array], float]:
    """Return bounds of the outputs at a point by the rules, and how far rounding may take them outside."""
    walk = Walk(trace.graph, engine.rules, engine.recognize)
    outputs = walk.run([problem.leaf_value(part) for part in (*given, *arguments)])
    sizes = (max(_size_of(value.lower), _size_of(value.upper)) for value in walk.values.values())
    lower, upper = [value.lower for value in outputs], [value.upper for value in outputs]
    return "by the rules it is", lower, upper, max(sizes) * share


def _find_other_slope(
    problem: Problem, trace: Trace, row: Array, leaves: list[Any] | None, arguments: list[Any], share: float
) -> tuple[str, str] | None:
    """Return an entry of the function's gradient and that of its program, which differ here and on both sides."""
    aside, found = ASIDE * np.maximum(1.0, np.abs(row)) * np.cos(np.arange(row.size)), None
    for shift in (0.0, aside, -aside):
        moved = problem.place(row + shift)
        given = [moved[k] if k in problem.chosen else part for k, part in enumerate(arguments)]
        try:
            own = problem.slopes(leaves, given)
            program = trace.slopes(problem.leaves if leaves is None else leaves, given)
        except Exception:  # one has no derivative
            return None
        if not all(np.isfinite(part).all() for part in (*own, *program)):
            return None
        if not (found := _find_outside(own, program, program, max(map(_size_of, (*own, *program))) * share)):
            return None
    return found


def _draw_points(problem: Problem, structural: bool) -> Iterator[tuple[Array, list[Any] | None, list[Any]]]:
    """Yield the chosen arguments in a row, the leaves, None for those given, and all arguments."""
    center, rng = problem.center(), np.random.default_rng(0)
    if center is None:
        return
    center = np.nan_to_num(center, posinf=0.0, neginf=0.0)
    farthest = min(FARTHEST.get(dtype_name(problem.arguments[k].dtype), np.inf) for k in problem.chosen)
    mixed = [min(scale, farthest) * rng.normal(size=center.shape) for scale in SCALES]
    turned = [(-1) ** k * np.abs(step) for k, step in enumerate(mixed)]  # of one sign
    rows = [center + np.maximum(1.0, np.abs(center)) * step for step in (*mixed, *turned)]
    uneven = mixed[0] * np.resize([10.0, 1e-2], center.shape)
    rows += [center, uneven, 1e-4 * mixed[0], np.rint(2.0 * mixed[0])]  # near zero, and with ties
    if problem.domain is not None:
        rows = [np.clip(row, *problem.domain) for row in rows]
    for row in rows:
        yield row, None, problem.place(row)
    for row, factor in zip(rows, FACTORS, strict=False):
        arguments = problem.place(row)
        fixed = [part if k in problem.chosen else _scale(part, factor) for k, part in enumerate(arguments)]
        if structural or len(problem.chosen) < len(arguments):
            yield row, [_scale(leaf, factor) for leaf in problem.leaves] if structural else None, fixed


def _scale(array: Any, factor: float) -> Any:
    """Return an array of floats times a factor; others as they are."""
    return array * factor if dtype_name(getattr(array, "dtype", "")).startswith(FLOATS) else array


def _may_overflow(problem: Problem, trace: Trace) -> bool:
    """Return whether the norms of the numbers in a program are so large that products of them may overflow."""
    known = (operation.params["array"] for operation in trace.graph.operations if operation.name == CONSTANT_OPERATION)
    constants = [np.abs(array.astype(np.float64)) for array in known if dtype_name(array.dtype).startswith(FLOATS)]
    given = [np.abs(problem.leaf_value(part).upper) for part in (*problem.leaves, *problem.arguments)]
    norms = [
        np.atleast_2d(np.where(np.isfinite(part), part, 0.0)).sum(axis=-2).max(initial=0.0)
        for part in given + constants
    ]
    norms += [1.0 / np.min(part, where=part > 0.0, initial=1.0) for part in constants]  # a divisor
    limits = ml_dtypes.finfo(np.dtype(dtype_name(problem.arguments[problem.chosen[0]].dtype)))
    return bool(np.log10(1.0 + np.asarray(norms)).sum() > np.log10(float(limits.max)))


def _format(row: Array) -> str:
    return np.array2string(row, precision=4, threshold=6, max_line_width=1000)


def _size_of(part: Array) -> float:
    """Return the largest absolute value that is finite."""
    return float(np.max(np.abs(part), where=np.isfinite(part), initial=0.0))


def _find_outside(values: list[Array], lower: list[Array], upper: list[Array], slack: float) -> tuple[str, str] | None:
    """Return a value outside of its bounds, and those, in words; None where all are inside."""
    shapes = [[part.shape for part in parts] for parts in (values, lower)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[0]}", f"{shapes[1]}"
    for value, low, high in zip(values, lower, upper, strict=True):
        infinite = ~np.isfinite(value) & ~(np.isfinite(low) & np.isfinite(high))
        with np.errstate(invalid="ignore"):
            outside = ~((value >= low - slack) & (value <= high + slack)) & ~infinite
        if outside.any():
            number, first, last = (f"{part[outside][0]:.6g}" for part in (value, low, high))
            return number, first if first == last else f"between {first} and {last}"
    return None

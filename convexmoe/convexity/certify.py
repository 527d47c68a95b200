"""The proof that a function is convex, or concave, its refutation, or where the proof stops: the flow of `certify`."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import describe, dtype_name, one_of, whole_number
from ..hull.config import Normalization
from .agreement import find_difference
from .calculus import LAWS
from .certificate import EXACT, STRENGTHS, Certificate, Output, coarsest_dtype, first_failure, monotonicity, word_arrays
from .domain import Domain, read_domain
from .facts import CONCAVE, CONVEX, REAL, Value, merge, nothing, parameter, variable
from .graph import Graph
from .problem import Engine, NotTraced, Problem
from .references import look_through
from .refinements import Refinements
from .search import search, turn
from .segments import TOLERANCES, Violation
from .walk import Reason, Step, Walk

SEGMENTS = 20_000
FACTS = {"convex": CONVEX, "concave": CONCAVE}
REACH = 3.0  # half the width of the box that is searched around the example, in units of its size


def certify_problem(
    engine: Engine, problem: Problem, strength: str | None, per_input: bool, segments: int, seed: int, box: Any = None
) -> Certificate:
    """Return the certificate of a problem; the options, `box` the domain, are those of the packages' `certify`."""
    if strength is not None:
        one_of("certify", "strength", strength, STRENGTHS)
    whole_number("certify", "segments", segments, 0)
    whole_number("certify", "seed", seed, 0)
    domain = read_domain("certify", box, [tuple(problem.arguments[k].shape) for k in problem.chosen])
    problem, wanted = replace(problem, domain=domain), FACTS[problem.curvature]
    base = Certificate("unknown", strength or "structural", "", domain=domain, curvature=problem.curvature)
    try:
        _check_real_inputs(problem)
        held, normalizations = look_through(problem.roots, problem.fixed)
        _check_numbers(problem, normalizations)
        trace = problem.trace()
        graph = trace.graph
        _check_real_outputs(graph)
    except NotTraced as error:
        return replace(base, reason=str(error))
    strengths = STRENGTHS if problem.leaves and not held else ("numeric",)
    for now in (strength,) if strength else strengths:
        walk = _walk(engine, problem, graph, now)
        proved = all(walk.values[number].has(wanted).all() for number in graph.outputs)
        is_structural = now == "structural"
        doubt = trace.doubt or (_describe_held(held) if held and is_structural else "")
        doubt = (doubt or find_difference(engine, problem, trace, walk, is_structural)) if proved else ""
        if proved and not doubt:
            break
    coordinates = sum(math.prod(graph.shapes[number]) for number in _moving(problem, graph)) if per_input else 0
    alone = [_walk(engine, problem, graph, now, coordinate) for coordinate in range(coordinates)]
    outputs = _describe_outputs(trace.names, walk, alone)
    steps, results = tuple(walk.steps().values()), tuple(graph.outputs)
    base = replace(base, strength=now, outputs=outputs, steps=steps, results=results)
    if proved and doubt:
        return replace(base, reason=f"no proof {EXACT}: {doubt}")
    if proved and not problem.is_refused:
        return replace(base, verdict="proved", reason=_proved_text(problem, now, held))
    failed = next(filter(None, (first_failure(walk, number, wanted) for number in graph.outputs)), None)
    violation, outcome = None, "no counterexample was looked for"
    if segments:
        try:
            violation, outcome = _find_violation(problem, walk, segments, seed)
        except Exception as error:  # a function that is traced need not run in batches, or compile
            outcome = f"the search for a counterexample failed: {type(error).__name__}: {error}"
    verdict = "unknown" if violation is None else "refuted"
    reason = _failed_text(problem, failed, violation, outcome)
    return replace(base, verdict=verdict, reason=reason, failed=failed, violation=violation)


def _check_real_inputs(problem: Problem) -> None:
    for k in problem.chosen:
        argument = problem.arguments[k]
        if not dtype_name(argument.dtype).startswith(("float", "bfloat")):
            raise NotTraced(f"argument {k} is {describe(argument)}: convexity is of real inputs")


def _check_real_outputs(graph: Graph) -> None:
    if not graph.outputs:
        raise NotTraced("the function returns no array")
    for number in graph.outputs:
        dtype, shape = graph.dtypes[number], ", ".join(map(str, graph.shapes[number]))
        if dtype.startswith("complex"):
            raise NotTraced(f"the function returns {dtype}[{shape}]: convexity is of real outputs")


def _check_numbers(problem: Problem, normalizations: list[Normalization]) -> None:
    """Check that weights are real numbers, and normalizations numbers that their dtype holds."""
    for leaf, name in zip(problem.leaves, problem.names, strict=True):
        kind = dtype_name(leaf.dtype) if hasattr(type(leaf), "__array__") else type(leaf).__name__
        if kind.startswith(("float", "bfloat")) and not problem.leaf_value(leaf).has(REAL).all():
            raise NotTraced(f"the parameter{name and ' ' + name} holds NaN or infinity: convexity is of real numbers")
    dtype = dtype_name(problem.arguments[problem.chosen[0]].dtype)
    limits = ml_dtypes.finfo(np.dtype(dtype))
    for field, values in (item for units in normalizations for item in asdict(units).items()):
        least = float(limits.tiny) if field.endswith("scale") else 0.0
        bad = [value for value in values if not least <= abs(value) <= float(limits.max)]
        if bad:
            raise NotTraced(f"the normalization's {field} has {bad[0]:g}, which {dtype} does not hold")


def _moving(problem: Problem, graph: Graph) -> list[int]:
    """Return the numbers of the chosen inputs."""
    return [graph.inputs[len(problem.leaves) + k] for k in problem.chosen]


def _walk(engine: Engine, problem: Problem, graph: Graph, strength: str, coordinate: int | None = None) -> Walk:
    """Return the walk through the program; with a coordinate, only that entry of the chosen inputs moves."""
    moving, exact = _moving(problem, graph), strength == "numeric"
    # A refinement assumes that all coordinates move.
    refine = Refinements(moving, engine.sorts, problem.domain) if coordinate is None else None
    walk = Walk(graph, engine.rules, engine.recognize, refine)
    values = []
    for number, leaf, name in zip(graph.inputs, problem.leaves, problem.names, strict=False):
        values.append(problem.leaf_value(leaf) if exact else _unknown_number(graph, number))
        law = "a parameter, of known value" if exact else "a parameter, any real number"
        walk.reasons[number] = Reason("parameter", law, (), name)
    start = 0
    for k, number in enumerate(graph.inputs[len(problem.leaves) :]):
        law = "an input that is fixed"
        if number in moving:
            law, shape = LAWS["input"], graph.shapes[number]
            values.append(_moving_input(shape, start, coordinate, problem.domain))
            start += math.prod(shape)
        else:
            values.append(_unknown_number(graph, number))
        walk.reasons[number] = Reason("input", law, (), f"argument {k}")
    walk.run(values)
    return walk


def _unknown_number(graph: Graph, number: int) -> Value:
    """Return what is known of a fixed input from its dtype."""
    shape, dtype = graph.shapes[number], graph.dtypes[number]
    if dtype == "bool":
        return parameter(shape, 0.0, 1.0)
    if dtype.startswith(("int", "uint")):
        bits = int(dtype.lstrip("uint"))  # 4 too, which numpy does not know
        if dtype.startswith("uint"):
            return parameter(shape, 0.0, 2.0**bits - 1)
        return parameter(shape, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    return parameter(shape) if dtype.startswith(("float", "bfloat")) else nothing(shape)


def _moving_input(shape: tuple[int, ...], start: int, coordinate: int | None, domain: Domain | None) -> Value:
    """Return a chosen input, of which all moves, or one coordinate; those before it have `start` elements."""
    places = start + np.arange(math.prod(shape)).reshape(shape)
    bounds = () if domain is None else (side[places] for side in domain)
    value = variable(shape, *bounds)
    if coordinate is None:
        return value
    return merge(places == coordinate, value, parameter(shape, value.lower, value.upper))


def _describe_outputs(names: list[str], walk: Walk, alone: list[Walk]) -> tuple[Output, ...]:
    """Return what a walk knows of each output, and the walks of single coordinates, if any, of monotonicity."""
    outputs = []
    for name, number in zip(names, walk.graph.outputs, strict=True):
        by_coordinate = [monotonicity(single.values[number]) for single in alone]
        per_input = np.stack(by_coordinate, axis=-1) if by_coordinate else None
        outputs.append(Output(name, **word_arrays(walk.values[number]), per_input=per_input))
    return tuple(outputs)


def _describe_held(held: list[str]) -> str:
    """Return in a sentence why a proof does not hold for every value of the parameters."""
    fix = "pass it in params=, or in fixed= where no training changes it"
    return f"the function reaches {_list_names(held)} by a reference; {fix}"


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _proved_text(problem: Problem, strength: str, held: list[str]) -> str:
    present = f" and the present values of {_list_names(held)}" if held else ""
    whose = {"structural": ", for every value of the parameters", "numeric": f", for the given parameters{present}"}
    parameters = whose[strength] if problem.leaves else ""
    count, what = len(problem.chosen), "its input"
    if len(problem.arguments) > 1:
        what = "argument " + " and ".join(map(str, problem.chosen)) + (" jointly" if count > 1 else "")
    others = " for fixed others" if len(problem.arguments) > count else ""
    where = "" if problem.domain is None else f" on {problem.domain}"
    return f"{problem.curvature} in {what}{where}{others}{parameters}, {EXACT} ({strength})"


def _failed_text(problem: Problem, failed: Step | None, violation: Violation | None, outcome: str) -> str:
    """Return in a sentence why a function is not proved to have the curvature."""
    if violation is not None:
        side = "above" if problem.curvature == "convex" else "below"
        gap = f"{violation.gap:.3g} {side} its chord ({violation.dtype})"
        return f"not {problem.curvature}: a segment on which it lies {gap}"
    if problem.is_refused:
        return "a NonConvexHull is refused: its sigmoid gates are not convex, whatever a search finds"
    if failed is None:
        return f"no proof {EXACT}; {outcome}"
    where = f" at {failed.source}" if failed.source else ""
    why = failed.note or failed.law if failed.curvature == "unknown" else f"it is {failed.curvature}"
    return f"no proof {EXACT}: {failed.operation}{where}: {why}; {outcome}"


def _find_violation(problem: Problem, walk: Walk, segments: int, seed: int) -> tuple[Violation | None, str]:
    """Search around the example, parameters and fixed arguments as they are given; say so where that is impossible."""
    center = problem.center()
    if center is None:
        return None, "no counterexample was looked for without values of the parameters"
    if center.size == 0 or not np.isfinite(center).all():
        return None, "no counterexample was looked for around an example that is empty or not finite"
    center = np.clip(center, *(problem.domain or (-np.inf, np.inf)))
    reach = REACH * np.maximum(1.0, np.abs(center)) / 2
    corners = np.stack([center - reach, center + reach])
    function = problem.evaluator(np.clip(corners, *(problem.domain or (-np.inf, np.inf))))
    rounded = coarsest_dtype(walk, function.dtype)
    tolerance = TOLERANCES.get(rounded, np.inf) if rounded else None
    violation = search(function, segments, seed, tolerance, False, problem.domain)
    violation = turn(violation, problem.curvature)
    return violation and violation._replace(dtype=rounded or violation.dtype), "no counterexample found"

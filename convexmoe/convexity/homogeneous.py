"""Norms, means and perspectives: functions of the first degree, and what is less than that, of a part of a program."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import facts
from .facts import CONCAVE, CONVEX, REAL, ROOT_CONVEX, Array, Value
from .graph import Operation
from .shifts import law_of, source_of

if TYPE_CHECKING:
    from .walk import Walk

Refinement = tuple[str, Value] | None
UNIT = facts.literal(1.0)


def claim_curvature(law: str, value: Value, convex: Array, concave: Array) -> Refinement:
    """Return a value with curvature where it was decided and is real, and the law; None where nothing was."""
    convex, concave = (holds & value.has(REAL) for holds in (convex, concave))
    if not (convex.any() or concave.any()):
        return None
    claim = value.facts | facts.facts_where((CONVEX, convex), (CONCAVE, concave))
    return law, facts.settle(value.lower, value.upper, claim)


def refine_homogeneous(walk: Walk, operation: Operation, value: Value) -> Refinement:
    """Return what more is known of a power, an exponential or a product, and the law that gives it."""
    if operation.name == "mul" and operation.inputs[0] != operation.inputs[1]:
        return _perspective(walk, operation, value)
    found = _exponent(walk, operation.outputs[0])
    return found and (_power_norm(walk, operation, value, *found) or _root_of_product(walk, operation, value, *found))


def _rounding(walk: Walk, operation: Operation) -> float:
    """Return how far a number such as 1 / 3 may be from what was meant, relative to it."""
    return 2.0 ** (-52 if walk.graph.dtypes[operation.outputs[0]] == "float64" else -23)


def _exponent(walk: Walk, k: int) -> tuple[int, Array | float] | None:
    """Return the base and the exponent of a power that depends on the input, times a constant >= 0; else None."""
    operation = walk.graph.makers.get(k)
    if operation is None or not operation.inputs or walk.values[k].constant.all():
        return None
    name, (first, *_, last) = operation.name, (*operation.inputs, *operation.inputs[-1:])
    if name == "pow" and walk.values[last].known.all():
        return first, walk.values[last].lower
    if name == "div" and walk.values[first].constant.all():
        return last, -1.0
    known = {"integer_pow": float(operation.params.get("y", 0)), "square": 2.0, "sqrt": 0.5, "rsqrt": -0.5}
    exponent = 2.0 if name == "mul" and first == last else known.get(name)
    return None if exponent is None else (first, exponent)


def _power_norm(walk: Walk, operation: Operation, value: Value, base: int, exponent: Array | float) -> Refinement:
    """Decide (sum of f ** e) ** q: a norm of convex |f| for e >= 1 / q >= 1, a mean of concave f for 0 < e q <= 1.

    What ROOT_CONVEX says of roots goes through sums and positive factors for every order as it does for 2; it marks a
    concave f as well. q may be rounded from 1 / p.
    """
    q, rounding = float(np.ravel(exponent)[0]), _rounding(walk, operation)
    is_norm = 0 < q <= 1
    if q == 0 or np.any(np.asarray(exponent) != q):
        return None
    given: dict[int, Value] = {}
    for k in walk.graph.before(base, lambda k: k in walk.reasons and _exponent(walk, k) is not None):
        power = _exponent(walk, k)
        if power is not None:
            inner, order = walk.values[power[0]], power[1] * q
            if is_norm:
                holds = inner.root_is_convex & ((power[1] % 2 == 0) | inner.nonnegative) & (order >= 1 - rounding)
            else:
                holds = inner.nonnegative & inner.has(CONCAVE) & (order > 0) & (order <= 1 + rounding)
            holds = holds & _top(walk, walk.graph.makers[k]).nonnegative
            claim = walk.values[k].facts & np.uint16(REAL) | facts.facts_where((ROOT_CONVEX, holds))
            given[k] = facts.settle(*walk.values[k].parts[:2], claim)
        elif not walk.values[k].constant.all() and not _is_homogeneous(walk, k, is_norm):
            return None
    if not given:
        return None
    top, holds = _top(walk, operation), walk.evaluate_again(base, given).has(ROOT_CONVEX)
    above, below = holds & top.nonnegative, holds & top.nonpositive
    return claim_curvature("norm", value, above, below) if is_norm else claim_curvature("mean", value, below, above)


def _top(walk: Walk, operation: Operation) -> Value:
    """Return the constant by which a power is multiplied."""
    return walk.values[operation.inputs[0]] if operation.name == "div" else UNIT


def _is_homogeneous(walk: Walk, k: int, with_maxima: bool) -> bool:
    """Return whether a value is a sum, a maximum or a rearrangement of what it depends on, or a multiple of it."""
    operation = walk.graph.makers.get(k)
    law = law_of(walk, operation) if operation else ""
    moving = [not walk.values[given].constant.all() for given in operation.inputs] if operation else []
    scaled = (law in ("product", "linear") and sum(moving) == 1) or (law == "quotient" and moving == [True, False])
    return scaled or law in ("sum", "moved", "same") or (law == "maximum" and with_maxima)


def _root_of_product(walk: Walk, operation: Operation, value: Value, base: int, exponent: Array | float) -> Refinement:
    """Decide (product of u over axes) ** q for concave u >= 0, of which there are at most 1 / q."""
    made = walk.graph.makers.get(source_of(walk, base))
    if made is None or made.name not in ("reduce_prod", "prod") or operation.name == "div":
        return None
    u, axes = walk.values[made.inputs[0]], made.params["axes"]
    count = prod(u.shape[axis] for axis in axes)
    fits = np.all(np.asarray(exponent) > 0) and np.all(count * np.asarray(exponent) <= 1 + _rounding(walk, operation))
    concave = bool(fits and (u.nonnegative & u.has(CONCAVE)).all())
    return claim_curvature("mean", value, np.zeros(value.shape, bool), np.full(value.shape, concave))


def _perspective(walk: Walk, operation: Operation, value: Value) -> Refinement:
    """Decide c t f(u / t) for affine t > 0 and u, and a constant c, by f."""
    for scaled, inner in (operation.inputs, operation.inputs[::-1]):
        t = _unscaled(walk, scaled)
        scale, turned = walk.values[t], walk.values[scaled].nonpositive
        if not (scale.positive & scale.affine).all() or scale.constant.all() or walk.values[inner].constant.all():
            continue
        if not (turned | walk.values[scaled].nonnegative).all():
            continue
        quotients = list(_quotients(walk, inner, t))
        if quotients:
            bounds = ((k, walk.graph.shapes[k], *walk.values[k].parts[:2]) for k in quotients)
            given = {k: facts.variable(shape, *ends) for k, shape, *ends in bounds}
            of_quotients = walk.evaluate_again(inner, given).broadcast(value.shape)
            holds = [of_quotients.has(CONVEX), of_quotients.has(CONCAVE)]
            return claim_curvature("perspective", value, np.where(turned, *holds[::-1]), np.where(turned, *holds))
    return None


def _unscaled(walk: Walk, k: int) -> int:
    """Return the value of which another is a constant multiple, element by element."""
    while (made := walk.graph.makers.get(k)) is not None and made.name in ("neg", "mul", "div"):
        moving = [given for given in made.inputs if not walk.values[given].constant.all()]
        is_multiple = len(moving) == 1 and (made.name != "div" or moving == [made.inputs[0]])
        if not is_multiple or walk.graph.shapes[moving[0]] != walk.graph.shapes[k]:
            break
        k = moving[0]
    return k


def _quotients(walk: Walk, inner: int, t: int) -> Iterator[int]:
    """Yield the quotients u / t of affine u before a value, where each element of it has those by one t."""
    graph, source = walk.graph, source_of(walk, t)
    is_one = prod(graph.shapes[source]) == 1

    def is_quotient(k: int) -> bool:
        made = graph.makers.get(k)
        if made is None or made.name != "div" or not walk.values[made.inputs[0]].affine.all():
            return False
        return source_of(walk, made.inputs[1]) == source if is_one else made.inputs[1] == t

    before = graph.before(inner, lambda k: is_quotient(k) or bool(walk.values[k].constant.all()))
    between = [k for k in before if not is_quotient(k) and not walk.values[k].constant.all()]
    for k in between:
        made = graph.makers.get(k)
        elementwise = made is not None and made.name in walk.rules and walk.rules[made.name].elementwise
        if made is None or not (is_one or (elementwise and graph.shapes[k] == graph.shapes[t])):
            return
    yield from (k for k in before if is_quotient(k))

"""What the rules leave open and the whole of a program decides: quadratic forms, and weighted sums of sorted values.

Both evaluate a part of the program at known points, in bounds that are rounded outward, so that the coefficients they
read off are enclosed, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from . import facts
from .calculus import add, negate
from .domain import Domain
from .facts import Array, Value
from .graph import Operation
from .semidefinite import LARGEST_ORDER, is_semidefinite
from .walk import Walk

LARGEST_VALUE = 256  # elements of a value that is worth the effort
LARGEST_SORT = 128  # elements of a sorted value

# (operation) -> (axis, whether the order is falling) where an operation sorts its first input, None where it does not.
Sorts = Callable[[Operation], "tuple[int, bool] | None"]


class Refinements:
    """The refinements of one walk.

    Args:
        chosen: the numbers of the chosen inputs of the graph.
        sorts: tells the operations that sort.
        domain: where the chosen inputs lie, None for everywhere.
    """

    def __init__(self, chosen: list[int], sorts: Sorts, domain: Domain | None = None) -> None:
        self.chosen, self.sorts, self.domain = chosen, sorts, domain

    def __call__(self, walk: Walk, operation: Operation, number: int) -> tuple[str, Value] | None:
        """Return what more is known of a value, and the law that gives it; None for nothing."""
        value = walk.values[number]
        if value.facts.size > LARGEST_VALUE:
            return None
        refinement = self._quadratic(walk, number, value)
        if refinement is None and any(map(self.sorts, walk.graph.operations)):
            return self._ordered(walk, number, value)
        return refinement

    def _quadratic(self, walk: Walk, number: int, value: Value) -> tuple[str, Value] | None:
        """Decide the elements that are polynomials of degree 2 by their Hessians."""
        undecided = np.asarray(value.has(facts.QUADRATIC | facts.REAL) & ~value.affine)
        size = sum(math.prod(walk.graph.shapes[given]) for given in self.chosen)
        if not undecided.any() or not 0 < size <= LARGEST_ORDER:
            return None
        start, step = (np.zeros(size), np.ones(size)) if self.domain is None else self.domain.spread()
        if np.isnan(start).any():
            return None
        units = np.diag(step)  # steps of other lengths change no sign of the Hessian's eigenvalues
        at_start = self._at(walk, number, start)
        firsts = [self._at(walk, number, start + unit) for unit in units]
        hessian = np.empty((2, size, size, *value.shape))
        for i in range(size):
            for j in range(i, size):
                second = self._at(walk, number, start + units[i] + units[j])
                entry = add(add(second, at_start), negate(add(firsts[i], firsts[j])))
                moves = bool(step[i] and step[j])
                hessian[0, i, j] = hessian[0, j, i] = entry.lower if moves else 0.0
                hessian[1, i, j] = hessian[1, j, i] = entry.upper if moves else 0.0
        lower, upper = (np.moveaxis(part, (0, 1), (-2, -1)) for part in hessian)
        convex, concave = (np.zeros(value.shape, bool) for _ in range(2))
        for place in map(tuple, np.argwhere(undecided)):
            convex[place] = is_semidefinite(lower[place], upper[place])
            concave[place] = is_semidefinite(-upper[place], -lower[place])
        return _claim("quadratic", value, convex, concave)

    def _at(self, walk: Walk, number: int, point: Array) -> Value:
        """Return bounds of a value where the chosen inputs are a known point."""
        given, start = {}, 0
        for chosen in self.chosen:
            shape = walk.graph.shapes[chosen]
            end = start + math.prod(shape)
            given[chosen], start = facts.literal(point[start:end].reshape(shape)), end
        return evaluate_again(walk, number, given)

    def _ordered(self, walk: Walk, number: int, value: Value) -> tuple[str, Value] | None:
        """Decide the elements that are weighted sums of sorted values by their weights."""
        order = self._find_sorted(walk, number)
        if order is None:
            return None
        source, operation, axis, falling = order
        shape = walk.graph.shapes[source]
        axis %= max(len(shape), 1)
        if not 0 < math.prod(shape) <= LARGEST_SORT or source == number:
            return None
        free = evaluate_again(walk, number, {source: facts.variable(shape)})
        if not free.affine.any():
            return None
        start = evaluate_again(walk, number, {source: facts.literal(np.zeros(shape))})
        units = np.eye(math.prod(shape)).reshape(-1, *shape)
        ends = (evaluate_again(walk, number, {source: facts.literal(unit)}) for unit in units)
        slopes = facts.join((add(end, negate(start)) for end in ends), np.stack).reshape(*shape, *value.shape)
        lower, upper = (np.moveaxis(part, axis, 0) for part in (slopes.lower, slopes.upper))
        given = walk.values[operation.inputs[0]]
        if falling:  # what is left out has weight 0
            left_out = np.zeros((given.shape[axis] - len(lower), *lower.shape[1:]))
            lower, upper = (np.concatenate([left_out, part[::-1]]) for part in (lower, upper))
        every = tuple(range(len(shape)))
        growing = (lower[1:] >= upper[:-1]).all(axis=every)
        shrinking = (upper[1:] <= lower[:-1]).all(axis=every)
        above, below = (lower >= 0).all(axis=every), (upper <= 0).all(axis=every)
        straight, up, down = (given.has(fact).all() for fact in (facts.AFFINE, facts.CONVEX, facts.CONCAVE))
        convex = growing & (straight | (up & above) | (down & below))
        concave = shrinking & (straight | (down & above) | (up & below))
        convex, concave = (holds & free.affine & value.has(facts.REAL) for holds in (convex, concave))
        return _claim("ordered", value, convex, concave)

    def _find_sorted(self, walk: Walk, number: int) -> tuple[int, Operation, int, bool] | None:
        """Return the one sorted value through which a value depends on the chosen input, if there is one."""
        graph = walk.graph
        orders = {made.outputs[0]: (made, *order) for made in graph.operations if (order := self.sorts(made))}

        def is_fixed(k: int) -> bool:
            return k != number and bool(walk.values[k].constant.all())

        moving = [k for k in graph.before(number, lambda k: k in orders or is_fixed(k)) if not is_fixed(k)]
        sources = [k for k in moving if k in orders]
        if len(sources) != 1 or any(k not in graph.makers for k in moving):
            return None
        return sources[0], *orders[sources[0]]


def _claim(law: str, value: Value, convex: Array, concave: Array) -> tuple[str, Value] | None:
    """Return a value with curvature where it was decided, and the law; None where nothing was."""
    if not (convex.any() or concave.any()):
        return None
    claim = value.facts | facts.facts_where((facts.CONVEX, convex), (facts.CONCAVE, concave))
    return law, facts.settle(value.lower, value.upper, claim)


def evaluate_again(walk: Walk, number: int, given: dict[int, Value]) -> Value:
    """Return what is known of a value where some values are given anew, and others follow from them."""
    part = Walk(walk.graph, walk.rules, walk.atoms)
    part.values = {key: value for key, value in walk.values.items() if value.constant.all()} | given
    needed = walk.graph.before(number, part.values.__contains__)
    for operation in walk.graph.operations:
        if any(output in needed and output not in part.values for output in operation.outputs):
            part.step(operation)
    return part.values[number]

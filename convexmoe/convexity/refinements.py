"""What the rules leave open and the whole of a program decides: quadratic forms, and weighted sums of sorted values.

Both evaluate a part of the program at known points, in bounds that are rounded outward, so that the coefficients they
read off are enclosed, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from . import facts, intervals
from .calculus import add, multiply, negate
from .contraction import axes_of, pair_places
from .domain import Domain
from .facts import Array, Value
from .graph import Operation
from .homogeneous import claim_curvature, refine_homogeneous
from .semidefinite import is_semidefinite
from .walk import Walk

LARGEST_VALUE = 256  # elements of a value that is worth the effort
LARGEST_SORT = 128  # elements of a sorted value
LARGEST_BY_POINTS = 24  # elements of the input, where a quadratic form is no sum of products
LARGEST_INPUT = 512  # elements of the input, or of products, of a quadratic form

# (operation) -> (axis, whether the order is falling) where an operation sorts its first input, None where it does not.
Sorts = Callable[[Operation], "tuple[int, bool] | None"]

Hessian = tuple[int, tuple[Array, Array]]  # of an element, by its flat index: bounds


class Refinements:
    """The refinements of one walk.

    Args:
        chosen: the numbers of the chosen inputs of the graph.
        sorts: tells the operations that sort.
        domain: where the chosen inputs lie, None for everywhere.
    """

    def __init__(self, chosen: list[int], sorts: Sorts, domain: Domain | None = None) -> None:
        self.chosen, self.sorts, self.domain = chosen, sorts, domain
        self.slopes: dict[int, Value] = {}  # of affine values in the chosen inputs

    def __call__(self, walk: Walk, operation: Operation, number: int) -> tuple[str, Value] | None:
        """Return what more is known of a value, and the law that gives it; None for nothing."""
        value = walk.values[number]
        if value.facts.size > LARGEST_VALUE:
            return None
        refinement = self._form(walk, number, value) or self._quadratic(walk, number, value)
        refinement = refinement or self._fraction(walk, operation, value) or refine_homogeneous(walk, operation, value)
        if refinement is None and any(map(self.sorts, walk.graph.operations)):
            return self._ordered(walk, number, value)
        return refinement

    def _quadratic(self, walk: Walk, number: int, value: Value) -> tuple[str, Value] | None:
        """Decide the elements that are polynomials of degree 2 by their Hessians."""
        undecided = np.asarray(value.has(facts.QUADRATIC | facts.REAL) & ~value.affine)
        size = sum(math.prod(walk.graph.shapes[given]) for given in self.chosen)
        if not undecided.any() or not 0 < size <= LARGEST_INPUT:
            return None
        start, step = self._spread(self.chosen, size)
        if np.isnan(start).any() or not step.any():
            return None
        try:
            hessians = dict(self._hessians_of_products(walk, number, undecided, size))
        except ValueError:  # made of something else
            hessians = dict(self._hessians_by_points(walk, number, undecided, size))
        convex, concave = (np.zeros(value.shape, bool) for _ in range(2))
        for k, (lower, upper) in hessians.items():
            convex.flat[k] = is_semidefinite(lower, upper)
            concave.flat[k] = is_semidefinite(-upper, -lower)
        return claim_curvature("quadratic", value, convex, concave)

    def _form(self, walk: Walk, number: int, value: Value) -> tuple[str, Value] | None:
        """Decide c + y' P y for c >= 0, by P, for the last affine y through which all depends on the input.

        Where P is positive semidefinite it is c + |L y|^2 for some L, so that its root is a norm.
        """
        undecided = value.has(facts.QUADRATIC | facts.REAL) & ~value.affine
        if not undecided.any():
            return None
        products, beside = _products_behind(walk, number)
        source = next(_sources(walk, products), None)
        if source is None or beside or walk.values[source].facts.size > LARGEST_INPUT:
            return None
        of_source, size = Refinements([source], self.sorts), walk.values[source].facts.size
        for factor in {k for product in products for k in walk.graph.makers[product].inputs}:
            free = walk.evaluate_again(factor, {source: facts.variable(walk.graph.shapes[source])})
            at_zero = of_source._at(walk, factor, [source], np.zeros(size))
            if not (free.affine.all() and (at_zero.zero.all() or walk.values[factor].constant.all())):
                return None
        nothing = {k: facts.literal(np.zeros(walk.graph.shapes[k])) for k in products}
        start = walk.evaluate_again(number, nothing).nonnegative
        try:
            hessians = dict(of_source._hessians_of_products(walk, number, undecided, size))
        except ValueError:  # made of something else
            return None
        rooted = np.zeros(value.shape, bool)
        for k, bounds in hessians.items():
            rooted.flat[k] = is_semidefinite(*bounds)
        claim = value.facts | facts.facts_where((facts.ROOT_CONVEX, rooted & start))
        return ("form", facts.settle(value.lower, value.upper, claim)) if (rooted & start).any() else None

    def _fraction(self, walk: Walk, operation: Operation, value: Value) -> tuple[str, Value] | None:
        """Decide a / b of affine values of one shape, as c + d / b where a = c b + d with rational numbers c and d."""
        pair = [operation.inputs[0], operation.inputs[-1]] if operation.name == "div" else []
        size = sum(math.prod(walk.graph.shapes[given]) for given in self.chosen)
        alike = all(walk.values[k].affine.all() and walk.graph.shapes[k] == value.shape for k in pair)
        if not (pair and alike) or size * value.facts.size > LARGEST_INPUT:
            return None
        start, signed = self._spread(self.chosen, size)[0], np.full(value.shape, math.nan)
        a, b = ([self._at(walk, k, self.chosen, start), self._slopes(walk, k, self.chosen)] for k in pair)
        for k in np.ndindex(value.shape):
            ends = [[Value(*(part[..., *k] for part in x.parts)) for x in side] for side in (a, b)]
            rows = [np.append(first.lower, slopes.lower) for first, slopes in ends]
            known = all(x.known.all() for side in ends for x in side)
            if known and rows[1][1:].any():
                (first, *slopes), (second, *others) = (map(Fraction, row.tolist()) for row in rows)
                share = next(x / y for x, y in zip(slopes, others, strict=True) if y)
                if all(x == share * y for x, y in zip(slopes, others, strict=True)):
                    signed[k] = (first > share * second) - (first < share * second)
        below = walk.values[pair[1]]
        signed = np.where(below.positive, signed, np.where(below.negative, -signed, math.nan))
        return claim_curvature("fraction", value, signed >= 0, signed <= 0)

    def _hessians_of_products(self, walk: Walk, number: int, wanted: Array, size: int) -> Iterator[Hessian]:
        """Yield the Hessians of sums over products of affine values.

        With the products and the affine values beside them as variables the value must be affine; its slopes in the
        products are their weights.
        """
        products, beside = _products_behind(walk, number)
        count = sum(walk.values[product].facts.size for product in products)
        if not 0 < count <= LARGEST_INPUT:
            raise ValueError(f"{count} products")
        shapes = {k: walk.graph.shapes[k] for k in (*products, *beside)}
        free = walk.evaluate_again(number, {k: facts.variable(shape) for k, shape in shapes.items()})
        weights = self._slopes(walk, number, products, {k: facts.literal(np.zeros(shapes[k])) for k in beside})
        sides: tuple[list[Value], list[Value]] = [], []
        places: list[Array] = []
        for product, first in zip(products, np.cumsum([0, *(math.prod(shapes[k]) for k in products)]), strict=False):
            factors, at = _factors(walk, product)
            for side, factor, index in zip(sides, factors, at, strict=True):
                if factor not in self.slopes:
                    self.slopes[factor] = self._slopes(walk, factor, self.chosen).reshape(size, -1)
                side.append(self.slopes[factor].map(partial(np.take, indices=index.reshape(-1), axis=1)))
            places.append(first + np.repeat(np.arange(len(at[0])), at[0].shape[1]))
        a, b = (facts.join(side, lambda parts: np.concatenate(parts, axis=1)) for side in sides)
        weights = weights.reshape(count, -1).map(partial(np.take, indices=np.concatenate(places), axis=0))
        for k in np.flatnonzero(wanted & free.affine):
            weight = weights.map(partial(np.take, indices=k, axis=1))
            some = ~weight.zero
            scaled, other = (part.map(partial(np.compress, some, axis=1)) for part in (multiply(a, weight), b))
            low, high = intervals.matrix_product(scaled.lower, scaled.upper, other.lower, other.upper)
            yield int(k), (intervals.add_down(low, low.T), intervals.add_up(high, high.T))

    def _hessians_by_points(self, walk: Walk, number: int, wanted: Array, size: int) -> Iterator[Hessian]:
        """Yield the Hessians of polynomials of degree 2, from their values at sums of two unit vectors."""
        if size <= LARGEST_BY_POINTS:
            start, step = self._spread(self.chosen, size)
            units = np.diag(step)
            at_start, *firsts = (self._at(walk, number, self.chosen, start + x) for x in (np.zeros(size), *units))
            hessian = np.zeros((2, size, size, wanted.size))
            for i, j in zip(*np.triu_indices(size), strict=True):
                second = self._at(walk, number, self.chosen, start + units[i] + units[j])
                entry = add(add(second, at_start), negate(add(firsts[i], firsts[j])))
                if step[i] and step[j]:
                    hessian[:, i, j] = hessian[:, j, i] = entry.lower.reshape(-1), entry.upper.reshape(-1)
            yield from ((int(k), tuple(hessian[..., k])) for k in np.flatnonzero(wanted))

    def _at(self, walk: Walk, number: int, sources: list[int], point: Array, fixed: Any = None) -> Value:
        """Return what is known of a value where its sources are a known point, and others are fixed."""
        shapes = [walk.graph.shapes[source] for source in sources]
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = zip(sources, np.split(point, ends), shapes, strict=True)
        given = {source: facts.literal(part.reshape(shape)) for source, part, shape in parts}
        return walk.evaluate_again(number, (fixed or {}) | given)

    def _slopes(self, walk: Walk, number: int, sources: list[int], fixed: Any = None) -> Value:
        """Return the slopes of an affine value in each element of its sources, `[elements, *shape]`."""
        count = sum(math.prod(walk.graph.shapes[source]) for source in sources)
        start, step = self._spread(sources, count)
        before = negate(self._at(walk, number, sources, start, fixed))
        still = facts.literal(np.zeros(before.shape))
        ends = (self._at(walk, number, sources, start + unit, fixed) for unit in np.diag(step))
        return facts.join(
            (add(end, before) if moves else still for end, moves in zip(ends, step, strict=True)), np.stack
        )

    def _spread(self, sources: list[int], count: int) -> tuple[Array, Array]:
        """Return a point and steps from it, of the chosen inputs in their domain: there alone affine values are known.

        Steps of other lengths change no sign of the Hessian's eigenvalues.
        """
        if self.domain is not None and sources == self.chosen:
            return self.domain.spread()
        return np.zeros(count), np.ones(count)

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
        free = walk.evaluate_again(number, {source: facts.variable(shape)})
        if not free.affine.any():
            return None
        slopes = self._slopes(walk, number, [source]).reshape(*shape, *value.shape)
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
        return claim_curvature("ordered", value, convex, concave)

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


def _products_behind(walk: Walk, number: int) -> tuple[list[int], list[int]]:
    """Return the products of affine values from which a value is computed, and the affine values beside them."""

    def is_fixed(k: int) -> bool:
        return bool(walk.values[k].constant.all())

    def is_affine(k: int) -> bool:
        return bool(walk.values[k].affine.all())

    def is_product(k: int) -> bool:
        return not is_affine(k) and all(map(is_affine, walk.graph.makers[k].inputs))

    ends = walk.graph.before(number, lambda k: is_affine(k) or is_product(k))
    moving = sorted(k for k in ends if not is_fixed(k))
    products = [k for k in moving if is_product(k)]
    return products, [k for k in moving if is_affine(k)]


def _sources(walk: Walk, numbers: list[int]) -> Iterator[int]:
    """Yield the affine values, latest first, through which alone some values depend on the chosen inputs."""
    graph = walk.graph

    def moves(k: int) -> bool:
        return not walk.values[k].constant.all()

    before = set().union(*(graph.before(number, lambda k: not moves(k)) for number in numbers)) - {*numbers}
    for source in sorted((k for k in before if moves(k) and walk.values[k].affine.all()), reverse=True):
        behind = (graph.before(number, lambda k, end=source: k == end or not moves(k)) for number in numbers)  # type: ignore[misc]
        if not any(k != source and k not in graph.makers and moves(k) for k in set().union(*behind)):
            yield source


def _factors(walk: Walk, product: int) -> tuple[tuple[int, int], tuple[Array, Array]]:
    """Return the factors of a product of affine values, and the places in them of its terms, `[elements, terms]`."""
    operation, shape = walk.graph.makers[product], walk.graph.shapes[product]
    first, second, name = operation.inputs[0], operation.inputs[-1], operation.name
    if name in ("dot", "dot_general"):
        shapes = walk.graph.shapes[first], walk.graph.shapes[second]
        return (first, second), pair_places(*shapes, axes_of(operation))
    exponent = walk.values[second].lower if name == "pow" else operation.params.get("y", 2)
    if name not in ("mul", "square", "integer_pow", "pow") or np.any(exponent != 2):
        raise ValueError(f"{name} of affine values")
    second = first if name == "pow" else second
    at = (np.arange(math.prod(size)).reshape(size) for size in (walk.graph.shapes[first], walk.graph.shapes[second]))
    one, two = (np.broadcast_to(places, shape).reshape(-1, 1) for places in at)
    return (first, second), (one, two)

"""Minimise a trained hull over a set, with a certified gap."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from convexmoe.errors import describe, fail
from convexmoe.hull.config import HullConfig
from convexmoe.minimization.sets import Ball, Box, Constraints, Polytope, Simplex, checked_set

from ..hull.petals import Tree
from .central_path import LEAST_WIDTH, Path, Problem, followed
from .polytopes import inside
from .regions import FARTHEST, Region, region
from .scalar_hull import EPSILON, ScalarHull, checked_output, scalar_hull

SETS = (Box, Ball, Simplex, Polytope)


def _rebuilt(kind: Any, values: Any) -> Any:
    """Return a set with these fields, unchecked: a transformation may put anything into them."""
    made = object.__new__(kind)
    for field, value in zip(fields(kind), values, strict=True):
        object.__setattr__(made, field.name, value)
    return made


def _registered(kind: Any) -> None:
    """Make a kind of set a pytree, its fields the leaves."""
    names = [field.name for field in fields(kind)]
    jax.tree_util.register_pytree_node(
        kind,
        lambda made: (tuple(getattr(made, name) for name in names), None),
        lambda _, values: _rebuilt(kind, values),
    )


for _kind in SETS:
    _registered(_kind)

SOLVED, UNCERTIFIED, EMPTY, UNBOUNDED, BROKEN = range(5)
LARGEST_TOLERANCE = 1.0
FAR = 1e3  # input scales from the mean of the inputs: where coordinates without a bound are cut off first
NEAR = 10.0  # with strong convexity, which tells whether that was far enough
GROWTH = 32.0  # of a cut, up to FARTHEST, that the point is at, or outside of which the set lies
AT_CUT = 0.9  # of the way to it
CUT_TOLERANCE = 1e-9  # of the gap, where a set is cut: a slope along it must drive the point to the cut


class Minimum(NamedTuple):
    """What `minimize` returns; one entry a problem, in float64 and in the units of the model.

    Args:
        x: the best point found, `[..., in_dim]`, in the set.
        value: the hull there, `[...]`, computed in float64.
        lower_bound: `[...]`: no point of the set has a lower value.
        gap: `[...]`: at least `value - min`.
        iterations: steps of Newton's method, int64 `[...]`.
        status: int64 `[...]`: 0 the gap is within tol; 1 it is not, inf where no point of a polytope was found up to
            rounding; 2 the set is empty, or no set (a negative radius, NaN); 3 the hull falls without end in it; 4
            values are not finite. lower_bound is -inf and gap inf at 2, 3 and 4, x and value NaN at 2 and 4.
    """

    x: jax.Array
    value: jax.Array
    lower_bound: jax.Array
    gap: jax.Array
    iterations: jax.Array
    status: jax.Array


def minimize(
    model: Any,
    constraints: Constraints,
    x0: Any = None,
    tol: float = 1e-6,
    *,
    output: int | None = None,
) -> Minimum:
    """Minimise one output of a hull over a set, for one problem or for a batch of them.

    Guarantee: `value - gap <= min <= value`, up to `gap` of rounding: lower_bound is the least value over the set of an
    affine function that lies nowhere above the hull, lowered by a first-order bound on its own rounding in float64
    (tests/contract/test_minimize.py, against Clarabel). The hull is the one with the given weights, computed in
    float64. A set without a bound is cut off, further and further out while the point is at a cut, up to `FARTHEST`
    input scales from the mean of the inputs. With strong convexity the cut leaves no lower point out; without, the
    interval is of the part within the cut, of `FAR` scales at least, and convexity carries it on: r times as far out
    nothing is lower than `value - r gap`.

    Args:
        model: a `VectorHull` or `FoldedHull`.
        constraints: a `Box`, `Ball`, `Simplex` or `Polytope`, in the units of the model; leading axes are problems.
        x0: where to start, `[..., in_dim]`, None for the middle of the set; it need not lie in it.
        tol: stop at `gap <= tol (1 + |value|)`.
        output: which output, where the model has several.

    Raises:
        TypeError: no hull, no set, x0 no array of numbers.
        ValueError: dimensions do not match, tol is not in (0, 1], weights are not finite; of a single problem that the
            set is empty, or that the hull has no minimum in it: a batch tells that in `status`.

    >>> from flax import nnx
    >>> from convexmoe_jax import Box, VectorHull
    >>> found = minimize(VectorHull(2, petals=3, out_dim=1, rngs=nnx.Rngs(0)), Box([-1.0, -1.0], [1.0, 1.0]))
    >>> bool(found.gap <= 1e-6 * (1 + abs(found.value)))
    True
    """
    found = minimized(model, constraints, x0, tol, output=output)
    if isinstance(found.status, jax.core.Tracer):
        return found
    status = np.asarray(found.status)
    if status.ndim == 0 or (status == BROKEN).all():
        for code, argument, rule, got, fix in FAULTS:
            if (status == code).any():
                fail("minimize", argument, rule, got, fix)
    return found


FAULTS = (
    (BROKEN, "model", "finite weights and values", "inf or nan", "Train it again, or use a smaller set."),
    (EMPTY, "constraints", "a set with a point in it", "an empty set", "Loosen some of its bounds."),
    (
        UNBOUNDED,
        "constraints",
        "a set in which the model is bounded below",
        "one without a minimum",
        "Add bounds.",
    ),
)


def minimized(
    model: Any, constraints: Any, x0: Any = None, tol: float = 1e-6, *, output: int | None = None
) -> Minimum:
    """Return what `minimize` does; faults of the values are in `status`, as under a compiler."""
    chosen = checked_output("minimize", model, output)
    D = model.config.in_dim
    problems = checked_set("minimize", constraints, D)
    checked_tolerance("minimize", tol)
    start = None
    if x0 is not None:
        start = checked_point("minimize", x0, D, problems)
        problems = jnp.broadcast_shapes(problems, start.shape[:-1])
    with jax.enable_x64(True):
        return _minimum(model.params, constraints, start, tol, model.config, chosen, problems)


@jax.custom_jvp
def _constant(values: Any) -> Any:
    """Return them as they are; they have no derivative."""
    return values


@_constant.defjvp
def _refused(primals: Any, tangents: Any) -> NoReturn:
    fix = "Put jax.lax.stop_gradient around them; `conjugate` has derivatives."
    fail("minimize", "model", "weights and a set that no derivative is taken by", "a derivative by them", fix)


@partial(jax.jit, static_argnames=("config", "output", "problems"))
def _minimum(
    params: Tree,
    constraints: Any,
    start: Any,
    tol: float,
    config: HullConfig,
    output: int,
    problems: tuple[int, ...],
) -> Minimum:
    params, constraints, start = _constant((params, constraints, start))
    hull, D, B = scalar_hull(params, config, output), config.in_dim, math.prod(problems)
    if start is not None:
        wanted = jnp.broadcast_to(start, (*problems, D)).reshape(B, D)
        start = hull.normalized(wanted)
    if B == 0:
        none, count = jnp.zeros(problems), jnp.zeros(problems, dtype=jnp.int64)
        return Minimum(jnp.zeros((*problems, D)), none, none, none, count, count)

    def goes_on(state: tuple[jax.Array, Minimum, jax.Array]) -> jax.Array:
        far, _, settled = state
        return jnp.any(~settled) & (far < FARTHEST)

    def farther(state: tuple[jax.Array, Minimum, jax.Array]) -> tuple[jax.Array, Minimum, jax.Array]:
        far, found, settled = state
        far = jnp.where(far == 0, NEAR if config.strong_convexity > 0 else FAR, GROWTH * far)
        far = jnp.clip(far, max=FARTHEST)
        wide = jnp.full((B,), far)
        wider, enough = _attempt(hull, constraints, start, tol, problems, wide, settled)
        kept = zip(found, wider, strict=True)
        found = Minimum(*(jnp.where(settled if a.ndim == 1 else settled[:, None], a, b) for a, b in kept))
        return far, found, settled | enough

    none, count = jnp.zeros((B,)), jnp.zeros((B,), dtype=jnp.int64)
    blank = Minimum(jnp.zeros((B, D)), none, none, none, count, count)
    first = (jnp.zeros(()), blank, jnp.zeros((B,), dtype=bool))
    _, found, settled = jax.lax.while_loop(goes_on, farther, first)
    found = _ended(found, settled)
    return Minimum(*(part.reshape((*problems, *part.shape[1:])) for part in found))


def _attempt(
    hull: ScalarHull,
    constraints: Any,
    start: jax.Array | None,
    tol: float,
    problems: tuple[int, ...],
    far: jax.Array,
    idle: jax.Array,
) -> tuple[Minimum, jax.Array]:
    """Return the record, one row a problem, of sets cut off `far` scales away, and whether that was far enough.

    Args:
        start: (B, D) in normalized units, or None; idle: (B,): problems that nothing is asked about.
    """
    space = region(constraints, hull, problems, far)
    v, space = inside(space, idle)
    if start is not None:
        v = _moved(space, v, start)
    offset, factor = hull.output_mean, hull.output_scale
    reach = space.extent() + 2 * jnp.abs(hull.input_mean / hull.input_scale)
    margin = hull.rounding(reach)
    cut = jnp.any(space.open, axis=-1)
    tight = cut & (hull.config.strong_convexity == 0)

    def goal(best: jax.Array) -> jax.Array:
        size = (1 + jnp.abs(offset + factor * best)) / factor
        wanted = tol * size - 2 * margin
        close = jnp.maximum(CUT_TOLERANCE * size, 8 * margin)
        return jnp.where(tight, jnp.minimum(wanted, close), wanted)

    def early(best: jax.Array, low: jax.Array) -> jax.Array:
        return space.empty | idle

    path = followed(Problem(hull, space, jnp.zeros_like(reach), goal, early, margin), v)
    found = _reported(path, hull, space, constraints, margin, tol, problems)
    if not space.open.shape[-1]:
        return found, ~cut
    return found, ~cut | _far_enough(path, hull, space, found)


def _far_enough(path: Path, hull: ScalarHull, space: Region, found: Minimum) -> jax.Array:
    """Return whether the cuts leave the minimum in, (B,).

    With strong convexity mu it is no further from a point of the set than `2 ||slope|| / mu`, slope a subgradient
    there. Without, the point must not be at a cut.
    """
    z, at = space.place(path.best_v), space.outer(path.best_v)
    mu = hull.config.strong_convexity
    if mu > 0:
        width = jnp.full_like(path.width, LEAST_WIDTH)
        radius = 2.01 / mu * jnp.linalg.norm(hull.expand(z, width).slope, axis=-1)
        half = jnp.diagonal(space.basis if space.frame is None else space.frame.basis, axis1=1, axis2=2)
        near = jnp.concatenate([(1 - at) * half, (1 + at) * half], axis=-1) < radius[:, None]
    else:
        near = jnp.concatenate([at > AT_CUT, at < -AT_CUT], axis=-1)
    return ~jnp.any(space.open & near, axis=-1) & (found.status != EMPTY)


def _ended(found: Minimum, settled: jax.Array) -> Minimum:
    """Return the record after the last cut: what has not settled by then is empty, or has no minimum."""
    falls = ~settled & (found.status != EMPTY)
    status = jnp.where(falls & (found.status != BROKEN), UNBOUNDED, found.status)
    lost, nowhere = status > UNCERTIFIED, (status == EMPTY) | (status == BROKEN)
    return found._replace(
        x=jnp.where(nowhere[:, None], jnp.nan, found.x),
        value=jnp.where(nowhere, jnp.nan, found.value),
        lower_bound=jnp.where(lost, -jnp.inf, found.lower_bound),
        gap=jnp.where(lost, jnp.inf, found.gap),
        status=status,
    )


def _reported(
    path: Path,
    hull: ScalarHull,
    space: Region,
    constraints: Any,
    margin: jax.Array,
    tol: float,
    problems: tuple[int, ...],
) -> Minimum:
    """Return the record of a path's end, one row a problem, in the units of the model."""
    offset, factor = hull.output_mean, hull.output_scale
    x = hull.input_mean + hull.input_scale * space.place(path.best_v)
    outside = jnp.zeros_like(space.empty)
    if isinstance(constraints, Box):  # rounding must not lead out of it
        bounds = [jnp.asarray(side, jnp.float64) for side in (constraints.lower, constraints.upper)]
        low, high = (jnp.broadcast_to(b, (*problems, x.shape[-1])).reshape(x.shape) for b in bounds)
        x = jnp.minimum(jnp.maximum(x, low), high)
    if isinstance(constraints, Polytope):
        outside = _outside(x, hull, constraints, problems)
    value = offset + factor * hull.value(hull.normalized(x))
    lower = offset + factor * path.low
    gap = value - lower + factor * margin
    gap = jnp.where(outside, jnp.inf, gap)
    broken = ~(jnp.isfinite(value) & jnp.isfinite(path.best))
    status = jnp.where(gap <= tol * (1 + jnp.abs(value)), SOLVED, UNCERTIFIED)
    for code, which in ((BROKEN, broken), (EMPTY, space.empty)):
        status = jnp.where(which, code, status)
    return Minimum(x, value, lower, gap, path.iterations, status)


def _outside(x: jax.Array, hull: ScalarHull, polytope: Polytope, problems: tuple[int, ...]) -> jax.Array:
    """Return whether points, (B, D), break a row by more than the rounding of x and of the row."""
    A, b = jnp.asarray(polytope.A, jnp.float64), jnp.asarray(polytope.b, jnp.float64)
    A = jnp.broadcast_to(A, (*problems, *A.shape[-2:])).reshape(len(x), *A.shape[-2:])
    b = jnp.broadcast_to(b, (*problems, b.shape[-1])).reshape(len(x), b.shape[-1])
    sizes = jnp.abs(x) + jnp.abs(hull.input_mean) + hull.input_scale
    rounding = jnp.abs(b) + jnp.einsum("bmd,bd->bm", jnp.abs(A), sizes)
    left = jnp.einsum("bmd,bd->bm", A, x) - b
    return jnp.any(left > 4 * (x.shape[-1] + 8) * EPSILON * rounding, axis=-1)


def _moved(space: Region, v: jax.Array, z: jax.Array) -> jax.Array:
    """Return the point nine tenths of the way from v towards z, or as far as the region goes; v for a z not finite."""
    z = jnp.where(jnp.isfinite(z), z, space.place(v))
    step = jnp.einsum("bij,bj->bi", jnp.linalg.pinv(space.basis), z - space.center) - v
    return v + jnp.clip(0.9 * space.reach(v, step), max=1.0)[:, None] * step


def checked_tolerance(owner: str, tol: Any) -> None:
    """Check that `tol` is a number in (0, 1]; a traced one is taken as it is."""
    if isinstance(tol, jax.core.Tracer):
        return
    if isinstance(tol, bool) or not hasattr(tol, "__float__") or not 0 < tol <= LARGEST_TOLERANCE:
        fail(owner, "tol", "a number in (0, 1]", repr(tol), "Pass tol=1e-6.")


def checked_point(owner: str, x0: Any, in_dim: int, problems: tuple[int, ...]) -> Any:
    """Return the starting points in float64 after the check of their shape and, where known, of their values."""
    if not hasattr(x0, "shape"):
        fail(owner, "x0", "an array", type(x0).__name__, "Convert it to an array first.", TypeError)
    start = x0 if isinstance(x0, jax.core.Tracer) else np.asarray(x0, np.float64)
    try:
        fits = start.shape[-1] == in_dim
        jnp.broadcast_shapes(problems, tuple(start.shape[:-1]))
    except (ValueError, IndexError):
        fits = False
    if not fits:
        rule = f"[..., in_dim={in_dim}], leading axes as the set's {list(problems)}"
        fail(owner, "x0", rule, describe(x0), "Give one point a problem.")
    if isinstance(start, np.ndarray) and not np.isfinite(start).all():
        fail(owner, "x0", "finite numbers", "inf or nan", "Leave x0 out, or give a point.")
    return start

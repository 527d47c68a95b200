"""Sets that are cut off: whether the cut was far enough, and a direction in which a hull falls without end.

A convex function that is nowhere lower on the faces of a cut than at a point inside is nowhere lower outside. Where a
hull is flat, no face tells that. Its recession function does, `lim f(t d) / t` (Rockafellar, Convex Analysis, section
8): the hull falls without end along the directions d of the set in which that is negative, and along no others.

Letters: B problems, D in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..arrays import Array, library, like, namespace, zeros
from ..hull.activations import ACTIVATIONS, Activation
from .central_path import LEAST_WIDTH, Path, Problem, follow_path
from .regions import Region, half_spaces, is_outside
from .scalar_hull import ScalarHull
from .sets import Polytope

FAR = 3e3  # input scales from the mean of the inputs: where a set is cut at least, if the faces of the cut do not tell
CUT_TOLERANCE = 1e-9  # of the value: a fall of no more between two cuts counts as none


class Cut(NamedTuple):
    """Problems over sets that are cut off where they have no bound, or one further out.

    Args:
        hull: what is minimized; constraints: the sets, with leading axes `problems`; tol: as of `minimize`.
        endless: (B, 2 D), which sides have no bound; fall: (B, D), a direction without end, or 0.
        far: (B,), input scales from the mean of the inputs to the cuts; idle: (B,), problems that are settled.
        asks: (), whether directions without end are asked for, and no minimum.
    """

    hull: ScalarHull
    constraints: Any
    tol: Any
    problems: tuple[int, ...]
    endless: Array
    fall: Array
    far: Array
    idle: Array
    asks: Array


def is_far_enough(cut: Cut, path: Path, space: Region, margin: Array) -> Array:
    """Return whether nothing outside of the cuts is lower, (B,).

    With strong convexity mu the minimum is no further from a point of the set than `2 ||slope|| / mu`, slope a
    subgradient there. Without, the faces of the cut are searched.

    Args:
        path, space: the end of the path, and the sets.
        margin: for rounding, (B,).
    """
    xp, mu = namespace(path.v), cut.hull.config.strong_convexity
    if mu == 0:
        return search_faces(cut, space, path.best + 2 * margin)
    z, at = space.place(path.best_v), space.outer(path.best_v)
    width = xp.full_like(path.width, LEAST_WIDTH)
    radius = 2.01 / mu * xp.linalg.vector_norm(cut.hull.expand(z, width).slope, axis=-1)
    half = xp.linalg.diagonal(space.basis if space.frame is None else space.frame.basis)
    near = xp.concat([(1 - at) * half, (1 + at) * half], axis=-1) < radius[:, None]
    return ~xp.any(space.open & near, axis=-1)


def search_faces(cut: Cut, space: Region, least: Array) -> Array:
    """Return whether lower bounds of the hull on the faces of the cuts are not below `least`, (B,).

    Those of a polytope are not searched: they may leave out much of the faces of its cube.
    """
    xp, (B, D), is_cut = namespace(least), cut.fall.shape, namespace(least).any(space.open, axis=-1)
    if isinstance(cut.constraints, Polytope):
        return ~is_cut
    sides, twice = xp.concat([space.rows, space.rows]), xp.concat([least, least])
    zero, ones, both = xp.zeros_like(sides[:, 0]), xp.ones_like(sides[..., 0]), cut.hull.twice()

    def goes_on(state: tuple[Array, Array]) -> Array:
        k, holds = state
        return (k < D) & xp.any(holds)

    def search(state: tuple[Array, Array]) -> tuple[Array, Array]:
        k, holds = state
        here = xp.arange(D, **like(least)) == k
        idle = ~xp.concat([xp.any(side & here, axis=-1) & holds for side in (space.open[:, :D], space.open[:, D:])])
        shift, basis = xp.sum(xp.where(here, space.basis, 0.0), axis=-1), xp.where(here, 0.0, space.basis)
        ends, basis = xp.concat([space.center + shift, space.center - shift]), xp.concat([basis, basis])
        face = Region("cube", ends, basis, sides, ones, 0, zero, zero > 0, idle)

        def early(best: Array, low: Array) -> Array:
            return idle | (low >= twice) | (best < twice)

        path = follow_path(Problem(both, face, zero, xp.zeros_like, early, xp.zeros_like(twice)), zero)
        higher = idle | (path.low >= twice)
        return k + 1, holds & higher[:B] & higher[B:]

    asked = is_cut & ~(cut.idle | space.empty | cut.asks | xp.any(cut.fall != 0, axis=-1))
    return library(least).while_loop(goes_on, search, (zeros((), least), asked))[1] | ~is_cut


@dataclass(frozen=True, eq=False)
class RecessionHull(ScalarHull):
    """The recession function of a hull: without its constants, a relu for every activation, the maximum as fusion."""

    @property
    def activation(self) -> Activation:
        """A relu in units of the deviation of the hull's activation."""
        return replace(ACTIVATIONS["relu"], mean=0.0, deviation=super().activation.deviation)


def recession_hull(hull: ScalarHull) -> RecessionHull:
    """Return the recession function of a hull, in normalized units on both sides."""
    xp = namespace(hull.shifts)
    names = ("bias", "shifts", "input_mean", "output_mean")
    zero = {name: xp.zeros_like(getattr(hull, name)) for name in names}
    one = {name: xp.ones_like(getattr(hull, name)) for name in ("input_scale", "output_scale")}
    layers = [layer | {"bias": xp.zeros_like(layer["bias"])} for layer in hull.layers]
    return RecessionHull(**(vars(hull) | zero | one | {"layers": layers, "temperature": None}))


def find_fall(cut: Cut, v: Array, cone: Region, bounded: Array) -> Array:
    """Return a direction of each set in which the hull falls without end, (B, D), in normalized units; 0 for none.

    It lies in the set's recession cone up to rounding, and the recession function is below 0 there by more than that.

    Args:
        v: (B, d), inside the recession cones; bounded: (B,), sets that are not asked about.
    """
    flat, xp = recession_hull(cut.hull), namespace(v)
    zero, margin = xp.zeros_like(cone.center), flat.rounding(cone.extent())

    def early(best: Array, low: Array) -> Array:
        return bounded | (low > -8 * margin) | ((best < -8 * margin) & (best < 0.5 * low))

    path = follow_path(Problem(flat, cone, zero, lambda best: 4 * margin, early, margin), v)
    d, A = cone.place(path.best_v), half_spaces(cut.constraints, cut.hull, cut.problems)[2] * cut.hull.input_scale
    falls = (flat.value(d) < -8 * margin) & ~is_outside(d, A, xp.zeros_like(A[..., 0]), flat) & ~bounded
    size = xp.max(xp.abs(d), axis=-1)
    return xp.where(falls[:, None], d / xp.where(falls, size, 1.0)[:, None], 0.0)

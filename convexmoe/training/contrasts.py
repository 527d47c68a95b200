"""Whether rows contradict a convex function: contrasts that no convex function makes positive, and a bootstrap.

Of a row x_i and weights l_j >= 0 with sum 1 and sum_j l_j x_j = x_i, Jensen's inequality says of every convex f that

    f(x_i) - sum_j l_j f(x_j) <= 0                equal for a plane.

So is any mean of such contrasts over rows i. The statistic is the largest of some hundreds, each over its deviation;
its distribution under a plane, where it is largest, comes from resampled residuals of a smoother that may be bent
either way. Nothing is fitted that is convex, so that no error of such a fit is taken for a contradiction.

Source: inequalities of moments and the bootstrap of their maximum: Chernozhukov, Chetverikov and Kato, Inference on
causal and structural parameters using many moment inequalities, Review of Economic Studies 86, 2019. Differs from the
source: the weights l come from kernels, tilted exponentially until they balance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import describe, fail, one_of, whole_number
from ..hull.rows import as_numbers, check_finite
from .curvature import CONCAVE, CONVEX

MOST_ROWS, MOST_CENTERS, WINDOWS, MOST_DIRECTIONS = 1000, 300, 12, 25
AROUND, ALONG, REACH = (0.3, 0.6, 1.2), 0.8, (0.35, 0.7)  # widths, in deviations of the columns
TOLERANCE, ROUNDS, FARTHEST = 1e-8, 25, 40.0
LANDMARKS, WIDTHS, PENALTIES = 150, np.array([0.5, 1.0, 2.0]), np.geomspace(1e-8, 1e2, 21)
NEAR, COST, LEAST_FREEDOM = 0.5, 1.4, 0.1  # the width of a local variance; of a degree of freedom, and of a row's
SMOOTHERS = ((WIDTHS[:0], 0.01), (WIDTHS[:0], 0.01), (WIDTHS, 0.5))  # the last bends; the least variance, over the mean
LEAST_NOISE = 1e-6  # of the deviation of y: what is less may be the error of the weights
RANK = 1e-9  # of the largest singular value
FEW = 3  # rows between others that a contrast has at least

Array = np.ndarray


class ConvexityTest(NamedTuple):
    """What rows say against a convex, or a concave, function.

    Args:
        p_value: how often a function of that curvature, a plane at worst, would look as bent the other way by chance.
        statistic: of the strongest contrast, in deviations of its own; 0 where there is none.
        at: about where it is, the mean of its rows; `(in_dim,)` numbers, none where there is none.
        rows: how many rows were asked; between: the share of them that lie between others, and can contradict.
    """

    p_value: float
    statistic: float
    at: tuple[float, ...]
    rows: int
    between: float


def convexity_test(
    x: Any, y: Any, context: Any = None, *, curvature: str = CONVEX, draws: int = 999, seed: int = 0
) -> ConvexityTest:
    """Return whether rows contradict a mean that is convex in x, with a p-value.

    Guarantee: for independent errors the p-value is below a level about as often as that under a plane, and less often
    under any other convex function (`tests/test_contrasts.py`; docs/pages/numbers.md has figures). A large one does not
    say that the function is convex; where no row lies between others, nothing could contradict, and it is 1.

    Args:
        x: `[rows, in_dim]`, original units; of more than 1,000 rows so many, drawn by the seed.
        y: `[rows]` or `[rows, 1]`.
        context: `[rows, context_dim]` or None: only rows of equal contexts are compared.
        curvature: "convex", or "concave": whether the rows contradict that.
        draws: of the bootstrap, >= 19.
        seed: of the draws.

    Raises:
        TypeError, ValueError: numbers of the wrong shape, or not finite.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(-1, 1, (200, 2))
    >>> bent = np.sum(x**2, axis=1) + 0.1 * rng.normal(size=200)
    >>> convexity_test(x, bent).p_value > 0.5, convexity_test(x, -bent).p_value
    (True, 0.001)
    """
    one_of("convexity_test", "curvature", curvature, (CONVEX, CONCAVE))
    whole_number("convexity_test", "draws", draws, 19)
    whole_number("convexity_test", "seed", seed, 0)
    x, y, groups = check_rows(x, y, context)
    rng = np.random.default_rng(seed)
    if len(x) > MOST_ROWS:
        some = np.sort(rng.choice(len(x), MOST_ROWS, replace=False))
        x, y, groups = x[some], y[some], groups[some]
    z = span(standardize(x[:, (x != x[0]).any(axis=0)]))
    columns = np.column_stack([z, one_hot(groups)])
    nothing = ConvexityTest(1.0, 0.0, (), len(x), 0.0)
    if not z.shape[1] or len(z) < 4 * (columns.shape[1] + 1) or (y == y[0]).all():
        return nothing
    y = standardize(y) * (1.0 if curvature == CONVEX else -1.0)
    weights, places, between = contrasts(z, groups, rng)
    if not len(weights):
        return nothing._replace(between=between)
    p_value, statistic, first = bootstrap(weights, columns, y, draws, rng)
    return ConvexityTest(p_value, statistic, tuple((places[first] @ x).tolist()), len(x), between)


def bootstrap(
    weights: Array, columns: Array, y: Array, draws: int, rng: np.random.Generator
) -> tuple[float, float, int]:
    """Return the p-value of the strongest contrast, how strong it is, and its number.

    Args:
        weights: `[K, N]`, of the contrasts; columns: `[N, D]`, what the smoother reads; y: `[N]`, of deviation 1.
        draws, rng: of errors, from the residuals in units of their local deviation, under a plane.
    """
    variance = np.ones(len(y))
    for widths, least in SMOOTHERS:
        residual = leave_out_residuals(columns, y, variance, widths, rng)
        variance = local_variance(columns, residual, least)
    deviation = np.sqrt(weights**2 @ variance)
    errors = residual / np.sqrt(variance)
    errors = (errors - errors.mean()) / (errors.std() or 1.0)
    found = weights @ y / deviation
    first = int(np.argmax(found))
    drawn = rng.choice(errors, (draws, len(y))) * np.sqrt(variance)
    larger = int(np.sum(np.max(drawn @ weights.T / deviation, axis=1) >= found[first]))
    return (1 + larger) / (draws + 1), float(found[first]), first


def check_rows(x: Any, y: Any, context: Any) -> tuple[Array, Array, Array]:
    """Return x `[N, D]`, y `[N]` and the number of each row's context `[N]`, after their checks."""
    x, y = as_numbers("convexity_test", "x", x), as_numbers("convexity_test", "y", y)
    if x.ndim != 2 or not x.size:
        fail("convexity_test", "x", "[rows, in_dim]", describe(x), "Give one column for each input.")
    if y.shape not in ((len(x),), (len(x), 1)):
        fail("convexity_test", "y", f"targets [rows={len(x)}]", describe(y), "Give one number for each row of x.")
    given = {"x": x, "y": y}
    groups = np.zeros(len(x), np.int64)
    if context is not None:
        columns = as_numbers("convexity_test", "context", context)
        if columns.ndim != 2 or len(columns) != len(x):
            rule, fix = f"[rows={len(x)}, context_dim]", "Give one row of it for each row of x."
            fail("convexity_test", "context", rule, describe(columns), fix)
        given["context"] = columns
        groups = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
    for name, array in given.items():
        check_finite("convexity_test", name, array, "Remove that row or fill it.")
    return x, y.reshape(-1), groups


def standardize(numbers: Array) -> Array:
    """Return columns of mean 0 and deviation 1, divided by their largest numbers first: no square overflows or is 0."""
    numbers = numbers / np.abs(numbers).max(axis=0)
    numbers = numbers - numbers.mean(axis=0)
    return numbers / numbers.std(axis=0)


def span(z: Array) -> Array:
    """Return coordinates of rows in the space that they span, where that has fewer dimensions than columns."""
    if not z.size:
        return z
    _, sizes, axes = np.linalg.svd(z, full_matrices=False)
    rank = int(np.sum(sizes > RANK * sizes[0]))
    if rank == z.shape[1]:
        return z
    z = z @ axes[:rank].T
    return z / z.std(axis=0)


def one_hot(groups: Array) -> Array:
    """Return a column for each number but the first, `[N, groups - 1]`."""
    return (groups[:, None] == np.unique(groups)[None, 1:]).astype(float)


def contrasts(z: Array, groups: Array, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Return contrasts `[K, N]`, of each the rows it is about, `[K, N]`, and the share of rows that lie between others.

    Args:
        z: `[N, D]`, of mean 0 and deviation 1; groups: `[N]`, equal where rows may be compared; rng: draws directions,
            centers and windows.
    """
    N, D = z.shape
    centers = np.sort(rng.permutation(N)[:MOST_CENTERS])
    about, at_end = z[centers], (z == z.min(axis=0)) | (z == z.max(axis=0))
    reach = (groups[centers][:, None] == groups) & (centers[:, None] != np.arange(N))
    for k in range(D):  # what lies at the end of a column lies between rows of the same value only
        reach &= ~at_end[centers, k][:, None] | (about[:, k][:, None] == z[:, k])
    _, inside = balance(reach.astype(float), z, about)
    centers, about, reach, share = centers[inside], about[inside], reach[inside], float(inside.mean())
    if not len(centers):
        return np.empty((0, N)), np.empty((0, N)), share
    middles = about[rng.permutation(len(about))[:WINDOWS]]
    apart = squares(middles, about) / D
    windows = np.concatenate([np.ones((1, len(about))), *(np.exp(-0.5 * apart / width**2) for width in REACH)])
    distance, found, places = squares(about, z), [], []
    for direction, width in [(None, width) for width in AROUND] + [(v, ALONG) for v in directions(D, rng)]:
        if direction is None:
            along, across = distance / (D * width**2), np.zeros(1)
        else:
            along = (z @ direction - (about @ direction)[:, None]) ** 2
            across = np.maximum(distance - along, 0.0) / (D * width**2)
        weights, balanced = balance(reach * along * np.exp(-0.5 * (along + across)), z, about)
        balanced &= np.sum(weights**2, axis=1) < 0.5
        used = windows * balanced
        used = used[used.sum(axis=1) >= FEW]
        used = used / used.sum(axis=1, keepdims=True)
        place = np.zeros((len(used), N))
        place[:, centers] = used
        found.append(place - used @ weights)
        places.append(place)
    return np.concatenate(found), np.concatenate(places), share


def directions(D: int, rng: np.random.Generator) -> list[Array]:
    """Return unit vectors along the axes, and as many as there is room for between two of them; none of one axis."""
    if D == 1:
        return []
    axes = np.eye(D)
    pairs = [(axes[i] + sign * axes[j]) / np.sqrt(2.0) for i in range(D) for j in range(i) for sign in (1.0, -1.0)]
    room = max(MOST_DIRECTIONS - D, 0)
    return [*axes[rng.permutation(D)[:MOST_DIRECTIONS]], *(pairs[k] for k in rng.permutation(len(pairs))[:room])]


def squares(some: Array, others: Array) -> Array:
    """Return the squared distances, `[n, N]`."""
    inner = np.sum(some**2, axis=1)[:, None] - 2.0 * some @ others.T + np.sum(others**2, axis=1)
    return np.maximum(inner, 0.0)


def balance(base: Array, z: Array, about: Array) -> tuple[Array, Array]:
    """Return weights `base exp(t' z)`, of sum 1, whose mean of z is a given point, `[n, N]`, and where there are any.

    They minimize `log sum_j base_j exp(t' (z_j - about))` over t, by Newton's method with a search along each step.

    Args:
        base: `[n, N]`, >= 0; z: `[N, D]`; about: `[n, D]`.
    """
    D, outer = z.shape[1], (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    with np.errstate(divide="ignore"):
        log_base = np.log(base)
    tilts, weights, balanced = np.zeros((len(base), D)), np.zeros_like(base), np.zeros(len(base), bool)

    def measure(rows: Array, tilt: Array) -> tuple[Array, Array]:
        log = log_base[rows] + tilt @ z.T
        top = log.max(axis=1, keepdims=True)
        exp = np.exp(log - top)
        total = exp.sum(axis=1, keepdims=True)
        return (top + np.log(total))[:, 0] - np.sum(tilt * about[rows], axis=1), exp / total

    rows = np.flatnonzero(np.count_nonzero(base, axis=1) > 1)
    value, part = measure(rows, tilts[rows])
    for _ in range(ROUNDS):
        mean = part @ z
        slope = mean - about[rows]
        done = np.abs(slope).max(axis=1, initial=0.0) < TOLERANCE
        weights[rows[done]], balanced[rows[done]] = part[done], True
        go_on = ~done & (np.abs(tilts[rows]).max(axis=1, initial=0.0) <= FARTHEST)
        rows, value, part, slope, mean = (array[go_on] for array in (rows, value, part, slope, mean))
        if not len(rows):
            break
        curve = (part @ outer).reshape(-1, D, D) - mean[:, :, None] * mean[:, None, :] + 1e-10 * np.eye(D)
        step = np.linalg.solve(curve, -slope[..., None])[..., 0]
        step *= np.minimum(1.0, 8.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-9))
        gain, length = np.sum(step * slope, axis=1), np.ones(len(rows))
        new, part = measure(rows, tilts[rows] + step)
        for _ in range(6):
            worse = np.flatnonzero(new > value + 1e-4 * length * gain + 1e-11)
            if not len(worse):
                break
            length[worse] *= 0.4
            shorter = tilts[rows[worse]] + length[worse, None] * step[worse]
            new[worse], part[worse] = measure(rows[worse], shorter)
        tilts[rows] += length[:, None] * step
        value = new
    return weights, balanced


def leave_out_residuals(columns: Array, y: Array, variance: Array, widths: Array, rng: np.random.Generator) -> Array:
    """Return y minus what a smoother says of each row without it, `[N]`: a plane and bumps around some of the rows.

    Rows weigh one over their variance, `[N]`: else it would follow the noise where that is large, and leave too little
    of it. Without widths of bumps it is the plane; else width and penalty are those of the least error by generalized
    cross-validation, of half the degrees of freedom at most, each counted as 1.4: Kim and Gu, Smoothing spline Gaussian
    regression, Journal of the Royal Statistical Society B 66, 2004.
    """
    N, root = len(columns), 1.0 / np.sqrt(variance)
    basis, _ = np.linalg.qr(root[:, None] * np.column_stack([np.ones(N), columns]))
    plane = root * y - basis @ (basis.T @ (root * y))
    distance = squares(columns, columns[rng.permutation(N)[:LANDMARKS]])
    best, least = (np.empty((N, 0)), np.empty(0), np.empty(0)), np.inf
    for width in widths:
        bumps = root[:, None] * np.exp(-0.5 * distance / (columns.shape[1] * width**2))
        axes, sizes, _ = np.linalg.svd(bumps - basis @ (basis.T @ bumps), full_matrices=False)
        share, along = (sizes / (sizes[0] or 1.0)) ** 2, axes.T @ plane
        for penalty in PENALTIES:
            kept = share / (share + penalty)
            freedom = N - COST * (basis.shape[1] + kept.sum())
            error = (plane @ plane - np.sum(along**2 * (2.0 * kept - kept**2))) / max(freedom, 1.0) ** 2
            if freedom >= N / 2 and error < least:
                best, least = (axes, kept, along), error
    axes, kept, along = best
    freedom = 1.0 - np.sum(basis**2, axis=1) - axes**2 @ kept
    return (plane - axes @ (kept * along)) / (np.maximum(freedom, LEAST_FREEDOM) * root)


def local_variance(columns: Array, residual: Array, least: float) -> Array:
    """Return the mean of the squared residuals around each row, `[N]`, a given part of that of all at least."""
    near = np.exp(-0.5 * squares(columns, columns) / (columns.shape[1] * NEAR**2))
    square = residual**2
    around = near @ square / near.sum(axis=1)
    return np.maximum(np.maximum(around, least * square.mean()), LEAST_NOISE**2)

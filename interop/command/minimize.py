"""`convexmoe minimize`: the minimum of a saved hull over a box in original units, and what binds there."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from convexmoe.errors import InputError, refuse
from convexmoe.minimization.minimum import UNBOUNDED

from ..frameworks import LABELS, Framework, choose
from .leverage import outside, read_ranges
from .options import FrameworkOption, HullArgument
from .output import digits_of, say, tabulate, terminal
from .saved_model import columns_of, explain_sign, read_hull, sign_of
from .tables import shorten

OWNER = "convexmoe minimize"
BOX_HELP = 'Bounds of a column, as "0<=weight<=4", "weight>=0" or "weight=3"; may be repeated.'
BINDING_TOLERANCE = 1e-7  # of the gaps that tell what binds; kinks seldom allow less
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf"
_BETWEEN = re.compile(rf"^\s*({_NUMBER})\s*(<=|>=)\s*(.+?)\s*\2\s*({_NUMBER})\s*$")
_ONE_SIDED = re.compile(rf"^\s*(.+?)\s*(<=|>=|==|=)\s*({_NUMBER})\s*$")
_TURNED = re.compile(rf"^\s*({_NUMBER})\s*(<=|>=|==|=)\s*(.+?)\s*$")
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class BoxMinimum:
    """The minimum of a saved hull.

    Attributes:
        columns: names of the inputs; target: of what the model predicts.
        lower, upper, x: `[in_dim]`, in original units.
        value, gap: of the target; certified: whether the gap is within the tolerance.
        binding: for each column "lower", "upper", "fixed" or "".
        remarks: how point and value lie outside the training rows, in sentences; none where they do not.
    """

    columns: tuple[str, ...]
    target: str
    lower: Vector
    upper: Vector
    x: Vector
    value: float
    gap: float
    certified: bool
    binding: tuple[str, ...]
    remarks: tuple[str, ...]


def minimize_file(
    model: HullArgument,
    box: Annotated[list[str] | None, typer.Option(help=BOX_HELP, show_default="the range it was trained on")] = None,
    tol: Annotated[float, typer.Option(help="Of the gap, relative to the value.")] = 1e-6,
    output: Annotated[
        int | None, typer.Option(help="Which output, counted from 0.", show_default="the only one")
    ] = None,
    framework: FrameworkOption = None,
) -> None:
    """Minimize a saved hull over a box: prints the point, the value, the certified gap, and what binds."""
    if not 0 < tol <= 1:
        refuse(f"{OWNER} --tol", "a number in (0, 1]", f"{tol:g}", "Try --tol 1e-6.")
    side = choose(framework)
    with side.quiet(), terminal(stderr=True).status(f"Minimizing in {LABELS[side.name]}"):
        minimum = minimize(model, side, box or (), tol, output)
    lines = []
    for name, low, x, high, binds in zip(
        minimum.columns, minimum.lower, minimum.x, minimum.upper, minimum.binding, strict=True
    ):
        more = digits_of(x, high - low, 0) if 0 < high - low < math.inf else 0
        numbers = (f"{low:.{6 + more}g}", f"{x:.{8 + more}g}", f"{high:.{6 + more}g}")
        lines.append((shorten([name]), *numbers, binds))
    tabulate({"column": "left", "lower": "right", "minimum at": "right", "upper": "right", "binds": "left"}, lines)
    digits = max(9, digits_of(minimum.value, minimum.gap or 1e-6, 2))
    say(f"{minimum.target} = {minimum.value:.{digits}g}")
    words, bound = "certified" if minimum.certified else "wider than asked for", minimum.value - minimum.gap
    say(f"No point of the box is lower than {bound:.{digits}g}: a gap of {minimum.gap:.3g}, {words}.")
    for remark in minimum.remarks:
        say(remark)
    if not minimum.certified:
        raise typer.Exit(1)


def minimize(path: Path, framework: Framework, boxes: Sequence[str], tol: float, output: int | None) -> BoxMinimum:
    """Return the minimum of the hull in a file over a box.

    Args:
        path: the file.
        framework: the one that runs it.
        boxes: bounds as `0<=weight<=4`, `weight>=0`, `weight=3`; for other columns and sides the range of the rows it
            was trained on, where the file knows it.
        tol: of the gap, relative.
        output: which output, counted from 0, or None for the only one.

    Raises:
        InputError: no such model, column or output; a bound that cannot be read; no bound and no range; no minimum.
    """
    model, notes = read_hull(path, framework)
    if sign_of(path, notes) < 0:
        got = "a concave one, least at corners of a box: what can be certified is its largest"
        fix = "Minimize that hull in Python: its least value is minus the target's largest."
        refuse(path, "a convex function, for its least value", got, f"{explain_sign(notes)[0]} {fix}")
    in_dim, out_dim = model.config.in_dim, model.config.out_dim
    columns = columns_of(notes, in_dim) or tuple(f"x{k}" for k in range(in_dim))
    if output is None and out_dim > 1:
        refuse(f"{OWNER} --output", f"one of the {out_dim} outputs of {path}", "none", "Try --output 0.")
    if output is not None and not 0 <= output < out_dim:
        rule = f"a whole number from 0 to {out_dim - 1}"
        refuse(f"{OWNER} --output", rule, str(output), "Try --output 0.")
    lower, upper = _bounds(boxes, columns, notes)
    package = framework.package
    try:
        minimum = package.minimize(model, package.Box(lower, upper), tol=tol, output=output)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    x, value, gap = np.asarray(minimum.x, np.float64), float(minimum.value), float(minimum.gap)
    allowed = tol * (1 + abs(value))
    binding = binding_sides(package, model, lower, upper, output)
    target = notes.get("target")
    name = target if isinstance(target, str) else "output" if output is None else f"output {output}"
    of_output = notes if out_dim == 1 else notes | {"target_range": None}
    remarks = tuple(_remarks(of_output, columns, shorten([name]), x, (value - gap, value + gap)))
    return BoxMinimum(columns, name, lower, upper, x, value, gap, gap <= allowed, binding, remarks)


def binding_sides(package: Any, model: Any, lower: Vector, upper: Vector, output: int | None) -> tuple[str, ...]:
    """Return for each column "lower", "upper", "fixed" or "".

    A bound binds without which the minimum is lower, by more than the gap: it is minimized again without each.
    """
    D = len(lower)
    lows, highs = (np.tile(side, (2 * D + 1, 1)) for side in (lower, upper))
    lows[np.arange(D), np.arange(D)], highs[np.arange(D, 2 * D), np.arange(D)] = -np.inf, np.inf
    found = package.minimize(model, package.Box(lows, highs), tol=BINDING_TOLERANCE, output=output)
    *values, _ = np.where(np.asarray(found.status) == UNBOUNDED, -np.inf, np.asarray(found.value, np.float64))
    binds = np.array(values).reshape(2, D) < float(found.lower_bound[-1])
    return tuple(np.select([lower == upper, *binds], ["fixed", "lower", "upper"], "").tolist())


def _remarks(notes: dict[str, Any], columns: Sequence[str], target: str, x: Vector, ends: Sequence[float]) -> list[str]:
    """Return in sentences how a point, and an interval of the value there, lie outside the training rows."""
    lines, place = [], outside(notes, x[None])
    if names := list(compress(columns, place.beyond[0])):
        lines.append(f"The point is out of the range of the training rows in {shorten(names)}.")
    if place.combined[0]:
        far = f"{place.distance[0]:#.4g} times as far as the farthest"
        lines.append(f"No training row is as far from their mean, along their spread, as this point: it is {far}.")
    least, most = read_ranges(notes, "target_range", (2,))
    if ends[1] < least:
        lines.append(f"The value is below every {target} of the training rows, the least {least:.9g}.")
    elif ends[0] > most:
        lines.append(f"The value is above every {target} of the training rows, the largest {most:.9g}.")
    return [*lines, "Nothing like it was seen: narrow the box with --box."] if lines else []


def _bounds(boxes: Sequence[str], columns: tuple[str, ...], notes: dict[str, Any]) -> tuple[Vector, Vector]:
    """Return the bounds of every column after all checks."""
    given: dict[str, tuple[float | None, float | None]] = {}
    for text in boxes:
        name, low, high = read_box(text)
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1, cutoff=0.0)
            rule, fix = f"one of the columns {shorten(columns)}", f"The closest is {close[0]!r}."
            refuse(f"{OWNER} --box", rule, repr(shorten([name])), fix)
        if name in given:
            refuse(f"{OWNER} --box", "one box a column", f"two for {name!r}", "Join them.")
        given[name] = (low, high)
    ranges = read_ranges(notes, "ranges", (len(columns), 2))
    missing = [name for k, name in enumerate(columns) if name not in given and math.isnan(ranges[k, 0])]
    if missing:
        rule = "bounds for every column, as the file has no ranges"
        fix = f'Add --box "0<={missing[0]}<=1".'
        refuse(f"{OWNER} --box", rule, f"none for {shorten(missing)}", fix)
    lower, upper = np.where(np.isnan(ranges.T), [[-np.inf], [np.inf]], ranges.T)
    for k, name in enumerate(columns):
        low, high = given.get(name, (None, None))
        lower[k] = lower[k] if low is None else low
        upper[k] = upper[k] if high is None else high
        if lower[k] > upper[k]:
            fix = "Give both bounds: the other is that of training." if None in (low, high) else "Exchange them."
            refuse(f"{OWNER} --box", f"lower <= upper for {name!r}", f"{lower[k]:g} and {upper[k]:g}", fix)
    return lower, upper


def read_box(text: str) -> tuple[str, float | None, float | None]:
    """Return the column, and the bounds that a box states."""
    low: float | None
    high: float | None
    if match := _BETWEEN.match(text):
        name, ends = match[3], (float(match[1]), float(match[4]))
        low, high = ends if match[2] == "<=" else ends[::-1]
    elif match := _ONE_SIDED.match(text) or _TURNED.match(text):
        turned = match.re is _TURNED
        name, bound = (match[3], float(match[1])) if turned else (match[1], float(match[3]))
        low = None if match[2] == (">=" if turned else "<=") else bound
        high = None if match[2] == ("<=" if turned else ">=") else bound
    else:
        refuse(f"{OWNER} --box", 'bounds as "0<=weight<=4"', repr(shorten([text])), "Write numbers and a column.")
    if low == math.inf or high == -math.inf:
        fix = f'Write "{name}<=inf" for no bound above.'
        refuse(f"{OWNER} --box", "a finite number", repr(shorten([text])), fix)
    return name, low, high

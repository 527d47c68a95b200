"""`convexmoe minimize`: the best value of a saved hull over a box in original units, and what binds there."""

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
from .at import NUMBER, OWNER, read_context
from .design import Design, read_design
from .leverage import outside, read_ranges
from .options import FrameworkOption, HullArgument
from .output import conclude, digits_of, say, tabulate, terminal
from .saved_model import as_target, columns_of, read_hull
from .tables import NONE, shorten

BOX_HELP = 'Bounds of a column, as "0<=weight<=4", "weight>=0" or "weight=3"; may be repeated.'
AT_HELP = "The context, as season=2,region=north: a value for each of its columns."
BINDING_TOLERANCE = 1e-7  # of the gaps that tell what binds; kinks seldom allow less
_BETWEEN = re.compile(rf"^\s*({NUMBER})\s*(<=|>=)\s*(.+?)\s*\2\s*({NUMBER})\s*$")
_ONE_SIDED = re.compile(rf"^\s*(.+?)\s*(<=|>=|==|=)\s*({NUMBER})\s*$")
_TURNED = re.compile(rf"^\s*({NUMBER})\s*(<=|>=|==|=)\s*(.+?)\s*$")
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class BoxMinimum:
    """The minimum of a saved convex hull, or the maximum of a concave one.

    Attributes:
        columns: names of the inputs; target: of what the model predicts.
        is_largest: whether it is the maximum.
        lower, upper, x: `[in_dim]`, in original units.
        value, bound, gap: of the target: no value is beyond the bound; certified: whether the gap is small enough.
        binding: for each column "lower", "upper", "fixed" or "".
        remarks: how point and value lie outside the training rows, and that these contradict the shape: in sentences.
    """

    columns: tuple[str, ...]
    target: str
    is_largest: bool
    lower: Vector
    upper: Vector
    x: Vector
    value: float
    bound: float
    gap: float
    certified: bool
    binding: tuple[str, ...]
    remarks: tuple[str, ...]


def minimize_file(
    model: HullArgument,
    box: Annotated[list[str] | None, typer.Option(help=BOX_HELP, show_default="the range it was trained on")] = None,
    at: Annotated[list[str] | None, typer.Option(help=AT_HELP, show_default=False)] = None,
    tol: Annotated[float, typer.Option(help="Of the gap, relative to the value.")] = 1e-6,
    output: Annotated[
        int | None, typer.Option(help="Which output, counted from 0.", show_default="the only one")
    ] = None,
    framework: FrameworkOption = None,
) -> None:
    """Minimize a saved hull over a box, or maximize a concave one: prints point, value, certified gap, what binds."""
    if not 0 < tol <= 1:
        refuse(f"{OWNER} --tol", "a number in (0, 1]", f"{tol:g}", "Try --tol 1e-6.")
    side = choose(framework)
    with side.quiet(), terminal(stderr=True).status(f"Searching in {LABELS[side.name]}"):
        minimum = minimize(model, side, box or (), tol, output, at or ())
    if not conclude(vars(minimum)):
        print_minimum(minimum)
    if not minimum.certified:
        raise typer.Exit(1)


def print_minimum(minimum: BoxMinimum) -> None:
    """Print the point between its bounds, the value, what is certified, and remarks."""
    end, beyond = ("maximum", "higher") if minimum.is_largest else ("minimum", "lower")
    lines = []
    for name, low, x, high, binds in zip(
        minimum.columns, minimum.lower, minimum.x, minimum.upper, minimum.binding, strict=True
    ):
        more = digits_of(x, high - low, 0) if 0 < high - low < math.inf else 0
        numbers = (f"{low:.{6 + more}g}", f"{x:.{8 + more}g}", f"{high:.{6 + more}g}")
        lines.append((shorten([name]), *numbers, binds))
    tabulate({"column": "left", "lower": "right", f"{end} at": "right", "upper": "right", "binds": "left"}, lines)
    digits = max(9, digits_of(minimum.value, minimum.gap or 1e-6, 2))
    say(f"{minimum.target} = {minimum.value:.{digits}g}")
    words = "certified" if minimum.certified else "wider than asked for"
    say(f"No point of the box is {beyond} than {minimum.bound:.{digits}g}: a gap of {minimum.gap:.3g}, {words}.")
    for remark in minimum.remarks:
        say(remark)


def minimize(
    path: Path, framework: Framework, boxes: Sequence[str], tol: float, output: int | None, at: Sequence[str] = ()
) -> BoxMinimum:
    """Return the minimum of the hull in a file over a box, of a concave one the maximum.

    Args:
        path: the file.
        framework: the one that runs it.
        boxes: bounds as `0<=weight<=4`, `weight>=0`, `weight=3`; for other columns and sides the range of the rows it
            was trained on, where the file knows it.
        tol: of the gap, relative.
        output: which output, counted from 0, or None for the only one.
        at: the context, as `season=2,region=north`; a value for each of its columns.

    Raises:
        InputError: no such model, column or output; a bound or a context that cannot be read; no bound and no range; no
            context where there is one; no minimum.
    """
    model, notes = read_hull(path, framework)
    model = as_target(path, model, notes)
    in_dim, out_dim, width = model.config.in_dim, model.config.out_dim, model.config.context_dim
    columns = columns_of(notes, in_dim) or tuple(f"x{k}" for k in range(in_dim))
    contexts = (columns_of(notes, width, "context") or tuple(f"c{k}" for k in range(width))) if width else ()
    ranges = read_ranges(notes, "ranges", (in_dim + width, 2))[in_dim:]
    design = read_design(notes, (*columns, *contexts), in_dim) or Design((*columns, *contexts), in_dim, NONE)
    context = read_context(at, design, ranges.mean(axis=1))
    if output is None and out_dim > 1:
        refuse(f"{OWNER} --output", f"one of the {out_dim} outputs of {path}", "none", "Try --output 0.")
    if output is not None and not 0 <= output < out_dim:
        rule = f"a whole number from 0 to {out_dim - 1}"
        refuse(f"{OWNER} --output", rule, str(output), "Try --output 0.")
    lower, upper = _bounds(boxes, columns, contexts, notes, design.contexts)
    package = framework.package
    try:
        found, bound = _solve(package, model, package.Box(lower, upper), tol, output, context)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    x, value, gap = np.asarray(found.x, np.float64), float(found.value), float(found.gap)
    allowed = tol * (1 + abs(value))
    binding = binding_sides(package, model, lower, upper, output, context)
    target = notes.get("target")
    name = target if isinstance(target, str) else "output" if output is None else f"output {output}"
    of_output = notes if out_dim == 1 else notes | {"target_range": None}
    point = np.concatenate([x, () if context is None else context])
    remarks = _remarks(of_output, (*columns, *contexts), shorten([name]), point, (value - gap, value + gap))
    if isinstance(contradiction := notes.get("contradiction"), str):
        remarks.append(f"{contradiction} The model cannot follow them there: compare its point with the rows near it.")
    ends, is_largest = (lower, upper, x, value, float(bound), gap), model.config.is_concave
    return BoxMinimum(columns, name, is_largest, *ends, gap <= allowed, binding, tuple(remarks))


def _solve(package: Any, model: Any, box: Any, tol: float, output: int | None, context: Vector | None) -> Any:
    """Return the record of `minimize`, of a concave hull that of `maximize`, and its bound on the value."""
    if model.config.is_concave:
        found = package.maximize(model, box, tol=tol, output=output, context=context)
        return found, found.upper_bound
    found = package.minimize(model, box, tol=tol, output=output, context=context)
    return found, found.lower_bound


def binding_sides(
    package: Any, model: Any, lower: Vector, upper: Vector, output: int | None, context: Vector | None = None
) -> tuple[str, ...]:
    """Return for each column "lower", "upper", "fixed" or "".

    A bound binds without which the value is better, by more than the gap: it is looked for again without each.
    """
    D = len(lower)
    lows, highs = (np.tile(side, (2 * D + 1, 1)) for side in (lower, upper))
    lows[np.arange(D), np.arange(D)], highs[np.arange(D, 2 * D), np.arange(D)] = -np.inf, np.inf
    found, bounds = _solve(package, model, package.Box(lows, highs), BINDING_TOLERANCE, output, context)
    sign = -1.0 if model.config.is_concave else 1.0
    *values, _ = np.where(np.asarray(found.status) == UNBOUNDED, -np.inf, sign * np.asarray(found.value, np.float64))
    binds = np.array(values).reshape(2, D) < sign * float(bounds[-1])
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


def _bounds(
    boxes: Sequence[str],
    columns: tuple[str, ...],
    contexts: tuple[str, ...],
    notes: dict[str, Any],
    of_table: Sequence[str],
) -> tuple[Vector, Vector]:
    """Return the bounds of every column after all checks; `of_table` names the contexts as the table has them."""
    given: dict[str, tuple[float | None, float | None]] = {}
    for text in boxes:
        name, low, high = read_box(text)
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1, cutoff=0.0)
            fix = f"Use --at {name}=0." if name in of_table else f"The closest is {close[0]!r}."
            rule = f"one of the columns {shorten(columns)}"
            refuse(f"{OWNER} --box", rule, repr(shorten([name])), fix)
        if name in given:
            refuse(f"{OWNER} --box", "one box a column", f"two for {name!r}", "Join them.")
        given[name] = (low, high)
    ranges = read_ranges(notes, "ranges", (len(columns) + len(contexts), 2))[: len(columns)]
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
        fix = "Write a decimal point, as 2.5." if re.search(r"\d,\d", text) else "Write numbers and a column."
        refuse(f"{OWNER} --box", 'bounds as "0<=weight<=4"', repr(shorten([text])), fix)
    if low == math.inf or high == -math.inf:
        fix = f'Write "{name}<=inf" for no bound above.'
        refuse(f"{OWNER} --box", "a finite number", repr(shorten([text])), fix)
    return name, low, high

"""The work of `convexmoe minimize`: a saved hull over a box in original units, and what binds there."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as RichTable

from .frameworks import Framework
from .saved import read_hull
from .tables import InputError, shorten

__all__ = ["Found", "minimize", "show"]

OWNER = "convexmoe minimize"
AT = 1e-6  # of the width of a bound: as close as this binds
NEAR = 1e-2  # and as this, where the way to it is worth no more than the gap
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf"
_BETWEEN = re.compile(rf"^\s*({_NUMBER})\s*(<=|>=)\s*(.+?)\s*\2\s*({_NUMBER})\s*$")
_ONE_SIDED = re.compile(rf"^\s*(.+?)\s*(<=|>=|==|=)\s*({_NUMBER})\s*$")
_TURNED = re.compile(rf"^\s*({_NUMBER})\s*(<=|>=|==|=)\s*(.+?)\s*$")
_OTHER = {"<=": ">=", ">=": "<=", "==": "==", "=": "="}


@dataclass(frozen=True)
class Found:
    """The minimum of a saved hull.

    Attributes:
        columns: names of the inputs; target: of what the model predicts.
        lower, upper, x: `[in_dim]`, in original units.
        value, gap: of the target; certified: whether the gap is within the tolerance.
        binding: for each column "lower", "upper", "fixed" or "".
    """

    columns: tuple[str, ...]
    target: str
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    x: NDArray[np.float64]
    value: float
    gap: float
    certified: bool
    binding: tuple[str, ...]


def minimize(path: Path, framework: Framework, boxes: Sequence[str], tol: float, output: int | None) -> Found:
    """Return the minimum of the hull in a file over a box.

    Args:
        path: the file; boxes: bounds as `0<=weight<=4`, `weight>=0`, `weight=3`; for other columns and sides the
            range of the rows it was trained on, where the file knows it.
        tol: of the gap, relative; output: which output, counted from 0, or None for the only one.

    Raises:
        InputError: no such model, column or output; a bound that cannot be read; no bound and no range; no minimum.
    """
    model, notes = read_hull(path, framework)
    columns = _columns(notes, model.config.in_dim)
    if output is None and model.config.out_dim > 1:
        raise InputError(
            f"{OWNER} --output: expected one of the {model.config.out_dim} outputs of {path}; got none. Try --output 0."
        )
    if output is not None and not 0 <= output < model.config.out_dim:
        raise InputError(
            f"{OWNER} --output: expected a whole number from 0 to {model.config.out_dim - 1}; got {output}. "
            "Try --output 0."
        )
    lower, upper = _bounds(boxes, columns, notes)
    package = framework.package
    try:
        found = package.minimize(model, package.Box(lower, upper), tol=tol, output=output)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    x, value, gap = np.asarray(found.x, np.float64), float(found.value), float(found.gap)
    slope = np.asarray(package.max_affine(model, x[None], output=output).slopes, np.float64)[0]
    allowed = tol * (1 + abs(value))
    binding = _binding(x, lower, upper, slope, 4 * max(gap, allowed))
    target = notes.get("target")
    name = target if isinstance(target, str) else "output" if output is None else f"output {output}"
    return Found(columns, name, lower, upper, x, value, gap, gap <= allowed, binding)


def _binding(
    x: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    slope: NDArray[np.float64],
    worth: float,
) -> tuple[str, ...]:
    """Return for each column "lower", "upper", "fixed" or "".

    A bound binds that the point is at, or that the slope pushes it to: it stops before where the way left is worth no
    more than `worth`, though the whole width is worth more.
    """
    width = upper - lower
    at = AT * np.where(np.isfinite(width), width, 1.0)
    sides = []
    for rest, push in ((x - lower, slope), (upper - x, -slope)):
        with np.errstate(invalid="ignore"):  # 0 times an infinite width
            pushed = (push > 0) & (push * rest <= worth) & (push * width > worth) & (rest <= NEAR * width)
        sides.append((rest <= at) | pushed)
    return tuple(np.select([lower == upper, *sides], ["fixed", "lower", "upper"], "").tolist())


def show(found: Found, console: Console) -> None:
    """Print the point, the value, the gap, and what binds."""
    table = RichTable(box=None)
    for title in ("column", "lower", "minimum at", "upper", "binds"):
        table.add_column(title, justify="left" if title in ("column", "binds") else "right")
    rows = zip(found.columns, found.lower, found.x, found.upper, found.binding, strict=True)
    for name, low, x, high, binds in rows:
        table.add_row(shorten([name]), f"{low:.6g}", f"{x:.8g}", f"{high:.6g}", binds)
    console.print(table, markup=False)
    console.print(f"{found.target} = {found.value:.9g}", soft_wrap=True, highlight=False, markup=False)
    words = "certified" if found.certified else "wider than asked for"
    console.print(
        f"No point of the box is lower than {found.value - found.gap:.9g}: a gap of {found.gap:.3g}, {words}.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _columns(notes: dict[str, Any], in_dim: int) -> tuple[str, ...]:
    """Return the names of the inputs: those of the file, or x0, x1, ..."""
    columns = notes.get("columns")
    if isinstance(columns, list) and len(columns) == in_dim and all(isinstance(c, str) for c in columns):
        return tuple(columns)
    return tuple(f"x{k}" for k in range(in_dim))


def _ranges(notes: dict[str, Any], in_dim: int) -> NDArray[np.float64]:
    """Return `[in_dim, 2]`, the ranges of the rows trained on; NaN where the file does not know them."""
    unknown = np.full((in_dim, 2), math.nan)
    try:
        ranges = np.asarray(notes.get("ranges"), np.float64)
    except (TypeError, ValueError):
        return unknown
    good = ranges.shape == (in_dim, 2) and bool((ranges[:, 0] <= ranges[:, 1]).all())
    return ranges if good else unknown


def _bounds(
    boxes: Sequence[str], columns: tuple[str, ...], notes: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of every column after all checks."""
    given: dict[str, tuple[float | None, float | None]] = {}
    for text in boxes:
        name, low, high = _read(text)
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1, cutoff=0.0)
            raise InputError(
                f"{OWNER} --box: expected one of the columns {shorten(columns)}; got {shorten([name])!r}. "
                f"The closest is {close[0]!r}."
            )
        if name in given:
            raise InputError(f"{OWNER} --box: expected one box a column; got two for {name!r}. Join them.")
        given[name] = (low, high)
    lower, upper = _ranges(notes, len(columns)).T.copy()
    missing = [name for k, name in enumerate(columns) if name not in given and math.isnan(lower[k])]
    if missing:
        example = f"0<={missing[0]}<=1"
        raise InputError(
            f"{OWNER} --box: expected bounds for every column, as the file has no ranges; got none for "
            f'{shorten(missing)}. Add --box "{example}".'
        )
    for k, name in enumerate(columns):
        low, high = given.get(name, (None, None))
        ranges = (lower[k], upper[k])
        lower[k] = low if low is not None else -math.inf if math.isnan(ranges[0]) else ranges[0]
        upper[k] = high if high is not None else math.inf if math.isnan(ranges[1]) else ranges[1]
        if lower[k] > upper[k]:
            fix = (
                "Exchange them."
                if None not in (low, high)
                else "Give both bounds: the other is that of training."
            )
            raise InputError(
                f"{OWNER} --box: expected lower <= upper for {name!r}; got {lower[k]:g} and {upper[k]:g}. {fix}"
            )
    return lower, upper


def _read(text: str) -> tuple[str, float | None, float | None]:
    """Return the column, and the bounds that a box states."""
    low: float | None
    high: float | None
    if match := _BETWEEN.match(text):
        name, ends = match[3], (float(match[1]), float(match[4]))
        low, high = ends if match[2] == "<=" else ends[::-1]
    elif match := _ONE_SIDED.match(text):
        name = match[1]
        low, high = _sides(match[2], float(match[3]))
    elif match := _TURNED.match(text):
        name = match[3]
        low, high = _sides(_OTHER[match[2]], float(match[1]))
    else:
        raise InputError(
            f'{OWNER} --box: expected bounds as "0<=weight<=4"; got {shorten([text])!r}. Write numbers and a column.'
        )
    if low == math.inf or high == -math.inf:
        raise InputError(
            f"{OWNER} --box: expected a finite number; got {shorten([text])!r}. "
            f'Write "{name}<=inf" for no bound above.'
        )
    return name, low, high


def _sides(sign: str, bound: float) -> tuple[float | None, float | None]:
    """Return the lower and the upper bound that `column sign bound` states."""
    return None if sign == "<=" else bound, None if sign == ">=" else bound

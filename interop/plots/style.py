"""What all pictures share: colors, markers, names as they are, limits that no outlier moves, axes of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import fail, printable
from convexmoe.hull.rows import as_numbers

from .. import is_installed
from ..frameworks import not_installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Vector = NDArray[np.float64]
# Okabe and Ito's palette, told apart under the common color-vision deficiencies; markers and hatches tell all apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
OTHERS, INK, FAINT = "#BBBBBB", "#222222", "#666666"
WIDTH = 28  # letters of a name
FENCE = 3.0  # quartile ranges beyond the quartiles from which a value is far out (Tukey, 1977)


def new_axes(owner: str, ax: Any, count: int = 1) -> list[Axes]:
    """Return the axes to draw on: those given, as many as needed, or new ones side by side.

    Raises:
        InputError: matplotlib is not installed. ValueError: another number of axes.
    """
    if not count:
        fail(owner, "columns", "a column to draw", "none", "Leave columns out for those that there are.")
    if not is_installed("matplotlib"):
        not_installed(owner, "matplotlib to draw with", "it", "plot")
    if ax is not None:
        given = list(np.ravel(np.asarray(ax, object)))
        if len(given) != count or not all(hasattr(one, "contourf") for one in given):
            fail(owner, "ax", f"{count} axes, one a picture", f"{len(given)}: {given!r:.80}", "Leave it out for new.")
        return given
    from matplotlib import pyplot

    columns = columns_for(count)
    rows = -(-count // columns)
    _, grid = pyplot.subplots(rows, columns, squeeze=False, layout="constrained", figsize=(4.6 * columns, 3.6 * rows))
    for empty in grid.ravel()[count:]:
        empty.remove()
    return list(grid.ravel()[:count])


def columns_for(count: int) -> int:
    """Return how many of some panels stand side by side, 4 at most, so that few places stay empty.

    >>> [columns_for(count) for count in (1, 4, 5, 6, 7, 9)]
    [1, 4, 3, 3, 4, 3]
    """
    return count if count <= 4 else 3 if count in (5, 6, 9) else 4


def tidy(axes: Axes) -> None:
    """Take off the frame where nothing ends, draw a faint grid behind the data, and as many ticks as have room."""
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def place_legend(axes: Axes, **options: Any) -> None:
    """Put the legend above the axes, where no data are."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=8, borderaxespad=0.2, **options)


def in_digits(value: float, digits: int = 4) -> str:
    """Return a number to some digits, a large one below ten millions to the units: `109,821`."""
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"


def plain(name: object, width: int = WIDTH) -> str:
    """Return a name so that matplotlib draws it as it is, its middle cut out where it is long.

    Between two dollars matplotlib would read a formula.

    >>> print(plain("price in $"), plain("a_very_long_name_of_a_column_2024"))
    price in \\$ a_very_long_nam...olumn_2024
    """
    text = printable(str(name)).replace("\n", "\\n").replace("\t", "\\t")
    if len(text) > width:
        tail = (width - 3) * 2 // 5
        text = f"{text[: width - 3 - tail]}...{text[-tail:]}"
    return text.replace("$", r"\$")


def choose_fonts(names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return the families of fonts to draw names with, and the letters that none of them can draw."""
    from matplotlib import font_manager, rcParams

    get, letters = font_manager.get_font, {letter for name in names for letter in name}
    usual_letters = get(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    families, missing = list(rcParams["font.family"]), {c for c in letters if ord(c) not in usual_letters}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        usual = entry.style == "normal" and entry.weight in (400, "normal", "regular") and entry.stretch == "normal"
        if missing and usual and "Last Resort" not in entry.name:  # which has a box for each letter
            try:
                font = get(font_manager.findfont(entry.name))
                drawn = {letter for letter in missing if ord(letter) in font.get_charmap()}
                for letter in drawn:
                    font.load_char(ord(letter))
            except (OSError, RuntimeError):  # a damaged font, or one of colored pictures
                continue
            families, missing = families + [entry.name] * bool(drawn), missing - drawn
    return families, missing


def limits_of(values: Vector) -> tuple[float, float]:
    """Return the least and the largest of the values that are not far out, apart in any case.

    Far out is what lies more than three quartile ranges beyond the quartiles (Tukey, "Exploratory Data Analysis",
    1977); where half of the values are one number, that of the hundredths.

    >>> limits_of(np.array([1.0, 2.0, 3.0, 4.0, 1000.0])), limits_of(np.array([0.0] * 9 + [1.0]))
    ((1.0, 4.0), (0.0, 1.0))
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    for share in (0.25, 0.01):
        low, high = np.quantile(values, [share, 1 - share])
        if low < high:
            near = values[(values >= low - FENCE * (high - low)) & (values <= high + FENCE * (high - low))]
            return float(near.min()), float(near.max())
    low, high = float(values.min()), float(values.max())
    edge = 0.5 if low == high == 0 else 0.05 * abs(low) * (low == high)
    return low - edge, high + edge


def names_of(owner: str, x: Any, names: Sequence[str] | None, width: int) -> tuple[str, ...]:
    """Return the names of some columns: those given, those of a data frame, or `x0`, `x1`, ..."""
    if names is None:
        columns = [str(name) for name in getattr(x, "columns", ())]
        return tuple(columns) if len(columns) == width else tuple(f"x{k}" for k in range(width))
    if isinstance(names, str) or len(names) != width or len({*map(str, names)}) != width:
        fix = "Name the inputs, then the context."
        fail(owner, "names", f"{width} different names, one a column", repr(names)[:80], fix)
    return tuple(map(str, names))


def rows_of(owner: str, model: Any, x: Any, context: Any) -> Vector:
    """Return inputs and context of the rows of a hull side by side, `[N, in_dim + context_dim]`.

    Raises:
        ValueError: another number of columns, or of rows, or a value that is not finite.
    """
    config, parts = model.config, []
    for argument, given, width in (("x", x, config.in_dim), ("context", context, config.context_dim)):
        if given is None and width == 0:
            continue
        array = as_numbers(owner, argument, np.empty(0) if given is None else given)
        if array.ndim != 2 or array.shape[1] != width or not len(array):
            rule = f"rows, [N, {width}]"
            fail(owner, argument, rule, f"{list(array.shape)}", f"Pass the {argument} that the hull was fitted to.")
        if not np.isfinite(array).all():
            fail(owner, argument, "finite numbers", "NaN or infinity", "Leave these rows out.")
        parts.append(array)
    if len({len(part) for part in parts}) > 1:
        got, fix = f"{len(parts[1])} beside {len(parts[0])} of x", "Pass the same rows."
        fail(owner, "context", "as many rows as x", got, fix)
    return np.hstack(parts)


def column_of(owner: str, argument: str, wanted: Any, names: tuple[str, ...]) -> int:
    """Return the place of a column that is named, or given by its place."""
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    if not isinstance(wanted, (str, bool)) and hasattr(wanted, "__index__") and 0 <= int(wanted) < len(names):
        return int(wanted)
    rule = f"a column among {', '.join(map(plain, names[:8]))}{' ...' * (len(names) > 8)}"
    fail(owner, argument, rule, repr(wanted)[:80], "Name one of them, or pass its place.")

"""The rows that a hull is given: numbers of any library in float64, one rule for each kind of cell, and their units."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from numbers import Real
from typing import Any, NoReturn

import numpy as np
from array_api_compat import is_jax_array, is_torch_array
from numpy.typing import NDArray

from ..errors import describe, dtype_name, fail
from .config import HullConfig, Normalization

OTHERS = {  # kinds of dtypes that are no numbers: what they are, and what to do
    "M": ("dates", "Subtract one, then divide by a unit: (t - t[0]) / np.timedelta64(1, 's')."),
    "m": ("durations", "Divide them by a unit: t / np.timedelta64(1, 's')."),
    "c": ("complex numbers", "Pass the real part."),
}
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
CARRIED, HALF = 1e-4, 32
AT_ONCE = 2**13  # rows of which all hidden units are in memory
FEW_PETALS, LARGE_VALUES = 8, 2**22  # what `row_blocks` leaves in one block: so few petals, or values in so few bytes
TEXT = "Encode text and missing values first."


def row_blocks(rows: Any, config: HullConfig, itemsize: int) -> int:
    """Return in how many blocks of rows a hull computes, so that many petals need the memory of eight.

    The values of all petals, `[rows, P, out_dim]` and some arrays like it, are what a gradient keeps in memory. Of a
    block they are computed, fused, and computed again for the gradient. Rows that are fewer than the weights of a
    petal's output are one block: there the gradients of the parameters are what needs memory.

    Args:
        rows: how many there are; a compiler's symbol counts as few.
        config: the hull; itemsize: bytes of a number.

    >>> row_blocks(4096, HullConfig(8, petals=128, out_dim=16), 4), row_blocks(4096, HullConfig(8, petals=8), 4)
    (16, 1)
    """
    if not isinstance(rows, int) or rows <= config.in_dim + config.hidden_dim:
        return 1
    is_large = rows * config.petals * config.out_dim * itemsize > LARGE_VALUES
    return min(rows, -(-config.petals // FEW_PETALS)) if is_large else 1


def as_numbers(owner: str, argument: str, value: Any, *, may_be_traced: bool = False) -> NDArray[np.float64]:
    """Return numbers that a user gave as a numpy array in float64; NaN and infinity are left to the caller.

    Booleans, whole numbers, floats of any width, fractions and decimals are numbers, in arrays, tensors on any device
    (cut off from their gradient), frames, and nested lists.

    Args:
        owner, argument: who asks for what, for the messages.
        value: the numbers.
        may_be_traced: whether an array whose values a compiler hides is given back as it is.

    Raises:
        TypeError: text, dates, complex numbers, a structured array, a sparse matrix, or no array.
        ValueError: masked or missing cells (NA, None, NaT), which are counted; rows of unequal length; whole numbers
            that float64 would round.
    """
    try:
        array = to_array(value)
    except Exception as error:  # whatever a library raises for what numpy cannot read
        if may_be_traced and is_tensor(value):
            return value
        if isinstance(error, ValueError) and "inhomogeneous" in str(error):
            fix = "Give every row as many numbers."
            fail(owner, argument, "rows of equal length", f"a {type(value).__name__} of unequal ones", fix)
        fix = "Convert it to an array of numpy first."
        fail(owner, argument, "an array of numbers", type(value).__name__, fix, TypeError)
    if value is None:
        fail(owner, argument, "an array of numbers", "NoneType", "Pass rows of numbers.", TypeError)
    if array is None:
        got, fix = f"a sparse {type(value).__name__}", "Make it dense first: x.toarray(), or x.to_dense()."
        fail(owner, argument, "a dense array of numbers", got, fix, TypeError)
    if array.dtype.names is not None:
        fix = "Convert it first: numpy.lib.recfunctions.structured_to_unstructured(x)."
        fail(owner, argument, "a plain array of numbers", describe(array), fix, TypeError)
    if array.dtype.kind == "O":
        array = from_cells(owner, argument, array)
    if array.dtype.kind in OTHERS:
        what, fix = OTHERS[array.dtype.kind]
        fail(owner, argument, "numbers", f"{what}, {describe(array)}", fix, TypeError)
    if array.dtype.kind not in "fiub" and array.dtype.type.__module__ != "ml_dtypes":
        fail(owner, argument, "numbers", describe(array), TEXT, TypeError)
    numbers = array.astype(np.float64)
    if array.dtype.kind in "iu":
        with np.errstate(invalid="ignore"):  # 2**63 is no int64: it comes back as another number
            rounded = np.argwhere(numbers.astype(array.dtype) != array)
        if len(rounded):
            refuse_rounding(owner, argument, int(array[tuple(rounded[0])]), tuple(rounded[0]))
    return numbers


def is_tensor(value: Any) -> bool:
    """Return whether a value is an array of JAX, traced or not, or of PyTorch."""
    return is_jax_array(value) or is_torch_array(value)


def to_array(value: Any) -> np.ndarray | None:
    """Return what numpy makes of a value, missing cells as None in an array of objects; None for a sparse matrix."""
    value = cells_of(value)
    if isinstance(value, (list, tuple)):
        return np.asarray([v if isinstance(v, (float, int, np.generic)) else to_array(v)[()] for v in value])  # type: ignore[index]
    if hasattr(value, "detach"):  # a tensor
        value = value.detach()
        if "strided" not in str(value.layout):
            return None
        value = (value.double() if value.is_floating_point() else value).cpu().resolve_conj().resolve_neg()
    elif not hasattr(value, "__array__") and (hasattr(value, "toarray") or hasattr(value, "todense")):
        return None
    array = np.asanyarray(value)  # numpy.asarray would read behind a mask
    mask = np.ma.getmaskarray(array) if array.dtype.names is None and np.ma.is_masked(array) else None
    array = np.asarray(array)
    if array.dtype.kind == "O" or mask is not None:
        array = np.array(array, object)
        for at, cell in np.ndenumerate(array):
            if hasattr(cell, "__array__") and getattr(cell, "shape", None) == () and not isinstance(cell, np.generic):
                array[at] = to_array(cell)[()]  # type: ignore[index]
        if mask is not None:
            array[mask] = None
    return array


def cells_of(value: Any) -> Any:
    """Return the cells of a frame or a series to which numpy would give another dtype; other values as they are."""
    if hasattr(value, "null_count"):  # of Polars or Arrow: nulls would be NaN
        return next(getattr(value, name)() for name in ("rows", "to_list", "to_pylist") if hasattr(value, name))
    dtypes: list[Any] = np.atleast_1d(getattr(value, "dtypes", None)).tolist()  # type: ignore[arg-type]
    plain = len(set(map(str, dtypes))) == 1 and (dtypes[0] is None or isinstance(dtypes[0], np.dtype))
    return value if plain else value.to_numpy(dtype=object)


def from_cells(owner: str, argument: str, array: np.ndarray) -> np.ndarray:
    """Return an array of objects as numbers: missing cells are counted, what is no number or is rounded is named."""
    missing, numbers = [], np.zeros(array.shape)
    for at, cell in np.ndenumerate(array):
        if cell is None or cell is np.ma.masked or type(cell).__name__ in ("NAType", "NaTType"):
            missing.append(at)
        elif not isinstance(cell, (Real, Decimal, np.bool_)) and type(cell).__module__ != "ml_dtypes":
            if not at and not isinstance(cell, str):
                fail(owner, argument, "an array of numbers", type(cell).__name__, "Pass rows of numbers.", TypeError)
            dated = "M" if hasattr(cell, "isoformat") else "m" if hasattr(cell, "total_seconds") else ""
            _, fix = OTHERS.get(dated or np.asarray(cell).dtype.kind, ("", TEXT))
            fail(owner, argument, "numbers", f"{cell!r:.40} {position(at)}", fix, TypeError)
        elif isinstance(cell, (int, np.integer)) and (abs(int(cell)) >= 2**1024 or int(float(cell)) != cell):
            refuse_rounding(owner, argument, int(cell), at)
        else:
            try:
                numbers[at] = float(cell)
            except (ArithmeticError, ValueError):  # a signaling NaN, or a fraction beyond float64
                got = f"a {type(cell).__name__} that float() refuses {position(at)}"
                fail(owner, argument, "numbers that float64 holds", got, "Remove that row or convert it first.")
    if missing:
        cells = f"{len(missing)} missing cell{'s' * (len(missing) > 1)}"
        got = f"{cells} (masked, NA or None), {'the first ' if array.ndim else ''}{position(missing[0])}"
        fail(owner, argument, "a number in every cell", got, "Remove those rows or fill them.")
    return numbers


def refuse_rounding(owner: str, argument: str, number: int, at: tuple[int, ...]) -> NoReturn:
    """Raise the error about a whole number that float64 would round in silence."""
    rule = "whole numbers that float64 holds, as all up to 2**53"
    got = f"{number}" if abs(number) < 2**128 else f"one of {number.bit_length()} bits"
    fail(owner, argument, rule, f"{got} {position(at)}", "Subtract an offset, or pass floating numbers.")


def position(at: tuple[int, ...]) -> str:
    """Return in words where a cell stands, as in "at row 3, column 1"."""
    places = ", ".join(f"{name} {k}" for name, k in zip(("row", "column"), at, strict=False))
    return f"at {places}" if at else "as a scalar"


def check_finite(owner: str, argument: str, array: np.ndarray, fix: str, first: int = 0) -> None:
    """Check that all numbers are finite; the message counts those that are not, and names the first.

    Args:
        owner, argument, fix: for the message; array: `[rows, ...]`; first: the number of its first row.
    """
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = (first + bad[0][0], *bad[0][1:]) if array.ndim else ()
        got = f"{array[tuple(bad[0])]} {position(at)}"
        got = got if len(bad) == 1 else f"{len(bad)} cells that are not, the first {got}"
        fail(owner, argument, "finite numbers", got, fix)


def normalize(values: NDArray[np.float64], mean: Sequence[float], scale: Sequence[float]) -> NDArray[np.float64]:
    """Return `(values - mean) / scale` in float64, `[..., columns]`."""
    return (values - np.asarray(mean)) / np.asarray(scale)


def bare_rows(config: HullConfig, x: NDArray[np.float64]) -> tuple[HullConfig, NDArray[np.float64]]:
    """Return the config of a hull without its units, and rows for it, `[..., in_dim]`, in float64."""
    units = config.normalization
    if units is None:
        return config, x
    return replace(config, normalization=None), normalize(x, units.input_mean, units.input_scale)


def split_context(config: HullConfig, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], Any]:
    """Return the columns of x, and those of the context, None without one, of rows `[N, D + C]`."""
    x, context = np.split(rows, [config.in_dim], axis=1)
    return x, context if config.context_dim else None


def bare_contexts(
    config: HullConfig, context: NDArray[np.float64] | None, axes: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """Return contexts for a hull without its units, in float64: one row of them, or one for each of `axes`."""
    if context is None:
        return None
    units = config.normalization
    if units is not None and units.context_mean:
        context = normalize(context, units.context_mean, units.context_scale)
    if context.size == config.context_dim:
        return context.reshape(config.context_dim)
    return np.broadcast_to(context, (*axes, config.context_dim))


def warn_of_rounding(units: Normalization, dtype: Any) -> None:
    """Warn, once a normalization, of columns whose mean leaves a dtype too few digits for what they vary by.

    A number near the mean m is rounded by up to u |m|, u the unit of rounding. What that moves it by, in units of its
    scale, is beyond the error of computing in the dtype where it is over `CARRIED` and over `HALF` units.

    Args:
        units: of the hull that is called; dtype: of what it is called with.
    """
    seen = vars(units).setdefault("dtypes_seen", set())
    if dtype in seen:
        return
    seen.add(dtype)
    name = dtype_name(dtype)
    unit = ROUNDING.get(name, 0.0)
    for argument, side in (("x", "input"), ("y", "output")):
        mean, scale = (np.asarray(getattr(units, f"{side}_{part}")) for part in ("mean", "scale"))
        moved = unit * np.abs(mean) / scale
        columns = [
            f"column {k} of mean {mean[k]:.9g} and scale {scale[k]:.3g}, rounded by {moved[k]:.2g} of that"
            for k in np.flatnonzero(moved > max(CARRIED, HALF * unit))
        ]
        if columns:
            fix = "Call predict(model, x), which computes units in float64, or use a model in float64."
            got = "; ".join(columns[:3]) + (f"; and {len(columns) - 3} more" if len(columns) > 3 else "")
            text = f"VectorHull.{argument}: expected columns that {name} can carry; got {got}. {fix}"
            warnings.warn(text, stacklevel=2)

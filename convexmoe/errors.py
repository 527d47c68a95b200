"""Every check of a value or a shape, and the one form of message they all use."""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Mapping
from typing import Any, NoReturn

# Controls but tab and newline, marks that turn the direction of text or the shapes of digits, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
# what takes numbers of any library and dtype, as minimize returns its point in float64, where a model does not
OR_PREDICT = {"VectorHull": ", or call predict(model, x), which takes any numbers"}


def printable(text: str) -> str:
    """Return `text` with every character that a terminal would obey written out.

    >>> print(printable("a" + chr(27) + "[31mb"))
    a\\x1b[31mb
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def fail(owner: str, argument: str, expected: str, got: str, fix: str, kind: type[Exception] = ValueError) -> NoReturn:
    """Raise `kind` with the house's message: what was required, what came, one fix; a long place loses its middle."""
    argument = argument if len(argument) <= 120 else f"{argument[:60]}...{argument[-40:]}"
    raise kind(printable(f"{owner}.{argument}: expected {expected}; got {got}. {fix}"))


class InputError(ValueError):
    """A fault in a file, a table or an option that a user gave: what was expected, what came, one fix."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def refuse(subject: object, expected: str, got: str, fix: str) -> NoReturn:
    """Raise an `InputError` about a file, a table or an option of a command, in the form of `fail`."""
    raise InputError(f"{subject}: expected {expected}; got {got}. {fix}")


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype without its framework, as in `float32`."""
    return str(dtype).removeprefix("torch.")


def describe(value: Any) -> str:
    """Return `dtype[shape]` for an array and `repr` for anything else.

    >>> describe(3)
    '3'
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{dtype_name(value.dtype)}[{', '.join(str(size) for size in value.shape)}]"
    return repr(value)


def whole_number(owner: str, argument: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value` as an int of at least `least`, and at most `most` where that is given."""
    rule = f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}"
    fix = f"Pass {argument}={least} or more." if most is None else f"Pass {argument}={least}, for example."
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        fail(owner, argument, rule, repr(value), fix, TypeError)
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        fail(owner, argument, rule, repr(value), fix)
    return number


def one_of(owner: str, argument: str, value: Any, known: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of `known`."""
    if type(value) not in {type(item) for item in known} or value not in known:
        fail(owner, argument, f"one of {list(known)}", repr(value), f"Pass {argument}={known[0]!r}, for example.")
    return value


def finite_number(owner: str, argument: str, value: Any, least: float, fix: str) -> float:
    """Return `value`, a finite number of Python or numpy of at least `least`, as a float.

    An array is refused: as a float it would be cut off from its gradient in silence.
    """
    rule = "a finite number" if least == -math.inf else f"a finite number >= {least:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(owner, argument, rule, describe(value), fix)
    number = float(value)
    if not (math.isfinite(number) and number >= least):
        fail(owner, argument, rule, repr(value), fix)
    return number


def share(owner: str, argument: str, value: Any) -> float:
    """Return `value`, a number in [0, 1), as a float."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or not 0 <= value < 1:
        fail(owner, argument, "a number in [0, 1)", repr(value), f"Pass {argument}=0.1.")
    return float(value)


def copy_plain(owner: str, argument: str, value: Any, depth: int = 48) -> Any:
    """Return a copy of what a file gives back exactly as it is, with the keys of dicts sorted, as a file has them.

    That is text, bool, None, an int of 2,000 bits at most, a finite float, or lists of them and dicts with keys of
    text, `depth` in each other at most: of these very types. The message names the place in `value`.
    """
    kind = type(value)
    if kind in (list, dict) and depth > 0:
        if kind is list:
            return [copy_plain(owner, f"{argument}[{i}]", part, depth - 1) for i, part in enumerate(value)]
        for key in value:
            if type(key) is not str or not _is_unicode(key):
                error = ValueError if type(key) is str else TypeError
                fail(owner, argument, "keys of text", f"{key!r:.60}", "Name it, with str(key) for example.", error)
        return {key: copy_plain(owner, f"{argument}[{key!r}]", value[key], depth - 1) for key in sorted(value)}
    is_plain = kind in (bool, type(None)) or (kind is str and _is_unicode(value))
    if is_plain or (kind is int and value.bit_length() <= 2000) or (kind is float and math.isfinite(value)):
        return value
    rule = "text, bool, None, an int, a finite float, or lists and dicts of them"
    if kind in (int, list, dict):
        got = f"an int of {value.bit_length()} bits" if kind is int else f"a {kind.__name__} in too many others"
    else:
        got = f"{value!r:.60} ({kind.__module__}.{kind.__name__})".replace("(builtins.", "(")
    fix = "Convert it: a tuple to a list, a number of numpy with .item(), other things to text."
    fail(owner, argument, rule, got, fix, ValueError if kind in (str, int, float, list, dict) else TypeError)


def _is_unicode(text: str) -> bool:
    """Return whether text can be written: lone surrogates are no characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def last_axis(owner: str, argument: str, value: Any, size: int, kinds: tuple[Any, ...]) -> None:
    """Check that `value` is an array, of one of `kinds`, whose last axis has `size` entries."""
    if not isinstance(value, kinds):
        fix = f"Convert it to an array of this framework first{OR_PREDICT.get(owner, '')}."
        fail(owner, argument, "an array", type(value).__name__, fix, TypeError)
    if len(value.shape) == 0:
        fail(owner, argument, f"last axis in_dim={size}", describe(value), "Give it one axis at least.")
    if value.shape[-1] != size:
        fix = f"Build it with in_dim={value.shape[-1]} or project the input."
        fail(owner, argument, f"last axis in_dim={size}", describe(value), fix)


def check_scalar(owner: str, argument: str, value: Any) -> None:
    """Check that `value`, an array, has no axes."""
    if len(value.shape) > 0:
        fail(owner, argument, "a scalar", describe(value), "Reduce it, by its mean for example.")


def same_dtype(owner: str, argument: str, value: Any, dtype: Any) -> None:
    """Check that `value` has the dtype of the parameters: a silent cast would hide a loss of precision."""
    if value.dtype != dtype:
        name = dtype_name(dtype)
        fix = f"Cast it to {name}{OR_PREDICT.get(owner, ', or build the model with its dtype')}."
        fail(owner, argument, f"dtype {name}, as the parameters have", describe(value), fix, TypeError)


def same_keys(owner: str, expected: Mapping[str, tuple], got: Mapping[str, tuple]) -> None:
    """Check names, shapes and dtypes of weights, and report every difference at once.

    Args:
        owner: who asks, for the message.
        expected: name -> (shape, dtype name or None where any will do).
        got: name -> (shape, dtype name).
    """
    faults = [f"missing {name}" for name in sorted(expected.keys() - got.keys())]
    faults += [f"unexpected {name}" for name in sorted(got.keys() - expected.keys())]
    for name in sorted(expected.keys() & got.keys()):
        (shape, dtype), (got_shape, got_dtype) = expected[name], got[name]
        if tuple(shape) != tuple(got_shape):
            faults.append(f"{name} has shape {list(got_shape)}, not {list(shape)}")
        if dtype is not None and dtype != got_dtype:
            faults.append(f"{name} has dtype {got_dtype}, not {dtype}")
    if faults:
        fix = "Use the config that the weights were made with."
        fail(owner, "weights", f"the {len(expected)} arrays of its config", "; ".join(faults), fix)

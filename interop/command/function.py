"""What a user says of the function to fit: which columns are its context, where it rises or falls, and the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import refuse
from convexmoe.files.schema import demand, has_form
from convexmoe.hull import Normalization
from convexmoe.hull.weights import NUMPY
from convexmoe.training import Expectile, Huber, Quantile
from convexmoe.training.curvature import CONCAVE, CONVEX
from convexmoe.training.losses import ABSOLUTE, SQUARED, objective_of
from convexmoe.training.shapes import AUTO

from .tables import Table, require_columns

Vector = NDArray[np.float64]
QUANTILE = "quantile"
# Name to the option that it needs, what `fit` takes, what the mean on held-out rows is called, and whether of its root.
LOSSES: dict[str, tuple[str, Any, str, bool]] = {
    SQUARED: ("", None, "RMSE", True),
    ABSOLUTE: ("", None, "mean absolute error", False),
    "huber": ("delta", Huber, "root mean Huber loss", True),
    QUANTILE: ("level", Quantile, "mean quantile loss", False),
    "expectile": ("level", Expectile, "root mean expectile loss", True),
}
LEVEL_LOSSES = tuple(name for name, (option, *_) in LOSSES.items() if option == "level")
UNIT = Normalization((), (), (0.0,), (1.0,))
LISTS = ("context", "increasing", "decreasing")


@dataclass(frozen=True)
class Function:
    """What options of `convexmoe fit` say of the function.

    Attributes:
        context: columns in which nothing is assumed.
        categorical: those of the context whose cells are categories, whatever is in them.
        increasing, decreasing: inputs along which it rises, or falls.
        nonnegative: whether it is >= 0; a concave one <= 0.
        loss: a name in `LOSSES`; number: its delta or its level, None for others.
        weights: the column that says how much a row counts, or None.
    """

    context: tuple[str, ...] = ()
    increasing: tuple[str, ...] = ()
    decreasing: tuple[str, ...] = ()
    nonnegative: bool = False
    loss: str = SQUARED
    number: float | None = None
    weights: str | None = None
    categorical: tuple[str, ...] = ()

    @property
    def objective(self) -> Any:
        """The loss as `fit` takes it."""
        _, loss, *_ = LOSSES[self.loss]
        return self.loss if loss is None else loss(self.number)

    @property
    def is_plain(self) -> bool:
        """Whether all rows count alike, by their squares."""
        return self.loss == SQUARED and self.weights is None

    def measure(self, predicted: Vector, true: Vector, weight: Vector | None = None) -> float:
        """Return the mean loss of predictions `[N]`, in units of the target; of squares the root.

        >>> round(Function(loss="quantile", number=0.9).measure(np.array([1.0, 1.0]), np.array([3.0, 0.0])), 9)
        0.95
        """
        values = objective_of(self.objective, UNIT, 1).values(predicted[:, None], true[:, None], NUMPY.constant)
        mean = float(np.average(values[:, 0], weights=weight))
        return math.sqrt(mean) if LOSSES[self.loss][3] else mean

    def signs(self, inputs: Sequence[str]) -> tuple[int, ...] | None:
        """Return for each input whether the function rises (1) or falls (-1) along it, else 0; None for all free."""
        signs = tuple((name in self.increasing) - (name in self.decreasing) for name in inputs)
        return signs if any(signs) else None

    def name_columns(self, table: Table, target: str, drop: Sequence[str]) -> Function:
        """Return the same with the names of columns, after the check that each of these has one part only.

        Raises:
            InputError: a column that is not there, or with two parts that contradict each other.
        """
        lists: dict[str, Any] = {option: split_names(getattr(self, option), table.columns) for option in LISTS}
        categorical = split_names(self.categorical, table.columns)
        require_columns(table, categorical, "convexmoe fit --categorical")
        lists["context"] = tuple(dict.fromkeys((*lists["context"], *categorical)))
        given = lists | {"weights": () if self.weights is None else (self.weights,)}
        other = {target: "the target", **dict.fromkeys(drop, "one that is dropped")}
        for option, names in given.items():
            require_columns(table, names, f"convexmoe fit --{option}")
            for name in names:
                if name in other:
                    got, fix = f"{name!r}, {other[name]}", f"Leave {name} out of one of them."
                    refuse(f"convexmoe fit --{option}", "columns without another part", got, fix)
            part = {"context": "a context, in which nothing is assumed"}.get(option, f"one of --{option}")
            other |= dict.fromkeys(names, part)
        return replace(self, **lists, categorical=categorical)

    def take_contexts(self, contexts: tuple[str, ...]) -> Function:
        """Return the same with a context that has columns of text, too.

        Raises:
            InputError: one of these is to rise or fall.
        """
        for option in ("increasing", "decreasing"):
            if text := [name for name in getattr(self, option) if name in contexts]:
                fix = f"Leave {text[0]} out of it."
                refuse(f"convexmoe fit --{option}", "columns of numbers", f"{text[0]!r}, which is text", fix)
        return replace(self, context=contexts)

    def check_sign(self, where: str, target: str, mean: float, curvature: str) -> None:
        """Check that a bound at 0 is on the side of the target."""
        if not self.nonnegative or mean * (-1.0 if curvature == CONCAVE else 1.0) > 0:
            return
        rule = f"a mean of {target!r} {'below' if curvature == CONCAVE else 'above'} 0 with --nonnegative"
        fix = "Leave --nonnegative out."
        if curvature == CONCAVE:
            fix = "Leave --nonnegative out: a concave function is kept <= 0; one that is >= 0 everywhere is constant."
        refuse(where, rule, f"{mean:g}", fix)

    @classmethod
    def from_json(cls, values: Any) -> Function:
        """Return what a file has of a run; a ValueError for anything that no options say."""
        values = {"categorical": []} | values if isinstance(values, dict) else values  # earlier versions had none
        form = {**{option: [str] for option in (*LISTS, "categorical")}, "weights": (None, str), "nonnegative": bool}
        whole = has_form(values, form | {"loss": tuple(LOSSES)}) and {*values} == {field.name for field in fields(cls)}
        demand(whole, "what no options say")
        lists = {option: tuple(names) for option, names in values.items() if isinstance(names, list)}
        found = cls(**values | lists)
        demand((found.number is None) == (not LOSSES[found.loss][0]), "a loss without its number")
        demand(bool(found.objective), "no loss")
        return found


NOTHING = Function()  # is said: squares, all inputs free


def read_function(
    lists: dict[str, list[str] | None], nonnegative: bool, loss: str, level: float | None, delta: float | None,
    weights: str | None,
) -> Function:  # fmt: skip
    """Return what the options say, columns as they are given, after the checks that need no table."""
    if loss not in LOSSES:
        refuse("convexmoe fit --loss", " or ".join(LOSSES), repr(loss), "Leave it out for squared.")
    needed = LOSSES[loss][0]
    for option, value, most in (("level", level, 1.0), ("delta", delta, math.inf)):
        owner, usual = f"convexmoe fit --{option}", "0.9" if option == "level" else "1"
        users = " or ".join(name for name, row in LOSSES.items() if row[0] == option)
        if value is None and option == needed:
            refuse(owner, f"a number for --loss {loss}", "none", f"Add --{option} {usual}.")
        if value is not None and option != needed:
            refuse(owner, f"--loss {users}, which it is for", f"--loss {loss}", f"Leave --{option} out.")
        if value is not None and not 0 < value < most:
            rule = "a number between 0 and 1" if most == 1 else "a finite number above 0"
            refuse(owner, rule, f"{value:g}", f"Try --{option} {usual}.")
    names = {option: tuple(texts or ()) for option, texts in lists.items()}
    number = level if needed == "level" else delta if needed else None
    return Function(**names, nonnegative=nonnegative, loss=loss, number=number, weights=weights)


def read_curvature(curvature: str | None, concave: bool, function: Function) -> str:
    """Return the curvature that the options ask for: "convex", "concave" or "auto"."""
    owner = "convexmoe fit --curvature"
    if curvature not in (None, CONVEX, CONCAVE, AUTO):
        refuse(owner, "convex, concave or auto", repr(curvature), "Try --curvature auto.")
    if concave and curvature not in (None, CONCAVE):
        refuse(owner, "concave beside --concave", curvature or "", "Leave one of them out.")
    if curvature == AUTO and function.loss in LEVEL_LOSSES:
        got = "auto, which compares functions of the mean"
        refuse(owner, f"convex or concave with --loss {function.loss}", got, "Say which it is.")
    if curvature == AUTO and function.nonnegative:
        refuse(owner, "convex or concave with --nonnegative", "auto, which would choose the side", "Say which it is.")
    return CONCAVE if concave else curvature or CONVEX


def split_names(texts: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the names in texts, each of one column or of several between commas, without repeats."""
    names: dict[str, None] = {}
    for text in texts:
        names |= dict.fromkeys([text] if text in columns else [name.strip() for name in text.split(",")])
    return tuple(names)

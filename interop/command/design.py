"""How columns of a table become those of a model: text as categories, missing cells told in columns of their own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import refuse

from .cells import is_text
from .tables import MIN_ROWS, NONE, Categories, Table, join_drops, list_labels, shorten

Rows = NDArray[np.float64]
MOST, MOST_NAMED = 20, 100  # categories of a column of text; of one that --categorical names
NEARLY_ALL = 0.9  # of the cells are different: an id; of the texts are dates: dates
_MONTH = r"(?:jan|feb|m[aä]r|a[pv]r|ma[iy]|ju[nl]|aug|sep|o[ck]t|nov|de[cz])[a-zé]*\.?"
_DATE = re.compile(
    r"(?:(?:[a-z]{2,9}\.?,? )?(?:\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|\d{4}[-/]\d{1,2}"
    rf"|(?:\d{{1,2}}\.?[- ]?)?{_MONTH}[- ,]*(?:\d{{1,2}},? )?\d{{2,4}})(?:[T ]+\d{{1,2}}:\d{{2}}.*)?"
    r"|\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[ap]m)?|\d{4}[- ]?q[1-4]|q[1-4][-/ ]\d{4})",
    re.IGNORECASE,
)
MEAN, DROP, INDICATOR = "mean", "drop", "indicator"  # what is done with missing cells
MISSING = "convexmoe fit --missing"


class Entry(NamedTuple):
    """A column of a model: its name, the place of its column in the table, and which cells of that one are 1 in it.

    `code` is the place of a category; -1 for missing cells; None for a column of numbers, which are what they are.
    """

    name: str
    column: int
    code: int | None


@dataclass(frozen=True)
class Design:
    """How columns of a table become the columns of a model, its design matrix.

    Attributes:
        columns: of the table: the inputs, then those of the context.
        in_dim: how many are inputs.
        categories: of columns of text in the context, the most frequent first: each other one becomes a column of 0
            and 1, `region=north`, and all of these are 0 for the first. So the median of every column, as pictures have
            it, is a row that may be.
        indicators: columns whose missing cells are 1 in a column of 0 and 1, `weight missing`.
    """

    columns: tuple[str, ...]
    in_dim: int
    categories: Categories
    indicators: tuple[str, ...] = ()

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The columns of the model: of numbers (the inputs first), of categories, of missing cells."""
        places = {name: k for k, name in enumerate(self.columns)}
        numbers = [Entry(name, k, None) for name, k in places.items() if name not in self.categories]
        coded = [
            Entry(f"{name}={label}", places[name], code)
            for name in self.contexts
            for code, label in enumerate(self.categories.get(name, ()))
            if code > 0
        ]
        return (*numbers, *coded, *(Entry(f"{name} missing", places[name], -1) for name in self.indicators))

    @property
    def num_numbers(self) -> int:
        """How many of the model's columns are columns of numbers: they come first."""
        return len(self.columns) - len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns of the model."""
        return tuple(entry.name for entry in self.entries)

    @property
    def contexts(self) -> tuple[str, ...]:
        """The columns of the table that are its context."""
        return self.columns[self.in_dim :]

    @property
    def groups(self) -> tuple[list[int], ...]:
        """For each column of the table the places of those of the model that are of it."""
        return tuple(
            [place for place, entry in enumerate(self.entries) if entry.column == k] for k in range(len(self.columns))
        )

    def expand(self, values: Rows) -> Rows:
        """Return `[N, len(names)]` of the cells `[N, len(columns)]` of a table; NaN for a number that is missing.

        >>> design = Design(("a", "c"), 1, {"c": ("x", "y")}, ("a",))
        >>> design.names
        ('a', 'c=y', 'a missing')
        >>> design.expand(np.array([[5.0, 1.0], [np.nan, 0.0]]))
        array([[ 5.,  1.,  0.],
               [nan,  0.,  1.]])
        """
        columns = []
        for _, k, code in self.entries:
            cells = values[:, k]
            columns.append(cells if code is None else np.isnan(cells) if code < 0 else cells == code)
        return np.column_stack(columns).astype(np.float64)

    def check_gaps(self, values: Rows, table: Table, owner: str, strict: bool) -> None:
        """Check that every missing cell `[N, len(columns)]` can be told: a category has no mean.

        Args:
            values: the cells; table: of them; owner: the option that fills them in.
            strict: whether numbers need a column that tells it, too.
        """
        gaps = np.isnan(values)
        for k, name in enumerate(self.columns):
            if not gaps[:, k].any() or name in self.indicators:
                continue
            where = f"{gaps[:, k].sum()} missing in column {name!r} (first on {table.place(int(gaps[:, k].argmax()))})"
            if name in self.categories:
                rule, fix = f"numbers to fill in in {table.name}", "Fill in or remove those rows."
                if owner == MISSING:
                    fix = "A category has no mean: use --missing indicator, or --missing drop."
                refuse(owner, rule, where, fix)
            if strict:
                rule = f"missing cells of {table.name} in columns that had some in training"
                refuse(owner, rule, where, "Use --missing mean.")

    def keep_present(self, pieces: Iterable[Rows]) -> Design:
        """Return the design without the categories that no row has: `pieces` are cells, `[N, len(columns)]` each."""
        present: dict[str, set[float]] = {name: set() for name in self.categories}
        for values in pieces if present else ():
            for name, codes in present.items():
                codes.update(np.unique(values[:, self.columns.index(name)]).tolist())
        categories = {
            name: tuple(label for code, label in enumerate(labels) if code in present[name])
            for name, labels in self.categories.items()
        }
        return replace(self, categories=categories)

    def check_names(self, table: Table) -> None:
        """Check that no column of a table is called as one that is made of another."""
        taken = Counter((*table.columns, *(entry.name for entry in self.entries if entry.code is not None)))
        if twice := [name for name, times in taken.items() if times > 1]:
            rule = "columns that are not called as a category, or as the missing cells of another"
            refuse(table.name, rule, repr(twice[0]), "Rename that column.")

    def check_varies(self, where: str) -> None:
        """Check that each column of text has two categories, or misses cells; `where` is the table, for messages."""
        for name, labels in self.categories.items():
            if len(labels) < 2 and name not in self.indicators:
                fix = f"Leave it out with {join_drops([name])}."
                refuse(where, f"column {name!r} to vary", f"the text {shorten([*map(repr, labels)])} throughout", fix)

    def recode(self, values: Rows, categories: Categories) -> Rows:
        """Return cells `[N, len(columns)]` whose categories have their places here instead of in other `categories`."""
        values = values.copy()
        for name, labels in self.categories.items():
            if labels != categories[name]:
                k, place = self.columns.index(name), {label: code for code, label in enumerate(labels)}
                codes = np.array([*(place.get(label, np.nan) for label in categories[name]), np.nan])
                values[:, k] = codes[np.where(np.isnan(values[:, k]), -1, values[:, k]).astype(int)]
        return values

    def explain(self) -> list[str]:
        """Return in sentences what becomes of columns that are not numbers alone."""
        lines = [
            f"{name}: {len(self.categories[name])} categories, as context ({list_labels(self.categories[name])})."
            for name in self.contexts
            if name in self.categories
        ]
        told = [f"Missing cells of {shorten(self.indicators)} are told to the model in columns of their own."]
        return lines + told * bool(self.indicators)

    def notes(self) -> dict[str, Any]:
        """Return what a file notes of it; nothing of columns that are all numbers."""
        if not self.categories and not self.indicators:
            return {}
        labels = {name: list(labels) for name, labels in self.categories.items()}
        return {"design": {"columns": list(self.columns), "categories": labels, "indicators": list(self.indicators)}}


def read_design(notes: Mapping[str, Any], columns: Sequence[str], in_dim: int) -> Design | None:
    """Return the design that the notes of a file hold, that of numbers alone where they hold none; None for another.

    Args:
        notes: of the file; columns: of the model: `in_dim` inputs, then those of its context.
    """
    if "design" not in notes:
        return Design(tuple(columns), in_dim, NONE)
    with suppress(TypeError, ValueError, LookupError, AttributeError, RecursionError):
        held = notes["design"]
        categories = {str(name): tuple(map(str, labels)) for name, labels in held["categories"].items()}
        design = Design(tuple(map(str, held["columns"])), in_dim, categories, tuple(map(str, held["indicators"])))
        known = {*categories} <= {*design.contexts} and all(categories.values())
        known = known and {*design.indicators} <= {*design.columns}
        if known and design.names == tuple(columns) and len({*design.columns}) == len(design.columns):
            return design
    return None


def learn_design(table: Table, inputs: Sequence[str], context: Sequence[str], named: Sequence[str]) -> Design:
    """Return the design of columns of a table, after those of text are taken from the inputs into the context.

    Args:
        table: of the columns; inputs, context: the columns; named: those of the context that are categories, whatever
            is in them.

    Raises:
        InputError: columns of dates or of ids; of more categories than a model takes; no column of numbers.
    """
    columns = (*inputs, *context)
    first = next(iter(table.labels(columns)), [Counter[str]()] * len(columns))
    texts = [name for name, counts in zip(columns, first, strict=True) if name in named or is_text(counts)]
    categories = learn_categories(table, texts, named)
    numbers = tuple(name for name in inputs if name not in categories)
    if not numbers:
        rule = "at least one input column of numbers, in which the function is convex"
        free = [f", or leave {name} out of --context" for name in context if name not in categories]
        refuse(table.name, rule, f"only text in {shorten(inputs)}", f"Add a column of numbers{''.join(free[:1])}.")
    ordered = (*numbers, *context, *(name for name in inputs if name in categories))
    design = Design(ordered, len(numbers), categories)
    design.check_names(table)
    return design


def learn_categories(table: Table, names: Sequence[str], named: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the categories of columns of text in order, after checks that each can be used as such."""
    counts = {name: Counter[str]() for name in names}
    for part in table.labels(names) if names else ():
        for name, labels in zip(names, part, strict=True):
            if len(counts[name]) <= MOST_NAMED + 1:  # what is known to be too many need not be counted on
                counts[name].update(labels)
    for labels in counts.values():
        labels.pop("", None)
    _check_categories(table.name, counts, named)
    return {name: _sort(labels) for name, labels in counts.items()}


def _sort(labels: Counter[str]) -> tuple[str, ...]:
    """Return categories, the most frequent first and the others in order."""
    first, *_ = sorted(labels, key=lambda label: (-labels[label], label))
    return (first, *sorted(label for label in labels if label != first))


def _check_categories(where: str, counts: Mapping[str, Counter[str]], named: Sequence[str]) -> None:
    """Refuse columns of dates, of ids, and of too many categories: all that there are, with the remedy of the first."""
    faults: dict[str, tuple[str, str]] = {}
    for name, labels in counts.items():
        total, dates = labels.total(), sum(map(bool, map(_DATE.fullmatch, labels)))
        example = f"column {name!r} ({shorten([repr(next(iter(labels), ''))])})"
        if dates >= NEARLY_ALL * len(labels) > 0 and name not in named:
            fix = "write it as a number, such as the day of the year or the years since 2000"
            fix += f", or take each as a category: --categorical {name}" if len(labels) <= MOST_NAMED else ""
            faults[name] = f"dates or times in {example}", fix
        elif not labels:
            faults[name] = f"nothing in column {name!r}", ""
        elif total >= MIN_ROWS and len(labels) >= NEARLY_ALL * total:
            faults[name] = f"texts that nearly all differ, as of an id, in {example}", ""
        elif len(labels) > (most := MOST_NAMED if name in named else MOST):
            fix = "join rare ones in the table"
            fix += f", or name it: --categorical {name}" if most < len(labels) <= MOST_NAMED else ""
            many = f"more than {MOST_NAMED}" if len(labels) > MOST_NAMED else f"{len(labels)}"
            faults[name] = f"{many} different texts in {example}", fix
    if faults:
        fix = next(iter(fix for _, fix in faults.values()))
        which = "it" if len(faults) == 1 else "them"
        drops = f"Leave {which} out with {join_drops(faults)}"
        got = "; ".join(words for words, _ in [*faults.values()][:3])
        rule = f"numbers, or text of at most {MOST} categories"
        refuse(where, rule, got, f"{drops}, or {fix}." if fix and len(faults) == 1 else f"{drops}.")

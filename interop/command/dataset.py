"""The numbers that `convexmoe fit` learns from, checked, with the folds that measure the errors."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import InputError, refuse
from convexmoe.hull import HullConfig
from convexmoe.training import Stream
from convexmoe.training.stream import Survey

from . import tables
from .design import DROP, INDICATOR, MEAN, MISSING, Design, learn_design
from .function import NOTHING, Function, split_names
from .tables import MIN_ROWS, Pieces, Table, check_varies, fill_gaps, require_columns, shorten

Rows = NDArray[np.float64]
FOLDS = 5
FEW_ROWS = 30  # the RMSE of fewer is off by 13 % and more
_ID = re.compile(r"(?i:(.*[_ .-])?(id|uuid|guid)|index|unnamed: ?\d+|row([_ .-]?(no|nr|num|number))?)|.*[a-z0-9]I[dD]")


@dataclass(frozen=True)
class Dataset:
    """Numbers to learn from, and the folds that measure the errors.

    Attributes:
        name: of the table.
        columns: of the model: the inputs, then those of the context, in the order of `x`.
        target: name of the column to predict.
        x: `[N, in_dim + context_dim]`; y: `[N]`.
        folds: indices of rows, disjoint, together all; each is tested by models that are fitted to the others.
        remarks: what was recognized, left out or filled, in sentences.
        design: how these columns come of those of the table.
        function: what is said of the function; weight: `[N]`, how much each row counts, or None for alike.
        stream: of a table that is read in pieces all rows, of which those above are a sample; else None.
    """

    name: str
    columns: tuple[str, ...]
    target: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    folds: tuple[NDArray[np.int64], ...]
    remarks: tuple[str, ...]
    design: Design
    function: Function = NOTHING
    weight: NDArray[np.float64] | None = None
    stream: Stream | None = None

    @property
    def survey(self) -> Survey | None:
        """What all rows of a stream tell, None of a table that is in memory."""
        config = HullConfig(self.design.in_dim, 1, 1, context_dim=self.context_dim)
        return None if self.stream is None else self.stream.survey(config)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns in which the function has a curvature."""
        return self.columns[: self.design.in_dim]

    @property
    def context_dim(self) -> int:
        """How many columns of the model are of the context."""
        return len(self.columns) - self.design.in_dim

    def weights(self, part: Any) -> NDArray[np.float64] | None:
        """Return the weights of some rows."""
        return None if self.weight is None else self.weight[part]

    def rows(self, part: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return inputs and targets of some rows."""
        return self.x[part], self.y[part]

    def outside(self, fold: int) -> NDArray[np.int64]:
        """Return the rows of the other folds, in an order drawn by the seed."""
        return np.concatenate([*self.folds[fold + 1 :], *self.folds[:fold]])


def prepare(
    table: Table, target: str, drop: Sequence[str], seed: int, missing: str | None = None, function: Function = NOTHING
) -> Dataset:
    """Return the checked numbers of a table, and folds of its rows; columns of text join the context.

    Rows with missing cells are refused, or with `missing` "drop" left out; "mean" fills them with means of their
    columns, and leaves out the rows without a target or a weight; "indicator" does so, too, and adds to the context a
    column of 0 and 1 for each that misses cells.

    Raises:
        InputError: an unknown column, too few rows, a cell that is no number, a column that does not vary; text that
            is no category.
    """
    require_columns(table, [target], "convexmoe fit --target")
    drop = split_names(drop, table.columns)
    require_columns(table, drop, "convexmoe fit --drop")
    if target in drop:
        rule, fix = "columns other than the target", f"Leave --drop {target} out."
        refuse("convexmoe fit --drop", rule, repr(target), fix)
    function = function.name_columns(table, target, drop)
    others = {target, *drop, *function.context, function.weights}
    inputs = tuple(name for name in table.columns if name not in others)
    if not inputs:
        parts = {"--context": function.context, "--drop": drop, "--weights": function.weights}
        taken = " and ".join(option for option, names in parts.items() if names)
        got = f"the others in {taken}" if taken else f"the columns {shorten(table.columns)}"
        fix = f"Add a column of inputs{', or leave one out of there' if taken else ''}."
        refuse(table.name, f"at least one input column beside the target {target!r}", got, fix)
    design = learn_design(table, inputs, function.context, function.categorical)
    function = function.take_contexts(design.contexts)
    of_weights = tuple(filter(None, [function.weights]))
    values, ends, remarks, stream, design = _read(table, design, (target, *of_weights), missing)
    columns, names = design.names, (*design.names, target)
    values, weight = values[:, : len(names)], values[:, -1] if of_weights else None
    check_varies(ends[:, : len(names)], names, target, table.name)
    folds = tuple(np.array_split(np.random.default_rng(seed).permutation(len(values)), FOLDS))
    if weight is not None:
        _check_weights(weight, folds, table.name, of_weights[0])
    x, y, said = values[:, :-1], values[:, -1], (*design.explain(), *remarks)
    data = Dataset(table.name, columns, target, x, y, folds, said, design, function, weight, stream)
    for fold in range(FOLDS):  # a column may be constant there, but not nearly so
        part = values[data.outside(fold)]
        varies = part.min(axis=0) < part.max(axis=0)
        where = f"{table.name}, without fold {fold + 1} of --seed {seed}"
        check_varies(part[:, varies], [name for name, moves in zip(names, varies, strict=True) if moves], target, where)
    return data


def _read(
    table: Table, design: Design, kept: tuple[str, ...], missing: str | None
) -> tuple[Rows, Rows, tuple[str, ...], Stream | None, Design]:
    """Return the rows of a table as a model has them, or of a large one a sample; rows with the ends of all columns.

    And remarks; a stream; the design with what the rows tell.

    Args:
        table: where they are; design: of the inputs and the context; kept: the target and the weights.
        missing: the option.
    """
    names, width, may_miss = (*design.columns, *kept), len(design.columns), missing is not None
    if table.size > tables.LARGE:
        return _read_pieces(table, design, kept, missing)
    learned = design.categories
    values, gaps, remarks = table.numbers(names, keep=kept, may_miss=may_miss, categories=learned)
    if gaps:
        lacks = np.isnan(values if missing == DROP else values[:, width:]).any(axis=1)
        if missing == INDICATOR:
            absent: Any = np.isnan(values[~lacks, :width]).any(axis=0)
            design = replace(design, indicators=tuple(compress(design.columns, absent)))
            design.check_names(table)
        elif missing == MEAN:
            design.check_gaps(values[:, :width], table, MISSING, strict=False)
        values = values[~lacks]
        filled = "" if missing == DROP else ", the other cells of numbers filled with means of their columns"
        remarks += (f"Missing cells: {gaps}. Rows left out: {lacks.sum()}{filled}.",)
    check_count(table, len(values))
    design = design.keep_present([values])
    design.check_varies(table.name)
    values = np.column_stack([design.expand(design.recode(values[:, :width], learned)), values[:, width:]])
    if gaps:
        fill_gaps(values, (*design.names, *kept), table.name)
    return values, values, remarks, None, design


def _read_pieces(
    table: Table, design: Design, kept: tuple[str, ...], missing: str | None
) -> tuple[Rows, Rows, tuple[str, ...], Stream | None, Design]:
    """Return what `_read` does of a table that is read in pieces."""
    if missing in (MEAN, INDICATOR):
        fix = "Fill them in, or use --missing drop."
        refuse(MISSING, f"drop, as {table.name} is read in pieces", missing, fix)
    names, learned = (*design.columns, *kept), design.categories
    pieces, gaps, remarks = table.pieces(names, keep=kept, may_miss=missing is not None, categories=learned)
    if gaps:
        design = design.keep_present(map(drop_gaps, pieces()))
    design.check_varies(table.name)
    stream = Stream(partial(_batches, pieces, design, learned))
    try:
        survey = stream.survey(HullConfig(design.in_dim, 1, 1, context_dim=len(design.names) - design.in_dim))
    except ValueError as error:  # weights below 0, or none above
        raise InputError(f"{table.name}: {error}") from None
    remarks += (f"Missing cells: {gaps}. Their rows are left out.",) * bool(gaps)
    said = f"{table.name} is read in pieces: the model learns from all {survey.rows:,} rows; what is compared,"
    remarks += (f"{said} tested and drawn is of {len(survey.x):,} of them, drawn at random.",)
    values = np.concatenate([survey.x, survey.target], axis=1)
    check_count(table, len(values))
    all_columns, target = survey.columns, survey.targets
    ends = [np.concatenate([all_columns.low, target.low]), np.concatenate([all_columns.high, target.high])]
    return values, np.stack(ends), remarks, stream, design


def check_count(table: Table, rows: int) -> None:
    """Check that a table has rows enough."""
    if rows < MIN_ROWS:
        refuse(table.name, f"at least {MIN_ROWS} rows", str(rows), "Add rows.")


def drop_gaps(values: Rows) -> Rows:
    """Return the rows in which no cell is missing."""
    return values[~np.isnan(values).any(axis=1)]


def _batches(pieces: Pieces, design: Design, learned: tables.Categories) -> Iterator[tuple[Any, ...]]:
    """Yield x, y, context and weights of a table in pieces, without the rows that have missing cells."""
    width, in_dim = len(design.columns), design.in_dim
    for values in map(drop_gaps, pieces()):
        x = design.expand(design.recode(values[:, :width], learned))
        context, weight = x[:, in_dim:], values[:, width + 1 :]
        yield (
            x[:, :in_dim],
            values[:, width],
            context if context.shape[1] else None,
            weight[:, 0] if weight.shape[1] else None,
        )


def _check_weights(weight: NDArray[np.float64], folds: Sequence[NDArray[np.int64]], where: str, name: str) -> None:
    """Check that weights are of a sign, and that they leave something to learn from and to measure by."""
    if (weight < 0).any():
        rule, fix = f"weights >= 0 in column {name!r}", "Correct or remove those rows."
        refuse(where, rule, f"{weight.min():g}", fix)
    count = int(np.count_nonzero(weight))
    if count < MIN_ROWS or not all(weight[fold].any() for fold in folds):
        rule = f"at least {MIN_ROWS} rows of a weight above 0 in column {name!r}, some in each fold"
        refuse(where, rule, str(count), "Add rows, or try another --seed.")


def _is_date(column: NDArray[np.float64]) -> bool:
    """Return whether all numbers are dates of the years 1900 to 2099 in eight digits."""
    if (column != np.round(column)).any() or column.min() < 19000101 or column.max() > 20991231:
        return False
    month, day = column // 100 % 100, column % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def remarks_on(data: Dataset) -> list[str]:
    """Return what should be known of the numbers before the results are believed: ids, dates, duplicates, few rows."""
    lines, x = [], data.x
    whole = [bool((column == np.round(column)).all() and len(np.unique(column)) == len(x)) for column in x.T]
    is_id = np.array([found or _ID.fullmatch(name) for name, found in zip(data.columns, whole, strict=True)], bool)
    if ids := [name for name, found in zip(data.columns, is_id, strict=True) if found]:
        drops = " ".join(f"--drop {shlex.quote(name)}" for name in ids[:8])
        lines.append(f"Perhaps an id, by its name or its whole numbers, all different: {shorten(ids)}. If so: {drops}.")
    if dates := [name for name, column in zip(data.columns, x.T, strict=True) if _is_date(column)]:
        better = "Days or years since some day would rise evenly."
        lines.append(f"Perhaps dates written as one number, as 20200131: {shorten(dates)}. {better}")
    rows = [row.tobytes() for row in np.column_stack([x[:, ~is_id | is_id.all()], data.y]) + 0.0]  # no -0
    places: dict[bytes, int] = {}
    several = {
        rows[n] for fold, part in enumerate(data.folds) for n in part if places.setdefault(rows[n], fold) != fold
    }
    if twice := sum(row in several for row in rows):
        lines.append(f"Duplicates: {twice} rows stand in several folds, which flatters the errors. Remove the copies.")
    if (count := len(x)) < FEW_ROWS:
        error = f"the errors are uncertain by {1 / math.sqrt(2 * count):.0%} or more"
        lines.append(f"Only {count} rows: {error}. Compare several --seed.")
    return lines

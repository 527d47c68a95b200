"""Which rows each copy of a hull learns from, and which judge it.

Source: Stone, Cross-validatory choice and assessment of statistical predictions, JRSS B 36, 1974. Differs from the
source: beside the folds, the rows of the largest leverage are held out together.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ..errors import fail

FOLDS, ROUNDS, ENOUGH = 5, 2, 1000  # as many folds of two rounds as hold so many rows out
FEWEST = 5  # rows, from which on folds are made
EXTREME = 0.05


class Parts(NamedTuple):
    """The rows of each copy; the last copy becomes the model.

    Args:
        train: numbers of the rows that it learns from, rising.
        held_out: of those that judge it; none for a copy that learns from all.
    """

    train: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]


def folds(x: np.ndarray, seed: int, first: np.ndarray | None = None) -> Parts:
    """Return a part for each fold, one for the extreme rows, and one for all rows; for few rows only that one.

    Args:
        x: `[N, D]`, finite.
        seed: of the folds.
        first: `[N]`, of each row the first that is equal to it (`first_copies`): copies stand in one fold, as a copy
            that is learned from would tell what is held out. None where there are none.
    """
    rows = np.arange(len(x))
    held_out: list[np.ndarray] = []
    if len(x) >= FEWEST:
        rng = np.random.default_rng([seed, 1])
        for _ in range(ROUNDS):
            parts = np.array_split(rng.permutation(len(x)), FOLDS)
            held_out += parts if first is None else gather_copies(parts, first)
        held_out = held_out[: math.ceil(ENOUGH * FOLDS / len(x))]
    if count := round(EXTREME * len(x)):
        held_out.append(np.argsort(leverage(x), kind="stable")[-count:])
    if len(held_out) == 2:  # of many rows one copy does
        held_out = [np.union1d(*held_out)]
    held_out = [np.sort(part) for part in held_out]
    train = [np.setdiff1d(rows, part, assume_unique=True) for part in held_out]
    return Parts((*train, rows), (*held_out, rows[:0]))


def first_copies(*arrays: np.ndarray) -> np.ndarray | None:
    """Return of each row the number of the first that is equal to it in all arrays, `[N]`; None where all differ."""
    whole = np.ascontiguousarray(np.concatenate(arrays, axis=1) + 0.0)  # -0 is 0
    keys = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1])))[:, 0]
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return None if len(first) == len(whole) else first[group]


def gather_copies(parts: list[np.ndarray], first: np.ndarray) -> list[np.ndarray]:
    """Return the parts with each row in that of the first row equal to it; as they are where one would be most rows."""
    of = np.empty(len(first), np.int64)
    for number, part in enumerate(parts):
        of[part] = number
    together = [np.flatnonzero(of[first] == number) for number in range(len(parts))]
    return together if min(map(len, together)) > 0 and 2 * max(map(len, together)) <= len(first) else parts


def share(rows: int, part: Any, seed: int) -> Parts:
    """Return one part: a share of the rows, drawn by the seed, is held out."""
    rule = "None for folds, (x, y), or a share of the rows from 0 to below 1"
    fix = "Leave it out for folds, pass 0 for none."
    if isinstance(part, bool) or not isinstance(part, Real):
        fail("fit", "validation", rule, repr(part), fix, TypeError)
    part = float(part)
    if not 0 <= part < 1:
        fail("fit", "validation", rule, repr(part), fix)
    order = np.random.default_rng([seed, 1]).permutation(rows)
    count = min(round(part * rows), rows - 2)
    return Parts((np.sort(order[count:]),), (np.sort(order[:count]),))


def leverage(x: np.ndarray) -> np.ndarray:
    """Return how far each row lies from the others, in units of their spread in its direction, `[N]`."""
    scale = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    return np.sum(z * np.linalg.solve(z.T @ z + x.shape[1] * np.eye(x.shape[1]), z.T).T, axis=1)

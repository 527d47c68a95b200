"""When a run takes which rows at which rate, and what it has seen: computed by numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ..errors import fail, whole_number

LEARNING_RATE = 3e-2
ADAM_DECAYS = 0.9, 0.99
EVALUATIONS = 40
PATIENCE = 20  # a good start is bettered only when the rate has come down
WARM_UP = 0.05
HELD_OUT = 0.2

Data = tuple[np.ndarray, np.ndarray]


class History(NamedTuple):
    """Losses at each evaluation, the first before any step, in standardised units.

    Args:
        step: steps taken so far.
        train_loss: mean over the batches since the evaluation before; at step 0 over about 10,000 rows at most.
        validation_loss: of the whole validation set, of the mean of the weights since the evaluation before; empty
            without a set.
    """

    step: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]


def checked_schedule(steps: Any, batch_size: Any, learning_rate: Any, seed: Any) -> float:
    """Return the peak learning rate after the checks of the schedule."""
    whole_number("fit", "steps", steps, 1)
    whole_number("fit", "batch_size", batch_size, 1)
    whole_number("fit", "seed", seed, 0)
    rate = LEARNING_RATE if learning_rate is None else learning_rate
    rule, fix = "a finite number > 0", "Pass None for the default."
    if not isinstance(rate, Real):
        fail("fit", "learning_rate", rule, repr(rate), fix, TypeError)
    rate = float(rate)
    if not 0 < rate < math.inf:
        fail("fit", "learning_rate", rule, repr(rate), fix)
    return rate


def default_rate(rows: int, in_dim: int) -> float:
    """Return the peak learning rate for so many training rows: lower for few, and for less than a quadratic form has.

    >>> default_rate(1600, 8), default_rate(1600, 16), default_rate(1600, 64)
    (0.2, 0.05, 0.01)
    """
    return min(max(min(rows / 5000, 0.008 * rows / in_dim**2), 0.01), 0.2)


def held_out_rows(rows: int, share: Any, seed: int) -> Data:
    """Return the numbers of the rows to train on, and of the `share` to hold out, drawn by the seed."""
    rule, fix = (
        "(x, y), or a share of the rows from 0 to below 1",
        f"Leave it out for {HELD_OUT}, pass 0 for none.",
    )
    if isinstance(share, bool) or not isinstance(share, Real):
        fail("fit", "validation", rule, repr(share), fix, TypeError)
    share = float(share)
    if not 0 <= share < 1:
        fail("fit", "validation", rule, repr(share), fix)
    whole_number("fit", "seed", seed, 0)
    order = np.random.default_rng([seed, 1]).permutation(rows)
    held = min(round(share * rows), rows - 2)
    return np.sort(order[held:]), np.sort(order[:held])


def learning_rates(steps: int, peak: float) -> np.ndarray:
    """Return the rate of every step: a linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    step = np.arange(steps)
    decay = 0.5 * (1 + np.cos(np.pi * np.clip((step - warm) / max(1, steps - warm), 0, 1)))
    return peak * np.where(step < warm, (step + 1) / warm, decay)


def chunks(rows: int, steps: int, batch_size: int, peak: float, seed: int, done: int = 0) -> Iterator[Data]:
    """Yield row numbers (steps, batch) and rates (steps,) up to each evaluation; an epoch is a permutation.

    The first `done` steps are left out.
    """
    rng = np.random.default_rng(seed)
    batch, rates = min(batch_size, rows), learning_rates(steps, peak)
    size, queue = math.ceil(steps / EVALUATIONS), np.empty(0, np.int64)
    if done > steps or (done % size and done != steps):
        fix = "Go on with the steps that the run was begun with."
        fail("fit", "resume", f"a multiple of {size} steps, at most {steps}", str(done), fix)
    for start in range(0, steps, size):
        length = min(size, steps - start)
        while len(queue) < length * batch:
            queue = np.concatenate([queue, rng.permutation(rows)])
        if start >= done:
            yield queue[: length * batch].reshape(length, batch), rates[start : start + length]
        queue = queue[length * batch :]


class Record:
    """What a run has seen so far: its losses, its best weights, whether to go on, and its progress bar."""

    def __init__(self, steps: int, progress: bool, resume: Any = None) -> None:
        self.history = History((), (), ()) if resume is None else resume.history
        self.best: Any = None if resume is None else resume.best
        self.best_step = 0 if resume is None else resume.best_step
        self._steps = steps
        self.bar: Any = nullcontext()
        if progress:
            self.bar = progress_bar()
        self._task: Any = None
        if progress:
            self._task = self.bar.add_task("training", total=steps, completed=self.step, loss="")

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.history.step[-1] if self.history.step else 0

    @property
    def finished(self) -> bool:
        """Whether `PATIENCE` evaluations have brought no better weights."""
        losses = self.history.validation_loss
        return bool(losses) and len(losses) - losses.index(min(losses)) > PATIENCE

    def add(self, steps: int, train_loss: float, validation_loss: float | None) -> bool:
        """Add an evaluation after so many steps, 0 for the start; returns whether its weights are the best so far."""
        for loss in (train_loss, validation_loss):
            if loss is not None and not math.isfinite(loss):
                fail("fit", "loss", "a finite number", repr(loss), "Lower learning_rate.", FloatingPointError)
        old = self.history
        held = () if validation_loss is None else (validation_loss,)
        step = self.step + steps
        self.history = History(
            (*old.step, step), (*old.train_loss, train_loss), (*old.validation_loss, *held)
        )
        losses = self.history.validation_loss
        best = not losses or losses[-1] <= min(losses)
        if best:
            self.best_step = step
        if self._task is not None:
            shown = train_loss if validation_loss is None else validation_loss
            total = step if self.finished else self._steps
            self.bar.update(self._task, completed=step, total=total, loss=f"loss {shown:.4g}")
        return best


def progress_bar() -> Any:
    """Return a bar that shows the loss and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    return Progress(*text, TimeRemainingColumn())

"""The losses of a run, what they decide, and the bar that shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import fail

PATIENCE = 20  # a good start is bettered only when the rate has come down


class History(NamedTuple):
    """Losses at each evaluation, the first before any step, in normalized units.

    Args:
        step: steps taken so far.
        train_loss: mean over the batches since the evaluation before; at step 0 over about 10,000 rows at most.
        validation_loss: of the whole validation set, of the mean of the weights since the evaluation before; empty
            without a set.
    """

    step: tuple[int, ...] = ()
    train_loss: tuple[float, ...] = ()
    validation_loss: tuple[float, ...] = ()

    @property
    def last_step(self) -> int:
        """The number of steps taken so far."""
        return self.step[-1] if self.step else 0

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation has a new least loss; without a validation set every one counts as better."""
        losses = self.validation_loss
        return not losses or losses.index(min(losses)) == len(losses) - 1

    @property
    def is_over(self) -> bool:
        """Whether `PATIENCE` evaluations have brought no better weights."""
        losses = self.validation_loss
        return bool(losses) and len(losses) - losses.index(min(losses)) > PATIENCE

    def add(self, steps: int, train_loss: float, validation_loss: float | None) -> History:
        """Return the history with one more evaluation, `steps` after the last."""
        for loss in (train_loss, validation_loss):
            if loss is not None and not math.isfinite(loss):
                fail("fit", "loss", "a finite number", repr(loss), "Lower learning_rate.", FloatingPointError)
        held_out = () if validation_loss is None else (validation_loss,)
        return History(
            (*self.step, self.last_step + steps), (*self.train_loss, train_loss), (*self.validation_loss, *held_out)
        )


@contextmanager
def progress_bar(shown: bool, steps: int, done: int) -> Iterator[Callable[[History], None]]:
    """Give a function that shows the last loss of a history, and the time left, on a bar; none where not `shown`."""
    if not shown:
        yield lambda history: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text, loss = TextColumn("{task.description}"), TextColumn("{task.fields[loss]}")
    with Progress(text, BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn()) as bar:
        task = bar.add_task("training", total=steps, completed=done, loss="")

        def show(history: History) -> None:
            last = (history.validation_loss or history.train_loss)[-1]
            total = history.last_step if history.is_over else steps
            bar.update(task, completed=history.last_step, total=total, loss=f"loss {last:.4g}")

        yield show

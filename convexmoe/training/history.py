"""The losses of a run, what they decide, and the bar that shows them."""

from __future__ import annotations

import math
import time
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
def progress_bar(shown: bool, steps: int, done: int) -> Iterator[Callable[[History, int], None]]:
    """Give a function that shows a history on a bar: its last loss, the rows a second, the time left.

    It takes the history, and how many rows were learned from since the call before; it shows nothing where not `shown`.
    """
    if not shown:
        yield lambda history, rows: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = [TextColumn(f"{{task.fields[{name}]}}") for name in ("loss", "speed")]
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *texts, TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("training", total=steps, completed=done, loss="", speed="")
        last_time = time.monotonic()

        def show(history: History, rows: int) -> None:
            nonlocal last_time
            now, before = time.monotonic(), last_time
            last_time = now
            last = (history.validation_loss or history.train_loss)[-1]
            total = history.last_step if history.is_over else steps
            speed = f"{rows / max(now - before, 1e-9):,.0f} rows/s" if rows else ""
            bar.update(task, completed=history.last_step, total=total, loss=f"loss {last:.4g}", speed=speed)

        yield show

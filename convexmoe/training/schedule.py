"""When a run takes which rows at which rate: computed by numpy, so that both packages take the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..errors import fail, whole_number

LEARNING_RATE = 3e-2
ADAM_DECAYS = 0.9, 0.99
EVALUATIONS = 40
WARM_UP = 0.05

Batches = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Schedule:
    """The options of a run, checked.

    Args:
        steps: steps of Adam, >= 1.
        batch_size: rows of a step, >= 1; all rows where there are fewer.
        learning_rate: the peak, finite and > 0; None for a default.
        seed: of the batches, >= 0.
        progress: whether to show a bar.
        evaluations: how many.
    """

    steps: int
    batch_size: int
    learning_rate: float | None
    seed: int
    progress: bool = False
    evaluations: int = EVALUATIONS

    def __post_init__(self) -> None:
        whole_number("fit", "steps", self.steps, 1)
        whole_number("fit", "batch_size", self.batch_size, 1)
        whole_number("fit", "seed", self.seed, 0)
        rate, rule, fix = self.learning_rate, "a finite number > 0", "Pass None for the default."
        if rate is not None and not isinstance(rate, Real):
            fail("fit", "learning_rate", rule, repr(rate), fix, TypeError)
        if rate is not None and not 0 < float(rate) < math.inf:
            fail("fit", "learning_rate", rule, repr(float(rate)), fix)

    def rates(self, done: int, default_rate: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yield for each evaluation the step after which its steps begin, and their rates (steps,).

        Args:
            done: steps of the run so far.
            default_rate: the peak where none is given.

        Raises:
            ValueError: this schedule has no evaluation after `done` steps.
        """
        peak = default_rate if self.learning_rate is None else float(self.learning_rate)
        rates, size = learning_rates(self.steps, peak), math.ceil(self.steps / self.evaluations)
        if done > self.steps or (done % size and done != self.steps):
            rule = f"a multiple of {size} steps, at most {self.steps}"
            fail("fit", "resume", rule, str(done), "Go on with the steps that the run was begun with.")
        for start in range(0, self.steps, size):
            yield start, rates[start : start + size]

    def batches(self, rows: int, done: int, default_rate: float) -> Iterator[Batches]:
        """Yield row numbers (steps, batch) and rates (steps,) up to each evaluation; an epoch is a permutation.

        Args:
            rows: rows to train on.
            done, default_rate: as for `rates`; what is done is left out.
        """
        rng, batch, queue = np.random.default_rng(self.seed), min(self.batch_size, rows), np.empty(0, np.int64)
        for start, rates in self.rates(done, default_rate):
            count = len(rates) * batch
            while len(queue) < count:
                queue = np.concatenate([queue, rng.permutation(rows)])
            if start >= done:
                yield queue[:count].reshape(-1, batch), rates
            queue = queue[count:]


def default_rate(rows: int, in_dim: int) -> float:
    """Return the peak learning rate for so many training rows: lower for few, and for less than a quadratic form has.

    >>> default_rate(1600, 8), default_rate(1600, 16), default_rate(1600, 64)
    (0.2, 0.05, 0.01)
    """
    return min(max(min(rows / 5000, 0.008 * rows / in_dim**2), 0.01), 0.2)


def learning_rates(steps: int, peak: float) -> np.ndarray:
    """Return the rate of every step: a linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    step = np.arange(steps)
    decay = 0.5 * (1 + np.cos(np.pi * np.clip((step - warm) / max(1, steps - warm), 0, 1)))
    return peak * np.where(step < warm, (step + 1) / warm, decay)

"""Training in PyTorch: one train step, the engine that `fit` runs on, and `train` for any module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from convexmoe import training as core
from convexmoe.hull import HullConfig
from convexmoe.training import ADAM_DECAYS, FitResult, FitState, History, Schedule, Weights

from ..files.optimizer import optimizer_state, restore
from ..hull.module import VectorHull, nest
from ..settings import one_thread

__all__ = ["ADAM_DECAYS", "FitResult", "FitState", "adam", "fit", "mean_squared_error", "train", "train_step"]

LARGEST_NORM = 1.0
LITTLE_WORK = 2**24  # multiply-adds of a forward pass: about a millisecond of one thread


def adam(module: nn.Module) -> torch.optim.Adam:
    """Return Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1); `train_step` sets its learning rate."""
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], betas=ADAM_DECAYS)


def train_step(module: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, float]) -> Tensor:
    """Take one step of the optimizer on the mean squared error; returns the loss before it.

    Args:
        module: the model, changed in place.
        optimizer: as `adam` gives it.
        batch: x, y and the learning rate.
    """
    x, y, learning_rate = batch
    loss = mean_squared_error(module(x), y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), LARGEST_NORM)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return loss.detach()


def mean_squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean over rows and coordinates of the squared error."""
    return torch.mean((prediction - y) ** 2)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into the mode of evaluation, then its parts back into theirs: held-out rows train nothing."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Engine(core.Engine):
    """A run of any module: steps of `adam` in place, on its device.

    Args:
        module: what is trained, in the mode that each of its parts is in.
        rows, held_out: x and y to train on, and those held out or None.
        batch_size: rows of a step.
    """

    def __init__(self, module: nn.Module, rows: Any, held_out: Any, batch_size: int) -> None:
        like = next(module.parameters())
        self.module, self.optimizer = module, adam(module)
        self.rows = [torch.as_tensor(part).to(like) for part in rows]
        self.held_out = None if held_out is None else [torch.as_tensor(part).to(like) for part in held_out]
        self.mean: dict[str, Tensor] = {}  # empty: the module's own
        self.work = min(batch_size, len(rows[0])) * sum(p.numel() for p in module.parameters())

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> float:
        with evaluation_mode(self.module), one_thread(self.work < LITTLE_WORK):
            return float(mean_squared_error(functional_call(self.module, self.mean, (x,)), y))

    def take_steps(self, rows: np.ndarray, rates: np.ndarray) -> float:
        (x, y), named = self.rows, dict(self.module.named_parameters())
        picked = torch.as_tensor(rows).to(x.device)
        self.mean = {name: torch.zeros_like(value) for name, value in named.items()}
        losses = []
        with one_thread(self.work < LITTLE_WORK):
            for step, (batch, rate) in enumerate(zip(picked, rates.tolist(), strict=True), 1):
                with torch.enable_grad():
                    losses.append(train_step(self.module, self.optimizer, (x[batch], y[batch], rate)))
                with torch.no_grad():
                    for name, value in named.items():
                        self.mean[name].lerp_(value, 1.0 / step)
            return float(torch.stack(losses).mean())

    def mean_weights(self) -> dict[str, Tensor]:
        """Return a copy of the module's state with the mean for its parameters, tied ones under each of their names."""
        means = {id(value): self.mean.get(name, value) for name, value in self.module.named_parameters()}
        named = self.module.named_parameters(remove_duplicate=False)
        state = self.module.state_dict() | self.mean | {name: means[id(value)] for name, value in named}
        return {name: value.detach().clone() for name, value in state.items()}

    def is_finite(self, weights: dict[str, Tensor]) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in weights.values())

    def resume(self, state: FitState) -> None:
        self.optimizer, self.mean = state.optimizer, state.best

    def state(self, history: History, best: dict[str, Tensor], best_step: int) -> FitState:
        return FitState(self.module, self.optimizer, history, best, best_step)

    def result(self, best: dict[str, Tensor]) -> Any:
        self.module.load_state_dict(best)
        return self.module


class HullEngine(Engine, core.HullEngine):
    """A run of a hull, in float32 at least: see `convexmoe.training.HullEngine`."""

    kind = VectorHull

    def __init__(self, model: VectorHull, config: HullConfig, rows: Any, held_out: Any, schedule: Schedule) -> None:
        self.config, self.given = config, model.params["shifts"].dtype
        hull = VectorHull.from_params(replace(config, normalization=None), model.params).to(wide(self.given))
        super().__init__(hull, rows, held_out, schedule.batch_size)
        self.parameters = dict(hull.named_parameters())

    @staticmethod
    def limits(model: VectorHull) -> tuple[Any, Any]:
        given = model.params["shifts"].dtype
        return torch.finfo(wide(given)), torch.finfo(given)

    @property
    def weights(self) -> Weights:
        return {name: value.detach().cpu().double().numpy().copy() for name, value in self.parameters.items()}

    @weights.setter
    def weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(torch.as_tensor(weights[name]))

    @torch.no_grad()
    def values(self, weights: Weights, x: np.ndarray) -> np.ndarray:
        self.weights = weights
        return self.module(torch.as_tensor(x).to(self.rows[0])).cpu().double().numpy()

    def resume(self, state: FitState) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state.model.get_parameter(name))
                self.mean[name] = state.best.get_parameter(name).to(value)
        restore(self.optimizer, self.module, state.optimizer)

    def state(self, history: History, best: dict[str, Tensor], best_step: int) -> FitState:
        hull, best_hull = (VectorHull.from_params(self.config, nest(part)) for part in (self.parameters, best))
        optimizer = optimizer_state(self.optimizer, self.module)
        return FitState(hull, optimizer, history, best_hull, best_step)

    def result(self, best: dict[str, Tensor]) -> VectorHull:
        cast = {name: value.to(self.given) for name, value in best.items()}
        core.check_finite(self.is_finite(cast), "Fit a float32 model: these are too large for the dtype.")
        return VectorHull.from_params(self.config, nest(cast))


fit = HullEngine.fit


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to train in: Adam's epsilon is zero in half precision."""
    return torch.promote_types(dtype, torch.float32)


def train(
    module: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    progress: bool = False,
    resume: FitState | None = None,
    on_evaluation: Callable[[FitState], bool | None] | None = None,
) -> FitResult[nn.Module]:
    """Minimize the mean squared error of any module by Adam, with warm-up, cosine decay and clipping.

    What is evaluated, in the mode of evaluation, and returned is the mean of the weights since the evaluation before.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30, 1992.
    Differs from the source: the mean begins anew at each of the `EVALUATIONS`.

    Args:
        module: the model, on any device, trained in place, in the mode that each of its parts is in.
        x, y: `[rows, ...]`, normalized.
        validation: the same for held-out rows: the module gets the best weights by its loss, and training stops when
            `PATIENCE` of the `EVALUATIONS` have brought none.
        steps, batch_size, learning_rate, seed, progress: as for `fit`.
        resume: where an earlier call with the same data and schedule stood, with the module as it was.
        on_evaluation: is given where training stands; True ends it there.

    Raises:
        ValueError: this schedule does not evaluate at the step of `resume`.
        FloatingPointError: the loss is no longer finite.
    """
    schedule = Schedule(steps, batch_size, learning_rate, seed, progress)
    engine = Engine(module, *core.given_rows(x, y, validation), batch_size)
    if resume is not None:
        engine.resume(resume)
    return core.run(engine, schedule, resume, on_evaluation)

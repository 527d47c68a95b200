"""Training in PyTorch: one train step, the engine that `fit` runs on, and `train` for any module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from convexmoe import training as core
from convexmoe.files import MOMENTS, OptimizerState, check_state
from convexmoe.hull import HullConfig
from convexmoe.training import ADAM_DECAYS, FitResult, FitState, Fold, History, Parts, Schedule, Weights

from ..files.optimizer import KEYS, KINDS
from ..hull import VectorHull, nest
from ..hull.forward import evaluate
from ..hull.petals import OPERATIONS, effective
from ..settings import one_thread, seeded

__all__ = ["ADAM_DECAYS", "FitResult", "FitState", "Fold", "adam", "fit", "mean_squared_error", "train", "train_step"]

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
        self.rows: Any = self.arrays(*rows)
        self.held_out = None if held_out is None else [torch.as_tensor(part).to(like) for part in held_out]
        self.named: dict[str, Any] = dict(module.named_parameters())
        self.mean_params: dict[str, Tensor] = {}  # empty: the module's own
        self.work = min(batch_size, len(rows[0])) * sum(p.numel() for p in module.parameters())

    @torch.no_grad()
    def loss(self, x: Tensor, y: Tensor) -> float:
        with evaluation_mode(self.module), one_thread(self.work < LITTLE_WORK):
            return float(mean_squared_error(functional_call(self.module, self.mean_params, (x,)), y))

    def take_steps(self, rows: np.ndarray, rates: np.ndarray, before: int = 0) -> float:
        x, y = self.rows
        picked = torch.as_tensor(rows).to(x.device)
        if not before:
            self.mean_params = {name: torch.zeros_like(value) for name, value in self.named.items()}
        losses = []
        with one_thread(self.work < LITTLE_WORK):
            for step, (batch, rate) in enumerate(zip(picked, rates.tolist(), strict=True), before + 1):
                with torch.enable_grad():
                    losses.append(self.step((x[batch], y[batch], rate)))
                with torch.no_grad():
                    for name, value in self.named.items():
                        self.mean_params[name].lerp_(value, 1.0 / step)
            return float(torch.stack(losses).mean())

    def step(self, batch: Any) -> Tensor:
        """Take one step; returns the loss before it."""
        return train_step(self.module, self.optimizer, batch)

    def mean_weights(self) -> Any:
        """Return a copy of the module's state with the mean for its parameters, tied ones under each of their names."""
        means = {id(value): self.mean_params.get(name, value) for name, value in self.module.named_parameters()}
        named = self.module.named_parameters(remove_duplicate=False)
        state = self.module.state_dict() | self.mean_params | {name: means[id(value)] for name, value in named}
        return {name: value.detach().clone() for name, value in state.items()}

    def is_finite(self, weights: Any) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in weights.values())

    def resume(self, state: FitState) -> Any:
        module, optimizer = state.kept or (state.model.state_dict(), state.optimizer.state_dict())
        self.module.load_state_dict(module)
        self.optimizer.load_state_dict(deepcopy(optimizer))
        self.mean_params = state.best
        return state.best

    def state(self, history: History, best: Any, best_step: int) -> FitState:
        kept = deepcopy((self.module.state_dict(), self.optimizer.state_dict()))
        return FitState(self.module, self.optimizer, history, best, best_step, kept=kept)

    def arrays(self, x: np.ndarray, y: np.ndarray) -> Any:
        return [torch.as_tensor(part).to(next(self.module.parameters())) for part in (x, y)]

    def result(self, best: Any) -> Any:
        self.module.load_state_dict(best)
        return self.module


class HullEngine(core.HullFit, Engine):
    """A fit of copies of a hull, stacked, in float32 at least: see `convexmoe.training.HullEngine`."""

    kind = VectorHull

    def __init__(
        self, model: VectorHull, config: HullConfig, objective: core.Objective, data: Any, parts: Parts, batch_size: int
    ) -> None:
        self.config, self.of_model, self.data, self.parts = config, model.params["shifts"].dtype, data, parts
        self.objective = objective
        self.like = model.params["shifts"].to(wide(self.of_model))
        self.rows, self.held_out = [torch.as_tensor(part).to(self.like) for part in data], None
        size = sum(p.numel() for p in model.parameters())
        self.work = min(batch_size, *map(len, parts.train)) * size
        self.forward = torch.func.vmap(partial(evaluate_flat, self.bare))

    @staticmethod
    def limits(model: VectorHull) -> tuple[Any, Any]:
        given = model.params["shifts"].dtype
        return torch.finfo(wide(given)), torch.finfo(given)

    def begin(self, weights: Sequence[Weights]) -> None:
        self.put({name: torch.stack([self.array(one[name]) for one in weights]) for name in weights[0]})

    def go_on(self, copies: Sequence[Fold]) -> None:
        hulls = [dict(model.named_parameters()) for model, _ in copies]
        for hull, (_, saved) in zip(hulls, copies, strict=True):
            check_state(saved, hull, KINDS, "adam")
        self.put({name: torch.stack([self.array(hull[name].detach()) for hull in hulls]) for name in hulls[0]})
        for name, value in self.named.items():
            own = {"step": torch.tensor(float(copies[0].optimizer.step))}
            for moment in MOMENTS["adam"]:
                own[KEYS[moment]] = torch.stack([saved.moments[moment][name].to(value) for _, saved in copies])
            self.optimizer.state[value] = own

    def put(self, stacked: dict[str, Tensor]) -> None:
        """Train such parameters from here on; their means begin anew."""
        self.named: dict[str, Any] = {name: value.requires_grad_() for name, value in stacked.items()}
        self.mean_params = {name: value.detach().clone() for name, value in self.named.items()}
        self.optimizer = torch.optim.Adam(self.named.values(), betas=ADAM_DECAYS, fused=self.like.is_cpu)

    def step(self, batch: Any) -> Tensor:
        """Take one step of every copy, each with its own clipping; returns the loss of the last before it."""
        x, y, learning_rate = batch
        losses = torch.mean(self.objective(self.forward(self.named, x), y, OPERATIONS.constant), dim=(1, 2))
        self.optimizer.zero_grad()
        losses.sum().backward()
        grads = [value.grad for value in self.named.values() if value.grad is not None]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        factor = (LARGEST_NORM / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return losses[-1].detach()

    def mean(self, copy: int) -> Weights:
        return {name: value[copy].cpu().double().numpy() for name, value in self.mean_params.items()}

    @torch.no_grad()
    def measure_by_function(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        found = self.objective(self.array(prediction), self.array(target), OPERATIONS.constant)
        return found.cpu().double().numpy()

    @torch.no_grad()
    def values(self, weights: Weights, x: np.ndarray) -> np.ndarray:
        flat = {name: self.array(value) for name, value in weights.items()}
        with one_thread(self.work < LITTLE_WORK):
            return evaluate_flat(self.inner, flat, self.array(x)).cpu().double().numpy()

    def copies(self) -> list[Fold]:
        states = {name: self.optimizer.state.get(value, {}) for name, value in self.named.items()}
        step = max(int(state.get("step", 0)) for state in states.values())
        found = []
        for copy in range(len(self.parts.train)):
            flat = {name: value[copy].detach() for name, value in self.named.items()}
            moments: dict[str, dict[str, Tensor]] = {moment: {} for moment in MOMENTS["adam"]}
            for name, state in states.items():
                for moment, arrays in moments.items():
                    value = state.get(KEYS[moment])
                    arrays[name] = torch.zeros_like(flat[name]) if value is None else value[copy].clone()
            hull = VectorHull.from_params(self.whole, nest(flat))
            found.append(Fold(hull, OptimizerState("adam", step, moments)))
        return found

    def hull(self, weights: Weights, given: bool = False) -> VectorHull:
        dtype = self.of_model if given else self.like.dtype
        flat = {name: self.array(value).to(dtype) for name, value in weights.items()}
        return VectorHull.from_params(self.whole, nest(flat))

    def weights_of(self, hull: VectorHull) -> Weights:
        return {name: value.detach().cpu().double().numpy() for name, value in hull.named_parameters()}

    @staticmethod
    def new(config: HullConfig, seed: int, like: VectorHull) -> VectorHull:
        shifts = like.params["shifts"]
        with seeded(seed), torch.device("cpu"):
            return VectorHull.from_config(config, dtype=shifts.dtype).to(shifts.device)

    def array(self, value: Any) -> Tensor:
        """Return numbers as a tensor of the dtype in training, on the device of the model."""
        return torch.as_tensor(value).to(self.like)


def evaluate_flat(config: HullConfig, flat: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the hull of columns of x and context from its parameters by dotted name."""
    D = config.in_dim
    context = x[:, D:] if config.context_dim else None
    return evaluate(effective(nest(flat), config), x if context is None else x[:, :D], config, context)


fit = HullEngine.fit
compare_curvature = HullEngine.compare_curvature


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to train in: Adam's epsilon is zero in half precision."""
    return torch.promote_types(dtype, torch.float32)


def train(
    module: nn.Module,
    x: Any,
    y: Any = None,
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
        x, y: `[rows, ...]`, normalized; or a `Stream` of such rows that do not fit into memory, and None.
        validation: the same for held-out rows: the module gets the best weights by its loss, and training stops when
            `PATIENCE` of the `EVALUATIONS` have brought none.
        steps, batch_size, learning_rate, seed, progress: as for `fit`.
        resume: where an earlier call with the same data and options stood; its weights replace those of the module.
        on_evaluation: is given where training stands; True ends it there.

    Raises:
        ValueError: `resume` is of other rows, or of other steps, batch_size, learning_rate or seed.
        FloatingPointError: the loss is no longer finite.
    """
    schedule = Schedule(steps, batch_size, learning_rate, seed, progress)
    engine = Engine(module, *core.given_rows(x, y, validation), batch_size)
    return core.train(engine, x, schedule, resume, on_evaluation)

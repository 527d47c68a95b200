"""Fitting by mean squared error: one train step, the loop around it, and `fit` for a hull.

Data, batches, learning rates and stopping are computed by numpy in float64, so that the same call trains the
same model in both packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from convexmoe.errors import fail, one_of
from convexmoe.training.data import (
    check_held_out,
    check_resumed,
    checked_data,
    split,
    standardisation,
    standardised,
)
from convexmoe.training.schedule import (
    ADAM_DECAYS,
    HELD_OUT,
    Data,
    History,
    Record,
    checked_schedule,
    chunks,
    default_rate,
)
from convexmoe.training.starts.affine import Weights, spread_rows
from convexmoe.training.starts.choose import STARTS, started

from ..files.optimizer import OptimizerState, optimizer_state, restored
from ..hull.module import VectorHull, nest
from ..hull.petals import Tree

LARGEST_NORM = 1.0
FLOAT32 = "Fit a float32 model: these are too large for the dtype."
LITTLE_WORK = 2**24  # about a millisecond of one thread


class FitResult(NamedTuple):
    """What `fit` returns.

    Args:
        model: the fitted hull, in the units of the data.
        history: its losses.
        best_step: the last of the steps whose mean weights the model has.
    """

    model: VectorHull
    history: History
    best_step: int


class FitState(NamedTuple):
    """Where `fit` stands after an evaluation: what it needs to go on, in either package.

    Args:
        model: the hull with the weights of this step, in the units of the data.
        optimizer: the state of Adam, which `save(model, path, optimizer=optimizer)` takes.
        history: the losses so far.
        best: the hull with the best weights so far, a mean over steps; best_step: the last of them.
    """

    model: VectorHull
    optimizer: OptimizerState
    history: History
    best: VectorHull
    best_step: int


class Trained(NamedTuple):
    """What `train` returns: the losses, and the last of the steps whose mean weights the module has."""

    history: History
    best_step: int


class Progress(NamedTuple):
    """Where `train` stands after an evaluation: what it needs to go on, beside the module itself.

    Args:
        optimizer: as `adam` gives it, in use: not a copy.
        history: the losses so far.
        best, best_step: the state dict of the best mean weights so far, and the last of their steps.
    """

    optimizer: torch.optim.Optimizer
    history: History
    best: dict[str, Tensor]
    best_step: int


def adam(module: nn.Module) -> torch.optim.Adam:
    """Return Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1); `train_step` sets its learning rate."""
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], betas=ADAM_DECAYS)


def train_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, float]
) -> Tensor:
    """Take one step of the optimiser on the mean squared error; returns the loss before it.

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


def train(
    module: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    *,
    validation: Data | None = None,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    progress: bool = False,
    resume: Progress | None = None,
    on_evaluation: Callable[[Progress], bool | None] | None = None,
) -> Trained:
    """Minimise the mean squared error of any module by Adam, with warm-up, cosine decay and clipping.

    What is evaluated, in the mode of evaluation, and returned is the mean of the weights since the evaluation before.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30, 1992.
    Differs from the source: the mean begins anew at each of the `EVALUATIONS`.

    Args:
        module: the model, on any device, trained in place, in the mode that each of its parts is in.
        x, y: `[rows, ...]`, standardised.
        validation: the same for held-out rows: the best weights by its loss are kept, and training
            stops when `PATIENCE` of the `EVALUATIONS` have brought none.
        steps, batch_size, learning_rate, seed, progress: as for `fit`.
        resume: where an earlier call with the same data and schedule stood, with the module as it was.
        on_evaluation: is given where training stands; True ends it there.

    Raises:
        ValueError: the step of `resume` is none at which this schedule evaluates.
        FloatingPointError: the loss is no longer finite.
    """
    learning_rate = checked_schedule(steps, batch_size, learning_rate, seed)
    like = next(module.parameters())
    x_train, y_train = (torch.as_tensor(part).to(like) for part in (x, y))
    held_out = None if validation is None else [torch.as_tensor(part).to(like) for part in validation]
    optimizer = adam(module) if resume is None else resume.optimizer
    record = Record(steps, progress, resume)

    @torch.no_grad()
    def loss_of(mean: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        with judging(module):
            return float(mean_squared_error(functional_call(module, mean, (x,)), y))

    def held_loss(mean: dict[str, Tensor]) -> float | None:
        return None if held_out is None else loss_of(mean, *held_out)

    with record.bar, few_threads(min(batch_size, len(x)) * sum(p.numel() for p in module.parameters())):
        if resume is None:
            record.add(0, loss_of({}, *spread_rows(x_train, y_train)), held_loss({}))
            record.best = copied(module)
        for rows, rates in chunks(len(x), steps, batch_size, learning_rate, seed, record.step):
            if record.finished:
                break
            picked = torch.as_tensor(rows).to(like.device)
            batches = ((x_train[r], y_train[r], rate) for r, rate in zip(picked, rates.tolist(), strict=True))
            mean = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
            losses = []
            for step, batch in enumerate(batches, 1):
                with torch.enable_grad():
                    losses.append(train_step(module, optimizer, batch))
                with torch.no_grad():
                    for name, value in module.named_parameters():
                        mean[name].lerp_(value, 1.0 / step)
            if record.add(len(rows), float(torch.stack(losses).mean()), held_loss(mean)):
                tied = {id(value): mean[name] for name, value in module.named_parameters()}
                names = module.named_parameters(remove_duplicate=False)
                record.best = copied(module) | {name: tied[id(value)] for name, value in names}
            if on_evaluation is not None and on_evaluation(
                Progress(optimizer, record.history, record.best, record.best_step)
            ):
                break
    check_finite(all(bool(torch.isfinite(value).all()) for value in record.best.values()))
    module.load_state_dict(record.best)
    return Trained(record.history, record.best_step)


@contextmanager
def judging(module: nn.Module) -> Iterator[None]:
    """Put a module into the mode of evaluation, then its parts back into theirs: held-out rows teach nothing."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state of a module."""
    return {name: value.clone() for name, value in module.state_dict().items()}


@contextmanager
def few_threads(work: int) -> Iterator[None]:
    """Let PyTorch use one thread while a step has little work: threads that wait for each other cost more than they do.

    Args:
        work: multiply-adds of a forward pass, about.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if work < LITTLE_WORK else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(
    model: VectorHull,
    x: np.ndarray,
    y: np.ndarray,
    *,
    validation: Data | float = HELD_OUT,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
    start: str | None = None,
    progress: bool = False,
    resume: FitState | None = None,
    on_evaluation: Callable[[FitState], bool | None] | None = None,
) -> FitResult:
    """Fit a hull to data by least squares and return it; the given model stays as it is.

    The data are standardised; means and deviations go into the config of the fitted model, which takes and
    gives original units. A model that has a normalization keeps it; one in half precision is fitted in float32
    and cast back.

    Args:
        model: the hull to start from.
        x: `[rows, in_dim]`, finite, original units.
        y: `[rows, out_dim]` (or `[rows]` for one output), finite, original units.
        validation: held-out `(x, y)`, or the share of the rows to hold out: they choose the best step, from the start
            on, and stop early. 0 trains on every row and gives the mean of the last steps, whatever the start was.
        steps: steps of Adam, >= 1.
        batch_size: rows a step, >= 1; all rows where there are fewer.
        learning_rate: peak of the schedule; None means `default_rate(rows to train on, in_dim)`.
        seed: of the batches, and of the rows to hold out.
        start: "affine": the given hull f as `c f(x) + a' x + b` with the least squares; "sums": the same plus a sum of
            convex functions of one input each; "planes": a maximum of planes, for hulls of many petals on few units.
            None means "sums" where the rows speak for it, else "affine". "sums" and "planes" take units and petals of a
            hull that was trained already. See `convexmoe/training/starts`.
        progress: show a bar with the loss and the time left.
        resume: where an earlier call with the same data and options stood (of the other package: read from its files,
            docs/pages/files.md): training goes on from there, and the model of it takes the place of `model`.
        on_evaluation: is given where training stands at each of the `EVALUATIONS`; True ends it there.

    Raises:
        TypeError, ValueError: data of the wrong shape, not finite, or too few; an unknown `start`; `resume` is of
            another config, of other held-out rows, or at a step at which this schedule does not evaluate.
        FloatingPointError: the loss is no longer finite.

    >>> rows = np.linspace(-1, 1, 64)[:, None]
    >>> hull = VectorHull(1, petals=4, out_dim=1)
    >>> fitted = fit(hull, rows, rows**2, steps=200).model
    """
    if start is not None:
        one_of("fit", "start", start, STARTS)
    config, given = model.config, model.params["shifts"].dtype
    wide = torch.promote_types(given, torch.float32)  # Adam's epsilon is zero in half precision
    x, y = checked_data("x", x, y, config)
    normalization = config.normalization or standardisation(x, y, torch.finfo(wide), torch.finfo(given))
    (x, y), held = split(x, y, validation, config, seed)
    rate = default_rate(len(x), config.in_dim) if learning_rate is None else learning_rate
    options: Any = {"steps": steps, "batch_size": batch_size, "learning_rate": rate}
    options |= {"seed": seed, "progress": progress}
    if len(held[0]):
        options["validation"] = standardised(*held, normalization)

    def hull_of(params: Tree) -> VectorHull:
        return VectorHull.from_params(replace(config, normalization=normalization), params)

    if resume is not None:
        if not isinstance(resume, FitState):
            got = f"{type(resume).__module__.removesuffix('.engine')}.{type(resume).__name__}"
            fix = "Pass what on_evaluation was given."
            fail("fit", "resume", "a FitState of this package", got, fix, TypeError)
        check_resumed(resume.model.config, replace(config, normalization=normalization))
    begin = model if resume is None else resume.model
    hull = VectorHull.from_params(replace(config, normalization=None), begin.params).to(wide)
    rows = standardised(x, y, normalization)
    if resume is None:
        set_start(hull, *rows, start)
    else:
        state = restored(adam(hull), hull, resume.optimizer)
        best = {name: value.detach() for name, value in resume.best.named_parameters()}
        check_held_out(resume.history.validation_loss, held_loss(hull, best, options.get("validation")))
        options["resume"] = Progress(state, resume.history, best, resume.best_step)
    if on_evaluation is not None:

        def stop(now: Progress) -> bool | None:
            state = optimizer_state(now.optimizer, hull)
            best = hull_of(nest(now.best))
            return on_evaluation(FitState(hull_of(hull.params), state, now.history, best, now.best_step))

        options["on_evaluation"] = stop
    history, best_step = train(hull, *rows, **options)
    check_finite(all(bool(torch.isfinite(value.to(given)).all()) for value in hull.parameters()), FLOAT32)
    return FitResult(hull_of(hull.to(given).params), history, best_step)


@torch.no_grad()
def held_loss(hull: VectorHull, weights: dict[str, Tensor], held: Data | None) -> float | None:
    """Return the loss of a hull without normalization with these weights on standardised rows."""
    if held is None:
        return None
    like = hull.get_parameter("shifts")
    x, y = (torch.as_tensor(part).to(like) for part in held)
    weights = {name: value.to(like) for name, value in weights.items()}
    return float(mean_squared_error(functional_call(hull, weights, (x,)), y))


@torch.no_grad()
def set_start(hull: VectorHull, x: np.ndarray, y: np.ndarray, start: str | None = None) -> None:
    """Start a hull without normalization on standardised rows, in place."""
    like = hull.get_parameter("shifts")

    def put(weights: Weights) -> None:
        for name, value in weights.items():
            hull.get_parameter(name).copy_(torch.as_tensor(value))

    def values(weights: Weights, x: np.ndarray) -> np.ndarray:
        put(weights)
        return hull(torch.as_tensor(x).to(like)).cpu().double().numpy()

    flat = {name: value.cpu().double().numpy().copy() for name, value in hull.named_parameters()}
    put(started(flat, hull.config, x, y, start, values))


def check_finite(finite: bool, fix: str = "Lower learning_rate.") -> None:
    """Check the weights of a run: the last step comes after the last loss, and the cast after both."""
    if not finite:
        fail("fit", "weights", "finite numbers", "inf or nan", fix, FloatingPointError)

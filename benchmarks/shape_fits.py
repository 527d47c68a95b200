"""What `shape.py` fits: hulls by `fit`, and peers; of each the best of three settings on parameters or rows held out.

Letters: N rows, D in, C context.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from networks import Rows as Copies
from networks import count, hull_network, match_size, mlp, train
from quality_tasks import Task
from shape_tasks import Parametric

from convexmoe.training import Expectile, Quantile
from convexmoe_jax import HullConfig, VectorHull, fit

PETALS, AT_ONCE, QUICK = 8, 20_000, 10
MLP_RATES, MLP_STEPS, BATCH = (0.002, 0.008, 0.03), 8000, 256
BOOSTING_RATES, TREES = (0.03, 0.1, 0.3), 1000
LBFGS_AT_ONCE = 100  # iterations after which lpcf says where it stands, and goes on
# Of a hull and of `fit`, beside the defaults.
OURS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "8,000 steps of 256": ({}, {"steps": 8000, "batch_size": 256}),
    "2 layers, 8,000 steps of 256": ({"depth": 2}, {"steps": 8000, "batch_size": 256}),
}
SMOOTH = {"activation": "logistic"}
ITS_OWN: dict[str, Any] = {"widths": [5, 5], "widths_psi": [10], **SMOOTH}
LONG: dict[str, Any] = {"rho_th": 0.0, "adam_epochs": 1000, "lbfgs_epochs": 4000}
QUADRATIC: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}), (SMOOTH, {}), (SMOOTH | {"quadratic": True}, {})]
# Of lpcf: what its examples pass to PCF and to fit, first, and other seeds or what its examples pass elsewhere.
LPCF: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "quadratics": QUADRATIC,
    "quadratics, by A": QUADRATIC,
    "battery": [(ITS_OWN, LONG | {"seeds": seed}) for seed in range(3)],
    "piecewise affine": [({}, {"seeds": seed}) for seed in range(3)],
}


class Found(NamedTuple):
    """What a setting came to: its error on what is held out, its name, and its values at the test rows."""

    held: float
    choice: str
    predicted: np.ndarray


def new_hull(x: np.ndarray, context: np.ndarray | None, seed: int = 0, **fields: Any) -> VectorHull:
    """Return a hull of one output for rows."""
    fields |= {} if context is None else {"context_dim": context.shape[1]}
    return VectorHull(x.shape[1], PETALS, 1, temperature="learned", rngs=nnx.Rngs(seed), **fields)


def values(model: Any, x: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """Return the values of a hull, `[N]`, so many rows at once that they fit into memory."""
    given = [part.astype(np.float32) for part in (x, context) if part is not None]
    call = nnx.jit(lambda model, *parts: model(*parts))
    cuts = range(AT_ONCE, len(x), AT_ONCE)
    parts = zip(*(np.split(part, cuts) for part in given), strict=True)
    return np.concatenate([np.asarray(call(model, *part), np.float64)[:, 0] for part in parts])


def rmse(predicted: np.ndarray, y: np.ndarray) -> float:
    """Return the root of the mean squared error, infinite for values that are not finite."""
    return float(np.nan_to_num(np.sqrt(np.mean((predicted - y) ** 2)), nan=np.inf))


def fit_ours(task: Parametric, limit: float, quick: bool) -> Iterator[Found]:
    """Fit hulls with a context by `fit`; it stops by the parameters held out."""
    (x, context, y), (x_held, context_held, y_held) = task.train, task.held
    for choice, (fields, options) in list(OURS.items())[: 1 if quick else None]:
        options = {"steps": QUICK} if quick else options
        given = (x_held, y_held, context_held)
        model = fit(new_hull(x, context, **fields), x, y, context, validation=given, **options).model
        held = rmse(values(model, x_held, context_held), y_held)
        yield Found(held, choice, values(model, *task.test[:2]))


def in_columns(task: Parametric) -> list[np.ndarray]:
    """Return x and context side by side: to learn from, held out, to judge by."""
    return [np.column_stack(rows[:2]) for rows in (task.train, task.held, task.test)]


def fit_mlp(task: Parametric, limit: float, quick: bool) -> Iterator[Found]:
    """Train MLPs of two layers and as many parameters as the hull on (x, context), each at a rate of its own."""
    columns, y, y_held = in_columns(task), task.train[2], task.held[2]
    mean, scale, offset, unit = columns[0].mean(0), columns[0].std(0), y.mean(), y.std()
    x, x_held, x_test = ((part - mean) / scale for part in columns)
    D, C = task.train[0].shape[1], task.train[1].shape[1]
    size = count(hull_network(HullConfig(D, PETALS, 1, temperature="learned", context_dim=C)))
    network, copies = match_size(lambda width: mlp(D + C, 1, width), size), len(MLP_RATES)
    rows = [x, (y[:, None] - offset) / unit, x_held, (y_held[:, None] - offset) / unit]
    stacked = Copies(*(np.broadcast_to(part, (copies, *part.shape)) for part in rows))
    begun, steps = [network.init(jax.random.key(0))] * copies, QUICK if quick else MLP_STEPS
    params, held = train(network, begun, stacked, steps, BATCH, MLP_RATES, [0] * copies)
    best = int(np.argmin(held))
    own = jax.tree.map(lambda leaf: leaf[best], params)
    found = np.asarray(jax.jit(network.apply)(own, x_test.astype(np.float32)), np.float64)
    yield Found(float(held[best]), f"rate {MLP_RATES[best]:g}", offset + unit * found[:, 0])


def fit_boosting(task: Parametric, limit: float, quick: bool) -> Iterator[Found]:
    """Boost trees on (x, context) until what is held out gets no better."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    (x, x_held, x_test), y, y_held = in_columns(task), task.train[2], task.held[2]
    for rate in BOOSTING_RATES:
        count = QUICK if quick else TREES
        trees = HistGradientBoostingRegressor(learning_rate=rate, max_iter=count, early_stopping=True, random_state=0)
        trees.fit(x, y, X_val=x_held, y_val=y_held)
        yield Found(rmse(trees.predict(x_held), y_held), f"rate {rate:g}", trees.predict(x_test))


def fit_lpcf(task: Parametric, limit: float, quick: bool) -> Iterator[Found]:
    """Fit lpcf in a process of its own, since it sets JAX to float64, one setting after the other while there is time.

    It says after every hundred iterations where it stands, so that a fit that is stopped counts with what it has.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_lpcf, args=(sender, task, limit, quick))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):  # of a process at its end
        while True:
            yield receiver.recv()
    process.join()


def send_lpcf(sender: Any, task: Parametric, limit: float, quick: bool) -> None:
    """Send what lpcf has found so far, again and again, until the process has computed for so many seconds."""
    from lpcf.pcf import PCF

    resource.setrlimit(resource.RLIMIT_CPU, (round(limit), round(limit)))
    x, context, y = task.train
    for number, (fields, options) in enumerate(LPCF[task.name][: 1 if quick else None]):
        model, options = PCF(**fields), {"seeds": 0} | options
        adam, left = options.pop("adam_epochs", 200), options.pop("lbfgs_epochs", 2000)
        adam, left, done = (QUICK, QUICK, 0) if quick else (adam, left, 0)
        while done < left:
            now = min(left - done, LBFGS_AT_ONCE)
            with (
                open(os.devnull, "w") as silent,
                contextlib.redirect_stdout(silent),
                contextlib.redirect_stderr(silent),
            ):
                model.fit(y[:, None], x, context, cores=1, adam_epochs=adam, lbfgs_epochs=now, **options)
            adam, done = 0, done + now
            predicted, held = (np.asarray(model.predict(*part[:2]))[:, 0] for part in (task.test, task.held))
            choice = f"setting {number + 1}, {done} of {left} iterations"
            sender.send(Found(rmse(held, task.held[2]), choice, predicted))


PARAMETRIC_MODELS: dict[str, Callable[[Parametric, float, bool], Iterator[Found]]] = {
    "ours": fit_ours,
    "lpcf": fit_lpcf,
    "MLP": fit_mlp,
    "boosting": fit_boosting,
}


def choose(estimator: Any, grid: dict[str, Any] | list[dict[str, Any]], x: np.ndarray, y: np.ndarray, **options: Any):
    """Return scikit-learn's estimator with the setting of a grid that errs least in five folds, fitted to all rows."""
    from sklearn.model_selection import GridSearchCV, KFold

    folds = KFold(5, shuffle=True, random_state=0)
    return GridSearchCV(estimator, grid, cv=folds, **{"scoring": "neg_mean_squared_error"} | options).fit(x, y)


def rising_mlp(task: Task, seed: int, quick: bool) -> np.ndarray:
    """Predict by scikit-learn's MLP on standardized rows, its penalty chosen."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPRegressor(solver="lbfgs", max_iter=QUICK if quick else 500, random_state=seed)
    whole = TransformedTargetRegressor(make_pipeline(StandardScaler(), network), transformer=StandardScaler())
    grid = {"regressor__mlpregressor__alpha": [0.1, 1.0, 10.0]}
    with warnings.catch_warnings():  # some do not converge to the last digit
        warnings.simplefilter("ignore", ConvergenceWarning)
        return choose(whole, grid, task.x, task.y[:, 0]).predict(task.x_test)


# Of few rows: how many are in a leaf at least, how fast, how many trees.
LEAVES = [
    {"min_samples_leaf": [leaf], "learning_rate": [rate], "max_iter": [trees]}
    for leaf, rate, trees in ((5, 0.1, 100), (20, 0.1, 100), (10, 0.03, 300))
]


def rising_boosting(task: Task, seed: int, quick: bool, sign: int = 0) -> np.ndarray:
    """Predict by boosted trees, rising in every input for a sign of 1."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = HistGradientBoostingRegressor(monotonic_cst=[sign] * task.x.shape[1], random_state=seed)
    return choose(trees, LEAVES[: 1 if quick else None], task.x, task.y[:, 0]).predict(task.x_test)


def rising_hull(task: Task, seed: int, quick: bool, sign: int = 0) -> np.ndarray:
    """Predict by a hull, rising in every input for a sign of 1."""
    monotone = (sign,) * task.x.shape[1] if sign else None
    hull, options = new_hull(task.x, None, seed, monotone=monotone), {"steps": QUICK} if quick else {}
    return values(fit(hull, task.x, task.y, seed=seed, compare=False, **options).model, task.x_test)


RISING_MODELS: dict[str, Callable[[Task, int, bool], np.ndarray]] = {
    "MLP": rising_mlp,
    "boosting": rising_boosting,
    "boosting, monotone": lambda task, seed, quick: rising_boosting(task, seed, quick, 1),
    "hull": rising_hull,
    "hull, monotone": lambda task, seed, quick: rising_hull(task, seed, quick, 1),
}
LOSSES: dict[str, Any] = {"quantile": Quantile, "expectile": Expectile}


def level_losses(loss: str, level: float, residual: np.ndarray) -> np.ndarray:
    """Return the loss of every residual y - prediction, by numpy."""
    size = np.abs(residual) if loss == "quantile" else residual**2
    return np.where(residual >= 0, level, 1 - level) * size


def share_below(loss: str, residual: np.ndarray) -> float:
    """Return what should be the level: the share of rows below the prediction, or of all distances to it."""
    weight = np.ones_like(residual) if loss == "quantile" else np.abs(residual)
    return float(np.sum(weight * (residual <= 0)) / np.sum(weight))

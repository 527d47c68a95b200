"""`ConvexRegressor`: `fit` of a new hull, as an estimator of scikit-learn."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from convexmoe.errors import fail, one_of
from convexmoe.hull import HullConfig
from convexmoe.training import Expectile, Quantile
from convexmoe.training.curvature import CONCAVE, CONVEX, NEITHER
from convexmoe.training.data import check_weight
from convexmoe.training.losses import SQUARED
from convexmoe.training.parts import FEWEST
from convexmoe.training.shapes import AUTO

from .. import frameworks
from ..command.function import Function
from ..command.leverage import outside
from ..command.saved_model import notes_of
from .columns import ALL, OWNER, check_frame, signs_of, split_columns

Rows = NDArray[np.float64]
HINT = "fit.y: expected a"  # how the warning of `fit` begins: here it names the argument of the estimator
FILE = "model.safetensors"


class ConvexRegressor(RegressorMixin, BaseEstimator):
    """A convex function of the columns, or of some of them, fitted to a table: the `VectorHull` that `fit` makes of it.

    It is convex (or concave) and has the signs asked for everywhere, whatever the weights: `certify` proves it. What
    happens in `fit` is on docs/pages/fitting.md, what the options say of the function on docs/pages/shapes.md.

    Args:
        convex: "all", or the columns by name or by place (0, 1, ...) in which the function is convex. In the others,
            its context, nothing is assumed: categories as columns of 0 and 1, for example.
        monotone: a dict of columns to 1 where the function rises along them, -1 where it falls.
        curvature: "convex", "concave", or "auto": what short fits to the rows speak for, convex if for neither.
        nonnegative: whether it is >= 0; a concave one <= 0.
        petals, hidden_dim, depth, trunk, group_size, temperature, activation, strong_convexity: of the hull
            (`HullConfig`); temperature="learned" is the setting to fit with.
        loss: "squared", "absolute", `Huber(delta)`, `Quantile(level)`, `Expectile(level)` of `convexmoe.training`, or a
            function, as for `fit`.
        steps, batch_size, learning_rate: of `fit`.
        shape: None for the options above; "auto" tries other shapes, rates and steps on rows held out, `shape_` is what
            it took.
        budget: seconds for shape="auto", finite and above 0.
        framework: "jax", "torch", or "auto": JAX where it is installed, else PyTorch.
        random_state: of the weights, the folds and the batches: a number, a RandomState, or None for another each time.
        progress: show a bar with the loss and the time left.

    Attributes:
        model_: the fitted `VectorHull` of the framework; its inputs stand in the order of the columns.
        curvature_: what short fits say of the curvature, with `words()`; None where they are not made: with fewer than
            five rows, a loss that has a level, nonnegative, or, but for "auto", signs.
        shape_, gain_: what shape="auto" took, in words, and the mean loss of the options above over its own on the rows
            held out that chose; None without it.
        history_: the losses of the run.
        framework_: "jax" or "torch".
        inputs_, context_: the numbers of the columns in which it is convex, and of the others.
        n_features_in_: how many columns there are.
        feature_names_in_: `[n_features_in_]`, their names, where X has names that are all text.

    >>> from interop.sklearn import ConvexRegressor
    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> model = ConvexRegressor(steps=100, framework="torch", random_state=0).fit(x, x[:, 0] ** 2)
    >>> model.score(x, x[:, 0] ** 2) > 0.9, model.certify().verdict
    (True, 'proved')
    """

    def __init__(
        self,
        *,
        convex: Any = ALL,
        monotone: Any = None,
        curvature: str = CONVEX,
        nonnegative: bool = False,
        petals: int = 8,
        hidden_dim: int | None = None,
        depth: int = 1,
        trunk: str = "shared",
        group_size: int = 2,
        temperature: float | str = "learned",
        activation: str = "softplus",
        strong_convexity: float = 0.0,
        loss: Any = SQUARED,
        steps: int = 2000,
        batch_size: int = 128,
        learning_rate: float | None = None,
        shape: str | None = None,
        budget: float = 60.0,
        framework: str = AUTO,
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.convex = convex
        self.monotone = monotone
        self.curvature = curvature
        self.nonnegative = nonnegative
        self.petals = petals
        self.hidden_dim = hidden_dim
        self.depth = depth
        self.trunk = trunk
        self.group_size = group_size
        self.temperature = temperature
        self.activation = activation
        self.strong_convexity = strong_convexity
        self.loss = loss
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.shape = shape
        self.budget = budget
        self.framework = framework
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ConvexRegressor:
        """Fit the function to a table; returns the estimator.

        Args:
            X: `[rows, columns]`, finite numbers: an array, or a frame of pandas or Polars, whose names `convex` and
                `monotone` may use.
            y: `[rows]`, or `[rows, outputs]` for several convex functions in one.
            sample_weight: `[rows]`, >= 0: how much each row counts in the loss; None for alike. Rows of 0 are left out.

        Raises:
            TypeError, ValueError: cells that are no finite numbers, fewer than two rows, an option that does not fit.
            UserWarning: the rows speak for the other curvature; "auto" takes it.
        """
        self.__dict__.pop("model_", None)  # a fit that fails leaves no model of other columns
        check_frame(X, not isinstance(self.convex, str) or self.monotone is not None)
        target = getattr(y, "name", None)
        x, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        names = list(getattr(self, "feature_names_in_", ()))
        self.inputs_, self.context_ = split_columns(self.convex, names, x.shape[1])
        config = self._config(
            1 if y.ndim == 1 else y.shape[1], signs_of(self.monotone, self.inputs_, names, x.shape[1])
        )
        one_of(OWNER, "framework", self.framework, (AUTO, *frameworks.LABELS))
        side = frameworks.choose(None if self.framework == AUTO else self.framework)
        known, level = self.random_state, isinstance(self.loss, (Expectile, Quantile))
        seed = int(known) if isinstance(known, Integral) else int(check_random_state(known).randint(2**31))
        counts = slice(None) if sample_weight is None else check_weight(sample_weight, len(x)) > 0
        options: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size, "seed": seed}
        inputs, context = self._split(x)
        with side.quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", HINT, UserWarning)
            compared = None
            if self.curvature == AUTO and np.count_nonzero(np.ones(len(x), bool)[counts]) >= FEWEST:
                free = side.new_hull(replace(config, monotone=None), seed)
                some = (part if part is None else part[counts] for part in (inputs, y, context))
                compared = side.package.compare_curvature(free, *some, **options)
                config = replace(config, curvature=CONCAVE if compared.shown == CONCAVE else CONVEX)
            options |= {"learning_rate": self.learning_rate, "shape": self.shape, "budget": self.budget}
            options |= {"progress": self.progress, "compare": self.curvature != AUTO and not level}
            new = side.new_hull(config, seed)
            found = side.package.fit(new, inputs, y, context, sample_weight, self.loss, **options)
        self.model_, self.history_, self.framework_ = found.model, found.history, side.name
        self.curvature_, self.shape_ = compared or found.curvature, found.shape or None
        self.gain_ = found.gain if found.shape else None
        self._single = y.ndim == 1
        self._notes = self._describe(x[counts], y[counts], target if isinstance(target, str) else "y")
        self._warn_of_curvature()
        return self

    def predict(self, X: Any) -> Rows:
        """Return the values of the function at rows, `[rows]`, or `[rows, outputs]` where y had two axes.

        They are computed in float64, so that no value depends on the other rows; `model_` computes in float32.
        """
        inputs, context = self._read(X)
        side = frameworks.get(self.framework_)
        with side.quiet(), side.precision(True):
            y = side.package.predict(side.widen(self.model_), inputs, context)
        return y[:, 0] if self._single else y

    def outside(self, X: Any) -> NDArray[np.bool_]:
        """Return which rows, `[rows]`, lie outside those of `fit`: beyond a column's range, or in combination.

        They are those that `convexmoe predict --flag` marks.
        """
        inputs, context = self._read(X)
        place = outside(self._notes, inputs if context is None else np.concatenate([inputs, context], axis=1))
        return place.beyond.any(axis=1) | place.combined

    def certify(self) -> Any:
        """Return the `Certificate` that the function is convex, or concave, in its inputs: `certify` of its hull."""
        check_is_fitted(self, "model_")
        side, units = frameworks.get(self.framework_), self.model_.config.normalization
        means = (units.input_mean, units.context_mean) if self.context_ else (units.input_mean,)
        with side.quiet():
            return side.package.certify(self.model_, tuple(side.rows_for(self.model_, np.array([m])) for m in means))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the hull to a file for `load` of either package, and for `convexmoe predict`, `certify`, `minimize`."""
        check_is_fitted(self, "model_")
        frameworks.get(self.framework_).package.save(self.model_, path, notes=self._notes)

    def _config(self, outputs: int, signs: tuple[int, ...] | None) -> HullConfig:
        """Return the config of a new hull, the options checked; with curvature="auto" the convex one."""
        one_of(OWNER, "curvature", self.curvature, (CONVEX, CONCAVE, AUTO))
        if self.curvature == AUTO and (self.nonnegative or isinstance(self.loss, (Expectile, Quantile))):
            rule, fix = '"convex" or "concave" for a nonnegative function, or a loss with a level', "Say which it is."
            fail(OWNER, "curvature", rule, '"auto", which compares functions of the mean', fix)
        return HullConfig(
            len(self.inputs_),
            self.petals,
            outputs,
            hidden_dim=self.hidden_dim,  # type: ignore[arg-type]  # None is replaced
            depth=self.depth,
            trunk=self.trunk,
            group_size=self.group_size,
            temperature=self.temperature,
            activation=self.activation,
            strong_convexity=self.strong_convexity,
            context_dim=len(self.context_),
            monotone=signs,
            curvature=CONVEX if self.curvature == AUTO else self.curvature,
            nonnegative=self.nonnegative,
        )

    def _read(self, X: Any) -> tuple[Rows, Rows | None]:
        """Return the inputs and the context of rows to predict, after their checks."""
        check_is_fitted(self, "model_")
        return self._split(validate_data(self, X, dtype=np.float64, reset=False))

    def _split(self, x: Rows) -> tuple[Rows, Rows | None]:
        """Return the columns of the inputs, and those of the context; None where there are none."""
        return x[:, self.inputs_], x[:, self.context_] if self.context_ else None

    def _describe(self, x: Rows, y: Rows, target: str) -> dict[str, Any]:
        """Return the notes that go into the file: names of columns, and what `outside` reads of the rows."""
        order = self.inputs_ + self.context_
        names = list(getattr(self, "feature_names_in_", [f"x{k}" for k in range(x.shape[1])]))
        function = Function(context=tuple(names[k] for k in self.context_))
        return notes_of(tuple(names[k] for k in order), target, x[:, order], y, function)

    def _warn_of_curvature(self) -> None:
        """Warn where the rows speak for the other curvature than that of the hull."""
        found, fitted = self.curvature_, self.model_.config.curvature
        if found is not None and found.shown not in (fitted, NEITHER):
            text = f"expected a {fitted} function; got rows that speak for {found.words()}"
            warnings.warn(f'{OWNER}.y: {text}. Pass curvature="{found.shown}" or "auto".', stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the hull as the bytes of its file."""
        state = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                self.save(path := Path(folder, FILE))
                state["model_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the hull from the bytes of its file, in the other framework where its own is not installed."""
        super().__setstate__(state)
        if "model_" in state:
            known = frameworks.installed()
            side = frameworks.choose(self.framework_ if self.framework_ in known else None)
            with tempfile.TemporaryDirectory() as folder, side.quiet():
                path = Path(folder, FILE)
                path.write_bytes(state["model_"])
                self.model_, self.framework_ = side.package.load(path), side.name

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

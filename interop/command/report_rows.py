"""What the pictures of a run need beside its model and its metrics: some of its rows, what was predicted, its losses.

`fit` writes it as `report.safetensors`, so that `convexmoe report` needs no table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexmoe.errors import refuse
from convexmoe.training import History

Array = NDArray[np.float64]
FILE = "report.safetensors"
MOST_ROWS = 2000
_PREDICTED, _HISTORY = "predicted/", "history/"
_FIX = "Fit anew: convexmoe fit writes it."


@dataclass(frozen=True)
class ReportRows:
    """Rows of a run for its pictures.

    Attributes:
        x: `[N, in_dim + context_dim]`; y: targets, `[N]`; at most 2,000 of the rows.
        predicted: by each model, fitted without the row's fold, `[N]`.
        history: the losses of the saved model.
    """

    x: Array
    y: Array
    predicted: dict[str, Array]
    history: History

    @classmethod
    def draw(cls, x: Array, y: Array, predicted: dict[str, Array], history: History, seed: int) -> ReportRows:
        """Return all rows, or as many as are kept, drawn by `seed`, in their order."""
        part: Any = slice(None)
        if len(y) > MOST_ROWS:
            part = np.sort(np.random.default_rng(seed).choice(len(y), MOST_ROWS, replace=False))
        return cls(x[part], y[part], {name: values[part] for name, values in predicted.items()}, history)

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        from safetensors.numpy import save

        arrays = {"x": self.x, "y": self.y} | {_PREDICTED + name: of for name, of in self.predicted.items()}
        arrays |= {_HISTORY + name: np.asarray(of, np.float64) for name, of in self.history._asdict().items()}
        return save({name: np.array(array, np.float64, order="C") for name, array in arrays.items()})

    @classmethod
    def read(cls, folder: Path, width: int) -> ReportRows:
        """Return what the file of a run holds, `width` columns wide.

        Raises:
            InputError: there is none, or it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = folder / FILE
        try:
            arrays = load(path.read_bytes())
            x, y, _ = arrays.pop("x"), arrays.pop("y"), arrays[f"{_PREDICTED}hull"]
            history = History(
                tuple(int(step) for step in arrays.pop(_HISTORY + "step")),
                *(tuple(arrays.pop(_HISTORY + name).tolist()) for name in History._fields[1:]),
            )
            predicted = {name.removeprefix(_PREDICTED): array for name, array in arrays.items()}
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, OverflowError):
            refuse(path, "the rows that convexmoe fit keeps for pictures", "none that can be read", _FIX)
        losses = [np.array(part) for part in (history.train_loss, history.validation_loss or history.train_loss)]
        shapes = [{array.shape for array in (y, *predicted.values())}, {array.shape for array in losses}]
        right = shapes == [{(y.size or 1,)}, {(len(history.step) or 1,)}] and x.shape == (y.size, width)
        numbers = [x, y, *predicted.values(), *losses]
        if not right or not all(array.dtype == np.float64 and np.isfinite(array).all() for array in numbers):
            refuse(path, f"rows of {width} columns, a prediction a row, and losses", "other numbers", _FIX)
        return cls(x, y, predicted, history)

"""The largest errors allowed, relative to the largest value, by dtype. Loosening one needs a written reason."""

import numpy as np

# against the reference in float64, with weights and inputs rounded to the dtype first: a few dozen roundings
VALUES = {"float64": 1e-13, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}

# central differences of the reference, step 1e-6, resolve no more
DIFFERENCES = 1e-7

# two frameworks after a few hundred steps of Adam in float32, where the last bits differ from the first step on
HISTORY = 1e-5


def relative_error(got, wanted) -> float:
    """The largest difference relative to the largest value wanted; inf where shapes differ or a NaN stands."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    if got.shape != wanted.shape:
        return float("inf")
    size = max(np.max(np.abs(wanted), initial=0.0), np.finfo(np.float32).tiny)
    error = np.max(np.abs(got - wanted), initial=0.0) / size
    return float(error) if np.isfinite(error) else float("inf")

"""`fold()` is the same function, and stays what it was when the model moves on."""

import backends
import cases
import numpy as np
import pytest
from tolerances import VALUES, relative_error

HULLS = ["default", "private", "learned", "gate", "units_smooth"]
MORE = ["deep", "plain_max", "smooth_plain", "one_petal"]


@pytest.mark.parametrize("seed", cases.SEEDS)
@pytest.mark.parametrize("hull", [*HULLS, *(pytest.param(hull, marks=pytest.mark.release) for hull in MORE)])
def test_folded_equals_the_model(backend, hull, seed):
    fields = cases.HULLS[hull]
    model = backend.model(fields, cases.random_weights(fields, seed))
    x = cases.random_inputs(fields, seed=seed)
    folded = backend.fold(model)
    assert isinstance(folded, backend.package.FoldedHull)
    assert relative_error(backend.apply(folded, x), backend.apply(model, x)) < VALUES["float64"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("hull", ["private", pytest.param("deep", marks=pytest.mark.release)])
def test_folded_keeps_the_dtype(backend, hull, dtype):
    fields = cases.HULLS[hull]
    model = backend.model(fields, cases.random_weights(fields), dtype)
    x = cases.random_inputs(fields).astype(backends.NAMES[dtype])
    folded, whole = backend.apply(backend.fold(model), x), backend.apply(model, x)
    assert str(folded.dtype) == dtype
    assert relative_error(folded, whole) < 2 * VALUES[dtype]


def test_control_folding_without_the_shifts_is_seen(backend):
    fields = cases.HULLS["default"]
    weights = cases.random_weights(fields)
    x = cases.random_inputs(fields)
    folded = backend.fold(backend.model(fields, weights | {"shifts": np.zeros(fields["petals"])}))
    assert relative_error(backend.apply(folded, x), backend.apply(backend.model(fields, weights), x)) > 1e-2


def test_folded_raises_as_the_model_does(backend):
    fields = cases.HULLS["default"]
    folded = backend.fold(backend.model(fields, cases.random_weights(fields), "float32"))
    with pytest.raises(ValueError, match=r"expected last axis in_dim=5; got float32\[11, 7\]"):
        folded(backend.array(np.zeros((cases.ROWS, 7), np.float32)))

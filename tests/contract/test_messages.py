"""Wrong fields, inputs and weights raise the text of the table: the same in both packages."""

import cases
import jax
import numpy as np
import pytest
from backends import BACKENDS

import convexmoe_jax
from convexmoe import HullConfig, Normalization


@pytest.mark.parametrize(("fields", "kind", "message"), cases.BAD_FIELDS, ids=[m[:60] for *_, m in cases.BAD_FIELDS])
def test_a_wrong_field_is_refused(fields, kind, message):
    """The config stands in the core, which both packages take theirs from (test_config.py)."""
    units = fields["normalization"]
    with pytest.raises(kind) as error:
        HullConfig(**(fields | {"normalization": units and Normalization(**units)}))
    assert type(error.value) is kind and str(error.value) == message


@pytest.mark.parametrize(("shape", "dtype", "kind", "message"), cases.BAD_INPUTS)
def test_a_wrong_input_is_refused(backend, shape, dtype, kind, message):
    fields = cases.HULLS["default"]
    model = backend.model(fields, cases.random_weights(fields), "float32")
    x = backend.array(np.zeros(shape, dtype))
    for call in (model, model.winners, backend.fold(model)):
        with pytest.raises(kind) as error:
            call(x)
        assert type(error.value) is kind and str(error.value) == message


def test_what_is_no_array_is_refused(backend):
    fields = cases.HULLS["default"]
    model = backend.model(fields, cases.random_weights(fields), "float32")
    message = "VectorHull.x: expected an array; got list. Convert it to an array of this framework first, or call "
    message += "predict(model, x), which takes any numbers."
    with pytest.raises(TypeError) as error:
        model([[0.0] * 5])
    assert str(error.value) == message


def test_all_faults_of_weights_are_named_at_once(backend):
    fields = cases.HULLS["default"]
    weights = cases.random_weights(fields)
    weights["extra.weight"] = weights.pop("shifts")
    weights["readout.weight"] = weights["readout.weight"].swapaxes(1, 2)
    weights["trunk.0.weight"] = weights["trunk.0.weight"].T
    with pytest.raises(ValueError) as error:
        backend.model(fields, weights)
    assert str(error.value) == (
        "VectorHull.weights: expected the 6 arrays of its config; got missing shifts; unexpected extra.weight; "
        "readout.weight has shape [5, 2, 3], not [5, 3, 2]; trunk.0.weight has shape [7, 5], not [5, 7]. "
        "Use the config that the weights were made with."
    )


def test_weights_of_two_dtypes_are_refused(backend):
    """One array of another dtype would promote the output silently, or fail deep inside a product."""
    fields = cases.HULLS["default"]
    model = backend.model(fields, cases.random_weights(fields), "float32")
    flat = backend.package.hull.flatten(model.params)
    flat["readout.bias"] = backend.array(np.zeros((3, 2), np.float16))
    with pytest.raises(ValueError, match=r"readout\.bias has dtype float16, not float32"):
        backend.package.VectorHull.from_params(model.config, backend.package.hull.nest(flat))


def test_positional_and_unknown_options_are_refused(backend):
    for arguments, options in [((5, 3, 2, 7), {}), ((5, 3), {"grouping": 2})]:
        with pytest.raises(TypeError, match=r"positional argument|unexpected keyword"):
            backend.package.VectorHull(*arguments, **options)


def test_the_point_of_a_minimum_is_for_predict(backend):
    """It is in float64, as the solver is; a model in float32 does not cut it off in silence, and says what takes it."""
    fields = cases.fields(out_dim=1)
    model = backend.model(fields, cases.random_weights(fields), "float32")
    found = backend.package.minimize(model, backend.package.Box(np.zeros((2, 5)), np.ones((2, 5))))
    assert str(found.x.dtype).endswith("float64")
    for hull in (model, backend.fold(model)):
        with pytest.raises(TypeError, match=r"or call predict\(model, x\), which takes any numbers"):
            hull(found.x)
        np.testing.assert_allclose(backend.package.predict(hull, found.x)[:, 0], found.value, rtol=1e-5, atol=1e-5)


def test_predict_under_a_compiler_names_the_model():
    fields = cases.fields()
    model = BACKENDS[0].model(fields, cases.random_weights(fields), "float32")
    with pytest.raises(TypeError, match=r"predict\.x: expected values that are known; .* call model\(x\)"):
        jax.jit(lambda x: convexmoe_jax.predict(model, x))(np.zeros((2, 5), np.float32))

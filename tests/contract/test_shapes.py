"""Names and shapes of the weights; any leading axes in, the same leading axes out."""

import cases
import numpy as np
import pytest
from tolerances import relative_error

from convexmoe import HullConfig


@pytest.mark.parametrize("hull", ["default", "everything"])
def test_weights_of_the_table_fit(backend, hull):
    """That every hull takes the weights of the table, test_values.py shows: it builds them all."""
    weights = cases.random_weights(cases.HULLS[hull])
    assert backend.weights(backend.model(cases.HULLS[hull], weights)).keys() == weights.keys()


def test_new_weights_have_the_names_and_shapes_of_the_table(backend):
    fields = cases.HULLS["default"]
    weights = backend.weights(backend.fresh(fields, seed=0))
    assert {name: value.shape for name, value in weights.items()} == cases.weight_shapes(fields)


@pytest.mark.parametrize("leading", cases.LEADING_AXES, ids=str)
@pytest.mark.parametrize("hull", ["units_smooth", "gate_private", "one_petal"])
def test_leading_axes_are_kept(backend, hull, leading):
    fields = cases.HULLS[hull]
    model = backend.model(fields, cases.random_weights(fields))
    x = cases.random_inputs(fields, leading)
    shape = (*leading, fields["out_dim"])
    if hull == "units_smooth":  # in JAX each shape is another compilation; of the others it is traced
        assert backend.apply(model, x).shape == shape
    assert backend.shapes(model, "__call__", x) == [shape]
    assert backend.shapes(backend.fold(model), "__call__", x) == [shape]
    assert backend.shapes(model, "winners", x) == [shape, shape]


@pytest.mark.parametrize("hull", ["default", "everything"])
def test_rows_do_not_see_each_other(backend, hull):
    fields = cases.HULLS[hull]
    model = backend.model(fields, cases.random_weights(fields))
    x = cases.random_inputs(fields, (13, cases.ROWS))
    together = backend.apply(model, x)
    alone = np.stack([backend.apply(model, row) for row in x.reshape(-1, fields["in_dim"])])
    assert relative_error(together.reshape(alone.shape), alone) < 1e-14
    # control: with the leading axes swapped the same numbers are far off
    swapped = together.swapaxes(0, 1).reshape(alone.shape)
    assert relative_error(swapped, alone) > 1e-2


@pytest.mark.parametrize("hull", ["default", "everything"])
def test_zero_rows_have_zero_gradients(backend, hull):
    fields = cases.HULLS[hull]
    model = backend.model(fields, cases.random_weights(fields))
    x = cases.random_inputs(fields, (0,))
    gradients = backend.gradients(model, x, np.ones((0, fields["out_dim"])))
    assert gradients.pop("x").shape == x.shape
    assert all(not value.any() and np.isfinite(value).all() for value in gradients.values())


def test_default_widths():
    for in_dim, hidden_dim in [(1, 64), (5, 64), (512, 64), (521, 65), (1031, 128)]:
        config = HullConfig(in_dim, petals=3)
        assert (config.out_dim, config.hidden_dim) == (in_dim, hidden_dim)

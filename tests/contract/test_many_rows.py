"""More rows than in_dim + hidden_dim take another order of computation: the same values, gradients and winners."""

import cases
import numpy as np
import pytest
import reference
from tolerances import VALUES, relative_error

HULLS = ["default", "units_smooth", "learned", "gate", "private", "plain_max"]
LIMIT = 5 + 7
COUNTS = [LIMIT, LIMIT + 1, 29]


def problem(hull, rows):
    fields = cases.HULLS[hull]
    return fields, cases.random_weights(fields), cases.random_inputs(fields, (rows,))


@pytest.mark.parametrize("rows", COUNTS)
@pytest.mark.parametrize("hull", HULLS)
def test_values_are_those_of_the_reference(backend, hull, rows):
    fields, weights, x = problem(hull, rows)
    y = backend.apply(backend.model(fields, weights), x)
    assert relative_error(y, reference.hull(weights, x, fields)) < VALUES["float64"]


@pytest.mark.parametrize("hull", ["default", "learned"])
def test_gradients_are_the_sums_of_those_of_parts(backend, hull):
    fields, weights, x = problem(hull, 29)
    c = np.random.default_rng(0).standard_normal((29, fields["out_dim"]))
    model = backend.model(fields, weights)
    whole = backend.gradients(model, x, c)
    parts = [backend.gradients(model, x[a : a + 11], c[a : a + 11]) for a in range(0, 29, 11)]
    assert relative_error(whole.pop("x"), np.concatenate([part["x"] for part in parts])) < 1e-12
    for name, value in whole.items():
        assert relative_error(value, sum(part[name] for part in parts)) < 1e-12, name


def test_the_winner_has_the_value(backend):
    """Both orders name the same group: its value is the hull's."""
    fields, weights, x = problem("default", 29)
    model = backend.model(fields, weights)
    group, _ = backend.winners(model, x)
    values = reference.group_rows(weights, x, fields)
    won = np.take_along_axis(values, group[:, None, :], axis=1)[:, 0]
    assert relative_error(backend.apply(model, x), won) < VALUES["float64"]


def broken(params, config):
    raise AssertionError("the other order")


@pytest.mark.parametrize("rows", COUNTS)
def test_control_the_limit_is_where_it_is_said_to_be(backend, rows, replace):
    fields, weights, x = problem("default", rows)
    model = backend.model(fields, weights)
    replace(backend.package.hull.forward, "averaged", broken)
    if rows <= LIMIT:
        backend.apply(model, x)
    else:
        with pytest.raises(AssertionError, match="the other order"):
            backend.apply(model, x)


def test_control_a_read_out_averaged_the_other_way_round_is_seen(backend, replace):
    fields, weights, x = problem("default", 29)
    model = backend.model(fields, weights)
    right = backend.package.hull.averaged

    def shifted(params, config):
        turned = {**params, "shifts": params["shifts"][backend.array(np.array([1, 2, 0]))]}
        return right(turned, config)

    replace(backend.package.hull.forward, "averaged", shifted)
    assert relative_error(backend.apply(model, x), reference.hull(weights, x, fields)) > 1e-3

"""Gradients by every weight and by x are the differences of the reference; a tie shares them evenly."""

import functools

import cases
import numpy as np
import pytest
import reference
from tolerances import DIFFERENCES, relative_error

HULLS = ["default", "private", "smooth", "learned", "relu", "huber_relu", "gate", "one_petal", "one_input"]
ROWS = 2


def problem(hull, seed):
    """Weights, inputs, and the c of sum(c y)."""
    fields = cases.HULLS[hull]
    c = np.random.default_rng(seed).standard_normal((ROWS, fields["out_dim"]))
    return cases.random_weights(fields, seed), cases.random_inputs(fields, (ROWS,), seed), c


@functools.cache
def differences(hull, seed):
    """Gradients of the reference."""
    weights, x, c = problem(hull, seed)
    return reference.gradients(weights, x, cases.HULLS[hull], c)


def both(backend, hull, seed):
    """Gradients of the package and of the reference."""
    weights, x, c = problem(hull, seed)
    return backend.gradients(backend.model(cases.HULLS[hull], weights), x, c), differences(hull, seed)


@pytest.mark.parametrize("seed", cases.SEEDS)
@pytest.mark.parametrize("hull", [*HULLS, "units"])
def test_gradients_are_the_differences_of_the_reference(backend, hull, seed):
    got, wanted = both(backend, hull, seed)
    assert got.keys() == wanted.keys()
    errors = {name: relative_error(got[name], wanted[name]) for name in wanted if wanted[name].any()}
    assert max(errors.values()) < DIFFERENCES, errors
    silent = [name for name in wanted if not wanted[name].any()]
    assert all(not got[name].any() for name in silent)
    assert silent == (["shifts"] if hull == "one_petal" else [])


def test_control_a_gradient_that_misses_one_path_is_seen(backend, replace):
    petals = backend.package.hull.petals
    whole = petals.hidden_units

    def half(*given):
        return cut(whole(*given))

    def cut(z):
        return (z + getattr(z, "detach", lambda: stop(z))()) / 2

    def stop(z):
        import jax

        return jax.lax.stop_gradient(z)

    replace(petals, "hidden_units", half)
    got, wanted = both(backend, "default", 0)
    assert relative_error(got["readout.weight"], wanted["readout.weight"]) < DIFFERENCES
    assert relative_error(got["trunk.0.weight"], wanted["trunk.0.weight"]) > 0.1


def tied(backend, fields):
    """Gradient by the shifts where all groups tie, with c = 1."""
    weights, x = cases.tied_weights(fields), cases.tied_inputs(fields)
    c = np.ones((cases.ROWS, fields["out_dim"]))
    return backend.gradients(backend.model(fields, weights), x, c)["shifts"]


TIES = ["private", "plain_max", "smooth", "two_petals"]


@pytest.mark.parametrize("hull", TIES)
def test_a_tie_shares_the_gradient_evenly(backend, hull):
    fields = cases.HULLS[hull]
    share = cases.ROWS * fields["out_dim"] / fields["petals"]
    assert np.allclose(tied(backend, fields), share, rtol=1e-12, atol=0)


@pytest.mark.parametrize("hull", ["private", "plain_max"])
def test_control_a_maximum_that_favors_the_first_is_seen(backend, hull, replace):
    replace(backend.package.hull.forward, "maximum", backend.first_of_ties)
    fields = cases.HULLS[hull]
    got = tied(backend, fields)
    assert got[0] == cases.ROWS * fields["out_dim"] and not got[1:].any()

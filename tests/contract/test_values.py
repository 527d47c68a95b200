"""The hull is the one of the reference, in every dtype; each equation of the reference matters."""

import backends
import cases
import numpy as np
import pytest
import reference
from tolerances import VALUES, relative_error


def error(backend, fields, seed, dtype="float64", hull=reference.hull):
    """How far a hull is from the reference that has the same, rounded, weights and inputs."""
    weights = cases.random_weights(fields, seed)
    x = cases.random_inputs(fields, seed=seed).astype(backends.NAMES[dtype])
    y = backend.apply(backend.model(fields, weights, dtype), x)
    assert str(y.dtype) == dtype
    exact = {name: value.astype(np.float64) for name, value in backends.rounded(weights, dtype).items()}
    return relative_error(y, hull(exact, x.astype(np.float64), fields))


@pytest.mark.parametrize("seed", cases.SEEDS)
def test_equals_the_reference_in_float64(backend, fields, seed):
    assert error(backend, fields, seed) < VALUES["float64"]


# no hull with units: half precision moves a mean of 20 by as much as an input
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("hull", ["deep", "learned", "huber_relu", "gate_private"])
def test_equals_the_reference_in_its_own_dtype(backend, hull, dtype):
    assert error(backend, cases.HULLS[hull], 0, dtype) < VALUES[dtype]


@pytest.mark.parametrize("hull", ["units", "everything"])
def test_equals_the_reference_in_float32_with_units(backend, hull):
    assert error(backend, cases.HULLS[hull], 0, "float32") < VALUES["float32"]


# Control: the reference with one equation changed, on a hull in which that equation stands.
BROKEN = {
    "no_shifts": ("default", "groups", lambda f, s, size: groups(f, 0 * s, size)),
    "plain_groups": ("default", "groups", lambda f, s, size: groups(f, s, 1)),
    "previous_petal": ("default", "groups", lambda f, s, size: groups(f[::-1], s[::-1], size)),
    "minimum": ("default", "fuse", lambda g, T: min(g)),
    "mean": ("default", "fuse", lambda g, T: sum(g) / len(g)),
    "no_log_P": ("smooth", "fuse", lambda g, T: fuse(g, T) + T * np.log(len(g))),
    "hard": ("smooth", "fuse", lambda g, T: fuse(g, 0.0)),
    "least_temperature": ("learned", "temperatures", lambda w, c: reference.softplus(w["raw_temperature"])),
    "signed": ("default", "positive", lambda raw, n: raw * reference.TAU / np.sqrt(n)),
    "fan_in": ("default", "positive", lambda raw, n: positive(raw, n + 1)),
    "no_tau": ("deep", "positive", lambda raw, n: positive(raw, n) / reference.TAU),
    "not_standardised": ("relu", "act", lambda u, a: reference.ACTIVATIONS[a](u)),
    "wrong_units": ("units", "into_units", lambda x, c: x),
    "no_output_units": ("units", "out_of_units", lambda y, c: y),
}
groups, fuse, positive = reference.groups, reference.fuse, reference.positive


@pytest.mark.parametrize("name", BROKEN)
def test_control_every_equation_matters(backend, name, monkeypatch):
    hull, function, replacement = BROKEN[name]
    monkeypatch.setattr(reference, function, replacement)
    assert error(backend, cases.HULLS[hull], 0) > 1e3 * VALUES["float64"]


@pytest.mark.parametrize("name", sorted(cases.weight_shapes(cases.HULLS["everything"])))
def test_control_every_weight_matters(backend, name):
    fields = cases.HULLS["everything"]

    def without(weights, x, config):
        return reference.hull({**weights, name: np.zeros_like(weights[name])}, x, config)

    assert error(backend, fields, 0, hull=without) > 1e-6


@pytest.mark.parametrize("hull", ["default", "plain_max"])
def test_smooth_maximum_lies_below_the_maximum_by_at_most_T_log_P(backend, hull):
    fields = cases.HULLS[hull]
    weights = cases.random_weights(fields)
    x = cases.random_inputs(fields)
    hard = backend.apply(backend.model(fields, weights), x)
    for T in (1e-3, 5.0):
        smooth = backend.apply(backend.model(fields | {"temperature": T}, weights), x)
        gap = (hard - smooth) / (T * np.log(fields["petals"]))
        assert gap.min() > -1e-9 and gap.max() <= 1 + 1e-9


def test_two_petals_choose_between_shifts_only(backend):
    fields = cases.HULLS["two_petals"]
    weights = cases.random_weights(fields)
    model = backend.model(fields, weights)
    group, margin = backend.winners(model, cases.random_inputs(fields))
    assert (group == np.argmax(weights["shifts"])).all()
    assert np.allclose(margin, abs(weights["shifts"][0] - weights["shifts"][1]), rtol=1e-12, atol=1e-12)
    # control: with groups of one petal both of them win somewhere
    alone, _ = backend.winners(backend.model(fields | {"group_size": 1}, weights), cases.random_inputs(fields, (101,)))
    assert set(alone.ravel()) == {0, 1}


def test_one_petal_is_that_petal_whatever_its_shift(backend):
    fields = cases.HULLS["one_petal"]
    weights = cases.random_weights(fields)
    x = cases.random_inputs(fields)
    moved = weights | {"shifts": weights["shifts"] + 7.0}
    same, shifted = (backend.apply(backend.model(fields, w), x) for w in (weights, moved))
    assert np.array_equal(same, shifted)
    wanted = np.stack([reference.petal(weights, row, 0, fields) for row in x])
    assert relative_error(same, wanted) < VALUES["float64"]


@pytest.mark.parametrize("petals", [3, 4])
def test_an_alternating_function_disappears_at_even_petals_only(backend, petals):
    fields = cases.fields(petals=petals)
    weights = cases.random_weights(fields)
    x = cases.random_inputs(fields)
    signs = (-1.0) ** np.arange(petals)
    moved = weights | {"readout.weight": weights["readout.weight"] + signs[:, None]}
    before, after = (backend.apply(backend.model(fields, w), x) for w in (weights, moved))
    change = relative_error(after, before)
    assert change < 1e-13 if petals % 2 == 0 else change > 1e-3

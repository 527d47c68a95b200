"""`fit(start="planes")`: the hull starts at a maximum of planes fitted to the rows."""

import cases
import numpy as np
import pytest
import reference
from backends import BACKENDS

from convexmoe.training.starts import planes, spread_rows

BACKEND = BACKENDS[1]  # the starts are the core's, which no framework changes: tests/contract/test_fit.py holds it
ROWS, DIM = 401, 3


def planes_of(pieces, dim=DIM, seed=0):
    """Slopes `[K, D]` and offsets of planes that all win somewhere near the origin."""
    rng = np.random.default_rng([seed, 13])
    slopes = rng.normal(size=(pieces, dim))
    return 3.0 * slopes / np.linalg.norm(slopes, axis=1, keepdims=True), 0.1 * rng.normal(size=pieces)


def rows_of(pieces, noise=0.0, outputs=1, seed=0):
    x = np.random.default_rng([seed, 17]).uniform(-1, 1, (ROWS, DIM))
    columns = [
        np.max(x @ slopes.T + offsets, 1) for slopes, offsets in (planes_of(pieces, seed=o) for o in range(outputs))
    ]
    y = np.stack(columns, axis=1)
    return x, y + noise * np.random.default_rng([seed, 19]).normal(size=y.shape)


def miss(y, expected):
    """Mean squared error over the variance."""
    return np.mean((y - expected) ** 2) / expected.var()


def test_planes_are_found_again():
    x, y = rows_of(5)
    fit_planes = planes.fit_planes
    assert miss(fit_planes(x, y[:, 0], 5)(x), y[:, 0]) < 1e-7
    assert miss(fit_planes(x, y[:, 0], 2)(x), y[:, 0]) > 1e-2  # control: two planes are too few
    assert miss(fit_planes(x, -y[:, 0], 16)(x), -y[:, 0]) > 0.1  # control: a concave function has none
    assert len(fit_planes(x, y[:, 0], 1).offsets) == 1
    few = fit_planes(x[:2], y[:2, 0], 8)  # more planes than rows
    assert np.isfinite(few(x)).all()


def test_as_many_planes_are_chosen_as_the_rows_bear_out():
    choose = planes.choose_planes
    x, y = rows_of(4)
    assert len(choose(x, y[:, 0], 64).offsets) == 4
    _, noisy = rows_of(4, noise=0.3)
    assert len(choose(x, noisy[:, 0], 64).offsets) == 4
    _, noise = rows_of(1, noise=30.0)
    assert len(choose(x, noise[:, 0], 64).offsets) == 1
    smooth = np.sum(x**2, axis=1)
    assert len(choose(x, smooth, 64).offsets) > 8
    assert len(choose(x, smooth, 3).offsets) <= 2


def started(fields, x, y, start="planes"):
    """The hull where `fit` starts, in the units of the data."""
    return BACKEND.started(BACKEND.model(fields, cases.random_weights(fields)), x, y, start)


UNITS = {"input_mean": (0.0,) * DIM, "input_scale": (1.0,) * DIM, "output_mean": (0.0,) * 2, "output_scale": (1.0,) * 2}
OURS = {"petals": 8, "out_dim": 2, "hidden_dim": 2, "normalization": UNITS}
SHAPES = {
    "pairs": {},
    "plain": {"group_size": 1},
    "odd": {"petals": 11},
    "learned": {"temperature": "learned"},
    "fixed": {"temperature": 0.01},
    "gate": {"gate": True, "temperature": "learned"},
    "deep": {"depth": 3, "hidden_dim": 5, "temperature": "learned"},
    "private": {"trunk": "private", "petals": 13},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_started_hull_is_the_maximum_of_planes(name):
    x, y = rows_of(4, outputs=2)
    fields = cases.fields(in_dim=DIM, **OURS | SHAPES[name])
    assert miss(reference.hull(started(fields, x, y), x, fields), y) < 1e-4
    affine = reference.hull(started(fields, x, y, "affine"), x, fields)
    assert miss(affine, y) > 0.02  # control
    few = fields | {"petals": 2 * fields["group_size"]}  # control: room for two planes
    assert miss(reference.hull(started(few, x, y), x, few), y) > 0.01


def test_a_strong_convexity_term_is_taken_off():
    fields = cases.fields(in_dim=DIM, **OURS | {"strong_convexity": 0.7})
    x, y = rows_of(4, outputs=2)
    y = y + 0.35 * np.sum(x**2, axis=1, keepdims=True)
    assert miss(reference.hull(started(fields, x, y), x, fields), y) < 1e-4


@pytest.mark.parametrize(("scale", "offset"), [(1e3, 1e5), (1e-3, 0.0), (1.0, -50.0)])
def test_a_model_with_units_of_its_own_starts_at_planes_too(scale, offset):
    """Without units of its own nothing is normalized by `fit`: the planes see to it."""
    fields = cases.fields(in_dim=DIM, **OURS | {"temperature": 0.0})
    x, y = rows_of(4, outputs=2)
    x, y = scale * x + offset, 1e-4 * y + 7.0
    assert miss(reference.hull(started(fields, x, y), x, fields), y) < 1e-3


def test_a_smooth_function_is_smoothed():
    """The temperature that fits best: a sharp one is the control."""
    own = {"petals": 37, "out_dim": 1, "temperature": "learned", "group_size": 1, "normalization": None}
    fields = cases.fields(in_dim=DIM, **OURS | own)
    x = rows_of(1)[0]
    x = x / x.std(axis=0) - (x / x.std(axis=0)).mean(axis=0)
    y = np.sum(x**2, axis=1, keepdims=True)
    y = (y - y.mean()) / y.std()
    found = started(fields, x, y)
    own = miss(reference.hull(found, x, fields), y)
    assert own < 0.03
    assert miss(reference.hull(found | {"raw_temperature": np.array([-20.0])}, x, fields), y) > 1.5 * own


@pytest.mark.parametrize("temperature", [0.0, "learned"])
def test_where_one_plane_is_chosen_the_start_is_affine(temperature):
    fields = cases.fields(in_dim=DIM, **OURS | {"temperature": temperature})
    x, y = rows_of(4, outputs=2)
    y[:, 1] = np.random.default_rng(3).normal(size=ROWS)
    at_planes, affine = (started(fields, x, y, start) for start in ("planes", "affine"))
    for name in ("readout.weight", "readout.raw_weight", "readout.bias"):
        assert not np.allclose(at_planes[name][..., 0], affine[name][..., 0], rtol=1e-3)
    # the affine start of `planes` has no shifts, which count for all outputs
    assert np.allclose(at_planes["shifts"], 0, atol=1e-9)
    wide = cases.fields(in_dim=50, petals=9, out_dim=1, hidden_dim=2, temperature=temperature)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 50))
    y = x[:, :1] + rng.normal(size=(60, 1))
    fits = [BACKEND.package.fit(BACKEND.fresh(wide, 0), x, y, start=s, steps=5) for s in ("planes", "affine")]
    assert fits[0].history == fits[1].history and fits[0].history.validation_loss[0] < 2


def test_fit_starts_at_the_planes():
    x, y = rows_of(4)
    x, y = 1000.0 * x - 300.0, 0.01 * y + 7.0
    fields = cases.fields(in_dim=DIM, petals=8, out_dim=1, hidden_dim=2, temperature="learned")
    options = {"steps": 40, "learning_rate": 1e-4}
    first = {
        start: BACKEND.package.fit(BACKEND.fresh(fields, 0), x, y, start=start, **options)
        for start in ("planes", "affine")
    }
    assert first["planes"].history.train_loss[0] < 1e-3 < 0.05 < first["affine"].history.train_loss[0]
    assert miss(BACKEND.apply(first["planes"].model, x.astype(np.float32)), y) < 1e-3


def test_many_rows_are_drawn_from():
    """A column that repeats every twenty rows: rows taken evenly would see one of its values."""
    x = np.random.default_rng(0).uniform(-1, 1, (20_000, 2))
    x[:, 0] = np.tile(np.linspace(-1, 1, 20), 1000)
    y = np.max(x @ np.array([[1.0, -1.0, 0.2], [0.5, 0.0, -2.0]]), axis=1)
    fields = cases.fields(in_dim=2, petals=8, out_dim=1, hidden_dim=2)
    history = BACKEND.package.fit(BACKEND.fresh(fields, 0), x, y, start="planes", steps=1).history
    assert history.validation_loss[0] < 1e-3
    chosen = spread_rows(x, y)
    assert len(chosen[0]) == len(chosen[1]) == 10_000 and len(np.unique(chosen[0][:, 0])) == 20

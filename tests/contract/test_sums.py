"""`fit(start="sums")`: the hull starts at a sum of convex functions of one input each, by itself where there is one."""

import cases
import numpy as np
import pytest
import reference
from backends import BACKENDS

from convexmoe.training.starts import STARTS, additive, choose, planes

BACKEND = BACKENDS[1]  # the starts are the core's, which no framework changes: tests/contract/test_fit.py holds it
DIM = 3


def one_by_one(x):
    """A sum of functions of one input, `[N, 2]`."""
    first = np.abs(x[:, 0] - 0.2) + 2.0 * x[:, 1] ** 2 + np.exp(x[:, 2])
    return np.stack([first, np.maximum(x[:, 1], 0.3) - x[:, 0]], axis=1)


def turned(x):
    """The same along other directions: no such sum."""
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]
    return one_by_one(x @ rotation)


def rows_of(function=one_by_one, rows=401, noise=0.0, seed=0):
    rng = np.random.default_rng([seed, 23])
    x = rng.uniform(-1, 1, (rows, DIM))
    y = function(x)
    return x, y + noise * y.std(axis=0) * rng.normal(size=y.shape)


def miss(y, expected):
    """Mean squared error over the variance, of the worst output."""
    return np.max(np.mean((y - expected) ** 2, axis=0) / expected.var(axis=0))


@pytest.mark.parametrize("activation", ["softplus", "relu", "huber_relu"])
def test_the_sum_is_found(activation):
    x, y = rows_of()
    found = additive.fit_sum(x, y, 40, activation)
    x_new, y_new = rows_of(seed=1)
    assert miss(found(x_new), y_new) < 1e-3
    assert (found.heights >= 0).all() and len(found.inputs) <= 40
    assert miss(additive.fit_sum(x, y, 1, activation)(x_new), y_new) > 0.02  # control: one unit is too few
    assert miss(additive.fit_sum(x, -y, 40, activation)(x_new), -y_new) > 0.1  # control: a concave function has none
    x, y = rows_of(turned)
    assert miss(additive.fit_sum(x, y, 40, activation)(x), y) > 0.02  # control: it is no sum


def test_as_many_units_are_taken_as_the_rows_bear_out():
    counts = [len(additive.fit_sum(*rows_of(noise=noise), 40, "softplus").inputs) for noise in (0.0, 0.1, 1.0)]
    assert counts[0] > counts[1] > counts[2] >= 1
    x, y = rows_of(noise=100.0)
    assert len(additive.fit_sum(x, y, 40, "softplus").inputs) == 0
    wide = np.random.default_rng(0).normal(size=(30, 29))
    found = additive.fit_sum(wide, wide[:, :2] ** 2, 40, "softplus")  # as many numbers in a plane as rows
    assert len(found.inputs) == 0 and not found.plane.any()


def test_the_least_squares_end_where_no_move_lowers_them():
    x, y = rows_of(noise=0.2)
    found = additive.fit_sum(x, y, 2, "softplus")
    least = np.mean((y - found(x)) ** 2)
    design = np.column_stack([x, np.ones(len(x))])

    def loss(**changed):
        values = found._replace(**changed)
        rest = y - values._replace(plane=np.zeros_like(found.plane))(x)
        return np.mean((rest - design @ np.linalg.lstsq(design, rest, rcond=None)[0]) ** 2)

    for name in ("knots", "sharpness", "heights"):
        for at in np.ndindex(getattr(found, name).shape):
            for factor in (0.95, 1.05):
                value = getattr(found, name).copy()
                value[at] = value[at] * factor + (0.02 * (factor - 1) if name == "knots" else 0.0)
                assert loss(**{name: value}) > least - 1e-6


def started(fields, x, y, start="sums"):
    """The hull where `fit` starts, in the units of the data."""
    return BACKEND.started(BACKEND.fresh(fields, 0, "float64"), x, y, start)


UNITS = {"input_mean": (0.0,) * DIM, "input_scale": (1.0,) * DIM, "output_mean": (0.0,) * 2, "output_scale": (1.0,) * 2}
OURS = {"petals": 5, "out_dim": 2, "hidden_dim": 23, "normalization": UNITS, "temperature": "learned"}
SHAPES = {
    "learned": {},
    "hard": {"temperature": 0.0},
    "fixed": {"temperature": 0.3},
    "plain": {"group_size": 1},
    "one_petal": {"petals": 1},
    "gate": {"gate": True},
    "deep": {"depth": 3},
    "private": {"trunk": "private"},
    "private_gate": {"trunk": "private", "gate": True},
    "relu": {"activation": "relu"},
    "huber_relu": {"activation": "huber_relu"},
    "strong": {"strong_convexity": 0.2},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_started_hull_is_the_sum(name):
    x, y = rows_of()
    fields = cases.fields(in_dim=DIM, **OURS | SHAPES[name])
    y = y + 0.5 * fields["strong_convexity"] * np.sum(x**2, axis=1, keepdims=True)
    # at a fixed temperature the petals of the control are not scaled down, and part
    bound = 0.05 if name == "fixed" else 0.01
    assert miss(reference.hull(started(fields, x, y), x, fields), y) < bound
    affine = reference.hull(started(fields, x, y, "affine"), x, fields)
    assert miss(affine, y) > 2 * bound  # control


@pytest.mark.parametrize(("scale", "offset"), [(1e3, 1e5), (1e-3, 0.0), (1.0, -50.0)])
def test_a_model_with_units_of_its_own_starts_at_a_sum_too(scale, offset):
    """Without units of its own nothing is normalized by `fit`: the start sees to it."""
    fields = cases.fields(in_dim=DIM, **OURS)
    x, y = rows_of()
    x, y = scale * x + offset, 1e-2 * y + 7.0
    sums = additive.fit_additive(BACKEND.config(fields), x, y)
    assert miss(sums(x), y) < 1e-3


def test_a_sum_is_told_from_other_functions():
    fields = cases.fields(in_dim=DIM, petals=5, out_dim=2, hidden_dim=23, temperature="learned")
    for noise in (0.0, 0.3):
        for function, wanted in ((one_by_one, "sums"), (turned, "affine")):
            x, y = rows_of(function, noise=noise)
            options = {"steps": 1, "learning_rate": 1e-12, "validation": 0}
            fits = {s: BACKEND.package.fit(BACKEND.fresh(fields, 0), x, y, start=s, **options) for s in (None, wanted)}
            assert fits[None].history == fits[wanted].history
    other = {"sums": "affine", "affine": "sums"}[wanted]
    control = BACKEND.package.fit(BACKEND.fresh(fields, 0), x, y, start=other, **options)
    assert control.history != fits[None].history
    assert STARTS == ("affine", "planes", "sums")


def test_interaction_is_the_share_that_products_explain():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 7))
    noise = rng.normal(size=(5000, 1))
    product = x[:, :1] * x[:, 1:2]
    assert abs(choose.interaction(x, noise)) < 0.02
    assert abs(choose.interaction(x, x[:, :1] ** 2 + np.abs(x[:, 2:3]))) < 0.02
    assert abs(choose.interaction(x, product) - 1) < 0.05
    assert abs(choose.interaction(x, product + noise) - 0.5) < 0.05
    assert abs(choose.interaction(x, np.column_stack([product, noise])) - 0.5) < 0.05
    assert choose.interaction(x, np.zeros((5000, 1))) <= 0


def test_fit_is_far_nearer_from_a_sum():
    """Thirteen inputs, a little noise: what a thousand rows tell of a sum, steps alone do not find."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (900, 13))
    y = np.sum(np.abs(x - np.linspace(-0.5, 0.5, 13)), axis=1)
    noisy = y + 0.1 * y.std() * rng.normal(size=900)
    fields = cases.fields(in_dim=13, petals=8, out_dim=1, hidden_dim=64, temperature="learned")
    errors = {}
    for start in (None, "affine"):
        result = BACKEND.package.fit(BACKEND.fresh(fields, 0), x, noisy, start=start, steps=120)
        errors[start] = miss(BACKEND.apply(result.model, x.astype(np.float32)), y[:, None])
    assert errors[None] < 0.01 < errors["affine"]


def rare(rows=240, seed=1):
    """Levels that few rows have: held out together, their column is constant for the rows that are left."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, 6)) > 2.5) * 1.0
    x[:, 0] = rng.normal(size=rows)
    return x, np.abs(x[:, 0]) + x[:, 1:].sum(axis=1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("start", ["planes", "sums"])
def test_a_column_that_is_constant_but_for_the_rows_held_out_does_no_harm(dtype, start):
    fields = cases.fields(in_dim=6, petals=8, out_dim=1, hidden_dim=32, temperature="learned")
    with BACKEND.precision(dtype):
        model = BACKEND.fresh(fields, 0, dtype)
        history = BACKEND.package.fit(model, *rare(), start=start, steps=40).history
    assert max(history.train_loss[0], history.validation_loss[0]) < 5
    rounded = np.full((5, 1), 0.1)
    rounded[2] = np.nextafter(0.1, 1.0)
    assert planes.in_units(rounded)[2] == 1


def test_few_rows_are_not_fitted_by_terms_that_cancel():
    """Knots at the outermost rows let far too steep a plane fit all of them but one."""
    worst = {}
    for beyond, rows_a_unit in ((additive.ROWS_BEYOND, additive.ROWS_A_UNIT), (0, 1)):
        misses = []
        for seed in range(40):
            rng = np.random.default_rng([seed, 29])
            x, slopes = rng.normal(size=(600, 3)), rng.normal(size=(3, 6))
            y = np.logaddexp.reduce(x @ slopes, axis=1)[:, None]
            y = (y - y.mean()) / y.std()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(additive, "ROWS_BEYOND", beyond)
                patch.setattr(additive, "ROWS_A_UNIT", rows_a_unit)
                misses.append(miss(additive.fit_sum(x[:30], y[:30], 64, "softplus")(x[30:]), y[30:]))
        worst[beyond] = max(misses)
    assert worst[additive.ROWS_BEYOND] < 2 < 10 < worst[0]  # the second is the control


def test_many_rows_are_drawn_from():
    """Rows in order: the first ones have seen a part of the inputs only."""
    x = np.random.default_rng(0).uniform(-1, 1, (9_000, 2))
    x = x[np.argsort(x[:, 0])]
    y = np.abs(x).sum(axis=1, keepdims=True)
    config = BACKEND.config(cases.fields(in_dim=2, petals=3, out_dim=1, hidden_dim=16))
    assert len(x) > additive.ROWS
    assert miss(additive.fit_additive(config, x, y)(x), y) < 1e-3
    first = additive.fit_sum(x[: additive.ROWS], y[: additive.ROWS], 16, "softplus")
    assert miss(first(x), y) > 0.01  # control


def test_a_sum_must_be_worth_its_numbers():
    """What is left is hardly less: Akaike's criterion keeps the affine start."""
    x, noise = np.random.default_rng(0).normal(size=(2, 400, 3))
    left = noise[:, :1]
    sums = additive.Sum(np.zeros(5, int), *[np.zeros(5)] * 2, np.zeros((5, 1)), np.zeros((4, 1)), "relu")
    assert not choose.is_sum(x, left, 1.01 * left, sums)
    assert choose.is_sum(x, left, 1.1 * left, sums)
    product = (x[:, :1] * x[:, 1:2]) + 0.1 * left
    assert not choose.is_sum(x, product, 2.0 * product, sums)

"""`convexity_test`: no convex function makes a contrast positive; p-values of a plane are honest, of others small."""

import numpy as np
import pytest
from convexity_test import CONVEX, OTHERS, plane, rejections

import convexmoe_jax
import convexmoe_torch
from convexmoe.training import contrasts as module
from convexmoe.training import convexity_test
from convexmoe.training.contrasts import contrasts


def table(rows, dims, seed=0):
    x = np.random.default_rng(seed).uniform(-1.7, 1.7, (rows, dims))
    return (x - x.mean(axis=0)) / x.std(axis=0)


def convex_functions(dims, rng):
    for _ in range(20):
        slopes, offsets = rng.normal(size=(dims, 6)), rng.normal(size=6)
        yield lambda z, a=slopes, b=offsets: np.max(z @ a + b, axis=1)
        yield lambda z, a=slopes, b=offsets: np.exp(z @ a[:, 0] + b[0])
        yield lambda z, a=slopes: np.linalg.norm(z @ a[:, :2], axis=1)


@pytest.mark.parametrize(("rows", "dims"), [(40, 1), (80, 2), (120, 4)])
def test_no_convex_function_makes_a_contrast_positive(rows, dims):
    z, rng = table(rows, dims), np.random.default_rng(3)
    weights, places, between = contrasts(z, np.zeros(rows, int), rng)
    assert len(weights) > 20 and 0.2 < between < 1 and np.allclose(places.sum(axis=1), 1)
    assert np.abs(weights.sum(axis=1)).max() < 1e-9 and np.abs(weights @ z).max() < 1e-7
    assert np.abs(weights).sum(axis=1).min() > 0.1
    assert max((weights @ f(z)).max() for f in convex_functions(dims, rng)) < 1e-6
    kernel = np.exp(-module.squares(z, z))  # the control: weights that do not balance
    assert ((np.eye(rows) - kernel / kernel.sum(axis=1, keepdims=True)) @ np.max(2 * z, axis=1)).max() > 1e-3


def of_plane(rows, dims, draws, kind="normal", inputs="uniform"):
    return rejections(rows, dims, [(plane, kind, 1.0)], draws, inputs=inputs)[0]


@pytest.mark.slow
def test_p_values_are_calibrated_and_have_power(monkeypatch):
    """Some thousand small bootstraps: half a minute."""
    draws = 200
    most = 0.05 + 4 * np.sqrt(0.05 * 0.95 / draws)
    sizes = ((60, 1, "normal"), (60, 2, "growing"), (60, 2, "exponential"))
    for rows, dims, kind in sizes:
        assert of_plane(rows, dims, draws, kind) < most
    convex = [(f, "normal", size) for f in CONVEX.values() for size in (0.05, 0.5)]
    assert max(rejections(60, 2, convex, 20)) <= 0.15
    others = [(f, "normal", 0.2) for name, f in OTHERS.items() if name not in ("step", "square root")]
    assert min(rejections(80, 2, others, 10)) >= 0.8
    leave_out = module.leave_out_residuals
    monkeypatch.setattr(module, "leave_out_residuals", lambda *given: 0.7 * leave_out(*given))
    assert of_plane(60, 1, draws) > most  # the control: errors that are too small, as those of an overfitted smoother


@pytest.mark.slow
def test_a_long_tail_along_which_the_noise_grows_is_no_contradiction(monkeypatch):
    draws = 200
    most = 0.05 + 4 * np.sqrt(0.05 * 0.95 / draws)
    for inputs, dims, kind in (("lognormal, 0.7", 1, "as x_1"), ("lognormal, 1.2", 2, "as root x_1")):
        assert of_plane(60, dims, draws, kind, inputs) < most
    assert of_plane(100, 1, draws, "as x_1", "lognormal, 1.2") < most
    leave_out = module.leave_out_residuals
    even = lambda columns, y, variance, *rest: leave_out(columns, y, np.ones_like(variance), *rest)  # noqa: E731
    monkeypatch.setattr(module, "leave_out_residuals", even)
    assert of_plane(100, 1, draws, "as x_1", "lognormal, 1.2") > most  # the control: a smoother of even weights


def test_contexts_are_kept_apart():
    rng = np.random.default_rng(0)
    x, season = rng.uniform(-1, 1, (150, 1)), rng.integers(0, 2, (150, 1))
    noise = 0.1 * rng.normal(size=150)
    opposite = np.where(season[:, 0] == 1, -1.0, 1.0) * x[:, 0] ** 2 + noise
    assert convexity_test(x, opposite, season).p_value < 0.05
    near = (np.abs(x) < 0.5).astype(int)  # a season of its own in the middle
    lifted = x[:, 0] ** 2 + 3 * near[:, 0] + noise
    assert convexity_test(x, lifted, near).p_value > 0.2
    assert convexity_test(x, lifted).p_value < 0.05  # the control
    onehot = np.column_stack([x, season, 1 - season])  # at the ends of a column rows have its value, or lie outside
    assert convexity_test(onehot, x[:, 0] ** 2 + season[:, 0] + noise).p_value > 0.2
    assert convexity_test(onehot, season[:, 0] - x[:, 0] ** 2 + noise).p_value < 0.05


def test_what_is_found_is_said_in_original_units():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, (200, 2))
    y = np.abs(x[:, 0]) - 2 * np.exp(-(((x - [1.5, 0]) / 0.8) ** 2).sum(axis=1)) * -1 + 0.05 * rng.normal(size=200)
    found = convexity_test(x, y, draws=99)
    assert found.p_value == 0.01 and found.rows == 200 and 0.8 < found.between < 1 and found.statistic > 3
    assert np.linalg.norm(np.array(found.at) - [1.5, 0]) < 0.8
    far = convexity_test(x * [1e3, 1e-3] + [5e6, 7.0], 1e6 * y - 3e7, draws=99)
    assert far[:2] == pytest.approx(found[:2], rel=1e-4)
    assert np.allclose((np.array(far.at) - [5e6, 7.0]) / [1e3, 1e-3], found.at, atol=1e-4)
    assert convexity_test(x, -y, curvature="concave", draws=99) == found
    assert convexity_test(x, y.reshape(-1, 1), draws=99) == found


def test_numbers_of_any_size_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (80, 2))
    y = x[:, 0] ** 2 - 2 * x[:, 1] ** 2 + 0.2 * rng.normal(size=80)
    found, sizes = convexity_test(x, y, draws=99), [(2.0**-660, 1.0), (1.0, 2.0**660), (2.0**1000, 2.0**-1000)]
    assert found.p_value == 0.01
    for of_x, of_y in sizes:  # about 1e-199, 1e199, 1e301: powers of two, so that nothing is rounded
        there = convexity_test(of_x * x, of_y * y, draws=99)
        assert there._replace(at=()) == found._replace(at=()) and np.allclose(np.array(there.at) / of_x, found.at)
    for of_x, of_y in ((1e-200, 1e200), ([1e200, 1e-200], 1e-200)):
        there = convexity_test(of_x * x, of_y * y, draws=99)
        assert there[:2] == pytest.approx(found[:2], rel=1e-6)
    monkeypatch.setattr(module, "standardize", lambda a: (a - a.mean(axis=0)) / a.std(axis=0))  # the control
    with np.errstate(all="ignore"), pytest.raises(np.linalg.LinAlgError):
        convexity_test(x, 1e-200 * y, draws=99)


def test_where_nothing_can_contradict_it_is_one():
    rng = np.random.default_rng(0)
    circle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    corners = np.column_stack([np.cos(circle), np.sin(circle)])
    for x in (corners, rng.normal(size=(60, 14)), np.ones((30, 1)), rng.normal(size=(8, 2))):
        found = convexity_test(x, rng.normal(size=len(x)), draws=19)
        assert found.p_value == 1.0 and found.at == () and found.between == 0.0
    assert convexity_test(np.arange(30.0)[:, None], np.ones(30), draws=19).p_value == 1.0
    exact = np.arange(30.0)[:, None]
    assert convexity_test(exact, 3 * exact, draws=19).p_value > 0.05  # rounding is no contradiction
    many = rng.normal(size=(1500, 1))
    assert convexity_test(many, many**2, draws=19).rows == 1000


REFUSED = {
    "x: expected [rows, in_dim]; got float64[3]": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {}),
    "y: expected targets [rows=2]; got float64[3]": ([[1.0], [2.0]], [1.0, 2.0, 3.0], {}),
    "context: expected [rows=2, context_dim]; got float64[1, 1]": ([[1.0], [2.0]], [1.0, 2.0], {"context": [[1.0]]}),
    "y: expected finite numbers; got nan": ([[1.0], [2.0]], [1.0, np.nan], {}),
    "curvature: expected one of ['convex', 'concave']; got 'flat'": ([[1.0]], [1.0], {"curvature": "flat"}),
    "draws: expected a whole number >= 19; got 5": ([[1.0]], [1.0], {"draws": 5}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_it_is_given_is_checked(words):
    x, y, options = REFUSED[words]
    with pytest.raises(ValueError) as raised:
        convexity_test(x, y, **options)
    assert f"convexity_test.{words}" in str(raised.value)
    assert convexmoe_jax.convexity_test is convexmoe_torch.convexity_test is convexity_test

"""`fit` is about as good as a plane where the data say no more: folds, what is drawn back, curvature, shapes."""

import re
import warnings

import backends
import cases
import numpy as np
import pytest

from convexmoe import HullConfig
from convexmoe.training import parts
from convexmoe.training.curvature import Curvature, Judged, compare_errors
from convexmoe.training.start import along_spread, ridge

pytestmark = pytest.mark.usefixtures("quick_compilation")

TORCH = backends.BACKENDS[1]
SHORT = {"steps": 400, "seed": 1}


def fresh(backend, in_dim, seed=0, **fields):
    return backend.fresh(cases.fields(in_dim=in_dim, out_dim=1, temperature="learned", **fields), seed, "float32")


def convex(rows, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    return x, np.linalg.norm(x @ rng.normal(size=(3, 3)), axis=1) + noise * rng.normal(size=rows)


COPIES = {"none": np.arange(40), "pairs": np.arange(40) // 2, "few": np.array([0] * 5 + [*range(5, 40)])}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_row_stand_on_one_side_of_each_fold(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3))[COPIES[name]], rng.normal(size=(40, 1))[COPIES[name]]
    first = parts.first_copies(x, y)
    plain, found = parts.folds(x, 3), parts.folds(x, 3, first)
    if name == "none":
        assert first is None
        return
    for train, held_out in list(zip(found.train, found.held_out, strict=True))[:10]:
        assert not np.isin(COPIES[name][held_out], COPIES[name][train]).any() and len(held_out) > 0
    assert sorted(np.concatenate(found.held_out[:5]).tolist()) == list(range(40))
    split = [np.isin(COPIES[name][h], COPIES[name][t]).any() for t, h in zip(plain.train, plain.held_out, strict=True)]
    assert any(split[:10])  # control: rows that are not told apart are split


def test_a_table_of_copies_is_split_all_the_same():
    x = np.repeat([[0.0], [1.0]], 20, axis=0)
    first = parts.first_copies(x, x)
    assert all(map(len, parts.folds(x, 0, first).held_out[:10]))
    assert parts.first_copies(x, np.arange(40.0)[:, None]) is None  # measured again, with another result


@pytest.mark.parametrize(("rows", "copies"), [(4, 1), (23, 12), (600, 11), (1700, 5), (6000, 2)])
def test_parts_hold_every_row_out_or_a_thousand(rows, copies):
    x = np.random.default_rng(rows).normal(size=(rows, 3))
    train, held_out = parts.folds(x, 0)
    assert len(train) == len(held_out) == copies
    assert np.array_equal(train[-1], np.arange(rows)) and not len(held_out[-1])
    for learned, judged in zip(train, held_out, strict=True):
        assert np.array_equal(np.sort(np.concatenate([learned, judged])), np.arange(rows))
    times = np.bincount(np.concatenate(held_out), minlength=rows)
    assert (times >= 1).all() if 5 <= rows <= 1000 else True
    assert times.sum() >= min(1000, rows) or rows < 5
    # the rows farthest out are held out together
    far = np.argsort(np.linalg.norm((x - x.mean(0)) / x.std(0), axis=1))[-max(1, rows // 40) :]
    assert copies == 1 or any(set(far) <= set(part) for part in held_out)
    others = parts.folds(x, 1).held_out
    assert copies == 1 or not all(np.array_equal(a, b) for a, b in zip(held_out, others, strict=True))


@pytest.mark.parametrize(
    ("backend", "rows", "columns"),
    [
        (backends.BACKENDS[0], 40, 10),
        pytest.param(backends.BACKENDS[0], 30, 50, marks=pytest.mark.release),
        (TORCH, 40, 10),
        (TORCH, 30, 50),
    ],
)
def test_a_linear_truth_with_few_rows_is_fitted_about_as_well_as_by_ridge_regression(backend, rows, columns):
    ratios, control = [], []
    for seed in range(3):
        rng = np.random.default_rng([seed, rows])
        x, slopes = rng.normal(size=(rows + 500, columns)), rng.normal(size=columns)
        y = x @ slopes + 0.3 * rng.normal(size=len(x))
        (train, test), model = (slice(rows), slice(rows, None)), fresh(backend, columns, seed)
        plane = ridge(x[train], y[train, None])
        least = np.mean((plane(x[test])[:, 0] - x[test] @ slopes) ** 2)
        for found, options in ((ratios, {}), (control, {"validation": 0}))[: 1 + (rows > columns)]:
            fitted = backend.package.fit(model, x[train], y[train], **SHORT, **options).model
            errors = backend.package.predict(fitted, x[test])[:, 0] - x[test] @ slopes
            found.append(np.sqrt(np.mean(errors**2) / least))
    assert np.mean(ratios) < 1.1, ratios
    assert rows < columns or np.mean(control) > 1.1, control


def test_a_column_that_is_constant_but_for_one_row_ends_no_fit(backend):
    x, y = convex(60)
    x = np.column_stack([x, np.arange(60) == 7, np.full(60, 4.0)])
    result = backend.package.fit(fresh(backend, 5), x, y, **SHORT)
    assert np.isfinite(backend.package.predict(result.model, x)).all()
    moved = x + np.array([0, 0, 0, 0, 9.0])
    assert np.array_equal(backend.package.predict(result.model, x), backend.package.predict(result.model, moved))


@pytest.mark.parametrize(
    ("backend", "rows"),
    [
        *((TORCH, rows) for rows in (2, 3, 4, 5, 7)),
        *((backends.BACKENDS[0], rows) for rows in (2, 5)),
        *(pytest.param(backends.BACKENDS[0], rows, marks=pytest.mark.release) for rows in (3, 4, 7)),
    ],
)
def test_a_handful_of_rows_is_fitted(backend, rows):
    x, y = convex(rows)
    result = backend.package.fit(fresh(backend, 3), x, y, steps=40)
    assert np.isfinite(backend.package.predict(result.model, x)).all()
    assert (result.judged is None) == (rows < 5)


def test_new_hulls_read_the_inputs_along_their_spread():
    """The third input is the sum of two others but for a hundredth: no unit is steep where the three do not agree."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 2))
    x = np.column_stack([x, x.sum(axis=1) / np.sqrt(2) + 0.01 * rng.normal(size=5000)])
    weights = {"trunk.0.weight": rng.normal(size=(3, 999)), "trunk.0.bias": rng.normal(size=999)}
    config = HullConfig(3, petals=2, hidden_dim=999)
    turned = along_spread(weights, x, config)
    odd = np.array([1, 1, -np.sqrt(2)]) / 2
    before, after = (np.std(odd @ w["trunk.0.weight"]) for w in (weights, turned))
    assert after < 0.05 < before
    assert np.array_equal(turned["trunk.0.bias"], weights["trunk.0.bias"])
    sizes = [np.mean((x @ w["trunk.0.weight"]) ** 2) for w in (weights, turned)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    alike = rng.normal(size=(50, 3))  # control: where all directions have the same spread but for chance nothing turns
    assert np.allclose(along_spread(weights, alike, config)["trunk.0.weight"], weights["trunk.0.weight"], atol=0.3)


@pytest.mark.parametrize(("sign", "shown"), [(1, "convex"), (-1, "concave"), (0, "neither")])
def test_a_fit_says_which_way_the_data_are_bent(backend, sign, shown):
    x, y = convex(300)
    y = sign * y if sign else x @ [1.0, -2.0, 0.5] + np.random.default_rng(5).normal(size=300)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = backend.package.fit(fresh(backend, 3), x, y, **SHORT).curvature
        alone = backend.package.compare_curvature(fresh(backend, 3), x, y, **SHORT)
    assert found.shown == shown and alone == found
    texts = [str(one.message) for one in caught if "fit.y" in str(one.message)]
    assert len(texts) == (shown == "concave") and all("a concave function" in text for text in texts)
    if sign:
        assert found.plane > 2 * min(found.convex, found.concave)


def test_four_rows_are_too_few_to_compare():
    x, y = convex(5)
    assert TORCH.package.compare_curvature(fresh(TORCH, 3), x, y, steps=4).plane > 0  # control: five are enough
    with pytest.raises(ValueError, match=r"compare_curvature\.x: expected five rows or more, some to hold out; got 4"):
        TORCH.package.compare_curvature(fresh(TORCH, 3), x[:4], y[:4], steps=4)


def test_chance_is_no_curvature():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=200) ** 2
    same = Judged(plane, plane)
    better = Judged(0.5 * plane, plane)
    lucky = Judged(plane + rng.normal(size=200) - 0.01, plane)
    assert compare_errors(better, same).shown == "convex" and compare_errors(same, better).shown == "concave"
    assert compare_errors(lucky, same).shown == compare_errors(same, same).shown == "neither"
    words = "a convex function: a concave one errs 1.4 times as much, a linear one 1.4 times"
    assert compare_errors(better, same).words() == words
    exact = compare_errors(same, Judged(plane / 1e6, plane)).words()
    assert exact == "a concave function: a convex one errs over 100 times as much, a linear one over 100 times"
    assert isinstance(compare_errors(same, same), Curvature) and "neither" in compare_errors(same, same).words()


@pytest.mark.parametrize("backend", [pytest.param(backends.BACKENDS[0], marks=pytest.mark.release), TORCH])
def test_another_shape_is_taken_where_the_rows_held_out_speak_for_it(backend):
    """The truth is a maximum of planes, and the given hull has one petal on two units."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = np.max(x @ rng.normal(size=(2, 7)), axis=1) + 0.02 * rng.normal(size=300)
    model = fresh(backend, 2, petals=1, hidden_dim=2)
    given = backend.package.fit(model, x, y, **SHORT)
    chosen = backend.package.fit(model, x, y, **SHORT, shape="auto", budget=600.0)
    assert given.shape == "" and chosen.shape != "the given shape"
    assert chosen.judged.hull.mean() < 0.7 * given.judged.hull.mean()
    assert chosen.gain == pytest.approx(given.judged.hull.mean() / chosen.judged.hull.mean())
    # control: without time for another it is the given one, to the bit
    kept = backend.package.fit(model, x, y, **SHORT, shape="auto", budget=1e-9)
    assert kept.shape == "the given shape" and kept.model.config == given.model.config
    assert kept.gain == given.gain == 1.0
    assert np.array_equal(kept.judged.hull, given.judged.hull)


REFUSED = {
    "shape": ({"shape": "wide"}, ValueError, r"fit.shape: expected one of \['auto'\]; got 'wide'"),
    "none held out": ({"shape": "auto", "validation": 0}, ValueError, "fit.shape: expected rows held out, to judge by"),
    "watched": ({"shape": "auto", "on_evaluation": print}, ValueError, "fit.shape: expected neither resume nor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_choice_of_shapes_cannot_use_is_refused(name):
    options, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        TORCH.package.fit(fresh(TORCH, 3), *convex(20), steps=4, **options)


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_budget_is_a_finite_number_of_seconds_above_0(backend):
    rule = r"fit\.budget: expected a finite number of seconds above 0; got {}\. Pass 60\.0, for example\."
    options = {"steps": 4, "shape": "auto"}
    for budget in (-1, 0, 0.0, np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=rule.format(re.escape(repr(budget)))):
            backend.package.fit(fresh(backend, 3), *convex(20), budget=budget, **options)
    for budget in ("long", None, True):
        with pytest.raises(TypeError, match=rule.format(re.escape(repr(budget)))):
            backend.package.fit(fresh(backend, 3), *convex(20), budget=budget, **options)
    # control
    found = backend.package.fit(fresh(backend, 3), *convex(20), budget=np.float32(1e-9), compare=False, **options)
    assert found.shape == "the given shape"

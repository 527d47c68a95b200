"""`fit(shape="auto")` says which fit it gives back, and what it gained; the benchmark of the choice has its fits."""

import math
import sys
import time

import numpy as np
import pytest
import shape_choice
import tables

import convexmoe_torch
from convexmoe import HullConfig
from convexmoe.training import FitResult, History
from convexmoe.training.curvature import Judged
from convexmoe.training.shapes import LONGER, RATES, Trial, fit_shapes, shapes

CONFIG = HullConfig(2, 8, 1, hidden_dim=16, temperature="learned")
ROWS = np.random.default_rng(0).uniform(0.5, 1.5, 400)  # errors on the rows held out


def choose(factors, budget=math.inf):
    """The choice among fits whose errors are `ROWS` times a factor, or errors of their own; and what was tried."""
    tried = []

    def fit(trial):
        tried.append(trial.name)
        errors = factors.get(trial.name, 1.0) * ROWS
        return FitResult(trial.name, History(), 0, Judged(errors, errors))

    return fit_shapes(fit, CONFIG, budget, False), tried


def test_more_steps_begin_where_there_is_time_for_them(monkeypatch):
    """A trial lasts a second a length: after seven, one of four more seconds."""
    now, made = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def fit(trial):
        made.append(trial)
        now[0] += trial.longer
        return FitResult(trial.name, History(), 0, Judged(ROWS, ROWS))

    for budget, count in ((6.5, 6), (7.0, 7), (10.9, 7), (11.0, 8)):
        now[0], made[:] = 0.0, []
        fit_shapes(fit, CONFIG, budget, False)
        assert len(made) == count
    assert made[-1] == Trial(f"the given shape, {LONGER} x the steps", CONFIG, 0.5, LONGER)


def test_the_gain_is_the_loss_of_the_given_shape_over_that_of_the_chosen_one():
    names = ["the given shape", *[trial.name for trial in shapes(Trial("the given shape", CONFIG))]]
    found, tried = choose({"32 petals on 4 units": 0.9, "2 layers": 0.5})
    assert (found.model, found.shape) == ("2 layers", "2 layers") and found.gain == pytest.approx(2.0)
    rates = [f"2 layers, rate x {rate:g}" for rate in RATES]
    assert tried == [*names, "2 layers, huber_relu", *rates, f"2 layers, {LONGER} x the steps"]
    found, tried = choose({"2 layers": 0.5, "2 layers, huber_relu": 0.4})
    assert found.shape == "2 layers, huber_relu" and found.gain == pytest.approx(2.5)
    assert tried[5:-1] == [f"2 layers, huber_relu, rate x {rate:g}" for rate in RATES]
    found, tried = choose({"2 layers": 0.5, "2 layers, rate x 4": 0.25})
    assert found.shape == "2 layers, rate x 4" and found.gain == pytest.approx(4.0)
    assert tried[-1] == "2 layers, rate x 4, 4 x the steps"
    # controls: a gain within chance, and no time for another
    noise = np.random.default_rng(1).normal(size=len(ROWS))
    lucky = 1.0 + (noise - noise.mean() - 0.02) / ROWS
    for factors, budget in (({"2 layers": lucky}, math.inf), ({"2 layers": 0.5}, 1e-9)):
        found, _ = choose(factors, budget)
        assert found.shape == "the given shape" and found.gain == 1.0
    assert (lucky * ROWS).mean() < ROWS.mean()


def record(group, *errors):
    names = (*shape_choice.SETTINGS, shape_choice.AUTO)
    return {"group": group, "task": "t", "errors": dict(zip(names, errors, strict=True))}


def test_the_best_single_setting_is_that_of_the_group_and_not_of_each_task():
    records = [record("suite", 4, 1, 2, 8, 8, 8, 8, 8, 2), record("suite", 4, 9, 2, 8, 8, 8, 8, 8, 1)]
    *cells, best, over_best, over_each = shape_choice.line_of("suite", records)
    assert best == "planes" and cells[:5] == ["suite", "2", "1.000", "0.750", "0.500"]
    assert over_best == f"{math.sqrt(2 / 2 * 1 / 2):.3f}" and over_each == f"{math.sqrt(2 / 1 * 1 / 2):.3f}"
    text = shape_choice.report([*records, record("tables", *[1.0] * 8, 1.5)])
    assert "given shape | 1.500 | 1.500 |" in text and len(text.splitlines()) == 4


def test_the_benchmark_measures_what_fit_chooses_and_fits_each_setting_once():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y, steps = np.abs(x).sum(axis=1), 40
    fits = shape_choice.Fits("torch", steps)
    predicted = {name: fits.regressor(name)(x, y, x, 3) for name in (*shape_choice.SETTINGS, shape_choice.AUTO)}
    config = HullConfig(2, 8, 1, temperature="learned")
    options = {"steps": steps, "seed": 3, "compare": False, "shape": "auto", "budget": 600.0}
    found = convexmoe_torch.fit(fits.side.new_hull(config, 3), x, y, **options)
    assert fits.chosen == [found.shape] and len(fits.made) <= len(shape_choice.SETTINGS) + 2 + len(RATES)
    assert np.array_equal(predicted[shape_choice.AUTO], fits.side.package.predict(found.model, x)[:, 0])
    others = [name for name, values in predicted.items() if not np.array_equal(values, predicted[shape_choice.AUTO])]
    assert len(others) >= 3  # control: the settings differ
    made = len(fits.made)
    fits.regressor("planes")(x, y, x, 3)
    assert len(fits.made) == made
    fits.regressor("planes")(x + 1, y, x, 3)  # control: other rows
    assert len(fits.made) == made + 1


def test_what_the_file_of_results_has_is_not_done_again(tmp_path, monkeypatch, capsys):
    done = []

    def measure(group, name, *given):
        done.append(name)
        return record(group, *[1.0] * 9) | {"task": name}

    monkeypatch.setattr(shape_choice, "record_of", measure)
    words = ["shape_choice.py", "--groups", "suite", "unseen", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    shape_choice.main()
    first = [name for name in done]
    assert len(first) == len(set(first)) == 3
    monkeypatch.setattr(sys, "argv", [*words, "--resume"])
    shape_choice.main()
    assert done == first and "| unseen | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", words)  # control
    shape_choice.main()
    assert done == [*first, *first]


def test_a_table_is_held_out_in_folds_of_one_size():
    sizes = []

    def mean(x, y, rows, seed):
        sizes.append((len(x), len(rows)))
        return np.full(len(rows), y.mean())

    x = np.random.default_rng(0).normal(size=(26, 2))
    error = shape_choice.error_on_table(lambda: (x, x[:, 0]), None, mean)
    assert sizes == [(16, 8)] * 3 and error == pytest.approx(x[:, 0].std(), rel=0.2)
    sizes.clear()
    shape_choice.error_on_table(lambda: (x, x[:, 0]), 20, mean)
    assert sizes == [(10, 10)] * tables.QUICK["folds"]

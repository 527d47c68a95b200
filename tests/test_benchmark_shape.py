"""The benchmark of shapes measures what it says: convex and rising truths, published protocols, honest coverage."""

import json
import sys

import numpy as np
import pytest
import shape
import shape_fits
import shape_tasks
from shape import Job

pytestmark = pytest.mark.usefixtures("quick_compilation")


def above_chords(function, dim: int) -> float:
    """The most by which a function is above its chords."""
    first, second = np.random.default_rng(0).uniform(-1, 1, (2, 999, dim))
    return float(np.max(function((first + second) / 2) - (function(first) + function(second)) / 2))


@pytest.mark.parametrize("name", shape_tasks.HYCNN)
def test_functions_of_hycnn_are_convex_and_noise_has_deviation_one(name):
    assert above_chords(shape_tasks.HYCNN[name], 5) < 1e-12 < above_chords(lambda x: -shape_tasks.HYCNN[name](x), 5)
    task = shape_tasks.hycnn(name, 5, seed=0)
    assert abs((task.y[:, 0] - shape_tasks.HYCNN[name](task.x)).std() - 1) < 0.05
    assert not np.isin(task.x, shape_tasks.hycnn(name, 5, seed=1).x).any()


def test_f5_is_the_larger_of_two_bowls():
    x, mu = np.random.default_rng(0).uniform(-1, 1, (50, 4)), np.full(4, 0.5)
    bowls = [np.sum((x + sign * mu) ** 2, axis=1) for sign in (1, -1)]
    assert np.allclose(shape_tasks.two_bowls(x), np.max(bowls, axis=0))


@pytest.mark.parametrize("name", shape_tasks.RISING)
def test_rising_truths_rise_and_are_convex(name):
    function = shape_tasks.RISING[name](np.random.default_rng(1), 3)
    x, step = np.random.default_rng(2).uniform(-1, 1, (999, 3)), np.random.default_rng(3).uniform(0, 1, (999, 3))
    assert above_chords(function, 3) < 1e-12 and (function(x + step) >= function(x)).all()
    assert not (function(x - step) >= function(x)).all()  # control


def test_a_hull_is_told_the_shape():
    x = np.zeros((5, 2))
    assert shape_fits.new_hull(x, None, monotone=(1, 0)).config.monotone == (1, 0)
    config = shape_fits.new_hull(x, x, depth=2).config
    assert (config.context_dim, config.depth, config.monotone) == (2, 2, None)


def test_rows_of_parameters_are_apart_and_concave_pieces_are_judged_by_their_best_line():
    task = shape_tasks.parametric("piecewise affine", quick=True)
    assert not np.isin(task.held[1], task.train[1]).any() and not np.isin(task.test[1], task.train[1]).any()
    x, context, y = (part[~task.parts["convex"]][:10] for part in task.test)  # ten points of one parameter
    right, left, m, v = context[0]
    truth = right * np.maximum(x[:, 0] - m, 0) + left * np.maximum(m - x[:, 0], 0) + v
    assert right + left < 0 and np.allclose(y, np.polyval(np.polyfit(x[:, 0], truth, 1), x[:, 0]))
    x, context, y = shape_tasks.parametric("quadratics", quick=True).train
    assert np.allclose(y, np.einsum("ni,nij,nj->n", x, context.reshape(-1, 3, 3), x))
    assert np.linalg.norm(x, axis=1).max() <= 1


def test_shares_are_the_level_at_the_quantile_and_the_expectile_and_nowhere_else():
    y = np.random.default_rng(0).exponential(size=100_000)
    assert shape_fits.share_below("quantile", y - np.quantile(y, 0.9)) == pytest.approx(0.9, abs=1e-4)
    assert shape_fits.share_below("expectile", y - y.mean()) == pytest.approx(0.5, abs=1e-9)
    assert abs(shape_fits.share_below("expectile", y - np.median(y)) - 0.5) > 0.1  # control


@pytest.mark.parametrize(
    ("command", "case", "key"),
    [
        pytest.param("monotone", ("max-affine", 2, 50, 0), "error", marks=pytest.mark.release),
        ("levels", ("normal", "quantile", 0.5, 0), "share"),
    ],
)
def test_a_job_gives_a_record(command, case, key):
    model = "hull, monotone" if command == "monotone" else "ours"
    found = shape.work(Job(command, case, model, seeds=1, limit=1.0, quick=True))
    assert found["case"] == list(case) and 0 < found[key] < 1 and found["seconds"] > 0


def test_errors_are_shown_over_those_of_lpcf(capsys):
    record = {"case": ["battery"], "choice": "", "seconds": 1.0}
    shape.show_parametric([record | {"model": m, "errors": {"all": e}} for m, e in (("ours", 0.25), ("lpcf", 0.5))])
    assert "| battery | all | ours | 0.25 | 0.500 |" in capsys.readouterr().out


def test_a_missing_peer_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(shape.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["shape.py", "parametric", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="parametric needs lpcf"):
        shape.main()


@pytest.mark.release
def test_script_prints_a_table_and_writes_its_records(monkeypatch, tmp_path, capsys):
    given = ["parametric", "--quick", "--models", "ours", "MLP", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["shape.py", *given])
    shape.main()
    assert "| quadratics | all | ours |" in capsys.readouterr().out
    records = json.loads((tmp_path / "quick" / "shape-parametric.json").read_text())
    assert [one["model"] for one in records] == ["ours", "MLP"]

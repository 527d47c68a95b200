"""The benchmark on tables holds out what it says, beside the peers that it names, on tables that are installed."""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import regressors
import table_data
import tables
import timed_peers

pytestmark = pytest.mark.usefixtures("quick_compilation")


def rows(N: int, D: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, D)) * np.geomspace(0.01, 100, D) + 7
    return x, x @ (rng.normal(size=D) / x.std(axis=0)) + noise * rng.normal(size=N)


def penalized(x: np.ndarray, y: np.ndarray, mean: np.ndarray, scale: np.ndarray, penalty: float, at: np.ndarray):
    """Ridge regression with a free intercept, by the normal equations."""
    design, wanted = (np.column_stack([(part - mean) / scale, np.ones(len(part))]) for part in (x, at))
    penalties = np.diag([penalty] * x.shape[1] + [0])
    return wanted @ np.linalg.solve(design.T @ design + penalties, design.T @ y)


@pytest.mark.parametrize("N, D", [(13, 3), (11, 17)])
def test_ridge_takes_the_penalty_that_errs_least_on_rows_left_out_in_turn(N, D, monkeypatch):
    x, y = rows(N, D, noise=2.0)
    monkeypatch.setattr(regressors, "PENALTIES", np.logspace(-3, 3, 13))
    mean, scale, penalties = x.mean(axis=0), x.std(axis=0), N * regressors.PENALTIES

    def error(penalty: float) -> float:
        left = [[part != k for part in range(N)] for k in range(N)]
        predicted = [penalized(x[rest], y[rest], mean, scale, penalty, x[k : k + 1]) for k, rest in enumerate(left)]
        return float(np.mean((np.concatenate(predicted) - y) ** 2))

    best = int(np.argmin([error(penalty) for penalty in penalties]))
    assert 0 < best < len(penalties) - 1
    found = regressors.fit_ridge(x, y)(x + 1)
    np.testing.assert_allclose(found, penalized(x, y, mean, scale, penalties[best], x + 1), rtol=1e-8)
    other = penalized(x, y, mean, scale, penalties[best + 1], x + 1)  # control
    assert not np.allclose(found, other, rtol=1e-4)


@pytest.mark.parametrize("name", tables.LINEAR)
def test_a_column_that_is_constant_in_training_has_no_effect(name):
    x, y = rows(23, 5)
    x[:, 2] = 0.1
    x = np.column_stack([x, x[:, 0]])
    elsewhere = x + np.array([0, 0, 1e9, 0, 0, 0])
    regressor = tables.REGRESSORS[name]
    found = regressor(x, y, x, 0)
    np.testing.assert_allclose(regressor(x, y, elsewhere, 0), found, rtol=1e-12)
    assert np.abs(found - y).max() < np.abs(y - y.mean()).max()


def test_every_row_is_held_out_once_from_the_model_that_predicts_it():
    x, y = rows(23, 1)
    parts = []

    def mean_of_training(x_train, y_train, x_test, seed):
        assert not np.isin(x_test, x_train).any() and len(x_train) + len(x_test) == 23
        parts.append(x_test[:, 0])
        return np.full(len(x_test), y_train.mean())

    errors = tables.held_out_errors(x, y, mean_of_training, 0, 5)
    assert [len(part) for part in parts] == [5, 5, 5, 4, 4]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(x[:, 0]))
    for part in parts:
        test = np.isin(x[:, 0], part)
        np.testing.assert_allclose(errors[test], y[~test].mean() - y[test])
    assert not np.allclose(errors, tables.held_out_errors(x, y, mean_of_training, 1, 5))  # folds of another seed


def test_a_model_that_is_not_done_in_time_has_a_dash_and_its_other_folds_are_skipped():
    x, y = rows(23, 2)
    calls = []

    def late_at(fold):
        def predict(x_train, y_train, x_test, seed):
            calls.append(fold)
            return np.full(len(x_test), np.nan if len(calls) == fold else 0.0)

        return predict

    found = {}
    for fold, done in ((1, 1), (3, 3), (9, 5)):  # control: one that is never late has all five folds
        calls.clear()
        found[fold] = tables.measure(x, y, late_at(fold), 0, 5)
        assert len(calls) == done and all(np.isnan(value) == (fold != 9) for value in found[fold].values())
    assert found[9]["rmse"] == pytest.approx(np.sqrt(np.mean(y**2)))
    linear = [record(table, "plain", 0, 4, 4) for table in "ab"]
    late = [record("a", "late", 0, **found[1]), record("b", "late", 0, 2, 2)]
    lines = [tables.line_of([one, peer, one | {"model": "ridge"}]) for one, peer in zip(linear, late, strict=True)]
    _, _, first, _, mean, _ = tables.report(lines, ["late"]).splitlines()
    assert first.endswith("| - | - | - |") and mean.endswith("| 0.500 | 0.50 | 1.0 |")


def record(table, model, seed, rmse, largest, seconds=1.0):
    found = {"rmse": rmse, "largest": largest, "seconds": seconds}
    return {"table": table, "shape": [7, 2], "model": model, "seed": seed} | found


def test_ratios_are_over_the_better_linear_model_of_each_table():
    a = [record("a", "plain", 0, 9, 9), record("a", "ridge", 0, 2, 5), record("a", "ridge", 1, 4, 8)]
    a += [record("a", "ours", 0, 5, 1), record("a", "ours", 1, 7, 16)]
    b = [record("b", "plain", 0, 1, 4), record("b", "ridge", 0, 2, 1), record("b", "ours", 0, 0.5, 1)]
    lines = [tables.line_of(part) for part in (a, b)]
    assert lines == [["a", 7, 2, 9, 3, 2, 2, 1], ["b", 7, 2, 1, 2, 0.5, 0.25, 1]]
    *_, mean, worst = tables.report(lines, ["ours"]).splitlines()
    assert mean.endswith("| 1.000 | 0.71 | 1.0 |") and worst.endswith("| 2.000 | 2.00 | 1.0 |")


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, arguments)])
    tables.main()


def test_tables_of_a_folder_are_measured_and_only_ours_is_measured_anew(tmp_path, monkeypatch, capsys):
    x, y = rows(40, 3)
    for name, part in (("long", x), ("odd", np.column_stack([x[:, :2], np.arange(40) == 5]))):  # constant in one fold
        np.savez(tmp_path / f"{name}.npz", x=part, y=y)
    options = ["--quick", "--folder", tmp_path, "--models", "ours", "--cache", tmp_path / "kept.json"]
    options += ["--out", tmp_path / "run"]
    run(monkeypatch, *options)
    first = capsys.readouterr().out
    assert first.count("\n| long | 40 | 3 |") == first.count("\n| odd | 40 | 3 |") == 1
    records = json.loads((tmp_path / "run" / "quick" / "tables.json").read_text())
    assert [(one["table"], one["model"]) for one in records] == [
        (table, model) for table in ("long", "odd") for model in ("plain", "ridge", "ours")
    ]
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert len(kept) == 4 and not any("ours" in key for key in kept)

    changed = {key: entry | {"rmse": 1e-3} for key, entry in kept.items()}
    (tmp_path / "kept.json").write_text(json.dumps(changed))
    run(monkeypatch, *options)
    again = json.loads((tmp_path / "run" / "quick" / "tables.json").read_text())
    for before, after in zip(records, again, strict=True):
        assert after["rmse"] == (before["rmse"] if before["model"] == "ours" else 1e-3)
    np.savez(tmp_path / "odd.npz", x=x, y=-y)  # control: other numbers of the same name are measured
    run(monkeypatch, *options, "--models", "")
    again = json.loads((tmp_path / "run" / "quick" / "tables.json").read_text())
    assert [one["rmse"] == 1e-3 for one in again] == [True, True, False, False]


def convex_rows(N: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).uniform(-1, 1, (N, 2)) * [1e-3, 1e3]
    return x, 1e4 * np.abs(x[:, 0] * 1e3) + x[:, 1] + 5e6


def test_cnls_is_measured_beside_ridge(tmp_path, monkeypatch):
    x, y = convex_rows(60)
    for name, sign in (("convex", 1), ("concave", -1)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=sign * y)
    run(monkeypatch, "--quick", "--folder", tmp_path, "--models", "cnls", "--out", tmp_path / "run")
    records = json.loads((tmp_path / "run" / "quick" / "tables.json").read_text())
    found = {(one["table"], one["model"]): one["rmse"] for one in records}
    assert found["convex", "cnls"] < 0.3 * found["convex", "ridge"]
    assert found["concave", "cnls"] > 0.8 * found["concave", "ridge"]  # control


def test_the_penalty_that_errs_least_on_what_is_held_out_counts_of_those_done_in_time():
    x = np.random.default_rng(6).normal(size=(90, 2))
    y = np.abs(x[:, :1]) + 0.1 * np.random.default_rng(7).normal(size=(90, 1))
    parts = x[:40], y[:40], x[40:80], y[40:80]
    found = timed_peers.best_in_time(timed_peers.CNLS, parts, x[80:], 60)
    errors, predicted = [], []
    for penalty in timed_peers.CNLS_PENALTIES:
        planes = regressors.fit_convex(x[:40], y[:40, 0], penalty)
        errors.append(np.mean((planes(x[40:80]) - y[40:80, 0]) ** 2))
        predicted.append(planes(x[80:]))
    best = int(np.argmin(errors))
    assert found.choice == f"{timed_peers.CNLS_PENALTIES[best]:g}, of {len(errors)}"
    np.testing.assert_allclose(found.predicted[:, 0], predicted[best], rtol=1e-9)
    assert not np.allclose(predicted[best], predicted[best - 1], rtol=1e-2)  # control
    many = np.random.default_rng(8).normal(size=(900, 5))
    parts = many[:800], many[:800, :1] ** 2, many[800:], many[800:, :1] ** 2
    assert timed_peers.best_in_time(timed_peers.CNLS, parts, x, 1) is None


def test_a_peer_that_fails_is_not_taken_for_one_that_is_late(monkeypatch, capfd):
    x, y = np.zeros((9, 2)), np.full((9, 1), np.nan)
    with pytest.raises(RuntimeError, match="cnls ended with an error"):
        timed_peers.best_in_time(timed_peers.CNLS, (x, y, x, y), x, 60)
    assert "expected Clarabel to solve" in capfd.readouterr().err


@pytest.mark.parametrize("penalty", [0.1, 0.0])
def test_convex_least_squares_is_the_program_that_pystoned_states(penalty):
    reason = "pip install --no-deps pystoned==0.7.5 pyomo==6.10.1 pyscipopt==6.3.0"
    for package in ("pystoned", "pyomo", "pyscipopt"):
        pytest.importorskip(package, reason=reason)
    from pystoned.CNLS import CNLS
    from pystoned.constant import CET_ADDI, FUN_COST, OPT_LOCAL, RTS_VRS
    from pystoned.pCNLS import pCNLS

    x = np.random.default_rng(9).normal(size=(17, 3))
    y = np.abs(x).sum(axis=1) + 0.5 * np.random.default_rng(10).normal(size=17)
    both, form = np.hstack([x, -x]), {"cet": CET_ADDI, "fun": FUN_COST, "rts": RTS_VRS}  # slopes of either sign
    model = pCNLS(y, both, eta=penalty, penalty=2, **form) if penalty else CNLS(y, both, **form)
    model.optimize(OPT_LOCAL, "scip_direct")
    values = regressors.fit_convex(x, y, penalty)(x)
    np.testing.assert_allclose(values, model.get_predict(both)[:, 0], atol=2e-3)
    assert not np.allclose(values, regressors.fit_convex(x, y, penalty + 0.02)(x), atol=2e-3)  # control


def test_linear_truths_are_predicted_beside_ridge(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--wide", "--quick", "--out", tmp_path)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:]] == ["0.1", "1.0"]
    for one in json.loads((tmp_path / "quick" / "wide.json").read_text()):
        assert 0 < one["ridge, truth"] < one["ridge"] and one["noise"] * 0.9 < one["ridge"] < one["noise"] * 1.5


@pytest.mark.parametrize("missing", ["plotnine", "sklearn"])
def test_a_missing_package_is_named_before_any_work(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(table_data.importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(SystemExit, match=rf"needs {missing}: pip install .*\[tables\]"):
        run(monkeypatch, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lpcf_stands_in_no_extra_and_is_named_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(table_data.importlib.util, "find_spec", lambda name: None if name == "lpcf" else name)
    with pytest.raises(SystemExit, match=r"needs lpcf: pip install .*\[tables,peers\]\"; pip install --no-deps lpcf=="):
        run(monkeypatch, "--models", "lpcf", "--out", tmp_path / "run")


def test_a_folder_without_tables_is_said(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"expected \.npz files with x and y; .* has none"):
        run(monkeypatch, "--folder", tmp_path)


SHAPES = {
    "scotland": (32, 7),
    "wine": (178, 12),
    "macrodata": (203, 10),
    "star98": (303, 20),
    "midwest": (437, 12),
    "breast_cancer": (569, 20),
    "seattle_weather": (1461, 3),
    "txhousing": (7126, 5),
    "randhie": (20190, 9),
    "diamonds": (53940, 9),
}


@pytest.mark.parametrize("table", table_data.TABLES, ids=lambda table: table.name)
def test_a_shipped_table_is_read(table):
    pytest.importorskip(table.package, reason='pip install -c constraints.txt -e ".[tables]"')
    x, y = table.read()
    assert x.shape == SHAPES[table.name] and y.shape == x.shape[:1] and x.dtype == y.dtype == np.float64
    assert np.isfinite(x).all() and np.isfinite(y).all() and (np.ptp(x, axis=0) > 0).all()
    assert not any(np.array_equal(column, y) for column in x.T)


@pytest.mark.parametrize("table", table_data.TABLES, ids=lambda table: table.name)
def test_the_page_names_the_package_of_a_table_and_its_license(table):
    rows, columns = SHAPES[table.name]
    line = rf"\| {table.name} \| ([\w-]+), ([\w-]+) \| {rows}, {columns} \|"
    (package, license), *more = re.findall(line, (Path(__file__).parents[1] / "docs/pages/quality.md").read_text())
    assert not more and package == {"sklearn": "scikit-learn"}.get(table.package, table.package)
    pytest.importorskip(table.package, reason='pip install -c constraints.txt -e ".[tables]"')
    said = importlib.metadata.metadata(package)
    terms = " ".join([said.get("License-Expression", ""), *said.get_all("Classifier", [])])
    found = [name for name in ("BSD", "MIT", "Apache", "GPL") if name in terms]
    assert found == [license.removesuffix("-3")]


@pytest.mark.parametrize("name", tables.PEERS)
def test_the_peers_learn_what_is_not_linear(name):
    pytest.importorskip("sklearn", reason='pip install -c constraints.txt -e ".[tables]"')
    x = np.random.default_rng(0).uniform(-1, 1, (400, 2)) * [1e-3, 1e3]
    y = 1e4 * np.abs(x[:, 0] * 1e3) + 5e6
    ridge, peer = (tables.held_out_errors(x, y, tables.REGRESSORS[part], 0, 2) for part in ("ridge", name))
    assert np.abs(peer).mean() < 0.3 * np.abs(ridge).mean()

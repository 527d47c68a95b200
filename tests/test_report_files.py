"""What `convexmoe report` reads is checked before it is drawn: damaged numbers are a line, and no markup is obeyed."""

import json
import shutil

import numpy as np
import pytest
from runs import make_run
from safetensors.numpy import load, save

from convexmoe.errors import InputError
from interop.command import page, report_rows
from interop.command.pictures import draw_errors, new_figure
from interop.command.render import read_metrics
from interop.command.report_rows import ReportRows
from interop.command.saved_model import design_of, read_model

BAD = (None, "<b>", [], {}, [1, 2], {"a": 1}, -1, 10**400, float("nan"), float("inf"), True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, its design, its target, and its metrics."""
    from interop import frameworks

    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    path = folder / "model.safetensors"
    model, columns, target, notes = read_model(path, frameworks.get("torch"))
    return folder, design_of(path, notes, columns, model.config.in_dim), target, load_metrics(folder)


def load_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def places_of(value, above=()):
    """The place of each value in nested dicts and lists, of lists of the first alone."""
    if above:
        yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places_of(part, (*above, name))


def changed(metrics, place, value):
    """A copy with another value at a place; without that place where the value is `...`."""
    copy = json.loads(json.dumps(metrics))
    at = copy
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    if value is ...:
        del at[place[-1]]
    return copy


def show(metrics):
    """What of the page and of the pictures is made of metrics.json alone."""
    report = type("Run", (), {"metrics": metrics, "rows": type("Rows", (), {"y": [0.0]}), "target": "y"})
    draw_errors(new_figure(4.0, 3.0).subplots(), report)
    return page._table_of_errors(metrics) + page._certainties(metrics, None) + page._facts(metrics, ())


def test_metrics_are_shown_or_refused_in_a_line_whatever_is_in_them(run, tmp_path):
    _, design, target, metrics = run
    refused = 0
    for place in places_of(metrics):
        for value in (*BAD, ...):
            (tmp_path / "metrics.json").write_text(json.dumps(changed(metrics, place, value)))
            try:
                read = read_metrics(tmp_path, design, target)
            except InputError as error:
                refused += 1
                assert "metrics.json: expected the metrics of" in str(error)
            else:
                assert "<b>" not in show(read), place
    assert refused > 500


def test_control_metrics_that_are_not_checked_stop_the_page_or_get_into_it(run):
    metrics = run[3]
    assert "<b>" not in show(metrics)
    assert "<b>" in show(changed(metrics, ("plan", "petals"), "<b>"))
    for place, value in ((("test_rmse", "hull"), None), (("rows",), []), (("interval_coverage", "0.9"), 1)):
        with pytest.raises(TypeError):
            show(changed(metrics, place, value))


def test_rows_that_are_not_those_of_a_run_are_refused(run, tmp_path):
    folder, design, *_ = run
    width = len(design.names)
    good = load((folder / report_rows.FILE).read_bytes())
    assert ReportRows.read(folder, width).history.step == (0, 10, 20)  # control
    losses = good["history/train_loss"]
    for name, value in {
        "predicted/hull": None,
        "history/step": np.zeros(0),
        "history/train_loss": np.stack([losses] * 2, axis=1),
        "history/validation_loss": losses[:2],
        "y": good["y"].reshape(-1, 1),
        "x": good["x"].T.copy(),
    }.items():
        arrays = {key: array for key, array in (good | {name: value}).items() if array is not None}
        (tmp_path / report_rows.FILE).write_bytes(save(arrays))
        with pytest.raises(InputError, match=r"report\.safetensors: expected"):
            ReportRows.read(tmp_path, width)
    empty = good | {key: np.zeros(0) for key in good if key.startswith("history/")}
    (tmp_path / report_rows.FILE).write_bytes(save(empty))
    with pytest.raises(InputError):
        ReportRows.read(tmp_path, width)
    shutil.copy(folder / report_rows.FILE, tmp_path)
    ReportRows.read(tmp_path, width)

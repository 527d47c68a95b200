"""Models, names, units and files that nobody should give the command, and what it says of them."""

import dataclasses
import io
import json
import os
import sys
import warnings

import jax
import numpy as np
import pytest
import torch
from commands import FRAMEWORKS, QUICK, assert_one_line_refusal, invoke, rows, write

import convexmoe_torch
from convexmoe.errors import InputError
from interop import cli, frameworks
from interop.command.saved_model import notes_of, read_model
from interop.command.tables import read_table, require_columns

pytestmark = pytest.mark.usefixtures("few_folds")


def hull_file(path, notes=None, dtype=torch.float32, **options):
    """A model of the columns a and b with random weights, as `fit` would write it but for what is given."""
    torch.manual_seed(0)
    model = convexmoe_torch.VectorHull(**{"in_dim": 2, "petals": 3, "out_dim": 1} | options, dtype=dtype)
    convexmoe_torch.save(model, path, notes=notes_of(("a", "b"), "y") if notes is None else notes)
    return path


STRANGE_MODELS = {
    "two outputs": ({"out_dim": 2}, ["out_dim=1", "got out_dim=2", "convexmoe fit"]),
    "numbers for columns": ({"notes": {"columns": [1, 2], "target": "y"}}, ["column names", "convexmoe fit"]),
    "a number for the target": ({"notes": {"columns": ["a", "b"], "target": 3}}, ["column names"]),
    "a name too few": ({"notes": {"columns": ["a"], "target": "y"}}, ["column names"]),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("options, parts", STRANGE_MODELS.values(), ids=STRANGE_MODELS)
def test_a_model_that_fit_did_not_write_is_refused(tmp_path, options, parts, name):
    model, data = hull_file(tmp_path / "m.safetensors", **options), write(tmp_path / "t.csv", rows())
    assert_one_line_refusal(invoke("predict", model, data, "--framework", name), "m.safetensors", *parts)


def test_a_float64_model_predicts_in_float64(tmp_path):
    model = hull_file(tmp_path / "m.safetensors", dtype=torch.float64)
    data = write(tmp_path / "t.csv", rows())
    x = read_table(data).numbers(["a", "b"])[0]
    expected = convexmoe_torch.load(model)(torch.from_numpy(x)).detach().numpy()[:, 0]
    by_torch, by_jax = map(frameworks.get, ("torch", "jax"))
    np.testing.assert_allclose(by_torch.predict(read_model(model, by_torch)[0], x), expected, rtol=1e-13)
    assert invoke("predict", model, data, "--framework", "torch").exit_code == 0

    with jax.enable_x64(False):
        result = invoke("predict", model, data, "--framework", "jax")
        assert_one_line_refusal(result, "float64", "Set JAX_ENABLE_X64=1")
    with jax.enable_x64(True):
        np.testing.assert_allclose(by_jax.predict(read_model(model, by_jax)[0], x), expected, rtol=1e-13)
        assert invoke("predict", model, data, "--framework", "jax").exit_code == 0


@pytest.mark.parametrize("fault", [RecursionError("deep"), OverflowError("int too large"), MemoryError()])
def test_a_fault_while_reading_a_model_is_one_line(tmp_path, monkeypatch, fault):
    def load(path):
        raise fault

    model, data = hull_file(tmp_path / "m.safetensors"), write(tmp_path / "t.csv", rows())
    monkeypatch.setattr(convexmoe_torch, "load", load)
    assert_one_line_refusal(
        invoke("predict", model, data, "--framework", "torch"),
        "m.safetensors", str(fault) or "MemoryError", "convexmoe fit",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["[" * 100_000, '{"config":' * 5_000, '{"schema": 1e999}', "null"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_hostile_model_is_refused_in_one_line(tmp_path, text, name):
    from safetensors.numpy import save_file

    model, data = tmp_path / "m.safetensors", write(tmp_path / "t.csv", rows())
    save_file({"params/shifts": np.zeros(3, np.float32)}, model, {"convexmoe": text})
    assert_one_line_refusal(invoke("predict", model, data, "--framework", name), "m.safetensors", "a model")


def test_predict_follows_links_and_leaves_pipes_alone(tmp_path):
    model, data = hull_file(tmp_path / "m.safetensors"), write(tmp_path / "t.csv", rows())
    (tmp_path / "there").mkdir()
    kept, link, loop, pipe = (tmp_path / name for name in ("there/p.csv", "link.csv", "loop.csv", "pipe"))
    link.symlink_to(kept)
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    options = ["predict", model, data, "--framework", "torch", "--out"]
    for _ in range(2):  # the link leads nowhere at first, then to a file
        assert invoke(*options, link).exit_code == 0
        assert link.is_symlink() and len(list(read_table(kept).rows())) == 40
        kept.write_text("old")
    for refused in (pipe, loop):
        assert_one_line_refusal(invoke(*options, refused), "a regular file", "Leave --out out")
    assert pipe.is_fifo() and loop.is_symlink()
    assert os.listdir(tmp_path / "there") == ["p.csv"]


def test_any_name_of_a_column_is_drawn_and_printed(tmp_path, monkeypatch):
    cells = rows(change=lambda cells: cells.__setitem__(0, ["$a_{$", "größe λ $", "\\$\\frac$\U0010fffd"]))
    data, out = write(tmp_path / "t.csv", cells), tmp_path / "run"
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    options = ["--target", cells[0][2], "--framework", "torch", "--out", str(out), *QUICK]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["convexmoe", "fit", str(data), *options])
    with warnings.catch_warnings(record=True) as seen, pytest.raises(SystemExit) as ended:
        cli.main()
    assert not [warning for warning in seen if "lyph" in str(warning.message)]  # of letters that no font has
    assert ended.value.code == 0
    streams[0].flush()
    printed = streams[0].buffer.getvalue()
    assert b"gr??e ?" in printed and b"report.png target is \\$\\frac$?" in printed
    assert (out / "report.png").stat().st_size > 10_000


def test_matplotlib_shows_a_name_as_it_is():
    from matplotlib.text import Text

    from interop.plots.style import plain

    for name in ("$a_{$", "$", "a$b$c", r"\$x\$", "mpg"):
        assert Text()._preprocess_math(plain(name)) == (name, False), name
    assert Text()._preprocess_math("$a_{$")[1], "control: unescaped, it is read as a formula"


def test_results_that_are_not_finite_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("interop.in_torch.largest_violation", lambda *_, **__: float("nan"))
    data = write(tmp_path / "t.csv", rows())
    result = invoke("fit", data, "--target", "y", "--framework", "torch", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 2
    assert "expected finite results" in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["t.csv"]


@pytest.mark.parametrize("unit", ["e-29", "e+28"])
def test_units_near_the_limits_give_finite_results(tmp_path, unit):
    cells = rows(change=lambda cells: [row.__setitem__(slice(None), [f"{c}{unit}" for c in row]) for row in cells[1:]])
    data, out = write(tmp_path / "t.csv", cells), tmp_path / "run"
    result = invoke("fit", data, "--target", "y", "--framework", "torch", "--out", out, *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    errors = json.loads((out / "metrics.json").read_text())["test_rmse"]
    assert all(0 < error < 3 * float(f"1{unit}") for error in errors.values())


def test_parity_of_predictions_of_zero(tmp_path, monkeypatch):
    from interop.command import experiment

    for name in ("jax", "torch"):
        monkeypatch.setattr(f"interop.in_{name}.predict", lambda model, x: np.zeros(len(x)))
    parity = experiment.compare_frameworks(
        frameworks.get("torch"), hull_file(tmp_path / "m.safetensors"), np.zeros((4, 2))
    )
    assert parity == {"framework": "jax", "max_difference": 0.0}


class Unsearched(tuple):
    """Names of columns that must not be searched through, once for each of many columns."""

    def index(self, *_):
        raise AssertionError("searched")

    def __contains__(self, _):
        raise AssertionError("searched")


def test_many_columns_take_linear_time(tmp_path):
    names = [f"c{k}" for k in range(10_000)]
    table = read_table(write(tmp_path / "t.csv", [names, ["1"] * len(names)]))
    table = dataclasses.replace(table, columns=Unsearched(table.columns))
    assert table.numbers(names)[0].shape == (1, 10_000)
    require_columns(table, names, "test")
    with pytest.raises(AssertionError, match="searched"):  # control
        assert "c7" in table.columns
    with pytest.raises(InputError, match="distinct column names"):
        read_table(write(tmp_path / "t.csv", [[*names, "c7"], ["1"] * (len(names) + 1)]))

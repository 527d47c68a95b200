"""`convexmoe fit --curvature` and `--shape auto`: what the rows say is printed, and a concave target keeps its sign."""

import json
import warnings

import numpy as np
import pytest
from commands import FRAMEWORKS, assert_one_line_refusal, invoke, rows, write

import convexmoe
import convexmoe_torch
from convexmoe import inspect
from convexmoe.training import fit, shapes
from interop.command import experiment
from interop.command import resume as unfinished
from interop.command.tables import read_table

pytestmark = pytest.mark.usefixtures("quick_compilation", "few_folds", "no_picture")

STEPS = 80  # the sizes of test_resume.py, so that both share what JAX compiles
RUN = ("--target", "y", "--steps", STEPS, "--petals", 3)


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def turn(cells):
    for row in cells[1:]:
        row[2] = f"{20 - float(row[2]):.4f}"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A table whose y is convex, and one whose y is concave and far above zero."""
    folder = tmp_path_factory.mktemp("tables")
    found = {"convex": None, "concave": turn}
    return {name: write(folder / f"{name}.csv", rows(60, change)) for name, change in found.items()}


@pytest.fixture(scope="module", params=FRAMEWORKS)
def concave(request, tables, tmp_path_factory):
    """(framework, directory, console output, map of the groups) of a run that finds that y is concave."""
    out, maps = tmp_path_factory.mktemp(request.param) / "run", []
    with pytest.MonkeyPatch.context() as patch:
        draw = experiment.draw_report
        patch.setattr(experiment, "draw_report", lambda *given: maps.append(given[0].groups) or draw(*given))
        options = (*RUN, "--curvature", "auto", "--framework", request.param, "--out", out)
        result = invoke("fit", tables["concave"], *options)
    assert result.exit_code == 0, result.output
    return request.param, out, result.stdout, maps[0]


def test_a_concave_target_is_found_and_fitted(concave, tables):
    _, out, printed, groups = concave
    assert "The rows speak for a concave function: a convex one errs" in printed
    assert "; --curvature auto takes concave." in printed and "Concavity: no violation in" in printed
    found, model = metrics(out), out / "model.safetensors"
    assert found["plan"]["curvature"] == found["curvature"]["fitted"] == found["curvature"]["shown"] == "concave"
    assert found["curvature"]["concave"] < 0.7 * min(found["curvature"]["convex"], found["curvature"]["plane"])
    assert found["test_rmse"]["hull"] < 0.7 * found["test_rmse"]["linear"]
    assert found["shape"] is found["shape_gain"] is None
    assert min(found["importance"].values()) > 0.1 * found["test_rmse"]["linear"]
    x, y = np.hsplit(read_table(tables["concave"]).numbers(("a", "b", "y"))[0], [2])
    assert groups.value.min() > 0 and groups.point_value.min() > 0
    notes = convexmoe_torch.read_notes(model)
    assert inspect(model).config["curvature"] == "concave" and notes["target_range"] == [y.min(), y.max()]
    for reader in FRAMEWORKS:
        result = invoke("predict", model, tables["concave"], "--framework", reader)
        predicted = np.array(result.stdout.split()[1:], float)
        assert np.sqrt(np.mean((predicted - y[:, 0]) ** 2)) < 0.7 * found["test_rmse"]["linear"]
        assert np.allclose(predicted, convexmoe_torch.predict(convexmoe_torch.load(model), x)[:, 0], rtol=1e-5)


def test_a_run_that_was_paused_keeps_its_curvature(concave, tables, tmp_path):
    framework, whole, *_ = concave
    options = (*RUN, "--curvature", "auto", "--framework", framework, "--out", tmp_path / "run")
    paused = invoke("fit", tables["concave"], *options, "--pause-at", STEPS // 8)
    assert "auto takes concave" in paused.stdout and "--curvature" not in paused.stdout.splitlines()[-1]
    result = invoke("fit", tables["concave"], "--resume", tmp_path / "run", "--framework", framework)
    assert result.exit_code == 0 and "The rows speak" not in result.stdout, result.output
    assert metrics(tmp_path / "run") | {"parts": []} == metrics(whole) | {"parts": []}


def test_what_reads_a_concave_file_says_so(concave):
    model = concave[1] / "model.safetensors"
    for command in ("certify", "inspect"):
        result = invoke(command, model)
        assert result.exit_code == 0 and "The function of a, b: concave." in result.stdout, result.output
    assert "proved: concave in its input" in invoke("certify", model, "--framework", "torch").stdout


def test_a_file_of_an_earlier_version_that_has_minus_the_target_is_read_rightly(concave, tables, tmp_path):
    new, old = concave[1] / "model.safetensors", tmp_path / "m.safetensors"
    hull, notes = convexmoe_torch.load(new), convexmoe_torch.read_notes(new)
    minus = convexmoe_torch.VectorHull.from_params(hull.config.negate(), hull.params)
    words, table = "The hull in the file is minus y, which is concave.", tables["concave"]

    def said(path, *command):
        result = invoke(command[0], path, *command[1:], "--framework", "torch")
        assert result.exit_code == 0, result.output
        return result.stdout

    convexmoe_torch.save(minus, old, notes=notes | {"curvature": "concave"})
    assert inspect(old).schema == 1 and not minus.config.is_concave
    for command in (["predict", table], ["minimize"]):
        assert said(old, *command) == said(new, *command)
    assert "maximum at" in said(old, "minimize") and words in invoke("inspect", old).stdout
    assert "proved: convex in its input" in said(old, "certify") and words in said(old, "certify")
    convexmoe_torch.save(minus, old, notes=notes | {"curvature": 1})
    for arguments in (["minimize", old], ["predict", old, table]):
        assert_one_line_refusal(invoke(*arguments), "expected convex or concave as the curvature in its notes; got 1")
    convexmoe_torch.save(minus, old, notes=notes)  # the control: without the note it is another function
    assert said(old, "predict", table) != said(new, "predict", table) and "minimum at" in said(old, "minimize")
    assert words not in invoke("inspect", old).stdout


def test_an_unfinished_run_of_an_earlier_version_that_has_minus_the_target_is_refused(tables, tmp_path, monkeypatch):
    options = (*RUN, "--concave", "--framework", "torch", "--out", tmp_path / "run", "--pause-at", 2)
    assert invoke("fit", tables["concave"], *options).exit_code == 0
    read, again = unfinished.read, ("fit", tables["concave"], "--resume", tmp_path / "run", "--framework", "torch")

    def read_earlier(directory, framework):
        found = read(directory, framework)
        model = found.state.model
        minus = convexmoe_torch.VectorHull.from_params(model.config.negate(), model.params)
        return unfinished.Unfinished(found.record, found.state._replace(model=minus))

    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "read", read_earlier)
        result = invoke(*again)
    assert result.exit_code == 2 and "got one of another hull, as an earlier version has" in result.stderr
    assert invoke(*again, "--pause-at", 4).exit_code == 0  # the control


# Table and option to what is printed, and to what is fitted.
SAID = {
    ("concave", "convex"): ("concave function: a convex one errs", "; pass --curvature concave or auto.", "convex"),
    ("convex", "concave"): ("convex function: a concave one errs", "; pass --curvature convex or auto.", "concave"),
    ("convex", "convex"): ("convex function: a concave one errs", " times.", "convex"),
    ("convex", "auto"): ("convex function: a concave one errs", "; --curvature auto takes convex.", "convex"),
}


@pytest.mark.parametrize(("table", "option"), SAID)
def test_the_rows_are_asked_and_the_option_decides(table, option, tables, tmp_path):
    start, end, fitted = SAID[table, option]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = (*RUN, "--framework", "torch", "--out", tmp_path / "run", "--pause-at", 2)
        result = invoke("fit", tables[table], *options, *(() if option == "convex" else ("--curvature", option)))
    assert result.exit_code == 0 and not [one for one in caught if "fit.y" in str(one.message)]
    [line] = [line for line in result.stdout.splitlines() if line.startswith("The rows speak for a ")]
    assert start in line and line.endswith(end)
    now = tmp_path / "run" / "unfinished" / "now.safetensors"
    notes = convexmoe_torch.read_notes(now)
    assert convexmoe_torch.load(now).config.curvature == notes["fit"]["plan"]["curvature"] == fitted


def test_of_no_curvature_auto_makes_a_convex_function(tmp_path):
    def flatten(cells):
        for row, noise in zip(cells[1:], np.random.default_rng(3).normal(size=len(cells)), strict=False):
            row[2] = f"{float(row[0]) - 2 * float(row[1]) + noise:.4f}"

    table = write(tmp_path / "t.csv", rows(60, flatten))
    options = ("--framework", "torch", "--curvature", "auto", "--out", tmp_path / "run", "--pause-at", 2)
    result = invoke("fit", table, *RUN, *options)
    assert "The rows speak for neither a convex nor a concave function: on rows held out" in result.stdout
    assert "; --curvature auto takes convex." in result.stdout


@pytest.mark.parametrize("curvature", ["convex", "concave"])
def test_the_folds_have_the_shape_that_was_chosen(curvature, tables, tmp_path, monkeypatch):
    asked = []

    def choose(train, config, budget, shown):
        asked.append((budget, shown))
        return train(shapes.shapes(shapes.Trial("the given shape", config))[0])._replace(
            shape="12 petals on 16 units", gain=1.25
        )

    monkeypatch.setattr(fit, "fit_shapes", choose)
    options = (*RUN, "--framework", "torch", "--curvature", curvature, "--out", tmp_path / "run")
    result = invoke("fit", tables[curvature], *options, "--shape", "auto", "--budget", 7)
    assert result.exit_code == 0 and asked == [(7.0, True)], result.output
    gain = "where the given one has 1.25 times its mean loss"
    assert f"Shape, chosen on rows held out, {gain}: 12 petals on 16 units." in " ".join(result.stdout.split())
    found, saved = metrics(tmp_path / "run"), convexmoe.inspect(tmp_path / "run" / "model.safetensors")
    assert (
        found["shape"] == "12 petals on 16 units" and saved.config["petals"] == 12 and saved.config["hidden_dim"] == 16
    )
    assert found["shape_gain"] == 1.25 and found["parameters"]["hull"] == saved.num_parameters
    assert found["test_rmse"]["hull"] < found["test_rmse"]["linear"]
    planned = convexmoe_torch.VectorHull(2, 3, out_dim=1, temperature="learned").parameters()
    assert found["parameters"]["hull"] != sum(weight.numel() for weight in planned)  # the control


REFUSED = {
    "curvature": (["--curvature", "flat"], "--curvature: expected convex, concave or auto; got 'flat'"),
    "shape": (["--shape", "wide"], "--shape: expected auto; got 'wide'"),
    "a budget for nothing": (["--budget", "9"], "--budget: expected --shape auto, which it is for; got none"),
    "no time": (["--shape", "auto", "--budget", "0"], "--budget: expected a finite number of seconds above 0; got 0"),
    "time without end": (["--shape", "auto", "--budget", "inf"], "a finite number of seconds above 0; got inf"),
    "paused": (["--shape", "auto", "--pause-at", "9"], "--shape: expected a run that is not paused; got --pause-at"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_fit_are_refused(name, tables, tmp_path):
    options, words = REFUSED[name]
    assert_one_line_refusal(invoke("fit", tables["convex"], *RUN, "--out", tmp_path / "run", *options), words)


def test_stopped_while_it_chooses_a_shape_it_says_so(tables, tmp_path, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "fit_shapes", stop)
    options = (*RUN, "--framework", "torch", "--out", tmp_path / "run", "--shape", "auto")
    result = invoke("fit", tables["convex"], *options)
    assert result.exit_code == 130 and "With --shape there is nothing to go on from" in result.stdout
    assert not (tmp_path / "run").exists()

"""`convexmoe fit` stopped half-way, by --pause-at, Ctrl-C or kill -9, goes on in either framework as if nothing was."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from commands import Runs, assert_one_line_refusal, invoke

import convexmoe
import convexmoe_torch
from interop import frameworks
from interop.command import resume as unfinished
from interop.command.tables import embedded_table

pytestmark = pytest.mark.usefixtures("quick_compilation", "few_folds", "no_picture")

STEPS, HALF = 80, 40
# With this seed the best step comes after the middle, where the runs are stopped: the result shows what goes on.
# The sizes are those of test_cli.py, so that both share what JAX compiles.
RUN = ("fit", "--steps", str(STEPS), "--petals", "3", "--seed", "2")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def predictions(folder):
    """What the saved model predicts for the embedded table."""
    table = embedded_table()
    inputs = table.numbers([name for name in table.columns if name != "mpg"])[0]
    return convexmoe_torch.predict(convexmoe_torch.load(folder / "model.safetensors"), inputs)


def difference(folder, other):
    """The largest difference of what two saved models predict, as a part of the largest value."""
    first, second = predictions(folder), predictions(other)
    return np.abs(first - second).max() / np.abs(first).max()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of an uninterrupted run in each framework."""

    def make(framework):
        folder = tmp_path_factory.mktemp("whole") / "run"
        result = invoke(*RUN, "--framework", framework, "--out", folder)
        assert result.exit_code == 0, result.output
        assert metrics(folder)["best_step"] > HALF
        return folder

    return Runs(make)


def pause(folder, framework, at):
    result = invoke(*RUN, "--framework", framework, "--out", folder, "--pause-at", at)
    assert result.exit_code == 0 and f"--resume {folder}" in result.stdout, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["unfinished"]


@pytest.fixture(scope="module")
def runs_at_half(tmp_path_factory):
    """A run in each framework that is paused half-way."""

    def make(framework):
        folder = tmp_path_factory.mktemp("paused") / "run"
        pause(folder, framework, HALF)
        return folder

    return Runs(make)


@pytest.fixture
def paused(runs_at_half, tmp_path):
    """Gives a copy, `tmp_path / "run"`, of the run of a framework that is paused half-way."""
    return lambda framework: shutil.copytree(runs_at_half[framework], tmp_path / "run")


@pytest.mark.parametrize("second", ["jax", "torch"])
@pytest.mark.parametrize("first", ["jax", "torch"])
def test_a_paused_run_goes_on_in_either_framework(first, second, whole, paused, tmp_path):
    paused(first)
    result = invoke("fit", "--resume", tmp_path / "run", "--framework", second)
    assert result.exit_code == 0 and f"Going on from step {HALF} of {STEPS}" in result.stdout, result.output
    got, wanted = metrics(tmp_path / "run"), metrics(whole[first])
    assert got["parts"] == [{"framework": first, "from_step": 0}, {"framework": second, "from_step": HALF}]
    assert got["best_step"] == wanted["best_step"] and got["steps_run"] == wanted["steps_run"]
    assert difference(tmp_path / "run", whole[first]) <= (0.0 if first == second else 1e-4)
    assert not (tmp_path / "run" / "unfinished").exists()


def forgotten(optimizer):
    zeros = {
        moment: {name: 0 * value for name, value in values.items()} for moment, values in optimizer.moments.items()
    }
    return optimizer._replace(moments=zeros)


FORGET = {
    "moments": lambda state: state._replace(optimizer=forgotten(state.optimizer)),
    "moments of a fold": lambda state: state._replace(
        folds=tuple(fold._replace(optimizer=forgotten(fold.optimizer)) for fold in state.folds)
    ),
    "weights of a fold": lambda state: state._replace(folds=(state.folds[1], state.folds[0], *state.folds[2:])),
}


def go_on_forgetting(folder, monkeypatch, forget):
    """Go on in PyTorch with a state of which `forget` takes something away."""
    read = unfinished.read

    def forgetful(directory, framework):
        found = read(directory, framework)
        return unfinished.Unfinished(found.record, forget(found.state))

    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "read", forgetful)
        assert invoke("fit", "--resume", folder, "--framework", "torch").exit_code == 0


@pytest.mark.parametrize("forget", FORGET.values(), ids=FORGET)
def test_control_what_is_forgotten_changes_the_result(forget, whole, paused, tmp_path, monkeypatch):
    paused("torch")
    go_on_forgetting(tmp_path / "run", monkeypatch, forget)
    assert difference(tmp_path / "run", whole["torch"]) > 1e-4


def test_the_best_weights_outlast_a_stop_after_them(whole, tmp_path, monkeypatch):
    after = metrics(whole["torch"])["best_step"] + 2
    assert after < STEPS
    pause(tmp_path / "run", "torch", after)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", "torch").exit_code == 0
    assert difference(tmp_path / "run", whole["torch"]) == 0
    go_on_forgetting(tmp_path / "other", monkeypatch, lambda state: state._replace(best=state.model))  # the control
    assert difference(tmp_path / "other", whole["torch"]) > 1e-4


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_an_interrupted_run_says_how_to_go_on(framework, whole, tmp_path, monkeypatch):
    call = unfinished.Keeper.__call__

    def interrupted(self, state):
        call(self, state)
        if self.step >= HALF:
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Keeper, "__call__", interrupted)
        result = invoke(*RUN, "--framework", framework, "--out", tmp_path / "run")
    assert result.exit_code == 130 and f"convexmoe fit --resume {tmp_path / 'run'}" in result.output
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", framework).exit_code == 0
    assert difference(tmp_path / "run", whole[framework]) == 0
    assert metrics(tmp_path / "run") | {"parts": []} == metrics(whole[framework]) | {"parts": []}


def test_a_run_that_is_interrupted_among_its_folds_goes_on(whole, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("interop.command.experiment.fit_baselines", interrupted)
        result = invoke(*RUN, "--framework", "torch", "--out", tmp_path / "run")
    assert result.exit_code == 130 and f"convexmoe fit --resume {tmp_path / 'run'}" in result.output
    assert os.listdir(tmp_path / "run") == ["unfinished"]
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", "torch").exit_code == 0
    assert metrics(tmp_path / "run") | {"parts": []} == metrics(whole["torch"]) | {"parts": []}


KILLED = """
import os, signal, sys
import convexmoe_torch
from interop.command import resume as unfinished
unfinished.EVERY = -1.0
left, save = int(sys.argv.pop(1)), convexmoe_torch.save
def save_or_die(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*arguments, **options)
convexmoe_torch.save = save_or_die
from interop.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "kill"), reason="a process is killed while it trains")
@pytest.mark.parametrize(
    "saves",
    [
        pytest.param(54, marks=pytest.mark.release, id="after its first file"),
        pytest.param(65, id="before its last"),
        pytest.param(66, id="after all"),
    ],
)
def test_a_killed_run_goes_on_from_its_last_evaluation(saves, whole, tmp_path):
    """Each evaluation saves thirteen files: the best weights, eleven copies that hold rows out, and the model."""
    command = [sys.executable, "-c", KILLED, str(saves), *RUN, "--framework", "torch"]
    process = subprocess.run([*command, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "run" / "metrics.json").exists()
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", "torch").exit_code == 0
    got = metrics(tmp_path / "run")
    step = (4 if saves < 66 else 5) * STEPS // 40
    assert difference(tmp_path / "run", whole["torch"]) == 0 and got["parts"][1]["from_step"] == step


@pytest.mark.parametrize(("every", "most"), [(1e9, 1), (1e-9, 40)])
def test_a_run_is_written_at_once_and_then_from_time_to_time(every, most, tmp_path, monkeypatch):
    writes, write = [], unfinished.Keeper.write
    monkeypatch.setattr(unfinished.Keeper, "write", lambda self: writes.append(self.step) or write(self))
    monkeypatch.setattr(unfinished, "EVERY", every)
    monkeypatch.setattr(unfinished.Keeper, "write_where_long", lambda self: None)
    arguments = [*RUN, "--framework", "torch", "--out", tmp_path / "run"]
    assert invoke(*arguments).exit_code == 0
    assert writes[0] == STEPS // 40 and len(writes) == len(set(writes))
    assert len(writes) == 1 if most == 1 else 10 < len(writes) <= most
    assert not (tmp_path / "run" / "unfinished").exists()


def test_stopped_before_the_first_evaluation_it_says_so(tmp_path, monkeypatch):
    def interrupted(self, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(unfinished.Keeper, "__call__", interrupted)
    result = invoke(*RUN, "--framework", "torch", "--out", tmp_path / "run")
    assert result.exit_code == 130 and "there is nothing to go on from" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["best", "fold"])
def test_files_of_another_run_are_refused(kind, paused, tmp_path):
    run = paused("torch")
    pause(tmp_path / "other", "torch", 3)
    assert len(list(run.glob("unfinished/*"))) == len(list(tmp_path.glob("other/unfinished/*"))) == 13
    [best, *_], [other, *_] = (list(tmp_path.glob(f"{name}/unfinished/{kind}-*")) for name in ("run", "other"))
    best.write_bytes(other.read_bytes())
    assert_one_line_refusal(invoke("fit", "--resume", run), "is not of this run")
    best.unlink()
    assert_one_line_refusal(invoke("fit", "--resume", run), "found none")


def put(*path, value):
    """A change of a description at a path."""

    def change(run):
        for key in path[:-1]:
            run = run[key]
        run[path[-1]] = value

    return change


NOTES = {
    "steps in words": put("plan", "steps", value="200"),
    "endless": put("plan", "steps", value=10**12),
    "fewer than taken": put("plan", "steps", value=6),
    "another field of the plan": put("plan", "width", value=3),
    "other petals": put("plan", "petals", value=4),
    "a curvature that is not chosen": put("plan", "curvature", value="auto"),
    "a curvature without its errors": put("curvature", value=["convex"]),
    "errors that are none": put("curvature", 0, value=None),
    "a number for a name": put("target", value=5),
    "nested names": put("drop", value=[["a"]]),
    "no history": put("history", value={}),
    "losses that are none": put("history", "train_loss", value=[None] * HALF),
    "unequal lists": put("history", "validation_loss", value=[0.1]),
    "steps that fall": put("history", "step", value=list(range(HALF, 0, -1))),
    "another step": put("history", "step", value=[*range(1, HALF), HALF + 1]),
    "a best step that was not": put("best_step", value=HALF + 1),
    "parts": put("parts", value="abc"),
    "a path for a fold": put("folds", 0, value="../../model"),
    "a number for a fold": put("folds", 0, value=5),
    "a fold less": lambda run: run["folds"].pop(),
    "other rows": put("rows", value="0"),
    "a step between evaluations": put("history", "step", -1, value=HALF - 1),
    "nothing": dict.clear,
}


@pytest.mark.parametrize("name", NOTES)
def test_a_description_that_was_changed_is_refused(name, paused, tmp_path):
    paused("torch")
    now = tmp_path / "run" / "unfinished" / "now.safetensors"
    model, notes = convexmoe_torch.load(now), convexmoe_torch.read_notes(now)
    optimizer = convexmoe_torch.read_optimizer(now)
    convexmoe_torch.save(model, now, notes=notes, optimizer=optimizer)
    unfinished.read(tmp_path / "run", frameworks.get("torch"))  # control: unchanged it is read
    NOTES[name](notes["fit"])
    convexmoe_torch.save(model, now, notes=notes, optimizer=optimizer)
    result = invoke("fit", "--resume", tmp_path / "run", "--framework", "torch")
    if name in ("a fold less", "other rows"):  # seen when all rows are there, after the first words
        assert result.exit_code == 2 and "got one that cannot go on (fit.resume: expected" in result.stderr
    else:
        assert_one_line_refusal(result, "got files that cannot be read as one")


@pytest.mark.parametrize("change", ["no optimizer", "sgd", "float64", "another best", "another fold"])
def test_models_that_are_not_of_one_run_are_refused(change, paused, tmp_path):
    folder = paused("torch") / "unfinished"
    path = min(folder.glob("fold-*")) if change == "another fold" else folder / "now.safetensors"
    model, notes = convexmoe_torch.load(path), convexmoe_torch.read_notes(path)
    optimizer = convexmoe_torch.read_optimizer(path)
    if change == "no optimizer":
        optimizer = None
    elif change == "sgd":
        optimizer = convexmoe_torch.OptimizerState("sgd", HALF, {"trace": optimizer.moments["mu"]})
    elif change == "another fold":
        optimizer = optimizer._replace(step=HALF - 1)
    elif change == "float64":
        model = model.double()
    else:
        config = dataclasses.replace(model.config, gate=True)
        model, optimizer = convexmoe_torch.VectorHull.from_config(config), None
    convexmoe_torch.save(model, path, notes=notes, optimizer=optimizer)
    if change == "another fold":  # which the description names
        sha256, now = convexmoe.inspect(path).sha256, folder / "now.safetensors"
        path.rename(unfinished.file_of(folder, "fold", sha256))
        model, notes = convexmoe_torch.load(now), convexmoe_torch.read_notes(now)
        folds = notes["fit"]["folds"]
        notes["fit"]["folds"] = [sha256 if path.name == f"fold-{fold[:16]}.safetensors" else fold for fold in folds]
        convexmoe_torch.save(model, now, notes=notes, optimizer=convexmoe_torch.read_optimizer(now))
    words = "at different steps" if change == "another fold" else "got files that cannot be read as one"
    assert_one_line_refusal(invoke("fit", "--resume", tmp_path / "run", "--framework", "torch"), words)


def test_refusals_are_one_line(paused, tmp_path):
    run = paused("torch")
    refusals = {
        ("--out", run): f"Go on with --resume {run}, or remove {run / 'unfinished'}.",
        ("--resume", run, "--petals", 3): "got --petals beside it. Leave --petals out.",
        ("--resume", run, "--out", tmp_path): "got --out beside it",
        ("--resume", run, "--curvature", "concave"): "got --curvature beside it. Leave --curvature out.",
        ("--resume", run, "--shape", "auto"): "got --shape beside it. Leave --shape out.",
        ("--resume", tmp_path): "expected a directory with an unfinished run",
        ("--resume", run, "--pause-at", 0): "--pause-at: expected a whole number from 1",
        ("--resume", run, "--pause-at", HALF): f"expected a step after {HALF}, where the run stands; got {HALF}",
    }
    for arguments, words in refusals.items():
        assert_one_line_refusal(invoke("fit", *arguments), words)
    table = tmp_path / "other.csv"
    table.write_text("a,b,mpg\n" + "".join(f"{n},{n * n % 7},{n % 5}\n" for n in range(60)))
    result = invoke("fit", table, "--resume", run)
    assert_one_line_refusal(result, "expected the table that the run was begun with, auto_mpg.csv; got other rows")
    options = ("--target", "mpg", "--steps", STEPS, "--pause-at", 3, "--framework", "torch")
    result = invoke("fit", table, *options, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert_one_line_refusal(invoke("fit", "--resume", tmp_path / "b"), "Name it: convexmoe fit other.csv --resume")
    now = run / "unfinished" / "now.safetensors"
    now.write_bytes(now.read_bytes()[:-1])
    assert_one_line_refusal(invoke("fit", "--resume", run), "got files that cannot be read as one")

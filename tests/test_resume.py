"""`convexmoe fit` stopped half-way, by --pause-at, Ctrl-C or kill -9, goes on in either framework as if nothing was."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from commands import assert_one_line_refusal, invoke

import convexmoe_torch
from interop import frameworks
from interop.command import resume as unfinished

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS, HALF = 40, 20
# With this seed the best step comes after the middle, where the runs are stopped: the result shows what goes on.
# The sizes are those of test_cli.py, so that both share what JAX compiles.
RUN = ("fit", "--steps", str(STEPS), "--petals", "3", "--seed", "4")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics of an uninterrupted run in each framework."""
    found = {}
    for framework in ("jax", "torch"):
        folder = tmp_path_factory.mktemp("whole") / "run"
        result = invoke(*RUN, "--framework", framework, "--out", folder)
        assert result.exit_code == 0, result.output
        found[framework] = metrics(folder)
        assert found[framework]["best_step"] > HALF
    return found


def pause(folder, framework, at):
    result = invoke(*RUN, "--framework", framework, "--out", folder, "--pause-at", at)
    assert result.exit_code == 0 and f"--resume {folder}" in result.stdout, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["unfinished"]


@pytest.fixture(scope="module")
def runs_at_half(tmp_path_factory):
    """A run in each framework that is paused half-way."""
    folders = {name: tmp_path_factory.mktemp("paused") / "run" for name in ("jax", "torch")}
    for name, folder in folders.items():
        pause(folder, name, HALF)
    return folders


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
    got, wanted = metrics(tmp_path / "run"), whole[first]
    assert got["parts"] == [{"framework": first, "from_step": 0}, {"framework": second, "from_step": HALF}]
    assert got["best_step"] == wanted["best_step"] and got["steps_run"] == wanted["steps_run"]
    bound = 0.0 if first == second else 1e-4
    assert abs(got["test_rmse"]["hull"] / wanted["test_rmse"]["hull"] - 1) <= bound
    assert not (tmp_path / "run" / "unfinished").exists()


def test_control_forgotten_moments_change_the_result(whole, paused, tmp_path, monkeypatch):
    paused("torch")
    read = unfinished.read

    def forgetful(directory, framework):
        found = read(directory, framework)
        zeros = {
            moment: {name: 0 * value for name, value in values.items()}
            for moment, values in found.state.optimizer.moments.items()
        }
        state = found.state._replace(optimizer=found.state.optimizer._replace(step=0, moments=zeros))
        return unfinished.Unfinished(**{**vars(found), "state": state})

    monkeypatch.setattr(unfinished, "read", forgetful)
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", "torch").exit_code == 0
    got, wanted = metrics(tmp_path / "run"), whole["torch"]
    assert abs(got["test_rmse"]["hull"] / wanted["test_rmse"]["hull"] - 1) > 1e-3


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
    assert metrics(tmp_path / "run")["test_rmse"] == whole[framework]["test_rmse"]


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
@pytest.mark.parametrize("saves", [10, 11], ids=["between its two files", "after both"])
def test_a_killed_run_goes_on_from_its_last_evaluation(saves, whole, tmp_path):
    """Each evaluation saves two files, the best weights and the last."""
    command = [sys.executable, "-c", KILLED, str(saves), *RUN, "--framework", "torch"]
    process = subprocess.run([*command, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "run" / "metrics.json").exists()
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", "torch").exit_code == 0
    got = metrics(tmp_path / "run")
    step = (4 if saves == 10 else 5) * STEPS // 40
    assert got["test_rmse"] == whole["torch"]["test_rmse"] and got["parts"][1]["from_step"] == step


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


def test_best_weights_of_another_run_are_refused(paused, tmp_path):
    run = paused("torch")
    pause(tmp_path / "other", "torch", 3)
    [best], [other] = (list(tmp_path.glob(f"{name}/unfinished/best-*")) for name in ("run", "other"))
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
    "a number for a name": put("target", value=5),
    "nested names": put("drop", value=[["a"]]),
    "no history": put("history", value={}),
    "losses that are none": put("history", "train_loss", value=[None] * HALF),
    "unequal lists": put("history", "validation_loss", value=[0.1]),
    "steps that fall": put("history", "step", value=list(range(HALF, 0, -1))),
    "another step": put("history", "step", value=[*range(1, HALF), HALF + 1]),
    "a best step that was not": put("best_step", value=HALF + 1),
    "parts": put("parts", value="abc"),
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
    assert_one_line_refusal(result, "got files that cannot be read as one")


@pytest.mark.parametrize("change", ["no optimizer", "sgd", "float64", "another best"])
def test_models_that_are_not_of_one_run_are_refused(change, paused, tmp_path):
    paused("torch")
    now = tmp_path / "run" / "unfinished" / "now.safetensors"
    model, notes = convexmoe_torch.load(now), convexmoe_torch.read_notes(now)
    optimizer = convexmoe_torch.read_optimizer(now)
    if change == "no optimizer":
        optimizer = None
    elif change == "sgd":
        optimizer = convexmoe_torch.OptimizerState("sgd", HALF, {"trace": optimizer.moments["mu"]})
    elif change == "float64":
        model = model.double()
    else:
        config = dataclasses.replace(model.config, gate=True)
        model, optimizer = convexmoe_torch.VectorHull.from_config(config), None
    convexmoe_torch.save(model, now, notes=notes, optimizer=optimizer)
    result = invoke("fit", "--resume", tmp_path / "run", "--framework", "torch")
    assert_one_line_refusal(result, "got files that cannot be read as one")


def test_refusals_are_one_line(paused, tmp_path):
    run = paused("torch")
    refusals = {
        ("--out", run): f"Go on with --resume {run}, or remove {run / 'unfinished'}.",
        ("--resume", run, "--petals", 3): "got --petals beside it. Leave --petals out.",
        ("--resume", run, "--out", tmp_path): "got --out beside it",
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

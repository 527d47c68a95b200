"""`convexmoe fit` stopped half-way, by --pause-at, Ctrl-C or kill -9, goes on in either framework as if nothing was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import assert_one_line_refusal, invoke

from interop import unfinished

STEPS = 120


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics of an uninterrupted run in each framework."""
    found = {}
    for framework in ("jax", "torch"):
        folder = tmp_path_factory.mktemp("whole") / "run"
        result = invoke("fit", "--steps", STEPS, "--framework", framework, "--out", folder)
        assert result.exit_code == 0, result.output
        found[framework] = metrics(folder)
    return found


def paused(folder, framework, at=60):
    return invoke("fit", "--steps", STEPS, "--framework", framework, "--out", folder, "--pause-at", at)


@pytest.mark.parametrize("second", ["jax", "torch"])
@pytest.mark.parametrize("first", ["jax", "torch"])
def test_a_paused_run_goes_on_in_either_framework(first, second, whole, tmp_path):
    result = paused(tmp_path / "run", first)
    assert result.exit_code == 0 and f"--resume {tmp_path / 'run'}" in result.stdout, result.output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["unfinished"]
    result = invoke("fit", "--resume", tmp_path / "run", "--framework", second)
    assert result.exit_code == 0 and "Going on from step 60 of 120" in result.stdout, result.output
    got, wanted = metrics(tmp_path / "run"), whole[first]
    assert got["parts"] == [{"framework": first, "from_step": 0}, {"framework": second, "from_step": 60}]
    assert got["best_step"] == wanted["best_step"] and got["steps_run"] == wanted["steps_run"]
    bound = 0.0 if first == second else 1e-4
    assert abs(got["test_rmse"]["hull"] / wanted["test_rmse"]["hull"] - 1) <= bound
    assert not (tmp_path / "run" / "unfinished").exists()


def test_control_forgotten_moments_change_the_result(whole, tmp_path, monkeypatch):
    assert paused(tmp_path / "run", "torch").exit_code == 0
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
        if self.step >= 60:
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Keeper, "__call__", interrupted)
        result = invoke("fit", "--steps", STEPS, "--framework", framework, "--out", tmp_path / "run")
    assert result.exit_code == 130 and f"convexmoe fit --resume {tmp_path / 'run'}" in result.output
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", framework).exit_code == 0
    assert metrics(tmp_path / "run")["test_rmse"] == whole[framework]["test_rmse"]


KILLED = """
from interop import unfinished
unfinished.EVERY = 0.0
from interop.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "kill"), reason="a process is killed while it trains")
def test_a_killed_run_goes_on_from_its_last_evaluation(whole, tmp_path):
    command = [sys.executable, "-c", KILLED, "fit", "--steps", str(STEPS), "--framework", "torch"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    now, deadline = tmp_path / "run" / "unfinished" / "now.safetensors", time.monotonic() + 120
    while not now.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert now.exists() and not (tmp_path / "run" / "metrics.json").exists()
    assert invoke("fit", "--resume", tmp_path / "run", "--framework", "torch").exit_code == 0
    got = metrics(tmp_path / "run")
    assert got["test_rmse"] == whole["torch"]["test_rmse"] and got["parts"][1]["from_step"] > 0


def test_a_long_run_is_kept_from_time_to_time(tmp_path, monkeypatch):
    """Between two writes there are `EVERY` seconds, and none at all in a short run."""
    writes = []
    monkeypatch.setattr(unfinished.Keeper, "write", lambda self: writes.append(self.step))
    monkeypatch.setattr(unfinished, "EVERY", 1e-9)
    arguments = ["fit", "--steps", STEPS, "--framework", "torch", "--out"]
    assert invoke(*arguments, tmp_path / "often").exit_code == 0
    assert len(writes) > 10
    monkeypatch.setattr(unfinished, "EVERY", 1e9)
    writes.clear()
    assert invoke(*arguments, tmp_path / "never").exit_code == 0
    assert writes == []


def test_refusals_are_one_line(tmp_path):
    run = tmp_path / "run"
    assert paused(run, "torch", 3).exit_code == 0
    refusals = {
        ("--out", run): f"Go on with --resume {run}, or remove {run / 'unfinished'}.",
        ("--resume", run, "--petals", 3): "got --petals beside it. Leave --petals out.",
        ("--resume", run, "--out", tmp_path): "got --out beside it",
        ("--resume", tmp_path): "expected a directory with an unfinished run",
        ("--resume", run, "--pause-at", 0): "--pause-at: expected a whole number from 1",
    }
    for arguments, words in refusals.items():
        assert_one_line_refusal(invoke("fit", *arguments), words)
    table = tmp_path / "other.csv"
    table.write_text("a,b,mpg\n" + "".join(f"{n},{n * n % 7},{n % 5}\n" for n in range(60)))
    result = invoke("fit", table, "--resume", run)
    assert_one_line_refusal(result, "expected the table that the run was begun with; got other rows")
    now = run / "unfinished" / "now.safetensors"
    now.write_bytes(now.read_bytes()[:-1])
    assert_one_line_refusal(invoke("fit", "--resume", run), "got files that cannot be read as one")

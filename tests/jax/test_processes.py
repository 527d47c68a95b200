"""Training runs of one and two processes that are killed and resumed end as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compilations import QUICK_FLAGS

TESTS = Path(__file__).parents[1]
FLAGS = f"--xla_cpu_multi_thread_eigen=false {QUICK_FLAGS}"
# what JAX says of a process that no longer answers, by its number; it calls the first one the leader
WORDS = {0: "the leader task was preempted/died", 1: "(stopped sending heartbeats):\n1\n"}


@pytest.fixture(scope="module", params=[1, pytest.param(10, marks=pytest.mark.release)])
def run(request, tmp_path_factory):
    """How many runs of each kind were killed, and what the program found."""
    env = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    program = [sys.executable, str(TESTS / "parallel_processes.py"), str(tmp_path_factory.mktemp("runs"))]
    done = subprocess.run([*program, str(request.param), "0"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout)


def test_a_killed_run_ends_with_the_losses_of_an_undisturbed_one(run):
    runs, found = run
    assert found["equal"] == [True] * 2 * runs and len(found["deaths"]) == 3 * runs
    assert all(death["codes"][death["killed"]] == -9 for death in found["deaths"])
    assert any(death["saving"] for death in found["deaths"])
    for losses in (found["losses-1"], found["losses-2"]):
        assert all(len(values) == 1 for steps in losses for values in steps)
    [alone], [first, second] = found["losses-1"], found["losses-2"]
    assert first == second and len({value for [value] in alone}) == len(alone) == 6
    for [one], [two] in zip(alone, first, strict=True):
        assert abs(float.fromhex(one) - float.fromhex(two)) < 1e-6


def test_a_process_that_dies_is_named_and_ends_the_other(run):
    deaths = [death for death in run[1]["deaths"] if death["count"] == 2]
    assert len(deaths) == run[0]
    for death in deaths:
        assert death["seconds"] < 60 and death["codes"][1 - death["killed"]] != 0
        assert WORDS[death["killed"]] in death["log"], death["log"][-2000:]


def test_processes_that_place_other_models_are_told(run):
    message = "place.model: expected the same parameters in all processes; got others in [1] than in 0. Build it from"
    assert message in run[1]["log-2"] and message not in run[1]["log-1"]

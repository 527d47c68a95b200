"""A run that is killed goes on to the same end, bit for bit, and a worker that dies stops the others, by name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import convexmoe_torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("times", [3, pytest.param(30, marks=pytest.mark.release)])
def test_a_killed_run_ends_as_an_undisturbed_one(times, tmp_path):
    """Losses, weights and moments, of one process and of two; the rest of a group stops by itself."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "processes.py"), "kill", str(tmp_path), str(times)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for number in (1, 2):
        assert len(found[f"reached {number}"]) == times and all(found[f"same {number}"]), found
        assert found[f"whole {number}"], "a checkpoint in flight replaced a whole one"
        assert not found[f"control {number}"], "a run that forgets its optimizer ends elsewhere"
        assert found[f"slowest {number}"] < 60


def workers_of(parent: int) -> dict[int, int]:
    """Rank -> process, of the processes that `torchrun` started."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                words = (status.parent / "environ").read_bytes().split(b"\0")
                found |= {int(word[5:]): int(status.parent.name) for word in words if word.startswith(b"RANK=")}
        except OSError:  # it has ended
            continue
    return found


def test_a_worker_that_dies_stops_the_others_and_is_named(tmp_path):
    path = tmp_path / "run.safetensors"
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "examples" / "many_processes.py"), str(path), "1000000"]
    agent = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not path.exists() and time.monotonic() < deadline and agent.poll() is None:
            time.sleep(0.05)
        workers = workers_of(agent.pid)
        assert sorted(workers) == [0, 1]
        os.kill(workers[1], signal.SIGKILL)
        began = time.monotonic()
        _, said = agent.communicate(timeout=60)
        assert time.monotonic() - began < 60 and agent.returncode != 0
    finally:
        agent.kill()
    assert "many_processes.py FAILED" in said
    assert "rank      : 1 (local_rank: 1)" in said and "Signal 9 (SIGKILL)" in said
    assert len(convexmoe_torch.read_notes(path)["losses"]) >= 5  # the checkpoint is whole
    assert not Path(f"/proc/{workers[0]}").exists()

"""A run of the command that is killed at a random moment goes on, and ends as one that nothing disturbed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import invoke, rows, write

from interop.command import tables

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_folds")]

RUN = ("--target", "y", "--steps", "80", "--petals", "3", "--seed", "2")
STEPPED = """
import sys
from interop.command import dataset, resume, tables
resume.EVERY, dataset.FOLDS, tables.LARGE = -1.0, 2, int(sys.argv.pop(1))
from interop.cli import main
main()
"""
LARGE = {"stream": 1000, "arrays": 10**9}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "t.csv", rows(300))


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """Gives the directory of a run that nothing disturbs."""
    found = {}

    def run(framework, kind):
        if (framework, kind) not in found:
            found[framework, kind] = tmp_path_factory.mktemp("whole") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tables, "LARGE", LARGE[kind])
                result = invoke("fit", table, *RUN, "--framework", framework, "--out", found[framework, kind])
            assert result.exit_code == 0, result.output
        return found[framework, kind]

    return run


def results(folder):
    """The file of the model, and the metrics but for the parts."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return (folder / "model.safetensors").read_bytes(), metrics | {"parts": []}


def kill(table, framework, kind, folder, delay):
    """Begin a run, which writes at each evaluation, and kill it some seconds after it has first written."""
    command = [sys.executable, "-c", STEPPED, str(LARGE[kind]), "fit", table, *RUN, "--framework", framework]
    process = subprocess.Popen([*command, "--out", folder], stdout=subprocess.DEVNULL)
    while not (folder / "unfinished" / "now.safetensors").exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)


KILLS = [("torch", "stream", 0), ("torch", "stream", 1), ("jax", "stream", 2)]
MORE = [(framework, kind, seed) for framework in ("jax", "torch") for kind in LARGE for seed in range(3, 10)]


@pytest.mark.skipif(os.name != "posix", reason="a process is killed")
@pytest.mark.parametrize(
    ("framework", "kind", "seed"), [*KILLS, *(pytest.param(*more, marks=pytest.mark.release) for more in MORE)]
)
def test_a_killed_run_ends_as_one_that_was_not(framework, kind, seed, table, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    kill(table, framework, kind, folder, np.random.default_rng(seed).uniform(0.0, 1.0))
    monkeypatch.setattr(tables, "LARGE", LARGE[kind])
    if (folder / "unfinished" / "now.safetensors").exists():  # else it was done before
        result = invoke("fit", table, "--resume", folder, "--framework", framework)
        assert result.exit_code == 0 and "Going on from step" in result.stdout, result.output
    assert results(folder) == results(whole(framework, kind))

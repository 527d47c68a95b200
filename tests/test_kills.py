"""A run that is killed at a random moment goes on from its files, and ends as one that nothing disturbed.

In `make test` what the command keeps of a fit to a stream, at a release whole runs of the command. This file is also
the program that is killed.
"""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import invoke, rows, write

from convexmoe import HullConfig, Stream
from interop import frameworks
from interop.command import dataset, resume, tables

STEPS, FRAMEWORKS = 80, ("jax", "torch")
RUN = ("--target", "y", "--steps", str(STEPS), "--petals", "3", "--seed", "2")
LARGE = {"stream": 1000, "arrays": 10**9}


def train(framework, folder):
    """Fit to a stream, in a new run or one that goes on, and keep what the command keeps of it."""
    side = frameworks.get(framework)
    config = HullConfig(2, 3, 1, temperature="learned")
    plan = resume.Plan(3, 1, STEPS, 2, "convex")
    record = resume.RunRecord(plan, "y", (), "t.csv", "", ({"framework": framework, "from_step": 0},), None)
    state = resume.read(folder, side).state if resume.exists(folder) else None
    keeper = resume.Keeper(side, folder / resume.FOLDER, {}, record, None)
    numbers = np.array(rows(900)[1:], float)
    stream = Stream([(part[:, :2], part[:, 2]) for part in np.split(numbers, 9)], rows=250)
    model = side.new_hull(config, 2) if state is None else state.model
    options = {"steps": STEPS, "batch_size": 64, "seed": 2, "compare": False}
    result = side.package.fit(model, stream, resume=state, on_evaluation=keeper, **options)
    side.package.save(result.model, folder / "model.safetensors")
    return result.history, (folder / "model.safetensors").read_bytes()


@functools.cache
def whole(framework, folder):
    """The losses and the file of a run that nothing disturbs."""
    folder.mkdir()
    return train(framework, folder)


def kill(arguments, folder, delay):
    """Begin a program, which writes at each evaluation, and kill it some seconds after it has first written."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not resume.exists(folder) and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)


@pytest.mark.parametrize(("framework", "delay"), [("jax", 0.15), ("torch", 0.0), ("torch", 0.3)])
def test_a_killed_fit_ends_as_one_that_was_not(framework, delay, tmp_path, tmp_path_factory):
    kill(("train", framework, tmp_path), tmp_path, delay * np.random.default_rng().uniform(0.5, 1.5))
    assert resume.exists(tmp_path)
    assert train(framework, tmp_path) == whole(framework, tmp_path_factory.getbasetemp() / f"whole-{framework}")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "t.csv", rows(300))


def results(table, folder, framework, kind, *options):
    """Run the command; return the file of the model, and the metrics but for the parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "LARGE", LARGE[kind])
        result = invoke("fit", table, *options, "--framework", framework)
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "metrics.json").read_text())
    return (folder / "model.safetensors").read_bytes(), metrics | {"parts": []}


@pytest.mark.release
@pytest.mark.usefixtures("few_folds")
@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_killed_runs_of_the_command_end_as_one_that_was_not(framework, kind, table, tmp_path):
    wanted = results(table, tmp_path / "whole", framework, kind, *RUN, "--out", tmp_path / "whole")
    for n, delay in enumerate(np.random.default_rng().uniform(0.0, 2.0, 8)):
        folder = tmp_path / f"{n}"
        kill((LARGE[kind], "fit", table, *RUN, "--framework", framework, "--out", folder), folder, delay)
        if resume.exists(folder):  # else it was done before
            assert results(table, folder, framework, kind, "--resume", folder) == wanted


if __name__ == "__main__":
    resume.EVERY = -1.0
    if sys.argv[1] == "train":
        train(sys.argv[2], Path(sys.argv[3]))
    else:
        from interop.cli import main

        dataset.FOLDS, tables.LARGE = 2, int(sys.argv.pop(1))
        main()

"""Verdicts from several threads are those of one, and leave the process as it was."""

import io
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from engines_of_proof import ENGINES
from flax import nnx

THREADS = 8


class Stop(BaseException):
    """As a KeyboardInterrupt is: no Exception."""


def jobs_of(engine):
    """What is asked, and the answer, by name; the searches are small, and of the shapes of other tests."""
    package, xp = engine.package, engine.xp
    rows = xp.array(np.random.default_rng(0).normal(size=(20, 3)))
    x, one = xp.array(np.full(3, 0.5)), xp.array(np.ones((1, 3)))
    hull = package.VectorHull(3, petals=3, **({"rngs": nnx.Rngs(0)} if engine.name == "jax" else {}))

    def stop(x):
        raise Stop

    def fail(x):
        raise ArithmeticError("of the user")

    def raised(function):
        try:
            return package.certify(function, x).verdict
        except (Stop, ArithmeticError) as error:
            return type(error).__name__

    jobs = [
        ("proved", lambda: package.certify(lambda x: xp.relu(x) + xp.exp(x), x).verdict),
        ("structural", lambda: package.certify(hull, one).strength),
        ("numeric", lambda: package.certify(lambda x: hull(x), one).strength),
        ("unknown", lambda: package.certify(lambda x: x if x[0] > 0 else -x, x, segments=0).verdict),
        ("refuted", lambda: package.certify(lambda x: -xp.exp(x), x, segments=100).verdict),
        ("Stop", lambda: raised(stop)),
        ("ArithmeticError", lambda: raised(fail)),
        ("violation", lambda: type(package.find_violation(lambda r: -r * r, rows, segments=100)).__name__.lower()),
    ]
    searched = ("nonetype", lambda: type(package.find_violation(hull, rows, segments=100)).__name__.lower())
    return jobs if engine.name == "jax" else [*jobs, searched]  # in JAX its ascent would be compiled


def state():
    """What a tracer may leave behind."""
    return (
        logging.root.manager.disable,
        sys.stderr,
        sys.stdout,
        warnings.showwarning,
        list(warnings.filters),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.compiler.is_compiling(),
        torch.get_num_threads(),
        np.geterr(),
    )


def run_together(jobs, turns):
    """The answers that differ, each thread beginning elsewhere."""
    start = threading.Barrier(THREADS)

    def work(thread):
        start.wait()
        wrong = []
        for turn in range(turns):
            expected, job = jobs[(thread + turn) % len(jobs)]
            try:
                answer = job()
            except Exception as error:
                answer = repr(error)
            wrong += [] if answer == expected else [(expected, answer)]
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        return [answer for answers in pool.map(work, range(THREADS)) for answer in answers]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_threads_get_the_verdicts_of_one_and_leave_nothing_behind(engine):
    jobs = jobs_of(engine)
    assert [job() for _, job in jobs] == [expected for expected, _ in jobs]
    before = state()
    assert run_together(jobs, 3) == []
    assert state() == before


class NoLock:
    def __enter__(self):
        return self

    def __exit__(self, *given):
        return None


def test_one_function_is_traced_or_searched_at_a_time_in_torch(monkeypatch):
    """`torch.export` patches modules for the whole process, and replaces parameters: what runs beside it sees that."""

    inside, counts = [], []

    def function(x):
        inside.append(x)
        counts.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return x * x

    certify, search = ENGINES[1].package.certify, ENGINES[1].package.find_violation
    searched = ("None", lambda: str(search(function, torch.eye(2), segments=2)))
    proved = ("proved", lambda: certify(function, torch.ones(2), segments=0).verdict)
    assert run_together([searched, proved], 2) == [] and max(counts) == 1
    # Control, by searches alone: a trace beside another would leave PyTorch patched.
    for module in ("certify", "search"):
        monkeypatch.setattr(sys.modules[f"convexmoe_torch.convexity.{module}"], "LOCK", NoLock())
    counts.clear()
    assert run_together([searched], 2) == [] and max(counts) > 1


@pytest.mark.release
def test_without_a_lock_verdicts_are_wrong():
    """Control, in a process of its own."""
    code = (
        "import sys, test_threads as t\n"
        "sys.modules['convexmoe_torch.convexity.certify'].LOCK = t.NoLock()\n"
        "sys.modules['convexmoe_torch.convexity.search'].LOCK = t.NoLock()\n"
        "jobs, before = t.jobs_of(t.ENGINES[1]), t.state()\n"
        "sys.exit(0 if any(t.run_together(jobs, 2 * len(jobs)) or t.state() != before for _ in range(5)) else 7)"
    )
    folder = Path(__file__).parent
    paths = [str(folder), str(folder.parent), str(folder.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_function_that_raises_leaves_nothing_behind(engine, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    before = state()
    for function in (1, "a"):
        with pytest.raises(TypeError):
            engine.package.certify(function, engine.xp.array(np.ones(3)))
    calls = []

    def later(x):
        """Stops while it is traced, and not when it is called first."""
        calls.append(1)
        if len(calls) > 1 or engine.name == "jax":
            raise Stop
        return x

    with pytest.raises(Stop):
        engine.package.certify(later, engine.xp.array(np.ones(3)))
    assert state() == before

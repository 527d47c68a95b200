"""On eight devices, of a mesh with Explicit, Auto or Manual axes, everything is what it is on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"


@pytest.mark.parametrize(
    ("which", "count"),
    # the solver takes ten seconds to compile: what stops it stops its trace as well
    [("few", 11), pytest.param("all", 13, marks=pytest.mark.release)],
)
def test_values_and_gradients_are_those_of_one_device(which, count):
    env = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    run = subprocess.run([sys.executable, TESTS / "meshes.py", which], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    controls = {name for name in found if name.startswith("control")}
    assert len(controls) == 2 and len(found) == count
    for name, difference in found.items():
        assert (difference > 1e-2) if name in controls else (difference < 1e-5), (name, difference)

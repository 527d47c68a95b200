"""Models laid out over a mesh of eight devices compute what one device computes, and come back from checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compilations import QUICK_FLAGS

TESTS = Path(__file__).parents[1]
DEVICES = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
ERRORS = {
    "data": "ValueError: make_mesh.data: expected data * expert = 8, the number of devices; got 3 * 2. Pass data=4",
    "divisor": "ValueError: make_mesh.expert: expected a divisor of 8, the number of devices; got 3. Pass expert=2",
    "petals": "ValueError: place.mesh: expected an axis expert=8 that divides experts or petals; got 2 petals.",
    "axes": "ValueError: place.mesh: expected a mesh with the Explicit axes ['data', 'expert']; got Mesh(",
    "model": "TypeError: place.model: expected a VectorHull or a HierarchicalCELMoE; got dict. Pass such a model.",
    "rows": "ValueError: place_batch.batch: expected arrays of rows whose leading axis 8 divides, the devices of this "
    "process; "
    "got float64[13, 5].",
    "names": "TypeError: place_batch.batch: expected arrays alone; got str. Encode names of routes by encode_routes",
    "step": "ValueError: save_sharded.step: expected a step above 3, the latest in ",
    "state": "TypeError: save_sharded.state: expected a tree of arrays; got 3. Wrap numbers by jnp.asarray.",
    "config": "ValueError: restore_sharded.model: expected the config of ",
    "leaves": "ValueError: restore_sharded.state: expected a tree like the one that was saved; got 0 arrays. Pass opt",
    "folder": "FileNotFoundError: restore_sharded.folder: expected a folder with a whole checkpoint; got ",
    "absent": "FileNotFoundError: restore_sharded.folder: expected one with a whole checkpoint of step 2; got ",
    "orbax": "ImportError: convexmoe_jax.parallel.latest_step needs Orbax: pip install orbax-checkpoint",
    "start": "ValueError: initialize.process_id: expected a value beside ['coordinator_address', 'num_processes']; got",
    "address": "ValueError: initialize.coordinator_address: expected host:port; got 'localhost'. Pass coordinator_addr",
}


@pytest.fixture(scope="module", params=[QUICK_FLAGS, pytest.param("", marks=pytest.mark.release)])
def run(request, tmp_path_factory):
    """The folder and what the program found."""
    folder = tmp_path_factory.mktemp("checkpoints")
    env = os.environ | {"XLA_FLAGS": f"{DEVICES} {request.param}", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    program = [sys.executable, str(TESTS / "parallel_meshes.py"), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_values_gradients_and_steps_are_those_of_one_device(run):
    differences = {name: value for name, value in run[1].items() if isinstance(value, float)}
    controls = {name for name in differences if name.startswith("control")}
    assert len(controls) == 3 and sum(name.startswith("hierarchy, ") for name in differences) == 7
    for name, difference in differences.items():
        assert (difference > 1e-2) if name in controls else (difference < 1e-12), (name, difference)


def test_checkpoints_of_eight_devices_come_back_on_four_and_on_one(run):
    folder, found = run
    assert found["restored on 4, equal bits"] is found["restored on 1, equal bits"] is True
    assert found["control: other bits are seen"] is True
    for name in ("hull", "hierarchy"):
        divided, whole = ((folder / f"{name}-{kind}.safetensors").read_bytes() for kind in "ab")
        assert divided == whole and len(whole) > 1000


def test_what_is_refused(run):
    messages = {name.removeprefix("error: "): text for name, text in run[1].items() if name.startswith("error: ")}
    assert messages.keys() == ERRORS.keys()
    for name, start in ERRORS.items():
        assert messages[name].startswith(start), messages[name]

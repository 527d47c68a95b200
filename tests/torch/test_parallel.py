"""Four processes compute what one does, and a checkpoint of theirs is read by two and by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

from convexmoe_torch import parallel

SCRIPT = Path(__file__).parents[1] / "processes.py"
ROUTINGS = ["uniform", "zipf", "all_to_one", "empty_experts", "no_rows", "odd_counts", "process_without_rows"]
KINDS = ["placed", "sharded", "sharded hull", "replicated hull"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What all processes found; they start once."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "equal", str(tmp_path_factory.mktemp("processes"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_values_and_gradients_are_those_of_one_process(found, routing):
    """All experts divided: the bits; with a fusion, and rows divided as well: within rounding."""
    assert [rank[f"bits {routing}"] for rank in found["processes"]] == [0.0] * 4
    assert max(rank[f"rounded {routing}"] for rank in found["processes"]) < 1e-12


def test_control_what_is_wrong_is_seen_on_every_process(found):
    for rank in found["processes"]:
        controls = {name: value for name, value in rank.items() if name.startswith("control")}
        assert len(controls) == 7 and min(controls.values()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_four_processes_has_what_they_hold_and_is_read_by_two_and_by_one(found, kind):
    """Weights and moments: each writes the same bytes again."""
    assert [rank[f"stored {kind}"] for rank in found["processes"]] == [0.0] * 4
    assert found["files"][kind] == [True, True, True]


@pytest.mark.parametrize("kind", KINDS[2:])
def test_a_hull_in_ddp_or_fsdp_has_the_gradients_of_one_process(found, kind):
    assert max(rank[f"gradients {kind}"] for rank in found["processes"]) < 1e-12


def test_refusals_say_what_to_do(found):
    for rank in found["processes"]:
        lengths = rank["messages"][-1]
        assert rank["messages"] == [
            "make_mesh.data: expected data * expert = 4, the number of processes; got 3 * 2. "
            "Pass data=2, or leave data out.",
            "place.model: expected a HierarchicalCELMoE; got VectorHull. "
            "Divide a hull's rows, or its parameters: DistributedDataParallel(model), or fully_shard(model).",
            "place.model: expected experts and a fusion without a parameter in common; got some that share one. "
            "Give each its own, or use DDP.",
            "place.mesh: expected a mesh with the axes ['data', 'expert']; got the axes ['data']. "
            "Make it with make_mesh(data=, expert=).",
            "average_gradients.model: expected a model that place returned; got HierarchicalCELMoE. Place it.",
            "restore.model: expected the model of 'hull'; got another kind. "
            "Build the model with the config that it was saved with.",
            "FixedHierarchy.model: expected a hierarchy with all of its experts; got one that is placed. "
            "Write it by parallel.save, and load it.",
            "DistributedDataParallel is not needed when a module doesn't have any parameter that requires a gradient.",
            "place.model: expected a placed model without FSDP; got FSDPPlacedHierarchy. "
            "Shard what is around it, or the whole hierarchy without place.",
            lengths,
        ]
        assert lengths.startswith("HierarchicalCELMoE.hidden: expected sequences of one length on all processes; got ")


def test_a_mesh_needs_processes():
    assert not distributed.is_initialized()
    with pytest.raises(RuntimeError) as error:
        parallel.make_mesh()
    assert str(error.value) == (
        "make_mesh.data: expected processes that know each other; got no process group. "
        "Start by torchrun, and call torch.distributed.init_process_group() first."
    )

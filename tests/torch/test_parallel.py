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


@pytest.mark.slow
def test_four_processes_compute_what_one_does(tmp_path):
    """And a file of theirs is read by two and by one. One test, so that the processes start once."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "equal", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for rank in found["processes"]:
        for routing in ROUTINGS:  # all experts divided: the bits; with a fusion, and rows divided as well: rounding
            assert rank[f"bits {routing}"] == 0.0 and rank[f"rounded {routing}"] < 1e-12, routing
        controls = {name: value for name, value in rank.items() if name.startswith("control")}
        assert len(controls) == 7 and min(controls.values()) > 1e-2, controls
        for kind in KINDS[2:]:  # hulls in DDP and FSDP
            assert rank[f"gradients {kind}"] < 1e-12, kind
        for kind in KINDS:
            assert rank[f"stored {kind}"] == 0.0, f"the file has other weights than the processes: {kind}"
        check_messages(rank["messages"])
        assert rank["what one leaves"] == []
    own = "ValueError: OptimizerState.optimizer: expected an optimizer of the model's parameters; got one of others. "
    others = f"RuntimeError: save_sharded: expected success on all processes; got on process 1 {own}"
    said = [rank["where one fails"] for rank in found["processes"]]
    assert said[1].startswith(own) and all(words.startswith(others) for words in (said[0], *said[2:])), said
    for kind in KINDS:  # weights and moments: each writes the same bytes again
        assert found["files"][kind] == [True] * 5, kind


def check_messages(messages):
    """Refusals say what to do."""
    lengths = messages[-1]
    assert messages == [
        "make_mesh.data: expected data * expert = 4, the number of processes; got 3 * 2. "
        "Pass data=2, or leave data out.",
        "place.model: expected a HierarchicalCELMoE; got VectorHull. "
        "Divide a hull's rows, or its parameters: DistributedDataParallel(model), or fully_shard(model).",
        "place.model: expected experts and a fusion without a parameter in common; got some that share one. "
        "Give each its own, or use DDP.",
        "place.mesh: expected a mesh with the axes ['data', 'expert']; got the axes ['data']. "
        "Make it with make_mesh(data=, expert=).",
        "average_gradients.model: expected a model that place returned; got HierarchicalCELMoE. Place it.",
        "restore.model: expected the kind of 'hull'; got kind='HierarchicalCELMoE', where that has 'VectorHull'. "
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

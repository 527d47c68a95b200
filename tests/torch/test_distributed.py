"""Two processes train a hierarchy as one does; records are pytree nodes; what would go wrong in silence is said."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import ranks
import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import convexmoe_torch
from convexmoe import hierarchy as core


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes found; they start once, as starting is most of what they take."""
    file = tmp_path_factory.mktemp("ranks") / "rendezvous"
    command = [sys.executable, "-W", "ignore", str(Path(ranks.__file__))]
    processes = [
        subprocess.Popen([*command, str(rank), str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(text.splitlines()[-1]) for text, _ in outputs]


@pytest.mark.parametrize("mode", [*ranks.MODES, "sharded", "sharded_core"])
def test_two_processes_have_the_gradients_of_one(found, mode):
    """Also where a process has no rows for an expert."""
    assert all(rank["differences"][mode] < 1e-6 for rank in found)


def test_control_a_record_that_is_no_node_is_never_averaged(found):
    assert all(rank["differences"]["control"] > 1e-2 for rank in found)


@pytest.mark.parametrize(
    ("case", "expert", "got"),
    [
        ("experts", "a", "FSDPTanh"),
        ("one", "b", "FSDPTanh"),
        ("inside", "c", "FSDPLinear"),
        ("group", "a", "FSDPTanh"),
        ("replicas", "a", "DistributedDataParallel"),
    ],
)
def test_experts_with_collectives_of_their_own_are_refused(found, case, expert, got):
    assert {rank["refusals"][case] for rank in found} == {
        f"HierarchicalCELMoE.family.{expert}: expected an expert without FSDP or DDP of its own, as each rank calls "
        f"the experts of its own rows; got {got}. "
        "Wrap the whole hierarchy instead: fully_shard(model), or DistributedDataParallel(model)."
    }


def test_an_expert_sharded_over_its_own_process_is_taken(found):
    assert {rank["refusals"]["alone"] for rank in found} == {"taken"}


def output_of(model):
    x, _, routes = ranks.batch_of(0)
    return model(x, routes)


def test_records_are_pytree_nodes():
    """All their tensors are found, and they are built again with what is none."""
    output = output_of(ranks.build())
    batch = core.ExpertBatch(torch.ones(2), {"a": core.Shared(torch.zeros(3))}, None, {"b": torch.ones(1)}, None)
    term = core.LossTerm("a", torch.ones(()), 2.0, "global")
    bundle = convexmoe_torch.LossBundle([term])
    for record, tensors in ((output, 19), (batch, 3), (core.ExpertResult(torch.ones(2)), 1), (term, 1), (bundle, 1)):
        leaves, spec = pytree.tree_flatten(record)
        assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == tensors
        again = pytree.tree_unflatten(leaves, spec)
        assert type(again) is type(record) and pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
        paths = [path for path, _ in pytree.tree_flatten_with_path(record)[0]]
        assert len(paths) == len(leaves) == len({pytree.keystr(path) for path in paths})
    again = pytree.tree_map(lambda leaf: leaf, output)
    assert again.loss_weights == output.loss_weights and again.levels["family"].route_names[-1] == "c"
    leaves, _ = pytree.tree_flatten(ranks.Unregistered(output))  # control
    assert not isinstance(leaves[0], torch.Tensor)


def said(call):
    """The warnings of ours that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "drops the gradients" in str(warning.message)]


def test_a_checkpoint_that_drops_gradients_is_told():
    """PyTorch records what a reentrant checkpoint returns only if it is a tensor."""

    class Checkpointed(ranks.Tanh):
        reentrant = True

        def forward(self, batch):
            return checkpoint(super().forward, batch, use_reentrant=self.reentrant)

    plain, model = ranks.build(), ranks.build()
    model.level_modules["family"]["a"] = expert = Checkpointed()
    expert.load_state_dict(plain.level_modules["family"]["a"].state_dict())
    assert [text[:40] for text in said(lambda: output_of(model))] == ["The expert family.a returned what has no"]
    expert.reentrant = False
    for run in (plain, model):
        assert said(lambda run=run: output_of(run).fused_hidden.square().sum().backward()) == []
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    x, _, routes = ranks.batch_of(0)
    whole = [said(lambda r=r: checkpoint(plain, x, routes, use_reentrant=r)) for r in (True, False)]
    assert [text[:35] for text in whole[0]] == ["HierarchicalCELMoE returned what ha"] and whole[1] == []
    with torch.no_grad():  # nor where no gradient is wanted
        assert said(lambda: output_of(plain)) == []
    plain.requires_grad_(False)
    assert said(lambda: output_of(plain)) == []

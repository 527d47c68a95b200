"""Sharded checkpoints in one process: whole or not there, without a pickle; test_parallel.py has four, two and one."""

import json
import os
from functools import partial
from hashlib import sha256
from unittest import mock

import pytest
import torch
from torch.distributed import checkpoint as dcp

from convexmoe_torch import VectorHull, parallel
from convexmoe_torch.parallel.checkpoint import one_count


def hull(seed, **options):
    torch.manual_seed(seed)
    return VectorHull(3, petals=5, out_dim=2, **options)


def trained(seed=0, rule=torch.optim.Adam, **options):
    """A hull and its optimizer after a step."""
    model = hull(seed, **options)
    optimizer = rule(model.parameters(), lr=0.01)
    model(torch.ones(7, 3, dtype=model.shifts.dtype)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def moments(optimizer):
    return [state[key] for state in optimizer.state.values() for key in sorted(state) if state[key] is not None]


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("rule", [torch.optim.Adam, momentum])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_read_bit_for_bit(tmp_path, rule, dtype):
    model, optimizer = trained(rule=rule, dtype=dtype)
    parallel.save_sharded(tmp_path / "run", 4, model, optimizer)
    fresh = hull(1, dtype=dtype)
    other = rule(fresh.parameters(), lr=0.01)
    assert not equal(fresh, model)  # control
    assert parallel.restore_sharded(tmp_path / "run", fresh, other) == 4
    assert equal(fresh, model)
    assert len(moments(other)) == len(moments(optimizer)) > 0
    assert all(torch.equal(a, b) for a, b in zip(moments(other), moments(optimizer), strict=True))
    assert parallel.restore_sharded(tmp_path / "run", hull(2, dtype=dtype)) == 4  # without the optimizer


def test_some_stay_and_one_is_asked_for(tmp_path):
    assert parallel.latest_step(tmp_path / "run") is None
    models = [hull(seed) for seed in range(4)]
    for step, model in enumerate(models):
        parallel.save_sharded(tmp_path / "run", 10 * step, model, keep=3)
    assert parallel.latest_step(tmp_path / "run") == 30
    assert sorted(os.listdir(tmp_path / "run")) == ["step-10", "step-20", "step-30"]
    model = hull(9)
    assert parallel.restore_sharded(tmp_path / "run", model, step=20) == 20 and equal(model, models[2])
    with pytest.raises(FileNotFoundError, match=r"one with a whole checkpoint of step 0; got .* \[10, 20, 30\]\. Look"):
        parallel.restore_sharded(tmp_path / "run", model, step=0)
    with pytest.raises(ValueError, match=r"^save_sharded.step: expected a step above 30, the latest in .*; got 30\. "):
        parallel.save_sharded(tmp_path / "run", 30, model)


def test_nothing_in_it_is_a_pickle(tmp_path):
    model = hull(0)
    parallel.save_sharded(tmp_path / "run", 1, model)
    dcp.save({"a": torch.ones(2)}, checkpoint_id=tmp_path / "control")
    kinds = [{file.suffix or file.name for file in (tmp_path / name).iterdir()} for name in ("run/step-1", "control")]
    assert kinds[0] == {".json", ".safetensors"} and ".metadata" in kinds[1]


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("owner, name", [(os, "replace"), (torch.Tensor, "cpu"), (json, "dumps")])
@pytest.mark.parametrize("fault, said", [(FULL, "No space left"), (KeyboardInterrupt("stop"), "^stop$")])
def test_what_does_not_end_leaves_what_was_there(tmp_path, owner, name, fault, said):
    model = hull(0)
    parallel.save_sharded(tmp_path, 1, model)
    with mock.patch.object(owner, name, side_effect=fault), pytest.raises(type(fault), match=said):
        parallel.save_sharded(tmp_path, 2, hull(1))
    assert parallel.latest_step(tmp_path) == 1 and os.listdir(tmp_path) == ["step-1"]
    fresh = hull(2)
    assert parallel.restore_sharded(tmp_path, fresh) == 1 and equal(fresh, model)
    parallel.save_sharded(tmp_path, 2, hull(1))


def shard(folder):
    (file,) = (folder / "step-1").glob("*.safetensors")
    return file


def lose(folder):
    shard(folder).unlink()


def cut(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-1])


def flip(folder):
    data = bytearray(shard(folder).read_bytes())
    data[-1] ^= 1
    shard(folder).write_bytes(data)


def add(folder):
    shard(folder).with_name("more").write_bytes(b"")


def replace_knowingly(folder, data):
    """Another shard, with the sha256 of it in the description."""
    shard(folder).write_bytes(data)
    describe_as(files={shard(folder).name: sha256(data).hexdigest()})(folder)


def describe_as(**fields):
    def damage(folder):
        file = folder / "step-1" / "description.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return damage


def garble(folder):
    (folder / "step-1" / "description.json").write_bytes(b"\xff{")


def rule(step):
    return describe_as(optimizer={"rule": "adam", "step": step})


OTHERS = r"^restore_sharded.folder: expected the shards that were written, whole; got others in '.*': \['{}'\]\. Fetch "
ONE, DESCRIPTION = OTHERS.format("shard-00001-model-00001-of-00001.safetensors"), OTHERS.format("description.json")
EMPTY = b"\2" + 7 * b"\0" + b"{}"
DAMAGES = {
    "a shard is missing": (lose, ONE),
    "a shard is cut off": (cut, ONE),
    "a bit is another": (flip, ONE),
    "a file more": (add, OTHERS.format("more")),
    "other bytes": (partial(replace_knowingly, data=b"\xff" * 99), "expected whole shards; got .*header"),
    "no tensors": (
        partial(replace_knowingly, data=EMPTY),
        "^restore_sharded.folder: expected whole shards; got .*Missing",
    ),
    "no JSON": (garble, DESCRIPTION),
    "a list": (describe_as(arrays=[1]), DESCRIPTION),
    "no files": (describe_as(files=None), DESCRIPTION),
    **{f"{step!r} steps": (rule(step), DESCRIPTION) for step in (-1, 3.5, "3", True, None)},
    "many steps": (rule(10**30), "^OptimizerState.step: "),
    "another format": (
        describe_as(format=7, files=1),
        "expected a checkpoint of format 1; got .* of format 7. Install",
    ),
    "other shapes": (describe_as(arrays={"shifts": [[2], "float32"]}), "^restore_sharded.weights: .*missing readout"),
    "no optimizer": (describe_as(optimizer=None), "^restore_sharded.optimizer: expected a checkpoint with .*got None"),
    "another rule": (describe_as(optimizer={"rule": "sgd", "step": 1}), "^restore_sharded.optimizer: expected .*sgd"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused_and_the_model_stays(tmp_path, name):
    damage, message = DAMAGES[name]
    model, optimizer = trained()
    parallel.save_sharded(tmp_path, 1, model, optimizer)
    damage(tmp_path)
    fresh, other = trained(seed=1)
    before, steps = [p.clone() for p in fresh.parameters()], [value.clone() for value in moments(other)]
    with pytest.raises(ValueError, match=message):
        parallel.restore_sharded(tmp_path, fresh, other)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moments(other), steps, strict=True))


def test_processes_agree_on_the_steps_taken():
    assert one_count([0, 0]) == 0 and one_count([0, 3, 3]) == 3  # one that trains nothing counts nothing
    with pytest.raises(ValueError, match=r"^OptimizerState.step: .* got the counts \[3, 4\]"):
        one_count([3, 0, 4])


def test_refusals(tmp_path):
    parallel.save_sharded(tmp_path, 1, hull(0))
    with pytest.raises(ValueError, match=r"^restore_sharded.model: expected the config of .*petals=4, where"):
        parallel.restore_sharded(tmp_path, VectorHull(3, petals=4, out_dim=2))
    with pytest.raises(ValueError, match=r"^restore_sharded.weights: .* has dtype float32, not float64"):
        parallel.restore_sharded(tmp_path, hull(0, dtype=torch.float64))
    with pytest.raises(
        TypeError, match=r"^save_sharded.model: expected a VectorHull or a HierarchicalCELMoE; got Linear"
    ):
        parallel.save_sharded(tmp_path, 2, torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^restore_sharded.step: expected a whole number >= 0; got 1\.0"):
        parallel.restore_sharded(tmp_path, hull(0), step=1.0)
    with pytest.raises(ValueError, match=r"^save_sharded.keep: "):
        parallel.save_sharded(tmp_path, 2, hull(0), keep=0)
    with (
        mock.patch.object(dcp, "HuggingFaceStorageWriter", None),
        pytest.raises(ImportError, match=r"^convexmoe_torch.parallel.save_sharded needs PyTorch 2.9: pip install"),
    ):
        parallel.save_sharded(tmp_path, 2, hull(0))

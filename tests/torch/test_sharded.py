"""Sharded checkpoints in one process: whole or not there, without a pickle; test_parallel.py has four, two and one."""

import json
import os
from unittest import mock

import pytest
import torch
from torch.distributed import checkpoint as dcp

from convexmoe_torch import VectorHull, parallel


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
    assert sorted(os.listdir(tmp_path / "run")) == ["10", "20", "30"]
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
    kinds = [{file.suffix or file.name for file in (tmp_path / name).iterdir()} for name in ("run/1", "control")]
    assert kinds[0] == {".json", ".safetensors"} and ".metadata" in kinds[1]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_does_not_end_leaves_what_was_there(tmp_path, fault):
    model = hull(0)
    parallel.save_sharded(tmp_path, 1, model)
    with mock.patch.object(os, "replace", side_effect=fault), pytest.raises(type(fault)):
        parallel.save_sharded(tmp_path, 2, hull(1))
    assert parallel.latest_step(tmp_path) == 1 and os.listdir(tmp_path) == ["1"]
    with mock.patch.object(torch.Tensor, "cpu", side_effect=fault), pytest.raises((type(fault), OSError)):
        parallel.save_sharded(tmp_path, 2, hull(1))
    assert os.listdir(tmp_path) == ["1"]
    fresh = hull(2)
    assert parallel.restore_sharded(tmp_path, fresh) == 1 and equal(fresh, model)
    parallel.save_sharded(tmp_path, 2, hull(1))


def shard(folder):
    (file,) = (folder / "1").glob("*.safetensors")
    return file


def lose(folder):
    shard(folder).unlink()


def cut(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-1])


def add(folder):
    (folder / "1" / "shard-00002-model-00001-of-00001.safetensors").write_bytes(shard(folder).read_bytes())


def overwrite(folder):
    shard(folder).write_bytes(b"\xff" * shard(folder).stat().st_size)


def describe_as(**fields):
    def damage(folder):
        file = folder / "1" / "description.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return damage


def garble(folder):
    (folder / "1" / "description.json").write_bytes(b"\xff{")


OTHERS = r"^restore_sharded.folder: expected the shards that were written, whole; got others in '.*': \['{}'\]\. Fetch "
DAMAGES = {
    "a shard is missing": (lose, OTHERS.format("shard-00001-model-00001-of-00001.safetensors")),
    "a shard is cut off": (cut, OTHERS.format("shard-00001-model-00001-of-00001.safetensors")),
    "a shard more": (add, OTHERS.format("shard-00002-model-00001-of-00001.safetensors")),
    "a shard of other bytes": (overwrite, "^restore_sharded.folder: expected whole shards; got .*header too large"),
    "no JSON": (garble, OTHERS.format("description.json")),
    "a list": (describe_as(arrays=[1]), OTHERS.format("description.json")),
    "no sizes": (describe_as(files=None), OTHERS.format("description.json")),
    "another format": (describe_as(format=7), "expected a checkpoint of format 1; got .* of format 7. Install"),
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
    with pytest.raises(ValueError, match=r"^save_sharded.keep: "):
        parallel.save_sharded(tmp_path, 2, hull(0), keep=0)
    with (
        mock.patch.object(dcp, "HuggingFaceStorageWriter", None),
        pytest.raises(ImportError, match=r"^convexmoe_torch.parallel.save_sharded needs PyTorch 2.9: pip install"),
    ):
        parallel.save_sharded(tmp_path, 2, hull(0))

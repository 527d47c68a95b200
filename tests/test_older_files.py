"""Files of each schema (tests/data/version_0_1, schema_2) load, and what they hold goes on to the same numbers."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from commands import assert_one_line_refusal, invoke
from flax import nnx
from tolerances import relative_error

import convexmoe_jax
import convexmoe_torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parent / "data"
FOLDER = DATA / "version_0_1"
EXPECTED = {name: json.loads((DATA / name / "expected.json").read_text()) for name in ("version_0_1", "schema_2")}
each_file = pytest.mark.parametrize(
    ("folder", "kind"), [(folder, kind) for folder in EXPECTED for kind in ("hull", "hierarchy")]
)
STEPS, RATE = 5, 1e-3


def value(model, x, routes, context):
    """The output of a hull, or the fused one of a hierarchy."""
    return model(x, context) if routes is None else model(x, routes, context).fused_hidden


def go_on_in_torch(path, x, routes=None, context=None):
    """The output, and the losses of some steps with the optimizer of the file."""
    model = convexmoe_torch.load(path).eval()
    optimizer = convexmoe_torch.load_optimizer(path, torch.optim.Adam(model.parameters(), RATE), model)
    x = torch.tensor(x, dtype=torch.float64)
    context = None if context is None else torch.tensor(context, dtype=torch.float64)
    before, losses = value(model, x, routes, context).detach().numpy(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = value(model, x, routes, context).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return before, losses


def go_on_in_jax(path, x, routes=None, context=None):
    """The same in JAX."""
    model, optimizer, x = convexmoe_jax.load(path), convexmoe_jax.adam(RATE), jnp.asarray(x, jnp.float64)
    context = None if context is None else jnp.asarray(context, jnp.float64)
    graph, params = nnx.split(model, nnx.Param)
    state = convexmoe_jax.load_optimizer(path, optimizer.init(params), model)

    @jax.jit
    def step(params, state):
        def loss(params):
            y = value(nnx.merge(graph, params), x, routes, context)
            return jnp.mean(y**2), y

        (now, y), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, now, y

    outputs, losses = [], []
    for _ in range(STEPS):
        params, state, now, y = step(params, state)
        outputs.append(np.asarray(y))
        losses.append(float(now))
    return outputs[0], losses


@pytest.mark.parametrize("go_on", [go_on_in_jax, go_on_in_torch])
@each_file
def test_a_model_and_its_optimizer_go_on(folder, kind, go_on, x64):
    wanted = EXPECTED[folder][kind]
    y, losses = go_on(DATA / folder / f"{kind}.safetensors", wanted["x"], wanted.get("routes"), wanted.get("context"))
    assert relative_error(y, np.array(wanted["y"])) < 1e-12
    assert relative_error(np.array(losses), np.array(wanted["losses"])) < 1e-12


def test_control_an_optimizer_that_begins_anew_takes_other_steps(monkeypatch):
    monkeypatch.setattr(convexmoe_torch, "load_optimizer", lambda path, optimizer, model: optimizer)
    wanted = EXPECTED["version_0_1"]["hull"]
    y, losses = go_on_in_torch(FOLDER / "hull.safetensors", wanted["x"])
    assert relative_error(y, np.array(wanted["y"])) < 1e-12
    assert relative_error(np.array(losses), np.array(wanted["losses"])) > 1e-9


def test_the_notes_are_there():
    for package in (convexmoe_jax, convexmoe_torch):
        assert package.read_notes(FOLDER / "hull.safetensors") == {"columns": ["a", "b", "c"]}


@pytest.mark.parametrize("package", [convexmoe_jax, convexmoe_torch], ids=lambda package: package.__name__)
@each_file
def test_a_model_is_written_as_it_was(folder, kind, package, x64, tmp_path):
    path, new = DATA / folder / f"{kind}.safetensors", tmp_path / "new.safetensors"
    state = package.read_optimizer(path)
    package.save(package.load(path), new, notes=package.read_notes(path), optimizer=state)
    assert new.read_bytes() == path.read_bytes()


def test_a_run_paused_before_copies_held_rows_out_is_refused(tmp_path):
    """What it has learned from part of the rows is no part of a fit to all of them."""
    shutil.copytree(FOLDER / "paused", tmp_path / "run")
    result = invoke("fit", "--resume", tmp_path / "run", "--framework", "torch")
    assert_one_line_refusal(result, "its description has other fields", "Begin again with --out.")

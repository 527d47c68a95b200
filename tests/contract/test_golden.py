"""Both packages reproduce what celmoe-vp 1.1.1 computed: outputs, every loss, every gradient, to 1e-10 in float64."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from goldens import BOUND, CELMOE, LOSS_INPUTS, JaxExpert, TorchExpert, archive, config_of, losses_of

import convexmoe_jax
import convexmoe_torch
from interop import from_celmoe


def run_torch(data, meta, inputs):
    config = config_of(convexmoe_torch, meta)
    model = convexmoe_torch.HierarchicalCELMoE(config, lambda *_: TorchExpert(meta["hidden"])).double()
    state = {name[6:]: torch.tensor(data[name]) for name in data if name.startswith("state/")}
    model.load_state_dict(state)  # the documented names
    x = torch.tensor(data["x"], requires_grad=True)
    output = model(x, meta["routing"], torch.tensor(data["context"]), torch.tensor(data["mask"]))
    bundle = losses_of(convexmoe_torch, meta).compute(output, **inputs)
    bundle.total.backward()
    gradients = {"x": x.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}
    return output, bundle, {name: value.numpy() for name, value in gradients.items()}


@partial(jax.jit, static_argnames=("graph", "text"))
def jax_losses(graph, text, state, x, context, mask, inputs):
    """Gradients, output and losses; one compilation for all weights, targets and contexts of a recording."""
    meta = json.loads(text)

    def total(state, x):
        output = nnx.merge(graph, state)(x, meta["routing"], context, mask)
        bundle = losses_of(convexmoe_jax, meta).compute(output, **inputs)
        return bundle.total, (output, bundle)

    return jax.grad(total, argnums=(0, 1), has_aux=True)(state, x)


def run_jax(data, meta, inputs):
    state = {name[6:]: data[name] for name in data if name.startswith("state/")}
    size = meta["hidden"]
    model = from_celmoe(state, config_of(convexmoe_jax, meta), lambda *_, rngs: JaxExpert(size, rngs), framework="jax")
    graph, state = nnx.split(model)
    given = [jnp.asarray(data[name]) for name in ("x", "context", "mask")]
    (by_state, by_x), (output, bundle) = jax_losses(graph, json.dumps(meta), state, *given, inputs)
    by_state = nnx.to_pure_dict(by_state)
    gradients = {"x": by_x}
    for level, experts in meta["levels"]:
        proj = by_state["level_modules"][level]["0"]["proj"]
        for i, expert in enumerate(experts):
            gradients[f"level_modules.{level}.{expert}.proj.weight"] = proj["kernel"][i].T
            gradients[f"level_modules.{level}.{expert}.proj.bias"] = proj["bias"][i]
    for i, gate in by_state["fusion"]["gates"].items():
        gradients[f"fusion.gates.{i}.weight"] = gate["weight"].T
    for name, value in by_state["fusion"]["norm"].items():
        gradients[f"fusion.norm.{name}"] = value
    return output, bundle, {name: np.asarray(value) for name, value in gradients.items()}


def run(framework, path, change=None, inputs=LOSS_INPUTS):
    data, _ = archive(path)
    meta = json.loads(str(data["meta"]))
    if change:
        change(data)
    return data, *{"jax": run_jax, "torch": run_torch}[framework](data, meta, inputs)


def largest_difference(data, output, bundle, gradients):
    """Over outputs, losses and gradients; a wrong set of names is infinitely far."""
    pairs = [(output.fused_hidden, data["fused"]), (bundle.total, data["loss_total"])]
    pairs += [(level.hidden, data[f"level/{level.name}"]) for level in output.levels.values()]
    pairs += [(gradients[name], data[f"grad/{name}"]) for name in gradients]
    recorded, ours = json.loads(str(data["loss_terms"])), bundle.as_dict()
    pairs += [(ours[name], value) for name, value in recorded.items()]
    names = {name for name in ours if name != "total" and not name.endswith(".weighted")}
    expected = {name for name in data if name.startswith("grad/")}
    if names != set(recorded) or {f"grad/{name}" for name in gradients} != expected:
        return float("inf")
    plain = [(a.detach() if isinstance(a, torch.Tensor) else a, b) for a, b in pairs]
    return max(float(np.max(np.abs(np.asarray(a) - b))) for a, b in plain)


@pytest.mark.parametrize("path", CELMOE, ids=lambda path: path.stem)
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_recorded_behavior_is_reproduced(framework, path, x64):
    assert largest_difference(*run(framework, path)) <= BOUND


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_another_weight_would_be_seen(framework, x64):
    def change(data):
        data["state/fusion.gates.0.weight"] = data["state/fusion.gates.0.weight"] * (1 + 1e-6)

    assert largest_difference(*run(framework, CELMOE[0], change)) > BOUND


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("name", ["fused", "level", "gap", "scale"])
def test_another_target_or_context_would_be_seen(framework, name, x64):
    inputs = {key: {n: v + 1e-6 * (n == name) for n, v in part.items()} for key, part in LOSS_INPUTS.items()}
    assert largest_difference(*run(framework, CELMOE[0], inputs=inputs)) > BOUND


def test_there_are_recordings():
    assert len(CELMOE) == 2

"""Run by tests/jax/test_meshes.py on eight virtual devices: by how much each result differs from one device's."""

import json
import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from engines import ENGINES
from flax import nnx
from hierarchies import Case, Level, random_inputs, random_weights
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import convexmoe_jax
from convexmoe_jax import Box, FixedHierarchy, FoldedHull, HullConfig, Shared, conjugate, hull, minimize

ROWS = 16
DATA, BOTH = P("data"), P(("data", "model"))
EXPLICIT, AUTO = (jax.make_mesh((8,), ("data",), (kind,)) for kind in (AxisType.Explicit, AxisType.Auto))
SQUARE = jax.make_mesh((4, 2), ("data", "model"))  # Explicit, as is the default
PARTLY = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)  # of which one axis becomes manual
DRAW = np.random.default_rng(0)
found: dict[str, float] = {}


def put(tree, mesh, spec=DATA):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)


def note(name, got, wanted):
    """Note the largest difference of all leaves."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    found[name] = max(np.max(np.abs(np.asarray(g) - w) / (1 + np.abs(w)), initial=0.0).item() for g, w in pairs)


def draw_params(config):
    shapes = jax.eval_shape(partial(hull.init, config), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(DRAW.normal(size=leaf.shape), jnp.float32), shapes)


def gradients_by_shard(mesh, function, whole, own):
    """The gradients of the mean of a function over the shards of a batch, taken inside of `jax.shard_map`."""
    mean = lambda whole, own: jax.lax.pmean(function(whole, own), "data")  # noqa: E731
    grad = jax.grad(mean, argnums=(0, 1))
    return jax.shard_map(grad, mesh=mesh, in_specs=(P(), DATA), out_specs=(P(), DATA))(whole, own)


def hulls():
    x = jnp.asarray(DRAW.normal(size=(ROWS, 5)), jnp.float32)
    config = HullConfig(5, petals=4, out_dim=3, hidden_dim=7, temperature="learned", gate=True)
    params = draw_params(config)

    def loss(params, x):
        return jnp.mean(hull.apply(params, x, config) ** 2)

    @jax.jit
    def run(params, x):
        folded = FoldedHull(*hull.fold_parameters(params, config))
        gradients = jax.grad(loss, (0, 1))(params, x)
        return hull.apply(params, x, config), hull.winners(params, x, config), folded(x), gradients

    wanted = jax.device_get(run(params, x))
    on_mesh = run(params, put(x, EXPLICIT))
    assert on_mesh[0].sharding.spec[0] == "data"
    note("hull, Explicit", on_mesh, wanted)
    note("control: hull", on_mesh[0][::-1], wanted[0])
    petals = {"weight": P(None, "model"), "raw_weight": P(None, "model"), "bias": P("model")}
    readout = {key: put(leaf, SQUARE, petals[key]) for key, leaf in params["readout"].items()}
    divided = params | {"readout": readout, "shifts": put(params["shifts"], SQUARE, P("model"))}
    note("hull, petals divided", run(divided, put(x, SQUARE)), wanted)
    by_shard = jax.jit(partial(gradients_by_shard, AUTO, loss))
    note("hull, shard_map", by_shard(params, put(x, AUTO)), wanted[3])
    in_rows = jax.jit(partial(hull.apply, config=config))(params, put(x.reshape(8, 2, 5), SQUARE, P("data", "model")))
    assert in_rows.sharding.spec[:2] == ("data", "model")
    note("hull, two axes", in_rows, wanted[0].reshape(8, 2, 3))
    with jax.set_mesh(EXPLICIT):
        note("hull, set_mesh", run(params, put(x, EXPLICIT)), wanted)


def hierarchy(case, every="reverse", sequence=False):
    """Weights, what is divided by rows, and functions of both: outputs and losses, gradients, served models."""
    inputs = random_inputs(case, ROWS, sequence=sequence)
    model = ENGINES[0].build(case, random_weights(case), "float32", every)
    graph, weights = nnx.split(model)
    names = ("x", "shift", "mask", "common")
    own = {name: jnp.asarray(inputs[name], jnp.float32) for name in names} | {"routes": inputs["routes"]}
    common = own.pop("common")

    def given(own):
        context = {"shift": own["shift"], "of_all": [Shared(common)]}
        return {"context": context, "mask": own["mask"], "state": {"scale": 1.5}}

    def run(weights, own, key=None):
        output = nnx.merge(graph, weights)(own["x"], own["routes"], **given(own), key=key)
        api = convexmoe_jax.CELMoELossAPI()
        api.add_level("a", "size", lambda level: jnp.abs(level.hidden).mean())
        return output, api.compute(output)

    def loss(weights, own):
        return jnp.mean(run(weights, own)[0].fused_hidden ** 2)

    def gradients(weights, own):
        return jax.grad(lambda weights, x: loss(weights, own | {"x": x}), (0, 1))(weights, own["x"])

    def over_shards(mesh, weights, own):
        def mean(weights, own):
            return jax.lax.pmean(loss(weights, own), "data")

        def of_rows(weights, x):
            by_shard = jax.shard_map(mean, mesh=mesh, in_specs=(P(), DATA), out_specs=P(), axis_names={"data"})
            return by_shard(weights, own | {"x": x})

        return jax.grad(of_rows, (0, 1))(weights, own["x"])

    def serve(own):
        routings = (jax.device_get(inputs["routes"]), {level.name: "e0" for level in case.levels})
        return [FixedHierarchy(model, routing)(own["x"], **given(own)) for routing in routings]

    return weights, own, run, gradients, over_shards, serve


def grouped():
    """Experts on the path of accelerators: each device has the grouped products of its rows."""
    os.environ["CONVEXMOE_GROUPED"] = "tiers"
    weights, own, run, gradients, *_ = hierarchy(Case((Level("a", ("linear",) * 3),), fusion=False))
    together = jax.jit(lambda weights, own: (run(weights, own)[0].fused_hidden, gradients(weights, own)))
    note("grouped products", together(weights, put(own, EXPLICIT)), jax.device_get(together(weights, own)))
    del os.environ["CONVEXMOE_GROUPED"]


def hierarchies():
    case = Case((Level("a", ("tanh",) * 3, scales=((0, 0.5),), stops=(1,)),), dropout=0.3, cut_input=True)
    weights, own, run, gradients, over_shards, serve = hierarchy(case)
    key = jax.random.key(3)
    together = jax.jit(lambda weights, own: (run(weights, own, key), gradients(weights, own), serve(own)))
    wanted = jax.device_get(together(weights, own))
    on_mesh = together(weights, put(own, EXPLICIT))
    (output, _), _, served = on_mesh
    assert output.fused_hidden.sharding.spec[0] == served[0].sharding.spec[0] == "data"
    note("hierarchy, Explicit", on_mesh, wanted)
    note("control: hierarchy", output.fused_hidden[::-1], wanted[0][0].fused_hidden)
    if "all" in sys.argv:
        note("hierarchy, Auto", together(weights, put(own, AUTO)), wanted)
    note("hierarchy, shard_map", jax.jit(partial(over_shards, PARTLY))(weights, put(own, PARTLY)), wanted[1])

    # what else may stop stops where it is traced
    mixed = Case((Level("a", ("linear", "mlp7", "tanh"), width=7), Level("b", ("tanh",) * 2)), fusion=False)
    for case, every, sequence in ((mixed, "reverse", True), (mixed, "any", False)):
        weights, own, run, gradients, over_shards, _ = hierarchy(case, every, sequence)
        divided = put(own, SQUARE, BOTH) if sequence else own | {"x": put(own["x"], SQUARE)}
        jax.jit(lambda *given: (run(*given, key), gradients(*given))).trace(weights, divided)  # noqa: B023
    jax.jit(partial(over_shards, EXPLICIT)).trace(weights, put(own, EXPLICIT))


def sets():
    config = HullConfig(2, petals=3, out_dim=1, hidden_dim=3, strong_convexity=0.5, temperature="learned")
    params, low = draw_params(config), jnp.asarray(DRAW.normal(size=(8, 2)), jnp.float32)

    def lowest(params, low):
        return minimize(FoldedHull(params, config), Box(low, low + 1)).value

    def inverse(params, low):
        return conjugate(FoldedHull(params, config), low).x

    lowest_by_shard = jax.jit(jax.shard_map(lowest, mesh=AUTO, in_specs=(P(), DATA), out_specs=DATA))
    lowest_by_shard.trace(params, put(low, AUTO))
    if "all" in sys.argv:
        note("minimize, shard_map", lowest_by_shard(params, put(low, AUTO)), jax.device_get(lowest(params, low)))
    on_mesh = jax.jit(inverse)(params, put(low, EXPLICIT))
    assert on_mesh.sharding.spec[0] == "data"
    note("conjugate, Explicit", on_mesh, jax.device_get(inverse(params, low)))


if __name__ == "__main__":
    hulls()
    hierarchies()
    grouped()
    sets()
    print(json.dumps(found))

"""Run by tests/jax/test_parallel.py on eight virtual devices: by how much each result differs from one device's."""

import json
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import convexmoe_jax as cm
from convexmoe_jax import parallel
from convexmoe_jax.hierarchy.dispatch import dispatch

jax.config.update("jax_enable_x64", True)
ROWS, EXPERTS, WIDTH = 24, 6, 5
MESH = parallel.make_mesh(4, 2)
DRAW = np.random.default_rng(0)
found: dict[str, object] = {}


def note(name, got, wanted):
    """Note the largest difference of all leaves, inf where NaN stands in one alone."""
    largest = 0.0
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        g, w = np.asarray(g).astype(float), np.asarray(w).astype(float)
        if (np.isnan(g) != np.isnan(w)).any():
            largest = np.inf
        largest = max(largest, np.max(np.nan_to_num(np.abs(g - w)) / (1 + np.nan_to_num(np.abs(w))), initial=0.0))
    found[name] = float(largest)


def routings():
    """Seven routings of ROWS rows; -1 is no expert."""
    uniform = DRAW.integers(0, EXPERTS, ROWS)
    lonely = uniform.copy()
    lonely[9:12] = -1
    return {
        "uniform": uniform,
        "zipf": np.minimum(DRAW.zipf(1.5, ROWS) - 1, EXPERTS - 1),
        "one": np.full(ROWS, 2),
        "empty experts": DRAW.choice([1, 4], ROWS),
        "none": np.full(ROWS, -1),
        "odd counts": DRAW.permutation(np.repeat(np.arange(EXPERTS), [1, 3, 5, 7, 3, 5])),
        "a device without rows": lonely,
    }


class Expert(cm.ExpertModule):
    """With context, losses and aux of three kinds."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, param_dtype=float, rngs=rngs)

    def __call__(self, batch):
        hidden = jax.nn.soft_sign(self.linear(batch.hidden)) + batch.context["shift"] * batch.context["scale"][0]
        aux = {"high": (hidden > 0).any(), "rank": jnp.argmax(hidden), "largest": hidden.max()}
        return cm.ExpertResult(hidden, {"size": (hidden**2).mean()}, aux)


def build_hierarchy():
    """A level of one expert, which is on every device, and one of six, of which a device has three."""
    counts = {"a": 1, "b": EXPERTS}
    experts = {level: [cm.ExpertConfig(f"e{i}") for i in range(count)] for level, count in counts.items()}
    levels = [cm.HierarchyLevelConfig(level, experts[level]) for level in counts]
    config = cm.CELMoEConfig(WIDTH, levels, fusion_dropout=0.3)

    def factory(level, expert, metadata, *, rngs):
        return cm.LinearExpert(WIDTH, dtype=float, rngs=rngs) if level == "a" else Expert(rngs)

    return cm.HierarchicalCELMoE(config, factory, rngs=nnx.Rngs(0))


def hierarchies():
    model = build_hierarchy()
    placed = parallel.place(model, MESH)
    shards = {
        leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(nnx.state(placed).level_modules["b"])
    }
    assert shards == {EXPERTS // 2}, shards
    graph, weights = nnx.split(model)
    common, key = jnp.asarray(DRAW.normal(size=2)), jax.random.key(3)
    x, shift = DRAW.normal(size=(ROWS, WIDTH)), DRAW.normal(size=ROWS)
    batch = {"x": x, "shift": shift}

    @jax.jit
    def run(weights, batch):
        def loss(weights, x):
            given = {"shift": batch["shift"], "scale": cm.Shared(common)}
            output = nnx.merge(graph, weights)(x, {"b": batch["routes"]}, given, key=key)
            fused = jnp.nan_to_num(output.fused_hidden)  # a row without an expert is NaN
            return (fused**2).mean() + sum(output.losses.values()), output

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, batch["x"])

    wrong = None
    all_routes = routings()
    for name, routes in all_routes.items():
        given = batch | {"routes": routes.astype(np.int32)}
        wanted = jax.device_get(run(weights, given))
        got = run(nnx.state(placed), parallel.place_batch(given, MESH))
        note(f"hierarchy, {name}", got, wanted)
        wrong = (got[0][1].fused_hidden[::-1], wanted[0][1].fused_hidden) if wrong is None else wrong
        assert got[1][0].level_modules["b"]["0"]["linear"]["kernel"][...].sharding.spec[0] == "expert"
    assert run._cache_size() == 2, run._cache_size()  # one device's, the mesh's
    context = {"shift": shift, "scale": cm.Shared(common)}
    fixed = [cm.FixedHierarchy(one, {"b": all_routes["uniform"]}) for one in (model, placed)]
    wanted, got = (jax.jit(lambda *given, serve=serve: serve(*given)) for serve in fixed)
    given = parallel.place_batch(batch, MESH)
    note("fixed routes", got(given["x"], context | {"shift": given["shift"]}), wanted(x, context))
    note("control: rows in another order", *wrong)


def ring():
    """The collectives of the ring, and what is seen where one of them is wrong."""
    weights = jnp.asarray(DRAW.normal(size=(EXPERTS, WIDTH, 3)))
    x, routes = DRAW.normal(size=(ROWS, WIDTH)), DRAW.integers(0, EXPERTS, ROWS).astype(np.int32)
    placed = jax.device_put(weights, jax.sharding.NamedSharding(MESH, jax.P("expert")))

    def run(weights, x, routes, rows=("data", "expert")):
        function = lambda weights, shared, row: row @ weights  # noqa: E731  a new one, which is traced anew
        given = jax.device_put((x, routes), jax.sharding.NamedSharding(MESH, jax.P(rows)))

        def half_square(weights, x, routes):
            y = dispatch(function, weights, (), x, routes, EXPERTS, False, False)
            return (y**2).sum() / 2, y

        return jax.jit(jax.grad(half_square, (0, 1), has_aux=True)), (weights, *given)

    own = np.asarray(weights)[routes]
    y = np.einsum("ni,nio->no", x, own)
    by_weights = np.zeros(weights.shape)
    np.add.at(by_weights, routes, x[:, :, None] * y[:, None, :])
    wanted = (by_weights, np.einsum("no,nio->ni", y, own)), y
    call, given = run(placed, x, routes)
    note("ring", call(*given), wanted)
    text = call.lower(*given).compile().as_text()
    assert "reduce-scatter" in text and "all-gather" in text and f"= f64[{EXPERTS},{WIDTH},3]" not in text
    for rows in ("data", None):  # all devices along "expert" have the same rows: a sum and no scattering
        call, given = run(placed, x, routes, rows)
        note(f"ring, rows by {rows}", call(*given), wanted)

    def own_slice(value, axis, **options):
        size = jax.lax.axis_size(axis)
        return jax.lax.dynamic_slice_in_dim(value, jax.lax.axis_index(axis) * (len(value) // size), len(value) // size)

    index = jax.lax.axis_index
    for what, place, wrong in (
        ("no reduce-scatter", "psum_scatter", own_slice),
        ("another axis", "axis_index", lambda axis: index("data")),
    ):
        with mock.patch.object(jax.lax, place, wrong):
            call, given = run(placed, x, routes)
            note(f"control: {what}", call(*given), wanted)


def hulls(folder):
    """Training steps of a hull, its petals divided, and its checkpoints on 8, 4 and 1 devices."""
    config = cm.HullConfig(5, petals=4, out_dim=3, hidden_dim=7, trunk="private", temperature="learned")
    model = cm.VectorHull.from_config(config, dtype=float, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    optimizer = cm.adam(1e-2)
    batch = {"x": DRAW.normal(size=(16, 5)), "y": DRAW.normal(size=(16, 3))}

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return jnp.mean((nnx.merge(graph, params)(batch["x"]) - batch["y"]) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, gradients

    def take(params, state, steps, batch):
        values = []
        for _ in range(steps):
            params, state, value, gradients = step(params, state, batch)
            values.append(value)
        return params, state, values, gradients

    placed = parallel.place(model, MESH)
    assert placed.shifts[...].addressable_shards[0].data.shape == (2,)
    with jax.set_mesh(MESH):
        state = optimizer.init(nnx.state(placed))
    on_mesh = take(nnx.state(placed), state, 3, parallel.place_batch(batch, MESH))
    note("hull, three steps", on_mesh, take(params, optimizer.init(params), 3, batch))
    assert step._cache_size() == 2, step._cache_size()
    params, state = on_mesh[:2]
    trained = nnx.merge(graph, params)
    parallel.save_sharded(folder, 3, trained, state)
    half = parallel.make_mesh(2, 2, devices=jax.devices()[:4])
    fresh = optimizer.init(nnx.state(model))
    for count, target, mesh in ((4, parallel.place(model, half), half), (1, model, None)):
        restored = parallel.restore_sharded(folder, target, fresh)
        arrays = jax.tree.leaves((nnx.state(restored.model), restored.state))
        assert restored.step == 3 and {len(leaf.devices()) for leaf in arrays} == {count}
        found[f"restored on {count}, equal bits"] = same_bits(arrays, jax.tree.leaves((params, state)))
        arrays[-1] = np.nextafter(np.asarray(arrays[-1]), np.inf)
        found["control: other bits are seen"] = not same_bits(arrays, jax.tree.leaves((params, state)))
        if mesh is not None:
            more = take(nnx.state(restored.model), restored.state, 1, parallel.place_batch(batch, mesh))
    note("hull, a fourth step", more, take(params, state, 1, parallel.place_batch(batch, MESH)))
    for name, placed in (("hull", trained), ("hierarchy", parallel.place(build_hierarchy(), MESH))):
        cm.save(placed, f"{folder}/{name}-a.safetensors")
        cm.save(parallel.gather(placed), f"{folder}/{name}-b.safetensors")
    refusals(folder, model, fresh)


def same_bits(some, others):
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(some, others, strict=True)]
    return all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)


def refusals(folder, model, state):
    """The messages of what is refused, of which some need several devices or a checkpoint."""
    other = cm.VectorHull(5, petals=2, rngs=nnx.Rngs(0))
    for name, call in {
        "data": lambda: parallel.make_mesh(3, 2),
        "divisor": lambda: parallel.make_mesh(expert=3),
        "petals": lambda: parallel.place(other, parallel.make_mesh(1, 8)),
        "axes": lambda: parallel.place(other, jax.make_mesh((8,), ("data",))),
        "model": lambda: parallel.place({}, MESH),
        "rows": lambda: parallel.place_batch({"x": np.ones((13, 5))}, MESH),
        "names": lambda: parallel.place_batch({"routes": ["e0"]}, MESH),
        "step": lambda: parallel.save_sharded(folder, 3, model, state),
        "state": lambda: parallel.save_sharded(folder, 4, model, {"position": 3}),
        "config": lambda: parallel.restore_sharded(folder, other, state),
        "leaves": lambda: parallel.restore_sharded(folder, model),
        "folder": lambda: parallel.restore_sharded(f"{folder}/none", model),
        "absent": lambda: parallel.restore_sharded(folder, model, step=2),
        "orbax": mock.patch.dict(sys.modules, orbax=None)(lambda: parallel.latest_step(folder)),
        "start": lambda: parallel.initialize("localhost:1", 2),
        "address": lambda: parallel.initialize("localhost", 2, 0),
    }.items():
        try:
            call()
        except (TypeError, ValueError, FileNotFoundError, ImportError) as error:
            found[f"error: {name}"] = f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    ring()
    hierarchies()
    hulls(sys.argv[1])
    print(json.dumps(found))

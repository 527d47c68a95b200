"""The guarantee: no random segment lies below the hull anywhere, whatever the config and the weights.

Each package searches a million segments over 41 random configs, each untrained, trained, and with its
weights moved to extremes; `make test` takes four of them, which have every option, and `make test-all` the others.
The controls break the guarantee in one place, and the same search must find it.
"""

from functools import cache
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import convexmoe_jax
import convexmoe_torch
from convexmoe.convexity.segments import BATCH
from interop import to_jax

SEEDS = range(41)
QUICK = (3, 16, 21, 38)
STATES = ("untrained", "trained", "extreme")
SEGMENTS = BATCH  # one batch is one shape to compile
TOLERANCE = 1e-9


def config_of(seed):
    """A random config: the 41 of them cover every option."""
    rng = np.random.default_rng(seed)
    return convexmoe_torch.HullConfig(
        in_dim=int(rng.choice([1, 2, 5, 13])),
        petals=1 + seed % 16,
        out_dim=int(rng.choice([1, 3])),
        hidden_dim=int(rng.choice([2, 7, 17])),
        depth=1 + seed % 4,
        trunk=str(rng.choice(["shared", "private"])),
        group_size=int(rng.choice([1, 2])),
        temperature=(0.0, "learned", 0.3)[seed % 3],
        activation=("softplus", "relu", "huber_relu")[(seed // 3) % 3],
        gate=bool(rng.integers(2)),
        strong_convexity=(0.0, 0.3)[seed // 2 % 2],
    )


def hull_of(seed, state):
    """A hull in float64, and points around which its segments are drawn."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(1000 + seed)
    config = config_of(seed)
    hull = convexmoe_torch.VectorHull.from_config(config, dtype=torch.float64)
    points = rng.normal(size=(64, config.in_dim)) * 2 + rng.normal(size=config.in_dim)
    if state == "trained":
        targets = np.cos(points @ rng.normal(size=(config.in_dim, config.out_dim)))  # not convex: the hull is pressed
        hull = convexmoe_torch.fit(hull, points, targets, steps=60, batch_size=32, learning_rate=0.05).model
    if state == "extreme":
        with torch.no_grad():
            for parameter in hull.parameters():
                size = 10.0 ** rng.uniform(-2, 2)
                parameter.copy_(torch.from_numpy(size * rng.normal(size=parameter.shape)))
    return hull, points


def find_in_torch(hull, points, segments=SEGMENTS, seed=0):
    return convexmoe_torch.find_violation(
        hull, torch.from_numpy(points), segments=segments, seed=seed, tolerance=TOLERANCE
    )


def find_in_jax(hull, points, segments=SEGMENTS, seed=0):
    with jax.enable_x64(True):
        twin = to_jax(hull)
        return convexmoe_jax.find_violation(
            twin, jnp.asarray(points), segments=segments, seed=seed, tolerance=TOLERANCE
        )


FIND = {"jax": find_in_jax, "torch": find_in_torch}


def release_but_for(quick, seeds):
    """The seeds, those that `make test` leaves out marked."""
    return [pytest.param(seed, marks=() if seed in quick else pytest.mark.release) for seed in seeds]


@pytest.mark.parametrize("seed", release_but_for(QUICK, SEEDS))
@pytest.mark.parametrize("framework", FIND)
def test_no_segment_lies_below_the_hull(framework, seed):
    for state in STATES:
        hull, points = hull_of(seed, state)
        assert FIND[framework](hull, points, seed=seed) is None, (state, hull.config)


@pytest.mark.parametrize("seeds", [SEEDS, QUICK], ids=["all", "quick"])
def test_the_configs_cover_every_option(seeds):
    configs = [config_of(seed) for seed in seeds]
    seen = {name: {getattr(config, name) for config in configs} for name in vars(configs[0])}
    assert seen["depth"] == {1, 2, 3, 4} and (seeds is QUICK or seen["petals"] == set(range(1, 17)))
    assert seen["trunk"] == {"shared", "private"} and seen["group_size"] == {1, 2} and seen["gate"] == {False, True}
    assert seen["activation"] == {"softplus", "relu", "huber_relu"} and seen["temperature"] == {0.0, 0.3, "learned"}
    assert seen["strong_convexity"] == {0.0, 0.3}
    assert SEGMENTS * len(STATES) * len(SEEDS) >= 1_000_000


# Controls: name -> (module, function, broken version) for each framework.


def sigmoid_gate(package, act, sigmoid):
    """The gate of published packages, 1 - exp(-softplus(u)): the first call of `act` is the gate's."""
    calls = count()
    return package.hull.petals, "act", lambda u, name: sigmoid(u) if next(calls) % 2 == 0 else act(u, name)


def negative_entry(package, xp):
    petals = package.hull.petals

    def broken(raw):
        flat = petals.softplus(raw).reshape(-1)
        return xp.where(xp.arange(len(flat)) == flat.argmax(), -flat, flat).reshape(raw.shape)

    return petals, "OPERATIONS", petals.OPERATIONS._replace(softplus=broken)


CONTROLS = {
    "sigmoid gate": {
        "jax": lambda: sigmoid_gate(convexmoe_jax, convexmoe_jax.hull.petals.act, jax.nn.sigmoid),
        "torch": lambda: sigmoid_gate(convexmoe_torch, convexmoe_torch.hull.petals.act, torch.sigmoid),
    },
    "one negative entry in V": {
        "jax": lambda: negative_entry(convexmoe_jax, jnp),
        "torch": lambda: negative_entry(convexmoe_torch, torch),
    },
    "min instead of max": {
        "jax": lambda: (convexmoe_jax.hull.forward, "maximum", lambda g: g.min(axis=-2)),
        "torch": lambda: (convexmoe_torch.hull.forward, "maximum", lambda g: g.amin(dim=-2)),
    },
    "a softmax gate that depends on x": {
        "jax": lambda: (convexmoe_jax.hull.forward, "maximum", lambda g: (jax.nn.softmax(g, axis=-2) * g).sum(axis=-2)),
        "torch": lambda: (convexmoe_torch.hull.forward, "maximum", lambda g: (torch.softmax(g, -2) * g).sum(-2)),
    },
}


@cache
def convex_hull(framework, seed):
    """A hull that is to be broken, and points around it; as it is, no segment shows that it is not convex."""
    torch.manual_seed(seed)
    hull = convexmoe_torch.VectorHull(3, petals=5, out_dim=2, hidden_dim=7, gate=True, dtype=torch.float64)
    with torch.no_grad():  # new weights make petals that hardly differ
        for weight in hull.parameters():
            weight.copy_(0.5 * torch.randn_like(weight))
    points = np.random.default_rng(seed).normal(size=(64, 3)) * 2
    assert FIND[framework](hull, points) is None
    return hull, points


@pytest.mark.parametrize("seed", release_but_for((0,), range(5)))
@pytest.mark.parametrize("framework", FIND)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_broken_hull_is_caught(control, framework, seed, monkeypatch):
    hull, points = convex_hull(framework, seed)
    monkeypatch.setattr(*CONTROLS[control][framework]())
    assert FIND[framework](hull, points) is not None

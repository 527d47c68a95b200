"""The guarantees of shape: curvature in x at every context, signs of slopes, and bounds, whatever the weights.

Each package searches a million segments over 41 random configs, untrained, with weights at extremes, and with contexts
at extremes; `make test` takes two of them. Slopes and bounds are looked at on pairs of points along each axis. What
breaks a context is caught in `tests/certificates/test_shapes.py`, by the same search.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import convexmoe_jax
import convexmoe_torch
from convexmoe.convexity.segments import BATCH
from convexmoe.hull import parameters
from interop import to_jax

SEEDS = range(41)
QUICK = (5, 12)
STATES = ("untrained", "extreme weights", "extreme contexts")
SEGMENTS = BATCH  # one batch is one shape to compile
TOLERANCE = 1e-9
PAIRS = 512


def config_of(seed):
    """A random config: the 41 of them cover every option."""
    rng = np.random.default_rng(seed)
    in_dim, monotone = int(rng.choice([1, 2, 5])), None
    if seed % 4:
        monotone = tuple(int(sign) for sign in rng.choice([-1, 0, 1], in_dim))
    return convexmoe_torch.HullConfig(
        in_dim=in_dim,
        petals=1 + seed % 7,
        out_dim=int(rng.choice([1, 3])),
        hidden_dim=int(rng.choice([2, 7])),
        depth=1 + seed % 3,
        trunk=str(rng.choice(["shared", "private"])),
        group_size=int(rng.choice([1, 2])),
        temperature=(0.0, "learned", 0.3)[seed % 3],
        activation=("softplus", "relu", "huber_relu")[(seed // 3) % 3],
        gate=bool(rng.integers(2)),
        strong_convexity=0.0 if monotone and any(monotone) else 0.3,
        context_dim=(2, 3, 0)[(seed // 2) % 3],
        context_hidden_dim=(3, 3, None)[(seed // 2) % 3],
        monotone=monotone,
        curvature=("concave", "convex")[(seed // 5) % 2],
        nonnegative=bool(seed % 5 == 2),
    )


@cache
def hull_of(seed, state):
    """A hull in float64, points around which its segments are drawn, and contexts or None."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(1000 + seed)
    config = config_of(seed)
    hull = convexmoe_torch.VectorHull.from_config(config, dtype=torch.float64)
    points = rng.normal(size=(64, config.in_dim)) * 2 + rng.normal(size=config.in_dim)
    contexts = rng.normal(size=(64, config.context_dim)) if config.context_dim else None
    if state == "extreme weights":
        with torch.no_grad():
            for parameter in hull.parameters():
                size = 10.0 ** rng.uniform(-2, 1)
                parameter.copy_(torch.from_numpy(size * rng.normal(size=parameter.shape)))
    if state == "extreme contexts" and contexts is not None:
        contexts = contexts * 10.0 ** rng.uniform(-2, 3, (64, 1))
    return hull, points, contexts


def find(framework, hull, points, contexts, **options):
    """A violation of the curvature that the hull states."""
    options |= {"segments": SEGMENTS, "tolerance": TOLERANCE}
    with jax.enable_x64(True):
        package, array = (convexmoe_jax, jnp.asarray) if framework == "jax" else (convexmoe_torch, torch.from_numpy)
        model = to_jax(hull) if framework == "jax" else hull
        rows = array(points) if contexts is None else (array(points), array(contexts))
        return package.find_violation(model, rows, **options)


def rises(framework, hull, points, contexts, seed):
    """By how much the outputs rise along each axis, `[in_dim, pairs, out_dim]`, over their size, and the outputs."""
    rng, dim = np.random.default_rng(seed), points.shape[1]
    x = points[rng.integers(64, size=PAIRS)]
    step = np.eye(dim)[:, None] * 10.0 ** rng.uniform(-2, 1, (dim, PAIRS, 1))
    rows = np.stack([np.broadcast_to(x, step.shape), x + step]).reshape(-1, dim)
    given = [rows] if contexts is None else [rows, np.tile(contexts[rng.integers(64, size=PAIRS)], (2 * dim, 1))]
    with jax.enable_x64(True):
        if framework == "jax":
            twin = to_jax(hull)
            y = np.asarray(jax.jit(lambda *at: twin(*at))(*map(jnp.asarray, given)))
        else:
            y = hull(*map(torch.from_numpy, given)).detach().numpy()
    below, above = y.reshape(2, dim, PAIRS, -1)
    return (above - below) / max(np.abs(y).max(), 1e-300), y


def release_but_for(quick, seeds):
    """The seeds, those that `make test` leaves out marked."""
    return [pytest.param(seed, marks=() if seed in quick else pytest.mark.release) for seed in seeds]


each_framework = pytest.mark.parametrize("framework", ["jax", "torch"])


@pytest.mark.parametrize("seed", release_but_for(QUICK, SEEDS))
@each_framework
def test_no_segment_contradicts_the_curvature(framework, seed):
    for state in STATES:
        hull, points, contexts = hull_of(seed, state)
        assert find(framework, hull, points, contexts, seed=seed) is None, (state, hull.config)


@pytest.mark.parametrize("seed", release_but_for((1, *QUICK), SEEDS))
@each_framework
def test_slopes_have_their_signs_and_outputs_their_bound(framework, seed):
    for state in STATES:
        hull, points, contexts = hull_of(seed, state)
        rise, y = rises(framework, hull, points, contexts, seed)
        for j, sign in enumerate(hull.config.monotone or ()):
            assert (sign * rise[j] >= -TOLERANCE).all(), (state, hull.config)
        if hull.config.nonnegative:
            assert ((-y if hull.config.is_concave else y) >= 0).all()


def test_the_configs_cover_every_option():
    configs = [config_of(seed) for seed in SEEDS]
    seen = {name: {getattr(config, name) for config in configs} for name in vars(configs[0])}
    assert seen["depth"] == {1, 2, 3} and seen["context_dim"] == {0, 2, 3}
    assert seen["curvature"] == {"convex", "concave"} and seen["nonnegative"] == {False, True}
    assert seen["trunk"] == {"shared", "private"} and seen["gate"] == {False, True}
    assert {sign for signs in seen["monotone"] if signs for sign in signs} == {-1, 0, 1}
    combined = [c for c in configs if c.monotone and c.context_dim and c.is_concave]
    assert combined and any(c.nonnegative for c in configs if c.context_dim)
    assert any(all(c.monotone) for c in combined) and any(not all(c.monotone) for c in combined)
    assert SEGMENTS * len(STATES) * len(SEEDS) >= 1_000_000


# Controls


def turn_one_weight(monkeypatch, xp):
    """One weight on the first input has the other sign."""
    signed_weight = parameters.signed_weight

    def broken(raw, signs, operations, axis=0, offset=0.0):
        weight = signed_weight(raw, signs, operations, axis, offset)
        flat = weight.reshape(-1)
        return xp.where(xp.arange(len(flat)) == 0, -10.0 * flat, flat).reshape(weight.shape)

    monkeypatch.setattr(parameters, "signed_weight", broken)


@each_framework
def test_a_weight_of_the_wrong_sign_is_caught(framework, monkeypatch):
    torch.manual_seed(0)
    hull = convexmoe_torch.VectorHull(
        2, petals=3, out_dim=1, hidden_dim=2, monotone=(1, -1), context_dim=2, context_hidden_dim=3, dtype=torch.float64
    )
    points, contexts = np.random.default_rng(0).normal(size=(64, 2)) * 2, np.random.default_rng(1).normal(size=(64, 2))
    assert (rises(framework, hull, points, contexts, 0)[0][0] >= -TOLERANCE).all()
    turn_one_weight(monkeypatch, jnp if framework == "jax" else torch)
    assert (rises(framework, hull, points, contexts, 0)[0][0] < -1e-6).any()
    assert find(framework, hull, points, contexts) is None  # it is convex still


@each_framework
def test_another_curvature_and_a_missing_bound_are_caught(framework, monkeypatch):
    torch.manual_seed(0)
    hull = convexmoe_torch.VectorHull(2, 3, 1, hidden_dim=5, curvature="concave", nonnegative=True, dtype=torch.float64)
    points = np.random.default_rng(0).normal(size=(64, 2)) * 2
    assert find(framework, hull, points, None) is None
    assert find(framework, hull, points, None, curvature="convex") is not None
    package = convexmoe_jax if framework == "jax" else convexmoe_torch
    monkeypatch.setattr(package.hull.forward, "softplus", lambda u: u)
    assert (rises(framework, hull, points, None, 0)[1] > 0).any()

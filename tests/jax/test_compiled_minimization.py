"""The solver compiled by JAX against the same solver in numpy, and how often it compiles."""

import os
import subprocess
import sys

import cases
import chex
import jax
import numpy as np
import pytest
from backends import BACKENDS
from compilations import compilations

import convexmoe_jax

pytestmark = pytest.mark.usefixtures("quick_compilation")

BACKEND, D = BACKENDS[0], 3
HULLS = {
    "softplus": {"temperature": "learned", "strong_convexity": 0.1},
    "relu": {"activation": "relu", "depth": 2, "trunk": "private", "gate": True},
    "huber": {"activation": "huber_relu", "temperature": 0.3, "petals": 5},
}
A = np.concatenate([np.eye(D), -np.eye(D), np.ones((1, D))])
SETS = {
    "Box": (np.full(D, -np.inf), np.full((2, D), 0.5)),
    "Ball": (np.linspace(-1, 1, 2 * D).reshape(2, D), np.array([0.5, 2.0])),
    "Simplex": (np.array([1.0, 3.0]),),
    "Polytope": (A, np.array([[1.0] * 6 + [0.3], [2.0] * 6 + [0.5], [1e31] * 6 + [0.5]])),  # the last is a half-space
}


def model(name, seed=0, tilt=0.0):
    fields = cases.fields(**{"in_dim": D, "out_dim": 1, "hidden_dim": 7} | HULLS[name])
    weights = cases.random_weights(fields, seed)
    return BACKEND.model(fields, weights | {"readout.weight": weights["readout.weight"] + tilt})


def excess(one, two):
    """By how much more than their gaps two records of minima differ."""
    chex.assert_trees_all_equal_shapes_and_dtypes(one, two)
    return float(np.max(np.abs(one.value - two.value) - np.asarray(one.gap + two.gap)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "kind, name",
    [
        ("Box", "softplus"),
        pytest.param("Box", "relu", marks=pytest.mark.release),
        ("Ball", "huber"),
        ("Polytope", "relu"),
        ("Simplex", "relu"),
    ],
)
def test_compiled_and_not_the_minimum_is_the_same(kind, name):
    hull, constraints = model(name).fold(), getattr(convexmoe_jax, kind)(*SETS[kind])
    compiled = jax.jit(convexmoe_jax.minimize)(hull, constraints)
    at_once = convexmoe_jax.minimize(hull, constraints)
    assert excess(compiled, at_once) <= 0 and (compiled.status == at_once.status).all()
    if kind == "Polytope":
        falls = jax.jit(convexmoe_jax.minimize)(model(name, tilt=9.0).fold(), constraints)
        assert falls.status.tolist() == [0, 0, 3] and (A[-1] @ falls.direction.T < 0).tolist() == [False, False, True]
    # control: another hull
    assert excess(compiled, convexmoe_jax.minimize(model(name, seed=1).fold(), constraints)) > 0


def test_new_weights_and_new_sets_are_traced_and_compiled_once():
    def least(hull, low, high):
        return convexmoe_jax.minimize(hull, convexmoe_jax.Box(low, high)).x

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(least, n=1))
    hulls = [model("softplus", seed).fold() for seed in range(2)]
    low, high = np.full(D, -1.0, np.float32), np.full(D, 2.0, np.float32)
    assert compilations(lambda: compiled(hulls[0], low, high)) >= 1
    assert compilations(lambda: compiled(hulls[1], 2 * low, 3 * high)) == 0
    with pytest.raises(AssertionError, match="traced > 1 times"):  # control: another number of problems
        compiled(hulls[0], low[None], high[None])


PROGRAM = """
import jax, numpy as np
from flax import nnx
from convexmoe_jax import Box, VectorHull, minimize

hull = VectorHull(32, petals=8, out_dim=1, hidden_dim=32, rngs=nnx.Rngs(0))
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
)
minimum = minimize(hull, Box(np.full(32, -1.0), np.full(32, 1.0)))
print(len(compiled), int(minimum.status))
jax.jit(lambda at: hull(at))(minimum.x.astype("float32"))
print(len(compiled))
"""


def test_a_first_call_compiles_nothing():
    """It ends within a second because no program is compiled: that is what is counted, not the time.

    In a new process, in 32 dimensions; control: the call after it compiles one.
    """
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=os.environ)
    programs, status, after = map(int, ran.stdout.split())
    assert (programs, status) == (0, 0) and after > 0

"""Hulls with a context, monotone, concave and non-negative ones, in float64, for tests of solver and programs."""

import itertools

import cvxpy as cp
import numpy as np
from cases import fields

from convexmoe.hull import HullConfig
from convexmoe.hull.config import Normalization
from convexmoe.hull.parameters import parameter_shapes
from interop import to_cvxpy

D, O, OUTPUT = 2, 2, 1
SIZE = 0.6  # of weights, of heads too: contexts move everything
LOWER, UPPER = np.array([-3.0, -4.0]), np.array([4.0, 1.0])
POLYTOPE = (np.array([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), np.array([2.0, 1.0, 1.5]))
SHAPES = {
    "context": {"context_dim": 2, "temperature": "learned"},
    "deep_private": {"context_dim": 3, "trunk": "private", "depth": 2, "gate": True, "activation": "relu"},
    "monotone": {"context_dim": 1, "monotone": (1, 0), "activation": "huber_relu", "depth": 2, "gate": True},
    "concave": {"context_dim": 3, "curvature": "concave", "group_size": 1, "temperature": 0.1, "strong_convexity": 0.3},
    "nonnegative": {"context_dim": 2, "nonnegative": True, "activation": "relu", "trunk": "private"},
    "nonpositive": {"curvature": "concave", "nonnegative": True, "strong_convexity": 0.3, "petals": 1},
    "everything": {
        **{"context_dim": 2, "monotone": (-1, 0), "curvature": "concave", "nonnegative": True},
        **{"trunk": "private", "depth": 2, "temperature": "learned"},
    },
}


def shaped(backend, name, seed=0, **changes):
    """A hull of `SHAPES` with units, its weights drawn at random."""
    own = {"petals": 3} | SHAPES[name] | changes
    C, offset = own.get("context_dim", 0), 0.0 if own.get("nonnegative") else 4.0
    units = {"input_mean": [1.0, -2.0], "input_scale": [2.0, 0.5]}
    units |= {"output_mean": [offset] * O, "output_scale": [3.0, 2.0], "context_mean": [0.5] * C}
    units |= {"context_scale": [2.0] * C}
    made = fields(in_dim=D, out_dim=O, hidden_dim=7, context_hidden_dim=5 if C else None) | own
    made |= {"normalization": units}
    config = HullConfig(**(made | {"normalization": Normalization(**units)}))
    rng = np.random.default_rng([seed, 13])
    weights = {key: SIZE * rng.standard_normal(shape) for key, shape in parameter_shapes(config).items()}
    return backend.model(made, weights)


def contexts(model, count, seed=0):
    """Contexts of a hull in its units, `(count, context_dim)`."""
    return np.random.default_rng([seed, 17]).normal(size=(count, model.config.context_dim)) * 2 + 0.5


def values(backend, model, x, context=None):
    """One output at rows, by the model itself."""
    with backend.precision("float64"):
        given = [backend.array(part) for part in (x, context) if part is not None]
        return backend.numpy(backend.call(model, "__call__", *given))[:, OUTPUT]


def grid(points=41):
    """Points of the box from `LOWER` to `UPPER`."""
    axes = [np.linspace(low, high, points) for low, high in zip(LOWER, UPPER, strict=True)]
    return np.array(list(itertools.product(*axes)))


def bound(model, x, context=None, **options):
    """One output as an expression, and the problem of its best value in the box."""
    expression = to_cvxpy(model, x, output=OUTPUT, context=context, **options)
    sense = cp.Maximize if expression.is_concave() else cp.Minimize
    return expression, cp.Problem(sense(expression), [x >= LOWER, x <= UPPER])


def best(backend, model, constraints, context=None, **options):
    """The record of `minimize`, of a concave hull of `maximize`, as numpy; its bound under the name "bound"."""
    concave = model.config.is_concave
    function = backend.package.maximize if concave else backend.package.minimize
    found = function(model, constraints, output=OUTPUT, context=context, **options)._asdict()
    found["bound"] = found.pop("upper_bound" if concave else "lower_bound")
    return {name: backend.numpy(part) for name, part in found.items()}


def contradictions(model, found, known):
    """How many intervals have a known value, of each problem one, beyond their bound."""
    sign = -1.0 if model.config.is_concave else 1.0
    allowed = 1e-9 * (1 + np.abs(known))
    return int(np.sum(sign * found["bound"] > sign * known + allowed))

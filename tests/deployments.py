"""What is exported in the tests: hulls, and a hierarchy with routings of every kind that may be fixed."""

import numpy as np
from cases import UNITS, fields
from hierarchies import Case, Level, random_inputs

# Between them every option of a config. D + H is 12, 18 in the deep one: more rows take another association.
HULLS = {
    "default": fields(),
    "one_petal": fields(petals=1),
    "deep": fields(depth=3, hidden_dim=13, temperature=0.37, activation="relu", gate=True),
    "private": fields(trunk="private", group_size=1, temperature="learned"),
    "everything": fields(
        petals=13,
        depth=3,
        trunk="private",
        temperature="learned",
        activation="huber_relu",
        gate=True,
        normalization=UNITS,
    ),
}
# What `make test` exports; the others are for a release.
FEW = ("default", "everything")
SIZES = (3, 41)  # batches; the hulls are traced with another

CASE = Case(
    (
        Level("a", ("linear", "mlp7", "linear", "mlp7"), width=3, fallback=1),
        Level("off", ("linear",) * 2, width=2, enabled=False),
        Level("b", ("linear",) * 3, width=11, stops=(0, 2)),
    ),
    dropout=0.5,  # of which nothing may be seen
)
ROWS = 6
ROUTINGS = {
    "one expert a level": {"a": "e3", "b": "e1"},
    "fallback": {"a": None, "b": "e0"},
    "names": {"a": ["e3", None, "e0", "e1", "e0", None], "b": ["e2", "e0", "e2", "e0", "e0", "e2"]},
    "integers": {"a": np.array([3, 1, 0, 2, 2, 0]), "b": np.ones(ROWS, np.int32)},
    "both": {"a": "e0", "b": ["e1", "e2", "e1", "e0", "e1", "e1"]},
}


def in_full(routing, rows):
    """The routing as the model takes it: a name for every row."""
    return {level: [routes] * rows if isinstance(routes, str) else routes for level, routes in routing.items()}


def rows_of(case, rows, dtype="float32"):
    """Inputs, `[rows, hidden_size]`."""
    return random_inputs(case, rows)["x"].astype(dtype)


def wanted(engine, model, routing, x):
    """The fused output of the model at evaluation, with routes that it does not know beforehand."""
    routes = engine.package.encode_routes(model.config, in_full(routing, len(x)), len(x))
    with engine.precision(str(x.dtype)):
        return engine.fused(model, x, {name: np.asarray(value) for name, value in routes.items()}, None)

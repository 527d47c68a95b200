"""Parameters with the config of another hull: every function of the two says at once what does not belong together."""

import cases
import jax
import numpy as np
import pytest

from convexmoe import Box, HullConfig

GIVEN = {"in_dim": 2, "petals": 3, "out_dim": 1, "hidden_dim": 7, "depth": 2, "strong_convexity": 0.5}
X = np.ones((5, 2), np.float32)
BOX = Box([-1.0] * 2, [1.0] * 2)
OTHERS = {
    "shallower": ({"depth": 1}, "unexpected trunk.1.bias; unexpected trunk.1.{}weight; unexpected trunk.1.weight"),
    "deeper": ({"depth": 3}, "missing trunk.2.bias; missing trunk.2.{}weight; missing trunk.2.weight"),
    "petals": ({"petals": 5}, "shifts has shape [3], not [5]"),
    "width": ({"hidden_dim": 11}, "trunk.0.bias has shape [7], not [11]"),
    "trunk": ({"trunk": "private"}, "trunk.0.bias has shape [7], not [3, 7]"),
    "outputs": ({"out_dim": 2}, "readout.bias has shape [3, 1], not [3, 2]"),
    "temperature": ({"temperature": "learned"}, "missing raw_temperature"),
    "gate": ({"gate": True}, "missing gate.bias; missing gate.weight"),
}
CALLS = {
    "apply": lambda package, x, params, config: package.hull.apply(params, x, config),
    "winners": lambda package, x, params, config: package.hull.winners(params, x, config),
    "fold": lambda package, x, params, config: package.hull.fold_parameters(params, config),
    "folded": lambda package, x, params, config: package.FoldedHull(params, config)(x),
    "minimize": lambda package, x, params, config: package.minimize(package.FoldedHull(params, config), BOX, output=0),
    "conjugate": lambda package, x, params, config: package.conjugate(package.FoldedHull(params, config), X, output=0),
    "max_affine": lambda package, x, params, config: package.max_affine(
        package.FoldedHull(params, config), X, output=0
    ),
}
IN_JAX = {"jit": lambda package, x, params, config: jax.jit(package.hull.apply, static_argnums=2)(params, x, config)}


@pytest.fixture
def model(backend):
    fields = cases.fields(**GIVEN)
    return backend.model(fields, cases.random_weights(fields), "float32")


@pytest.mark.parametrize("other", OTHERS)
def test_every_call_lists_what_differs(backend, model, other):
    changes, faults = OTHERS[other]
    package, x, params, config = backend.package, backend.array(X), model.params, HullConfig(**(GIVEN | changes))
    with pytest.raises(ValueError) as stored:
        package.VectorHull.from_params(config, params)
    assert faults.format("raw_") in str(stored.value)
    folded, _ = package.hull.fold_parameters(params, model.config)
    for call in (CALLS | IN_JAX if backend.name == "jax" else CALLS).values():
        with pytest.raises(ValueError) as error:
            call(package, x, params, config)
        assert str(error.value) == str(stored.value)  # the words of a model that is made or read
        with pytest.raises(ValueError) as error:
            call(package, x, folded, config)
        assert faults.format("positive_") in str(error.value)


def test_control_the_right_config_is_taken(backend, model):
    package, x, params, config = backend.package, backend.array(X), model.params, model.config
    wanted = backend.numpy(package.hull.apply(params, x, config))
    for folded in (
        package.FoldedHull(params, config),
        package.FoldedHull(*package.hull.fold_parameters(params, config)),
    ):
        assert np.allclose(backend.numpy(folded(x)), wanted, atol=1e-5)
    # what takes no part in the shapes cannot be told
    relu = HullConfig(**GIVEN, activation="relu")
    assert not np.allclose(backend.numpy(package.hull.apply(params, x, relu)), wanted)
    with pytest.raises(TypeError, match=r"params\['shifts'\]: expected an array; got float"):
        package.hull.apply(params | {"shifts": 0.0}, x, config)

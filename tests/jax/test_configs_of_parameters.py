"""Parameters with the config of another hull: every function of the two says at once what does not belong together."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backends import BACKENDS

from convexmoe_jax import Box, FoldedHull, HullConfig, VectorHull, conjugate, hull, max_affine, minimize

GIVEN = {"in_dim": 2, "petals": 3, "out_dim": 1, "hidden_dim": 7, "depth": 2, "strong_convexity": 0.5}
X = np.ones((5, 2), np.float32)
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
    "apply": lambda params, config: hull.apply(params, X, config),
    "jit": lambda params, config: jax.jit(hull.apply, static_argnums=2)(params, X, config),
    "winners": lambda params, config: hull.winners(params, X, config),
    "fold": hull.fold_parameters,
    "folded": lambda params, config: FoldedHull(params, config)(X),
    "minimize": lambda params, config: minimize(FoldedHull(params, config), Box([-1.0] * 2, [1.0] * 2), output=0),
    "conjugate": lambda params, config: conjugate(FoldedHull(params, config), X, output=0),
    "max_affine": lambda params, config: max_affine(FoldedHull(params, config), X, output=0),
}


@pytest.fixture(scope="module")
def params():
    fields = cases.fields(**GIVEN)
    return BACKENDS[0].model(fields, cases.random_weights(fields), "float32").params


@pytest.mark.parametrize("other", OTHERS)
def test_every_call_lists_what_differs(params, other):
    changes, faults = OTHERS[other]
    config = HullConfig(**(GIVEN | changes))
    with pytest.raises(ValueError) as stored:
        VectorHull.from_params(config, params)
    assert faults.format("raw_") in str(stored.value)
    folded, _ = hull.fold_parameters(params, HullConfig(**GIVEN))
    for call in CALLS.values():
        with pytest.raises(ValueError) as error:
            call(params, config)
        assert str(error.value) == str(stored.value)  # the words of a model that is made or read
        with pytest.raises(ValueError) as error:
            call(folded, config)
        assert faults.format("positive_") in str(error.value)


def test_control_the_right_config_is_taken(params):
    config = HullConfig(**GIVEN)
    wanted = hull.apply(params, X, config)
    for folded in (FoldedHull(params, config), FoldedHull(*hull.fold_parameters(params, config))):
        assert np.allclose(folded(X), wanted, atol=1e-5)
    # what takes no part in the shapes cannot be told
    assert not jnp.allclose(hull.apply(params, X, HullConfig(**GIVEN, activation="relu")), wanted)
    with pytest.raises(TypeError, match=r"params\['shifts'\]: expected an array; got float"):
        hull.apply(params | {"shifts": 0.0}, X, config)

"""`winners` names the first largest group and its lead, in units of the output."""

import backends
import cases
import numpy as np
import pytest
import reference


@pytest.mark.parametrize("seed", cases.SEEDS)
def test_winners_are_those_of_the_reference(backend, fields, seed):
    weights, x = cases.random_weights(fields, seed), cases.random_inputs(fields, seed=seed)
    group, margin = backend.winners(backend.model(fields, weights), x)
    wanted, lead = reference.winners(weights, x, fields)
    assert group.dtype == np.int32 and margin.dtype == np.float64
    assert np.array_equal(group, wanted)
    if fields["petals"] == 1:
        assert (margin == np.inf).all() and not group.any()
    else:
        size = np.abs(reference.hull(weights, x, fields)).max()
        assert np.abs(margin - lead).max() < 1e-12 * size


def test_several_groups_win_somewhere(backend):
    """Without this the test above could pass on a constant."""
    fields = cases.HULLS["deep"]
    model = backend.model(fields, cases.random_weights(fields))
    group, _ = backend.winners(model, 3 * cases.random_inputs(fields, (211,)))
    assert len(set(group.ravel())) > 2


@pytest.mark.parametrize(
    ("hull", "dtype"),
    [
        ("default", "float64"),
        ("plain_max", "bfloat16"),
        ("two_petals", "float64"),
        *(
            pytest.param(hull, dtype, marks=pytest.mark.release)
            for hull, dtype in [
                ("default", "bfloat16"),
                ("plain_max", "float64"),
                ("two_petals", "bfloat16"),
                ("deep_private", "float64"),
                ("deep_private", "bfloat16"),
            ]
        ),
    ],
)
def test_the_first_of_a_tie_wins_by_nothing(backend, hull, dtype):
    fields = cases.HULLS[hull]
    weights = cases.tied_weights(fields)
    x = cases.tied_inputs(fields).astype(backends.NAMES[dtype])
    group, margin = backend.winners(backend.model(fields, weights, dtype), x)
    assert not group.any() and not margin.astype(float).any()
    # control: a shift that is larger for the last petal alone makes it win by as much
    raised = weights | {"shifts": weights["shifts"] + np.arange(fields["petals"]) // (fields["petals"] - 1)}
    group, margin = backend.winners(backend.model(fields, raised, dtype), x)
    assert (group == fields["petals"] - 1).all()
    assert np.allclose(margin.astype(float), 1.0, atol=0.2)


def test_the_margin_is_in_units_of_the_output(backend):
    fields = cases.HULLS["units"]
    weights, x = cases.random_weights(fields), cases.random_inputs(fields)
    _, margin = backend.winners(backend.model(fields, weights), x)
    plain = cases.fields()
    _, bare = backend.winners(backend.model(plain, weights), reference.into_units(x, fields))
    assert np.allclose(margin, bare * cases.UNITS["output_scale"], rtol=1e-10)
    assert not np.allclose(margin, bare)

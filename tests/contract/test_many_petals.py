"""Many petals: values and gradients block by block of rows, in the memory that eight petals need, exact to rounding."""

import cases
import numpy as np
import pytest
from tolerances import relative_error

from convexmoe.hull import rows as core

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 29  # more than in_dim + hidden_dim


def blocks_of(fields):
    """The hull with more petals than eight, its weights, and rows that no number of blocks divides."""
    fields = fields | {"petals": 19}
    return fields, cases.random_weights(fields), cases.random_inputs(fields, (ROWS,))


@pytest.mark.parametrize("hull", ["default", "learned", "units_smooth", "private", "gate"])
def test_blocks_of_rows_are_exact(backend, hull, replace):
    fields, weights, x = blocks_of(cases.HULLS[hull])
    c = np.random.default_rng(0).standard_normal((ROWS, fields["out_dim"]))
    model, found, counts = backend.model(fields, weights), [], []

    def row_blocks(*given):
        counts.append(core.row_blocks(*given))
        return counts[-1]

    for limit in (core.LARGE_VALUES, 0):
        replace(core, "LARGE_VALUES", limit)
        replace(backend.package.hull.forward, "row_blocks", row_blocks)
        y, gradients = backend.value_and_gradients(model, x, c)
        found.append({"y": y} | gradients)
    for name, wanted in found[0].items():
        assert relative_error(found[1][name], wanted) < 1e-12, name
    assert sorted(set(counts)) == [1, 3]  # control: one block, then three of 9 or 10 rows


def test_ties_share_the_gradient_evenly(backend, replace):
    """Of equal petals each gets as much, though its group is one of two that are the maximum at once."""
    fields, weights, x = blocks_of(cases.HULLS["plain_max"])
    equal = {n: np.repeat(w[..., :1, :], 19, -2) if n.startswith("readout") else w for n, w in weights.items()}
    equal["shifts"] = np.zeros(19)
    # the first input and a bias, so that no order of sums tells one petal from another by rounding
    equal["readout.raw_weight"] = np.full_like(equal["readout.raw_weight"], -1e4)
    equal["readout.weight"] = np.zeros_like(equal["readout.weight"])
    equal["readout.weight"][0] = 1.0
    replace(core, "LARGE_VALUES", 0)
    by_shifts = backend.gradients(backend.model(fields, equal), x, np.ones((ROWS, fields["out_dim"])))["shifts"]
    assert relative_error(by_shifts, np.full(19, ROWS * fields["out_dim"] / 19)) < 1e-12


def test_the_number_of_blocks_follows_the_size(backend):
    config = backend.package.HullConfig
    many = config(8, petals=128, out_dim=16)
    assert core.row_blocks(4096, many, 4) == 16 and core.row_blocks(4097, many, 4) == 16
    assert core.row_blocks(256, many, 4) == 1  # small
    assert core.row_blocks(2**20, config(8, petals=8, out_dim=16), 4) == 1  # few petals
    assert core.row_blocks(500, config(512, petals=128), 4) == 1  # parameters outnumber the values
    assert core.row_blocks("n", many, 4) == 1  # a symbol

"""The functions of PyTorch's own operators get the verdicts that their table says."""

import numpy as np
import pytest
import torch
from torch_table import TORCH_TABLE

from convexmoe_torch import certify

X = torch.tensor([0.3, -0.7, 1.1])


@pytest.mark.parametrize("row", TORCH_TABLE, ids=lambda row: row.name)
def test_verdict_and_curvature(row):
    found = certify(row.function, X)
    assert (found.verdict, found.outputs[0].weakest) == (row.verdict, row.curvature), str(found)
    if found.violation is not None:
        left, right, weight = found.violation.left, found.violation.right, found.violation.weight
        at = [torch.as_tensor(point).float() for point in (left, right, weight * left + (1 - weight) * right)]
        one, two, between = (np.ravel(row.function(point).numpy())[found.violation.output] for point in at)
        assert between - (weight * one + (1 - weight) * two) == pytest.approx(found.violation.gap, rel=0.05)


def test_names_are_their_own():
    assert len({row.name for row in TORCH_TABLE}) == len(TORCH_TABLE) >= 60

"""Random programs of PyTorch: nothing that is claimed of them is false. The controls are in test_torch_mutants.py."""

import os

import numpy as np
import pytest
import torch
from attack import show
from torch_programs import NAMES, TORCH, contradictions, random_program, run, traced, walked

from convexmoe.convexity.certificate import word_arrays
from convexmoe.convexity.facts import CONVEX
from convexmoe_torch import certify

# `make test` runs 250 programs, `make test-all` 5,000, `make fuzz` 100,000
SHARDS, PROGRAMS = 20, int(os.environ.get("CONVEXMOE_PROGRAMS", 250))


def no_contradiction(seed, programs):
    """Attack programs; return how many of them were claimed to be convex, and not affine."""
    rng = np.random.default_rng([seed, 2027])
    convex = 0
    for number in range(programs):
        size, program = random_program(rng)
        claimed = walked(size, traced(size, program))
        assert contradictions(size, program, number, claimed) == [], show(size, program)
        convex += bool((claimed[-1].has(CONVEX) & ~claimed[-1].affine).any())
    return convex


RELEASE = [pytest.param(shard, marks=pytest.mark.release) for shard in range(1, SHARDS)]


@pytest.mark.parametrize("shard", [0, *RELEASE])
def test_no_claim_of_many_programs_is_false(shard):
    assert no_contradiction(shard, PROGRAMS) > PROGRAMS / 10  # what proves nothing is never false


def test_the_programs_reach_every_operation():
    rng = np.random.default_rng(0)
    seen = {instruction.name for _ in range(1000) for instruction in random_program(rng)[1]}
    assert seen == set(NAMES)


@pytest.mark.parametrize(
    ("shard", "programs"), [(0, 10), *(pytest.param(k, 110, marks=pytest.mark.release) for k in (1, 2, 3))]
)
def test_certify_says_of_a_sample_what_the_bulk_is_told(shard, programs):
    """The programs above are written without `torch.export`; with it they are the same."""
    rng = np.random.default_rng([shard, 2028])
    for _ in range(programs):
        size, program = random_program(rng)
        last = walked(size, traced(size, program))[-1]

        def function(theta, x, program=program):
            return run(program, x, theta, TORCH)[-1]

        found = certify(function, torch.full((size,), 0.5), params=torch.ones(size), strength="structural", segments=0)
        expected = word_arrays(last)
        for name in ("curvature", "monotonicity", "sign"):
            got = getattr(found.outputs[0], name)
            assert got.tolist() == expected[name].tolist(), f"{name}: {show(size, program)}\n{found}"

"""Random programs: nothing that is claimed of any of their values is false. The controls are in test_mutants.py."""

import hypothesis
import numpy as np
import pytest
from attack import claims, contradictions, show
from random_programs import OPS, programs, random_program

from convexmoe_jax.curvature import CONVEX

SHARDS, PROGRAMS = 20, 5_000


@hypothesis.settings(max_examples=300)
@hypothesis.given(programs())
def test_no_claim_is_false(program):
    assert contradictions(*program) == [], show(*program)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_claim_of_many_programs_is_false(shard):
    rng = np.random.default_rng([shard, 2026])
    convex = 0
    for number in range(PROGRAMS):
        size, program = random_program(rng)
        claimed = claims(size, program)
        assert contradictions(size, program, number, claimed) == [], show(size, program)
        convex += bool((claimed[-1].has(CONVEX) & ~claimed[-1].affine).any())
    assert convex > PROGRAMS / 10  # what proves nothing is never false


def test_the_programs_are_many_and_reach_every_operation():
    assert SHARDS * PROGRAMS >= 100_000
    rng = np.random.default_rng(0)
    seen = {instruction.name for _ in range(500) for instruction in random_program(rng)[1]}
    assert seen == OPS.keys()

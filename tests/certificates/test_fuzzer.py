"""Random programs: nothing that is claimed of any of their values is false. The controls are in test_mutants.py."""

import os

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack import claims, contradictions, show
from random_programs import OPS, parameters, programs, random_program, run

from convexmoe.convexity.facts import CONVEX
from convexmoe.convexity.search import search
from convexmoe_jax.convexity.search import Evaluator

# `make test` runs 250 programs beside those of hypothesis, `make test-all` 5,000, `make fuzz` 100,000
SHARDS, PROGRAMS = 20, int(os.environ.get("CONVEXMOE_PROGRAMS", 250))
RELEASE = [pytest.param(shard, marks=pytest.mark.release) for shard in range(1, SHARDS)]


@hypothesis.settings(max_examples=100)
@hypothesis.given(programs())
def test_no_claim_is_false(program):
    assert contradictions(*program) == [], show(*program)


@pytest.mark.parametrize("shard", [0, *RELEASE])
def test_no_claim_of_many_programs_is_false(shard):
    rng = np.random.default_rng([shard, 2026])
    convex = 0
    for number in range(PROGRAMS):
        size, program = random_program(rng)
        claimed = claims(size, program)
        assert contradictions(size, program, number, claimed) == [], show(size, program)
        convex += bool((claimed[-1].has(CONVEX) & ~claimed[-1].affine).any())
    assert convex > PROGRAMS / 10  # what proves nothing is never false


@pytest.mark.parametrize("least", [2, pytest.param(10, marks=pytest.mark.release)])
def test_what_is_proved_withstands_the_whole_search(least, x64):
    """The search of `certify`, gradients included, on programs that are proved; its control is what is not convex."""
    rng = np.random.default_rng(99)
    withstood = refuted = 0
    while withstood < least or refuted < least // 2:
        size, program = random_program(rng)
        last = claims(size, program)[-1]
        convex, open_ones = last.has(CONVEX), ~last.curved
        if last.affine.all() or not (convex.any() or open_ones.all()):
            continue
        theta = parameters(size, 3)
        [kept] = np.nonzero(convex if convex.any() else open_ones)

        def function(x, program=program, theta=theta, kept=kept):
            return run(program, x, jnp.asarray(theta), "jax")[-1][kept]

        points = jnp.asarray([[-1.5] * size, [1.5] * size])
        found = search(Evaluator(jax.vmap(function), points), 4_000, withstood, 1e-7, strict=False)
        if convex.any():
            assert found is None, (show(size, program), found)
            withstood += 1
        else:
            refuted += found is not None


def test_the_programs_reach_every_operation():
    rng = np.random.default_rng(0)
    seen = {instruction.name for _ in range(500) for instruction in random_program(rng)[1]}
    assert seen == OPS.keys()

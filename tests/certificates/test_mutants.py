"""Rules with a fault in them: the table, or the random programs, must notice each."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
from attack import contradictions, traced, walked
from convexity_table import MONOTONE, TABLE, Monotone
from engines_of_proof import Jax
from random_programs import random_program

from convexmoe.convexity import atoms, calculus, contraction, graph, piecewise, refinements, scalars
from convexmoe.convexity import facts as curvature
from convexmoe.convexity.certificate import monotonicity
from convexmoe.convexity.facts import (
    AFFINE,
    CONCAVE,
    CONSTANT,
    CONVEX,
    FALLING,
    NONZERO,
    REAL,
    RISING,
    Value,
    curvature_word,
    either,
    settle,
    variable,
)
from convexmoe.convexity.refinements import Refinements
from convexmoe.convexity.scalars import ABOVE, BELOW, EVERYWHERE, SCALARS
from convexmoe.convexity.walk import Rule, Walk
from convexmoe_jax.convexity.atoms import recognize
from convexmoe_jax.convexity.rules import RULES, sorts
from convexmoe_jax.convexity.trace import trace

PROGRAMS = 600


@lru_cache(maxsize=1)
def rows():
    """The graphs of the table."""
    engine = Jax()
    return [
        (row, trace(lambda x, row=row: row.function(engine.xp, x), engine.example(getattr(row, "shape", (3,)))))
        for row in [*TABLE, *MONOTONE]
    ]


@lru_cache(maxsize=1)
def programs():
    """Random programs and their graphs."""
    rng = np.random.default_rng(7)
    drawn = [random_program(rng) for _ in range(PROGRAMS)]
    return [(size, program, traced(size, program)) for size, program in drawn]


def walked_row(made):
    walk = Walk(made, RULES, recognize, Refinements(made.inputs, sorts))
    return walk.run([variable(made.shapes[number]) for number in made.inputs])


def concerns(names, found_graph):
    """Whether a graph has one of the primitives, or a loop or a branch, in which one may be; no names, any graph."""
    own = {operation.name for operation in found_graph.operations}
    return not names or own & {*names, "scan", "while", "cond"}


def wrong_rows(names):
    """Rows of the table whose curvature is not what the table says."""
    for row, found_graph in rows():
        if not concerns(names, found_graph):
            continue
        value = settle_all(walked_row(found_graph))
        if isinstance(row, Monotone):
            wrong = set(monotonicity(value)) != {row.monotonicity}
        else:
            wrong = curvature_word(value) != row.curvature
        if wrong:
            yield row.name


def settle_all(values):
    """What holds of all elements of all outputs."""
    return Value(*(np.concatenate([np.ravel(getattr(v, n)) for v in values]) for n in ("lower", "upper", "facts")))


def wrong_programs(names):
    """Random programs of which something false is claimed."""
    for number, (size, program, found_graph) in enumerate(programs()):
        if concerns(names, found_graph) and contradictions(size, program, number, walked(size, found_graph)):
            yield number


class Fault(NamedTuple):
    """A fault, given `monkeypatch`, and the primitives of which a program has to have one for it to show."""

    change: Callable
    names: tuple = ()


def noticed(names=()):
    """Where a fault shows first, "" where it does not."""
    programs = (f"program {number}" for number in wrong_programs(names))
    return next(wrong_rows(names), None) or next(programs, "")


def scalar(name, **changes):
    names = (name,) if name in RULES else ()  # others are atoms
    return Fault(lambda patch: patch.setitem(SCALARS, name, SCALARS[name]._replace(**changes)), names)


def rule(name, function, elementwise=True):
    """A primitive with another function of the values of its inputs."""
    changed = Rule(RULES[name].law, lambda walk, operation, inputs: [function(*inputs)], elementwise)
    return Fault(lambda patch: patch.setitem(RULES, name, changed), (name,))


def put(module, name, function):
    return Fault(lambda patch: patch.setattr(module, name, function))


def with_facts(value, facts):
    return settle(value.lower, value.upper, value.facts | np.uint16(facts))


def unturned(value):
    return settle(-value.upper, -value.lower, value.facts)


def absolute(value):
    """The size of a constant, where its sign is dropped."""
    return settle(*(np.abs(value.lower),) * 2, value.facts) if value.known.all() else value


MULTIPLY, ADD, MAXIMUM, SUM, CHOOSE = (
    getattr(calculus, name) for name in ("multiply", "add", "maximum", "sum_over", "choose")
)
LINEAR, POWER, MATCH, SMOOTH = calculus.linear, scalars.power, graph.match, calculus.smooth_maximum
CLAIM = piecewise.Chain.claim

MUTANTS = {
    "exp falls": scalar("exp", rising=None, falling=EVERYWHERE),
    "exp does not rise": scalar("exp", rising=None),
    "exp is concave": scalar("exp", convex=None, concave=EVERYWHERE),
    "exp is below 1": scalar("exp", range=(0.0, 1.0)),
    "expm1 does not rise": scalar("expm1", rising=None, convex=None),
    "log is convex": scalar("log", convex=ABOVE, concave=None),
    "log is defined everywhere": scalar("log", domain=(-np.inf, np.inf)),
    "log1p is convex": scalar("log1p", convex=(-1.0, np.inf)),
    "sqrt is convex": scalar("sqrt", convex=ABOVE),
    "sqrt falls": scalar("sqrt", rising=None, falling=ABOVE),
    "cbrt is turned": scalar("cbrt", convex=ABOVE, concave=BELOW),
    "tanh is convex": scalar("tanh", convex=EVERYWHERE),
    "tanh is turned": scalar("tanh", convex=ABOVE, concave=BELOW),
    "logistic is convex": scalar("logistic", convex=EVERYWHERE),
    "sinh is convex": scalar("sinh", convex=EVERYWHERE),
    "cosh rises": scalar("cosh", rising=EVERYWHERE),
    "asinh is turned": scalar("asinh", convex=ABOVE, concave=BELOW),
    "atan is concave": scalar("atan", concave=EVERYWHERE),
    "abs rises": scalar("abs", rising=EVERYWHERE),
    "abs is concave": scalar("abs", concave=EVERYWHERE),
    "floor is convex": scalar("floor", convex=EVERYWHERE),
    "sine rises": scalar("sin", rising=EVERYWHERE),
    "pieces need not meet": put(
        piecewise.Chain, "at", lambda chain, point, choices: piecewise.Jet(Fraction(0), Fraction(bool(choices)))
    ),
    "slopes need not rise": put(
        piecewise.Chain, "claim", lambda chain, low, high: with_facts(CLAIM(chain, low, high), CONVEX)
    ),
    **{
        f"{name} does not rise": scalar(name, rising=None)
        for name in ("log", "log1p", "sqrt", "cbrt", "tanh", "logistic", "sinh", "asinh", "atan", "floor")
    },
    "composition forgets the inner curvature": put(
        scalars,
        "compose",
        lambda v, convex, concave, rising, falling: curvature.facts_where(
            (CONVEX, convex & v.curved), (CONCAVE, concave & v.curved), (RISING, rising & v.has(RISING))
        ),
    ),
    "negative keeps its curvature": rule("neg", unturned),
    "sum is convex where one term is": rule(
        "add", lambda a, b: with_facts(ADD(a, b), 0) if a.affine.all() else with_facts(ADD(a, b), CONVEX | REAL)
    ),
    "difference is a sum": rule("sub", ADD),
    "product forgets the sign": put(calculus, "multiply", lambda a, b: MULTIPLY(absolute(a), absolute(b))),
    "a parameter is positive": put(
        calculus, "_scale_facts", lambda factor, v: np.where(factor.constant, v.facts, np.uint16(0)).astype(np.uint16)
    ),
    "a product falls with its rising factor": put(
        calculus, "multiply", lambda a, b: with_facts(MULTIPLY(a, b), RISING if b.has(RISING).all() else 0)
    ),
    "product of two affine values is convex": put(
        calculus,
        "multiply",
        lambda a, b: with_facts(MULTIPLY(a, b), CONVEX if a.affine.all() and b.affine.all() else 0),
    ),
    "square is any product": put(calculus, "multiply", lambda a, b: POWER(a, 2.0)),
    "square of convex is convex": put(
        scalars, "power", lambda v, p: with_facts(POWER(v, p), CONVEX if p == 2 and v.has(CONVEX).all() else 0)
    ),
    "odd power is even": put(scalars, "power", lambda v, p: POWER(v, p + 1 if p == 3 else p)),
    "power of -1 is defined": put(scalars, "power", lambda v, p: with_facts(POWER(v, p), REAL if p < 0 else 0)),
    "maximum is a minimum": rule("max", calculus.minimum),
    "maximum keeps concave": rule("max", lambda a, b: with_facts(MAXIMUM(a, b), a.facts[()] & b.facts[()] & CONCAVE)),
    "minimum is a maximum": rule("min", MAXIMUM),
    "largest is the smallest": Fault(
        lambda patch: patch.setitem(RULES, "reduce_max", RULES["reduce_min"]), ("reduce_max",)
    ),
    "choice by the input is by a constant": put(
        calculus, "choose", lambda which, cases: either([c.broadcast(which.shape) for c in cases])
    ),
    "choice takes the first": put(calculus, "choose", lambda which, cases: cases[0].broadcast(which.shape)),
    "comparison rises": rule("gt", lambda a, b: settle(a.facts * 0.0, a.facts * 0.0 + 1, a.facts | CONSTANT)),
    "linear map forgets the sign": put(
        contraction, "linear", lambda c, v, p: with_facts(LINEAR(c, v, p), CONVEX if v.has(CONVEX).all() else 0)
    ),
    "products are summed without sign": put(
        contraction, "multiply_elements", lambda a, b, same: MULTIPLY(absolute(a), absolute(b))
    ),
    "sum over axes keeps the first": put(
        calculus,
        "sum_over",
        lambda v, axes: settle(*(part.sum(axes) for part in (v.lower, v.upper)), v.facts.max(axes)),
    ),
    "log-sum-exp falls": put(
        calculus,
        "log_sum_exp",
        lambda v, axes: with_facts(
            settle(*(part.max(axes) for part in (v.lower, v.upper + 9)), v.facts.min(axes)), FALLING
        ),
    ),
    "every form is semidefinite": put(refinements, "is_semidefinite", lambda lower, upper: True),
    "no weight is out of order": put(Walk, "evaluate_again", lambda walk, number, *_, **__: walk.values[number]),
    "atoms match whatever their literals": put(graph, "equal_params", lambda one, other: True),
    "atoms match by their last operation": put(
        atoms, "match", lambda reference, g, value: list(g.makers[value].inputs)[-1:] * len(reference.inputs)
    ),
    "zero is nowhere": rule("abs", lambda v: with_facts(scalars.apply("abs", v), NONZERO)),
    "reverse forgets to move": rule("rev", lambda v: v, elementwise=False),
    "sorted values are all convex": rule("sort", lambda v: v, elementwise=False),
    "running maximum is affine": rule("cummax", lambda v: v, elementwise=False),
    "running product is a sum": rule("cumprod", lambda v: with_facts(v, AFFINE), elementwise=False),
}


def test_without_a_fault_nothing_is_noticed():
    assert noticed() == ""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_is_noticed(mutant, monkeypatch):
    MUTANTS[mutant].change(monkeypatch)
    assert noticed(MUTANTS[mutant].names) != ""

"""Rules of PyTorch with a fault in them: a table, or the random programs, must notice each.

The rules of the lattice, which both packages share to the letter, have their mutants in test_mutants.py.
"""

from functools import lru_cache

import numpy as np
import pytest
from convexity_table import MONOTONE, TABLE, Monotone
from torch_engine import Torch
from torch_programs import contradictions, random_program, traced, traced_function, walked
from torch_table import TORCH_TABLE

from convexmoe.convexity import atoms, calculus
from convexmoe.convexity.certificate import monotonicity
from convexmoe.convexity.facts import (
    CONCAVE,
    CONSTANT,
    CONVEX,
    REAL,
    RISING,
    Value,
    curvature_word,
    negate_facts,
    settle,
    variable,
)
from convexmoe.convexity.refinements import Refinements
from convexmoe.convexity.walk import Walk
from convexmoe_torch.convexity import rules
from convexmoe_torch.convexity.atoms import recognize
from convexmoe_torch.convexity.lowering.moves import Places
from convexmoe_torch.convexity.lowering.table import LOWERINGS
from convexmoe_torch.convexity.rules import RULES, sorts

PROGRAMS = 600
ENGINE = Torch()
# Rows whose programs the catcher of operators does not write: it sees no changes in place, takes the numbers that a
# program reads, and does not write losses out.
NOT_CAUGHT = {
    "changed in place",
    "changed behind a view",
    "random",
    "places that depend on x",
    "cross entropy",
    "cross entropy of the negative logits",
    "binary cross entropy",
    "mean squared error",
}


def rows():
    """What the tables say, the function and its shape."""
    for row in (*TABLE, *MONOTONE):
        shape = getattr(row, "shape", (3,))
        if np.prod(shape) <= 12:
            yield row, lambda x, row=row: row.function(ENGINE.xp, x), shape
    for row in TORCH_TABLE:
        if row.name not in NOT_CAUGHT:
            yield row, row.function, (3,)


def wrong_rows(graphs):
    """Rows of which the walk does not say what the table says."""
    for row, graph in graphs:
        walk = Walk(graph, RULES, recognize, Refinements(graph.inputs, sorts))
        [value] = walk.run([variable(graph.shapes[graph.inputs[0]])])
        if isinstance(row, Monotone):
            wrong = set(np.ravel(monotonicity(value))) != {row.monotonicity}
        else:
            wrong = curvature_word(value) != row.curvature
        if wrong:
            yield row.name


def graphs_of_rows():
    for row, function, shape in rows():
        yield row, traced_function(function, shape)


def graphs_of_programs():
    rng = np.random.default_rng(7)
    for _ in range(PROGRAMS):
        size, program = random_program(rng)
        yield size, program, traced(size, program)


@lru_cache(maxsize=1)
def without_a_fault():
    """The graphs, written by the lowerings as they are."""
    return list(graphs_of_rows()), list(graphs_of_programs())


def noticed(again):
    """Where a fault shows first, "" where it does not; `again` where programs have to be written anew."""
    table, programs = (graphs_of_rows(), graphs_of_programs()) if again else without_a_fault()
    first = next(wrong_rows(table), "")
    if first:
        return first
    for number, (size, program, graph) in enumerate(programs):
        if contradictions(size, program, number, walked(size, graph)):
            return f"program {number}"
    return ""


def over(rule, change):
    """A rule whose first output is changed, where it depends on the input."""

    def apply(walk, operation, inputs):
        first, *others = rule.apply(walk, operation, inputs)
        return [change(first), *others]

    return rule._replace(apply=apply)


def opposite(value):
    """Convex for concave, rising for falling."""
    return Value(value.lower, value.upper, np.where(value.constant, value.facts, negate_facts(value.facts)))


def bolder(facts):
    """Facts that are claimed too, wherever the value is a real number."""
    return lambda value: settle(
        value.lower, value.upper, value.facts | np.where(value.has(REAL), np.uint16(facts), np.uint16(0))
    )


def reversed_(value):
    """The elements from the last to the first."""
    return Value(
        *(part.reshape(-1)[::-1].reshape(part.shape) for part in (value.lower, value.upper, value.facts))
    )


def narrower(value):
    """Bounds around one end alone."""
    ends = np.where(np.isfinite(value.lower), value.lower, value.upper)
    held = np.where(np.isfinite(ends) & ~value.constant, ends, value.lower)
    return settle(held, np.where(np.isfinite(ends) & ~value.constant, ends, value.upper), value.facts)


ALWAYS_BOUNDED = ("sigmoid", "tanh", "erf", "erfc", "sin", "cos", "sign")
MOVING = (
    "reshape",
    "permute",
    "expand",
    "flip",
    "roll",
    "slice",
    "cat",
    "index_select",
    "gather",
    "index",
)
TRUTH = ("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not", "bitwise_and")
# Of whole or truth values, of places, of pieces of models: nothing but bounds can be wrong there.
PLACES = ("argmax", "argmin", "argcummax", "argcummin", "any", "all", "isfinite", "bitwise_or", "bitwise_not")
SEEN_TWICE = (
    "to",
    "where",
    "cond",
    "convolution",
    "round",
    "ceil",
    "lgamma",
    "digamma",
    "erf",
    "erfc",
    "cos",
)

CURVED = [
    name
    for name in RULES
    if name not in (*MOVING, *TRUTH, *PLACES, *SEEN_TWICE) and RULES[name].law != "moved"
]


def rule(name, change):
    return lambda patch: patch.setitem(RULES, name, over(RULES[name], change))


def lowered(name, function):
    return lambda patch: patch.setitem(LOWERINGS, name, function)


def swapped(name):
    """An operator whose two arguments change places."""

    def lower(call):
        a, b = call.values("self", "other")
        return [call.op(name, b, a)]

    return lower


def unordered(call):
    call.arguments["largest"] = True
    return LOWERINGS["topk"](call)


def shifted(call):
    """Places that are one off."""
    return [
        call.graph.add(
            "select",
            call.graph.makers[number].inputs,
            {"places": Places(np.roll(places.array, 1)), "fill": 0.0},
            [call.kinds[0]],
        )[0]
        for number in MOVE(call)
        for places in [call.graph.makers[number].params["places"]]
    ]


MOVE = LOWERINGS["slice"]
SOFTPLUS, ELU = RULES["softplus"], RULES["elu"]


def without(name):
    """An operator without one of its arguments."""

    def change(original):
        def lower(call):
            call.arguments.pop(name, None)
            return original(call)

        return lower

    return change


MUTANTS = {
    **{f"{name} is convex": (rule(name, bolder(CONVEX)), False) for name in CURVED},
    **{f"{name} is concave": (rule(name, bolder(CONCAVE)), False) for name in CURVED},
    **{f"{name} is turned": (rule(name, opposite), False) for name in CURVED if name != "sin"},
    # log10 is by the rule of log2
    **{f"{name} rises": (rule(name, bolder(RISING)), False) for name in CURVED if name != "log10"},
    **{f"{name} moves elsewhere": (rule(name, reversed_), False) for name in MOVING if name in RULES},
    **{f"{name} is constant": (rule(name, bolder(CONSTANT)), False) for name in TRUTH},
    "where is convex": (rule("where", bolder(CONVEX)), False),
    "a cast is convex": (rule("to", bolder(CONVEX)), False),
    "a convolution is convex": (rule("convolution", bolder(CONVEX)), False),
    "the visible step of softplus": (
        lambda patch: patch.setattr(rules.math, "log1p", lambda u: 0.0),
        False,
    ),
    "elu of every alpha": (lambda patch: patch.setattr(rules, "Fraction", lambda number: 0), False),
    "a difference is turned": (lowered("sub", swapped("sub")), True),
    "a reversed difference is not": (lowered("rsub", LOWERINGS["sub"]), True),
    "a quotient is turned": (lowered("div", swapped("div")), True),
    **{
        f"{name} without alpha": (lowered(name, without("alpha")(LOWERINGS[name])), True)
        for name in ("add", "sub", "addmm", "addmv")
    },
    "a normalisation without its weight": (
        lowered("native_batch_norm", without("weight")(LOWERINGS["native_batch_norm"])),
        True,
    ),
    "addmm without beta": (lowered("addmm", without("beta")(LOWERINGS["addmm"])), True),
    "clamp without its upper end": (lowered("clamp", without("max")(LOWERINGS["clamp"])), True),
    "clamp without its lower end": (lowered("clamp", without("min")(LOWERINGS["clamp"])), True),
    "the largest for the smallest": (lowered("topk", without("largest")(LOWERINGS["topk"])), True),
    "sorted the other way": (lowered("sort", without("descending")(LOWERINGS["sort"])), True),
    "max is min": (lowered("max", LOWERINGS["min"]), True),
    "amax is amin": (lowered("amax", LOWERINGS["amin"]), True),
    "cummax is cummin": (lowered("cummax", LOWERINGS["cummin"]), True),
    "relu is none": (lowered("relu", LOWERINGS["clone"]), True),
    "masked fill is none": (lowered("masked_fill", LOWERINGS["clone"]), True),
    "where is turned": (
        lambda patch: patch.setitem(
            RULES, "where", RULES["where"]._replace(apply=lambda w, o, i: [calculus.choose(i[0], i[1:])])
        ),
        False,
    ),
    "leaky relu is always a maximum": (
        lowered(
            "leaky_relu",
            lambda call: [
                call.op(
                    "maximum", call["self"], call.op("mul", call["self"], call.number(call["negative_slope"]))
                )
            ],
        ),
        True,
    ),
    "log-sigmoid is the sigmoid": (
        lowered("log_sigmoid_forward", lambda c: [c.op("sigmoid", c["self"]), c["self"]]),
        True,
    ),
    "a norm of any order": (lowered("linalg_vector_norm", LOWERINGS["sum"]), True),
    "a mean is a maximum": (lowered("mean", LOWERINGS["amax"]), True),
    "a variance is not divided": (lowered("var", LOWERINGS["sum"]), True),
    "slices are one off": (lowered("slice", shifted), True),
    "reshape forgets its order": (rule("reshape", reversed_), False),
    "atoms match by their last operation": (
        lambda patch: patch.setattr(
            atoms,
            "match",
            lambda reference, g, value: list(g.makers[value].inputs)[-1:] * len(reference.inputs),
        ),
        False,
    ),
}


@pytest.mark.parametrize("again", [False, True])
def test_without_a_fault_nothing_is_noticed(again):
    assert noticed(again) == ""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_is_noticed(mutant, monkeypatch):
    without_a_fault()
    change, again = MUTANTS[mutant]
    change(monkeypatch)
    assert noticed(again) != ""

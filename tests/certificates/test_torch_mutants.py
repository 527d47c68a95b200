"""Rules of PyTorch with a fault in them: a table, or the random programs, must notice each.

The rules of the lattice, which both packages share to the letter, have their mutants in test_mutants.py.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from convexity_table import DOWN, MONOTONE, TABLE, Monotone
from torch_engine import Torch
from torch_programs import contradictions, random_program, traced, traced_function, walked
from torch_table import TORCH_TABLE, TorchRow

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
from convexmoe_torch.convexity.lowering import LOWERINGS
from convexmoe_torch.convexity.lowering.moves import Places
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


def pick(u):
    """Elements of a square whose columns are curved differently."""
    square = torch.stack([torch.exp(u[0]), -torch.exp(u[1]), -torch.exp(u[2])]).expand(2, 3)
    return (square * torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])).sum()


# What the tables leave to chance.
FALLING = {"exp2": torch.exp2, "sinh": torch.sinh, "amin": lambda u: u.amin(0), "amax": lambda u: u.amax(0)}
HERE = [
    *(Monotone(f"{name} falls", DOWN, lambda xp, u, of=of: of(-u)) for name, of in FALLING.items()),
    TorchRow("a truth that is turned", "refuted", "concave", lambda u: torch.where(torch.logical_not(u > 0), u, -u)),
    TorchRow("elements of a square", "proved", "convex", pick),
]


def rows():
    """What the tables say, the function and its shape."""
    for row in (*TABLE, *MONOTONE, *HERE[: len(FALLING)]):
        shape = getattr(row, "shape", (3,))
        if np.prod(shape) <= 12:
            yield row, lambda x, row=row: row.function(ENGINE.xp, x), shape
    for row in (*TORCH_TABLE, *HERE[len(FALLING) :]):
        if row.name not in NOT_CAUGHT:
            yield row, row.function, (3,)


def is_wrong(row, graph):
    """Whether the walk does not say of a row what the table says."""
    walk = Walk(graph, RULES, recognize, Refinements(graph.inputs, sorts))
    [value] = walk.run([variable(graph.shapes[graph.inputs[0]])])
    if isinstance(row, Monotone):
        return set(np.ravel(monotonicity(value))) != {row.monotonicity}
    return curvature_word(value) != row.curvature


def names_in(graph):
    """The operations of a graph, and the operators of ATen that were written in them."""
    return {name for operation in graph.operations for name in (operation.name, operation.source)}


@lru_cache(maxsize=1)
def without_a_fault():
    """The rows and the random programs with their graphs, written by the lowerings as they are."""
    rng = np.random.default_rng(7)
    drawn = [random_program(rng) for _ in range(PROGRAMS)]
    table = [(row, function, shape, traced_function(function, shape)) for row, function, shape in rows()]
    return table, [(size, program, traced(size, program)) for size, program in drawn]


class Fault(NamedTuple):
    """A fault, whether it is in a lowering, so that programs are to be written anew, and where it can show.

    Args:
        change: puts it in, given `monkeypatch`.
        again: whether it is in a lowering.
        names: of the operations or operators of which a program has to have one; all programs where it is empty.
    """

    change: Callable
    again: bool = False
    names: frozenset = frozenset()


def noticed(fault):
    """Where a fault shows first, "" where it does not."""
    table, programs = without_a_fault()

    def concerns(graph):
        return not fault.names or fault.names & names_in(graph)

    for row, function, shape, graph in table:
        if concerns(graph) and is_wrong(row, traced_function(function, shape) if fault.again else graph):
            return row.name
    for number, (size, program, graph) in enumerate(programs):
        if concerns(graph):
            graph = traced(size, program) if fault.again else graph
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
    return Value(*(part.reshape(-1)[::-1].reshape(part.shape) for part in (value.lower, value.upper, value.facts)))


def narrower(value):
    """Bounds around one end alone."""
    ends = np.where(np.isfinite(value.lower), value.lower, value.upper)
    held = np.where(np.isfinite(ends) & ~value.constant, ends, value.lower)
    return settle(held, np.where(np.isfinite(ends) & ~value.constant, ends, value.upper), value.facts)


ALWAYS_BOUNDED = ("sigmoid", "tanh", "erf", "erfc", "sin", "cos", "sign")
MOVING = ("reshape", "permute", "expand", "flip", "roll", "slice", "cat", "index_select", "gather", "index")
TRUTH = ("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not", "bitwise_and")
# Of whole or truth values, of places, of pieces of models: nothing but bounds can be wrong there.
PLACES = ("argmax", "argmin", "argcummax", "argcummin", "any", "all", "isfinite", "bitwise_or", "bitwise_not")
SEEN_TWICE = ("to", "where", "cond", "convolution", "round", "ceil", "lgamma", "digamma", "erf", "erfc", "cos")
OF_CONSTANTS = ("inverse", "cholesky", "det", "any-other")

CURVED = [
    name
    for name in RULES
    if name not in (*MOVING, *TRUTH, *PLACES, *SEEN_TWICE, *OF_CONSTANTS) and RULES[name].law != "moved"
]


def rule(name, change):
    return Fault(lambda patch: patch.setitem(RULES, name, over(RULES[name], change)), names=frozenset({name}))


def lowered(name, function):
    return Fault(lambda patch: patch.setitem(LOWERINGS, name, function), True, frozenset({name}))


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


def without(name):
    """An operator without one of its arguments."""

    def change(original):
        def lower(call):
            call.arguments.pop(name, None)
            return original(call)

        return lower

    return change


MUTANTS = {
    **{f"{name} is convex": rule(name, bolder(CONVEX)) for name in CURVED},
    **{f"{name} is concave": rule(name, bolder(CONCAVE)) for name in CURVED},
    **{f"{name} is turned": rule(name, opposite) for name in CURVED if name != "sin"},
    # log10 is by the rule of log2
    **{f"{name} rises": rule(name, bolder(RISING)) for name in CURVED if name != "log10"},
    **{f"{name} moves elsewhere": rule(name, reversed_) for name in MOVING if name in RULES},
    **{f"{name} is constant": rule(name, bolder(CONSTANT)) for name in TRUTH},
    "where is convex": rule("where", bolder(CONVEX)),
    "a cast is convex": rule("to", bolder(CONVEX)),
    "a convolution is convex": rule("convolution", bolder(CONVEX)),
    "the visible step of softplus": Fault(
        lambda patch: patch.setattr(rules.math, "log1p", lambda u: 0.0), names=frozenset({"softplus"})
    ),
    "elu of every alpha": lowered("elu", without("alpha")(LOWERINGS["elu"])),
    "a difference is turned": lowered("sub", swapped("sub")),
    "a reversed difference is not": lowered("rsub", LOWERINGS["sub"]),
    "a quotient is turned": lowered("div", swapped("div")),
    **{
        f"{name} without alpha": lowered(name, without("alpha")(LOWERINGS[name]))
        for name in ("add", "sub", "addmm", "addmv")
    },
    "a normalization without its weight": lowered(
        "native_batch_norm", without("weight")(LOWERINGS["native_batch_norm"])
    ),
    "addmm without beta": lowered("addmm", without("beta")(LOWERINGS["addmm"])),
    "clamp without its upper end": lowered("clamp", without("max")(LOWERINGS["clamp"])),
    "clamp without its lower end": lowered("clamp", without("min")(LOWERINGS["clamp"])),
    "the largest for the smallest": lowered("topk", without("largest")(LOWERINGS["topk"])),
    "sorted the other way": lowered("sort", without("descending")(LOWERINGS["sort"])),
    "max is min": lowered("max", LOWERINGS["min"]),
    "amax is amin": lowered("amax", LOWERINGS["amin"]),
    "cummax is cummin": lowered("cummax", LOWERINGS["cummin"]),
    "relu is none": lowered("relu", LOWERINGS["clone"]),
    "masked fill is none": lowered("masked_fill", LOWERINGS["clone"]),
    "where is turned": Fault(
        lambda patch: patch.setitem(
            RULES, "where", RULES["where"]._replace(apply=lambda w, o, i: [calculus.choose(i[0], i[1:])])
        ),
        names=frozenset({"where"}),
    ),
    "leaky relu is always a maximum": lowered(
        "leaky_relu",
        lambda call: [
            call.op("maximum", call["self"], call.op("mul", call["self"], call.number(call["negative_slope"])))
        ],
    ),
    "log-sigmoid is the sigmoid": lowered("log_sigmoid_forward", lambda c: [c.op("sigmoid", c["self"]), c["self"]]),
    "a norm of any order": lowered("linalg_vector_norm", LOWERINGS["sum"]),
    "a mean is a maximum": lowered("mean", LOWERINGS["amax"]),
    "a variance is not divided": lowered("var", LOWERINGS["sum"]),
    "slices are one off": lowered("slice", shifted),
    "reshape forgets its order": rule("reshape", reversed_),
    "atoms match by their last operation": Fault(
        lambda patch: patch.setattr(
            atoms, "match", lambda reference, g, value: list(g.makers[value].inputs)[-1:] * len(reference.inputs)
        )
    ),
}


@pytest.mark.parametrize("again", [False, True])
def test_without_a_fault_nothing_is_noticed(again):
    assert noticed(Fault(lambda patch: None, again)) == ""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_is_noticed(mutant, monkeypatch):
    without_a_fault()
    MUTANTS[mutant].change(monkeypatch)
    assert noticed(MUTANTS[mutant]) != ""

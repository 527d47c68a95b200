"""Loops and branches: what is known after them of what is known before."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from convexmoe.convexity import Inputs, Operation, Rule, Value, Walk, facts, rules

from .trace import graph_of

# Steps of a scan that are walked one by one, a quarter of them for each loop around two.
LARGEST_UNROLLED = 64
ROUNDS = 40  # of the search for what every step of a loop leaves true
PATIENCE = 4  # rounds after which a bound that still moves is given up


def _cond(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    return rules.branch(walk, inputs[0], dict(enumerate(map(graph_of, operation.params["branches"]))), inputs[1:])


def _scan(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    params = operation.params
    if "ft_in" in params:  # from JAX 0.12 on: the three parts of what is given, as a tree
        counts = [len([*part]) for part in params["ft_in"].unpack()]
    else:
        counts = [params["num_consts"], params["num_carry"]]
    consts, carry, rows = inputs[: counts[0]], inputs[counts[0] : sum(counts[:2])], inputs[sum(counts[:2]) :]
    graph, length = graph_of(params["jaxpr"]), params["length"]
    if length == 0:
        return [*carry, *(facts.nothing(walk.graph.shapes[n]) for n in operation.outputs[len(carry) :])]
    if length > LARGEST_UNROLLED >> 2 * max(walk.depth - 1, 0):
        every = [facts.either_over(row, (0,)).reshape(*row.shape[1:]) for row in rows]
        invariant, results = _invariant(carry, lambda now: walk.inner(graph, [*consts, *now, *every]))
        return [*invariant, *(result.broadcast((length, *result.shape)) for result in results[len(carry) :])]
    outputs: list[Inputs] = []
    turn = -1 if params["reverse"] else 1
    for step in range(length)[::turn]:
        results = walk.inner(graph, [*consts, *carry, *(value.map(itemgetter(step)) for value in rows)])
        carry = results[: len(carry)]
        outputs.append(results[len(carry) :])
    return [*carry, *(facts.join(values, np.stack) for values in zip(*outputs[::turn], strict=True))]


def _while(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A loop whose end does not depend on the chosen input makes a number of steps that does not either."""
    params = operation.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_cond, of_body, carry = inputs[:first], inputs[first:second], inputs[second:]
    body, cond = graph_of(params["body_jaxpr"]), graph_of(params["cond_jaxpr"])
    invariant, _ = _invariant(carry, lambda now: walk.inner(body, [*of_body, *now]))
    [goes_on] = walk.inner(cond, [*of_cond, *invariant])
    return invariant if goes_on.constant.all() else [facts.mixture([value]) for value in invariant]


def _invariant(carry: Inputs, body: Callable[[Inputs], Inputs]) -> tuple[Inputs, Inputs]:
    """Return what holds of the carry before and after every step of a loop, and what a step gives from it."""
    for round_number in range(ROUNDS):
        results = body(carry)
        weaker = [facts.either([old, new]) for old, new in zip(carry, results, strict=False)]
        pairs = zip(carry, weaker, strict=True)
        if all((a == b).all() for old, new in pairs for a, b in zip(old.parts, new.parts, strict=True)):
            return carry, results
        if round_number >= PATIENCE:
            weaker = [_widen(old, new) for old, new in zip(carry, weaker, strict=True)]
        carry = weaker
    carry = [facts.nothing(value.shape) for value in carry]
    return carry, body(carry)


def _widen(old: Value, new: Value) -> Value:
    """Return `new` without the bounds that moved, but with their signs."""
    lower = np.where(new.lower < old.lower, np.where(new.lower >= 0, 0.0, -np.inf), new.lower)
    upper = np.where(new.upper > old.upper, np.where(new.upper <= 0, 0.0, np.inf), new.upper)
    return Value(lower, upper, new.facts)


def _platform(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """The index of the platform, which the program does not know."""
    return [facts.parameter((), 0.0, len(operation.params["platforms"]) - 1.0)]


CONTROL_RULES: dict[str, Rule] = {
    "cond": Rule("choice", _cond),
    "platform_index": Rule("constant", _platform),
    "scan": Rule("loop", _scan),
    "while": Rule("loop", _while),
}

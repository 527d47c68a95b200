"""Loops and branches: what is known after them of what is known before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convexmoe.convexity.facts import Value, either, either_over, merge, mixture, nothing
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk

from .moves import parts
from .trace import graph_of

LARGEST_UNROLLED = (
    64  # steps of a scan that are walked one by one, a quarter of them for each loop around two
)
ROUNDS = 40  # of the search for what a loop keeps
PATIENCE = 4  # rounds after which a bound that still moves is given up

Inputs = list[Value]


def _cond(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    which, *arguments = inputs
    graphs = [graph_of(branch) for branch in operation.params["branches"]]
    if which.known.all():
        taken = int(np.clip(which.lower, 0, len(graphs) - 1))
        return walk.inner(graphs[taken], arguments)
    results = zip(*(walk.inner(graph, arguments) for graph in graphs), strict=True)
    join = either if which.constant.all() else mixture
    return [join(list(cases)) for cases in results]


def _scan(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    params = operation.params
    consts = inputs[: params["num_consts"]]
    carry = inputs[params["num_consts"] : params["num_consts"] + params["num_carry"]]
    rows = inputs[params["num_consts"] + params["num_carry"] :]
    graph, length = graph_of(params["jaxpr"]), params["length"]
    if length == 0:
        return [*carry, *(nothing(walk.graph.shapes[n]) for n in operation.outputs[len(carry) :])]
    if length > LARGEST_UNROLLED >> 2 * max(walk.depth - 1, 0):
        mean = [either_over(row, (0,)).reshape(*row.shape[1:]) for row in rows]
        kept, results = _kept(carry, lambda now: walk.inner(graph, [*consts, *now, *mean]))
        return [*kept, *(result.broadcast((length, *result.shape)) for result in results[len(carry) :])]
    gathered: list[Inputs] = []
    order = range(length - 1, -1, -1) if params["reverse"] else range(length)
    for step in order:
        row = [Value(*(part[step] for part in parts(value))) for value in rows]
        results = walk.inner(graph, [*consts, *carry, *row])
        carry = results[: len(carry)]
        gathered.append(results[len(carry) :])
    gathered = gathered[::-1] if params["reverse"] else gathered
    stacks = [
        Value(*(np.stack(group) for group in zip(*map(parts, values), strict=True)))
        for values in zip(*gathered, strict=True)
    ]
    return [*carry, *stacks]


def _while(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """A loop whose end does not depend on the chosen input makes a number of steps that does not either."""
    params = operation.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_cond, of_body, carry = inputs[:first], inputs[first:second], inputs[second:]
    body, cond = graph_of(params["body_jaxpr"]), graph_of(params["cond_jaxpr"])
    kept, _ = _kept(carry, lambda now: walk.inner(body, [*of_body, *now]))
    [goes_on] = walk.inner(cond, [*of_cond, *kept])
    return kept if goes_on.constant.all() else [mixture([value]) for value in kept]


def _kept(carry: Inputs, body: Callable[[Inputs], Inputs]) -> tuple[Inputs, Inputs]:
    """Return what holds of the carry before and after every step of a loop, and what a step gives from it."""
    for round_number in range(ROUNDS):
        results = body(carry)
        joined = [either([old, new]) for old, new in zip(carry, results, strict=False)]
        if all(_equal(old, new) for old, new in zip(carry, joined, strict=True)):
            return carry, results
        if round_number >= PATIENCE:
            joined = [_widened(old, new) for old, new in zip(carry, joined, strict=True)]
        carry = joined
    carry = [nothing(value.shape) for value in carry]
    return carry, body(carry)


def _equal(one: Value, other: Value) -> bool:
    return all(bool((a == b).all()) for a, b in zip(parts(one), parts(other), strict=True))


def _widened(old: Value, new: Value) -> Value:
    """Return `new` without the bounds that moved, but with their signs."""
    free = nothing(new.shape)
    lower = np.where(new.lower < old.lower, np.where(new.lower >= 0, 0.0, free.lower), new.lower)
    upper = np.where(new.upper > old.upper, np.where(new.upper <= 0, 0.0, free.upper), new.upper)
    return merge(np.ones(new.shape, bool), Value(lower, upper, new.facts), new)


CONTROL_RULES: dict[str, Rule] = {
    "cond": Rule("choice", _cond),
    "scan": Rule("loop", _scan),
    "while": Rule("loop", _while),
}

"""Branches: what is known after them of what is known before."""

from __future__ import annotations

from convexmoe.convexity.facts import Value, either, mixture
from convexmoe.convexity.graph import Operation
from convexmoe.convexity.walk import Rule, Walk

Inputs = list[Value]


def _cond(walk: Walk, operation: Operation, inputs: Inputs) -> Inputs:
    """`torch.cond`: the first program where the condition holds, else the second."""
    which, *arguments = inputs
    if_true, if_false = operation.params["branches"]
    if which.known.all():
        return walk.inner(if_true if which.lower.all() else if_false, arguments)
    results = zip(*(walk.inner(graph, arguments) for graph in (if_true, if_false)), strict=True)
    join = either if which.constant.all() else mixture
    return [join(list(cases)) for cases in results]


CONTROL_RULES: dict[str, Rule] = {
    "cond": Rule("choice", _cond),
}

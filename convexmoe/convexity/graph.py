"""A program as a list of operations on numbered values, equal operations once.

`match` compares programs operation by operation: names of the user's functions do not exist in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONSTANT_OPERATION = "constant"


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a program.

    Args:
        name: of the primitive; "constant" for a known array, which is its parameter `array`.
        inputs: numbers of the values it takes.
        outputs: numbers of the values it gives.
        params: the static parameters of the primitive.
        source: file, line and function of the user's program, where that is known.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any]
    source: str = ""


@dataclass(eq=False)
class Graph:
    """A program without functions: calls are written out, and what is computed twice stands once.

    Args:
        shapes: of the values, by number.
        dtypes: of the values, by number.
        operations: in an order in which they can run.
        inputs: numbers of the values that go in.
        outputs: numbers of the values that come out.
        makers: value -> the operation that gives it.
        seen: key of an operation -> the operation.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    makers: dict[int, Operation] = field(default_factory=dict)
    seen: dict[Hashable, Operation] = field(default_factory=dict)

    def value(self, shape: tuple[int, ...], dtype: str) -> int:
        """Return the number of a new value."""
        self.shapes.append(tuple(shape))
        self.dtypes.append(dtype)
        return len(self.shapes) - 1

    def constant(self, array: np.ndarray) -> int:
        """Return the number of a known array."""
        array = np.asarray(array)
        kind = array.shape, str(array.dtype)
        key: Hashable = (CONSTANT_OPERATION, *kind, array.tobytes()) if array.size <= 64 else id(array)
        if key not in self.seen:
            self._append(Operation(CONSTANT_OPERATION, (), (self.value(*kind),), {"array": array}), key)
        return self.seen[key].outputs[0]

    def add(
        self,
        name: str,
        inputs: tuple[int, ...],
        params: Mapping[str, Any],
        outputs: list[tuple[tuple[int, ...], str]],
        source: str = "",
        pure: bool = True,
    ) -> tuple[int, ...]:
        """Return the numbers of the outputs, given as shapes and dtypes, of an operation, new or known."""
        key: Hashable = (name, inputs, tuple(sorted(params.items(), key=lambda item: item[0])))
        try:
            operation = self.seen.get(key) if pure else None
        except TypeError:  # a parameter that cannot be hashed
            key, operation = object(), None
        if operation is None:
            numbers = tuple(self.value(shape, dtype) for shape, dtype in outputs)
            operation = self._append(Operation(name, inputs, numbers, params, source), key)
        return operation.outputs

    def _append(self, operation: Operation, key: Hashable) -> Operation:
        self.operations.append(operation)
        self.seen[key] = operation
        for output in operation.outputs:
            self.makers[output] = operation
        return operation

    def array(self, value: int) -> np.ndarray | None:
        """Return the array of a value that is a constant of the program, None for others."""
        is_constant = value in self.makers and self.makers[value].name == CONSTANT_OPERATION
        return self.makers[value].params["array"] if is_constant else None

    def before(self, value: int, stops: Callable[[int], bool] = lambda value: False) -> set[int]:
        """Return the values from which `value` is computed, itself included, not looking behind one that stops."""
        values, open_values = {value}, [value]
        while open_values:
            current = open_values.pop()
            if current in self.makers and not stops(current):
                new = set(self.makers[current].inputs) - values
                values |= new
                open_values.extend(new)
        return values


def equal_params(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sets of static parameters are equal; what cannot be compared is not."""
    return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(other, np.ndarray):
        here, there = np.asarray(value), np.asarray(other)
        return here.dtype == there.dtype and here.shape == there.shape and here.tobytes() == there.tobytes()
    return bool(value is other or (type(value) is type(other) and value == other))


def match(reference: Graph, graph: Graph, value: int) -> list[int] | None:
    """Return the values of `graph` that stand for the inputs of `reference`, where it computes `value`; or None.

    Every operation between them must be there, with the same parameters, literals, shapes and dtypes. An input of the
    reference stands for one value, whatever that is computed from.
    """
    bound: dict[int, int] = {}
    pairs = [(reference.outputs[0], value)]
    inputs = set(reference.inputs)
    while pairs:
        wanted, got = pairs.pop()
        if bound.get(wanted) == got:
            continue
        kinds = [(program.shapes[at], program.dtypes[at]) for program, at in ((reference, wanted), (graph, got))]
        if wanted in bound or kinds[0] != kinds[1]:
            return None
        bound[wanted] = got
        if wanted in inputs:
            continue
        one, other = reference.makers[wanted], graph.makers.get(got)
        if other is None or one.name != other.name or len(one.inputs) != len(other.inputs):
            return None
        if one.outputs.index(wanted) != other.outputs.index(got) or not equal_params(one.params, other.params):
            return None
        pairs.extend(zip(one.inputs, other.inputs, strict=True))
    return [bound[number] for number in reference.inputs] if inputs <= bound.keys() else None

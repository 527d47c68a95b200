"""The walk through a program that collects what is known of each value, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .calculus import LAWS
from .facts import CONSTANT, REAL, Value, curvature_word, literal, nothing, settle
from .graph import CONSTANT_OPERATION, Graph, Operation

Inputs = list[Value]


class Rule(NamedTuple):
    """What is known of the outputs of a primitive.

    Args:
        law: the name of the sentence in `LAWS` that it applies.
        apply: (walk, operation, values of the inputs) -> values of the outputs.
        elementwise: each element of the output depends on the elements at its place only.
    """

    law: str
    apply: Callable[[Walk, Operation, Inputs], Inputs]
    elementwise: bool = False


class Reason(NamedTuple):
    """Where a value comes from: the fields of its `Step` that are not read off the value."""

    operation: str
    law: str
    inputs: tuple[int, ...]
    source: str
    note: str = ""


class Atom(NamedTuple):
    """A part of a program that is a function whose curvature is known as a whole.

    Args:
        name: of the atom.
        law: the name of the sentence in `LAWS`.
        inputs: the numbers of the values it is applied to.
        apply: their values -> the value of the atom.
    """

    name: str
    law: str
    inputs: tuple[int, ...]
    apply: Callable[[list[Value]], Value]


@dataclass(frozen=True)
class Step:
    """One step of a proof.

    Args:
        number: of the value it gives.
        operation: the primitive or the atom.
        law: the rule, in words.
        inputs: numbers of the values it takes.
        curvature: "constant", "affine", "convex", "concave" or "unknown": that of the weakest element.
        sign: ">= 0", "> 0" and so on, "" where no sign is known of all elements.
        shape: of the value.
        source: file, line and function in the user's program.
        note: why a rule could not be applied, "" where it could.
    """

    number: int
    operation: str
    law: str
    inputs: tuple[int, ...]
    curvature: str
    sign: str
    shape: tuple[int, ...]
    source: str
    note: str = ""


Atoms = Callable[[Graph, Operation, int], Iterable[Atom]]
Refine = Callable[["Walk", Operation, int], "tuple[str, Value] | None"]


class Walk:
    """What is known of the values of a graph.

    Args:
        graph: the program.
        rules: primitive -> rule.
        atoms: recognizes parts of a program; None for no atoms.
        refine: what whole-program arguments add to a value that the rules leave open; None for nothing.

    Attributes:
        values: what is known of each value, by number.
        reasons: how it was found, by number.
        inside: what stopped the last inner walk.
        depth: how many loops and branches surround the program.
    """

    def __init__(
        self, graph: Graph, rules: Mapping[str, Rule], atoms: Atoms | None = None, refine: Refine | None = None
    ) -> None:
        self.graph, self.rules, self.atoms, self.refine = graph, rules, atoms, refine
        self.values: dict[int, Value] = {}
        self.reasons: dict[int, Reason] = {}
        self.inside = ""
        self.depth = 0

    def steps(self) -> dict[int, Step]:
        """Return the steps of the proof by the number of the value they give, in the order of computation."""
        steps = {}
        for number in sorted(self.reasons):
            reason, value = self.reasons[number], self.values[number]
            note = "" if value.curved.all() else reason.note
            about = (curvature_word(value), sign_text(value), value.shape, reason.source, note)
            steps[number] = Step(number, reason.operation, reason.law, tuple(reason.inputs), *about)
        return steps

    def run(self, inputs: list[Value]) -> list[Value]:
        """Return what is known of the outputs, given what is known of the inputs."""
        for number, value in zip(self.graph.inputs, inputs, strict=True):
            self.values[number] = value.broadcast(self.graph.shapes[number])
        for operation in self.graph.operations:
            self.step(operation)
        return [self.values[number] for number in self.graph.outputs]

    def inner(self, graph: Graph, inputs: list[Value]) -> list[Value]:
        """Return what is known of the outputs of another program, such as the body of a loop."""
        walk = Walk(graph, self.rules, self.atoms)
        walk.depth = self.depth + 1
        outputs = walk.run(inputs)
        reasons = sorted(walk.reasons.items())
        notes = [
            f"inside, {reason.operation}: {reason.note}"
            for number, reason in reasons
            if reason.note and not walk.values[number].curved.all()
        ]
        self.inside = notes[0] if notes else ""
        return outputs

    def step(self, operation: Operation) -> None:
        """Find what is known of the outputs of one operation."""
        values, note = self._apply_rule(operation)
        rule = self.rules.get(operation.name)
        law = LAWS["constant" if operation.name == CONSTANT_OPERATION else rule.law if rule else "none"]
        for number, value in zip(operation.outputs, values, strict=True):
            self.values[number] = value
            name, sentence, inputs = operation.name, law, operation.inputs
            try:
                if not value.curved.all():
                    name, sentence, inputs = self._recognize(operation, number) or (name, sentence, inputs)
                if not self.values[number].curved.all():
                    sentence = self._refine(operation, number) or sentence
            except Exception as error:  # as in `_apply_rule`
                note = f"{type(error).__name__} beyond the rule for {operation.name!r}: {error}"
            self.reasons[number] = Reason(name, sentence, inputs, operation.source, note)

    def _recognize(self, operation: Operation, number: int) -> tuple[str, str, tuple[int, ...]] | None:
        """Add what is known of the first atom that a value is; return its name, its law and its inputs."""
        for atom in self.atoms(self.graph, operation, number) if self.atoms else ():
            value = atom.apply([self.values[given] for given in atom.inputs])
            if value.shape == self.values[number].shape:
                self.values[number] = combine(self.values[number], value)
                return atom.name, LAWS[atom.law], atom.inputs
        return None

    def _refine(self, operation: Operation, number: int) -> str:
        """Add what the whole program says of a value; return the law, "" for none."""
        refinement = self.refine(self, operation, number) if self.refine else None
        if refinement is None:
            return ""
        law, value = refinement
        self.values[number] = combine(self.values[number], value)
        return LAWS[law]

    def _apply_rule(self, operation: Operation) -> tuple[list[Value], str]:
        """Return what the rule of an operation gives, and a note where there is none that applies."""
        kinds = [(self.graph.shapes[number], self.graph.dtypes[number]) for number in operation.outputs]
        if operation.name == CONSTANT_OPERATION:
            array = operation.params["array"]
            value = array_value(array)
            return [value], "" if value.has(REAL).all() else "a constant is not a finite number"
        rule = self.rules.get(operation.name)
        inputs = [self.values[number] for number in operation.inputs]
        if rule is None:
            return [nothing(shape) for shape, _ in kinds], f"no rule for the primitive {operation.name!r}"
        self.inside = ""
        try:
            if rule.elementwise:
                inputs = [compact(value) for value in inputs]
            outputs = rule.apply(self, operation, inputs)
            return [
                in_range(value.broadcast(shape), dtype) for value, (shape, dtype) in zip(outputs, kinds, strict=True)
            ], self.inside
        except Exception as error:  # a fault of a rule must not become a proof
            note = f"the rule for {operation.name!r} failed: {type(error).__name__}: {error}"
            return [nothing(shape) for shape, _ in kinds], note


def array_value(array: np.ndarray) -> Value:
    """Return the value of a known array; of an array that holds no real numbers nothing is known."""
    if array.dtype.kind not in "fiub" and array.dtype.kind != "V":
        return nothing(array.shape)
    try:
        return literal(array)
    except (TypeError, ValueError):
        return nothing(array.shape)


def compact(value: Value) -> Value:
    """Return one element of a value whose elements are all alike and stored once."""
    if value.facts.size > 1 and not any(any(part.strides) for part in value.parts):
        return value.map(lambda part: part[(0,) * part.ndim])
    return value


def in_range(value: Value, dtype: str) -> Value:
    """Return a value without its facts where its integers may overflow, those of a sum of truth values included."""
    if not dtype.startswith(("int", "uint", "bool")):
        return value
    least, most = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    fits = (value.lower >= least) & (value.upper <= most)
    if fits.all():
        return value
    # A constant that overflows remains a constant.
    facts = np.where(fits, value.facts, value.facts & np.uint16(0)).astype(np.uint16)
    facts |= np.where(~fits & value.constant, np.uint16(REAL | CONSTANT), np.uint16(0))
    lower = np.where(fits, value.lower, float(least))
    return settle(lower, np.where(fits, value.upper, float(most)), facts)


def combine(one: Value, other: Value) -> Value:
    """Return what is known of a value of which two things are known."""
    lower, upper = np.maximum(one.lower, other.lower), np.minimum(one.upper, other.upper)
    return settle(lower, upper, one.facts | other.facts)


def sign_text(value: Value) -> str:
    """Return the sign that all elements have."""
    for holds, text in ((value.positive, "> 0"), (value.negative, "< 0"), (value.nonnegative, ">= 0")):
        if holds.all():
            return text
    return "<= 0" if value.nonpositive.all() else ""

"""The walk through a program that collects what is known of each value, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .calculus import LAWS
from .facts import CONSTANT, REAL, Value, array_value, compact, curvature_word, is_narrow, nothing, settle
from .graph import CONSTANT_OPERATION, Graph, Operation
from .piecewise import recognize_pieces
from .shifts import recognize_shift

Inputs = list[Value]
# The rule that computes an operation of known numbers, and the laws of those that may leave more open than that does.
FOLD, FOLDED = "any-other", ("none", "factors", "order")
NOT_REAL = "it may be no real number: `domain=Box(...)` can leave out where"


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
    """A function whose curvature is known as a whole, to be compared with a program at given shapes.

    Args:
        name: of the atom.
        law: the name of the sentence in `LAWS`.
        function: to be traced.
        kinds: shapes and dtypes of its arguments.
        apply: what is known of it, from what is known of its arguments.
    """

    name: str
    law: str
    function: Callable[..., Any]
    kinds: tuple[tuple[tuple[int, ...], str], ...]
    apply: Callable[[Inputs], Value]


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


Atoms = Callable[[Graph, Operation, int], Iterable[tuple[Atom, list[int]]]]  # with what the atom is applied to
Refine = Callable[["Walk", Operation, int], "tuple[str, Value] | None"]


class Walk:
    """What is known of the values of a graph.

    Args:
        graph: the program.
        rules: primitive -> rule.
        atoms: recognizes parts of a program; None for no atoms.
        refine: what whole-program arguments add to a value that the rules leave open; None for nothing.
        in_pieces: look at functions that are written in pieces, or with a shift.

    Attributes:
        values: what is known of each value, by number.
        reasons: how it was found, by number.
        inside: what stopped the last inner walk.
        depth: how many loops and branches surround the program.
    """

    def __init__(
        self,
        graph: Graph,
        rules: Mapping[str, Rule],
        atoms: Atoms | None = None,
        refine: Refine | None = None,
        in_pieces: bool = True,
    ) -> None:
        self.graph, self.rules, self.atoms, self.refine = graph, rules, atoms, refine
        self.in_pieces = in_pieces
        self.values: dict[int, Value] = {}
        self.reasons: dict[int, Reason] = {}
        self.inside = ""
        self.depth = 0

    def steps(self) -> dict[int, Step]:
        """Return the steps of the proof by the number of the value they give, in the order of computation."""
        steps = {}
        for number, (operation, law, inputs, source, note) in sorted(self.reasons.items()):
            value = self.values[number]
            about = (curvature_word(value), sign_text(value), value.shape, source)
            steps[number] = Step(number, operation, law, inputs, *about, "" if value.curved.all() else note)
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
        notes = (
            f"inside, {reason.operation}: {reason.note}"
            for number, reason in sorted(walk.reasons.items())
            if reason.note and not walk.values[number].curved.all()
        )
        self.inside = next(notes, "")
        return outputs

    def evaluate_again(self, number: int, given: dict[int, Value], in_pieces: bool = True) -> Value:
        """Return what is known of a value where some values are given anew, and others follow from them."""
        part = Walk(self.graph, self.rules, self.atoms, in_pieces=in_pieces)
        part.values = {key: value for key, value in self.values.items() if value.constant.all()} | given
        needed = self.graph.before(number, part.values.__contains__)
        for operation in self.graph.operations:
            if any(output in needed and output not in part.values for output in operation.outputs):
                part.step(operation)
        return part.values[number]

    def step(self, operation: Operation) -> None:
        """Find what is known of the outputs of one operation."""
        values, law, note = self._fold(operation, *self._apply_rule(operation))
        for number, value in zip(operation.outputs, values, strict=True):
            self.values[number] = value
            reason = Reason(operation.name, LAWS[law], operation.inputs, operation.source, note)
            try:
                if law == "choice" or not value.curved.all():
                    reason = self._recognize(operation, number, reason)
                if self.refine and not self.values[number].curved.all():
                    refinement = self.refine(self, operation, number)
                    if refinement is not None:
                        self.values[number] = combine(self.values[number], refinement[1])
                        reason = reason._replace(law=LAWS[refinement[0]])
            except Exception as error:  # as in `_apply_rule`
                reason = reason._replace(note=f"{type(error).__name__} beyond the rule for {operation.name!r}: {error}")
            self.reasons[number] = reason

    def _recognize(self, operation: Operation, number: int, reason: Reason) -> Reason:
        """Add what is known of the first atom that a value is; return the reason with its name, law and inputs."""
        for atom, inputs in self.atoms(self.graph, operation, number) if self.atoms else ():
            value = atom.apply([self.values[given] for given in inputs])
            if value.shape != self.values[number].shape:
                continue
            before, self.values[number] = self.values[number], combine(self.values[number], value)
            if (self.values[number].facts != before.facts).any():
                return reason._replace(operation=atom.name, law=LAWS[atom.law], inputs=tuple(inputs))
        if not self.in_pieces:
            return reason
        shifted = recognize_shift(self, number)
        if shifted is not None:
            self.values[number] = combine(self.values[number], shifted)
            return reason._replace(law=LAWS["log_sum_exp"])
        pieces = recognize_pieces(self, number)
        if pieces is not None:
            self.values[number] = combine(self.values[number], pieces[1])
            return reason._replace(law=LAWS["pieces"], inputs=pieces[:1])
        return reason

    def _fold(self, operation: Operation, values: list[Value], law: str, note: str) -> tuple[list[Value], str, str]:
        """Return what the rule of an operation gives, or the numbers that it computes of known ones, and why."""
        inputs = [self.values[number] for number in operation.inputs if number in self.values]
        is_open = law in FOLDED and not all(map(is_narrow, values))
        if is_open and FOLD in self.rules and len(inputs) == len(operation.inputs) and all(map(is_narrow, inputs)):
            try:
                return self.rules[FOLD].apply(self, operation, inputs), "folded", ""
            except Exception as error:  # as in `_apply_rule`
                note = note or f"{operation.name!r} of known numbers failed: {type(error).__name__}: {error}"
        return values, law, note

    def _apply_rule(self, operation: Operation) -> tuple[list[Value], str, str]:
        """Return what the rule of an operation gives, its law, and a note where there is none that applies."""
        if operation.name == CONSTANT_OPERATION:
            value = array_value(operation.params["array"])
            return [value], "constant", "" if value.has(REAL).all() else "a constant is not a finite number"
        kinds = [(self.graph.shapes[number], self.graph.dtypes[number]) for number in operation.outputs]
        law, note = "none", f"no rule for the primitive {operation.name!r}"
        if operation.name in self.rules:
            law, apply, elementwise = self.rules[operation.name]
            self.inside = ""
            try:
                inputs = [self.values[number] for number in operation.inputs]
                outputs = apply(self, operation, list(map(compact, inputs)) if elementwise else inputs)
                pairs = zip(outputs, kinds, strict=True)
                values = [in_range(value.broadcast(shape), dtype) for value, (shape, dtype) in pairs]
                lost = all(v.has(REAL).all() for v in inputs) and not all(v.has(REAL).all() for v in values)
                return values, law, self.inside or NOT_REAL * lost
            except Exception as error:  # a fault of a rule must not become a proof
                note = f"the rule for {operation.name!r} failed: {type(error).__name__}: {error}"
        return [nothing(shape) for shape, _ in kinds], law, note


def in_range(value: Value, dtype: str) -> Value:
    """Return a value without its facts where its integers may overflow, those of a sum of truth values included."""
    if not dtype.startswith(("int", "uint", "bool")):
        return value
    least, most = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    fits = (value.lower >= least) & (value.upper <= most)
    if fits.all():
        return value
    # A constant that overflows remains a constant.
    facts = np.where(fits, value.facts, value.constant * np.uint16(REAL | CONSTANT))
    return settle(np.where(fits, value.lower, float(least)), np.where(fits, value.upper, float(most)), facts)


def combine(one: Value, other: Value) -> Value:
    """Return what is known of a value of which two things are known."""
    lower, upper = np.maximum(one.lower, other.lower), np.minimum(one.upper, other.upper)
    return settle(lower, upper, one.facts | other.facts)


def sign_text(value: Value) -> str:
    """Return the sign that all elements have."""
    signs = {"> 0": value.positive, "< 0": value.negative, ">= 0": value.nonnegative, "<= 0": value.nonpositive}
    return next((text for text, holds in signs.items() if holds.all()), "")

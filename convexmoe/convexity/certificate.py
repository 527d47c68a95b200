"""The record of a proof, of its failure, or of a counterexample: text and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .domain import Domain
from .facts import AFFINE, CONCAVE, CONSTANT, CONVEX, FALLING, REAL, RISING, Value
from .segments import TOLERANCES, Violation
from .walk import Step, Walk

EXACT = "in exact arithmetic"
STRENGTHS = ("structural", "numeric")
SILENT = ("broadcast_in_dim", "reshape", "squeeze", "transpose", "convert_element_type", "expand_dims")
LONGEST = 400  # lines of a printed proof
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Output:
    """What is proved of one output, element by element.

    Args:
        name: of the leaf in what the function returns, "" where it returns one array.
        curvature: "constant", "affine", "convex", "concave" or "unknown", `[*shape]`.
        monotonicity: "constant", "nondecreasing", "nonincreasing" or "unknown", in all coordinates of the chosen
            input at once, `[*shape]`.
        sign: "positive", "negative", "zero", "nonnegative", "nonpositive" or "unknown", `[*shape]`.
        lower: lower bound for every value of the chosen input, `[*shape]`.
        upper: upper bound for every value of the chosen input, `[*shape]`.
        per_input: as `monotonicity`, in each coordinate of the chosen input, the others fixed,
            `[*shape, coordinates]`; None where `certify` was not asked for it.
    """

    name: str
    curvature: np.ndarray
    monotonicity: np.ndarray
    sign: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    per_input: np.ndarray | None = None

    @property
    def weakest(self) -> str:
        """What all elements are: "constant", "affine", "convex", "concave", "unknown"."""
        words = set(self.curvature.reshape(-1).tolist()) - {"constant"}
        kinds = ("affine", "convex", "concave") if words else ("constant",)
        return next((kind for kind in kinds if words <= {"affine", kind}), "unknown")


@dataclass(frozen=True, eq=False)
class Certificate:
    """Whether a function is convex, or concave, in its chosen input, and why; `print` shows the proof as a tree.

    Args:
        verdict: "proved", "refuted" or "unknown".
        strength: "structural" (for every value of the parameters, so that no training can break it) or "numeric"
            (for the given values); that of the proof, or of the last attempt.
        reason: the verdict in a sentence.
        outputs: what is proved of each output.
        failed: the first step that has no curvature, None where the verdict is "proved".
        violation: the counterexample of a refutation, else None.
        steps: all steps, in the order of computation; the last are the outputs.
        results: the numbers of the steps that are the outputs.
        domain: where it was looked at, a row of all chosen inputs, and where the outputs are what they are said to be;
            None for everywhere.
        curvature: what was to be proved, "convex" or "concave".
    """

    verdict: str
    strength: str
    reason: str
    outputs: tuple[Output, ...] = ()
    failed: Step | None = None
    violation: Violation | None = None
    steps: tuple[Step, ...] = ()
    results: tuple[int, ...] = ()
    domain: Domain | None = None
    curvature: str = "convex"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.verdict}: {self.reason}"
        for output in self.outputs:
            yield f"  output{output.name and ' ' + output.name} {_shape(output.curvature.shape)}: {_summary(output)}"
        if self.failed is not None:
            yield f"  stops at {_step(self.failed)}"
        if self.violation is not None:
            segment = self.violation
            place = f"{segment.weight:.4g} left + {1 - segment.weight:.4g} right"
            chord = f"the chord from {segment.value_left:.9g} to {segment.value_right:.9g}"
            at = f"output {segment.output} is {segment.value:.9g} at {place}"
            side = "below" if self.curvature == "concave" else "above"
            yield f"  {at}, {segment.gap:.3g} {side} {chord} ({segment.dtype})"
            yield f"    left  {_numbers(segment.left)}"
            yield f"    right {_numbers(segment.right)}"
        yield from self._tree()

    def _tree(self) -> Iterator[str]:
        """Yield the proof, from the outputs back to the input; what was shown above is not shown again."""
        steps = {step.number: step for step in self.steps}
        shown: set[int] = set()
        open_steps = [(number, 0) for number in reversed(self.results)]
        lines = 0
        while open_steps:
            number, depth = open_steps.pop()
            while number in steps and steps[number].operation in SILENT and steps[number].inputs:
                number = steps[number].inputs[0]
            if number not in steps:
                continue
            step, again = steps[number], number in shown
            if lines >= LONGEST:
                yield f"  ... {len(steps)} steps in all: to_json() has them"
                return
            lines += 1
            yield f"  {'  ' * depth}{_step(step)}{' (as above)' if again else ''}"
            if not again and step.curvature != "constant":
                shown.add(number)
                open_steps.extend((given, depth + 1) for given in reversed(step.inputs))

    def to_json(self) -> str:
        """Return everything as JSON, arrays as nested lists; bounds that do not exist are null."""
        record = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "property": self.curvature,
            "arithmetic": EXACT,
            "strength": self.strength,
            "reason": self.reason,
            "domain": self.domain and _plain(self.domain._asdict()),
            "outputs": [_plain(vars(output)) for output in self.outputs],
            "failed": self.failed and vars(self.failed),
            "violation": self.violation and _plain(self.violation._asdict()),
            "steps": [vars(step) for step in self.steps],
            "results": self.results,
        }
        return json.dumps(record, indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return fields, or one of them, as JSON can hold it."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _numbers(array: np.ndarray) -> str:
    return np.array2string(array, precision=6, threshold=12, max_line_width=100000)


def _step(step: Step) -> str:
    """Return a step in a line."""
    sign = f", {step.sign}" if step.sign else ""
    text = f"{step.curvature}{sign}: {step.operation} {_shape(step.shape)}"
    if step.operation not in ("input", "parameter", "constant"):
        text += f"; {step.law}" if step.curvature != "unknown" else f"; {step.note or step.law}"
    return text + (f"  [{step.source}]" if step.source else "")


def _summary(output: Output) -> str:
    parts = []
    for name in ("curvature", "monotonicity", "sign"):
        words = sorted(set(getattr(output, name).reshape(-1).tolist()))
        parts.append(words[0] if len(words) == 1 else f"{name} " + "/".join(words))
    return ", ".join(part for part in parts if part != "unknown") or "unknown"


def word_arrays(value: Value) -> dict[str, np.ndarray]:
    """Return curvature, monotonicity and sign of a value in words, and its bounds."""
    above, below = value.nonnegative, value.nonpositive
    real = value.has(REAL)
    return {
        "curvature": _pick_words(
            (value.constant, "constant"),
            (value.has(AFFINE), "affine"),
            (value.has(CONVEX), "convex"),
            (value.has(CONCAVE), "concave"),
        ),
        "monotonicity": monotonicity(value),
        "sign": _pick_words(
            (above & below & real, "zero"),
            (value.positive, "positive"),
            (value.negative, "negative"),
            (above & real, "nonnegative"),
            (below & real, "nonpositive"),
        ),
        "lower": np.array(value.lower),
        "upper": np.array(value.upper),
    }


def monotonicity(value: Value) -> np.ndarray:
    """Return the monotonicity of a value in words."""
    return _pick_words(
        (value.has(CONSTANT), "constant"), (value.has(RISING), "nondecreasing"), (value.has(FALLING), "nonincreasing")
    )


def _pick_words(*pairs: tuple[Any, str]) -> np.ndarray:
    """Return the word of the first condition that holds, element by element."""
    conditions, words = ([np.asarray(part) for part in column] for column in zip(*pairs, strict=True))
    return np.select(conditions, words, "unknown")


def coarsest_dtype(walk: Walk, dtype: str) -> str:
    """Return the coarsest float dtype through which the input goes, "" where none is coarser than its own.

    A search in float64 is rounded to it as well.
    """
    moving = {walk.graph.dtypes[number] for number, value in walk.values.items() if not value.constant.all()}
    floats = {name for name in moving if name.startswith(("float", "bfloat"))}
    worst = max(floats | {dtype}, key=lambda name: TOLERANCES.get(name, np.inf))
    return "" if TOLERANCES.get(worst, np.inf) <= TOLERANCES.get(dtype, np.inf) else worst


def first_failure(walk: Walk, wanted: int, curvature: int = CONVEX) -> Step | None:
    """Return the step at which the output `wanted` loses its curvature: it has none, and all it takes has.

    Args:
        walk: through the program; wanted: the number of an output.
        curvature: the fact that was to be proved.
    """
    steps, current = walk.steps(), wanted
    if walk.values[current].has(curvature).all() or current not in steps:
        return None
    if walk.values[current].curved.all():  # a curvature, but not the one that is asked for
        return steps[current]
    while behind := [k for k in steps[current].inputs if k in steps and not walk.values[k].curved.all()]:
        current = min(behind)  # the earliest: numbers rise in the order of computation
    return steps[current]

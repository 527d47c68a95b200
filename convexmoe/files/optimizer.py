"""The state of an optimizer by the names of the neutral file: the rule, the steps taken, a moment for each parameter.

Rates, decays and schedules are not state: the program that goes on states its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import describe, dtype_name, fail, one_of, same_keys, whole_number

LARGEST_STEP = 2**31 - 1  # optax counts in int32
DTYPES = ("float16", "bfloat16", "float32", "float64")
MOMENTS = {"adam": ("mu", "nu"), "sgd": ("trace",)}


class OptimizerState(NamedTuple):
    """What an optimizer remembers.

    Args:
        rule: "adam" (Adam, AdamW) or "sgd" (with momentum).
        step: steps taken, >= 0.
        moments: moment -> neutral name -> array, each shaped as its parameter; the moments are `MOMENTS[rule]`.
    """

    rule: str
    step: int
    moments: dict[str, dict[str, Any]]


def check_state(saved: OptimizerState, parameters: dict[str, Any], kinds: Any, rule: str | None = None) -> None:
    """Check that a state has its rule, its step, and a moment for each parameter; all differences are reported at once.

    Args:
        saved: the state.
        parameters: neutral name -> array.
        kinds: of arrays that the framework takes.
        rule: of the optimizer that goes on; None where there is none.
    """
    fix = "Pass what optimizer_state or read_optimizer gave."
    if rule is not None and saved.rule != rule:
        advice = "Make the optimizer that the state is of."
        fail("OptimizerState", "rule", f"{rule!r}, as the optimizer has", repr(saved.rule), advice, TypeError)
    one_of("OptimizerState", "rule", saved.rule, tuple(MOMENTS))
    whole_number("OptimizerState", "step", saved.step, 0, LARGEST_STEP)
    expected: dict[str, tuple] = {}
    got: dict[str, tuple] = {}
    for moment in MOMENTS[saved.rule]:
        expected |= {f"{moment}/{name}": (tuple(p.shape), None) for name, p in parameters.items()}
    for moment, arrays in saved.moments.items():
        for name, value in arrays.items():
            if not isinstance(value, kinds) or dtype_name(value.dtype) not in DTYPES:
                text, wrong = f"arrays of one of {list(DTYPES)}", f"{describe(value)} for {moment}/{name}"
                fail("OptimizerState", "moments", text, wrong, fix, TypeError)
            got[f"{moment}/{name}"] = (tuple(value.shape), dtype_name(value.dtype))
    same_keys("OptimizerState", expected, got)


def steps_taken(counts: set[int], step: Any, fix: str) -> int:
    """Return the number of steps that an optimizer's counts, and `step` where it is given, agree on; 0 without any."""
    if step is not None:
        counts = {*counts, whole_number("OptimizerState", "step", step, 0, LARGEST_STEP)}
    if len(counts) > 1:
        fail("OptimizerState", "step", "one number of steps", f"the counts {sorted(counts)}", fix)
    return next(iter(counts), 0)

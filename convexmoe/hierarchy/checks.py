"""Checks of what a hierarchy is built of, called with, and given by its experts and its fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import check_scalar, describe, fail
from .config import CELMoEConfig, HierarchyLevelConfig
from .records import ExpertResult

OWNER = "HierarchicalCELMoE"
CONVERT = "Convert it to an array of this framework first."


def check_module(name: str, module: Any, kind: type, kind_name: str) -> None:
    """Check that an expert called "level.expert", or the "fusion_module", is a module of the framework."""
    if not isinstance(module, kind):
        takes_levels = name == "fusion_module"
        fix = "Pass a module that takes the list of the levels' outputs." if takes_levels else ""
        fix = fix or "Return an ExpertModule from the factory."
        fail(OWNER, name, f"an {kind_name}", type(module).__name__, fix, TypeError)


def check_model(owner: str, model: Any, kind: type) -> None:
    """Check that `model` is a hierarchy."""
    if not isinstance(model, kind):
        fail(owner, "model", f"a {OWNER}", type(model).__name__, "Pass the model itself.", TypeError)


def check_hidden(hidden: Any, config: CELMoEConfig, kinds: tuple[Any, ...]) -> int:
    """Return the number of samples of the input, an array of one of `kinds`, after its checks."""
    rule = f"[rows, hidden_size={config.hidden_size}] or [rows, length, hidden_size={config.hidden_size}]"
    if not isinstance(hidden, kinds):
        fail(OWNER, "hidden", rule, type(hidden).__name__, CONVERT, TypeError)
    if hidden.ndim not in (2, 3) or hidden.shape[-1] != config.hidden_size:
        fail(OWNER, "hidden", rule, describe(hidden), "Project or reshape it.")
    return hidden.shape[0]


def check_result(result: Any, method: str, kinds: tuple[Any, ...], as_array: Callable[[Any], Any]) -> None:
    """Check what an expert's `method` returned: an array of one of `kinds`, and scalar losses."""
    if not isinstance(result, ExpertResult):
        fail("ExpertModule", method, "an ExpertResult", type(result).__name__, "Wrap the hidden.", TypeError)
    owner, hidden, losses = "ExpertResult", result.hidden, result.losses
    if not isinstance(hidden, kinds):
        fix = "Give the expert's output."
        fail(owner, "hidden", "an array of this framework", type(hidden).__name__, fix, TypeError)
    if not isinstance(losses, Mapping):
        fix = "Leave it out where there are none."
        fail(owner, "losses", "a mapping of names to scalars", describe(losses), fix, TypeError)
    for name, value in losses.items():
        if value is None:
            fail(owner, f"losses[{name!r}]", "a scalar", "None", "Leave it out.", TypeError)
        check_scalar("ExpertModule", f"losses[{name!r}]", as_array(value))


def check_expert_shape(level: HierarchyLevelConfig, given: Sequence[int], width: int, new: Any) -> None:
    """Check that an expert kept all axes of its input, of shape `given`, but the last, and gave the level's width."""
    expected = (*given[:-1], width)
    if tuple(new.shape) != expected:
        fix = "Change the expert, or set hidden_size on the level."
        fail(OWNER, level.name, f"hidden of shape {list(expected)}", describe(new), fix)


def check_fused(fused: Any, rows: int, kinds: tuple[Any, ...]) -> None:
    """Check that a fusion returned an array with a leading axis of samples."""
    shape: Any = fused.shape if isinstance(fused, kinds) else ()
    if len(shape) == 0 or shape[0] != rows:
        rule, fix = f"a fused array of {rows} rows", "Return the fused hidden."
        fail(OWNER, "fusion_module", rule, describe(fused), fix, TypeError)

"""What `convexmoe fit` prints of its results."""

from __future__ import annotations

from typing import Any

from rich.console import JustifyMethod

from convexmoe.training.curvature import CONCAVE

from ..frameworks import LABELS
from ..plots.style import in_digits
from .contradiction import explain_contradiction
from .output import say, tabulate, with_spread
from .pictures import error_key, error_name, model_name, models_of
from .tables import shorten


def print_results(metrics: dict[str, Any]) -> None:
    """Print what metrics.json holds: the test errors side by side, the convexity check, the parity."""
    target, error, rows, covers = metrics["data"]["target"], error_name(metrics), [], metrics["coverage"]
    fitted, key_of = metrics["curvature"]["fitted"], error_key(metrics)
    for key in models_of(metrics):
        spread = metrics[f"{key_of}_spread"][key]
        figure = "exact" if key in metrics["exact"] else with_spread(metrics[key_of][key], spread)
        covered = () if covers is None else (f"{covers[key]:.1%}",)
        size = f"{metrics['parameters'][key]:,}" if key in metrics["parameters"] else ""
        rows.append((model_name(metrics, key), size, figure, _against(metrics, key), *covered))
    title = f"Test error: mean and deviation over {len(metrics['folds'])} folds of {metrics['rows']} rows"
    last: tuple[str, ...] = () if covers is None else ("at or below",)
    heads: dict[str, JustifyMethod] = dict.fromkeys(("model", "parameters", error, "against linear", *last), "right")
    tabulate(heads | {"model": "left"}, rows, title)
    if covers is not None:
        say(f"At or below: the share of held-out rows whose {target} is; the level is {covers['level']:.1%}.")
    gap, parity, ahead = metrics["convexity"]["violation"], metrics["parity"], metrics["hull_ahead"]
    lead = f"ahead of {model_name(metrics, 'linear')} in {ahead['linear']} folds"
    for key, name in (("mlp", "the MLP"), ("boosting", "boosted trees")):
        lead += f", of {name} in {ahead[key]}" if key in ahead else ""
    by = metrics["data"]["weights"]
    say(f"{error} in units of {target}{f', rows weighted by {by}' if by else ''}. The hull is {lead}.")
    if metrics["interval_coverage"]:
        title = "Prediction intervals, measured on the folds"
        kinds: dict[str, JustifyMethod] = {"level": "right", "half-width": "right", "rows held out within it": "right"}
        parts = metrics["interval_coverage"].items()
        levels = [(f"{float(k):.0%}", in_digits(v["half_width"], 3), f"{v['coverage']:.1%}") for k, v in parts]
        tabulate(kinds, levels, title)
    say(f"The saved model is fitted to all rows: {explain_steps(metrics)}.")
    if metrics["shape"] is not None:
        gain = f"where the given one has {metrics['shape_gain']:.2f} times its mean loss"
        say(f"Shape, chosen on rows held out, {gain}: {metrics['shape']}. The folds have it, too, at the usual rate.")
    if metrics["convexity_test"]:
        say(explain_contradiction(metrics["convexity_test"], fitted))
    outcome = "no violation" if gap is None else f"VIOLATED by {gap:.2g}"
    what = "Concavity" if fitted == CONCAVE else "Convexity"
    for_each = f" for each {shorten(metrics['data']['context'])}" if metrics["data"]["context"] else ""
    say(f"{what}{for_each}: {outcome} in {metrics['convexity']['segments']:,} segments.")
    if parity is None:
        other = "PyTorch" if metrics["framework"] == "jax" else "JAX"
        say(f'Parity: not checked, {other} is not installed (in a clone: pip install -e ".[interop]").')
    else:
        start = f"Parity: the saved file, read in {LABELS[parity['framework']]}, predicts the same"
        say(f"{start} within {parity['max_difference']:.1e} of the largest value.")


def explain_steps(metrics: dict[str, Any]) -> str:
    """Return how many steps the saved model was trained for, which one is kept, and why."""
    why = ", the best on rows held out" if metrics["best_step"] else ", the start: none is better on rows held out"
    return f"{metrics['steps_run']:,} of {metrics['plan']['steps']:,} steps, kept step {metrics['best_step']:,}{why}"


def _against(metrics: dict[str, Any], key: str) -> str:
    """Return a test error beside that of linear regression; in proportion to rounding it would say nothing."""
    if "linear" in metrics["exact"]:
        return "" if key in metrics["exact"] else "linear is exact"
    errors = metrics[error_key(metrics)]
    ratio = errors[key] / errors["linear"]
    return f"{ratio - 1:+.1%}" if ratio < 10 else f"{ratio:.3g} times"

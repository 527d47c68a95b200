"""What `convexmoe fit` prints of its results."""

from __future__ import annotations

from typing import Any

from rich.console import JustifyMethod

from convexmoe.training.curvature import CONCAVE

from ..frameworks import LABELS
from .contradiction import explain_contradiction
from .function import LOSSES
from .output import say, tabulate
from .pictures import error_key
from .tables import shorten


def print_results(metrics: dict[str, Any]) -> None:
    """Print what metrics.json holds: the test errors side by side, the convexity check, the parity."""
    target, key_of = metrics["data"]["target"], error_key(metrics)
    error = LOSSES[metrics["plan"]["function"]["loss"]][2]
    errors, rows, covers = metrics[key_of], [], metrics["coverage"]
    fitted, plane = metrics["curvature"]["fitted"], "linear regression" if error == "RMSE" else "linear, the same loss"
    for key, name in {"hull": f"{fitted} mixture", "linear": plane, "mlp": "MLP", "boosting": "boosted trees"}.items():
        if key not in errors:
            continue
        form = ".2f" if 0.1 <= errors[key] < 1000 else ",.0f" if 1000 <= errors[key] < 1e7 else ".3g"
        figure = f"{errors[key]:{form}} ± {metrics[f'{key_of}_spread'][key]:{form}}"
        figure = "exact" if key in metrics["exact"] else figure
        covered = () if covers is None else (f"{covers[key]:.1%}",)
        size = metrics["parameters"].get(key)
        rows.append((name, "" if size is None else f"{size:,}", figure, _against(metrics, key), *covered))
    title = f"Test error: mean and deviation over {len(metrics['folds'])} folds of {metrics['rows']} rows"
    heads: dict[str, JustifyMethod] = {name: "right" for name in ("model", "parameters", error, "against linear")}
    heads["model"] = "left"
    tabulate(heads if covers is None else heads | {"at or below": "right"}, rows, title)
    if covers is not None:
        say(f"At or below: the share of held-out rows whose {target} is; the level is {covers['level']:.1%}.")
    gap, parity = metrics["convexity"]["violation"], metrics["parity"]
    ahead = metrics["hull_ahead"]
    lead = f"ahead of {plane} in {ahead['linear']} folds"
    for key, name in (("mlp", "the MLP"), ("boosting", "boosted trees")):
        lead += f", of {name} in {ahead[key]}" if key in ahead else ""
    by = metrics["data"]["weights"]
    say(f"{error} in units of {target}{f', rows weighted by {by}' if by else ''}. The mixture is {lead}.")
    if metrics["interval_coverage"]:
        title = "Prediction intervals, measured on the folds"
        kinds: dict[str, JustifyMethod] = {"level": "right", "half-width": "right", "rows held out within it": "right"}
        parts = metrics["interval_coverage"].items()
        tabulate(
            kinds, [(f"{float(k):.0%}", f"{v['half_width']:.3g}", f"{v['coverage']:.1%}") for k, v in parts], title
        )
    kept = f"kept step {metrics['best_step']}, the best on rows held out"
    say(f"The saved model is fitted to all rows: {metrics['steps_run']} steps, {kept}.")
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


def _against(metrics: dict[str, Any], key: str) -> str:
    """Return a test error beside that of linear regression; in proportion to rounding it would say nothing."""
    if "linear" in metrics["exact"]:
        return "" if key in metrics["exact"] else "linear is exact"
    errors = metrics[error_key(metrics)]
    ratio = errors[key] / errors["linear"]
    return f"{ratio - 1:+.1%}" if ratio < 10 else f"{ratio:.3g} times"

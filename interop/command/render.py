"""`convexmoe report`: the pictures of a run, or one page of it, drawn again from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from convexmoe.errors import refuse
from convexmoe.files import inspect
from convexmoe.files.atomic import follow, write_whole
from convexmoe.files.hub import read_certificate
from convexmoe.files.schema import ANY, has_form
from convexmoe.training.curvature import CONCAVE, CONVEX

from .. import frameworks
from .design import Design
from .doctor import version_of
from .function import LOSSES
from .options import FrameworkOption
from .output import conclude, say
from .page import build_page
from .pictures import draw_report, error_key, see_report
from .report_rows import ReportRows
from .saved_model import design_of, explain_function, read_model

RUN_HELP = "The folder that `convexmoe fit` wrote."
HTML_HELP = "One page with everything in it, RUN/report.html."
_ERRORS: dict[str, Any] = {"": {"hull": float, ANY: float}, "_spread": {ANY: float}, "_folds": {ANY: [float]}}
_FORM: dict[str, Any] = {  # of metrics.json
    "data": {"name": str, "target": str, "columns": [str], "context": [str], "weights": (None, str)},
    "plan": {"petals": int, "depth": int, "steps": int, "seed": int, "curvature": str}
    | {"function": {"loss": tuple(LOSSES), "number": (None, float)}},
    **{"curvature": {"fitted": (CONVEX, CONCAVE)}, "convexity": {"segments": int, "violation": (None, float)}},
    **{"coverage": (None, {ANY: float}), "parity": (None, {"framework": str, "max_difference": float})},
    **{"shape": (None, str), "framework": str, "exact": [str], "folds": [int], "importance": {ANY: float}},
    **{"hull_ahead": {ANY: int}, "parameters": {ANY: int}, "rows": int, "rows_to_train": int},
    **{"best_step": int, "steps_run": int},
}
_LATER: dict[str, Any] = {  # which earlier versions did not write
    "interval_coverage": (None, {ANY: {"half_width": float, "coverage": float}}),
    "convexity_test": (None, {"p_value": float, "at": {ANY: float}}),
    "shape_gain": (None, float),
}


def render_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=RUN_HELP, show_default=False)],
    as_html: Annotated[bool, typer.Option("--html", help=HTML_HELP)] = False,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="in RUN")] = None,
    framework: FrameworkOption = None,
) -> None:
    """Draw the picture of a run again, or with --html one page to show.

    The page has errors, pictures, certificate, options and use.
    """
    side = frameworks.choose(framework)
    if not frameworks.is_installed("matplotlib"):
        frameworks.not_installed("convexmoe report", "matplotlib to draw with", "it", "plot")
    path = run / "model.safetensors"
    with side.quiet():
        model, columns, target, notes = read_model(path, side)
        design = design_of(path, notes, columns, model.config.in_dim)
        metrics = read_metrics(run, design, target)
        report = see_report(side, model, metrics, ReportRows.read(run, len(columns)), design)
        place = run / ("report.html" if as_html else "report.png")
        place = place if out is None else follow(out)
        if place.is_dir():
            refuse("convexmoe report --out", "a file", f"{place}, a directory", "Name a file in it.")
        if place.suffix in (".safetensors", ".json"):
            got, fix = f"{place}, which may be one of a run's own", "Name a .html or a .png."
            refuse("convexmoe report --out", "a file for a page or a picture", got, fix)
        legend = ""
        if as_html:
            sentences = explain_function(inspect(path).config, notes)
            page = build_page(report, notes, sentences, read_certificate(path), version_of("convexmoe") or "")
            write_whole(place, page.encode())
        else:
            legend = draw_report(report, place)
    if legend:
        say(f"No font is installed for some names; in {place.name} {legend}.")
    say(f"Written to {place}")
    conclude({"out": place})


def read_metrics(run: Path, design: Design, target: str) -> dict[str, Any]:
    """Return what metrics.json of a run holds, after the check that it is of its model.

    Raises:
        InputError: there is none, it is damaged, or of another model.
    """
    path, fix = run / "metrics.json", "Name the folder of a convexmoe fit, as it was written."
    try:
        metrics = dict.fromkeys(_LATER) | json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        metrics = {}
    key = error_key(metrics)
    if not has_form(metrics, _FORM | _LATER | {f"{key}{part}": form for part, form in _ERRORS.items()}):
        refuse(path, "the metrics of a run", "none that can be read", fix)
    data, compared = metrics["data"], [metrics[f"{key}_spread"], metrics[f"{key}_folds"], metrics["coverage"]]
    columns = {*metrics["importance"]} == {*design.columns} and (*data["columns"], *data["context"]) == design.columns
    lacks = any(part is not None and metrics[key].keys() - part.keys() for part in compared)
    if not columns or data["target"] != target or lacks:
        refuse(path, "the metrics of the model beside it", "others", fix)
    return metrics

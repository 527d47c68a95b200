"""`convexmoe report`: the pictures of a run, or one page of it, drawn again from its folder."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from convexmoe.errors import refuse
from convexmoe.files import inspect
from convexmoe.files.atomic import follow, write_whole

from .. import frameworks
from .design import Design
from .function import LOSSES
from .options import FrameworkOption
from .output import conclude, say
from .page import build_page
from .pictures import draw_report, see_report
from .report_rows import ReportRows
from .saved_model import design_of, explain_function, read_model

RUN_HELP = "The folder that `convexmoe fit` wrote."
HTML_HELP = "One page with everything in it, RUN/report.html."
_NEEDED: dict[str, Any] = {
    "data": ("name", "target", "columns", "context", "weights"),
    "plan": ("petals", "depth", "steps", "seed", "curvature", "function"),
    "curvature": ("fitted",),
    "convexity": ("segments", "violation"),
    "test_rmse": ("hull",),
    **dict.fromkeys(("test_rmse_spread", "test_rmse_folds"), ("hull",)),
    **dict.fromkeys(("hull_ahead", "parameters", "importance"), ()),
}
_ALL = ("rows", "rows_to_train", "folds", "best_step", "steps_run", "exact", "coverage", "parity", "shape", "framework")


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
            page = build_page(report, notes, sentences, read_certificate(path), installed_version())
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
        metrics = json.loads(path.read_text())
        right = all({*names} <= metrics[part].keys() for part, names in _NEEDED.items())
        right = right and {*_ALL} <= metrics.keys()
        data = metrics["data"]
        same = (*data["columns"], *data["context"]) == design.columns and data["target"] == target
        known = set(metrics["importance"]) == {*design.columns} and metrics["plan"]["function"]["loss"] in LOSSES
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        refuse(path, "the metrics of a run", "none that can be read", fix)
    if not (right and same and known):
        refuse(path, "the metrics of the model beside it", "others", fix)
    return metrics


def read_certificate(model: Path) -> dict[str, Any] | None:
    """Return the certificate beside a model, None where there is none of this very file."""
    path = model.with_name(model.name.removesuffix(".safetensors") + ".certificate.json")
    try:
        record = json.loads(path.read_text())
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        texts = [record["verdict"], record["property"], record["strength"], record["model"]["sha256"]]
        return record if texts[-1] == digest and all(isinstance(text, str) for text in texts[:2]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def installed_version() -> str:
    """Return the version of convexmoe, "" where it is not installed but only on the path."""
    try:
        return version("convexmoe")
    except PackageNotFoundError:
        return ""

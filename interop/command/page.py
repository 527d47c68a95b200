"""The page of a run: one HTML file with everything in it, which asks for nothing and runs nothing.

Every name in it may be of anyone: all text goes through `_text`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from convexmoe.errors import printable

from ..frameworks import LABELS
from ..plots.slices import Effect, draw_slices
from ..plots.style import in_digits, place_legend
from .contradiction import explain_contradiction
from .intervals import SHOWN
from .leverage import read_ranges
from .output import with_spread
from .pictures import (
    Report,
    draw_areas,
    draw_column,
    draw_errors,
    draw_history,
    draw_picture,
    draw_residuals,
    drawable,
    error_key,
    error_name,
    model_name,
    models_of,
    title_of_effects,
)
from .report import explain_steps

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: #222; background: #fff; line-height: 1.5;
  font-family: system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #ccc; }
th { font-weight: 600; } th:first-child { min-width: 6.5rem; }
.numbers td, .numbers th { overflow-wrap: normal; } .numbers th:first-child { overflow-wrap: anywhere; }
figure { margin: 0; break-inside: avoid; } figcaption { font-size: .85rem; color: #444; }
img { max-width: 100%; height: auto; display: block; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .7rem; margin: .3rem 0 .8rem; }
.bad { font-weight: 700; border-left: .3rem solid #D55E00; padding-left: .5rem; }
@media (max-width: 40rem) { body { font-size: .9rem; padding: .6rem; } }
@media print { h2 { break-after: avoid; } pre, tr { break-inside: avoid; } }
"""
_BAND = (
    "Thick line: the mean over the rows, each as it is but for this column. Band: the middle 80 % of them. Dotted: all "
    "other columns at their median. Thin: the groups of petals that win there, each moved until it touches the dotted "
    "line. Ticks: the rows."
)
_SMALL = (4.2, 3.1)


def build_page(
    report: Report, notes: dict[str, Any], sentences: Sequence[str], certificate: dict[str, Any] | None, version: str
) -> str:
    """Return the page.

    Args:
        report: of the run.
        notes: of its model's file; sentences: what the function is known to be.
        certificate: what `convexmoe certify` wrote of this very file, or None.
        version: of convexmoe.
    """
    metrics = report.metrics
    with drawable(report) as (shown, _):
        sections = {
            "How well it predicts": _table_of_errors(metrics) + _figures(
                (draw_picture(draw_errors, shown, size=(5.4, 3.3)), "Errors of each model on rows held out."),
                (
                    draw_picture(draw_residuals, shown, size=(5.4, 3.3)),
                    f"Each row's residual, predicted by a model that did not see it{_count(report)}.",
                ),
            ),
            title_of_effects(report): _effects(report, shown),
            "At values of a context": _slices(report, shown),
            "What is certain": _certainties(metrics, certificate),
            "What was fitted": _facts(metrics, sentences),
            "What it learned from": _ranges(report, notes),
            "How to use the model": _uses(report),
            "How it came about": _figures(
                (draw_picture(draw_history, shown), "Losses of the saved model while it trained."),
                (draw_picture(draw_areas, shown, size=(5.0, 3.3)), "Which group of petals wins where, over the two "
                 "inputs that matter most, the others at their median; marks are rows, lines equal predictions."),
            ),
        }  # fmt: skip
    title = _text(f"{report.target} from {metrics['data']['name']}")
    curvature = metrics["curvature"]["fitted"]
    lead = f"A {curvature} function of {_listed(metrics['data']['columns'])}"
    lead += f", for each value of {_listed(metrics['data']['context'])}" if metrics["data"]["context"] else ""
    parts = [f"<section>\n<h2>{_text(name)}</h2>\n{body}\n</section>" for name, body in sections.items() if body]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">",
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<header>\n<h1>{title}</h1>\n<p>{lead}, learned from {metrics['rows_to_train']:,} rows.</p>\n</header>",
            *parts,
            f"<footer><p>Made by convexmoe {_text(version)}.</p></footer>\n</body>\n</html>\n",
        ]
    )


def _text(value: object) -> str:
    """Return any text as HTML shows it, controls and turned directions written out."""
    return html.escape(printable(str(value)), quote=True)


def _number(value: Any) -> str:
    return _text(in_digits(value) if isinstance(value, float) else value)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(_text, names))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the first of each row heads it, `heads` its columns of numbers."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    lines = ['<table class="numbers">', f"<thead><tr>{head}</tr></thead>"] if heads else ["<table>"]
    for first, *rest in rows:
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    return "\n".join([*lines, "</table>"])


def _figures(*pictures: tuple[bytes, str]) -> str:
    """Return pictures side by side where there is room, each with its caption."""
    figures = [
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for png, caption in pictures
    ]
    return '<div class="grid">\n' + "\n".join(figures) + "\n</div>"


def _count(report: Report) -> str:
    kept, tested = len(report.rows.y), report.metrics["rows"]
    return f"; {kept:,} of {tested:,} rows are shown" if kept < tested else ""


def _table_of_errors(metrics: dict[str, Any]) -> str:
    """Return the test errors side by side, and in how many folds the hull is ahead."""
    key = error_key(metrics)
    rows = []
    for name in models_of(metrics):
        size = metrics["parameters"].get(name)
        spread = metrics[f"{key}_spread"][name]
        figure = "exact" if name in metrics["exact"] else with_spread(metrics[key][name], spread)
        ahead = f"{metrics['hull_ahead'][name]} of {len(metrics['folds'])}" if name in metrics["hull_ahead"] else ""
        cover = metrics["coverage"]
        cells = (figure, ahead, "" if size is None else f"{size:,}")
        rows.append([_text(model_name(metrics, name)), *cells, *([] if cover is None else [f"{cover[name]:.1%}"])])
    error = error_name(metrics)
    heads = [
        "Model",
        f"{error[0].upper()}{error[1:]}",
        "Folds in which the hull errs less",
        "Numbers learned",
        *([] if metrics["coverage"] is None else ["Rows at or below"]),
    ]
    note = f"In units of {_text(metrics['data']['target'])}: mean and deviation over {len(metrics['folds'])} folds of "
    note += f"{metrics['rows']:,} rows, each predicted by models that did not see them."
    return f"{_table(heads, rows)}\n<p>{note}</p>{_intervals(metrics)}"


def _intervals(metrics: dict[str, Any]) -> str:
    """Return the half-widths of prediction intervals, and what they held."""
    found = metrics.get("interval_coverage") or {}
    rows = [
        [f"{level:.0%}", f"± {_number(float(of['half_width']))}", f"{of['coverage']:.1%}"]
        for level, of in ((level, found.get(f"{level:g}")) for level in SHOWN)
        if of
    ]
    heads = ["Interval", "Half-width", "Of rows held out it holds"]
    words = "<p>Prediction intervals, by <code>convexmoe predict --interval</code>:</p>"
    return f"\n{words}\n{_table(heads, rows)}" if rows else ""


def _effects(report: Report, shown: Report) -> str:
    low, high = zip(*(part.limits for part in report.effects), strict=True)

    def draw(axes: Any, part: Effect) -> None:
        draw_column(axes, shown, part)
        if len(low) > 1:
            axes.set_ylim(min(low), max(high))

    pictures = [
        (draw_picture(draw, part, size=_SMALL), f"{report.target} along {name.name}")
        for part, name in zip(shown.effects, report.effects, strict=True)
    ]
    return f"<p>{_text(_BAND)}</p>\n{_figures(*pictures)}"


def _slices(report: Report, shown: Report) -> str:
    def draw(axes: Any, part: Any) -> None:
        draw_slices(axes, part, shown.target)
        place_legend(axes, ncols=3)

    pictures = [
        (draw_picture(draw, part, size=_SMALL), f"{report.target} along {name.along} at values of {name.context}")
        for part, name in zip(shown.slices, report.slices, strict=True)
    ]
    words = "At the quantiles 0.1, 0.5 and 0.9 of each context, all other columns at their median."
    return f"<p>{words}</p>\n{_figures(*pictures)}" if pictures else ""


def _certainties(metrics: dict[str, Any], certificate: dict[str, Any] | None) -> str:
    """Return what was proved, searched and compared."""
    gap, parity, fitted = metrics["convexity"]["violation"], metrics["parity"], metrics["curvature"]["fitted"]
    proof = "Not proved yet: <code>convexmoe certify model.safetensors</code> does it; then make this page anew."
    if certificate is not None:
        words = f"{certificate['verdict']}: {certificate['property']}"
        proof = f"{_text(words)} ({_text(certificate['strength'])}), for the file with the sha256 "
        proof += f"<code>{_text(certificate['model']['sha256'])}</code>."
        proof = proof if certificate["verdict"] == "proved" else f'<span class="bad">{proof}</span>'
    searched = f"no violation in {metrics['convexity']['segments']:,} segments"
    if gap is not None:
        searched = f'<span class="bad">violated by {_number(gap)}</span>'
    same = "not compared: the other framework was not installed"
    if parity is not None:
        other = LABELS.get(parity["framework"], parity["framework"])
        same = f"{_text(other)} predicts the same within {_number(parity['max_difference'])} of the largest value"
    rows = metrics.get("convexity_test")
    asked = [] if rows is None else [["The rows", _text(explain_contradiction(rows, fitted))]]
    search = f"Search for where it is not {_text(fitted)}"
    return _table([], [["Certificate", proof], [search, searched], *asked, ["Both frameworks", same]])


def _facts(metrics: dict[str, Any], sentences: Sequence[str]) -> str:
    """Return the options of the fit, and what the function is known to be."""
    plan, data = metrics["plan"], metrics["data"]
    function = plan["function"]
    number = "" if function["number"] is None else f" {function['number']:g}"
    rows = [
        ["Function", " ".join(map(_text, sentences))],
        ["Context", _listed(data["context"]) or "none"],
        ["Loss", _text(function["loss"]) + number],
        ["Rows weighted by", "all alike" if data["weights"] is None else _text(data["weights"])],
        ["Petals, depth", f"{plan['petals']}, {plan['depth']}"],
        ["Steps", explain_steps(metrics)],
        ["Seed, framework", f"{plan['seed']}, {_text(LABELS.get(metrics['framework'], metrics['framework']))}"],
    ]
    rows += [["Shape, chosen on rows held out", _text(metrics["shape"])]] if metrics["shape"] else []
    gain = metrics.get("shape_gain")  # earlier versions kept none
    rows += [["Loss of the given shape there", f"{gain:.2f} times as large"]] if isinstance(gain, float) else []
    return _table([], rows)


def _ranges(report: Report, notes: dict[str, Any]) -> str:
    """Return the range of each column, and what a shuffle of it costs."""
    importance, unit, design = report.metrics["importance"], _text(report.target), report.design
    columns, growth = report.columns, {part.name: importance[design.columns[part.column]] for part in design.entries}
    ranges = read_ranges(notes, "ranges", (len(columns), 2))
    low, high = read_ranges(notes, "target_range", (2,))
    known = dict(zip(columns, ranges.tolist(), strict=True)) | {"": [float(low), float(high)]}
    rows = []
    for name in [*sorted(columns, key=lambda name: -growth[name]), ""]:
        cells = ["not known" if value != value else _number(value) for value in known[name]]
        costs = [_number(float(growth[name]))] if name else [""]
        rows.append([_text(name) if name else f"{unit} (the target)", *cells, *costs])
    words = "Outside these ranges nothing holds the function but its shape: "
    words += "<code>convexmoe predict --flag</code> marks such rows."
    return f"{_table(['Column', 'Least', 'Largest', 'Error added by a shuffle'], rows)}\n<p>{words}</p>"


def _uses(report: Report) -> str:
    """Return how to load the model in both frameworks, and what the command does with it."""
    inputs, contexts = report.columns[: report.design.in_dim], report.columns[report.design.in_dim :]
    context = ", context" if contexts else ""
    blocks = []
    for name, label in LABELS.items():
        code = f"from convexmoe_{name} import load, predict\n\nmodel = load('model.safetensors')\n"
        code += f"y = predict(model, x{context})  # x: [rows, {len(inputs)}]"
        code += f", context: [rows, {len(contexts)}]" if context else ""
        blocks.append(f"<p>In {label}:</p>\n<pre>{_text(code)}</pre>")
    code = "convexmoe predict model.safetensors DATA.csv --flag\nconvexmoe minimize model.safetensors\n"
    code += "convexmoe certify model.safetensors"
    order = f"<p>Columns of x, in this order: {_listed(inputs)}."
    order += f" Of the context: {_listed(contexts)}." if context else ""
    return f"{order}</p>\n" + "\n".join(blocks) + f"\n<p>By the command:</p>\n<pre>{_text(code)}</pre>"

"""The pictures of a fitted hull: the effect of each column first, then its errors, its history, and its groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from convexmoe.files.atomic import write_whole

from ..frameworks import Framework
from ..plots.fits import plot_history, plot_residuals
from ..plots.groups import GroupMap, draw_groups, map_groups
from ..plots.slices import Effect, Slices, draw_effect, draw_slices, limits_together, see_effect, see_slices
from ..plots.style import COLORS, INK, MARKERS, choose_fonts, columns_for, limits_of, place_legend, plain, tidy
from .design import Design
from .function import LOSSES, SQUARED
from .report_rows import ReportRows
from .tables import shorten

MOST_EFFECTS, MOST_CONTEXTS = 8, 3
MODELS = {"linear": "linear regression", "mlp": "MLP", "boosting": "boosted trees"}
_DPI = 110
_WIDE = 15.0  # inches of report.png
_HEIGHTS = {"effects": 3.1, "contexts": 3.4, "rest": 3.9}


@dataclass(frozen=True)
class Report:
    """What is drawn of a run.

    Attributes:
        metrics: what metrics.json holds; rows: what report.safetensors does.
        design: the columns of the model.
        effects: of the columns that matter most, the most important first.
        slices: for each context shown, along one input.
        groups: which group wins where over the two inputs that matter most.
    """

    metrics: dict[str, Any]
    rows: ReportRows
    design: Design
    effects: tuple[Effect, ...]
    slices: tuple[Slices, ...]
    groups: GroupMap

    @property
    def target(self) -> str:
        """The name of what is predicted."""
        return self.metrics["data"]["target"]

    @property
    def columns(self) -> list[str]:
        """The columns of the model: the inputs, then those of the context."""
        return [*self.design.names]

    def rename(self, labels: dict[str, str]) -> Report:
        """Return the same with other names for some columns and the target."""

        def named(name: str) -> str:
            return labels.get(name, name)

        data = self.metrics["data"]
        data = data | {"target": named(self.target)} | {k: [*map(named, data[k])] for k in ("columns", "context")}
        return replace(
            self,
            metrics=self.metrics | {"data": data},
            effects=tuple(replace(part, name=named(part.name)) for part in self.effects),
            slices=tuple(replace(p, along=named(p.along), context=named(p.context)) for p in self.slices),
            groups=replace(self.groups, names=tuple(map(named, self.groups.names))),
        )


def see_report(framework: Framework, model: Any, metrics: dict[str, Any], rows: ReportRows, design: Design) -> Report:
    """Return what is drawn of a hull, computed from its rows: a line is along a column of numbers."""
    names, D = design.names, design.in_dim
    growth = np.array([metrics["importance"][name] for name in names[: design.num_numbers]])
    order = [int(k) for k in np.argsort(-growth, kind="stable")]
    inputs, contexts = [k for k in order if k < D], [k for k in order if k >= D]
    return Report(
        metrics,
        rows,
        design,
        tuple(see_effect(framework, model, names, rows.x, k) for k in order[:MOST_EFFECTS]),
        tuple(see_slices(framework, model, names, rows.x, inputs[0], k) for k in contexts[:MOST_CONTEXTS]),
        map_groups(framework, model, names, rows.x, inputs[:2]),
    )


def draw_report(report: Report, path: Path) -> str:
    """Write report.png; return what stands for names that no font can draw, "" where there are none."""
    with drawable(report) as (shown, numbered):
        figure = new_figure(_WIDE, _heights(shown))
        sections = dict(zip(_heights(shown), figure.subfigures(len(_heights(shown)), 1, squeeze=False,
                            height_ratios=[*_heights(shown).values()]).ravel(), strict=True))  # fmt: skip
        _fill_effects(sections["effects"], shown)
        if shown.slices:
            sections["contexts"].suptitle(_title_of_slices(shown), x=0.01, ha="left", fontweight="bold")
            panels = sections["contexts"].subplots(1, len(shown.slices), squeeze=False)[0]
            for axes, part in zip(panels, shown.slices, strict=True):
                draw_slices(axes, part, shown.target)
                place_legend(axes, ncols=3)
        panels = sections["rest"].subplots(1, 4, width_ratios=(1.1, 0.9, 1.1, 0.9))
        for axes, draw in zip(panels, (draw_residuals, draw_errors, draw_history, draw_areas), strict=True):
            draw(axes, shown)
        lines = [f"{label}: {plain(ascii(name), 60)}" for name, label in numbered.items()]
        figure.supxlabel("\n".join(lines), fontsize=8)
        write_whole(path, _png(figure))
    return ", ".join(f"{label} is {shorten([name])}" for name, label in numbered.items())


def new_figure(width: float, heights: dict[str, float] | float) -> Any:
    """Return a figure of some inches that needs no display and is in no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = sum(heights.values()) if isinstance(heights, dict) else heights
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_picture(draw: Callable[..., Any], *given: Any, size: tuple[float, float] = (4.4, 3.3)) -> bytes:
    """Return one panel as a PNG: `draw(axes, *given)`."""
    figure = new_figure(*size)
    draw(figure.subplots(), *given)
    return _png(figure)


@contextmanager
def drawable(report: Report) -> Iterator[tuple[Report, dict[str, str]]]:
    """Set fonts that have the letters of all names, and give the report with numbers for names that no font can draw.

    Gives also those names with what stands for them.
    """
    from matplotlib import rc_context

    places = {name: f"column {k + 1}" for k, name in enumerate(report.columns)} | {report.target: "target"}
    names = {*(part.name for part in report.effects), *report.groups.names, report.target}
    names |= {name for part in report.slices for name in (part.along, part.context)}
    families, strange = choose_fonts(plain(name) for name in names)
    numbered = {name: label for name, label in places.items() if name in names and strange & set(plain(name))}
    with rc_context({"font.family": families, "font.size": 9}):
        yield report.rename(numbered), numbered


def draw_column(axes: Any, report: Report, effect: Effect) -> None:
    """Draw the effect of a column; where it is the only one, over the rows themselves."""
    draw_effect(axes, effect, report.target)
    if len(report.columns) == 1:
        style: Any = {"s": 12, "color": COLORS[5], "alpha": 0.5, "linewidths": 0, "label": "the rows"}
        axes.scatter(report.rows.x[:, 0], report.rows.y, **style)
        low, high = limits_of(report.rows.x[:, 0])
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        ends = np.array([effect.limits, limits_of(report.rows.y)])
        axes.set_ylim(ends.min(), ends.max())


def draw_residuals(axes: Any, report: Report) -> None:
    """Draw the residual of each row, predicted without its fold."""
    plot_residuals(report.rows.y, report.rows.predicted["hull"], target=report.target, ax=axes)


def draw_history(axes: Any, report: Report) -> None:
    """Draw the losses of the saved model."""
    loss = report.metrics["plan"]["function"]["loss"]
    words = "mean squared error" if loss == SQUARED else f"mean loss: {loss}"
    step = report.metrics["best_step"]
    plot_history(report.rows.history, best_step=step, loss=f"{words}, normalized", ax=axes)


def draw_areas(axes: Any, report: Report) -> None:
    """Draw which group wins where."""
    draw_groups(axes, report.groups, report.target)


def draw_errors(axes: Any, report: Report) -> None:
    """Draw the test error of each model: a mark a fold, the mean and its deviation."""
    metrics = report.metrics
    key = error_key(metrics)
    models = models_of(metrics)
    for k, name in enumerate(models):
        color, marker, mean = COLORS[k % len(COLORS)], MARKERS[k % len(MARKERS)], metrics[key][name]
        folds = metrics[f"{key}_folds"][name]
        axes.barh(k, mean, height=0.62, color=color, alpha=0.35)
        axes.plot(folds, np.full(len(folds), k), marker, color=color, markersize=4, markeredgecolor=INK, mew=0.4)
        spread = abs(metrics[f"{key}_spread"][name])
        axes.errorbar(mean, k, xerr=spread, color=INK, capsize=3, linewidth=1.2)
    axes.set_yticks(range(len(models)), [plain(model_name(metrics, name)) for name in models])
    axes.invert_yaxis()
    tidy(axes)
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=3)  # numbers of errors may be long
    axes.set_xlabel(f"{error_name(metrics)} on rows held out\nmean ± deviation, a mark a fold")


def models_of(metrics: dict[str, Any]) -> list[str]:
    """Return the models that were tested, the hull first, whatever the order in the file."""
    return [name for name in ("hull", *MODELS) if name in metrics[error_key(metrics)]]


def error_key(metrics: dict[str, Any]) -> str:
    """Return the name of the test errors by the loss that is minimized."""
    return "test_loss" if "test_loss" in metrics else "test_rmse"


def error_name(metrics: dict[str, Any]) -> str:
    """Return what the test errors are called."""
    return LOSSES[metrics["plan"]["function"]["loss"]][2]


def model_name(metrics: dict[str, Any], key: str) -> str:
    """Return what a model of the metrics is called."""
    names = MODELS if metrics["plan"]["function"]["loss"] == SQUARED else MODELS | {"linear": "linear, the same loss"}
    return f"{metrics['curvature']['fitted']} hull" if key == "hull" else names.get(key, key)


def _heights(report: Report) -> dict[str, float]:
    """Return the sections of report.png and their heights in inches."""
    rows = -(-len(report.effects) // columns_for(len(report.effects)))
    heights = {"effects": 0.4 + rows * _HEIGHTS["effects"], "contexts": _HEIGHTS["contexts"], "rest": _HEIGHTS["rest"]}
    return heights if report.slices else {name: of for name, of in heights.items() if name != "contexts"}


def title_of_effects(report: Report) -> str:
    """Return the title of the effects, with how many columns are not shown."""
    more = report.design.num_numbers - len(report.effects)
    words = f"; {more} that matter less not shown" if more else ""
    return f"Predicted {shorten([report.target])} along each column, the most important first{words}"


def _title_of_slices(report: Report) -> str:
    along = plain(report.slices[0].along)
    return f"Along {along}, at the quantiles 0.1, 0.5 and 0.9 of a context; all else at its median"


def _fill_effects(part: Any, report: Report) -> None:
    """Draw the effects, with one legend above them, on one scale."""
    columns = max(columns_for(len(report.effects)), 2)
    grid = part.subplots(-(-len(report.effects) // columns), columns, squeeze=False).ravel()
    for axes, effect in zip(grid, report.effects, strict=False):
        draw_column(axes, report, effect)
    for empty in grid[len(report.effects) :]:
        empty.remove()
    limits_together(grid[: len(report.effects)])
    part.suptitle(title_of_effects(report).replace("$", r"\$"), x=0.01, ha="left", fontweight="bold")
    handles = {label: mark for axes in grid for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    part.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2, frameon=False, borderaxespad=0.1)


def _png(figure: Any) -> bytes:
    picture = BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()

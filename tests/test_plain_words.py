"""What is said to people: figures in one notation, steps that are explained, pictures in which nothing collides."""

import itertools

import numpy as np
import openpyxl
import pytest
from runs import make_run

from convexmoe.errors import InputError
from interop import frameworks
from interop.command import pictures
from interop.command.output import with_spread
from interop.command.render import read_metrics
from interop.command.report import explain_steps
from interop.command.report_rows import ReportRows
from interop.command.saved_model import design_of, read_model
from interop.command.tables import read_table, require_columns
from interop.plots.style import in_digits

FIGURES = {
    (2.8171, 0.349): "2.82 ± 0.35",
    (9871.3, 447.0): "9,871 ± 447",
    (122942.4, 14942.2): "122,942 ± 14,942",
    (0.01234, 0.00118): "0.0123 ± 0.0012",
    (2e-7, 3e-9): "(2.00 ± 0.03)e-07",
    (3.25e9, 4e7): "(3.25 ± 0.04)e+09",
    (0.0, 0.0): "0.00 ± 0.00",
}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_and_its_deviation_are_in_one_notation(figure):
    assert with_spread(*figure) == FIGURES[figure]


def test_large_numbers_are_written_out():
    shown = {0.0123456: "0.01235", 2015.0: "2015", -109820.8: "-109,821", 2323251.0: "2,323,251", 3e9: "3e+09"}
    assert {value: in_digits(value) for value in shown} == shown
    assert (in_digits(1234.5, 3), in_digits(12.345, 3)) == ("1,234", "12.3")


def test_the_step_that_is_kept_is_explained():
    metrics = {"steps_run": 1224, "plan": {"steps": 2000}, "best_step": 150}
    assert explain_steps(metrics) == "1,224 of 2,000 steps, kept step 150, the best on rows held out"
    at_the_start = "1,224 of 2,000 steps, kept step 0, the start: none is better on rows held out"
    assert explain_steps(metrics | {"best_step": 0}) == at_the_start


@pytest.mark.parametrize("loss, linear", [("squared", "linear regression"), ("absolute", "linear, the same loss")])
def test_a_model_has_one_name_wherever_it_is_shown(loss, linear):
    metrics = {"plan": {"function": {"loss": loss}}, "curvature": {"fitted": "concave"}}
    names = [pictures.model_name(metrics, key) for key in ("hull", "linear", "mlp", "boosting")]
    assert names == ["concave hull", linear, "MLP", "boosted trees"]


def test_a_column_of_another_sheet_is_found_there(tmp_path):
    book = openpyxl.Workbook()
    for row in (["area", "age"], [1, 2], [3, 4]):
        book.active.append(row)
    for row in ([], ["prices of 2019"], ["area", " price"], [1, 2]):
        book.create_sheet("sold homes") if "sold homes" not in book.sheetnames else None
        book["sold homes"].append(row)
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match=r"got 'price'\. Another sheet has 'price': --sheet \"sold homes\"\.$"):
        require_columns(table, ["price"], "convexmoe fit --target")
    with pytest.raises(InputError, match="The closest column to 'aera' is 'area'"):  # the control
        require_columns(table, ["aera"], "convexmoe fit --target")


@pytest.fixture
def figure(tmp_path, monkeypatch):
    """report.png of ten columns and a target with a long name, errors in hundreds of thousands, as it was drawn."""
    columns, target = [f"column {k}" for k in range(10)], "a_long_name_of_what_is_predicted"
    make_run(tmp_path, columns=columns, context=(), target=target)
    side, drawn, new = frameworks.get("torch"), [], pictures.new_figure
    model, columns, target, notes = read_model(tmp_path / "model.safetensors", side)
    design = design_of(tmp_path, notes, columns, model.config.in_dim)
    metrics = read_metrics(tmp_path, design, target)
    for key in ("test_rmse", "test_rmse_spread"):
        metrics[key] = {name: 4e5 * value for name, value in metrics[key].items()}
    metrics["test_rmse_folds"] = {name: [4e5 * e for e in of] for name, of in metrics["test_rmse_folds"].items()}
    report = pictures.see_report(side, model, metrics, ReportRows.read(tmp_path, len(columns)), design)
    monkeypatch.setattr(pictures, "new_figure", lambda *given: drawn.append(new(*given)) or drawn[-1])
    pictures.draw_report(report, tmp_path / "report.png")
    return drawn[0]


def collisions(figure):
    """Pairs of boxes that overlap: the title of a part and its legend; labels of ticks that stand side by side."""
    pairs = [(part._suptitle, legend) for part in figure.subfigs for legend in part.legends if part._suptitle]
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xticklabels")):
        low, high = axes.get_xlim()
        labels = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        pairs += itertools.pairwise(labels)
    boxes = [tuple(artist.get_window_extent() for artist in pair) for pair in pairs]
    return len(pairs), sum(bool(one.overlaps(other)) for one, other in boxes)


def test_nothing_collides_in_the_report(figure):
    pairs, found = collisions(figure)
    assert pairs > 20 and found == 0
    part = next(part for part in figure.subfigs if part.legends)
    part.legends[0].set_ncols(4)  # the control: in one line it reaches the title
    [errors] = figure.findobj(lambda artist: "RMSE on" in getattr(artist, "get_xlabel", str)())
    errors.locator_params(axis="x", nbins=12)
    figure.canvas.draw()
    assert collisions(figure)[1] >= 2 and np.isfinite(errors.get_xlim()).all()

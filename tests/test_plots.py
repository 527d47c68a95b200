"""Pictures show what a model computes, on the axes that are given; outliers shrink nothing, and nothing collides."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import convexmoe_jax
import convexmoe_torch
from convexmoe.errors import InputError
from convexmoe.hierarchy.records import CELMoEOutput, LevelOutput
from convexmoe.training import History
from interop import frameworks, plots, to_jax
from interop.plots import plot_groups, plot_history, plot_losses, plot_residuals, plot_routes, plot_slices
from interop.plots.slices import see_effect

pyplot = pytest.importorskip("matplotlib.pyplot")
RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(40, 2)), RNG.integers(0, 3, (40, 1)).astype(float)
ROWS = np.hstack([X, C])


def hull(**options):
    torch.manual_seed(0)
    given = {"petals": 5, "out_dim": 1, "context_dim": 1, "temperature": 0.0} | options
    return convexmoe_torch.VectorHull(2, **given)


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def drawn(axes):
    """The lines of some axes by their label."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


@pytest.mark.parametrize("side", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_a_slice_is_what_the_model_predicts(side):
    model = hull() if side == "torch" else to_jax(hull())
    package = {"jax": convexmoe_jax, "torch": convexmoe_torch}[side]
    _, ax = pyplot.subplots()
    assert plot_slices(model, X, C, columns=["b"], names=["a", "b", "season"], target="price", ax=ax) == [ax]
    lines = drawn(ax)
    at = lines["mean over the rows"][:, 0]
    assert (at[0], at[-1]) == (X[:, 1].min(), X[:, 1].max())
    rows = np.repeat(ROWS[:, None], len(at), axis=1)
    rows[:, :, 1] = at
    each = package.predict(model, rows[..., :2], rows[..., 2:])[..., 0]
    np.testing.assert_allclose(lines["mean over the rows"][:, 1], each.mean(axis=0), rtol=1e-4)
    low, high = np.quantile(each, [0.1, 0.9], axis=0)
    edge = ax.collections[0].get_paths()[0].vertices
    assert edge[:, 1].min() == pytest.approx(low.min(), rel=1e-4)
    assert edge[:, 1].max() == pytest.approx(high.max(), rel=1e-4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("b", "price")
    assert not np.allclose(lines["others at their median"][:, 1], each.mean(axis=0), rtol=1e-3)  # the control


@pytest.mark.parametrize("curvature", ["convex", "concave"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_groups_stand_beneath_and_touch(curvature, temperature):
    side, model = frameworks.get("torch"), hull(curvature=curvature, temperature=temperature)
    effect = see_effect(side, model, "abc", ROWS, 0)
    gap = (effect.middle - effect.groups) * (-1 if curvature == "concave" else 1)
    assert len(effect.groups) > 1 and gap.min() > -1e-5 and (gap.min(axis=1) < 1e-5).all()
    rows = np.tile(np.median(ROWS, axis=0), (len(effect.at), 1))
    rows[:, 0] = effect.at
    winners = side.winners(model, rows)
    order = np.unique(winners)[np.argsort(-np.unique(winners, return_counts=True)[1], kind="stable")]
    if temperature == 0.0:  # a group touches where it wins
        assert gap[[list(order).index(g) for g in winners], np.arange(len(rows))].max() < 1e-5
    assert gap.max() > 1e-2  # control: elsewhere they are apart


def test_slices_at_values_of_a_context():
    [ax] = plot_slices(hull(), X, C, columns=[0], by=2)
    levels = np.quantile(C, [0.1, 0.5, 0.9])
    assert [*drawn(ax)] == [f"{word}: {level:g}" for word, level in zip(("low", "middle", "high"), levels, strict=True)]
    assert len(plot_slices(hull(), X, C, by="x2")) == 2 and len(plot_slices(hull(), X, C)) == 3


def test_an_outlier_shrinks_nothing_and_is_counted():
    far = X.copy()
    far[0] = 1e6
    ax, _ = plot_slices(hull(context_dim=0), far)
    assert ax.get_xlim()[1] < 10 and ax.get_xlabel() == "x0 (1 row beyond)"
    true = RNG.normal(size=50)
    true[:2] = 1e9, -1e9
    ax = plot_residuals(true, np.zeros(50))
    assert max(map(abs, ax.get_ylim())) < 10
    label = ax.get_legend_handles_labels()[1]
    assert "far out, at the edge: 2" in label
    assert plot_groups(hull(), far, C).get_xlim()[1] < 10
    calm = plot_residuals(RNG.uniform(size=50), np.zeros(50))  # control: nothing is far out
    assert not any("far out" in text for text in calm.get_legend_handles_labels()[1])


def test_every_group_of_a_map_has_its_area_and_its_petals():
    model = hull()
    ax = plot_groups(model, X, C, columns=["x1", "x0"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x1", "x0")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    shares = [int(text.rpartition(": ")[2].removeprefix("under ").rstrip("%")) for text in texts]
    assert len(texts) > 1 and 97 <= sum(shares) <= 103
    assert {text.partition(":")[0] for text in texts} <= {f"{k}+{(k + 1) % 5}" for k in range(5)}


def boxes(figure):
    """Legends, titles and labels of axes that overlap the data of any axes, or each other."""
    figure.canvas.draw()
    inside = [axes.get_window_extent() for axes in figure.axes]
    outer = [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
    outer += [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    both = [(a, b) for k, a in enumerate(outer) for b in [*inside, *outer[k + 1 :]]]
    return sum(a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.98)) for a, b in both)


def test_no_legend_and_no_label_lies_over_data_or_another():
    long = ["a_very_long_name_of_a_column_that_says_all_of_it", "another_very_long_name_of_a_column_2019", "$x_1$"]
    drawings = [plot_slices(hull(), X, C, names=long, target=long[1])[0], plot_groups(hull(), X, C, names=long)]
    drawings += [
        plot_residuals(X[:, 0], X[:, 1], target=long[0]),
        plot_history(History((0, 9), (1.0, 0.1), (1.0, 0.2))),
    ]
    assert [boxes(axes.figure) for axes in drawings] == [0] * 4
    assert [len(axes.get_xlabel()) < 40 for axes in drawings] == [True] * 4
    axes = drawings[2]
    axes.legend(loc="center")  # control
    assert boxes(axes.figure) > 0


def level(name, routes, experts):
    return LevelOutput(name, None, torch.tensor(routes), {}, {}, experts)


def test_routes_and_losses_of_a_hierarchy():
    levels = {"family": level("family", [0, 0, 1], ("romance", "slavic")), "all": level("all", [0, 0, 0], ("core",))}
    many = level("many", [0, 19, 19], tuple(f"e{k}" for k in range(20)))
    long = [f"experts_of_the_northern_regions_{k}_of_all_there_are" for k in range(3)]  # of one label
    ax = plot_routes(CELMoEOutput({"long": level("long", [0, 1, 1], tuple(long))}, None, {}, {}))
    assert [bar.get_width() for bar in ax.patches] == [1, 2, 0]
    losses = {"family.romance.fit": torch.tensor(2.0), "all.core.fit": torch.tensor(0.5)}
    output = CELMoEOutput(levels, None, losses, {}, (("family.romance.fit", 0.1),))
    ax = plot_routes(output)
    assert [bar.get_width() for bar in ax.patches] == [2, 1, 3]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["romance", "slavic", "core"]
    ax = plot_routes(CELMoEOutput({"many": many}, None, {}, {}))
    assert len(ax.patches) == 12 and sum(bar.get_width() for bar in ax.patches) == 3
    assert [bar.get_width() for bar in plot_losses(output).patches] == [0.5, pytest.approx(0.2)]
    api = convexmoe_torch.CELMoELossAPI()
    api.add_level("all", "size", lambda level: torch.tensor(3.0), weight=2.0)
    lines = drawn(plot_losses([api.compute(output), api.compute(output)]))
    assert lines["all.size"][:, 1].tolist() == [6, 6] and lines["total"][:, 1] == pytest.approx([6.7, 6.7])


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plot_slices(X, X), "a hull of convexmoe_jax or convexmoe_torch; got ndarray"),
        (lambda: plot_groups(hull(out_dim=2), X, C), "out_dim=1; got out_dim=2"),
        (lambda: plot_slices(hull(), X), r"context: expected rows, \[N, 1\]"),
        (lambda: plot_slices(hull(), X, C, columns=["y"]), "columns: expected a column among x0, x1, x2"),
        (lambda: plot_slices(hull(), X, C, names=["a"]), "3 different names"),
        (lambda: plot_slices(hull(), X, C, ax=[]), "3 axes, one a picture; got 0"),
        (lambda: plot_slices(hull(), X * np.nan, C), "finite numbers"),
        (lambda: plot_slices(hull(), X, C, columns=[]), "a column to draw; got none"),
        (lambda: plot_groups(hull(), X, C, columns=[]), "a column to draw; got none"),
        (lambda: plot_groups(hull(), X, C, ax=pyplot.figure()), r"1 axes, one a picture; got 1: \[<Figure"),
        (lambda: plot_groups(hull(), [["a", "b"]], C[:1]), "x: expected numbers"),
        (lambda: plot_slices(hull(), [[1.0], [1.0, 2.0]], C[:2]), "x: expected rows of equal length"),
        (lambda: plot_residuals([1.0], ["a"]), "predicted: expected numbers"),
        (lambda: plot_residuals(None, [1.0]), "true: expected an array of numbers; got NoneType"),
        (lambda: plot_residuals([1.0], [1.0], ax="x"), r"one a picture; got 1: \['x'\]"),
        (lambda: plot_residuals([1.0], [1.0, 2.0]), "as many numbers as true has, 1; got 2"),
        (lambda: plot_history(None), "a History; got NoneType"),
        (lambda: plot_history(History()), "at least one evaluation"),
        (lambda: plot_routes(1), "a CELMoEOutput; got int"),
        (lambda: plot_losses([1.0]), "a LossBundle or a CELMoEOutput"),
        (lambda: plot_losses([]), "at least one step"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words):
    with pytest.raises((TypeError, ValueError), match=words):
        draw()


def test_matplotlib_is_imported_when_something_is_drawn(monkeypatch):
    program = "import sys, interop.plots; print({'matplotlib', 'torch', 'jax', 'typer'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
    monkeypatch.setattr("interop.plots.style.is_installed", lambda name: False)
    with pytest.raises(InputError, match=r"matplotlib to draw with; it is not installed.*\[plot\]"):
        plot_residuals([1.0], [1.0])
    assert len(plots.__all__) == 6

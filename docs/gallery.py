"""Draw the pictures of docs/pages/pictures.md and of the README, with the embedded table and a small hierarchy.

python docs/gallery.py [FOLDER]
"""

import sys
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

import convexmoe_torch
from interop.command.dataset import prepare
from interop.command.tables import embedded_table
from interop.plots import plot_groups, plot_history, plot_losses, plot_residuals, plot_routes, plot_slices

PLACE = Path(__file__).parent / "pages" / "images"
STEPS = 600
LEVELS = {"family": ("romance", "slavic", "germanic"), "language": ("es", "pt", "ca", "pl", "cs", "sv", "da")}
matplotlib.use("Agg")


def small_png(axes) -> bytes:
    """The figure of some axes as a PNG of 128 colors."""
    picture, packed = BytesIO(), BytesIO()
    axes.figure.savefig(picture, format="png", dpi=80)
    Image.open(picture).convert("RGB").quantize(128).save(packed, format="png", optimize=True)
    return packed.getvalue()


def of_a_table() -> dict[str, bytes]:
    """The pictures of a hull that is fitted to the embedded table, `horsepower` as its context in one."""
    data = prepare(embedded_table(), "mpg", (), 0)
    names, test, rest = data.columns, data.folds[0], data.outside(0)
    x, y = data.x, data.y
    fitted = convexmoe_torch.fit(new_hull(len(names)), x[rest], y[rest], steps=STEPS, compare=False)
    model, shown = fitted.model, {"names": names, "target": "mpg"}
    predicted = convexmoe_torch.predict(model, x[test])[:, 0]
    power = names.index("horsepower")
    inputs, context = np.delete(x, power, axis=1), x[:, [power]]
    other = convexmoe_torch.fit(new_hull(5, context_dim=1), inputs, y, context, steps=STEPS, compare=False).model
    order = (*np.delete(np.array(names), power), "horsepower")
    by = {"columns": ["weight", "model_year"], "by": "horsepower", "names": order, "target": "mpg"}
    return {
        "slices": small_png(plot_slices(model, x, columns=["weight", "model_year", "acceleration"], **shown)[0]),
        "slices_by": small_png(plot_slices(other, inputs, context, **by)[0]),
        "group_map": small_png(plot_groups(model, x, columns=["weight", "model_year"], **shown)),
        "residuals": small_png(plot_residuals(y[test], predicted, target="mpg")),
        "history": small_png(plot_history(fitted.history, best_step=fitted.best_step)),
    }


def new_hull(in_dim: int, **options):
    """A new hull, always the same."""
    torch.manual_seed(0)
    return convexmoe_torch.VectorHull(in_dim, petals=8, out_dim=1, temperature="learned", **options)


def of_a_hierarchy() -> dict[str, bytes]:
    """The pictures of a hierarchy of two levels that learns something simple in 60 steps."""
    torch.manual_seed(0)
    levels = [
        convexmoe_torch.HierarchyLevelConfig(level, [convexmoe_torch.ExpertConfig(name) for name in experts])
        for level, experts in LEVELS.items()
    ]
    config = convexmoe_torch.CELMoEConfig(hidden_size=8, levels=levels, fusion_dropout=0.0)
    model = convexmoe_torch.HierarchicalCELMoE(config, lambda *_: convexmoe_torch.LinearExpert(8))
    rng = np.random.default_rng(0)
    routing = {"language": rng.choice(LEVELS["language"], 300, p=[0.35, 0.2, 0.05, 0.15, 0.05, 0.15, 0.05]).tolist()}
    families = dict(zip(LEVELS["language"], ["romance"] * 3 + ["slavic"] * 2 + ["germanic"] * 2, strict=True))
    routing["family"] = [families[name] for name in routing["language"]]
    hidden, losses = torch.randn(300, 8), convexmoe_torch.CELMoELossAPI()
    target = hidden.flip(1)
    losses.add_global("fit", lambda output: (output.fused_hidden - target).square().mean())
    losses.add_level("family", "size", lambda level: level.hidden.square().mean(), weight=0.1)
    adam, steps = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(60):
        output = model(hidden, routing)
        steps.append(losses.compute(output))
        adam.zero_grad()
        steps[-1].total.backward()
        adam.step()
    return {"routes": small_png(plot_routes(output)), "losses": small_png(plot_losses(steps))}


def main(folder: Path) -> None:
    """Draw all of them."""
    folder.mkdir(exist_ok=True)
    for name, png in (of_a_table() | of_a_hierarchy()).items():
        (folder / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE)

"""A run of `convexmoe fit` as it stands in its folder, made without a fit: a new hull, and invented errors."""

import json

import numpy as np
import torch

import convexmoe_torch
from convexmoe.training import History
from interop.command.design import Design
from interop.command.report_rows import FILE, ReportRows
from interop.command.saved_model import notes_of

LONG = "the_total_heated_floor_area_of_the_building_in_square_meters_as_measured_in_the_survey_of_2019"
HOSTILE = ("<script>document.body.remove()</script>", LONG, "\"><img src=x onerror='alert(1)'>", "a & b \u202e&amp;")


def make_run(folder, columns=HOSTILE[:2], context=HOSTILE[2:3], target=HOSTILE[3], rows=60):
    """Write the files of a run to a folder, and return the model and its rows, `[N, in_dim + context_dim]`."""
    design = Design((*columns, *context, "region"), len(columns), {"region": ("<north>", "south")})
    rng, names = np.random.default_rng(0), design.names
    x = rng.normal(size=(rows, len(names)))
    x[:, -1] = x[:, -1] > 0
    y = x[:, 0] ** 2 + x.sum(axis=1) + 0.1 * rng.normal(size=rows)
    y[3] = 1e3  # one outlier
    torch.manual_seed(0)
    hull = convexmoe_torch.VectorHull(len(columns), petals=3, out_dim=1, context_dim=len(context) + 1, temperature=0.3)
    notes = notes_of(names, target, x, y, design=design)
    convexmoe_torch.save(hull, folder / "model.safetensors", notes=notes)
    predicted = {name: y + rng.normal(size=rows) for name in ("hull", "linear", "mlp")}
    history = History((0, 10, 20), (1.0, 0.1, 0.05), (1.1, 0.2, 0.1))
    (folder / FILE).write_bytes(ReportRows.draw(x, y, predicted, history, 0).to_bytes())
    function = {"loss": "squared", "number": None}
    errors = {"hull": 0.25, "linear": 0.5, "mlp": 0.3}
    metrics = {
        "data": {"name": "t<b>.csv", "target": target, "columns": columns, "context": [*context, "region"]}
        | {"weights": "<u>w</u>"},
        "rows": rows, "rows_to_train": rows, "folds": [rows // 2] * 2, "framework": "torch", "coverage": None,
        "plan": {"petals": 3, "depth": 1, "steps": 20, "seed": 0, "curvature": "convex", "function": function},
        "curvature": {"fitted": "convex"}, "shape": "3 <petals>", "shape_gain": 1.25, "best_step": 20, "steps_run": 20,
        "test_rmse": errors, "test_rmse_spread": dict.fromkeys(errors, 0.03),
        "test_rmse_folds": {name: [error, 1.1 * error] for name, error in errors.items()},
        "hull_ahead": {"linear": 2, "mlp": 1}, "exact": [], "parameters": dict.fromkeys(errors, 100),
        "importance": {name: 1.0 / (1 + k) for k, name in enumerate(design.columns)},
        "convexity": {"segments": 100, "violation": None}, "parity": None,
        "convexity_test": {"at": {"a": 1.0}, "p_value": 0.5},
        "interval_coverage": {"0.9": {"coverage": 0.925, "half_width": 1.5}},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return hull, x

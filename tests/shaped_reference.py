"""Hulls with a context, signs, another curvature or a bound, by loops in numpy: see `reference`."""

import math

import numpy as np
import reference
from reference import act, positive, softplus

ONE = math.log(math.e - 1)


def features(weights, c, config):
    """(c, act(act(c W_0 + b_0) W_1 + b_1))"""
    h = c
    for k in "01":
        h = act(h @ weights[f"context.{k}.weight"] + weights[f"context.{k}.bias"], config["activation"])
    return np.concatenate([c, h])


def signed(raw, signs, axis=0, offset=0.0):
    """sign softplus(raw + offset) tau / sqrt(D) on inputs with a sign, raw on others"""
    raw = np.moveaxis(np.array(raw), axis, 0)
    rows = [sign * positive(row + offset, len(signs)) if sign else row for sign, row in zip(signs, raw, strict=True)]
    return np.moveaxis(np.stack(rows), 0, axis)


def petal(weights, x, c, p, config, signs):
    """The value of petal p, (O,)."""
    private, F = config["trunk"] == "private", None if c is None else features(weights, c, config)
    own = (lambda w: np.take(w, p, axis=w.ndim - 2)) if private else (lambda w: w)
    free = [j for j, sign in enumerate(signs) if not sign]
    z = None
    for k in range(config["depth"]):
        u = x @ signed(own(weights[f"trunk.{k}.weight"]), signs) + own(weights[f"trunk.{k}.bias"])
        if c is not None:
            slope, bias, scale = (F @ own(weights[f"context.trunk.{k}.{name}"]) for name in ("slope", "bias", "scale"))
            u = softplus(slope + ONE) * u + bias
            for i, j in enumerate(free):
                u = u + x[j] * (c @ own(weights[f"context.trunk.{k}.weight"][i]))
        if z is not None:
            raw = own(weights[f"trunk.{k}.raw_weight"])
            u = u + z @ positive(raw, len(raw))
        elif config["gate"]:
            u = u + act(x @ signed(weights["gate.weight"], signs) + weights["gate.bias"], config["activation"])
        z = act(u, config["activation"])
        if c is not None:
            z = softplus(scale + ONE) * z
    raw = weights["readout.raw_weight"][:, p]
    affine = x @ signed(weights["readout.weight"][:, p], signs) + weights["readout.bias"][p]
    return z @ positive(raw, len(raw)) + affine


def row(weights, x, c, config):
    """The output at one input and one context, (O,)."""
    units, shifts = config["normalization"] or {}, weights["shifts"]
    x = (x - units.get("input_mean", 0.0)) / units.get("input_scale", 1.0)
    concave = config.get("curvature") == "concave"
    signs = [(-s if concave else s) for s in config.get("monotone") or [0] * len(x)]
    if c is not None:
        c = (c - units.get("context_mean", 0.0)) / units.get("context_scale", 1.0)
        F = features(weights, c, config)
        shifts = shifts + F @ weights["context.readout.shifts"]
    f_PO = np.stack([petal(weights, x, c, p, config, signs) for p in range(config["petals"])])
    g = reference.groups(f_PO, shifts, config["group_size"])
    T = reference.temperatures(weights, config)
    y = np.array([reference.fuse(g[:, o], T[o]) for o in range(config["out_dim"])])
    if c is not None:
        free = [j for j, sign in enumerate(signs) if not sign]
        slopes = np.einsum("f,fdo->do", F, weights["context.readout.weight"]) if free else np.zeros((0, len(y)))
        y = y + x[free] @ slopes + F @ weights["context.readout.bias"]
    if config.get("nonnegative"):
        y = softplus(y)
    y = y + config["strong_convexity"] / 2 * x @ x
    return reference.out_of_units(-y if concave else y, config)


def hull(weights, x, context, config):
    """The outputs of rows, (N, O), with a context each, or none."""
    contexts = [None] * len(x) if context is None else context
    return np.stack([row(weights, a, b, config) for a, b in zip(x, contexts, strict=True)])

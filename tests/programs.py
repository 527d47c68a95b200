"""A hull as a convex program written by hand, for a solver that knows nothing of ours."""

import cvxpy as cp
import numpy as np

DEVIATIONS = {"softplus": 0.52107053438143932, "relu": 0.58381937010354895, "huber_relu": 0.55775834939574297}
MEANS = {"softplus": 0.80605918334743978, "relu": 0.39894228040143268, "huber_relu": 0.46233010832811462}


def positive(raw):
    return np.logaddexp(raw, 0.0) * np.sqrt(0.5 / raw.shape[0])


def activation(u, name):
    """The standardised activation of a CVXPY expression."""
    if name == "softplus":
        value = cp.logistic(u)
    elif name == "relu":
        value = cp.pos(u)
    else:
        value = (cp.huber(u, 1) + 1) / 4 + u / 2
    return (value - MEANS[name]) / DEVIATIONS[name]


def hull(weights, fields, z):
    """The value of one output, of weights in float64 by dotted name, at a CVXPY variable in normalized units."""
    name, petals = fields.get("activation", "softplus"), fields["petals"]
    private = fields.get("trunk", "shared") == "private"
    f = []
    for p in range(petals):
        part = (lambda w, p=p: w[..., p, :]) if private else (lambda w: w)
        h = None
        for k in range(fields.get("depth", 1)):
            layer = f"trunk.{k}."
            u = z @ part(weights[layer + "weight"]) + part(weights[layer + "bias"])
            if k:
                u = u + h @ part(positive(weights[layer + "raw_weight"]))
            elif fields.get("gate", False):
                u = u + activation(z @ weights["gate.weight"] + weights["gate.bias"], name)
            h = activation(u, name)
        read = positive(weights["readout.raw_weight"])[:, p, 0]
        f.append(h @ read + z @ weights["readout.weight"][:, p, 0] + weights["readout.bias"][p, 0])
    square = 0.5 * fields.get("strong_convexity", 0.0) * cp.sum_squares(z)
    if petals == 1:
        return f[0] + square
    groups = f
    if fields.get("group_size", 2) == 2:
        groups = [0.5 * (f[p] + f[(p + 1) % petals]) for p in range(petals)]
    groups = [g + weights["shifts"][p] for p, g in enumerate(groups)]
    temperature = fields.get("temperature", 0.0)
    if temperature == 0.0:
        return cp.maximum(*groups) + square
    T = np.logaddexp(weights["raw_temperature"][0], 0.0) + 1e-3 if temperature == "learned" else temperature
    return T * (cp.log_sum_exp(cp.hstack(groups) / T) - np.log(petals)) + square


def optimum(weights, fields, kind, numbers):
    """The least value of the hull over a set, by Clarabel; None where it is not sure of it."""
    units = fields["normalization"]
    mean, scale = np.array(units["input_mean"]), np.array(units["input_scale"])
    z = cp.Variable(len(mean))
    x = mean + cp.multiply(scale, z)
    if kind == "Box":
        rules = [x >= numbers[0], x <= numbers[1]]
    elif kind == "Ball":
        rules = [cp.norm(x - numbers[0]) <= numbers[1]]
    elif kind == "Simplex":
        rules = [x >= 0, cp.sum(x) == numbers[0]]
    else:
        rules = [numbers[0] @ x <= numbers[1]]
    problem = cp.Problem(cp.Minimize(hull(weights, fields, z)), rules)
    for tight in (1e-10, 1e-8):  # where the first cannot be reached, the second is what Clarabel asks of itself
        try:
            problem.solve(solver=cp.CLARABEL, tol_gap_abs=tight, tol_gap_rel=tight, tol_feas=tight)
        except cp.SolverError:
            continue
        if problem.status == cp.OPTIMAL:
            break
    else:
        return None
    return units["output_mean"][0] + units["output_scale"][0] * problem.value

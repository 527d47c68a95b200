"""The hull by loops over rows and petals in float64 numpy, one function an equation; no code of the packages."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
LEAST_TEMPERATURE = 1e-3
TAU = math.sqrt(0.5)


def softplus(u):
    """log(1 + exp(u))"""
    return np.logaddexp(u, 0.0)


def relu(u):
    """max(u, 0)"""
    return np.maximum(u, 0.0)


def huber_relu(u):
    """(clip(u, -1, 1) + 1)^2 / 4 + relu(u - 1)"""
    return (np.clip(u, -1.0, 1.0) + 1.0) ** 2 / 4 + relu(u - 1.0)


ACTIVATIONS = {"softplus": softplus, "relu": relu, "huber_relu": huber_relu}


def standard_moments(activation):
    """Mean and deviation of the activation at u ~ N(0, 1): Gauss-Legendre between its kinks, out to |u| = 13."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    mean = second = 0.0
    for left, right in [(-13, -1), (-1, 0), (0, 1), (1, 13)]:
        u = (left + right) / 2 + nodes * (right - left) / 2
        density = weights * (right - left) / 2 * np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        mean += np.sum(density * ACTIVATIONS[activation](u))
        second += np.sum(density * ACTIVATIONS[activation](u) ** 2)
    return mean, math.sqrt(second - mean**2)


MOMENTS = {activation: standard_moments(activation) for activation in ACTIVATIONS}


def act(u, activation):
    """(activation(u) - mean) / deviation"""
    mean, deviation = MOMENTS[activation]
    return (ACTIVATIONS[activation](u) - mean) / deviation


def positive(raw, fan_in):
    """V = softplus(raw) tau / sqrt(fan_in)"""
    return softplus(raw) * TAU / math.sqrt(fan_in)


def layer(weights: Weights, name: str, p: int, config: Mapping[str, Any]):
    """The arrays of one trunk layer as petal p sees them."""
    found = {}
    for kind in ("raw_weight", "weight", "bias"):
        value = weights.get(f"trunk.{name}.{kind}")
        if value is not None:
            private = config["trunk"] == "private"
            found[kind] = np.take(value, p, axis=value.ndim - 2) if private else value
    return found


def pre_activations(weights: Weights, x: np.ndarray, p: int, config: Mapping[str, Any]):
    """u_1 = A_1 x + b_1 (+ act(G x + c)),  u_{k+1} = V_k act(u_k) + A_{k+1} x + b_{k+1}, a list of (..., H)"""
    first = layer(weights, "0", p, config)
    u = x @ first["weight"] + first["bias"]
    if config["gate"]:
        u = u + act(x @ weights["gate.weight"] + weights["gate.bias"], config["activation"])
    units = [u]
    for k in range(1, config["depth"]):
        now = layer(weights, str(k), p, config)
        z = act(units[-1], config["activation"])
        units.append(z @ positive(now["raw_weight"], len(now["raw_weight"])) + x @ now["weight"] + now["bias"])
    return units


def petal(weights: Weights, x_D: np.ndarray, p: int, config: Mapping[str, Any]):
    """f_p = V_out,p act(u_depth) + A_out,p x + b_out,p, (O,)"""
    z = act(pre_activations(weights, x_D, p, config)[-1], config["activation"])
    raw = weights["readout.raw_weight"][:, p]
    return z @ positive(raw, len(raw)) + x_D @ weights["readout.weight"][:, p] + weights["readout.bias"][p]


def groups(f_PO: np.ndarray, shifts: np.ndarray, group_size: int):
    """g_i = (f_i + f_{i+1 mod P}) / 2 + s_i, or f_i + s_i; with one petal g_1 = f_1"""
    P = len(f_PO)
    if P == 1:
        return f_PO
    if group_size == 1:
        return np.stack([f_PO[i] + shifts[i] for i in range(P)])
    return np.stack([(f_PO[i] + f_PO[(i + 1) % P]) / 2 + shifts[i] for i in range(P)])


def fuse(g: np.ndarray, temperature: float):
    """max_i g_i, or T (log sum_i exp(g_i / T) - log P), of the values g (P,) of one output"""
    if len(g) == 1:
        return g[0]
    if temperature == 0.0:
        return max(g)
    top = max(g)
    return top + temperature * (math.log(sum(math.exp((v - top) / temperature) for v in g)) - math.log(len(g)))


def temperatures(weights: Weights, config: Mapping[str, Any]):
    """T of every output: softplus(raw) + 1e-3 if learned"""
    if config["temperature"] == "learned":
        return softplus(weights["raw_temperature"]) + LEAST_TEMPERATURE
    return np.full(config["out_dim"], config["temperature"])


def into_units(x_D, config):
    """(x - input_mean) / input_scale"""
    units = config["normalization"]
    return x_D if units is None else (x_D - np.array(units["input_mean"])) / np.array(units["input_scale"])


def out_of_units(y_O, config):
    """output_mean + output_scale y"""
    units = config["normalization"]
    return y_O if units is None else np.array(units["output_mean"]) + np.array(units["output_scale"]) * y_O


def group_rows(weights: Weights, x_ND: np.ndarray, config: Mapping[str, Any]):
    """g of every row, (N, P, O), in normalized units."""
    rows = []
    for x_D in x_ND:
        u_D = into_units(x_D, config)
        f_PO = np.stack([petal(weights, u_D, p, config) for p in range(config["petals"])])
        rows.append(groups(f_PO, weights["shifts"], config["group_size"]))
    return np.stack(rows)


def hull(weights: Weights, x_ND: np.ndarray, config: Mapping[str, Any]):
    """y + mu / 2 ||x||^2 of every row, (N, O)."""
    T_O = temperatures(weights, config)
    rows = []
    for x_D, g_PO in zip(x_ND, group_rows(weights, x_ND, config), strict=True):
        y_O = np.array([fuse(g_PO[:, o], T_O[o]) for o in range(config["out_dim"])])
        y_O = y_O + config["strong_convexity"] / 2 * sum(into_units(x_D, config) ** 2)
        rows.append(out_of_units(y_O, config))
    return np.stack(rows)


def winners(weights: Weights, x_ND: np.ndarray, config: Mapping[str, Any]):
    """The first largest group and its lead over the second, each (N, O); the lead is inf with one petal."""
    g_NPO = group_rows(weights, x_ND, config)
    group = np.zeros((len(x_ND), config["out_dim"]), int)
    margin = np.full(group.shape, math.inf)
    units = config["normalization"]
    scale = np.ones(config["out_dim"]) if units is None else units["output_scale"]
    for n, o in np.ndindex(group.shape):
        values = list(g_NPO[n, :, o])
        group[n, o] = values.index(max(values))
        if len(values) > 1:
            best, second = sorted(values)[-1], sorted(values)[-2]
            margin[n, o] = (best - second) * scale[o]
    return group, margin


def gradients(weights: Weights, x_ND: np.ndarray, config: Mapping[str, Any], c_NO: np.ndarray, step=1e-6):
    """Central differences of sum(c y) by every number of every weight and of x, name -> array."""
    arrays = {name: value.copy() for name, value in weights.items()} | {"x": x_ND.copy()}

    def total():
        return np.sum(c_NO * hull(arrays, arrays["x"], config))

    found = {name: np.zeros(value.shape) for name, value in arrays.items()}
    for name, value in arrays.items():
        for index in np.ndindex(value.shape):
            kept = value[index]
            value[index] = kept + step
            above = total()
            value[index] = kept - step
            found[name][index] = (above - total()) / (2 * step)
            value[index] = kept
    return found

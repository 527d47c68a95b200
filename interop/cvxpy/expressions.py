"""A hull built of CVXPY's atoms, its weights constants or parameters. Needs CVXPY; `programs.py` is its door.

    softplus: logistic       relu: pos       huber_relu: huber       sums with weights >= 0
    max_i g_i: max           T (log sum_i exp(g_i / T) - log P): T log_sum_exp(g / T)
    non-negative: logistic of that       concave: minus the expression of minus the hull

Each is convex and non-decreasing in what it is applied to, which is how CVXPY proves that the result is convex.

Letters: N rows, D in, P petals (and groups), O out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.transforms.partial_optimize import partial_optimize

from convexmoe.hull.activations import ACTIVATIONS
from convexmoe.hull.weights import Arrays, HullWeights

from .matrices import hull_matrices, means_matrix, structure_of, trunk_suffixes, units_of

NONNEGATIVE = ("positive_weight", "output.scale", "temperature")


def act(u: Any, activation: str) -> Any:
    """Return the standardized activation of an expression."""
    row = ACTIVATIONS[activation]
    return row.standardize(row.atom(cp, u))


class ConstantProgram:
    """A hull whose weights are constants: an expression of atoms.

    Args:
        hull: its weights, without a context; of a concave hull it is the program of minus it.
    """

    def __init__(self, hull: HullWeights) -> None:
        self.config = hull.config
        self.units = units_of(hull.config)
        self.matrices = self.matrices_of(hull)

    def matrices_of(self, hull: HullWeights) -> Arrays:
        """Return the matrices of a hull of normalized inputs."""
        D = hull.config.in_dim
        bare = replace(self.units, input_mean=(0.0,) * D, input_scale=(1.0,) * D)
        return hull_matrices(hull._replace(config=replace(hull.config, normalization=bare)))

    def normalized(self, x_ND: Any) -> Any:
        """Return the input in normalized units, an affine image of it, for weights of order one."""
        mean, scale = np.asarray(self.units.input_mean), np.asarray(self.units.input_scale)
        rows = np.ones((x_ND.shape[0], 1))
        return cp.multiply(rows / scale, x_ND) - rows * (mean / scale)

    def weight(self, name: str) -> Any:
        """Return a matrix of `hull_matrices` as it enters the expression."""
        return self.matrices[name]

    def bound(self, expression: Any) -> Any:
        """Return what stands for an expression in the layers above it."""
        return expression

    def hull(self, x_ND: Any, outputs: range) -> Any:
        """Return the values of some outputs, (N, len(outputs))."""
        N, O, x_ND = x_ND.shape[0], len(outputs), self.normalized(x_ND)
        g = self.group_values(x_ND, outputs)
        y_NO: Any = cp.reshape(self.fuse(g, outputs), (N, O), order="C")
        if self.config.nonnegative:
            y_NO = cp.logistic(y_NO)
        if "bowl.scale" in self.matrices:
            y_NO = y_NO + self.bowl(x_ND) @ np.ones((1, O))
        scale = self.weight("output.scale")[:, outputs.start : outputs.stop]
        mean = self.weight("output.mean")[:, outputs.start : outputs.stop]
        ones = np.ones((N, 1))
        return cp.multiply(ones @ scale, y_NO) + ones @ mean

    def group_values(self, x_ND: Any, outputs: range) -> Any:
        """Return g, the shifted means of petals, (N * O, P)."""
        config, rows = self.config, x_ND.shape[0] * len(outputs)
        parts = []
        for trunk in trunk_suffixes(config):
            p = 1 if trunk else config.petals
            columns = slice(outputs.start * p, outputs.stop * p)
            f = self.hidden_units(x_ND, trunk) @ self.weight(f"readout{trunk}.positive_weight")[:, columns]
            f = f + self.affine(x_ND, f"readout{trunk}", columns)
            parts.append(cp.reshape(f, (rows, p), order="C"))
        g = parts[0] if len(parts) == 1 else cp.hstack(parts)
        if config.petals == 1:
            return g
        if config.trunk == "private" and config.group_size == 2:
            g = g @ means_matrix(config.petals)
        return g + np.ones((rows, 1)) @ self.weight("shifts")

    def hidden_units(self, x_ND: Any, trunk: str) -> Any:
        """Return the last hidden layer of a trunk, (N, H)."""
        activation = self.config.activation
        u = self.affine(x_ND, f"trunk.0{trunk}")
        if self.config.gate:
            u = u + self.bound(act(self.affine(x_ND, "gate"), activation))
        z = self.bound(act(u, activation))
        for k in range(1, self.config.depth):
            layer = f"trunk.{k}{trunk}"
            u = self.affine(x_ND, layer) + z @ self.weight(f"{layer}.positive_weight")
            z = self.bound(act(u, activation))
        return z

    def affine(self, x_ND: Any, name: str, columns: slice = slice(None)) -> Any:
        """Return `x W + b`, or some columns of it."""
        weight, bias = self.weight(f"{name}.weight")[:, columns], self.weight(f"{name}.bias")[:, columns]
        return x_ND @ weight + np.ones((x_ND.shape[0], 1)) @ bias

    def fuse(self, g: Any, outputs: range) -> Any:
        """Return the maximum of each row of group values, (N * O,), hard or smooth."""
        if g.shape[1] == 1:
            return g
        if "temperature" not in self.matrices:
            return cp.max(g, axis=1)
        T = np.resize(self.matrices["temperature"][0, outputs.start : outputs.stop], g.shape[0])
        columns = np.ones((1, g.shape[1]))
        means = cp.log_sum_exp(cp.multiply((1 / T)[:, None] @ columns, g), axis=1) - math.log(g.shape[1])
        return cp.multiply(T, means)

    def bowl(self, x_ND: Any) -> Any:
        """Return `mu / 2 |z|^2` of the normalized input z, (N, 1)."""
        ones = np.ones((x_ND.shape[0], 1))
        z = cp.multiply(ones @ self.weight("bowl.scale"), x_ND) + ones @ self.weight("bowl.bias")
        return cp.sum(cp.square(z), axis=1, keepdims=True)


class ParameterProgram(ConstantProgram):
    """A hull whose weights are parameters: the least value of a small problem with hidden variables.

    A product of two parameters is not DPP, and a weight times an activation of weights is one. So each hidden layer
    is a variable that is no less than its activation: weights >= 0 on it press it down, to equality at the minimum.

    Args:
        hull: its weights, the first values of the parameters.
    """

    def __init__(self, hull: HullWeights) -> None:
        super().__init__(hull)
        structure = structure_of(hull.config)
        self.parameters = {
            name: cp.Parameter(
                value.shape, name=f"{name} ({structure})", nonneg=name.endswith(NONNEGATIVE), value=value
            )
            for name, value in self.matrices.items()
        }
        self.constraints: list[Any] = []

    def matrices_of(self, hull: HullWeights) -> Arrays:
        return hull_matrices(hull)  # its units are parameters like its weights

    def normalized(self, x_ND: Any) -> Any:
        return x_ND

    def weight(self, name: str) -> Any:
        return self.parameters[name]

    def bound(self, expression: Any) -> Any:
        variable = cp.Variable(expression.shape)
        self.constraints.append(variable >= expression)
        return variable

    def hull(self, x_ND: Any, outputs: range) -> Any:
        rows = [cp.hstack([self.least_value(x_ND[n : n + 1], o) for o in outputs]) for n in range(x_ND.shape[0])]
        return cp.vstack(rows)

    def least_value(self, x_1D: Any, output: int) -> Any:
        """Return one output at one row as the least value of a problem over the hidden variables."""
        self.constraints = []
        value = cp.sum(super().hull(x_1D, range(output, output + 1)))
        problem = cp.Problem(cp.Minimize(value), self.constraints)
        hidden = [v for v in problem.variables() if all(v is not own for own in x_1D.variables())]
        return partial_optimize(problem, opt_vars=hidden)

    def fuse(self, g: Any, outputs: range) -> Any:
        top = cp.Variable()
        if "temperature" not in self.matrices:
            self.constraints.append(top >= g)
            return top
        T = self.weight("temperature")[:, outputs.start : outputs.stop]
        share = cp.Variable(g.shape)
        ones = np.ones((1, g.shape[1]))
        # sum_i T exp((g_i - top) / T) <= P T, a cone that is affine in T as well
        self.constraints += [cp.ExpCone(g - top, T @ ones, share), cp.sum(share) <= cp.sum(T) * g.shape[1]]
        return top

    def bowl(self, x_ND: Any) -> Any:
        return self.bound(super().bowl(x_ND))

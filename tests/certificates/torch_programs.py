"""The random programs of `random_programs` in PyTorch, written as graphs without `torch.export`, which is slow.

Operators are caught as they run and lowered as those of an exported program are. `test_torch_random.py` holds a sample
of these graphs against `certify` itself.
"""

from typing import Any
from unittest import mock

import attack
import numpy as np
import torch
from random_programs import OPS as SHARED
from random_programs import PLACES, Instruction, constants, matrix, well
from torch.utils._python_dispatch import TorchDispatchMode

from convexmoe.convexity.facts import Value, parameter, variable
from convexmoe.convexity.graph import Graph
from convexmoe.convexity.refinements import Refinements
from convexmoe.convexity.walk import Walk
from convexmoe_torch.convexity import atoms
from convexmoe_torch.convexity.lowering.elementwise import Declined, Ref
from convexmoe_torch.convexity.rules import RULES, sorts
from convexmoe_torch.convexity.trace import arguments_of, array_of, kind_of, lower_call


def spread(reduce):
    """What reduces a register, spread out again."""
    return lambda u, *_: reduce(u).expand(u.shape)


def vector(number, u):
    return torch.as_tensor(constants(number, u.shape[-1]), dtype=u.dtype)


def square_matrix(number, u):
    return torch.as_tensor(matrix(number, u.shape[-1]), dtype=u.dtype)


def huber_relu(u):
    bent = torch.relu(torch.clamp(u, max=1.0) + 1.0)
    return torch.where(u < 1.0, bent * bent * 0.25, u)


def xlogx(u):
    return torch.xlogy(u, u)


def log_sum_exp_by_hand(u):
    top = torch.amax(u)
    return top + torch.log(torch.sum(torch.exp(u - top)))


UNARY = {
    "neg": torch.neg,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "square": torch.square,
    "cube": lambda u: u**3,
    "inverse": lambda u: u**-1,
    "inverse square": lambda u: u**-2,
    "inverse cube": lambda u: u**-3,
    "power 1.5": lambda u: u**1.5,
    "power 0.25": lambda u: u**0.25,
    "power -0.5": lambda u: u**-0.5,
    "power of 2": lambda u: 2.0**u,
    "power of 1/2": lambda u: torch.pow(0.5, u),
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "sin": torch.sin,
    "floor": torch.floor,
    "sign": torch.sign,
    "relu": torch.relu,
    "cap": lambda u: torch.clamp(u, max=1.0),
    "clamp": lambda u: torch.clamp(u, -1, 1),
    "softplus": torch.nn.functional.softplus,
    "huber relu": huber_relu,
    "cumsum": lambda u: torch.cumsum(u, 0),
    "cummax": lambda u: torch.cummax(u, 0).values,
    "cummin reversed": lambda u: torch.cummin(u.flip(0), 0).values.flip(0),
    "cumlogsumexp": lambda u: torch.logcumsumexp(u, 0),
    "cumprod": lambda u: torch.cumprod(u, 0),
    "reverse": lambda u: torch.flip(u, (0,)),
    "two slopes": lambda u: torch.where(u > 0, 3.0 * u, 0.5 * u),
    "two falling slopes": lambda u: torch.where(u < 1, 3.0 * u, u + 2.0),
    "a jump": lambda u: torch.where(u >= 1, 2.0 * u, u),
    "elu of half": lambda u: torch.where(u > 0, u, 0.5 * torch.expm1(torch.clamp(u, max=0.0))),
    "capped square": lambda u: torch.where(u.abs() <= 0.5, u * u, u.abs() - 0.25),
    "windows": lambda u: torch.nn.functional.max_pool1d(u[None], 3, 1, 1)[0],
    "window sums": lambda u: 3.0 * torch.nn.functional.avg_pool1d(u[None], 3, 1, 1)[0],
    "sum at places": lambda u: torch.zeros_like(u).index_add(0, torch.as_tensor(PLACES[: len(u)]), u),
    "solve": lambda u: torch.linalg.solve(torch.as_tensor(well(u), dtype=u.dtype), u),
    "sort": lambda u: torch.sort(u).values,
    "roll": lambda u: torch.roll(u, -1, 0),
}

# What PyTorch has as one operator and JAX has not: (PyTorch, numpy on points by size).
MORE = {
    "elu": (torch.nn.functional.elu, lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0)))),
    "steep elu": (
        lambda u: torch.nn.functional.elu(u, alpha=0.5),
        lambda u: np.where(u > 0, u, 0.5 * np.expm1(np.minimum(u, 0))),
    ),
    "celu": (
        lambda u: torch.nn.functional.celu(u, 2.0),
        lambda u: np.where(u > 0, u, 2 * np.expm1(np.minimum(u, 0) / 2)),
    ),
    "leaky relu": (torch.nn.functional.leaky_relu, lambda u: np.where(u > 0, u, 0.01 * u)),
    "bent relu": (lambda u: torch.nn.functional.leaky_relu(u, 1.5), lambda u: np.where(u > 0, u, 1.5 * u)),
    "sharp softplus": (lambda u: torch.nn.functional.softplus(u, beta=3.0), lambda u: np.logaddexp(3 * u, 0) / 3),
    "log-sigmoid": (torch.nn.functional.logsigmoid, lambda u: -np.logaddexp(0, -u)),
    "entropy": (lambda u: xlogx(torch.abs(u)), lambda u: np.abs(u) * np.log(np.where(u == 0, 1.0, np.abs(u)))),
    "log2": (torch.log2, np.log2),
    "log10": (torch.log10, np.log10),
    "exp2": (torch.exp2, np.exp2),
    "reciprocal": (torch.reciprocal, lambda u: 1 / u),
    "huber": (
        lambda u: torch.nn.functional.huber_loss(u, torch.zeros_like(u), reduction="none"),
        lambda u: np.where(np.abs(u) < 1, u * u / 2, np.abs(u) - 0.5),
    ),
    "smooth l1": (
        lambda u: torch.nn.functional.smooth_l1_loss(u, torch.zeros_like(u), reduction="none", beta=0.5),
        lambda u: np.where(np.abs(u) < 0.5, u * u, np.abs(u) - 0.25),
    ),
    "softmax": (
        lambda u: torch.softmax(u, 0),
        lambda u: np.exp(u - u.max(1, keepdims=True)) / np.exp(u - u.max(1, keepdims=True)).sum(1, keepdims=True),
    ),
    "log-softmax": (lambda u: torch.log_softmax(u, 0), lambda u: u - np.logaddexp.reduce(u, axis=1, keepdims=True)),
    "not zero": (lambda u: torch.logical_not(u).to(u.dtype), lambda u: (u == 0) * 1.0),
    "lower triangle": (
        lambda u: torch.tril(u.expand(u.shape[0], u.shape[0])).sum(0),
        lambda u: u * np.arange(u.shape[1], 0, -1),
    ),
    "padded": (
        lambda u: torch.nn.functional.pad(u, (1, 0), value=0.5)[:-1],
        lambda u: np.concatenate([np.full((len(u), 1), 0.5), u[:, :-1]], 1),
    ),
    "falling sort": (lambda u: torch.sort(u, descending=True).values, lambda u: -np.sort(-u, 1)),
    "as integers": (lambda u: u.to(torch.int32).to(u.dtype), np.trunc),
}
MORE_SPREAD = {
    "mean": (torch.mean, lambda u: u.mean(1)),
    "any": (lambda u: torch.any(u - 1.0).to(u.dtype), lambda u: (u != 1).any(1) * 1.0),
    "variance": (lambda u: torch.var(u, correction=0), lambda u: u.var(1)),
    "deviation": (lambda u: torch.std(u, correction=0), lambda u: u.std(1)),
    "one-norm": (lambda u: torch.linalg.vector_norm(u, 1), lambda u: np.abs(u).sum(1)),
    "largest size": (lambda u: torch.linalg.vector_norm(u, float("inf")), lambda u: np.abs(u).max(1)),
    "logsumexp": (lambda u: torch.logsumexp(u, 0), lambda u: np.logaddexp.reduce(u, axis=1)),
    "place of the largest": (lambda u: torch.argmax(u).to(u.dtype), lambda u: u.argmax(1) * 1.0),
    "last place": (
        lambda u: torch.cummax(u, 0).indices[-1].to(u.dtype),
        lambda u: u.shape[1] - 1.0 - u[:, ::-1].argmax(1),
    ),
    "smallest two": (
        lambda u: torch.topk(u, min(2, len(u)), largest=False).values.sum(),
        lambda u: np.sort(u, 1)[:, :2].sum(1),
    ),
}

TORCH = {
    **{name: (lambda u, *_, f=f: f(u)) for name, f in UNARY.items()},
    "sum": spread(torch.sum),
    "product": spread(torch.prod),
    "largest": spread(torch.amax),
    "smallest": spread(torch.amin),
    "log-sum-exp": spread(log_sum_exp_by_hand),
    "norm": spread(torch.linalg.vector_norm),
    "norm of order 4": spread(lambda u: torch.linalg.vector_norm(u, 4.0)),
    "add": lambda u, v, *_: u + v,
    "sub": lambda u, v, *_: u - v,
    "mul": lambda u, v, *_: u * v,
    "div": lambda u, v, *_: u / v,
    "max": lambda u, v, *_: torch.maximum(u, v),
    "min": lambda u, v, *_: torch.minimum(u, v),
    "logaddexp": lambda u, v, *_: torch.logaddexp(u, v),
    "where": lambda u, v, w, _: torch.where(u > v, v, w),
    "where not less": lambda u, v, w, _: torch.where(u >= 0, v, w),
    "where constant": lambda u, v, w, k: torch.where(vector(k, u) > 0, u, v),
    "inner product": lambda u, v, *_: torch.dot(u, v).expand(u.shape),
    "add constant": lambda u, v, w, k: u + vector(k, u),
    "mul constant": lambda u, v, w, k: u * vector(k, u),
    "div constant": lambda u, v, w, k: u / (vector(k, u) + 0.0625),
    "constant": lambda u, v, w, k: vector(k, u),
    "weighted sum": lambda u, v, w, k: (u @ vector(k, u)).expand(u.shape),
    "matrix": lambda u, v, w, k: square_matrix(k, u) @ u,
    "two largest": lambda u, *_: torch.topk(u, min(2, len(u))).values.sum().expand(u.shape),
    **{name: (lambda u, *_, f=f: f(u)) for name, (f, _) in MORE.items()},
    **{name: spread(f) for name, (f, _) in MORE_SPREAD.items()},
}

NUMPY = {
    **{name: op.numpy for name, op in SHARED.items() if name in TORCH},
    **{name: (lambda u, *_, g=g: g(u)) for name, (_, g) in MORE.items()},
    **{name: (lambda u, *_, g=g: np.repeat(g(u)[:, None], u.shape[1], 1)) for name, (_, g) in MORE_SPREAD.items()},
}
NAMES = sorted([*TORCH, "parameter"])


class Caught(TorchDispatchMode):
    """Writes each operator that runs into a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.numbers: dict[int, int] = {}
        self.kept: list[torch.Tensor] = []

    def input(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A new input of the program."""
        tensor = torch.full(shape, 0.5)
        self.graph.inputs.append(self.graph.value(*kind_of(tensor)))
        return self._keep(tensor, self.graph.inputs[-1])

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor; one that no operator has made is a constant."""
        if id(tensor) not in self.numbers:
            self._keep(tensor, self.graph.constant(array_of(tensor)))
        return self.numbers[id(tensor)]

    def _keep(self, tensor: torch.Tensor, number: int) -> torch.Tensor:
        self.kept.append(tensor)
        self.numbers[id(tensor)] = number
        return tensor

    def _refs(self, given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            return Ref(self.number(given))
        return [self._refs(part) for part in given] if isinstance(given, (list, tuple)) else given

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.squeeze_.dim:  # a matrix product ends with it, on a tensor of its own
            func = torch.ops.aten.squeeze.dim
        several = isinstance(result, (list, tuple))
        results = list(result) if several else [result]
        arguments = {key: self._refs(value) for key, value in (kwargs or {}).items()}
        kinds = [kind_of(tensor) for tensor in results]
        try:
            source = func._opname  # by which a test tells the operators of a program
            found = lower_call(self.graph, func, arguments_of(func, self._refs(list(args)), arguments), kinds, source)
        except Declined:  # an operator without a rule
            given = [self.number(part) for part in (*args, *arguments) if isinstance(part, torch.Tensor)]
            found = list(self.graph.add(str(func), tuple(given), {}, kinds, pure=False))
        for tensor, number in zip(results, found, strict=True):
            self._keep(tensor, number)
        return result


def random_program(rng: np.random.Generator) -> tuple[int, list[Instruction]]:
    """A program of one to eight instructions on one to three numbers."""
    length = int(rng.integers(1, 9))
    draws = zip(
        rng.integers(len(NAMES), size=length),
        rng.integers(0, 4, size=(length, 3)),
        rng.integers(0, 30, size=length),
        strict=True,
    )
    return int(rng.integers(1, 4)), [Instruction(NAMES[i], *map(int, at), int(k)) for i, at, k in draws]


def run(program: list[Instruction], x: Any, theta: Any, ops: dict[str, Any]) -> list[Any]:
    """All registers, the input first, in PyTorch or in numpy; theta are the parameters."""
    registers = [x]
    for name, *at, number in program:
        taken = [registers[max(len(registers) - 1 - back, 0)] for back in at]
        registers.append(theta if name == "parameter" else ops[name](*taken, number))
    return registers


def contradictions(size: int, program: list[Instruction], seed: int, claimed: list[Value]) -> list[str]:
    """Facts that are claimed of a register and do not hold, in words; empty where all hold."""

    def in_numpy(program: list[Instruction], x: np.ndarray, theta: np.ndarray, _: str) -> list[np.ndarray]:
        return run(program, x, theta + 0.0 * x, NUMPY)

    with mock.patch.object(attack, "run", in_numpy):
        return attack.contradictions(size, program, seed, claimed)


def traced_function(function: Any, shape: tuple[int, ...]) -> Graph:
    """The graph of a function of one tensor."""
    with torch.no_grad(), Caught() as caught:
        caught.graph.outputs = [caught.number(function(caught.input(shape)))]
    return caught.graph


def traced(size: int, program: list[Instruction]) -> Graph:
    """The graph of a program, of its input and of its parameters."""
    with torch.no_grad(), Caught() as caught:
        x, theta = caught.input((size,)), caught.input((size,))
        caught.graph.outputs = [caught.number(register) for register in run(program, x, theta, TORCH)]
    return caught.graph


def walked(size: int, graph: Graph) -> list[Value]:
    """What the walk knows of every register, whatever the parameters are."""
    walk = Walk(graph, RULES, atoms.recognize, Refinements(graph.inputs[:1], sorts))
    return walk.run([variable((size,)), parameter((size,))])

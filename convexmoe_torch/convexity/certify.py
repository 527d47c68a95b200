"""A proof that a function is convex, or concave, for the very program that runs; a counterexample; or what is open."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from convexmoe.convexity import SEGMENTS, Certificate, Engine, Problem, Trace, Value, certify_problem, facts, problem

from ..hierarchy.experts import ExpertBatch, ExpertModule, HullExpert
from ..hull.legacy import NonConvexHull
from ..hull.module import FoldedHull, HullModule, VectorHull
from ..settings import one_thread
from .atoms import recognize
from .rules import RULES, sorts
from .search import Evaluator, in_float64, in_numpy
from .trace import LOCK, array_of, trace

ONE_BY_ONE = 300  # segments, for a function that `vmap` does not take


def certify(
    function: Callable[..., Any],
    x_example: Any,
    *,
    params: Any = None,
    fixed: Any = None,
    argnum: int | tuple[int, ...] = 0,
    strength: str | None = None,
    per_input: bool = False,
    segments: int = SEGMENTS,
    seed: int = 0,
    domain: Any = None,
    curvature: str | None = None,
) -> Certificate:
    """Prove that every output of a function is convex in its chosen input, refute it, or say what stops the proof.

    A concave hull is proved to be concave. A hull with a context takes `(x, context)`, and what is proved of x holds
    for every context.

    The function is traced by `torch.export` at the shape of the example, and its graph is walked with the rules of
    disciplined convex programming (Grant, Boyd and Ye, 2006), element by element; known functions whose bodies do not
    follow those rules are recognized by their operations. A proof holds in exact arithmetic, for the program as it was
    traced: its shapes and dtypes, and the branches it takes in Python; the function is called at some points near and
    far, with gradients and without, and must give what its program gives.

    Guarantee: what is "proved" is convex in exact arithmetic; an operator without a rule proves nothing
    (tests/certificates).

    Args:
        function: `function(*x)`, or `function(params, *x)` where params are given; or a module, such as
            `VectorHull`, whose parameters are its own; its buffers are known numbers.
        x_example: a tensor, or a tuple of tensors, one for each argument: their shapes, and where to look for a
            counterexample.
        params: nested dicts or any tree of tensors. Numbers that the function closes over are known numbers.
        fixed: arrays, or anything that leads to them, that no training changes. A structural proof holds for their
            present values; other arrays that the function reaches by a reference make a proof numeric.
        argnum: which of the arguments move, an index or indices; of the others nothing is assumed but that they
            are fixed real numbers.
        strength: "structural" (parameters are unknown real numbers), "numeric" (they have the given values), or None:
            the first, and where that proves nothing the second.
        per_input: also find the monotonicity in each coordinate of the chosen input, one walk each.
        segments: how many segments are tried for a counterexample; 0 for none.
        seed: of that search.
        domain: a `Box` in which the chosen input lies, its faces included, a tuple of them for several, or None for
            everywhere. A proof holds on all of it, where 1 / x must be a number: its lower bound is above 0.
        curvature: what is to be proved, "convex" or "concave"; None means "convex", of our models what their config
            says.

    Returns:
        A `Certificate`.

    Raises:
        TypeError, ValueError: argnum names no argument, the domain is no box of its shape, or the function cannot be
            called with the example.

    >>> certify(lambda x: torch.sum(x**2), torch.ones(3)).verdict
    'proved'
    >>> certify(lambda x: -torch.sum(x**2), torch.ones(3)).verdict
    'refuted'
    """
    with LOCK, one_thread():
        given = _problem(function, x_example, params, argnum, fixed, curvature)
        return certify_problem(Engine(RULES, recognize, sorts), given, strength, per_input, segments, seed, domain)


class TorchProblem(Problem):
    """A function of PyTorch as `certify` takes it; `Problem` says what the methods do."""

    def trace(self) -> Trace:
        with torch.no_grad():
            self.call(list(self.leaves), list(self.arguments))  # a mistake of the caller is an error here
        graph, outputs, run = trace(self.call, self.leaves, self.arguments)
        paths, _ = pytree.tree_flatten_with_path(outputs)
        names = [problem.leaf_name(path) for path, number in paths if number is not None]
        foreign = (op.name for op in graph.operations if "." in op.name and not op.name.startswith("aten."))
        doubt = "".join(f"{name} may change what it is given" for name in sorted({*foreign} - RULES.keys())[:1])
        values = torch.no_grad()(lambda *given: _flatten(run(*given)))
        return Trace(graph, names, values, partial(self._slopes_of, run), doubt)

    def leaf_value(self, leaf: Any) -> Value:
        return facts.array_value(array_of(leaf))

    def center(self) -> np.ndarray | None:
        return np.concatenate([in_numpy(self.arguments[k]).reshape(-1) for k in self.chosen])

    def place(self, row: np.ndarray) -> list[Any]:
        return self._put(torch.as_tensor(row), list(map(_copy, self.arguments)))

    def _put(self, row: Tensor, arguments: list[Tensor]) -> list[Tensor]:
        for k, part in zip(self.chosen, torch.split(row, [arguments[k].numel() for k in self.chosen]), strict=True):
            arguments[k] = part.reshape(arguments[k].shape).to(arguments[k])
        return arguments

    def calls(self, leaves: list[Any] | None, arguments: list[Any]) -> list[tuple[str, Callable[[], list[np.ndarray]]]]:
        def call(mode: Callable[[], Any], gradients: bool) -> list[np.ndarray]:
            with mode():
                return _flatten(self._call_own(leaves, [_taken(x, gradients) for x in arguments], gradients))

        modes = {
            "": torch.no_grad,
            " while gradients are taken": torch.enable_grad,
            " in inference": torch.inference_mode,
        }
        return [(way, partial(call, mode, mode is torch.enable_grad)) for way, mode in modes.items()]

    def _call_own(self, leaves: list[Any] | None, arguments: list[Tensor], gradients: bool) -> Any:
        if leaves is None and self.itself:
            return self.itself(arguments)
        return self.call([_taken(x, gradients) for x in leaves or self.leaves], arguments)

    def slopes(self, leaves: list[Any] | None, arguments: list[Any]) -> list[np.ndarray]:
        return self._slopes_of(partial(self._call_own, gradients=True), leaves, arguments)

    @torch.enable_grad()
    def _slopes_of(self, call: Callable[..., Any], leaves: Any, arguments: list[Tensor]) -> list[np.ndarray]:
        """Return `Trace.slopes` of a function of leaves and arguments."""
        given = [_taken(x, gradients=True) for x in arguments]
        outputs = [part for part in pytree.tree_leaves(call(leaves, given)) if isinstance(part, Tensor)]
        parts = [part.reshape(-1) for part in outputs if part.requires_grad]
        weights = [torch.as_tensor(problem.output_weights(part.numel())).to(part) for part in parts]
        total = torch.cat(list(map(torch.mul, parts, weights))).sum()
        moving = [given[k] for k in self.chosen]
        return list(map(in_numpy, torch.autograd.grad(total, moving, materialize_grads=True)))

    def evaluator(self, corners: np.ndarray) -> Evaluator:
        """Return the function of rows of the chosen arguments, one row after the other where `vmap` cannot take it."""
        moving = [self.arguments[k] for k in self.chosen]

        def one(row: Tensor) -> Tensor:
            leaves, arguments = list(self.leaves), list(self.arguments)
            if row.dtype == torch.float64:
                leaves, arguments = in_float64(leaves), in_float64(arguments)
            arguments = self._put(row, arguments)
            outputs = [part for part in pytree.tree_leaves(self.call(leaves, arguments)) if part is not None]
            values = torch.cat([torch.as_tensor(part, device=row.device).reshape(-1).to(row.dtype) for part in outputs])
            return -values if self.curvature == "concave" else values

        dtype = reduce(torch.promote_types, [x.dtype for x in moving])
        points = torch.as_tensor(corners).to(moving[0].device, dtype)
        try:
            with torch.no_grad():
                vmap(one)(points)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return Evaluator(lambda rows: torch.stack([one(row) for row in rows]), points, ONE_BY_ONE)
        return Evaluator(vmap(one), points)


def _problem(
    function: Any, x_example: Any, params: Any, argnum: int | tuple[int, ...], fixed: Any, curvature: str | None
) -> TorchProblem:
    """Return the function, its parameters and its arguments in one form."""
    arguments, chosen = problem.convert_arguments(_copy, x_example, argnum)
    if isinstance(function, nn.Module):
        problem.check_no_params(params)
        # A folded hull is not trained any more.
        flat = [] if isinstance(function, FoldedHull) else list(function.named_parameters())
        names, leaves = [name for name, _ in flat], [_copy(leaf) for _, leaf in flat]
        # What `functional_call` replaces; and the normalization of a hull, which stands in its config.
        own, modules = {id(leaf) for _, leaf in flat}, list(function.modules())
        known: list[Any] = [m._parameters for m in modules if own.issuperset(map(id, m._parameters.values()))]
        known += [m.normalization._buffers for m in modules if isinstance(m, HullModule) and m.normalization]
        roots: list[tuple[Any, list[Any]]] = [(function, known)]
        is_expert = isinstance(function, ExpertModule)

        def call(given: list[Any], xs: list[Any]) -> Any:
            arguments = (ExpertBatch(*xs),) if is_expert else tuple(xs)
            # Copies, so that the module is left as it is: in training a normalization changes its buffers.
            tensors = {name: buffer.clone() for name, buffer in function.named_buffers()}
            result = functional_call(function, tensors | dict(zip(names, given, strict=True)), arguments)
            return result.hidden if is_expert else result

    else:
        paths, tree = pytree.tree_flatten_with_path(params)
        roots = [(function, []), (params, [leaf for _, leaf in paths])]
        given = [(path, leaf) for path, leaf in paths if leaf is not None]  # to PyTorch None is a leaf
        names, leaves = [problem.leaf_name(path) for path, _ in given], [_copy(leaf) for _, leaf in given]

        def call(given: list[Any], xs: list[Any]) -> Any:
            if params is None:
                return function(*xs)
            remaining = iter(given)
            filled = [leaf if leaf is None else next(remaining) for _, leaf in paths]
            return function(pytree.tree_unflatten(filled, tree), *xs)

    itself = _copy_module(function) if isinstance(function, nn.Module) else None
    is_refused, ours = isinstance(function, NonConvexHull), isinstance(function, (VectorHull, FoldedHull, HullExpert))
    wanted = problem.read_curvature("certify", curvature, function if ours else None)
    return TorchProblem(call, leaves, names, arguments, chosen, is_refused, roots, fixed, itself, curvature=wanted)


def _copy_module(module: nn.Module) -> Callable[[list[Any]], Any] | None:
    """Return the calls of a copy of a module, with parameters that are such; None where it cannot be copied."""
    try:
        copied = copy.deepcopy(module)
    except Exception:  # tensors that are no leaves, handles of processes
        return None
    return lambda xs: copied(ExpertBatch(*xs)).hidden if isinstance(module, ExpertModule) else copied(*xs)


def _flatten(outputs: Any) -> list[np.ndarray]:
    """Return the outputs of a function in numpy."""
    return [in_numpy(torch.as_tensor(part)) for part in pytree.tree_leaves(outputs) if part is not None]


def _taken(x: Tensor, gradients: bool) -> Tensor:
    """Return a copy that is no leaf of autograd, which may not be changed in place."""
    return _copy(x).requires_grad_(gradients and x.is_floating_point()).clone()


def _copy(x: Any) -> Tensor:
    """Return a tensor of its own: a function may change what it is given."""
    return torch.as_tensor(x).detach().clone()

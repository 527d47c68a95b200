"""A function of PyTorch as a `Graph`: what `torch.export` traces of it, in the operations that have rules."""

from __future__ import annotations

import operator
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from .graph import Graph
from .lowering import LOWERINGS, Call, Declined, Kind, Lowering, Ref
from .lowering_moves import MOVES

LOWERED: dict[str, Lowering] = {**LOWERINGS, **MOVES}
# Without a value, or for the running program alone.
WITHOUT_VALUE = ("promote_types", "_assert_tensor_metadata", "_assert_async", "_assert_scalar")
OF_TORCH = str(Path(torch.__file__).parent)
OWN = (__file__, str(Path(__file__).with_name("certificate.py")))


class NotTraced(Exception):
    """`torch.export` cannot trace a function; the text says why."""


class Traced:
    """A function as `torch.export` has it.

    Args:
        graph: the program; its inputs are the leaves of the parameters and the arguments.
        outputs: what the function returns, with the numbers of values in place of tensors; None where it is None.
    """

    def __init__(self, graph: Graph, outputs: Any) -> None:
        self.graph, self.outputs = graph, outputs


class _Wrapped(nn.Module):
    """A function of lists of tensors as a module, which is what `torch.export` takes."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, leaves: list[Tensor], arguments: list[Tensor]) -> Any:
        with _Lines():
            return self.call(leaves, arguments)


class _Lines(TorchFunctionMode):
    """Gives every step the line of the user's program that makes it: `torch.export` keeps those of `forward` only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        traceback.set_stack_trace([source_line(sys._getframe(1))])
        return func(*args, **(kwargs or {}))


def source_line(innermost: FrameType) -> str:
    """Return file, line and function of the user's program; of a module of PyTorch that is used as it is, its own."""
    frame: FrameType | None = innermost
    inside = ""
    while frame is not None and frame.f_code.co_filename not in OWN:
        code = frame.f_code
        line = f"{'/'.join(code.co_filename.replace(chr(92), '/').split('/')[-2:])}:{frame.f_lineno} ({code.co_name})"
        if not code.co_filename.startswith((OF_TORCH, "<eval", "<frozen")):
            return line
        if code.co_name == "forward" and not inside:
            inside = line
        frame = frame.f_back
    return inside


def trace(call: Callable[..., Any], leaves: list[Tensor], arguments: list[Tensor]) -> Traced:
    """Return the program of `call(leaves, arguments)` at the shapes and dtypes of the tensors.

    Raises:
        NotTraced: the function decides in Python by the value of its input, or is beyond `torch.export` otherwise.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), traceback.preserve_node_meta():
            warnings.simplefilter("ignore")
            program = torch.export.export(_Wrapped(call), (leaves, arguments), strict=False)
            try:
                return _written(program, strict=True)
            except Declined:
                return _written(program.run_decompositions(_decompositions()), strict=False)
    except NotTraced:
        raise
    except Exception as error:  # whatever it is, there is no program to look at
        kind = type(error).__name__
        said = str(error).strip().splitlines() or [""]
        if "DataDependent" in kind or "data-dependent" in said[0]:
            raise NotTraced(f"the function decides in Python by the value of its input: {said[0]}") from error
        raise NotTraced(f"torch.export cannot trace the function: {kind}: {said[0]}") from error


def _written(program: Any, strict: bool) -> Traced:
    """Return an exported program as a graph."""
    signature, known = program.graph_signature, {**program.constants, **program.state_dict}
    graph = Graph()
    numbers: dict[str, int] = {}
    names = (node.name for node in program.graph.nodes if node.op == "placeholder")
    for spec, name in zip(signature.input_specs, names, strict=True):
        if spec.kind.name != "USER_INPUT":
            numbers[name] = graph.constant(array_of(known[spec.target]))
    writer = Writer(graph, program.graph_module, numbers, strict)
    graph.inputs = writer.free
    results = writer.write()
    # What the function changes in place comes first.
    first = len(results) - sum(spec.kind.name == "USER_OUTPUT" for spec in signature.output_specs)
    outputs = torch.utils._pytree.tree_unflatten(results[first:], program.call_spec.out_spec)
    graph.outputs = [number for number in results[first:] if number is not None]
    graph.seen.clear()
    return Traced(graph, outputs)


def trace_reference(function: Callable[..., Any], *kinds: Kind) -> Graph:
    """Return the graph of a small function at shapes and dtypes, by the tracer that `torch.export` stands on."""
    examples = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in kinds]
    with torch.no_grad():
        module = make_fx(function, pre_dispatch=True)(*examples)
    graph = Graph()
    writer = Writer(graph, module, {})
    graph.inputs = writer.free
    graph.outputs = [number for number in writer.write() if number is not None]
    graph.seen.clear()
    return graph


def _decompositions() -> dict[Any, Any]:
    """Return PyTorch's decompositions but for the operators that are lowered here."""
    table = torch.export.default_decompositions()
    kept = [op for op in table if getattr(op, "_opname", "") in LOWERED.keys() - {"matmul", "einsum"}]
    for op in kept:
        del table[op]
    return table


def kind_of(value: Any) -> Kind:
    """Return shape and dtype of a tensor, as a graph keeps them."""
    if not isinstance(value, Tensor):
        return (), "none"
    return tuple(int(size) for size in value.shape), str(value.dtype).removeprefix("torch.")


def array_of(tensor: Tensor) -> np.ndarray:
    """Return a known tensor as an array; half precision as float32, which holds it."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.resolve_conj().numpy()


class Writer:
    """Writes the nodes of a traced module as operations.

    Args:
        graph: to which they are added.
        module: what was traced.
        known: the placeholders that are constants, by name.
        strict: an operator without a lowering is an error, and not an operation without a rule.
    """

    def __init__(self, graph: Graph, module: Any, known: dict[str, int], strict: bool = False) -> None:
        self.graph, self.module, self.strict = graph, module, strict
        self.numbers: dict[Any, Any] = {}
        self.free: list[int] = []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                number = known.get(node.name)
                if number is None:
                    number = graph.value(*kind_of(node.meta.get("val")))
                    self.free.append(number)
                self.numbers[node] = number

    def write(self) -> list[int | None]:
        """Add all operations; return the numbers of the outputs, None for an output that is None."""
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                self._attribute(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                given = node.args[0]
                return [
                    self._output(part) for part in (given if isinstance(given, (list, tuple)) else [given])
                ]
        return []

    def _output(self, given: Any) -> int | None:
        if given is None:
            return None
        if isinstance(given, (bool, int, float)):
            return self.graph.constant(np.asarray(given, np.float64))
        return self.numbers[given]

    def _attribute(self, node: Any) -> None:
        value: Any = self.module
        for name in node.target.split("."):
            value = getattr(value, name)
        self.numbers[node] = self.graph.constant(array_of(value)) if isinstance(value, Tensor) else value

    def _call(self, node: Any) -> None:
        if node.target is operator.getitem:
            found = self.numbers[node.args[0]]
            self.numbers[node] = found[node.args[1]] if isinstance(found, list) else found
            return
        name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
        if name in WITHOUT_VALUE:
            return
        value = node.meta.get("val")
        several = isinstance(value, (list, tuple))
        kinds = [kind_of(part) for part in (value if several else [value])]
        found = self._lowered(node, name, kinds)
        self.numbers[node] = found if several else found[0]

    def _lowered(self, node: Any, name: str, kinds: list[Kind]) -> list[int]:
        """Return the numbers of what an operator gives."""
        source = node.meta.get("stack_trace") or ""
        source = "" if "\n" in source or '"' in source else source
        target = node.target
        lowering = LOWERED.get(name) if getattr(target, "namespace", "") == "aten" else None
        try:
            if lowering is None or target._schema.is_mutable:
                raise Declined(name)
            arguments = {argument.name: argument.default_value for argument in target._schema.arguments}
            arguments |= dict(zip(arguments, map(self._argument, node.args), strict=False))
            arguments |= {key: self._argument(given) for key, given in node.kwargs.items()}
            found = lowering(Call(self.graph, target, arguments, kinds, source))
            if all(map(self._is_of_kind, found, kinds)):
                return found
            raise Declined("another shape")
        except (Declined, TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
            if self.strict:
                raise Declined(name) from error
        if getattr(getattr(target, "_schema", None), "is_mutable", False):
            raise NotTraced(f"torch.export leaves {name}, which changes a tensor in place, in the program")
        inputs = [self.numbers[given] for given in node.all_input_nodes]
        params = {"target": str(target), "arguments": str((node.args, node.kwargs))}
        inputs = [number for number in inputs if isinstance(number, int)]
        return list(self.graph.add(name, tuple(inputs), params, kinds, source, pure=False))

    def _is_of_kind(self, number: int, kind: Kind) -> bool:
        """Return whether a value has a shape and dtype; half precision constants are kept wider."""
        made = self.graph.array(number) is not None
        return self.graph.shapes[number] == kind[0] and (made or self.graph.dtypes[number] == kind[1])

    def _argument(self, given: Any) -> Any:
        """Return an argument with `Ref` for the results of other nodes."""
        if isinstance(given, torch.fx.Node):
            number = self.numbers[given]
            if not isinstance(number, int):
                raise Declined("several values in one argument")
            return Ref(number)
        if isinstance(given, (list, tuple)):
            return [self._argument(part) for part in given]
        return given

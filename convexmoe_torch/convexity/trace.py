"""A function of PyTorch as a `Graph`: what `torch.export` traces of it, in the operations that have rules."""

from __future__ import annotations

import logging
import operator
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import lru_cache
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from convexmoe.convexity import Graph, Kind, NotTraced, problem
from convexmoe.errors import dtype_name

from .lowering import LOWERINGS
from .lowering.elementwise import Call, Declined, Ref
from .lowering.moves import add_as_it_is, refs

# `torch.export` changes what all threads share: the parameters of the module, whether PyTorch says that it compiles.
LOCK = threading.RLock()
# Without a value, or for the running program alone.
WITHOUT_VALUE = ("promote_types", "_assert_tensor_metadata", "_assert_async", "_assert_scalar")
OF_TORCH = str(Path(torch.__file__).parent)
# Where PyTorch registers operators and kernels, as its dispatcher tells.
REGISTERED, IN_TORCH = re.compile(r"registered at (.*):\d+"), re.compile(r"/(aten/src/ATen|torch/csrc)/")
OWN = (__file__, str(Path(__file__).with_name("certify.py")))


class _AsModule(nn.Module):
    """A function of lists of tensors as a module, which is what `torch.export` takes."""

    def __init__(self, call: Callable[..., Any], with_lines: bool) -> None:
        super().__init__()
        self.call, self.with_lines = call, with_lines

    def forward(self, leaves: list[Tensor], arguments: list[Tensor]) -> Any:
        with _Lines() if self.with_lines else nullcontext():
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


Run = Callable[[list[Tensor], list[Tensor]], list[Any]]
Traced = tuple[Graph, Any, Run]


def trace(call: Callable[..., Any], leaves: list[Tensor], arguments: list[Tensor]) -> Traced:
    """Return the program of `call(leaves, arguments)` at the shapes and dtypes of the tensors, its outputs, and itself.

    The outputs have numbers of values in place of tensors, None where the function returns None.

    Raises:
        NotTraced: the function decides in Python by the value of its input, or is beyond `torch.export` otherwise.
    """
    try:
        return _export(_AsModule(call, with_lines=True), leaves, arguments)
    except NotTraced as error:
        if error.by_value:
            raise
        # Some operators, such as `torch.cond`, are not captured while another mode is on.
        return _export(_AsModule(call, with_lines=False), leaves, arguments)


def _export(module: nn.Module, leaves: list[Tensor], arguments: list[Tensor]) -> Traced:
    try:
        with torch.no_grad(), _quiet(), traceback.preserve_node_meta():
            program = torch.export.export(module, (leaves, arguments), strict=False)
            try:
                return _write_program(program, strict=True)
            except Declined:
                return _write_program(program.run_decompositions(_decompositions()), strict=False)
    except NotTraced:
        raise
    except Exception as error:  # whatever it is, there is no program to look at
        kind = type(error).__name__
        said = (str(error).strip().splitlines() or [""])[0]
        by_value = "DataDependent" in kind or "data-dependent" in said
        text = problem.BY_VALUE if by_value else f"torch.export cannot trace the function: {kind}"
        raise NotTraced(f"{text}: {said}", by_value) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from telling about failures that become part of the verdict."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_program(program: Any, strict: bool) -> Traced:
    """Return an exported program as a graph."""
    signature, known = program.graph_signature, {**program.constants, **program.state_dict}
    known = {name: x.detach().clone() if isinstance(x, Tensor) else x for name, x in known.items()}
    graph = Graph()
    numbers: dict[str, int] = {}
    names = (node.name for node in program.graph.nodes if node.op == "placeholder")
    for spec, name in zip(signature.input_specs, names, strict=True):
        if spec.kind.name != "USER_INPUT":
            if spec.target not in known:
                raise NotTraced("torch.export leaves a constant without a value in the program")
            numbers[name] = graph.constant(array_of(known[spec.target]))
    # What the function changes in place comes first.
    count = sum(spec.kind.name == "USER_OUTPUT" for spec in signature.output_specs)
    results = Writer(graph, program.graph_module, numbers, strict).write(count)
    inner = [known[spec.target] for spec in signature.input_specs if spec.kind.name != "USER_INPUT"]

    def run(leaves: list[Tensor], arguments: list[Tensor]) -> list[Any]:
        given = torch.fx.Interpreter(program.graph_module).run(*inner, *leaves, *arguments)
        return list(given[len(given) - count :])

    return graph, torch.utils._pytree.tree_unflatten(results, program.call_spec.out_spec), run


def trace_reference(function: Callable[..., Any], *kinds: Kind) -> Graph:
    """Return the graph of a small function at shapes and dtypes, by the tracer that `torch.export` stands on."""
    examples = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in kinds]
    with torch.no_grad():
        return graph_of(make_fx(function, pre_dispatch=True)(*examples))


def graph_of(module: Any) -> Graph:
    """Return the graph of a traced module without constants."""
    graph = Graph()
    Writer(graph, module, {}).write()
    return graph


def _decompositions() -> dict[Any, Any]:
    """Return PyTorch's decompositions but for the operators that are lowered here."""
    table = torch.export.default_decompositions()
    lowered = LOWERINGS.keys() - {"matmul", "einsum"}
    return {op: how for op, how in table.items() if getattr(op, "_opname", "") not in lowered}


def kind_of(value: Any) -> Kind:
    """Return shape and dtype of a tensor, as a graph keeps them."""
    if not isinstance(value, Tensor):
        return (), "none"
    return tuple(int(size) for size in value.shape), dtype_name(value.dtype)


def array_of(tensor: Tensor) -> np.ndarray:
    """Return a known tensor as an array; half precision as float32, which holds it."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def arguments_of(target: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operator by name, those that are not given too."""
    arguments = {argument.name: argument.default_value for argument in target._schema.arguments}
    return arguments | dict(zip(arguments, args, strict=False)) | kwargs


def lower_call(graph: Graph, target: Any, arguments: dict[str, Any], kinds: list[Kind], source: str) -> list[int]:
    """Add a call of an operator to a graph; return the numbers of what it gives.

    Raises:
        Declined: it has no lowering, and others if the lowering does not know this form of it.
    """
    lowering = LOWERINGS.get(getattr(target, "_opname", ""))
    if lowering is None or target.namespace != "aten" or target._schema.is_mutable:
        raise Declined(f"{target}")
    numbers = _fold(graph, target, arguments, kinds) or lowering(Call(graph, target, arguments, kinds, source))
    for number, (shape, dtype) in zip(numbers, kinds, strict=True):
        is_constant = graph.array(number) is not None  # one of half precision is stored wider
        if graph.shapes[number] != shape or not (is_constant or graph.dtypes[number] == dtype):
            raise Declined("another shape")
    return numbers


def is_own(target: Any) -> bool:
    """Return whether an operator is PyTorch's own: others may register an overload, or a kernel in place of another."""
    if getattr(target, "namespace", "") != "aten":
        return False
    dump = getattr(torch._C, "_dispatch_dump", None)  # there is no public way
    files = REGISTERED.findall(dump(target.name())) if dump else [OF_TORCH]
    return bool(files) and all(file.startswith(OF_TORCH) or IN_TORCH.search(file) for file in files)


def _fold(graph: Graph, target: Any, arguments: dict[str, Any], kinds: list[Kind]) -> list[int]:
    """Return whole numbers that are computed from known ones as a constant, nothing for others."""
    given = {name: value for name, value in arguments.items() if isinstance(value, Ref)}
    arrays = [graph.array(number) for number in given.values()]
    is_whole = len(kinds) == 1 and kinds[0][1].startswith(("int", "uint"))
    if not is_whole or not arrays or refs(arguments) != refs(list(given.values())):
        return []
    if any(array is None or array.dtype.kind not in "iub" for array in arrays):
        return []
    tensors = {name: torch.from_numpy(array) for name, array in zip(given, arrays, strict=True) if array is not None}
    return [graph.constant(target(**arguments | tensors).numpy())]


def source_of(node: Any) -> str:
    """Return the line that `_Lines` gave to a node, "" where PyTorch put its own there."""
    line = node.meta.get("stack_trace") or ""
    return "" if "\n" in line or '"' in line else line


class Writer:
    """Writes the nodes of a traced module as operations.

    Args:
        graph: to which they are added.
        module: what was traced.
        known: the placeholders that are constants, by name.
        strict: an operator without a lowering is an error, and not an operation without a rule.
    """

    def __init__(self, graph: Graph, module: Any, known: dict[str, int], strict: bool = False) -> None:
        self.graph, self.module, self.known, self.strict = graph, module, known, strict
        self.numbers: dict[Any, Any] = {}
        self.is_own = lru_cache(is_own)

    def write(self, last: int | None = None) -> list[int | None]:
        """Write all; return the numbers of the outputs, or of the `last` of them, None for an output that is None."""
        results: list[int | None] = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder" and node.name in self.known:
                self.numbers[node] = self.known[node.name]
            elif node.op == "placeholder":
                self.numbers[node] = self.graph.value(*kind_of(node.meta.get("val")))
                self.graph.inputs.append(self.numbers[node])
            elif node.op == "get_attr":
                value = operator.attrgetter(node.target)(self.module)
                self.numbers[node] = self.graph.constant(array_of(value)) if isinstance(value, Tensor) else value
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                given = node.args[0]
                results = list(map(self._output, given if isinstance(given, (list, tuple)) else [given]))
        results = results if last is None else results[len(results) - last :]
        self.graph.outputs = [number for number in results if number is not None]
        self.graph.seen.clear()
        return results

    def _output(self, given: Any) -> int | None:
        if given is None:
            return None
        if isinstance(given, (bool, int, float)):
            return self.graph.constant(np.asarray(given, np.float64))
        if not isinstance(given, torch.fx.Node):
            raise NotTraced(f"the function returns {given!r}, which is no number")
        return self.numbers[given]

    def _call(self, node: Any) -> None:
        if node.target is operator.getitem:
            results = self.numbers[node.args[0]]
            self.numbers[node] = results[node.args[1]] if isinstance(results, list) else results
            return
        name = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))
        if name in WITHOUT_VALUE and getattr(node.target, "namespace", "aten") == "aten":
            return
        value = node.meta.get("val")
        several = isinstance(value, (list, tuple))
        kinds = [kind_of(part) for part in (value if several else [value])]
        is_choice = node.target is torch.ops.higher_order.cond
        results = self._choose(node, kinds) if is_choice else self._lower(node, name, kinds)
        self.numbers[node] = results if several else results[0]

    def _choose(self, node: Any, kinds: list[Kind]) -> list[int]:
        """Return the numbers of what a choice between two programs gives."""
        which, *branches, operands = node.args
        inputs = tuple(self.numbers[given] for given in (which, *operands))
        params = {"branches": tuple(graph_of(self.numbers[branch]) for branch in branches)}
        return list(self.graph.add("cond", inputs, params, kinds, source_of(node), pure=False))

    def _lower(self, node: Any, name: str, kinds: list[Kind]) -> list[int]:
        """Return the numbers of what an operator gives."""
        source, target = source_of(node), node.target
        arguments: dict[str, Any] = {}
        try:
            if not self.is_own(target):
                raise Declined(name)
            args = [self._argument(given) for given in node.args]
            kwargs = {key: self._argument(given) for key, given in node.kwargs.items()}
            arguments = arguments_of(target, args, kwargs)
            return lower_call(self.graph, target, arguments, kinds, source)
        except (Declined, TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
            given, tags = refs(arguments), getattr(target, "tags", ())
            is_random = torch.Tag.nondeterministic_seeded in tags or "empty" in name
            known = given and not (target._schema.is_mutable or is_random)
            moves = any(self.graph.before(k).intersection(self.graph.inputs) for k in given)
            if self.strict and (moves or not known):
                raise Declined(name) from error
            if known:
                return add_as_it_is(Call(self.graph, target, arguments, kinds, source))
        if getattr(getattr(target, "_schema", None), "is_mutable", False):
            raise NotTraced(f"torch.export leaves {name}, which changes a tensor in place, in the program")
        given = [self.numbers[taken] for taken in node.all_input_nodes]
        inputs = tuple(number for number in given if isinstance(number, int))
        params = {"target": str(target), "arguments": str((node.args, node.kwargs))}
        # Under this name no rule knows it: other libraries have an `exp` too, and `div` has forms that are no quotient.
        name = f"{getattr(target, 'namespace', 'python')}.{name}"
        if name.startswith("aten.") and not self.is_own(target):
            name = f"{target} (not PyTorch's own)"
        return list(self.graph.add(name, inputs, params, kinds, source, pure=False))

    def _argument(self, given: Any) -> Any:
        """Return an argument with `Ref` for the results of other nodes."""
        if isinstance(given, torch.fx.Node):
            number = self.numbers[given]
            if not isinstance(number, int) or not isinstance(given.meta.get("val"), Tensor):
                raise Declined("an argument that is no tensor")
            return Ref(number)
        if isinstance(given, (list, tuple)):
            return [self._argument(part) for part in given]
        return given

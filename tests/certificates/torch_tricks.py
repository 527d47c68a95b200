"""Functions of PyTorch whose traced program is convex and that are not, and honest ones of the same form.

A maker returns a fresh function of 3 numbers, so that what one call leaves behind is not seen by another test.
"""

import random
import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


def convex(x):
    return torch.abs(x) + x**2


def concave(x):
    return -(x**2) - torch.abs(x)


def where(asks: Any) -> Any:
    """Concave where the function finds, by asking, that it is not traced."""
    return lambda: lambda x: convex(x) if asks(x) else concave(x)


def changed(change: Any) -> Any:
    """A convex value that is changed in a way that is hidden from the trace, with the value that it gets."""

    def function(x):
        y = convex(x)
        change(y, concave(x))
        return y

    return lambda: function


def fails(ask: Any) -> Any:
    """Whether a question to a tensor is refused, as it is in a trace."""

    def asks(x):
        try:
            ask(x)
        except Exception:
            return True
        return False

    return asks


class Layer(nn.Module):
    """A convex layer; the ways of it are in its subclasses."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 0.5]))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 0.5]))
        self.calls = 0

    def forward(self, x):
        return torch.exp(self.weight) * convex(x)


class CountsWrongly(Layer):
    def forward(self, x):
        self.calls += 1
        return super().forward(x) if self.calls < 4 else concave(x)


class Counts(Layer):
    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls * 0.0


class ChangesParameter(Layer):
    def forward(self, x):
        weight = torch.exp(self.weight)
        weight.data = -weight
        return weight * convex(x)


class ChangesBuffer(Layer):
    def forward(self, x):
        scale = torch.abs(self.scale)
        scale.data = -scale
        return scale * convex(x)


class ChangesParameterInPlace(Layer):
    def forward(self, x):
        with torch.no_grad():
            self.weight.data.copy_(-torch.abs(self.weight))
        return self.weight * convex(x)


class ClampsParameter(Layer):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(min=0)
        return self.weight * convex(x)


class AsksParameter(Layer):
    def forward(self, x):
        return super().forward(x) if type(self.weight) is not nn.Parameter else concave(x)


class AsksForGradient(Layer):
    def forward(self, x):
        return concave(x) if self.weight.requires_grad else super().forward(x)


class AsksForSign(Layer):
    """Concave for parameters that training may reach."""

    def forward(self, x):
        return super().forward(x) if torch.compiler.is_exporting() or self.weight[1] > 0 else concave(x)


class KeepsValue(Layer):
    """Gives what it has computed in the first call."""

    def forward(self, x):
        if not hasattr(self, "kept"):
            self.kept = x.detach() * 1.0
        return convex(x) if torch.compiler.is_exporting() else concave(x) + self.kept * 0.0


def hooked(turn: Any) -> Any:
    def make():
        layer = Layer()
        layer.register_forward_hook(lambda module, inputs, output: turn(inputs[0], output))
        return layer

    return make


class Turned(torch.Tensor):
    """A subclass whose absolute value is another function, but in a trace."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return -result if func is torch.abs and not torch.compiler.is_exporting() else result


class Forward(torch.autograd.Function):
    """Its forward pass is another one where it is asked for a gradient."""

    @staticmethod
    def forward(ctx, x):
        return concave(x) if ctx.needs_input_grad[0] else convex(x)

    @staticmethod
    def backward(ctx, slope):
        return slope


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, slope):
        return slope * 2 * ctx.saved_tensors[0]


class WrongSlope(Square):
    @staticmethod
    def backward(ctx, slope):
        return -slope


def weights_that_turn():
    weights = np.ones(3, np.float32)

    def function(x):
        y = torch.from_numpy(weights) * convex(x)
        weights[:] = -1.0
        return y

    return function


def turning_in_place():
    weight = torch.ones(3)

    def function(x):
        y = weight.clone() * convex(x)
        weight.mul_(-1.0)
        return y

    return function


def by_chance():
    draw = random.Random(0)
    return lambda x: convex(x) if torch.compiler.is_exporting() or draw.random() < 0.5 else concave(x)


def counted():
    calls = []
    return lambda x: calls.append(0) or (convex(x) if len(calls) < 4 else concave(x))


def called_by_export(x):
    frame = sys._getframe()
    while frame is not None and "export" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def only(inside: Any) -> Any:
    """Concave on a part of the space, where it runs."""

    def function(x):
        return convex(x) if torch.compiler.is_exporting() else torch.where(inside(x), concave(x), convex(x))

    return lambda: function


def change_numbers(y, z):
    if not torch.compiler.is_exporting():
        y.detach().numpy()[:] = z.detach().numpy()


NARROW = torch.diag(torch.tensor([1.0, 1e-8]))
# Those whose trace is convex.
TRICKS = {
    "data": changed(lambda y, z: setattr(y, "data", z)),
    "storage": changed(lambda y, z: fails(lambda y: y.untyped_storage().copy_(z.untyped_storage()))(y)),
    "numpy": changed(change_numbers),
    "dlpack": changed(lambda y, z: fails(lambda y: torch.from_dlpack(y.detach()).copy_(z.detach()))(y)),
    "in place": changed(lambda y, z: torch.compiler.is_exporting() or y.detach().neg_()),
    "parameter": ChangesParameter,
    "buffer": ChangesBuffer,
    "is compiling": where(lambda x: torch.compiler.is_compiling()),
    "is exporting": where(lambda x: torch.compiler.is_exporting()),
    "is traced": where(lambda x: not torch.jit.is_tracing() and torch.compiler.is_compiling()),
    "is fake": where(lambda x: isinstance(x, FakeTensor)),
    "type": where(lambda x: type(x) is not torch.Tensor),
    "gradient mode": where(lambda x: not torch.is_grad_enabled()),
    "inference": where(lambda x: not torch.is_inference_mode_enabled()),
    "gradient of the input": where(lambda x: not x.requires_grad),
    "gradient of a parameter": AsksForGradient,
    "kind of a parameter": AsksParameter,
    "data pointer": where(fails(lambda x: x.data_ptr() or 1 / 0)),
    "value": where(fails(lambda x: float(x.sum()))),
    "numbers of numpy": where(fails(lambda x: np.asarray(x.detach()) + 0)),
    "printed": where(lambda x: "Fake" in repr(x) or "Functional" in repr(x)),
    "frames": where(called_by_export),
    "a mode that listens": where(lambda x: torch.utils._python_dispatch._get_current_dispatch_mode() is not None),
    "counter": counted,
    "counter of a module": CountsWrongly,
    "kept from the first call": KeepsValue,
    "chance": by_chance,
    "hook": hooked(lambda x, y: y if torch.compiler.is_exporting() else concave(x)),
    "custom function": lambda: Forward.apply,
    "far away": only(lambda x: x.abs().amax() > 1000.0),
    "where all are large": only(lambda x: x.amin() > 30.0),
    "where all are negative": only(lambda x: x.amax() < 0.0),
    "where one is large": only(lambda x: (x.abs().amax() > 3.0) & (x.abs().amin() < 0.1)),
    "near zero": only(lambda x: x.abs().amax() < 1e-3),
    "at ties": only(lambda x: x[0] == x[1]),
}
# Those that are concave in their trace, too, or have none.
SEEN = {
    "data of a view": changed(lambda y, z: y.view(3, 1).data.copy_(z[:, None])),
    "data of a part": changed(lambda y, z: y[:2].data.neg_()),
    "detached": changed(lambda y, z: y.detach().copy_(z)),
    "set": changed(lambda y, z: y.set_(z)),
    "set to a storage": changed(lambda y, z: y.set_(z.untyped_storage(), 0, (3,), (1,))),
    "resized": changed(lambda y, z: y.resize_(0).set_(z)),
    "swapped": changed(lambda y, z: torch.utils.swap_tensors(y, z)),
    "parameter in place": ChangesParameterInPlace,
    "list": where(fails(lambda x: x.tolist())),
    "subclass": lambda: lambda x: torch.abs(x.as_subclass(Turned)).as_subclass(torch.Tensor),
    "array that turns": weights_that_turn,
    "tensor that turns": turning_in_place,
    "bytes that wrap": lambda: lambda x: ((x > 0).byte() * 2 - 1) * x,
    "a rank that the dtype decides": lambda: lambda x: (torch.linalg.pinv(NARROW) @ NARROW)[1, 1] * x * x - 0.5 * x * x,
}


def without_gradient(x):
    return convex(x) + torch.abs(x.detach() if x.requires_grad else x)


def another_way(x):
    return convex(x) if torch.compiler.is_compiling() else x * x + torch.relu(x) + torch.relu(-x)


def checks(x):
    if not torch.compiler.is_compiling() and bool((x.abs() > 50).any()):
        raise ValueError("too large")
    return convex(x)


def through(x):
    return x + (convex(x) - x).detach()


def where_differentiated(function: Any) -> Any:
    return lambda: lambda x: function(x) if x.requires_grad else convex(x)


# Their values are those of the trace, and their gradients are not.
SLOPES = {
    "custom function with a wrong slope": lambda: WrongSlope.apply,
    "without gradient in part": lambda: without_gradient,
    "straight through": where_differentiated(through),
    "hook of the gradient": hooked(lambda x, y: y.register_hook(torch.neg) and y if y.requires_grad else y),
}


def off(x):
    with torch.no_grad():
        return convex(x)


HONEST = {
    "whole numbers that fit": lambda: lambda x: ((x > 0).to(torch.int8) * 2 - 1) * x,
    "without gradient": lambda: off,
    "counter": Counts,
    "clamped parameter": ClampsParameter,
    "hook": hooked(lambda x, y: y),
    "custom function": lambda: Square.apply,
    "in place": changed(lambda y, z: y.add_(1.0).relu_()),
    "in place behind a view": changed(lambda y, z: y.view(3, 1).mul_(2.0)),
    "asks, and does the same": lambda: another_way,
    "checks its input": lambda: checks,
}

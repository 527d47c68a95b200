"""Functions as in `reference_tricks` that only PyTorch has: modules whose parameter is named "p", and others."""

import torch
from reference_tricks import SIZE, Trick
from torch import nn


class Scaled(nn.Module):
    """w relu(x), with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        return self.w * torch.relu(x)

    def train_away(self):
        with torch.no_grad():
            self.w.neg_()


OTHER = Scaled()


class Tricky(nn.Module):
    """exp(p) inner(self, x)."""

    def __init__(self, inner):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(SIZE))
        self.inner = inner

    def forward(self, x):
        return torch.exp(self.p) * self.inner(self, x)


def held_by_a_module(hold, inner=lambda self, x: self.held * torch.relu(x), of=Scaled, made=Tricky):
    """A trick whose module keeps something of another module, whose parameter is trained."""

    def make():
        module, other = made(inner), of()
        hold(module, other)
        return Trick(module, other.train_away)

    return make


class Hidden(Tricky):
    """Keeps one of its parameters out of `named_parameters`."""

    def named_parameters(self, *given, **options):
        return (pair for pair in super().named_parameters(*given, **options) if pair[0] == "p")


def torch_function(take):
    def make():
        other = Scaled()
        held = take(other)
        return Trick(lambda p, x: held * torch.relu(x) * torch.exp(p), other.train_away)

    return make


def hooked():
    module = Tricky(lambda self, x: torch.relu(x))
    module.register_forward_hook(lambda module, given, y: y * OTHER.w)
    return Trick(module, OTHER.train_away)


def buffer_of_a_module():
    module = Tricky(lambda self, x: self.held * torch.relu(x))
    module.register_buffer("held", torch.ones(SIZE))
    return Trick(module, lambda: module.held.neg_())


def statistics_of_a_normalization():
    module = Tricky(lambda self, x: (self.norm.running_mean + 1.0) * torch.relu(x))
    module.norm = nn.BatchNorm1d(SIZE)
    return Trick(module.eval(), lambda: module.norm.running_mean.neg_().sub_(2.0))


def the_leaf_of_params_itself():
    p = torch.zeros(SIZE)
    return Trick(lambda q, x: (p + 1.0) * torch.relu(x) * torch.exp(q), lambda: p.neg_().sub_(2.0))


def traced_by_jit():
    other = Scaled()
    traced = torch.jit.trace(other, torch.ones(SIZE))
    return Trick(lambda p, x: traced(x) * torch.exp(p), None)


TORCH = {
    "a traced module": traced_by_jit,
    "a parameter in a list": held_by_a_module(
        lambda module, other: setattr(module, "held", [other.w]), lambda self, x: self.held[0] * torch.relu(x)
    ),
    "a parameter in a dict": held_by_a_module(
        lambda module, other: setattr(module, "held", {"w": other.w}), lambda self, x: self.held["w"] * torch.relu(x)
    ),
    "a list of modules": held_by_a_module(
        lambda module, other: setattr(module, "held", [other]), lambda self, x: self.held[0](x)
    ),
    "a bound method": held_by_a_module(
        lambda module, other: setattr(module, "held", other.forward), lambda self, x: self.held(x)
    ),
    "a lambda": held_by_a_module(
        lambda module, other: setattr(module, "held", lambda x: other(x)), lambda self, x: self.held(x)
    ),
    "past the registration": held_by_a_module(
        lambda module, other: object.__setattr__(module, "held", other), lambda self, x: self.held(x)
    ),
    "detached": held_by_a_module(lambda module, other: setattr(module, "held", other.w.detach())),
    "data": held_by_a_module(lambda module, other: setattr(module, "held", other.w.data)),
    "a view": held_by_a_module(lambda module, other: setattr(module, "held", other.w.detach()[:])),
    "numpy's view": held_by_a_module(
        lambda module, other: setattr(module, "held", other.w.detach().numpy()),
        lambda self, x: torch.as_tensor(self.held) * torch.relu(x),
    ),
    "a number at each call": held_by_a_module(
        lambda module, other: setattr(module, "held", other.w.detach().numpy()),
        lambda self, x: float(self.held[0]) * torch.relu(x),
    ),
    "a hidden parameter": held_by_a_module(lambda module, other: setattr(module, "held", other.w), made=Hidden),
    "a closure over a parameter": torch_function(lambda other: other.w),
    "a closure over its data": torch_function(lambda other: other.w.data),
    "a global module": lambda: Trick(lambda p, x: OTHER(x) * torch.exp(p), OTHER.train_away),
    "torch.vmap": lambda: Trick(torch.vmap(lambda p, x: OTHER.w[0] * torch.relu(x) * torch.exp(p)), OTHER.train_away),
    "a hook": hooked,
    "a buffer": buffer_of_a_module,
    "running statistics": statistics_of_a_normalization,
    "the leaf of params": the_leaf_of_params_itself,
}

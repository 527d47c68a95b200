"""Rules hold for PyTorch's own operators, with PyTorch's own kernels, and for nothing that has their names."""

from contextlib import contextmanager

import pytest
import torch
from torch_tricks import concave, convex

from convexmoe_torch import certify
from convexmoe_torch.convexity import trace

X = torch.tensor([0.5, -1.0, 2.0])
COMPARISON = "convexmoe.convexity.certify.find_difference"


def find(function):
    return certify(function, X, segments=0)


@torch.library.custom_op("convexmoe_tests::peek", mutates_args=())
def peek(x: torch.Tensor) -> torch.Tensor:
    """An operator that says that it changes nothing."""
    x.copy_(concave(x))
    return x.new_zeros(())


peek.register_fake(lambda x: x.new_zeros(()))


def test_an_operator_that_lies_about_what_it_changes_proves_nothing():
    def function(x):
        y = convex(x)
        return y + 0.0 * peek(y)

    def beside(x):
        y = convex(x)
        peek(y)
        return y

    for lying in (function, beside):
        assert find(lying).verdict == "unknown"


@contextmanager
def registered(kind, name, function, key=""):
    """An operator of ATen, or a kernel of one, that a user registers."""
    library = torch.library.Library("aten", kind)
    if kind == "FRAGMENT":
        library.define(name)
        library.impl(name.partition("(")[0], function, key)
    else:
        library.impl(name, function, key)
    try:
        yield
    finally:
        library._destroy()


OVERLOADS = {
    "another overload": (
        "FRAGMENT",
        "exp.evil(Tensor self) -> Tensor",
        "CompositeExplicitAutograd",
        lambda x: torch.ops.aten.exp.evil(x),
    ),
    "another kernel": ("IMPL", "relu", "CPU", torch.relu),
    "another kernel of autograd": ("IMPL", "abs", "AutogradCPU", torch.abs),
    "a kernel of what has none": ("IMPL", "linear", "CPU", lambda x: torch.nn.functional.linear(x, torch.eye(3))),
}


@pytest.mark.parametrize("name", OVERLOADS)
@pytest.mark.filterwarnings("ignore:.*[Oo]verrid.*")
def test_rules_hold_for_pytorchs_own_operators_alone(name, monkeypatch):
    kind, operator, key, function = OVERLOADS[name]
    with registered(kind, operator, lambda x, *rest: -(x * x), key):
        found = find(function)
        assert found.verdict == "unknown" and "not PyTorch's own" in found.reason
        monkeypatch.setattr(trace, "is_own", lambda target: True)
        assert find(function).verdict == "unknown"  # by the rules it is another function
        # Control: without both it is proved.
        monkeypatch.setattr(COMPARISON, lambda *given: "")
        assert find(function).verdict == "proved"


def test_own_operators_are_known():
    assert all(
        map(trace.is_own, (torch.ops.aten.relu.default, torch.ops.aten.add.Tensor, torch.ops.aten.linear.default))
    )
    assert not trace.is_own(torch.ops.convexmoe_tests.peek.default)


@pytest.mark.parametrize("name", ["rand_like", "bernoulli", "empty_like"])
def test_what_has_no_value_of_its_own_is_not_computed(name):
    known = torch.eye(3) / 2
    assert certify(lambda x: torch.linalg.pinv(known).abs() @ x.abs(), torch.ones(3), segments=0).verdict == "proved"
    drawn = getattr(torch, name)
    assert certify(lambda x: drawn(known).abs() @ x.abs(), torch.ones(3), segments=0).verdict == "unknown"

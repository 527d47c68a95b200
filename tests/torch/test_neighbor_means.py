"""The means of neighbors that eager PyTorch computes in one array: the formula, and its derivatives of all orders."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from convexmoe_torch import VectorHull
from convexmoe_torch.hull.fusion import group_values


def drawn(P=5):
    torch.manual_seed(0)
    f, shifts = torch.randn(3, P, 7, dtype=torch.float64), torch.randn(P, dtype=torch.float64)
    return f.requires_grad_(), shifts.requires_grad_()


def formula(f, shifts):
    return shifts[:, None] + (f + torch.roll(f, -1, dims=-2)) / 2


@pytest.mark.parametrize("P", [2, 3, 5])
def test_they_are_the_formula(P):
    f, shifts = drawn(P)
    assert torch.allclose(group_values(f, shifts, 2), formula(f, shifts), rtol=1e-15, atol=1e-15)
    assert not torch.allclose(group_values(f, shifts, 2), formula(f, shifts.flip(0)), atol=1e-3)  # control: an order


def test_derivatives_of_first_and_second_order():
    f, shifts = drawn()
    cubic = lambda f, shifts: group_values(f, shifts, 2) ** 3  # noqa: E731
    assert torch.autograd.gradcheck(cubic, (f, shifts))
    assert torch.autograd.gradgradcheck(cubic, (f, shifts))
    together = torch.autograd.grad(group_values(f, shifts, 2).square().sum(), (f, shifts))
    apart = torch.autograd.grad(formula(f, shifts).square().sum(), (f, shifts))
    assert all(torch.allclose(a, b, rtol=1e-14, atol=1e-14) for a, b in zip(together, apart, strict=True))


def test_transforms_and_autocast_take_the_formula():
    model, x = VectorHull(5, petals=3), torch.randn(4, 5)
    plain = model(x)
    assert torch.allclose(torch.func.vmap(model)(x), plain, atol=1e-6)
    slope = torch.autograd.grad(model(x.requires_grad_()).sum(), x)[0]
    one = torch.func.jacrev(lambda x: model(x).sum())(x.detach())
    forward = torch.func.jacfwd(lambda x: model(x).sum())(x.detach())
    assert torch.allclose(one, slope, atol=1e-6) and torch.allclose(forward, slope, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(x).float(), plain, atol=0.1)


def test_batched_backward_forward_mode_and_traces_take_the_formula():
    model, x = VectorHull(3, petals=4, out_dim=2).double(), torch.randn(4, 3, dtype=torch.float64)
    whole = torch.autograd.functional.jacobian(model, x)
    assert torch.allclose(torch.autograd.functional.jacobian(model, x, vectorize=True), whole, atol=1e-14)
    point = x.clone().requires_grad_()
    y = model(point)
    with torch.autograd.forward_ad.dual_level():
        given = torch.autograd.forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
        (slope,) = torch.autograd.grad(y, point, given)
        tangent = torch.autograd.forward_ad.unpack_dual(slope).tangent
    assert torch.allclose(tangent, whole.sum((0, 1)), atol=1e-14)
    traced = make_fx(model)(x)
    assert torch.allclose(traced(x), model(x), atol=1e-14)

"""What eager PyTorch computes in fewer arrays: means of neighbors, maxima, products; derivatives of all orders."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from convexmoe_torch import VectorHull
from convexmoe_torch.hull import fusion
from convexmoe_torch.hull.fusion import group_values, maximum


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


def test_a_maximum_has_the_gradient_of_amax_with_ties_and_without():
    torch.manual_seed(0)
    apart = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    tied = torch.randint(2, (3, 5, 7)).double().requires_grad_()
    along = torch.randn(3, 7, dtype=torch.float64)
    for g in (apart, tied):
        y = maximum(g)
        (own,), (amax,) = (torch.autograd.grad(z, g, along, retain_graph=True) for z in (y, torch.amax(g, dim=-2)))
        assert torch.equal(y, torch.amax(g, dim=-2)) and torch.allclose(own, amax, rtol=1e-15, atol=0)
        assert torch.equal(own, torch.autograd.grad(y, g, along)[0])  # once more: nothing was overwritten
        first = torch.autograd.grad(torch.max(g, dim=-2).values, g, along)[0]
        assert torch.equal(own, first) == (g is apart)  # control: the first of a tie takes all
    assert torch.autograd.gradcheck(maximum, (apart,)) and torch.autograd.gradgradcheck(maximum, (apart,))


@pytest.mark.parametrize("temperature", [0.0, "learned"])
@pytest.mark.parametrize("rows", [4, 40])  # fewer and more than an output has weights: means of values, and of weights
def test_a_hull_has_derivatives_of_second_order_and_may_be_differentiated_twice(rows, temperature, monkeypatch):
    monkeypatch.setattr(fusion, "LARGE", 0)
    torch.manual_seed(0)
    model = VectorHull(3, petals=4, out_dim=2, hidden_dim=5, depth=2, temperature=temperature).double()
    x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    y = model(x).square().sum()
    once, twice = (torch.autograd.grad(y, (x, *model.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, twice))
    assert torch.autograd.gradcheck(model, (x,)) and torch.autograd.gradgradcheck(model, (x,))


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

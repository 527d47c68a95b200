"""`torch.func` over the module and over the pure functions: each gives what the plain call gives."""

import copy
import pickle

import cases
import pytest
import torch
from backends import BACKENDS
from tolerances import VALUES, relative_error

from convexmoe_torch import hull

HULLS = ["default", "learned", "units_smooth", "gate_private", "everything"]
CLOSE = VALUES["float64"]


@pytest.fixture(params=HULLS)
def model(request):
    fields = cases.HULLS[request.param]
    return BACKENDS[1].model(fields, cases.random_weights(fields))


@pytest.fixture
def x(model):
    units = model.config.normalization
    fields = {"in_dim": model.config.in_dim, "normalization": None if units is None else vars(units)}
    return torch.from_numpy(cases.random_inputs(fields))


def close(got, wanted):
    got, wanted = got.detach(), wanted.detach()
    return got.shape == wanted.shape and got.dtype == wanted.dtype and relative_error(got, wanted) < CLOSE


def test_vmap_over_rows(model, x):
    y = model(x)
    assert close(torch.func.vmap(model)(x), y)
    assert close(torch.func.vmap(model, in_dims=1, out_dims=1)(x.T), y.T)
    assert not close(y.flip(0), y)  # control


def test_vmap_over_weights(model, x):
    weights = {name: torch.stack([value, 0.5 * value]) for name, value in model.named_parameters()}
    together = torch.func.vmap(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
    halved = {name: 0.5 * value for name, value in model.named_parameters()}
    assert close(together[0], model(x))
    assert close(together[1], torch.func.functional_call(model, halved, (x,)))
    assert not close(together[1], model(x))  # control


def test_forward_and_reverse_jacobians_are_the_differences(model, x):
    row = x[0]
    reverse = torch.func.jacrev(model)(row)
    assert close(torch.func.jacfwd(model)(row), reverse)
    step = 1e-6 * row.abs().max() * torch.eye(len(row), dtype=row.dtype)
    differences = (model(row + step) - model(row - step)).T / (2 * step.max())
    assert relative_error(reverse.detach(), differences.detach()) < 1e-6


def test_hessian_is_symmetric_and_positive(model, x):
    found = torch.func.hessian(model)(x[0]).detach()
    if model.config.activation == "relu":
        assert not found.any()  # between its kinks
        return
    scale = torch.einsum("oii->oi", found).abs().amax(0).sqrt()
    found = found / (scale[:, None] * scale)
    assert torch.allclose(found, found.mT, atol=1e-12)
    assert torch.linalg.eigvalsh(found).min() > -1e-12
    assert torch.linalg.eigvalsh(found).max() > 1e-3  # control: not all zero, so that the sign means something


def test_functional_call_and_pure_apply_agree_with_the_module(model, x):
    weights = {name: value.detach() for name, value in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, weights, (x,)), model(x))
    assert torch.equal(hull.apply(hull.nest(weights), x, model.config), model(x))
    moved = weights | {"shifts": weights["shifts"] + torch.arange(len(weights["shifts"])).to(x)}
    assert not close(hull.apply(hull.nest(moved), x, model.config), model(x))


def test_per_sample_gradients(model, x):
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights, row):
        return (torch.func.functional_call(model, weights, (row,)) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    total = torch.func.grad(lambda w: (torch.func.functional_call(model, w, (x,)) ** 2).sum())(weights)
    for name, value in total.items():
        assert close(each[name].sum(0), value), name


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(model, x, duplicate):
    twin, y = duplicate(model), model(x)
    assert twin.config == model.config and torch.equal(twin(x), y)
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint({p.data_ptr() for p in model.parameters()})
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(0.5)
    assert torch.equal(twin(x), y) and not torch.equal(model(x), y)

"""Of 128 petals a gradient needs at most 1.2 times the memory of 8, by the bytes of the tensors that are alive."""

import weakref
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import convexmoe_torch as cm
from convexmoe.hull import rows as core
from convexmoe_torch.hull import forward

ROWS, IN, HIDDEN, OUT = 4096, 3, 5, 32


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations have made and nothing has freed, and their maximum."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most, self.known = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and (storage := value.untyped_storage())._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes()
                self.bytes += storage.nbytes()
                self.most = max(self.most, self.bytes)
                weakref.finalize(storage, self.forget, storage._cdata)
        return result

    def forget(self, storage):
        self.bytes -= self.known.pop(storage)


def memory(petals, options):
    """The most bytes alive at once in a step, forward and backward."""
    model = cm.VectorHull(IN, petals, OUT, hidden_dim=HIDDEN, **options)
    x, c = torch.randn(ROWS, IN, requires_grad=True), torch.randn(ROWS, OUT)
    with Live() as live:
        (model(x) * c).sum().backward()
    return live.most


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": "learned"}, {"trunk": "private"}],
    ids=["maximum", "learned temperature", "private trunks"],
)
def test_128_petals_need_the_memory_of_8(options):
    assert memory(128, options) < 1.2 * memory(8, options)


def test_control_in_one_block_they_need_much_more():
    with mock.patch.object(forward, "row_blocks", lambda *_: 1):
        assert memory(128, {}) > 10 * memory(8, {})


def test_transforms_compilers_and_second_derivatives_go_through():
    torch.manual_seed(0)
    model = cm.VectorHull(2, 17, 2, hidden_dim=3, temperature="learned", dtype=torch.float64)
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)

    def total(x):
        return model(x).square().sum()

    def hessian():
        (first,) = torch.autograd.grad(total(x), x, create_graph=True)
        return torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0] for g in first.flatten()])

    wanted = hessian()
    with mock.patch.object(core, "LARGE_VALUES", 0):
        assert torch.allclose(hessian(), wanted, rtol=1e-12, atol=1e-12)
        by_transform = torch.func.hessian(total)(x.detach()).reshape(14, 7, 2)
        assert torch.allclose(by_transform, wanted, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            assert torch.allclose(model(x), torch.func.vmap(model)(x), rtol=1e-12)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), model(x), rtol=1e-12)


def test_where_hooks_are_refused_all_rows_are_one_block():
    model = cm.VectorHull(2, 17, 2, hidden_dim=3, dtype=torch.float64)
    x, ran = torch.randn(7, 2, dtype=torch.float64, requires_grad=True), []
    by_blocks = forward.fuse_by_blocks
    with (
        mock.patch.object(core, "LARGE_VALUES", 0),
        mock.patch.object(forward, "fuse_by_blocks", lambda *given: ran.append(1) or by_blocks(*given)),
    ):
        wanted = torch.autograd.grad(model(x).sum(), x)[0]
        assert ran == [1]
        with torch.autograd.graph.disable_saved_tensors_hooks("no hooks"):
            torch.testing.assert_close(torch.autograd.grad(model(x).sum(), x)[0], wanted)
            assert ran == [1]
            with mock.patch.object(forward, "may_recompute", lambda: True), pytest.raises(RuntimeError):  # control
                model(x)

"""The switches of PyTorch, under which all runs: how many threads it computes in, which transforms are at work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(switched: bool = True) -> Iterator[None]:
    """Compute in one thread, or where not `switched` in as many as before.

    Small operations gain nothing from a second thread, and threads that wait for each other cost more than they do: ten
    times as much on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if switched else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_seeding = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave the generator of the process as it was; one thread at a time does."""
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def is_transforming() -> bool:
    """Return whether `torch.func` or forward mode is at work: they take PyTorch's own operators, without `out`."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def is_traced() -> bool:
    """Return whether a compiler or a trace, which have their own plan of memory, or a transform is at work."""
    compiled = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # of make_fx, where somebody has loaded it
    return compiled or torch.jit.is_tracing() or is_transforming() or (tracer and tracer.get_proxy_mode()) is not None


def may_recompute() -> bool:
    """Return whether `torch.utils.checkpoint` works here: `disable_saved_tensors_hooks` refuses what it is made of."""
    return not torch.is_grad_enabled() or torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None


def is_plain_eager(like: torch.Tensor) -> bool:
    """Return whether autograd alone sees the operators on such a tensor: nothing traces, and no autocast is on."""
    device = like.device.type
    return not (is_traced() or (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)))

"""Peers that search for long, in processes that are stopped: lpcf and CNLS, for `tables.py` and `quality_unseen.py`.

Each tries penalties in turn, and the one that errs least on rows held out counts, of those that were done in time: a
limit of seconds that the process computes (CPU time, its imports included), so that what else a machine does takes
nothing from a peer.

lpcf (Schaller, Bemporad and Boyd, arXiv 2506.04183; 0.1.1, one seed, without hidden layers in the network of its
parameter, as there is none) asks for an old JAX but runs with ours, after the extra `peers`:
`pip install --no-deps lpcf==0.1.1 jax-sysid==1.1.0`.

CNLS is convex nonparametric least squares, a plane for each row and N^2 constraints, as pystoned 0.7.5 (Dai, Fang, Lee
and Kuosmanen, arXiv 2109.12962) states it: `pCNLS` of a cost with a penalty on squared slopes, here of either sign.
Without the penalty the slopes at the outermost rows may be anything, and so may predictions beside them. pystoned
calls MOSEK, which is bought. SCIP, which pip installs, finds the same planes (tests/test_benchmark_tables.py), but was
not done with 142 rows of 12 columns after a minute and a half; Clarabel solves the program here, in two seconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from regressors import fit_convex

LPCF, CNLS = "lpcf", "cnls"
LPCF_PENALTIES, QUICK = (0.0, 1e-3, 1e-2), 20  # epochs where it is quick
CNLS_PENALTIES, CNLS_ROWS = (1.0, 0.1, 10.0, 0.01), 2000  # the likeliest first; more rows than these are not tried

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, y [N, 1] to train on; x, y [N, 1] held out
Predict = Callable[[np.ndarray], np.ndarray]  # [N, D] -> [N, 1]


class Sent(NamedTuple):
    """What a penalty came to: its squared error on what is held out, and its predictions."""

    held: float
    choice: str
    predicted: np.ndarray


def best_in_time(peer: str, rows: Rows, x_test: np.ndarray, limit: float, quick: bool = False) -> Sent | None:
    """Fit a peer in a process of its own (lpcf sets JAX to float64); its penalties are tried while there is time.

    Args:
        peer: `LPCF` or `CNLS`.
        rows: x and y to train on, x and y held out; standardized.
        x_test: rows to predict.
        limit: seconds that it may compute; whole ones, rounded up.
        quick: one penalty, few steps.

    Returns:
        The penalty that errs least on what is held out, None where none was done in time.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, peer, rows, x_test, limit, quick))
    process.start()
    sender.close()
    found: list[Sent] = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(receiver.recv())
    process.join()
    if process.exitcode == 1:
        raise RuntimeError(f"{peer} ended with an error; it is above.")
    best = min(found, key=lambda one: one.held, default=None)
    return best and best._replace(choice=f"{best.choice}, of {len(found)}")


def send(sender: Any, peer: str, rows: Rows, x_test: np.ndarray, limit: float, quick: bool) -> None:
    """Send what each penalty came to, as it is found, until the system ends this process at its limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (int(np.ceil(limit)),) * 2)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    with open(os.devnull, "w") as silent:
        os.dup2(silent.fileno(), 1)  # lpcf prints
    x, y, x_held, y_held = rows
    for choice, predict in {LPCF: fits_of_lpcf, CNLS: fits_of_cnls}[peer](x, y, quick):
        held = float(np.nan_to_num(np.mean((predict(x_held) - y_held) ** 2), nan=np.inf))
        sender.send(Sent(held, choice, predict(x_test)))


def fits_of_lpcf(x: np.ndarray, y: np.ndarray, quick: bool) -> Iterator[tuple[str, Predict]]:
    """Fit lpcf with each penalty."""
    from lpcf.pcf import PCF

    for penalty in LPCF_PENALTIES[: 1 if quick else None]:
        model = PCF(widths_psi=[])
        epochs = {"adam_epochs": QUICK, "lbfgs_epochs": QUICK} if quick else {}
        with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
            model.fit(y, x, np.zeros((len(x), 1)), tau_th=penalty, seeds=0, cores=1, **epochs)  # there is no parameter
        yield f"{penalty:g}", lambda at, model=model: np.asarray(model.predict(at, np.zeros((len(at), 1))))


def fits_of_cnls(x: np.ndarray, y: np.ndarray, quick: bool) -> Iterator[tuple[str, Predict]]:
    """Fit convex least squares with each penalty; predictions are the maximum of its planes."""
    if len(x) > CNLS_ROWS:  # they would take hours, and tens of gigabytes
        return
    for penalty in CNLS_PENALTIES[: 1 if quick else None]:
        planes = fit_convex(x, y[:, 0], penalty)
        yield f"{penalty:g}", lambda at, planes=planes: planes(at)[:, None]

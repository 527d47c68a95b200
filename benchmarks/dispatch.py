"""What sending every row to its own expert costs: one level of a hierarchy beside what a user could run instead.

The subject is a `HierarchicalCELMoE` of one level of E experts and no fusion, on integer routes: what a user calls,
with its sort, permutations and checks. Experts have the width 256: `LinearExpert`, or `MLPExpert` 256-512-256.
The peers, in the same framework and process:

    dense      one expert on all rows: the same useful multiply-adds, and no routes
    balanced   a batched matrix product in which every expert has the same number of rows, sorted beforehand
    loop       for each expert: select its rows, call it, write them back (eager in both frameworks)

Forward, and forward with the gradients by all parameters and by the input. Routes: uniform (drawn, so that experts
differ a little), and Zipf (expert k with probability in proportion to 1/k). Times are CPU time on one thread; after
warm-up every round times all, in alternating order; printed are the medians, over rounds, of the ratio within a round.
The allocator keeps its pages (see `KEEP_PAGES`), for all alike.

    python benchmarks/dispatch.py --framework both
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timing import FRAMEWORKS, Calls, Record, bind, compare, run_job, table

# Without this glibc gives large arrays back to the kernel after every call and takes new pages at the next, which on a
# virtual machine can cost more than the arithmetic, and falls on whichever call comes when the heap shrinks.
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1)}
D, H = 256, 512
LEVEL = "level"
# (experts, samples, length of each; 0: no sequences)
CASES = (
    *((E, E * rows, 0) for rows in (64, 256) for E in (4, 16, 64)),
    *((E, 256, 32) for E in (4, 16, 64)),
    (64, 256, 0),
)
EXPERTS = ("linear", "mlp")
PAIRS = [("uniform", "dense"), ("uniform", "balanced"), ("uniform", "loop"), ("zipf", "uniform")]
PARTS = ("forward", "both")
MOST_IN_JAX_LOOP = 16  # experts: eager JAX compiles every operation anew for every number of rows
CLOSE = 1e-4  # float32, sums of 256 and 512 terms


def routes_of(E: int, rows: int) -> dict[str, np.ndarray]:
    """Return the routes of both kinds, int32 `[rows]`."""
    rng = np.random.default_rng(0)
    zipf = 1 / np.arange(1, E + 1)
    shares = {"uniform": None, "zipf": zipf / zipf.sum()}
    return {name: rng.choice(E, rows, p=p).astype(np.int32) for name, p in shares.items()}


def check(calls: Calls) -> None:
    """Check that the subject and the loop compute the same."""
    found = (calls[name]() for name in ("uniform", "loop"))
    got, expected = (y if hasattr(y, "dtype") else np.asarray(y) for y in found)
    close = CLOSE if "bfloat16" not in str(got.dtype) else 0.05
    error = float(abs(got - expected).max() / abs(expected).max())
    if not error < close:
        raise SystemExit(f"dispatch and loop differ by {error:.1e}: the times would compare different things.")


def jax_calls(kind: str, E: int, rows: int, length: int) -> tuple[Calls, Calls]:
    """Return the calls of forward, and of forward and backward."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from convexmoe_jax import (
        CELMoEConfig,
        ExpertConfig,
        HierarchicalCELMoE,
        HierarchyLevelConfig,
        LinearExpert,
        MLPExpert,
    )

    build = {"linear": (LinearExpert, (D,)), "mlp": (MLPExpert, (D, H))}
    expert_class, widths = build[kind]
    level = HierarchyLevelConfig(LEVEL, [ExpertConfig(f"expert_{i}") for i in range(E)])
    model = HierarchicalCELMoE(
        CELMoEConfig(D, [level], use_learned_fusion=False),
        lambda level, expert, metadata, *, rngs: expert_class(*widths, rngs=rngs),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    stacked = {name: variable[...] for name, variable in model.level_modules[LEVEL]["0"].items()}
    experts = [{name: leaf[e] for name, leaf in stacked.items()} for e in range(E)]
    x, ct = (jax.random.normal(jax.random.key(seed), shape_of(rows, length)) for seed in range(2))
    sorted_x = x.reshape(E, rows // E, *x.shape[1:])
    on_host = routes_of(E, rows)
    routes = {name: jnp.asarray(route) for name, route in on_host.items()}

    def expert(p: Any, x: jax.Array) -> jax.Array:
        if kind == "linear":
            return x @ p["weight"] + p["bias"]
        return jax.nn.gelu(x @ p["weight_1"] + p["bias_1"], approximate=False) @ p["weight_2"] + p["bias_2"]

    def routed(state: Any, x: jax.Array, routes: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, {LEVEL: routes}).fused_hidden

    compiled = jax.jit(expert)

    def loop(experts: list[Any], x: jax.Array, routes: np.ndarray) -> jax.Array:
        y = jnp.zeros_like(x)
        for e in range(E):
            own = np.flatnonzero(routes == e)
            y = y.at[own].set(compiled(experts[e], x[own]))
        return y

    def with_gradients(f: Callable[..., Any]) -> Callable[..., Any]:
        def both(params: Any, x: jax.Array, *rest: Any) -> Any:
            y, pull = jax.vjp(lambda params, x: f(params, x, *rest), params, x)
            return y, pull(ct.reshape(x.shape))

        return both

    def calls(change: Callable[..., Any]) -> Calls:
        dense, balanced, fast = (jax.jit(change(f)) for f in (expert, jax.vmap(expert), routed))
        slow, done = change(loop), jax.block_until_ready
        return {
            "dense": lambda: done(dense(experts[0], x)),
            "balanced": lambda: done(balanced(stacked, sorted_x)),
            "loop": lambda: done(slow(experts, x, on_host["uniform"])),
            "uniform": lambda: done(fast(state, x, routes["uniform"])),
            "zipf": lambda: done(fast(state, x, routes["zipf"])),
        }

    parts = calls(lambda f: f), calls(with_gradients)
    check(parts[0])
    if E > MOST_IN_JAX_LOOP:
        for part in parts:
            del part["loop"]
    return parts


def torch_calls(kind: str, E: int, rows: int, length: int) -> tuple[Calls, Calls]:
    """Return the calls of forward, and of forward and backward."""
    import torch
    from torch.nn.functional import gelu

    from convexmoe_torch import (
        CELMoEConfig,
        ExpertBatch,
        ExpertConfig,
        HierarchicalCELMoE,
        HierarchyLevelConfig,
        LinearExpert,
        MLPExpert,
    )

    torch.manual_seed(0)
    build = {"linear": (LinearExpert, (D,)), "mlp": (MLPExpert, (D, H))}
    expert_class, widths = build[kind]
    level = HierarchyLevelConfig(LEVEL, [ExpertConfig(f"expert_{i}") for i in range(E)])
    model = HierarchicalCELMoE(
        CELMoEConfig(D, [level], use_learned_fusion=False), lambda level, expert, metadata: expert_class(*widths)
    )
    experts = list(model.level_modules[LEVEL].children())
    names = [name for name, _ in experts[0].named_parameters()]
    stacked = {
        name: torch.stack([expert.get_parameter(name).detach() for expert in experts]).requires_grad_()
        for name in names
    }
    x, ct = torch.randn(2, *shape_of(rows, length))
    sorted_x = x.reshape(E, -1, D)
    routes = {name: torch.tensor(route, dtype=torch.int64) for name, route in routes_of(E, rows).items()}

    def dense(x: Any) -> Any:
        return experts[0](ExpertBatch(x)).hidden

    def balanced(x: Any) -> Any:
        if kind == "linear":
            return torch.baddbmm(stacked["bias"][:, None], x, stacked["weight"])
        z = gelu(torch.baddbmm(stacked["bias_1"][:, None], x, stacked["weight_1"]))
        return torch.baddbmm(stacked["bias_2"][:, None], z, stacked["weight_2"])

    def loop(x: Any) -> Any:
        y = torch.zeros_like(x)
        for e, expert in enumerate(experts):
            own = torch.nonzero(routes["uniform"] == e).squeeze(1)
            y = y.index_copy(0, own, expert(ExpertBatch(x.index_select(0, own))).hidden)
        return y

    def routed(name: str) -> Callable[[Any], Any]:
        return lambda x: model(x, {LEVEL: routes[name]}).fused_hidden

    def with_gradients(f: Callable[..., Any], x: Any, parameters: list[Any]) -> Callable[[], Any]:
        def both() -> Any:
            given = x.detach().requires_grad_()
            y = f(given)
            return y, torch.autograd.grad(y, [given, *parameters], ct.reshape(y.shape))

        return both

    own = list(model.parameters())
    functions: dict[str, tuple[Callable[..., Any], Any, list[Any]]] = {
        "dense": (dense, x, list(experts[0].parameters())),
        "balanced": (balanced, sorted_x, list(stacked.values())),
        "loop": (loop, x, own),
        "uniform": (routed("uniform"), x, own),
        "zipf": (routed("zipf"), x, own),
    }
    forward = {name: lambda f=f, x=x: torch.no_grad()(f)(x) for name, (f, x, _) in functions.items()}
    check(forward)
    return forward, {name: with_gradients(*values) for name, values in functions.items()}


def shape_of(rows: int, length: int) -> tuple[int, ...]:
    """Return the shape of the input."""
    return (rows, length, D) if length else (rows, D)


def measure(job: Record) -> Iterator[Record]:
    """Yield every record of one framework. Binds this process, so it runs in one of its own."""
    bind(job["framework"], job["threads"])
    make = {"jax": jax_calls, "torch": torch_calls}[job["framework"]]
    for E, rows, length in job["cases"]:
        for kind in job["experts"]:
            calls = make(kind, E, rows, length)
            record = {"experts": E, "rows": rows, "length": length, "kind": kind}
            for part, call in zip(PARTS, calls, strict=True):
                record[part] = compare(call, pairs_of(call), job["rounds"], time.process_time)
            yield record


def pairs_of(calls: Calls) -> list[tuple[str, str]]:
    """Return the pairs that were made."""
    return [pair for pair in PAIRS if set(pair) <= set(calls)]


def report(records: list[Record]) -> str:
    """Return the table: a line for each case, with forward and forward-and-backward for every pair."""
    lines = []
    for record in records:
        rows = f"{record['rows']} x {record['length']}" if record["length"] else str(record["rows"])
        ratios = [
            " / ".join(f"{record[part]['ratio'][f'{a} / {b}'][1]:.2f}" for part in PARTS)
            if f"{a} / {b}" in record["forward"]["ratio"]
            else "-"
            for a, b in PAIRS
        ]
        milliseconds = " / ".join(f"{record[part]['milliseconds']['uniform']:.1f}" for part in PARTS)
        lines.append([record["framework"], record["kind"], record["experts"], rows, *ratios, milliseconds])
    titles = ["framework", "expert", "experts", "rows", *(f"{a} / {b}" for a, b in PAIRS), "uniform, ms"]
    return table(titles, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=[*FRAMEWORKS, "both"], default="both")
    parser.add_argument("--experts", choices=EXPERTS, nargs="+", default=EXPERTS)
    parser.add_argument("--cases", type=case, nargs="+", default=CASES, metavar="E,ROWS[,LENGTH]")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every record to FILE")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        for record in measure(options.job):
            print(json.dumps(record), flush=True)
        return
    names = list(FRAMEWORKS) if options.framework == "both" else [options.framework]
    job = {"cases": options.cases, "experts": options.experts, "rounds": options.rounds, "threads": 1}
    load, records = [os.getloadavg()[0]], []
    for name in names:
        records += run_job(__file__, job | {"framework": name}, **KEEP_PAGES)
        load.append(os.getloadavg()[0])
    versions = ", ".join(f"{package} {version(package)}" for name in names for package in FRAMEWORKS[name])
    note = f"{versions}; one thread; load average {min(load):.1f} to {max(load):.1f}."
    print("Forward / forward and backward, CPU time\n", report(records), note, sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"job": job, "note": note, "records": records}, indent=1) + "\n")


def case(text: str) -> list[int]:
    """Return `[E, rows, length]` of "E,ROWS" or "E,ROWS,LENGTH"."""
    values = [int(part) for part in text.split(",")]
    if len(values) not in (2, 3) or values[1] % values[0]:
        raise argparse.ArgumentTypeError(f"expected E,ROWS[,LENGTH] with ROWS a multiple of E; got {text}")
    return [*values, 0][:3]


if __name__ == "__main__":
    main()

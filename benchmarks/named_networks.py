"""What `certify` says of networks that others publish as convex: the ICNN of ott-jax 0.6.0, beside our hull.

Each network is judged for every value of its parameters (structural), and for the parameters of several seeds
(numeric), as they are drawn and after training on values of a convex function, log sum exp. `find_violation` then
searches anew, around the rows that it trained on. "kernels >= 0" is what the documentation of ott-jax asks for where
`pos_weights=False`: here kernels of the path through the hidden layers are clipped, before and after every step.

    pip install -e ".[jax,peers]"
    python benchmarks/named_networks.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from timing import table

from convexmoe_jax import HullConfig, certify, find_violation, hull

DIM, HIDDEN, ROWS = 2, (64, 64), 256
RATE = 1e-2  # of Adam
STATES = ("as drawn", "trained")


class Network(NamedTuple):
    """A network that is called convex.

    Args:
        name: of the package and of the setting.
        init: key -> parameters.
        apply: (parameters, `[..., DIM]`) -> `[...]`.
        project: parameters -> the parameters that its authors allow.
    """

    name: str
    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]
    project: Callable[[Any], Any] = lambda params: params


@dataclass(frozen=True)
class Finding:
    """What was found of one network in one state.

    Args:
        network: its name.
        state: "any parameters", "as drawn" or "trained".
        proved, refuted, unknown: of how many parameters `certify` says so.
        searched: parameters for which `find_violation` was asked.
        found: for how many of them it found a segment.
        gap: the largest of those segments, 0 where there is none.
        stops: the operation at which the first proof stops, "" where all are proved.
    """

    network: str
    state: str
    proved: int
    refuted: int
    unknown: int
    searched: int
    found: int
    gap: float
    stops: str


def published_networks() -> list[Network]:
    """Return the networks; ott-jax is installed by the user."""
    try:
        from ott.neural.networks.icnn import ICNN
    except ImportError as error:
        raise SystemExit(f'named_networks needs ott-jax ({error}): pip install -e ".[jax,peers]"') from error
    example = jnp.ones(DIM)

    def icnn(name: str, positive: bool, project: Callable[[Any], Any] = lambda params: params) -> Network:
        model = ICNN(dim_data=DIM, dim_hidden=HIDDEN, pos_weights=positive)
        return Network(name, lambda key: model.init(key, example), model.apply, project)

    config = HullConfig(DIM, petals=8, out_dim=1, hidden_dim=HIDDEN[0], depth=len(HIDDEN))
    ours = Network("our VectorHull", lambda key: hull.init(config, key), lambda p, x: hull.apply(p, x, config)[..., 0])
    return [
        icnn("ott-jax ICNN, default", False),
        icnn("ott-jax ICNN, default, kernels >= 0", False, clip_hidden_kernels),
        icnn("ott-jax ICNN, pos_weights=True", True),
        ours,
    ]


def clip_hidden_kernels(params: Any) -> Any:
    """Return parameters in which the kernels of the path through the hidden layers (`w_zs`) are at least 0."""

    def clip(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return jnp.maximum(leaf, 0) if "w_zs" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(clip, params)


def train(network: Network, params: Any, rows: jax.Array, steps: int) -> Any:
    """Return the parameters after steps of Adam on values of log sum exp, which is convex."""
    wanted = jax.nn.logsumexp(3 * rows, axis=-1)
    optimizer = optax.adam(RATE)

    def loss(p: Any) -> jax.Array:
        return jnp.mean((network.apply(p, rows) - wanted) ** 2)

    @jax.jit
    def step(carry: Any) -> Any:
        p, state = carry
        moves, state = optimizer.update(jax.grad(loss)(p), state, p)
        return network.project(optax.apply_updates(p, moves)), state

    carry = (params, optimizer.init(params))
    for _ in range(steps):
        carry = step(carry)
    return carry[0]


def judge(network: Network, seeds: int, steps: int, segments: int) -> list[Finding]:
    """Return what is found of a network: for any parameters, as drawn, and trained."""
    rows = jax.random.normal(jax.random.key(0), (ROWS, DIM))
    drawn = [network.project(network.init(jax.random.key(seed))) for seed in range(seeds)]
    # Only the shapes of the parameters count for the structural proof: no projection holds for any parameters.
    said = certify(network.apply, jnp.ones(DIM), params=drawn[0], strength="structural", segments=0)
    findings = [count_verdicts(network.name, "any parameters", [said], None)]
    for state in STATES:
        if state == "trained":
            drawn = [train(network, params, rows, steps) for params in drawn]
        said_of_each = [
            certify(network.apply, jnp.ones(DIM), params=p, strength="numeric", segments=segments) for p in drawn
        ]
        violations = [find_violation(lambda x, p=p: network.apply(p, x), rows, segments=segments) for p in drawn]
        findings.append(count_verdicts(network.name, state, said_of_each, violations))
    return findings


def count_verdicts(name: str, state: str, certificates: list[Any], violations: list[Any] | None) -> Finding:
    """Return certificates and violations as counts."""
    verdicts = [certificate.verdict for certificate in certificates]
    gaps = [violation.gap for violation in violations or [] if violation is not None]
    failed = next((certificate.failed for certificate in certificates if certificate.failed is not None), None)
    return Finding(
        name,
        state,
        *(verdicts.count(verdict) for verdict in ("proved", "refuted", "unknown")),
        searched=len(violations or []),
        found=len(gaps),
        gap=max(gaps, default=0.0),
        stops="" if failed is None else f"{failed.operation} at {failed.source}",
    )


def report(findings: list[Finding]) -> str:
    """Return the findings as a markdown table."""
    lines = [
        [
            found.network,
            found.state,
            found.proved,
            found.refuted,
            found.unknown,
            f"{found.found} of {found.searched}" if found.searched else "",
            f"{found.gap:.2g}" if found.found else "",
            found.stops,
        ]
        for found in findings
    ]
    titles = ["network", "parameters", "proved", "refuted", "unknown"]
    return table([*titles, "find_violation finds", "largest gap", "a proof stops at"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many parameters are drawn for each network")
    parser.add_argument("--steps", type=int, default=300, help="steps of training")
    parser.add_argument("--segments", type=int, default=5_000, help="segments of each search")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every finding to FILE")
    options = parser.parse_args()
    if min(options.seeds, options.segments) < 1 or options.steps < 0:
        parser.error("--seeds and --segments: expected 1 or more, and --steps 0 or more.")
    findings: list[Finding] = []
    for network in published_networks():
        findings += judge(network, options.seeds, options.steps, options.segments)
    print(report(findings))
    print(", ".join(f"{name} {version(name)}" for name in ("ott-jax", "jax", "flax")))
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in findings], indent=1) + "\n")


if __name__ == "__main__":
    main()

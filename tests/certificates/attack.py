"""What a program is claimed to be, held against what it is: every fact of every register, on segments, in float64."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from random_programs import parameters, run

from convexmoe.convexity import facts as facts
from convexmoe.convexity.domain import Domain
from convexmoe.convexity.facts import Value, parameter, variable
from convexmoe.convexity.graph import Graph
from convexmoe.convexity.refinements import Refinements
from convexmoe.convexity.segments import between, draw_segments, search_region
from convexmoe.convexity.walk import Walk
from convexmoe_jax.convexity import atoms
from convexmoe_jax.convexity.rules import RULES, sorts
from convexmoe_jax.convexity.trace import trace

Sides = tuple[float, float] | None  # of a domain, the same in all coordinates
SEGMENTS = 96
LARGEST = 1e5  # a segment on which a register is larger is passed over: rounding could pass for curvature
TOLERANCE = 1e-8


@lru_cache(maxsize=64)
def points(size: int, seed: int, sides: Sides = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments as `find_violation` draws them; and pairs of points of which the second is not below the first."""
    reach = np.stack([-np.full(size, 1.5), np.full(size, 1.5)])
    [(left, right, weight)] = draw_segments(search_region(reach, domain_of(size, sides)), SEGMENTS, seed)
    return left, right, weight


def domain_of(size: int, sides: Sides) -> Domain | None:
    """A box whose sides are all alike."""
    return None if sides is None else Domain(*(np.full(size, float(side)) for side in sides))


def claims(size: int, program: list) -> list[Value]:
    """What the walk knows of every register."""
    return walked(size, traced(size, program))


def traced(size: int, program: list) -> Graph:
    """The graph of a program, of its input and of its parameters."""
    vector = jax.ShapeDtypeStruct((size,), jnp.float32)
    return trace(lambda x, theta: run(program, x, theta, "jax"), vector, vector)


def walked(size: int, graph: Graph, sides: Sides = None) -> list[Value]:
    """What the walk knows of every register, whatever the parameters are."""
    domain = domain_of(size, sides)
    walk = Walk(graph, RULES, atoms.recognize, Refinements(graph.inputs[:1], sorts, domain))
    return walk.run([variable((size,), *(domain or ())), parameter((size,))])


def contradictions(
    size: int, program: list, seed: int = 0, claimed: list[Value] | None = None, sides: Sides = None
) -> list[str]:
    """Facts that are claimed of a register and do not hold, in words; empty where all hold."""
    claimed = claims(size, program) if claimed is None else claimed
    left, right, weight = points(size, seed % 64, sides)
    low, high = np.minimum(left, right), np.maximum(left, right)
    at = np.concatenate([left, right, between(np, left, right, weight), low, high])
    with np.errstate(all="ignore"):
        registers = [
            np.broadcast_to(register, at.shape) for register in run(program, at, parameters(size, seed), "numpy")
        ]
    found: list[str] = []
    size_of = np.zeros((5, SEGMENTS, 1))
    defined = np.ones((5, SEGMENTS, 1), bool)
    for number, (value, register) in enumerate(zip(claimed, registers, strict=True)):
        with np.errstate(all="ignore"):
            parts = register.reshape(5, SEGMENTS, size)
            nan = np.isnan(parts) & defined
            size_of = np.maximum(size_of, np.nan_to_num(np.abs(parts), nan=np.inf).max(-1, keepdims=True))
            found += [f"{number}: {text}" for text in _false(value, parts, weight, size_of, nan)]
        defined &= size_of < LARGEST
    return found


def _false(value: Value, parts: np.ndarray, weight: np.ndarray, size_of: np.ndarray, nan: np.ndarray) -> list[str]:
    """The facts of one register that do not hold."""
    fine = size_of < LARGEST
    slack = TOLERANCE * (1 + np.where(fine, size_of, 0))
    ends = fine[0] & fine[1] & fine[2]
    room = slack[:3].max(axis=0)
    found = []

    def broken(name: str, fact: int, violated: np.ndarray) -> None:
        if (violated & value.has(fact)).any():
            found.append(name)

    def above_chord(numbers: np.ndarray) -> np.ndarray:
        return numbers[2] - (weight * numbers[0] + (1 - weight) * numbers[1])

    broken("real", facts.REAL, nan.any(axis=(0, 1)))
    usable = ends & np.isfinite(parts[:3]).all(axis=0)
    gap = above_chord(parts)
    broken("convex", facts.CONVEX, usable & (gap > room))
    broken("concave", facts.CONCAVE, usable & (-gap > room))
    ordered = fine[3] & fine[4] & np.isfinite(parts[3:]).all(axis=0)
    rise = parts[4] - parts[3]
    broken("rising", facts.RISING, ordered & (rise < -slack[3:].max(axis=0)))
    broken("falling", facts.FALLING, ordered & (rise > slack[3:].max(axis=0)))
    real = value.has(facts.REAL)
    inside = fine & np.isfinite(parts) & real
    # Bounds are of exact arithmetic: relative to the numbers that went in, rounding may pass them.
    if (inside & ((parts < value.lower - slack) | (parts > value.upper + slack))).any():
        found.append("bounds")
    small = np.abs(parts) < 1e-4
    roots, logs = np.sqrt(parts), np.log(parts)
    broken("root", facts.ROOT_CONVEX, usable & ~small[:3].any(axis=0) & (above_chord(roots) > room * 100))
    clear = usable & (parts[:3] > 1e-2).all(axis=0)
    broken("log-convex", facts.LOG_CONVEX, clear & (above_chord(logs) > room * 100))
    broken("log-concave", facts.LOG_CONCAVE, clear & (-above_chord(logs) > room * 100))
    return found


def show(size: int, program: list) -> str:
    """A program in words, for a message."""
    return f"{size} inputs: " + "; ".join(str(tuple(instruction)) for instruction in program)

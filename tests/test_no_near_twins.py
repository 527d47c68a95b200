"""Nothing stands almost the same in two of the four source trees, but for what is tuned apart and listed with a reason.

Files, and functions and classes of some length, are compared by their tokens after the spelling of the frameworks is
normalized and docstrings, comments, imports and `__all__` are taken out.
"""

import ast
import difflib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
TREES = ("convexmoe", "convexmoe_jax", "convexmoe_torch", "interop")
SHORTEST, EQUAL = (12, 0.8)  # lines of a unit that is compared; the share of tokens from which two are near twins

# Files of both packages that may be near twins or hold some, and why. A row whose files hold none any more must go.
EXCUSED: dict[str, str] = {
    "hull/petals.py": "tuned apart: the order of the products is what a forward pass costs",
    "convexity/atoms.py": "reference programs, which are traced: each in the operations of its framework",
}

# The same thing in the frameworks' spelling. First what has dots, by patterns, then single names.
PATTERNS = [
    (re.compile(pattern), name)
    for pattern, name in [
        (r"\b(jax\.Array|torch\.Tensor|np\.ndarray|Tensor)\b", "Array"),
        (r"\b(nnx|torch\.nn|nn|linen)\.Module\b", "Module"),
        (r"\b(jax\.nn|torch\.nn\.functional|functional)\.", "F."),
        (r"\b(jax\.lax|lax|jax\.numpy|jnp|torch|np|numpy|jax)\.", "xp."),
        (r"\bconvexmoe(_jax|_torch)?\b", "convexmoe"),
        (r"\.detach\(\)|\.item\(\)|\.contiguous\(\)", ""),
        (r", \*, rngs: (nnx\.Rngs|Rngs = None)\b|, rngs=rngs\b", ""),
    ]
]
NAMES = {
    "axis": "dim",
    "axes": "dim",
    "keepdims": "keepdim",
    "__call__": "forward",
    "concatenate": "cat",
    "expand_dims": "unsqueeze",
    "amax": "max",
    "amin": "min",
    "clip": "clamp",
    "transpose": "swapaxes",
    "astype": "to",
    "asarray": "as_tensor",
    "array": "as_tensor",
    "tensor": "as_tensor",
    "from_numpy": "as_tensor",
    "broadcast_to": "expand",
    "reshape": "view",
    "absolute": "abs",
    "Jax": "Framework",
    "Torch": "Framework",
}


class Unit(NamedTuple):
    """A file, a class or a function: the tree it is of, its file, its name in it ("" for all of it), its tokens."""

    tree: str
    file: str
    name: str
    tokens: list[str]

    def __str__(self) -> str:
        return f"{self.file}:{self.name}" if self.name else self.file


class Bare(ast.NodeTransformer):
    """Takes docstrings, imports and `__all__` out of a program."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            is_text = [isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body]
            node.body = [s for s, text in zip(node.body, is_text, strict=True) if not text] or [ast.Pass()]
        return node

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        return None if ast.unparse(node.targets[0]) == "__all__" else node


def tokens_of(node: ast.AST) -> list[str]:
    """The tokens of a program in one spelling."""
    text = ast.unparse(node)
    for pattern, name in PATTERNS:
        text = pattern.sub(name, text)
    return [NAMES.get(token, token) for token in re.findall(r"\w+|[^\w\s]", text)]


def units_of(file: str, text: str) -> list[Unit]:
    """The file, its classes and its functions, methods too, that have some length."""
    tree = Bare().visit(ast.parse(text))
    found = []
    for node in ast.walk(tree):
        is_unit = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if is_unit and ast.unparse(node).count("\n") + 1 >= SHORTEST:
            found.append(Unit(file.split("/")[0], file, getattr(node, "name", ""), tokens_of(node)))
    return found


def likeness(one: list[str], other: list[str]) -> float:
    """The share of tokens that stand in both in the same order, in [0, 1]."""
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def near_twins(units: list[Unit]) -> list[tuple[Unit, Unit, float]]:
    """The pairs of different trees that are nearly equal."""
    numbers = {token: i for i, token in enumerate({token for unit in units for token in unit.tokens})}
    counts = np.zeros((len(units), len(numbers)), np.int16)
    for row, unit in zip(counts, units, strict=True):
        np.add.at(row, [numbers[token] for token in unit.tokens], 1)
    length = counts.sum(1)
    found = []
    for i, one in enumerate(units):
        # tokens in common, in any order, bound the likeness from above, and are counted quickly
        near = np.flatnonzero(2 * np.minimum(length[i], length) >= EQUAL * (length[i] + length))
        near = near[near > i]
        shared = np.minimum(counts[i], counts[near]).sum(1)
        for j in near[2 * shared >= EQUAL * (length[i] + length[near])]:
            if one.tree != units[j].tree and bool(one.name) == bool(units[j].name):
                ratio = likeness(one.tokens, units[j].tokens)
                if ratio >= EQUAL:
                    found.append((one, units[j], ratio))
    return found


def all_units() -> list[Unit]:
    """The units of the four trees."""
    paths = [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]
    return [unit for path in paths for unit in units_of(path.relative_to(ROOT).as_posix(), path.read_text())]


def rows_of(pairs: list[tuple[Unit, Unit, float]]) -> dict[str, list[str]]:
    """The pairs by their row: the file's name in both packages, or both files where it has two."""
    rows: dict[str, list[str]] = {}
    for one, other, ratio in pairs:
        both = [unit.file.split("/", 1)[1] for unit in (one, other)]
        same = both[0] == both[1] and {one.tree, other.tree} == {"convexmoe_jax", "convexmoe_torch"}
        row = both[0] if same else f"{one.file} and {other.file}"
        rows.setdefault(row, []).append(f"{one} and {other}: {100 * ratio:.0f} % equal")
    return rows


def test_nothing_stands_almost_the_same_in_two_trees():
    found = rows_of(near_twins(all_units()))
    open_pairs = {row: pairs for row, pairs in found.items() if row not in EXCUSED}
    assert open_pairs == {}, "one of each pair belongs into convexmoe/, or a row with its reason into EXCUSED"
    assert EXCUSED.keys() - found.keys() == set(), "no near twins any more: strike the row"


IN_JAX = '''
"""One text."""
import jax.numpy as jnp
from jax import Array

def spread(x: Array, weight: jax.Array, axis: int = -1) -> jax.Array:
    """The spread."""
    if x.ndim < 1:
        raise ValueError("spread.x: expected an axis")
    mean = jnp.mean(x, axis=axis, keepdims=True)
    apart = jnp.abs(x - mean)
    largest = jnp.max(apart, axis=axis, keepdims=True)
    share = jnp.clip(apart / largest, 0.0, 1.0)
    smooth = jax.nn.softplus(share) * weight
    both = jnp.concatenate([share, smooth], axis=axis)
    total = jnp.sum(both, axis=axis)
    rest = jnp.where(total > 0, jnp.log(total), 0.0)
    return rest.astype(x.dtype) + jnp.broadcast_to(jnp.asarray(0.5), rest.shape)
'''
IN_TORCH = '''
"""Another text, and other imports."""
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["spread"]

def spread(x: Tensor, weight: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Nothing of the sort."""
    if x.ndim < 1:  # a comment
        raise ValueError("spread.x: expected an axis")
    mean = torch.mean(x, dim=dim, keepdim=True)
    apart = torch.abs(x - mean)
    largest = torch.amax(apart, dim=dim, keepdim=True)
    share = torch.clamp(apart / largest, 0.0, 1.0)
    smooth = F.softplus(share) * weight
    both = torch.cat([share, smooth], dim=dim)
    total = torch.sum(both, dim=dim)
    rest = torch.where(total > 0, torch.log(total), 0.0)
    return rest.to(x.dtype) + torch.as_tensor(0.5).expand(rest.shape)
'''


def planted(one: str, other: str, tree: str = "convexmoe_torch") -> set[str]:
    units = units_of("convexmoe_jax/hull/spread.py", one) + units_of(f"{tree}/hull/spread.py", other)
    return set(rows_of(near_twins(units)))


def test_control_a_copy_is_seen_in_other_spelling():
    assert planted(IN_JAX, IN_TORCH) == {"hull/spread.py"}
    across = "convexmoe_jax/hull/spread.py and interop/hull/spread.py"
    assert planted(IN_JAX, IN_JAX.replace("jnp", "np"), "interop") == {across}
    # some statements of its own, and it is still one
    more = IN_TORCH.replace("    apart =", "    x = x + 1\n    apart =").replace("0.5", "1.5")
    assert planted(IN_JAX, more) == {"hull/spread.py"}
    # a function among others, which make the files differ
    other = "\n".join(f"def f{i}(x):\n    return [x, {i}, {{}}]\n" for i in range(60))
    assert planted(IN_JAX, IN_TORCH + other) == {"hull/spread.py"}


def test_control_what_differs_or_is_short_is_no_twin():
    head, _, _ = IN_TORCH.partition("    if")
    body = "".join(f"    {'xyz'[i % 3]} = [{i}]\n" for i in range(20))
    assert planted(IN_JAX, head + body) == set()
    short = "def f(x):\n    return x + 1\n"
    assert planted(short, short) == set()
    assert rows_of(near_twins(units_of("convexmoe_jax/a.py", IN_JAX) + units_of("convexmoe_jax/b.py", IN_JAX))) == {}

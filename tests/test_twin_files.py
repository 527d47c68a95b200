"""Files without a framework stand in both packages, which never import each other; they are the same to the letter."""

import ast
from pathlib import Path

import pytest

import convexmoe_jax
import convexmoe_torch

PACKAGES = [Path(package.__file__).parent for package in (convexmoe_jax, convexmoe_torch)]
TWINS = (
    "_checks.py",
    "calculus.py",
    "config.py",
    "contraction.py",
    "curvature.py",
    "graph.py",
    "intervals.py",
    "proof.py",
    "recipes.py",
    "refinements.py",
    "scalars.py",
    "schedule.py",
    "segments.py",
    "semidefinite.py",
    "verdict.py",
)
FRAMEWORKS = {"jax", "jaxlib", "flax", "optax", "torch"}


def imported(source):
    """The packages that a program imports, inside functions too; its own are left out."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("name", TWINS)
def test_a_file_is_the_same_in_both_packages_and_imports_no_framework(name):
    one, other = ((package / name).read_bytes() for package in PACKAGES)
    assert one == other
    assert imported(one.decode()) & FRAMEWORKS == set()


@pytest.mark.parametrize("name", sorted({*TWINS} - {"recipes.py"}))  # it asks `init` for shapes
def test_a_file_without_a_framework_imports_only_such(name):
    tree = ast.parse((PACKAGES[0] / name).read_text())
    own = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module
    }
    assert {f"{module}.py" for module in own} <= {*TWINS}


def test_no_other_file_could_be_one_of_them():
    """What is equal is listed, so that a change to one of a pair is noticed."""
    names = {path.name for path in PACKAGES[0].glob("*.py")} & {
        path.name for path in PACKAGES[1].glob("*.py")
    }
    equal = {name for name in names if len({(package / name).read_bytes() for package in PACKAGES}) == 1}
    assert equal == set(TWINS)


def test_control_an_import_is_seen():
    assert imported("def f():\n    from jax import lax\n    import torch.nn") == {"jax", "torch"}

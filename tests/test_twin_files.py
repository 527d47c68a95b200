"""Files without a framework stand in both packages, which never import each other; they are the same to the letter."""

import ast
from pathlib import Path

import pytest

import convexmoe_jax
import convexmoe_torch

PACKAGES = [Path(package.__file__).parent for package in (convexmoe_jax, convexmoe_torch)]
TWINS = (
    "_checks.py",
    "calibration.py",
    "config.py",
    "convexity/__init__.py",
    "convexity/calculus.py",
    "convexity/contraction.py",
    "convexity/curvature.py",
    "convexity/graph.py",
    "convexity/intervals.py",
    "convexity/proof.py",
    "convexity/refinements.py",
    "convexity/scalars.py",
    "convexity/segments.py",
    "convexity/semidefinite.py",
    "convexity/verdict.py",
    "data.py",
    "hierarchy_config.py",
    "loss_forms.py",
    "planes.py",
    "recipes.py",
    "results.py",
    "route_lists.py",
    "schedule.py",
    "sets.py",
    "standard.py",
    "starts.py",
    "sums.py",
)
# They import what only one framework has, by the same names.
ASK_A_FRAMEWORK = {"recipes.py", "convexity/__init__.py"}
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


def own_imports(name):
    """The files of its package that a file imports from."""
    path = PACKAGES[0] / name
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            modules = [node.module] if node.module else [found.name for found in node.names]
            yield from ((folder / f"{module}.py").relative_to(PACKAGES[0]).as_posix() for module in modules)


@pytest.mark.parametrize("name", sorted({*TWINS} - ASK_A_FRAMEWORK))
def test_a_file_without_a_framework_imports_only_such(name):
    assert set(own_imports(name)) <= {*TWINS}


def test_control_a_file_that_asks_a_framework_is_seen():
    assert set(own_imports("convexity/__init__.py")) - {*TWINS} == {
        "convexity/certificate.py",
        "convexity/violation.py",
    }
    assert set(own_imports("recipes.py")) - {*TWINS}
    assert {"_checks.py"} <= set(own_imports("convexity/segments.py"))


def test_no_other_file_could_be_one_of_them():
    """What is equal is listed, so that a change to one of a pair is noticed."""
    here, there = (
        {path.relative_to(package).as_posix() for path in package.rglob("*.py")} for package in PACKAGES
    )
    names = here & there
    equal = {name for name in names if len({(package / name).read_bytes() for package in PACKAGES}) == 1}
    assert equal == set(TWINS)


def test_control_an_import_is_seen():
    assert imported("def f():\n    from jax import lax\n    import torch.nn") == {"jax", "torch"}

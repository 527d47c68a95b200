"""Each package imports its own framework only, says what to install where that is missing, and names the same things.

Every check of absence has a control: the same check on a program that does import the wrong thing.
"""

import functools
import importlib
import subprocess
import sys
from types import ModuleType

import pytest

FOREIGN = {
    "convexmoe_jax": frozenset({"torch", "convexmoe_torch", "interop"}),
    "convexmoe_torch": frozenset({"jax", "jaxlib", "flax", "optax", "convexmoe_jax", "interop"}),
}
FRAMEWORKS = frozenset.union(*FOREIGN.values())
MISSING = {
    "convexmoe_jax": ("jax", 'convexmoe_jax needs JAX; in a clone of convexmoe: pip install -e ".[jax]"'),
    "convexmoe_torch": ("torch", 'convexmoe_torch needs PyTorch; in a clone of convexmoe: pip install -e ".[torch]"'),
}
# Public names that one package has and the other has not, each with its reason.
# In JAX nothing is switched: another optimizer, made by another freeze, is what unfreezes. PyTorch has its own Adam.
# `lowering*.py` and `operators.py` of `convexity` stand in PyTorch alone: ATen has many names for one primitive of JAX.
ONE_SIDED: dict[str, set[str]] = {"convexmoe_jax": {"adam", "adamw"}, "convexmoe_torch": {"unfreeze"}}


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {0!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run(program: str, blocked: set[str] = frozenset()) -> subprocess.CompletedProcess:
    """Run a program in a new interpreter in which every module of `blocked` fails to import."""
    block = BLOCK.format(sorted(blocked))
    return subprocess.run([sys.executable, "-c", block + program], capture_output=True, text=True, timeout=120)


@functools.cache
def loaded(program: str, watched: frozenset[str]) -> set[str]:
    """The modules of `watched` that are loaded after `program` ran in a new interpreter."""
    result = run(f"{program}\nimport sys\nprint('loaded:', *(set({sorted(watched)!r}) & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("loaded:")[2].split())


def test_the_core_imports_no_framework():
    assert loaded("import convexmoe", FRAMEWORKS) == set()


def test_control_a_framework_under_the_core_is_seen():
    assert loaded("import convexmoe, jaxlib", FRAMEWORKS) == {"jaxlib"}


def test_the_core_works_where_no_framework_can_be_imported():
    program = "import convexmoe\nprint(convexmoe.HullConfig(3, petals=4).to_json())"
    result = run(program, FRAMEWORKS)
    assert result.returncode == 0 and '"petals": 4' in result.stdout, result.stderr


@pytest.mark.parametrize("package", FOREIGN)
def test_import_leaves_the_other_framework_alone(package):
    assert loaded(f"import {package}", FOREIGN[package]) == set()


@pytest.mark.parametrize("package", FOREIGN)
def test_control_a_foreign_import_is_seen(package):
    [other] = FOREIGN.keys() - {package}
    framework, _ = MISSING[other]
    both = loaded("import convexmoe_jax, convexmoe_torch", FRAMEWORKS)
    assert {framework, other} <= both & FOREIGN[package]


@pytest.mark.parametrize("package", FOREIGN)
def test_works_where_the_other_framework_cannot_be_imported(package):
    rngs = ", rngs=nnx.Rngs(0)" if package == "convexmoe_jax" else ""
    first = "from flax import nnx\n" if package == "convexmoe_jax" else ""
    result = run(f"{first}import {package} as cm\ncm.VectorHull(3, petals=2{rngs})", FOREIGN[package])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", FOREIGN)
def test_control_a_blocked_module_cannot_be_imported(package):
    framework, _ = MISSING[next(iter(FOREIGN.keys() - {package}))]
    result = run(f"import {framework}", FOREIGN[package])
    assert result.returncode != 0
    assert "ModuleNotFoundError" in result.stderr


@pytest.mark.parametrize("package", FOREIGN)
def test_missing_framework_names_the_line_to_run(package):
    framework, message = MISSING[package]
    absent = f"import sys\nsys.modules[{framework!r}] = None\n"  # found nowhere, where a blocked one raises
    result = run(f"{absent}try:\n    import {package}\nexcept ImportError as error:\n    print(error)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == message


def public_names(package: str) -> set[str]:
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__)), f"{package}.__all__ names something twice"
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    return set(module.__all__)


@pytest.mark.parametrize("package", FOREIGN)
def test_all_is_complete(package):
    found = {
        name
        for name, value in vars(importlib.import_module(package)).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert found <= public_names(package)


@pytest.mark.parametrize("package", FOREIGN)
def test_parallel_is_an_attribute(package):
    module = importlib.import_module(package)
    assert module.parallel is importlib.import_module(f"{package}.parallel")
    with pytest.raises(AttributeError, match="has no attribute 'parallels'"):  # control
        _ = module.parallels


def test_both_packages_have_the_same_names():
    in_jax, in_torch = public_names("convexmoe_jax"), public_names("convexmoe_torch")
    assert in_jax - in_torch == ONE_SIDED["convexmoe_jax"]
    assert in_torch - in_jax == ONE_SIDED["convexmoe_torch"]

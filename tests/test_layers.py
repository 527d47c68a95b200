"""Who may import whom, by the syntax trees of all files, inside functions too; each rule has a failing control."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE, PACKAGES, ROOF = "convexmoe", ("convexmoe_jax", "convexmoe_torch"), "interop"
FRAMEWORKS = {"convexmoe_jax": {"jax", "jaxlib", "flax", "optax", "chex"}, "convexmoe_torch": {"torch"}}
# room -> the rooms of its own package that it may import; the package's own `__init__` and `names` may import all
ROOMS = {
    "errors": set(),
    "settings": set(),  # of a framework
    "arrays": {"settings", "minimization"},  # of a package, which describes its library; the core's imports no room
    "hull": {"errors", "settings", "arrays"},
    "hierarchy": {"errors", "settings", "hull"},
    "minimization": {"errors", "settings", "arrays", "hull"},
    "convexity": {"errors", "settings", "hull", "hierarchy"},
    "files": {"errors", "hull", "hierarchy"},
    "training": {"errors", "settings", "hull", "files"},
    "parallel": {"errors", "settings", "hull", "hierarchy", "files"},
}
# Where a package needs what the core has of a room, it may be the same room or one below it.
DOORS = {"__init__", "names"}


def imports(source: str, module: str, is_init: bool) -> set[str]:
    """The modules that a program imports, by their absolute names."""
    found = set()
    base = module.split(".") if is_init else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import room` names a module as well
            found |= {f"{start}.{name.name}" for name in node.names} if start.count(".") == 0 else {start}
    return found


def room_of(module: str) -> str:
    """The room of a module, or its own name where it stands beside the rooms."""
    return module.split(".")[1] if "." in module else "__init__"


def faults_of(module: str, imported: set[str]) -> list[str]:
    """What a module imports and may not."""
    package, room = module.split(".")[0], room_of(module)
    found = []
    for name in sorted(imported):
        top = name.split(".")[0]
        foreign = {f for p, known in FRAMEWORKS.items() if p != package for f in known}
        if top in foreign or top == ROOF or (top in (CORE, *PACKAGES) and top not in (CORE, package)):
            found.append(f"{module} imports {name}")
        elif top in (CORE, package) and room not in DOORS and "." in name:
            target = room_of(name)
            if target in ROOMS and target != room and target not in ROOMS[room]:
                found.append(f"{module} imports {name}: the room {room} stands below {target}")
    return found


def modules(package: str) -> dict[str, Path]:
    """The modules of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@pytest.mark.parametrize("package", [CORE, *PACKAGES])
def test_every_import_goes_downwards(package):
    found = modules(package)
    assert len(found) > 15
    faults = []
    for module, path in found.items():
        faults += faults_of(module, imports(path.read_text(), module, path.stem == "__init__"))
    assert faults == []
    assert {room_of(module) for module in found} <= {*ROOMS, *DOORS}


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("convexmoe.hull.config", "def f():\n    import torch", "imports torch"),
        ("convexmoe.hull.config", "from jax import numpy", "imports jax.numpy"),
        ("convexmoe.hull.config", "import convexmoe_jax", "imports convexmoe_jax"),
        ("convexmoe_jax.hull.module", "import interop.weights", "imports interop.weights"),
        ("convexmoe_jax.hull.module", "from torch.nn import Module", "imports torch.nn"),
        ("convexmoe_torch.hull.module", "import convexmoe_jax.hull", "imports convexmoe_jax.hull"),
        ("convexmoe_torch.hull.module", "from ..hierarchy.experts import HullExpert", "stands below hierarchy"),
        ("convexmoe_torch.hull.module", "from .. import training", "stands below training"),
        ("convexmoe_jax.files.models", "from ..training.engine import fit", "stands below training"),
        ("convexmoe.errors", "from .hull.config import HullConfig", "stands below hull"),
        ("convexmoe_jax.minimization.minimum", "from convexmoe.convexity import facts", "stands below convexity"),
    ],
)
def test_control_a_wrong_import_is_seen(module, line, fault):
    [found] = faults_of(module, imports(line, module, False))
    assert fault in found

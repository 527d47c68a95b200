"""The neutral file under fire: thousands of damaged files, kills while saving, a limit on the size of files."""

import os
import subprocess
import sys
import tempfile

import backends
import cases
import mutations
import numpy as np
import pytest
import saved_models

import convexmoe_torch

DAMAGES = (mutations.flip, mutations.cut, mutations.grow, mutations.move, mutations.edit, mutations.describe)
FIELDS = cases.HULLS["default"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed while it saves")
WORDS = (
    "load.",
    "HullConfig",
    "CELMoEConfig",
    "HierarchyLevelConfig",
    "ExpertConfig",
    "Normalization",
    "VectorHull",
    "HierarchicalCELMoE",
)


@pytest.fixture(params=backends.BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


def trained_files(backend, folder):
    """The bytes of a hull, of a hull with an optimizer and of a hierarchy with one."""
    hull, hierarchy = saved_models.hull(), saved_models.hierarchy()
    models = [(hull, None), (hull, saved_models.stepped(hull)), (hierarchy, saved_models.stepped(hierarchy))]
    for number, (model, optimizer) in enumerate(models):
        convexmoe_torch.save(model, folder / str(number), optimizer=optimizer)
    return [(folder / str(number)).read_bytes() for number in range(len(models))]


@pytest.mark.slow
@pytest.mark.parametrize("number", [900, pytest.param(10_000, marks=pytest.mark.release)])
def test_damaged_files(backend, number, tmp_path):
    """Each is refused in our words, or saves to the very bytes of the original: never a crash, never another model."""
    goods, bad, again = trained_files(backend, tmp_path), tmp_path / "bad", tmp_path / "again"
    rng, same, refused = np.random.default_rng(0), 0, 0
    for k in range(number):
        change, good = DAMAGES[k % len(DAMAGES)], goods[k // len(DAMAGES) % len(goods)]
        bad.write_bytes(change(good, rng))
        try:
            found = backend.package.load(bad)
            state = backend.package.read_optimizer(bad)
        except (ValueError, TypeError) as error:
            assert str(error).startswith(WORDS), (k, change.__name__, error)
            refused += 1
            continue
        backend.package.save(found, again, notes=backend.package.read_notes(bad), optimizer=state)
        assert again.read_bytes() == good, (k, change.__name__)
        same += 1
    assert same + refused == number and refused > 0.9 * number


def resealed(data, change):
    """The file with its description changed, and its sha256 made to fit."""
    return mutations.sealed(data, lambda entry: (change(entry), entry)[1])


LIES = {
    "a giant": lambda entry: entry["config"]["hierarchy"].update(hidden_size=10**9),
    "a large one": lambda entry: entry["config"]["hierarchy"].update(hidden_size=20_000),
    "a giant expert": lambda entry: entry["config"]["experts"]["b.z"].update(sizes=[5, 10**9, 5]),
    "a giant hull": lambda entry: entry["config"]["experts"]["a.x"]["config"].update(petals=10**9),
    "sizes below zero": lambda entry: entry["config"]["experts"]["b.z"].update(sizes=[5, -1, 5]),
    "another kind": lambda entry: entry["config"]["experts"]["b.x"].update(kind="Conv"),
    "no recipe": lambda entry: entry["config"]["experts"].update({"b.x": None}),
    "no hierarchy": lambda entry: entry["config"].pop("hierarchy"),
    "no experts": lambda entry: entry["config"].pop("experts"),
    "levels that are none": lambda entry: entry["config"]["hierarchy"].update(levels=7),
    "another fusion": lambda entry: entry["config"].update(fusion=["LearnedFusion"]),
    "a hull's config": lambda entry: entry.update(config=FIELDS),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_a_hierarchy_is_found_before_anything_is_built(backend, name, tmp_path, monkeypatch):
    good = trained_files(backend, tmp_path)[2]
    model = backend.package.HierarchicalCELMoE
    monkeypatch.setattr(model, "__init__", lambda *_, **__: pytest.fail("it was built"))
    (tmp_path / "lie").write_bytes(resealed(good, LIES[name]))
    for read in (backend.package.load, backend.package.read_optimizer):
        with pytest.raises((ValueError, TypeError)) as caught:
            read(tmp_path / "lie")
        assert str(caught.value).startswith(WORDS), caught.value


def test_control_a_hierarchy_resealed_without_a_lie_loads(backend, tmp_path):
    (tmp_path / "same").write_bytes(resealed(trained_files(backend, tmp_path)[2], lambda entry: None))
    assert backend.package.load(tmp_path / "same").config.hidden_size == 5


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from convexmoe.files.atomic import write_whole
path = Path(sys.argv[1])
contents = [bytes([n]) * 3_000_000 for n in (1, 2)]
write_whole(path, contents[0])
random.seed(0)
left = 0
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        while True:
            for content in contents:
                {write}(path, content)
    time.sleep(random.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if path.read_bytes() not in contents:
        print("torn")
    left += len(list(path.parent.glob(".*.part")))
    [part.unlink() for part in path.parent.glob(".*.part")]
print("whole", left)
"""


def run(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("kills", [60, pytest.param(200, marks=pytest.mark.release)])
def test_a_killed_save_leaves_the_old_file_or_the_new_one(kills, tmp_path):
    program = KILLS.format(write="write_whole")
    result = run(program, tmp_path / "model", kills)
    assert result.returncode == 0 and "torn" not in result.stdout, result.stderr
    assert int(result.stdout.split()[1]) > 0  # of many kills some did hit a save


@pytest.mark.slow
@needs_fork
def test_control_a_save_in_place_would_be_torn(tmp_path):
    program = KILLS.format(write="Path.write_bytes")
    assert "torn" in run(program, tmp_path / "model", 60).stdout


LIMIT = """
import resource, signal, sys
import numpy as np
{imports}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = {model}
{package}.save(model, sys.argv[1])
before = open(sys.argv[1], "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    {package}.save(model, sys.argv[1], notes={{"more": 1}})
except OSError as error:
    print("refused", error.errno)
print(open(sys.argv[1], "rb").read() == before)
"""
MAKE = {
    "jax": ("import convexmoe_jax\nfrom flax import nnx", "convexmoe_jax.VectorHull(5, 3, rngs=nnx.Rngs(0))"),
    "torch": ("import convexmoe_torch", "convexmoe_torch.VectorHull(5, 3)"),
}


def test_no_room_leaves_the_old_file(backend, tmp_path):
    """A limit on the size of files stands for a full disk."""
    imports, model = MAKE[backend.name]
    result = run(LIMIT.format(imports=imports, model=model, package=backend.package.__name__), tmp_path / "model")
    assert result.stdout.split()[0] == "refused" and result.stdout.split()[-1] == "True", result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


READ_ONLY = """
import os, sys
{imports}
model = {model}
if os.geteuid() == 0:  # to whom no folder is read-only
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    {package}.save(model, sys.argv[1])
except PermissionError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="a folder is made read-only by its mode")
def test_a_read_only_folder_is_named(backend):
    imports, model = MAKE[backend.name]
    program = READ_ONLY.format(imports=imports, model=model, package=backend.package.__name__)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        result = run(program, f"{folder}/model")
        assert result.stdout.strip() == (
            "[Errno 13] save.path: expected a place that can be written; got Permission denied. "
            f"Check its permissions and the room left: '{folder}/model'"
        ), result.stderr
        assert os.listdir(folder) == []
        # control: where it may write there is no error
        os.chmod(folder, 0o777)
        assert run(program, f"{folder}/model").stdout == "" and os.listdir(folder) == ["model"]

"""Every write goes through one door: no link of ours is followed, modes stay, what a kill leaves is cleaned up."""

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import saved_models
from commands import QUICK, assert_one_line_refusal, invoke, rows, write

import convexmoe_jax
import convexmoe_torch
from convexmoe import inspect
from convexmoe.files import atomic
from interop import frameworks
from interop.command import output
from interop.command import resume as unfinished

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="links, modes and locks of POSIX"),
    pytest.mark.usefixtures("few_folds"),
]
FILES = ["metrics.json", "model.safetensors", "report.png", "report.safetensors"]
FIT = ("fit", "--framework", "torch", *QUICK)


@pytest.fixture(autouse=True)
def usual_mask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "hull.safetensors"
    convexmoe_torch.save(saved_models.hull(), path)
    return path


def test_a_file_that_is_saved_again_keeps_its_mode(model):
    assert mode(model) == 0o644  # of the mask
    for wanted in (0o600, 0o640, 0o664):
        model.chmod(wanted)
        convexmoe_torch.save(saved_models.hull(seed=1), model)
        assert mode(model) == wanted


def test_a_private_file_is_private_while_it_is_written(model, monkeypatch):
    seen, fsync = [], os.fsync

    def look(descriptor):
        seen.extend(mode(path) for path in model.parent.glob(".convexmoe-*.part"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    convexmoe_torch.save(saved_models.hull(), model.with_name("new"))
    model.chmod(0o600)
    convexmoe_torch.save(saved_models.hull(), model)
    assert seen == [0o644, 0o600]


def test_a_group_that_cannot_be_kept_gives_no_other_group_its_rights(model, monkeypatch):
    model.chmod(0o660)
    monkeypatch.setattr(os, "chown", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    old_stat = os.stat

    def of_another(path, *arguments, **options):
        found = old_stat(path, *arguments, **options)
        fields = list(found)
        fields[5] += isinstance(path, int)  # the new file, by its descriptor, has another group
        return os.stat_result(fields)

    monkeypatch.setattr(os, "stat", of_another)
    convexmoe_torch.save(saved_models.hull(), model)
    assert mode(model) == 0o600


def test_a_link_that_the_user_names_is_followed(tmp_path, model):
    """As every program does it; the control of the tests below."""
    link = tmp_path / "link"
    link.symlink_to(victim(tmp_path))
    convexmoe_torch.save(saved_models.hull(), link)
    assert link.is_symlink() and inspect(tmp_path / "victim").kind == "VectorHull"
    assert invoke("convert", model, link, "--to", "torch").exit_code == 0 and link.is_symlink()


def test_a_certificate_does_not_follow_a_link(tmp_path, model):
    target = tmp_path / "hull.certificate.json"
    target.symlink_to(victim(tmp_path))
    assert invoke("certify", model, "--framework", "torch").exit_code == 0
    assert (tmp_path / "victim").read_text() == "precious" and not target.is_symlink()
    assert json.loads(target.read_text())["verdict"] == "proved"
    target.chmod(0o600)
    assert invoke("certify", model, "--framework", "torch").exit_code == 0
    assert mode(target) == 0o600


def test_control_a_write_in_place_follows_the_link(tmp_path, model, monkeypatch):
    (tmp_path / "hull.certificate.json").symlink_to(victim(tmp_path))
    monkeypatch.setattr("interop.command.certify.write_whole", lambda path, data: path.write_bytes(data))
    assert invoke("certify", model, "--framework", "torch").exit_code == 0
    assert (tmp_path / "victim").read_text() != "precious"


@pytest.fixture
def alone(monkeypatch):
    """Only PyTorch is installed: a fit then makes no comparison, and compiles nothing."""
    monkeypatch.setattr(frameworks, "installed", lambda: ("torch",))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "t.csv", rows())


def test_a_run_follows_no_link_in_its_folders(tmp_path, table, alone):
    out = tmp_path / "run"
    arguments = [*FIT, table, "--target", "y", "--out", out]
    assert invoke(*arguments, "--pause-at", "3").exit_code == 0
    target = victim(tmp_path)
    for name in ("new.safetensors", "now.safetensors"):
        if (out / "unfinished" / name).exists():
            shutil.copy(out / "unfinished" / name, tmp_path / "outside")
            (out / "unfinished" / name).unlink()
            (out / "unfinished" / name).symlink_to(tmp_path / "outside")
        else:
            (out / "unfinished" / name).symlink_to(target)
    outside = (tmp_path / "outside").read_bytes()
    for name in FILES:
        (out / name).symlink_to(target)
    resumed = invoke("fit", table, "--resume", out, "--framework", "torch", "--pause-at", "9")
    assert resumed.exit_code == 0 and (tmp_path / "outside").read_bytes() == outside
    resumed = invoke("fit", table, "--resume", out, "--framework", "torch")
    assert resumed.exit_code == 0, resumed.output
    assert target.read_text() == "precious" and (tmp_path / "outside").read_bytes() == outside
    assert sorted(os.listdir(out)) == FILES
    assert not any(path.is_symlink() for path in out.iterdir())
    for path in out.iterdir():
        path.chmod(0o600)
    assert invoke(*arguments).exit_code == 0
    assert {mode(path) for path in out.iterdir()} == {0o600}
    for name in ("unfinished", "report.png"):  # a folder elsewhere, or one in the place of a file: before any training
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(tmp_path) if name == "unfinished" else (out / name).mkdir()
        assert_one_line_refusal(invoke(*arguments), name)
        (out / name).unlink() if name == "unfinished" else (out / name).rmdir()


KILLED = """
import os, signal, sys
from convexmoe.files import atomic
from pathlib import Path
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "file":
    os.fsync = die
    atomic.write_whole(Path(sys.argv[2]), b"new")
with atomic.make_staging(Path(sys.argv[2]).parent) as staging:
    (staging / "a").write_text("x")
    die()
"""


def test_the_next_save_removes_what_a_kill_left_and_nothing_else(model):
    folder = model.parent
    names = ["mine.part", ".convexmoe-mine.part", ".convexmoe-0123456789abcdef.parts"]
    for name in names:
        (folder / name).write_text("x")
    outside = folder / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (folder / ".convexmoe-0123456789abcdef.part").symlink_to(outside)
    for kind in ("file", "folder"):
        ended = subprocess.run([sys.executable, "-c", KILLED, kind, str(model)])
        assert ended.returncode == -signal.SIGKILL
        assert any(atomic.LEFTOVER.fullmatch(p.name) and not p.is_symlink() for p in folder.iterdir())
        convexmoe_torch.save(saved_models.hull(), model)
        assert not any(atomic.LEFTOVER.fullmatch(p.name) and not p.is_symlink() for p in folder.iterdir())
    assert set(names) < set(os.listdir(folder)) and os.listdir(outside) == ["kept"]


def test_what_another_is_about_to_finish_is_left_to_it(model):
    """A folder and a file that are locked, as those in use are; unlocked they go (control)."""
    with atomic.make_staging(model.parent) as staging:
        busy = model.with_name(".convexmoe-0123456789abcdef.part")
        busy.write_text("half")
        with busy.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            convexmoe_torch.save(saved_models.hull(), model)
            assert busy.exists() and staging.is_dir()
        convexmoe_torch.save(saved_models.hull(), model)
        assert not busy.exists() and staging.is_dir()
    assert not staging.exists()


WRITERS = """
import sys
from pathlib import Path
from convexmoe.files.atomic import write_whole
path, number = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(150):
    write_whole(path, bytes([number]) * 200_000)
"""


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    running = [subprocess.Popen([sys.executable, "-c", WRITERS, str(path), str(n)]) for n in range(3)]
    whole = {bytes([n]) * 200_000 for n in range(3)}
    while any(process.poll() is None for process in running):
        assert not path.exists() or path.read_bytes() in whole
        time.sleep(0.002)
    assert [process.returncode for process in running] == [0, 0, 0] and os.listdir(tmp_path) == ["file"]


def test_a_second_fit_into_one_directory_is_refused_before_it_trains(tmp_path, table, alone, monkeypatch):
    """The first one, as it trains, starts the second; a directory of its own is free (`test_two_processes...`)."""
    results, call = [], unfinished.Keeper.__call__
    arguments = [*FIT, table, "--target", "y", "--out"]

    def meanwhile(self, state):
        if not results:
            results.append(None)
            results[:] = [invoke(*arguments, tmp_path / "run")]
        return call(self, state)

    monkeypatch.setattr(unfinished.Keeper, "__call__", meanwhile)
    assert invoke(*arguments, tmp_path / "run").exit_code == 0
    assert_one_line_refusal(results[0], "--out", "no other fit writes to", "name another directory")
    assert sorted(os.listdir(tmp_path / "run")) == FILES
    with output.claim(tmp_path / "run"):  # it is free again
        pass


def test_two_processes_and_the_lock(tmp_path):
    """The lock of a process that is killed vanishes with it; a directory without a name of its own is never shared."""
    program = "import sys, time\nfrom pathlib import Path\nfrom interop.command.output import claim\n"
    program += "with claim(None if sys.argv[1] == '-' else Path(sys.argv[1])) as out:\n    print(out, flush=True)\n"
    program += "    time.sleep(100)\n"
    first, second = (
        subprocess.Popen([sys.executable, "-c", program, "-"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    outs = [process.stdout.readline().strip() for process in (first, second)]
    assert sorted(outs) == ["convexmoe-fit", "convexmoe-fit-2"]
    with pytest.raises(ValueError, match="no other fit writes to"), output.claim(tmp_path / outs[0]):
        pass
    first.kill(), first.wait()
    with output.claim(tmp_path / outs[0]) as out:
        assert os.listdir(out) == []
    second.kill(), second.wait()


@pytest.mark.parametrize("package", [convexmoe_jax, convexmoe_torch], ids=lambda package: package.__name__)
def test_a_name_that_is_not_utf_8(package, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.safetensors")
    try:
        open(path, "w").close()
    except OSError:
        pytest.skip("the file system takes no such name")
    convexmoe_torch.save(saved_models.hull(), path)
    model = package.load(path)
    for name in (path, Path(path), os.fsencode(path)):
        package.save(model, name, notes={"target": "y"})
        assert package.read_notes(name) == {"target": "y"} and package.load(name).config == model.config
        assert inspect(name).kind == "VectorHull"


def test_a_name_that_is_not_utf_8_in_the_command(tmp_path, table, alone):
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff\x1b[31m")
    shutil.copy(table, bad)
    assert invoke(*FIT, bad, "--target", "y", "--out", bad + "run").exit_code == 0
    file = bad + "run/model.safetensors"
    for arguments in (
        ["inspect", file],
        ["certify", file, "--framework", "torch"],
        ["minimize", file, "--framework", "torch"],
        ["predict", file, bad, "--framework", "torch", "--out", bad + "p"],
        ["convert", file, bad + "state", "--to", "torch"],
        ["convert", bad + "state", bad + "back"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 0 and "\x1b" not in result.output, (arguments, result.output)
    for arguments in (["inspect", bad + "none"], ["convert", file, bad + "orbax", "--to", "orbax"]):
        assert "\x1b" not in assert_one_line_refusal(invoke(*arguments), "\\udcff")
    assert not Path(bad + "orbax").exists()
    assert Path(bad + "back").read_bytes() == Path(file).read_bytes()
    assert np.isfinite(np.loadtxt(bad + "p", skiprows=1)).all()

"""What every subcommand keeps: a help that fits a screen, examples that parse, `--json`, `--quiet`, exit codes."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from commands import invoke, rows, write
from saved_models import hull
from typer.testing import CliRunner

import convexmoe_torch
from interop import cli, frameworks, in_torch
from interop.command import doctor

pytestmark = pytest.mark.usefixtures("few_folds")

command = import_module("interop.command.app")  # the package has the command itself by this name
SUBCOMMANDS = typer.main.get_command(cli.app).commands
TORCH = ("--framework", "torch")
FIT = ("fit", "DATA", "--target", "y", *TORCH, "--steps", 4, "--petals", 2)
# A call of each that ends well: NEW is a name that nothing has.
CALLS = {
    "fit": (*FIT, "--out", "NEW"),
    "predict": ("predict", "MODEL", "DATA", *TORCH),
    "inspect": ("inspect", "MODEL"),
    "report": ("report", "RUN", *TORCH, "--out", "NEW"),
    "certify": ("certify", "MODEL", *TORCH),
    "minimize": ("minimize", "MODEL", *TORCH),
    "convert": ("convert", "MODEL", "NEW", "--to", "torch"),
    "doctor": ("doctor",),
}
SLOW = ("verify",)  # which prints as `inspect` does; test_verify.py has its --json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table and the hull that was fitted to it."""
    folder = tmp_path_factory.mktemp("command")
    write(folder / "t.csv", rows())
    result = call(folder, *FIT, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert "to train" in result.stdout and "training" in result.stdout  # control: remarks and a bar are in the way
    return folder


def call(folder, *arguments):
    new = folder / f"new{len(list(folder.iterdir()))}"
    places = {
        "DATA": folder / "t.csv",
        "MODEL": folder / "run" / "model.safetensors",
        "RUN": folder / "run",
        "NEW": new,
    }
    return invoke(*(places.get(argument, argument) for argument in arguments))


def screen(*arguments):
    """The help as a terminal of 80 columns has it."""
    result = CliRunner().invoke(cli.app, [*arguments, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0
    return result.stdout.rstrip().splitlines()


def fits(lines):
    return len(lines) <= 50 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", [None, *SUBCOMMANDS])
def test_the_help_fits_a_screen(name):
    lines = screen(*([name] if name else []))
    assert fits(lines), "\n".join(lines)
    assert not fits([*lines, *"x" * 50]) and not fits([*lines, "x" * 81])  # control


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_names_every_option_and_ends_with_examples_that_parse(name):
    lines, subcommand = screen(name), SUBCOMMANDS[name]
    for parameter in subcommand.params:
        shown = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        assert any(re.match(rf"  \{{?{re.escape(shown)}(?![\w-])", line) for line in lines), shown
    _, examples = "\n".join(lines).split("\nExamples:\n" if "Examples:" in lines else "\nExample:\n")
    for example in examples.splitlines():
        program, subname, *arguments = shlex.split(example)
        assert (program, subname) == ("convexmoe", name)
        subcommand.make_context(name, arguments)
        with pytest.raises(Exception, match=r"(?i)no such option"):  # control
            subcommand.make_context(name, ["--such", *arguments])


def test_the_options_of_fit_stand_below_headings_of_which_each_names_some():
    known = {parameter.name for parameter in SUBCOMMANDS["fit"].params}
    assert {name for names in command.GROUPS.values() for name in names} <= known
    assert set(command.GROUPS) <= {line.removesuffix(":") for line in screen("fit")}


@pytest.mark.parametrize("name", sorted(SUBCOMMANDS.keys() - SLOW))
def test_json_is_one_object_and_nothing_else(name, folder):
    result = call(folder, *CALLS[name], "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    fields = {
        "fit": "metrics",
        "predict": "predictions",
        "minimize": "gap",
        "certify": "verdict",
        "convert": "form",
        "report": "out",
    }
    assert fields.get(name, "works" if name == "doctor" else "config") in found
    if name == "fit":
        assert found["metrics"]["test_rmse"].keys() >= {"hull", "linear", "mlp"} and Path(found["out"]).is_dir()


def test_intervals_are_in_the_json(folder):
    found = json.loads(call(folder, *CALLS["predict"], "--interval", 0.8, "--flag", "--json").stdout)
    assert [len(found[key]) for key in ("predictions", "lower", "upper", "outside")] == [40] * 4
    assert all(a < b < c for a, b, c in zip(found["lower"], found["predictions"], found["upper"], strict=True))


def test_a_run_that_pauses_says_so_in_json_and_how_it_goes_on(folder):
    result = call(folder, *FIT, "--out", folder / "paused", "--pause-at", 1, "--json", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["paused_at"] == 1 and found["out"] == str(folder / "paused")
    assert shlex.split(found["go_on"]) == ["convexmoe", "fit", str(folder / "t.csv"), "--resume", found["out"]]


@pytest.mark.parametrize("name", sorted(SUBCOMMANDS.keys() - SLOW))
def test_quiet_prints_nothing_but_what_is_asked_for(name, folder):
    result = call(folder, *CALLS[name], "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    if name == "predict":  # the rows are what another program reads
        assert len(result.stdout.splitlines()) == 41
    else:
        assert result.stdout == ""
    if name == "inspect":  # control
        assert call(folder, *CALLS[name]).stdout


@pytest.mark.parametrize("way", ["--json", "--quiet"])
def test_errors_are_a_line_on_stderr_in_any_way(way, folder):
    for arguments in (("inspect", folder / "none"), ("minimize", "MODEL", "--tol", 3), ("fit", "DATA", *TORCH)):
        result = call(folder, *arguments, way)
        assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert call(folder, "inspect", "MODEL", way, way).exit_code == 0  # the way is over when a command is


def test_what_does_not_hold_is_1_and_in_the_json(folder):
    damaged = folder / "damaged"
    content = (folder / "run" / "model.safetensors").read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = invoke("inspect", damaged, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["intact"] is False
    assert json.loads(call(folder, "inspect", "MODEL", "--json").stdout)["intact"] is True


def test_bounds_that_do_not_exist_are_null_in_json(folder, tmp_path):
    convexmoe_torch.save(hull(), tmp_path / "m")
    boxes = [word for k in range(3) for word in ("--box", f"x{k}>=0")]
    result = invoke("minimize", tmp_path / "m", "--json", *TORCH, *boxes)
    assert result.exit_code in (0, 1, 2)
    if result.exit_code < 2:
        assert json.loads(result.stdout)["upper"] == [None] * 3


def test_the_page_and_the_help_have_the_same_exit_codes():
    page = (Path(__file__).parents[1] / "docs" / "pages" / "command.md").read_text()
    codes = re.findall(r"^\| `(\d+)` \|", page, re.MULTILINE)
    assert codes == [line.split()[0] for line in command.EXIT_CODES] == ["0", "1", "2", "130"]
    lines = screen()
    assert all(f"  {line}" in lines for line in command.EXIT_CODES)
    for name in SUBCOMMANDS:
        assert f"convexmoe {name}" in page


def test_the_version_and_the_completion_of_a_shell():
    result = invoke("--version")
    assert result.exit_code == 0 and re.fullmatch(r"convexmoe \d+\.\d+\.\d+\S*\n", result.stdout)
    asked = {"_CONVEXMOE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    for word, names in {"in": "inspect", "ver": "verify", "zz": ""}.items():
        env = asked | {"COMP_WORDS": f"convexmoe {word}"}
        assert CliRunner().invoke(cli.app, [], env=env, prog_name="convexmoe").stdout.split() == names.split()


def test_doctor_tries_both_frameworks(monkeypatch):
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    for words in ("JAX: ", "PyTorch: ", "cpu", "Extra plot: ", "load and predict in JAX: works", "All that is"):
        assert words in result.stdout


BROKEN = {
    "an import": (frameworks, "get", lambda name: 1 / 0, "division by zero"),
    "a certificate": (convexmoe_torch, "certify", lambda *a: SimpleNamespace(verdict="unknown"), "certify in PyTorch"),
    "a file": (convexmoe_torch, "load", lambda path: hull(), "predict in PyTorch"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_doctor_ends_with_1_where_something_is_broken(name, monkeypatch):
    module, attribute, broken, words = BROKEN[name]
    monkeypatch.setattr(frameworks, "installed", lambda: ("torch",))
    monkeypatch.setattr(module, attribute, broken)
    result = invoke("doctor")
    assert result.exit_code == 1 and words in result.stdout and "Not all that is installed works" in result.stdout
    assert 'JAX: not installed. Run, in a clone of convexmoe: pip install -e ".[jax]".' in result.stdout


def test_doctor_ends_with_1_where_no_file_can_be_written(monkeypatch):
    def no_room():
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(frameworks, "installed", lambda: ("torch",))
    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", no_room)
    result = invoke("doctor")
    assert result.exit_code == 1 and "fit in PyTorch: No usable temporary directory" in result.stdout


def test_doctor_names_the_extra_of_what_is_missing(monkeypatch):
    version = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "matplotlib" else version(name))
    monkeypatch.setattr(doctor, "try_out", lambda names: iter(()))
    monkeypatch.setattr(in_torch, "devices", lambda: ["a\x1b[5m"])
    result = invoke("doctor")
    assert result.exit_code == 0 and r"a\x1b[5m" in result.stdout
    assert 'Extra plot: without matplotlib. Run, in a clone of convexmoe: pip install -e ".[plot]".' in result.stdout
    assert "Extra test" not in result.stdout
    assert doctor.read_extras()["interop"].keys() >= {"jax", "torch"}  # of an extra that it names

"""Names, notes and paths of anyone: no command hands a terminal what it would obey, and markup comes out as it is."""

import ast
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, invoke, rows, write
from test_cli_hostile import hull_file

from convexmoe import errors
from interop import cli
from interop.command.saved_model import notes_of

pytestmark = pytest.mark.usefixtures("few_folds")

NAMES = ("a\x1b[31m[red]", "b\u202e[/]:car:", "y\x9b1m\x07[b]")
PLAIN = (r"a\x1b[31m[red]", r"b\u202e[/]:car:", r"y\x9b1m\x07[b]")
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def linear(cells):
    """The target is exactly linear."""
    cells[0][:] = NAMES
    for row in cells[1:]:
        row[2] = repr(2 * float(row[0]) - float(row[1]) + 3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A folder, a table and a model, of hostile names outside and inside."""
    folder = tmp_path_factory.mktemp("hostile") / "run\x1b[2J[red]\u202e"
    folder.mkdir()
    notes = notes_of(NAMES[:2], NAMES[2], np.array([[-1.0, -1.0], [1.0, 1.0]])) | {"by": "\x7f\x1b]0;p\x07"}
    return {
        "FOLDER": folder,
        "DATA": write(folder / "t\x1b]0;p\x07[x].csv", rows(change=linear)),
        "MODEL": hull_file(folder / "m\x1b[1m[b].safetensors", notes=notes),
    }


TORCH = ("--framework", "torch")
# Arguments, exit code, what must be in the output
COMMANDS = {
    "pause": (("fit", "DATA", "--target", NAMES[2], "--out", "FOLDER/o", "--pause-at", 1, *TORCH, *QUICK), 0, PLAIN),
    "target": (("fit", "DATA", "--target", "\x1b[5m", *TORCH), 2, (r"\x1b[5m", PLAIN[0])),
    "drop": (("fit", "DATA", "--target", NAMES[2], "--drop", "\x1b[5m", *TORCH), 2, PLAIN),
    "resume": (("fit", "--resume", "FOLDER/o\x1b", *TORCH), 2, (r"o\x1b",)),
    "framework": (("fit", "DATA", "--framework", "\x1b[5m"), 2, ("jax or torch",)),
    "predict": (("predict", "MODEL", "DATA", *TORCH), 0, (f"predicted_{PLAIN[2]}",)),
    "predict to": (("predict", "MODEL", "DATA", "--out", "FOLDER/p\x1b", *TORCH), 0, (r"p\x1b",)),
    "predict from": (("predict", "MODEL\x1b", "DATA", *TORCH), 2, (r"m\x1b[1m[b].safetensors\x1b",)),
    "inspect": (("inspect", "MODEL"), 0, (r"run\x1b[2J[red]\u202e", "[31m[red]")),
    "inspect json": (("inspect", "MODEL", "--json"), 0, (r"\u007f",)),
    "inspect none": (("inspect", "MODEL\x1b"), 2, (r"m\x1b[1m[b]",)),
    "certify": (("certify", "MODEL", "--proof", *TORCH), 0, (r"m\x1b[1m[b].certificate.json",)),
    "strength": (("certify", "MODEL", "--strength", "\x1b[5m", *TORCH), 2, ("structural",)),
    "minimize": (("minimize", "MODEL", *TORCH), 0, PLAIN),
    "box": (("minimize", "MODEL", "--box", "\x1b[5m<=1", *TORCH), 2, PLAIN[:2]),
    "verify": (("verify", "MODEL", "MODEL\x1b", "--steps", 0), 2, (r"m\x1b[1m[b].safetensors\x1b",)),
    "convert": (("convert", "MODEL", "FOLDER/c\x1b[5m[x].safetensors", "--to", "torch"), 0, (r"c\x1b[5m[x]",)),
    "form": (("convert", "MODEL", "FOLDER/d", "--to", "\x1b[5m"), 2, ("neutral",)),
    "subcommand": (("\x1b[5m",), 2, (r"\x1b[5m",)),
    "option": (("inspect", "--\x1b[5m", "MODEL"), 2, (r"\x1b[5m",)),
}


def run(paths, arguments):
    named = [re.sub("|".join(paths), lambda word: str(paths[word[0]]), str(argument)) for argument in arguments]
    result = invoke(*named)
    return result, result.stdout + result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_is_given_nothing_to_obey(paths, name):
    arguments, code, words = COMMANDS[name]
    result, printed = run(paths, arguments)
    assert result.exit_code == code, (printed, result.exception)
    assert not (found := OBEYED.findall(printed)), found
    for word in words:
        assert word in printed.replace("\n", ""), printed


@pytest.mark.parametrize("name", ["inspect none", "minimize", "predict"])
def test_control_without_the_door_it_is_seen(paths, name, monkeypatch):
    monkeypatch.setattr(errors, "_UNPRINTABLE", re.compile("(?!)"))
    assert OBEYED.findall(run(paths, COMMANDS[name][0])[1])


def test_a_fault_of_our_own_is_shown_in_full_and_written_out(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("interop.command.app", lambda: None)
    cli.main()
    fault = LookupError("\x1b[5m")
    sys.excepthook(type(fault), fault, None)
    assert capsys.readouterr().err.strip() == r"LookupError: \x1b[5m"


def printing(text):
    """The calls of a module that print."""
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    return names & {"print", "echo", "secho", "Console", "Progress", "write_through", "print_json"}


def test_one_file_of_the_command_prints():
    folder = Path(__file__).parents[1] / "interop" / "command"
    found = {path.name: printing(path.read_text()) for path in folder.glob("*.py")}
    assert {name for name, calls in found.items() if calls} == {"output.py"}
    assert printing("console.print(1)") and printing("typer.echo(2)") and not printing("say(3)")  # control


def test_the_command_that_goes_on_can_be_pasted_and_a_linear_target_is_exact(tmp_path):
    def change(cells):
        linear(cells)
        for n, row in enumerate(cells):
            row.append(str(n) if n else "the id")

    data = write(tmp_path / "my 'own' [table].csv", rows(change=change))
    options = ("--target", NAMES[2], "--drop", "the id", "--out", tmp_path / "a b", *TORCH, *QUICK)
    paused = invoke("fit", data, *options, "--pause-at", 1)
    command = shlex.split(paused.stdout.rpartition("framework: ")[2])
    assert command == ["convexmoe", "fit", str(data), "--resume", str(tmp_path / "a b")]
    done = invoke(*command[1:], *TORCH)
    assert done.exit_code == 0, done.output
    assert not OBEYED.findall(done.output) and all(name in done.output for name in PLAIN)
    errors = done.output.partition("Test error")[2].partition("Prediction intervals")[0]
    assert errors.count("linear is exact") == 2 and "%" not in errors

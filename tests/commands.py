"""What the tests of the command share: tables to fit, a call in this process, and what a refusal looks like."""

import csv

import numpy as np
from typer.testing import CliRunner

from interop import cli

FRAMEWORKS = ("jax", "torch")
QUICK = ["--steps", "30", "--petals", "3"]


class Runs(dict):
    """What `make(framework)` returns, made when a test first asks for it: no worker makes what its tests do not use."""

    def __init__(self, make):
        self.make = make

    def __missing__(self, framework):
        self[framework] = self.make(framework)
        return self[framework]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def rows(n=40, change=None):
    """A well-formed table: a, b and y, where y is convex in a and b; `change(cells)` spoils it."""
    rng = np.random.default_rng(7)
    cells = [["a", "b", "y"]]
    for a, b in rng.normal(size=(n, 2)):
        cells.append([f"{a:.4f}", f"{b:.4f}", f"{a * a + abs(b):.4f}"])
    if change is not None:
        change(cells)
    return cells


def write(path, cells):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(cells)
    return path


def put(row, column, text):
    return lambda cells: cells[row].__setitem__(column, text)


def fill(column, text):
    return lambda cells: [row.__setitem__(column, text) for row in cells[1:]]


def assert_one_line_refusal(result, *parts):
    """Exit code 2, one line on stderr that names the fault and the remedy, nothing else."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    [line] = result.stderr.splitlines()
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for part in parts:
        assert part in line
    return line

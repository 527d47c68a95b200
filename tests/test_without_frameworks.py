"""What needs neither JAX nor PyTorch loads neither: `import interop`, the help, `inspect`, `convert` between files.

A hull of a file as a program of CVXPY is in test_program_faults.py: CVXPY itself loads JAX where that is installed.
"""

import subprocess
import sys

import pytest
import torch
from small_hulls import hull

import convexmoe_torch

FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax", "convexmoe_jax", "convexmoe_torch"}
COMMAND = "from typer.testing import CliRunner\nfrom interop.cli import app\nresult = CliRunner().invoke(app, {})\n"
COMMAND += "assert result.exit_code == 0, result.output\n"
PROGRAMS = {
    "interop": "import interop\ninterop.to_cvxpy",
    "the help": COMMAND.format(["--help"]),
    "inspect as a function": "import convexmoe\nassert convexmoe.inspect('hull').num_parameters > 0",
    "inspect": COMMAND.format(["inspect", "hull"]) + "assert 'readout.bias' in result.stdout",
    "convert": COMMAND.format(["convert", "hull", "state.safetensors"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the file of a hull in the dtype that numpy has not."""
    folder = tmp_path_factory.mktemp("files")
    convexmoe_torch.save(hull().to(torch.bfloat16), folder / "hull")
    return folder


def frameworks_after(program, folder):
    """The modules of frameworks that are loaded after a program in a new interpreter."""
    program += f"\nimport sys\nprint('loaded:', *({FRAMEWORKS!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_framework_is_loaded(program, folder):
    assert frameworks_after(program, folder) == set()


def test_control_a_framework_that_is_loaded_is_seen(folder):
    program = COMMAND.format(["certify", "hull", "--framework", "torch"])
    assert {"torch", "convexmoe_torch"} <= frameworks_after(program, folder)

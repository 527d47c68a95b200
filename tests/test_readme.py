"""Every block of the README and of the documentation runs, or, where it would take minutes, names only what exists.

Python blocks run in order, each with names of its own, in one empty folder, so that a later block can load what an
earlier one saved. In shell blocks each make target, subcommand, option, extra and file must exist; so must what links
name.
"""

import contextlib
import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from typer.testing import CliRunner

import convexmoe
import convexmoe_jax
import convexmoe_jax.hull.petals
import convexmoe_torch
import convexmoe_torch.hull.petals
import interop
from convexmoe.hull.activations import ACTIVATIONS
from interop import cli

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / "pages").glob("*.md"))]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
README = TEXTS["README.md"]
LONG = ("deployment", "files", "fitting")  # pages whose blocks run at a release only
SHELL = ("bash", "console", "sh", "shell")
FENCE = re.compile(r"^```[ ]*(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    return [
        Block(match[1].lower(), match[2], markdown[: match.start()].count("\n") + 1)
        for match in FENCE.finditer(markdown)
    ]


def run_python(found: list[Block]) -> list[str]:
    """Failures of the Python blocks, run in order in the working directory."""
    failures = []
    for block in found:
        if block.language in ("python", "py"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # a reader who pastes a block is not warned
                    exec(compile(block.text, f"block of line {block.line}", "exec"), {"__name__": "__main__"})
            except Exception:
                failures.append(f"line {block.line}: {traceback.format_exc()}")
    return failures


def anchors(path: Path) -> set[str]:
    """The anchors that the headings of a page get."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def dead_links(page: str, text: str) -> list[str]:
    """The links of a page whose file, or whose heading in it, is not there; addresses on the web are not followed."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not target.startswith("http") and not (path.exists() and (not heading or heading in anchors(path))):
            found.append(target)
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block; in a `console` block only what stands behind a prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.lstrip()[2:] for line in lines if line.lstrip().startswith("$ ")]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [command for command in words if command]


@functools.cache
def command_help(*subcommand: str) -> str | None:
    """What `convexmoe SUBCOMMAND --help` prints, or None if there is no such subcommand."""
    wide = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    result = CliRunner().invoke(cli.app, [*subcommand, "--help"], env=wide)
    return result.stdout if result.exit_code == 0 else None


def problem(command: list[str]) -> str | None:
    """Why a reader could not run this command as it stands, or None."""
    program, *args = command
    name = Path(program).name
    options = {arg.partition("=")[0] for arg in args if arg.startswith("-")}
    if name == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = {arg for arg in args if "=" not in arg and not arg.startswith("-")} - set(targets)
    elif name == "convexmoe":
        subcommand = [arg for arg in args[:1] if not arg.startswith("-")]
        text = command_help(*subcommand)
        unknown = set(subcommand) if text is None else {option for option in options if option not in text}
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        used = {e.strip() for arg in args for group in re.findall(r"\[(.*?)\]", arg) for e in group.split(",")}
        unknown = used - set(extras)
    elif name in ("python", "python3"):
        unknown = {arg for arg in args if arg.endswith(".py") and not (ROOT / arg).is_file()}
    elif name in ("cd", "git", "source", "."):
        unknown = set()
    else:
        unknown = {program}
    return f"{shlex.join(command)}: unknown {', '.join(sorted(unknown))}" if unknown else None


def problems(found: list[Block]) -> list[str]:
    shell = [block for block in found if block.language in SHELL]
    return [text for block in shell for command in commands(block) if (text := problem(command))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.release) if Path(page).stem in LONG else page
        for page in PAGES
        if "```python" in TEXTS[page]
    ],
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # docs/pages/activations.md adds a row to these tables, which goes with the test
    own = [ACTIVATIONS, convexmoe_jax.hull.petals.FUNCTIONS, convexmoe_torch.hull.petals.FUNCTIONS]
    with contextlib.ExitStack() as stack:
        for table in own:
            stack.enter_context(mock.patch.dict(table))
        assert run_python(blocks(TEXTS[page])) == []


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_name_only_what_exists(page):
    assert problems(blocks(TEXTS[page])) == []


def from_an_index(text: str) -> list[str]:
    """The lines that would install convexmoe from a package index, where it is not."""
    return [line for line in text.splitlines() if re.search(r"pip3? install(?!.*git\+)[^#]*[\s\"']convexmoe\b", line)]


def test_what_is_said_of_installing_works_in_a_clone():
    folders = ("convexmoe", "convexmoe_jax", "convexmoe_torch", "interop", "examples", "benchmarks", "docs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    paths += [*ROOT.glob("*.md"), ROOT / "Makefile"]
    assert len(paths) > 200 and {str(p): f for p in paths if (f := from_an_index(p.read_text()))} == {}
    assert from_an_index('Run: pip install "convexmoe[jax]".') and from_an_index(
        "$ pip install -U convexmoe"
    )  # control
    assert not from_an_index('in a clone of convexmoe: pip install -e ".[jax]"')


@pytest.mark.parametrize("package", [convexmoe, convexmoe_jax, convexmoe_torch, interop])
def test_every_public_name_is_on_the_page(package):
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]*`", TEXTS["docs/pages/api.md"]))))
    assert set(package.__all__) - named == set()
    assert not {"NoSuchName"} & named  # control: words are told apart


def test_readme_starts_with_the_two_commands():
    first = blocks(README)[0]
    assert [args for name, *args in commands(first) if name == "make"] == [["demo"], ["test"]]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_known_language(page):
    assert {block.language for block in blocks(TEXTS[page])} <= {"python", "py", "text", *SHELL}


def test_the_readme_is_short_and_shows_a_picture():
    assert README.count("\n") <= 180
    [picture] = re.findall(r"!\[[^\]]+\]\((.*?)\)", README)
    assert 10_000 < (ROOT / picture).stat().st_size < 150_000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert dead_links(page, TEXTS[page]) == []


def test_control_a_dead_link_is_found():
    text = "# A b, c\n[a](#a-b-c) [b](#b) [c](docs/pages/api.md) [d](docs/pages/none.md) [e](docs/pages/api.md#none)"
    assert dead_links("README.md", text) == ["#a-b-c", "#b", "docs/pages/none.md", "docs/pages/api.md#none"]
    assert dead_links("README.md", "[the guarantee](#the-guarantee) [web](https://none.example)") == []


@pytest.mark.release
def test_the_script_still_draws_the_gallery(tmp_path):
    program = [sys.executable, str(ROOT / "docs" / "gallery.py"), str(tmp_path)]
    subprocess.run(program, check=True, timeout=600, env=os.environ | {"PYTHONPATH": str(ROOT)})
    made = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    page = (ROOT / "docs" / "pages" / "pictures.md").read_text()
    assert set(re.findall(r"images/(\w+\.png)", page)) == {*made}
    assert all(3_000 < size < 60_000 for size in made.values()), made


def test_control_a_failing_block_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = (
        "```python\nopen('made', 'w').close()\n```\n\n"
        "```python\nopen('made').close()\n```\n\n"
        "```text\nnot run\n```\n\n```python\nassert 1 == 2\n```\n"
        "```python\nimport warnings\nwarnings.warn('w')\n```\n"
    )
    failure, warned = run_python(blocks(sample))
    assert failure.startswith("line 13:") and "AssertionError" in failure
    assert warned.startswith("line 16:") and "UserWarning" in warned


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "pip install -e '.[jax,nothing]'",
        "convexmoe nothing",
        "convexmoe fit --nothing",
        "python benchmarks/nothing.py",
        "nothing",
    ],
)
def test_control_a_command_that_cannot_run_is_found(line):
    [failure] = problems(blocks(f"```console\n$ {line}\nits output\n```\n"))
    assert "nothing" in failure.rpartition("unknown")[2]


def test_control_what_can_run_is_not_flagged():
    lines = "make test  # all\nmake demo && pip install -e '.[torch]'\nconvexmoe fit data.csv --petals 4\n"
    assert problems(blocks(f"```bash\n{lines}```\n")) == []

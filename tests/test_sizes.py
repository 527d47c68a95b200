"""No file over 400 lines, no function over 60, in the four source trees together no more than 34,850 lines."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREES = ("convexmoe", "convexmoe_jax", "convexmoe_torch", "interop")
FILE, FUNCTION, ALL = 400, 60, 34_850

# What is over a limit, with the reason; a row that is within it by now must go.
EXCUSED: dict[str, str] = {}


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function's body, from its first statement that is no docstring."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def large(name: str, text: str) -> list[str]:
    """The file, and its functions, that are over their limit."""
    found = [name] if len(text.splitlines()) > FILE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_lines(node) > FUNCTION:
            found.append(f"{name}:{node.name}")
    return found


def sources() -> dict[str, str]:
    """Name to text of every module of the four trees."""
    paths = [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_files_and_functions_are_small():
    found = {entry for name, text in sources().items() for entry in large(name, text)}
    assert found - EXCUSED.keys() == set(), "over the limit"
    assert EXCUSED.keys() - found == set(), "within the limit by now: strike the row"


def test_the_source_is_small():
    count = {tree: 0 for tree in TREES}
    for name, text in sources().items():
        count[name.split("/")[0]] += len(text.splitlines())
    assert min(count.values()) > 1000, count  # the trees are there
    assert sum(count.values()) <= ALL, count


def test_control_what_is_large_is_seen():
    body = "    x = 1\n" * FUNCTION
    assert large("a.py", f'def f():\n    """Says\n\n    much."""\n{body}') == []
    assert large("a.py", f"class A:\n    def f(self):\n{body.replace('    ', '        ')}        x = 2\n") == ["a.py:f"]
    assert large("a.py", "x = 1\n" * FILE) == []
    assert large("a.py", "x = 1\n" * (FILE + 1)) == ["a.py"]

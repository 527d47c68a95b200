"""The functions of docs/pages/files.md that evaluate a model from its file."""

import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[1] / "docs" / "pages" / "files.md").read_text()
[TEXT] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def hull(" in block]


def program(text: str = TEXT) -> dict[str, Any]:
    """The functions by name; `text` may be a changed one."""
    names: dict[str, Any] = {}
    exec(text, names)
    return names

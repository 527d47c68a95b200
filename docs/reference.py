"""A hook of mkdocs: writes the pages of the reference from the public names, and refuses one without a docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

# A page, and where its names are public. What both packages have from the core stands on the first page alone.
PAGES = {
    "both": ("Of both packages", ("convexmoe_jax", "convexmoe_torch")),
    "jax": ("Only in convexmoe_jax", ("convexmoe_jax", "convexmoe_jax.hull", "convexmoe_jax.parallel")),
    "torch": ("Only in convexmoe_torch", ("convexmoe_torch", "convexmoe_torch.hull", "convexmoe_torch.parallel")),
    "interop": ("interop", ("interop", "interop.cvxpy", "interop.plots", "interop.sklearn")),
}
CORE = "convexmoe"
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # up to the next empty line


class FencedExamples(griffe.Extension):
    """Sets the doctests of docstrings as code: bare, they would read as quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of a docstring: each block of lines that begins with a prompt."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", inspect.cleandoc(obj.docstring.value))


def find_home(package: str, name: str, trees: dict[str, griffe.Object | griffe.Alias]) -> tuple[str, str | None]:
    """Return the path at which a public name is defined, and its docstring; `trees` has what was parsed before."""
    value = getattr(importlib.import_module(package), name)
    if inspect.ismodule(value):
        return value.__name__, value.__doc__
    home = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', name)}"
    if home.partition(".")[0] in (CORE, *(root for _, where in PAGES.values() for root in where)):
        return home, inspect.getdoc(value)
    if package not in trees:  # the name of a type, which does not know where it was defined
        loader = griffe.GriffeLoader(search_paths=["."])
        loader.load(CORE)
        trees[package] = loader.load(package)
    alias: Any = trees[package][name]
    text = alias.final_target.docstring
    return alias.final_target.path, text and text.value


def find_names() -> dict[str, dict[str, str]]:
    """Return for each page its public names and the paths at which they are defined.

    Raises:
        PluginError: a public name has no docstring.
    """
    trees: dict[str, griffe.Object | griffe.Alias] = {}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    bare = []
    for page, (_, packages) in PAGES.items():
        for package in packages:
            for name in importlib.import_module(package).__all__:
                home, text = find_home(package, name, trees)
                bare += [] if text else [f"{package}.{name}"]
                if page == "both" and not home.startswith(f"{CORE}."):
                    continue
                if page == "both" or home not in found["both"]:
                    found[page][home] = name
    if bare:
        raise PluginError(f"docs: expected a docstring for every public name; {', '.join(bare)} have none.")
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for page, names in find_names().items():
        title, packages = PAGES[page]
        text = [f"# {title}\n", f"Public in {' and '.join(f'`{package}`' for package in packages)}.\n"]
        for home, name in sorted(names.items(), key=lambda item: item[1].lower()):
            text.append(f"::: {home}\n    options:\n      heading: {name}\n")
        files.append(File.generated(config, f"reference/{page}.md", content="\n".join(text)))
    return files

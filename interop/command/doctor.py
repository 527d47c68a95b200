"""`convexmoe doctor`: what is installed, what the frameworks see, and whether it works."""

from __future__ import annotations

import platform
import re
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import typer

from convexmoe.hull import HullConfig

from .. import frameworks
from .output import conclude, say, terminal
from .saved_model import reason_of

DEVELOPERS = ("test", "docs", "peers", "tables")  # extras that only a clone has a use for
APART = 1e-5  # predictions of two frameworks, relative to the largest


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_extras() -> dict[str, dict[str, str | None]]:
    """Return for each extra of convexmoe the distributions that it brings, and their versions, None for missing ones.

    Those of an extra that it names stand in it as well; there is none where convexmoe itself is not installed.
    """
    named: dict[str, list[str]] = {}
    for text in (metadata.requires("convexmoe") or ()) if version_of("convexmoe") else ():
        needed, _, condition = text.partition(";")
        if extra := re.search(r"extra == ['\"]([\w-]+)", condition):
            named.setdefault(extra[1], []).append(needed)

    def brought(extra: str) -> list[str]:
        names: list[str] = []
        for needed in named.get(extra, ()):
            if inner := re.match(r"convexmoe\[([^]]*)", needed):
                names += [name for part in inner[1].split(",") for name in brought(part.strip())]
            elif match := re.match(r"[\w.-]+", needed):
                names.append(match[0])
        return names

    return {extra: {n: version_of(n) for n in brought(extra)} for extra in sorted(named) if extra not in DEVELOPERS}


def look_at(name: str) -> dict[str, Any]:
    """Return version and devices of an installed framework, and the fault that its import has, else None."""
    found: dict[str, Any] = {"version": version_of(name), "devices": [], "fault": None}
    try:
        found["devices"] = frameworks.get(name).devices()
    except Exception as error:  # of any kind, as a broken installation raises
        found["fault"] = reason_of(error)
    return found


def try_out(names: list[str]) -> Iterator[str]:
    """Fit a tiny hull in the last framework, certify and save it, and predict from the file in each framework.

    Yield what is done next; what does not work raises an error.
    """
    x, side = np.random.default_rng(0).normal(size=(64, 2)), frameworks.get(names[-1])
    yield f"fit in {frameworks.LABELS[side.name]}"
    with tempfile.TemporaryDirectory() as folder, side.quiet():
        path, label, first = Path(folder) / "model.safetensors", frameworks.LABELS[side.name], None
        new = side.new_hull(HullConfig(2, petals=2, out_dim=1, hidden_dim=4, temperature="learned"), 0)
        model = side.package.fit(new, x, (x**2).sum(axis=1), steps=20, seed=0, compare=False).model
        yield f"certify in {label}"
        verdict = side.package.certify(model, side.rows_for(model, x[0])).verdict
        if verdict != "proved":
            raise ArithmeticError(f"the certificate says {verdict}")
        yield "save"
        side.package.save(model, path)
        for name in reversed(names):
            yield f"load and predict in {frameworks.LABELS[name]}"
            values = frameworks.get(name).predict(frameworks.get(name).package.load(path), x)
            first = values if first is None else first
            if not np.abs(values - first).max() <= APART * np.abs(first).max():
                raise ArithmeticError(f"the predictions are not those in {label}")


def check_installation() -> None:
    """Show versions, devices and extras, and try out what is installed. Exit code 1 where some of it does not work."""
    versions = {"python": platform.python_version(), "convexmoe": version_of("convexmoe"), "numpy": np.__version__}
    result: dict[str, Any] = {"versions": versions, "system": platform.platform(), "extras": read_extras()}
    steps: list[dict[str, Any]] = []
    with terminal(stderr=True).status("Trying out what is installed"):
        looks = {name: look_at(name) for name in frameworks.installed()}
        able, start = [name for name, found in looks.items() if found["fault"] is None], time.perf_counter()
        try:
            for words in try_out(able) if able else ():
                steps.append({"step": words, "begins": round(time.perf_counter() - start, 2), "fault": None})
        except Exception as error:  # of any kind: that it does not work is what is looked for
            steps[-1]["fault"] = reason_of(error)
    seconds = time.perf_counter() - start
    works = all(found["fault"] is None for found in (*looks.values(), *steps))
    if not conclude(result | {"frameworks": looks, "self_test": steps, "works": works}):
        say(f"{', '.join(f'{name} {version}' for name, version in versions.items())}, on {result['system']}")
        for name, label in frameworks.LABELS.items():
            look = looks.get(name)
            shown = look and f"{look['version']}, {look['fault'] or ', '.join(look['devices'])}"
            say(f"{label}: {shown or f'not installed. {frameworks.how_to_install(name)}'}")
        for extra, found in result["extras"].items():
            missing = ", ".join(name for name, version in found.items() if version is None)
            lack = missing and f"without {missing}. {frameworks.how_to_install(extra)}"
            say(f"Extra {extra}: {lack or 'installed'}")
        for step in steps:
            say(f"{step['step']}: {step['fault'] or 'works'}")
        say(f"{'All' if works else 'Not all'} that is installed works; tried in {seconds:.1f} s.")
    if not works:
        raise typer.Exit(1)

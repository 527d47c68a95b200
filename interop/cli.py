"""The `convexmoe` command: start-up checks, then the subcommands of `interop.command`.

This file imports nothing but the standard library before the checks, so that each of them can speak in one line.
"""

from __future__ import annotations

import io
import sys
import traceback
from typing import Any

import interop

__all__ = ["app", "main", "startup_problem"]  # noqa: F822  (app: see __getattr__)


def startup_problem() -> str | None:
    """Return why the command cannot start, with the remedy, in one line; None where it can.

    >>> startup_problem() is None
    True
    """
    if getattr(interop, "__distribution__", None) != "convexmoe":
        place = getattr(interop, "__file__", None) or list(interop.__path__)
        return (
            f"convexmoe: expected its own package `interop`; found another distribution's at {place!a}. "
            "Install convexmoe in a fresh environment."
        )
    missing = [name for name in ("typer", "rich") if not interop.is_installed(name)]
    if missing:
        return (
            f"convexmoe: expected the packages typer and rich; {' and '.join(missing)} not installed. "
            'Run, in a clone of convexmoe: pip install -e ".[jax]" (or ".[torch]").'
        )
    return None


def main() -> None:
    """Run the command; a start-up problem is one line on stderr and exit code 2."""
    problem = startup_problem()
    if problem is not None:
        print(problem, file=sys.stderr)
        raise SystemExit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="replace")
    from convexmoe.errors import printable

    from .command import app

    sys.excepthook = lambda *fault: print(printable("".join(traceback.format_exception(*fault))), file=sys.stderr)
    app()


def __getattr__(name: str) -> Any:
    if name == "app":  # imported on demand: it needs typer
        from .command import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()

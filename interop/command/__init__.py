"""The `convexmoe` command, a file a subcommand."""

from .app import app

__all__ = ["app"]

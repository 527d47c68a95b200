"""Branches: what is known after them of what is known before."""

from __future__ import annotations

from .proof import Rule

CONTROL_RULES: dict[str, Rule] = {}

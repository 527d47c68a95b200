"""The documentation builds without a warning, and has every public name with a docstring."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def reference() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(config: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(config), "-d", str(site)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=600)


def test_the_site_builds_and_shows_what_is_public(tmp_path):
    done = build(ROOT / "docs" / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page: (tmp_path / "reference" / page / "index.html").read_text() for page in reference().PAGES}
    assert 'id="convexmoe.minimization.sets.Box"' in pages["both"]
    assert 'href="../../site.css"' in pages["both"] and "pre-wrap" in (tmp_path / "site.css").read_text(), "code is cut"
    assert "convexmoe_torch.hull.module.VectorHull" in pages["torch"]
    assert "convexmoe_jax.hull.module.VectorHull" in pages["jax"]
    assert "convexmoe.training.fit.HullFit.fit" in pages["both"], "what both packages have from the core stands once"
    assert "HullFit.fit" not in pages["jax"] + pages["torch"]


def test_a_name_without_a_docstring_stops_the_build():
    from mkdocs.exceptions import PluginError

    import convexmoe_torch

    pages = reference()
    names = pages.find_names()
    assert len(names["both"]) > 40 and all(names.values())

    def bare():
        pass

    bare.__module__ = "convexmoe_torch"
    public = [*convexmoe_torch.__all__, "bare"]
    with (
        mock.patch.multiple(convexmoe_torch, bare=bare, __all__=public, create=True),
        pytest.raises(PluginError, match=r"convexmoe_torch\.bare have none"),
    ):
        pages.find_names()

"""The example of the languages trains, runs from end to end (at a release), and what it compares has equal compute."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = Path(__file__).parents[1] / "examples" / "languages.py"
spec = importlib.util.spec_from_file_location("languages", SCRIPT)
languages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(languages)
SPLITS = languages.read_words(["es", "ca"], set())


def test_a_model_trains_and_is_scored(monkeypatch):
    """Forty steps for two languages; control: at a rate of 0 nothing is learned."""
    monkeypatch.setattr(languages, "CHUNK", 40)
    monkeypatch.setattr(languages, "BATCH", 256)
    settings = languages.Settings({"west": ["es", "ca"]}, (), 1, 40)
    data = languages.prepare(settings)
    for rate, least, most in ((1e-2, 1.0, 4.8), (0.0, 5.0, 7.0)):
        ran = languages.run("shared", rate, 0, data, settings, lambda steps: None)
        assert list(ran["test"]) == ["es", "ca"]
        assert all(least < bits < most for bits in (ran["validation"], *ran["test"].values())), ran


@pytest.mark.release
def test_quick_run_writes_sensible_figures(tmp_path):
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # the run is short: compiling is what costs
    }
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "languages.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "figures.json").read_text())
    models = record["models"]
    assert list(models) == ["shared", "flat", "hierarchy", "shuffled"]
    assert record["languages"] == ["es", "pt", "ca", "sv", "da"] and record["poor"] == ["ca", "da"]
    macs = {found["macs"] for found in models.values()}
    assert max(macs) <= 1.05 * min(macs)
    assert len({found["steps"] for found in models.values()}) == 1
    for found in models.values():
        [bits] = found["bits"]
        assert list(bits) == record["languages"]
        # Some 40 characters, evenly likely, are 5.3 bits; the best known models of text need more than 1.
        assert all(math.isfinite(value) and 1 < value < 4.8 for value in bits.values())


@pytest.mark.parametrize("model", languages.MODELS)
def test_counts_are_those_made_by_hand(model):
    families = {"a": ["x", "y"], "b": ["z"]}
    experts, table = languages.arrangement(model, families, 0)
    size = languages.count(languages.Speller(experts, 29, 3, 0))
    D, H, encoder_in = languages.HIDDEN, languages.EXPERT_HIDDEN, 8 * 12 + 16
    assert size["macs"] == encoder_in * D + 3 * 2 * D * H + 3 * D * D + D * 29
    biases = D + 2 * D + 29  # encoder; scale and bias of the fusion's norm; read-out
    stacked = sum(len(names) for names in experts.values()) * (2 * D * H + H + D)
    other = encoder_in * D + 3 * D * D + D * 29 + biases + 29 * 12 + 3 * 16
    assert size["parameters"] == stacked + other
    assert table.shape == (3, 3) and all(
        row.max() < len(experts[level]) for level, row in zip(languages.LEVELS, table, strict=True)
    )


def test_shuffled_keeps_the_sizes_of_the_families():
    _, table = languages.arrangement("hierarchy", languages.FAMILIES, 0)
    _, shuffled = languages.arrangement("shuffled", languages.FAMILIES, 0)
    np.testing.assert_array_equal(np.bincount(table[1]), np.bincount(shuffled[1]))
    assert (table[1] != shuffled[1]).any()


def test_a_held_out_form_is_held_out_in_every_language():
    forms = {split: {word for of in words.values() for word in of} for split, words in SPLITS.items()}
    assert set(SPLITS["test"]["es"]) & set(SPLITS["test"]["ca"])  # there are such forms
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not forms[a] & forms[b]
    assert len(SPLITS["train"]["ca"]) == languages.POOR_WORDS


def test_windows_hold_what_stands_before_the_target():
    words = languages.encode({"xx": ["aba", "zzz"]}, {"a": 2, "b": 3})  # z was never shown
    assert np.asarray(words.target).tolist() == [2, 3, 2, languages.END]
    assert np.asarray(words.window)[:, -3:].tolist() == [[0, 0, 0], [0, 0, 2], [0, 2, 3], [2, 3, 2]]
    assert not np.asarray(words.language).any()

"""Rows outside those that a model was trained on: the numbers, and what `predict` and `minimize` say of them."""

import csv
import json

import numpy as np
import pytest
import torch
from commands import FRAMEWORKS, QUICK, assert_one_line_refusal, invoke, rows, write

import convexmoe_torch
from convexmoe import inspect
from interop.command import leverage, minimize
from interop.command.leverage import outside
from interop.command.saved_model import notes_of

COLUMNS = ("a", "b")


def along_a_line(n=200, seed=0):
    """Rows whose columns are nearly equal, each in [-1, 1]."""
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, n)
    return np.column_stack([a, np.clip(a + 0.05 * rng.normal(size=n), -1, 1)])


def hat(x, at):
    """The leverage of rows `at` by its definition, from the rows `x` with an intercept and no ridge."""
    x, at = (np.column_stack([np.ones(len(rows)), rows]) for rows in (x, at))
    return np.einsum("ni,ij,nj->n", at, np.linalg.pinv(x.T @ x), at)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_a_row_is_outside_in_combination_just_where_its_leverage_exceeds_all_of_training(seed, scale):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(3, 3))
    x, new = rng.normal(size=(67, 3)) @ mix, 2 * rng.normal(size=(501, 3)) @ mix
    units = np.array([1.0, scale, 7.0])
    found = outside(notes_of_rows(x * units + 100 * units), new * units + 100 * units)
    largest, at = hat(x, x).max(), hat(x, new)
    np.testing.assert_allclose(found.distance**2, (at - 1 / 67) / (largest - 1 / 67), rtol=1e-3)
    clear = np.abs(at / largest - 1) > 1e-3
    assert (found.combined == (at > largest))[clear].all() and 50 < found.combined.sum() < 450


def notes_of_rows(x, y=None):
    """The notes as a file gives them back."""
    return json.loads(json.dumps(leverage.notes_of_rows(x, y)))


SHAPES = {
    "a line": along_a_line(),
    "far from zero": along_a_line() + 2.46e6,
    "a sum": np.column_stack([along_a_line(), along_a_line().sum(axis=1)]),
    "one of three": np.eye(3)[np.arange(30) % 3],
    "a constant": np.column_stack([along_a_line(), np.full(200, 0.1)]),
    "an outlier": np.vstack([along_a_line(), [[1e9, -1e9]]]),
    "two rows": np.array([[-2.0, 3.0], [2.0, 4.0]]),
    "tiny and huge": along_a_line() * [1e-30, 1e30],
}


@pytest.mark.parametrize("x", SHAPES.values(), ids=SHAPES)
def test_no_training_row_is_outside(x):
    notes = notes_of_rows(x)
    found = outside(notes, np.vstack([x, x[::3], x.mean(axis=0, keepdims=True)]))
    assert not found.beyond.any() and not found.combined.any() and np.isfinite(found.distance).all()
    farther = x.mean(axis=0) + 1.01 * (x - x.mean(axis=0))  # control
    assert outside(notes, farther).combined.any() and outside(notes, farther).beyond.any()


@pytest.mark.parametrize("name", ["a line", "far from zero", "a sum", "one of three"])
def test_a_combination_that_never_occurs_is_outside_within_all_ranges(name):
    x = SHAPES[name]
    low, high = x.min(axis=0), x.max(axis=0)
    corner = np.where(np.arange(x.shape[1]) == 0, low, high)
    found = outside(notes_of_rows(x), corner[None])
    assert not found.beyond.any() and found.combined.all()


def test_what_departs_from_a_sum_by_rounding_is_not_outside():
    """A column that is the sum of others to the last digit says nothing against one that was rounded."""
    x = SHAPES["a sum"]
    notes = notes_of_rows(x)
    near = x[outside(notes, x).distance < 0.99]
    for error, seen in ((1e-5, False), (0.1, True)):
        assert (outside(notes, near + np.array([0.0, 0.0, error])).combined == seen).all()


@pytest.mark.filterwarnings("error")
def test_sums_that_overflow_are_outside():
    rng = np.random.default_rng(0)
    notes = notes_of_rows(rng.normal(size=(200, 1)) + 0.01 * rng.normal(size=(200, 17)))
    factor, far = np.array(notes["leverage"]["factor"]), np.full((1, 17), 1.7e308)
    with np.errstate(all="ignore"):
        assert np.isnan(far @ factor.T).any()  # control
    assert outside(notes, far).combined.all()


def test_many_columns_have_ranges_alone():
    rng = np.random.default_rng(0)
    for count in (leverage.MOST_COLUMNS, leverage.MOST_COLUMNS + 1):
        x = rng.normal(size=(200, count))
        notes, far = notes_of_rows(x), np.full((1, count), 9.0)
        assert outside(notes, far).beyond.all()
        assert outside(notes, far).combined.all() == ("leverage" in notes) == (count <= leverage.MOST_COLUMNS)


def damaged(notes, rng):
    """The notes with one part of them replaced by something else."""
    notes = json.loads(json.dumps(notes))
    junk = [None, True, "1", "x", [], {}, [[]], 10**400, 1e308, -1e308, float("nan"), float("inf"), [1.0, [2.0]]]
    deep: list = []
    for _ in range(900):
        deep = [deep]
    junk.append(deep)
    holder, name = notes, rng.choice(["ranges", "target_range", "leverage"])
    while True:
        key = name if isinstance(holder, dict) else int(rng.integers(len(holder)))
        if not isinstance(holder[key], (list, dict)) or rng.random() < 0.4:
            break
        holder = holder[key]
        name = rng.choice(list(holder)) if isinstance(holder, dict) else None
    if isinstance(holder, list) and rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = junk[rng.integers(len(junk))]
    return notes


@pytest.mark.filterwarnings("error")
def test_damaged_notes_count_as_none():
    x, y = along_a_line(), np.arange(200.0)
    good = notes_of_rows(x, y)
    at = np.array([[-1.0, 1.0], [0.0, 0.0], [1e300, -1e300], [9.0, 0.0]])
    rng, changed, sound = np.random.default_rng(0), 0, outside(good, at)
    for _ in range(2000):
        notes = damaged(good, rng)
        found = outside(notes, at)
        assert found.beyond.shape == (4, 2) and found.distance.shape == found.combined.shape == (4,)
        targets = leverage.read_ranges(notes, "target_range", (2,))
        assert np.isnan(targets).all() or targets[0] <= targets[1]
        changed += not np.array_equal(found.distance, sound.distance, equal_nan=True)
    assert changed > 100
    for foreign in ({}, {"ranges": "x", "leverage": [1, 2]}, {"leverage": {"center": [0, 0]}}):
        found = outside(foreign, at)
        assert not found.beyond.any() and not found.combined.any() and np.isnan(found.distance).all()
    assert sound.combined.tolist() == [True, False, True, True]  # control


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of a, b -> y = a + b + 5 with all its notes, with those of older files, and with none of them."""
    folder, x = tmp_path_factory.mktemp("models"), along_a_line()
    y = x.sum(axis=1) + 5
    torch.manual_seed(0)
    hull = convexmoe_torch.VectorHull(2, petals=3, out_dim=1, temperature="learned")
    model = convexmoe_torch.fit(hull, x, y, steps=20).model
    new = notes_of(COLUMNS, "y", x, y)
    old = {name: note for name, note in new.items() if name in ("columns", "target", "ranges")}
    for name, notes in {"new": new, "old": old, "bare": notes_of(COLUMNS, "y")}.items():
        convexmoe_torch.save(model, folder / name, notes=notes)
    return folder


TABLE = [["b", "a"], ["0.1", "0.1"], ["0.9", "-0.9"], ["0.5", "7"], ["-8", "7"], ["0.2", "0.2"]]
TORCH = ("--framework", "torch")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_predict_counts_rows_outside_and_flags_them(models, tmp_path, framework):
    data, out = write(tmp_path / "t.csv", TABLE), tmp_path / "out.csv"
    plain = invoke("predict", models / "new", data, "--framework", framework)
    line = "Outside the training rows: 3 of 5, 2 out of their range in a, b, 1 in combination.\n"
    assert plain.exit_code == 0 and plain.stderr == line
    flagged = invoke("predict", models / "new", data, "--framework", framework, "--flag")
    written = invoke("predict", models / "new", data, "--framework", framework, "--flag", "--out", out)
    assert flagged.stdout == out.read_text() and flagged.stderr == line and written.stderr.endswith(line)
    cells = list(csv.reader(flagged.stdout.splitlines()))
    assert [row[1] for row in cells] == ["outside", "", "combination", "a", "a;b", ""]
    assert [row[0] for row in cells] == plain.stdout.splitlines()


def test_predict_says_nothing_of_rows_inside(models, tmp_path):
    data = write(tmp_path / "t.csv", [TABLE[k] for k in (0, 1, 5)])
    for name in ("new", "old", "bare"):
        assert invoke("predict", models / name, data, *TORCH).stderr == ""
    flagged = invoke("predict", models / "new", data, *TORCH, "--flag")
    assert flagged.stderr == "" and all(line.endswith(",") for line in flagged.stdout.splitlines()[1:])


def test_predict_from_older_files_knows_what_they_know(models, tmp_path):
    data = write(tmp_path / "t.csv", TABLE)
    assert "3 of 5" in invoke("predict", models / "new", data, *TORCH).stderr  # control
    result = invoke("predict", models / "old", data, *TORCH, "--flag")
    assert result.stderr == "Outside the training rows: 2 of 5, 2 out of their range in a, b.\n"
    assert "combination" not in result.stdout
    bare = invoke("predict", models / "bare", data, *TORCH)
    assert bare.exit_code == 0 and bare.stderr == "" and len(bare.stdout.splitlines()) == len(TABLE)
    refused = invoke("predict", models / "bare", data, *TORCH, "--flag")
    assert_one_line_refusal(refused, "the ranges of its training rows", "Leave --flag out")


def test_names_with_commas_and_quotes_are_cells(tmp_path):
    names, x = ('a,"x"', "\x1b[31mb"), along_a_line()
    model = convexmoe_torch.VectorHull(2, petals=3, out_dim=1)
    convexmoe_torch.save(model, tmp_path / "m", notes=notes_of(names, "y", x))
    data = write(tmp_path / "t.csv", [names, ["5", "0"], ["0", "5"]])
    result = invoke("predict", tmp_path / "m", data, *TORCH, "--flag")
    assert [row[1] for row in csv.reader(result.stdout.splitlines())] == ["outside", names[0], r"\x1b[31mb"]
    assert "\x1b" not in result.output


# A box, and what is said of the minimum there: out of range, in combination, below, above
BOXES = {
    "inside": (["a=0.5", "b=0.5"], ""),
    "a corner": (["a=-0.9", "b=0.9"], "c"),
    "out of range": (["a=1.2", "b=0.5"], "rc"),
    "far below": (["a=-9", "b=-9"], "rcb"),
    "far above": (["a=9", "b=9"], "rca"),
}
WORDS = {
    "r": "out of the range of the training rows in a",
    "c": "No training row is as far",
    "b": "below every y of the training rows, the least 3.",
    "a": "above every y of the training rows, the largest 6.",
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("boxes", "said"), BOXES.values(), ids=BOXES)
def test_minimize_says_what_lies_outside(models, boxes, said, framework):
    options = [word for box in boxes for word in ("--box", box)]
    result = invoke("minimize", models / "new", *options, "--framework", framework)
    assert result.exit_code == 0 and result.stderr == ""
    assert [key for key, words in WORDS.items() if words in result.stdout] == [key for key in WORDS if key in said]
    assert ("narrow the box" in result.stdout) == bool(said)
    bare = invoke("minimize", models / "bare", *options, "--framework", framework)
    assert bare.exit_code == 0 and "training rows" not in bare.stdout
    assert result.stdout.startswith(bare.stdout)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_minimize_over_the_ranges_of_training_is_never_out_of_range(models, framework):
    result = invoke("minimize", models / "new", "--framework", framework)
    assert result.exit_code == 0 and WORDS["r"] not in result.stdout


def test_minimize_of_several_outputs_compares_no_value_with_the_target(tmp_path):
    x = along_a_line()
    for count, said in ((2, False), (1, True)):
        model = convexmoe_torch.VectorHull(2, petals=3, out_dim=count)
        convexmoe_torch.save(model, tmp_path / "m", notes=notes_of(COLUMNS, "y", x, np.full(200, 1e6)))
        result = invoke("minimize", tmp_path / "m", "--output", "0", *TORCH)
        assert result.exit_code == 0 and ("below every" in result.stdout) == said


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("targets", "ends", "words"),
    [
        ([3.0, 5.0], (2.9, 3.1), None),
        ([3.0, 5.0], (2.8, 2.9), "below every y of the training rows, the least 3."),
        ([3.0, 5.0], (4.9, 5.1), None),
        ([3.0, 5.0], (5.1, 5.2), "above every y of the training rows, the largest 5."),
        ([-1e308, 1e308], (-9.0, -9.0), None),
        ([5.0, 3.0], (9.0, 9.0), None),
        ("x", (9.0, 9.0), None),
    ],
)
def test_a_value_that_may_have_been_seen_within_its_gap_is_not_remarked(targets, ends, words):
    lines = minimize._remarks({"target_range": targets}, COLUMNS, "y", np.zeros(2), ends)
    assert lines == ([] if words is None else [f"The value is {words}", lines[-1]])


def test_fit_writes_what_predict_and_minimize_read(tmp_path):
    data, out = write(tmp_path / "t.csv", rows()), tmp_path / "run"
    assert invoke("fit", data, "--target", "y", "--out", out, *TORCH, *QUICK).exit_code == 0
    path = out / "model.safetensors"
    notes = inspect(path).notes
    assert {"ranges", "target_range", "leverage"} <= notes.keys()
    assert notes["target_range"][0] < notes["target_range"][1]
    far = write(tmp_path / "far.csv", [["a", "b"], ["0", "0"], ["0", "99"]])
    assert "1 of 2, 1 out of their range in b" in invoke("predict", path, far, *TORCH).stderr
    shown = invoke("inspect", path).stdout
    assert '"leverage": "..."' in shown and "factor" not in shown
    assert "factor" in invoke("inspect", path, "--json").stdout

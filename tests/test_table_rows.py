"""A row of a table in is a row of predictions out; a line that cannot be one is refused with its number."""

import numpy as np
import pytest
from commands import assert_one_line_refusal, invoke

import convexmoe_torch
from convexmoe import Normalization
from interop.command.saved_model import notes_of
from interop.command.tables import read_table


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of hulls of one column, of two, and of one whose target has a large offset."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for name, columns, offset in (("one", ("a",), 0.0), ("two", ("a", "b"), 0.0), ("far", ("a",), 1e9)):
        D = len(columns)
        units = Normalization((2460000.5,) * D, (8.0,) * D, (offset,), (1.0,))
        model = convexmoe_torch.VectorHull(D, petals=3, out_dim=1, normalization=units)
        paths[name] = folder / f"{name}.safetensors"
        convexmoe_torch.save(model, paths[name], notes=notes_of(columns, "y"))
    return paths


def predict(models, folder, name, text):
    data = folder / "t.csv"
    data.write_bytes(text.encode())
    return invoke("predict", models[name], data, "--framework", "torch")


KEPT = {  # rows of text -> how many predictions
    "newline at the end": ("two", "a,b\n1,2\n3,4\n", 2),
    "no newline at the end": ("two", "a,b\n1,2\n3,4", 2),
    "empty lines at the end": ("two", "a,b\n1,2\n3,4\n\n \n", 2),
    "empty lines before the header": ("two", "\n\na,b\n1,2\n", 1),
    "an ignored column that is empty": ("two", "a,b,note\n1,2,\n3,4,\n", 2),
    "a quoted newline": ("two", 'note,a,b\n"two\nlines",1,2\n"",3,4\n', 2),
    "carriage returns": ("two", "a,b\r\n1,2\r\n3,4\r\n", 2),
    "one column": ("one", "a\n1\n2\n3\n", 3),
}
LOST = {  # what must be refused, and what the message names
    "an empty line": ("two", "a,b\n1,2\n\n3,4\n5,6\n", ["2 cells a line", "got 0 on line 3", "remove it"]),
    "a line of spaces": ("two", "a,b\n1,2\n  \n3,4\n", ["got 1 on line 3"]),
    "a row of empty cells": ("two", "a,b\n1,2\n,\n3,4\n5,6\n", ["no missing values", "'a'", "line 3"]),
    "a row of empty quotes": ("two", 'a,b\n1,2\n"",""\n3,4\n', ["no missing values", "line 3"]),
    "a row of empty cells at the end": ("two", "a,b\n1,2\n,\n", ["no missing values", "line 3"]),
    "a row of spaces": ("two", "a,b\n1,2\n , \n3,4\n", ["no missing values", "line 3"]),
    "an empty line of one column": ("one", "a\n1\n\n3\n", ["no missing values", "'a'", "line 3"]),
    "an empty line of one column at the end": ("one", "a\n1\n3\n\n", ["no missing values", "line 4"]),
    "a comment": ("two", "a,b\n1,2\n# note\n3,4\n", ["got 1 on line 3"]),
    "a comment in one column": ("one", "a\n1\n# note\n3\n", ["'# note'", "line 3"]),
    "empty cells among columns that are ignored": ("one", "a,note\n1,x\n,\n", ["no missing values", "line 3"]),
}


@pytest.mark.parametrize("case", KEPT)
def test_every_row_is_predicted(models, tmp_path, case):
    name, text, count = KEPT[case]
    result = predict(models, tmp_path, name, text)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1 + count


@pytest.mark.parametrize("case", LOST)
def test_a_line_that_cannot_be_predicted_is_refused(models, tmp_path, case):
    name, text, parts = LOST[case]
    assert_one_line_refusal(predict(models, tmp_path, name, text), "t.csv", *parts)
    if "," in text.splitlines()[2]:  # fit reads tables in the same way
        data = tmp_path / "t.csv"
        data.write_text(text + "1,2\n" * 20)
        result = invoke("fit", data, "--target", text.split(",")[0], "--out", tmp_path / "out", "--framework", "torch")
        assert_one_line_refusal(result, "t.csv", "line 3")


def test_a_table_keeps_its_rows_and_their_lines(tmp_path):
    """The control: what a reader that passes over empty rows gives."""
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n,\n3,4\n")
    lines, rows = zip(*read_table(tmp_path / "t.csv").rows(), strict=True)
    assert rows == (["1", "2"], ["", ""], ["3", "4"]) and lines == (2, 3, 4)
    assert len([row for row in rows if any(row)]) == 2


def test_rows_apart_by_less_than_float32_has_are_predicted_apart(models, tmp_path):
    """25 hours of Julian dates: float32 has five of them; and a target of 1e9 is printed with its decimals."""
    hours = "a\n" + "".join(f"{2460012.5 + k / 24!r}\n" for k in range(25))
    for name in ("one", "far"):
        result = predict(models, tmp_path, name, hours)
        assert result.exit_code == 0, result.output
        values = result.stdout.splitlines()[1:]
        assert len(set(values)) == 25
        assert np.ptp(np.array(values, float)) > 1e-3
    assert len({np.float32(2460012.5 + k / 24) for k in range(25)}) == 5  # the control

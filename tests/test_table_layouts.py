"""Tables as people have them: how they are written is recognized and said, what is ambiguous asks for its option."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import QUICK, assert_one_line_refusal, fill, invoke, rows, write

import convexmoe_torch
from convexmoe import Normalization
from convexmoe.errors import InputError
from interop import frameworks
from interop.command.dataset import prepare
from interop.command.options import TableOptions
from interop.command.saved_model import notes_of
from interop.command.tables import read_table

SEMICOLONS = "a;b\n1,5;2\n-3,25;4\n"
VALUES = [[1.5, 2], [-3.25, 4]]
READ = {  # content -> what the line says
    "plain": ("a,b\n1.5,2\n-3.25,4\n", ""),
    "a mark": ("\ufeffa,b\n1.5,2\n-3.25,4\n", ""),
    "semicolons": (SEMICOLONS, "separator ;, decimal comma"),
    "semicolons alone": ("a;b\n1.5;2\n-3.25;4\n", "separator ;"),
    "tabs": ("a\tb\n1.5\t2\n-3.25\t4\n", "separator tab"),
    "bars": ("a|b\n1.5|2\n-3.25|4\n", "separator |"),
    "sep=": ("sep=;\na;b\n1,5;2\n-3,25;4\n", "separator ;, decimal comma"),
    "comments": ("# made by hand\n#\na,b\n1.5,2\n-3.25,4\n", "comments above the header (2)"),
    "numpy.savetxt": ("# a,b\n1.5e+00,2\n-3.25e+00,4\n", ""),
    "an index": (",a,b\n0,1.5,2\n1,-3.25,4\n", "an index column without a name, left out"),
    "UTF-16": (SEMICOLONS.encode("utf-16"), "separator ;, UTF-16, decimal comma"),
    "UTF-16 without a mark": (SEMICOLONS.encode("utf-16-be"), "separator ;, UTF-16-BE, decimal comma"),
    "UTF-32": ("a,b\n1.5,2\n-3.25,4\n".encode("utf-32"), "UTF-32"),
    "gzip": (gzip.compress(SEMICOLONS.encode()), "separator ;, gzip, decimal comma"),
    "bzip2": (bz2.compress(b"a,b\n1.5,2\n-3.25,4\n"), "bzip2"),
    "xz": (lzma.compress(b"a,b\n1.5,2\n-3.25,4\n"), "xz"),
    "spaces": ('a, "b"\n1.5, "2"\n-3.25, 4\n', ""),
    "quoted decimal commas": ('a,b\n"1,5",2\n"-3,25",4\n', "decimal comma"),
    "a long cell left out": ("a,b,note\n1.5,2," + "x" * 200_000 + "\n-3.25,4,\n", ""),
    "a minus sign": ("a,b\n1.5,2\n−3.25,4\n", ""),
}
NUMBERS = {  # cell -> its number and mark, in a table of semicolons beside one clear number of that mark
    "1,234.5": (1234.5, "."),
    "1,234,567": (1234567.0, "."),
    "1'234.5": (1234.5, "."),
    "1.234,5": (1234.5, ","),
    "1\u202f234,5": (1234.5, ","),
    "1.234": (1234.0, ","),
    "True": (1.0, "."),
    "FALSE": (0.0, ","),
}
ERRORS = "#N/A #DIV/0! #VALUE! #REF! #NAME? #NUM! #NULL! #WERT! #NV"  # of spreadsheets
MISSING = (
    rf"{ERRORS} <NA> NaT \N n.a. missing -- - * ? . null None NA nan NULL n/a N/A -NaN … *** ?? – (null) NIL".split()
)
MISSING += ["", "  ", " NA "]
UNCLEAR = {  # content -> what the refusal says, options that settle it, the first number then
    "separator": ("a,b;c\n1,2;3\n4,5;6\n", ["','", "';'", "--sep"], {"sep": ","}, 1.0),
    "quoted thousand": ('a,b\n"1,234",2\n', ["1,234 on line 2", "--decimal"], {"decimal": "."}, 1234.0),
    "quoted fraction": ('a,b\n"1,234",2\n', ["1,234 on line 2", "--decimal"], {"decimal": ","}, 1.234),
    "point among semicolons": ("a;b\n1.234;2\n", ["1.234 on line 2", "--decimal"], {"decimal": ","}, 1234.0),
    "both marks": ("a;b\n1.5;2\n2;3,5\n", ["1.5 on line 2", "3,5 on line 3", "--decimal"], None, None),
    "Cyrillic": ("цена,b\n1,2\n".encode("cp1251"), ["another encoding", "--encoding"], {"encoding": "cp1251"}, 1.0),
    "Mac": ("größe,b\n1,2\n".encode("mac-roman"), ["--encoding"], {"encoding": "mac-roman"}, 1.0),
    "DOS": ("größe,b\n1,2\n".encode("cp850"), ["--encoding"], {"encoding": "cp850"}, 1.0),
    "Polish": ("źródło,b\n1,2\n".encode("cp1250"), ["--encoding"], {"encoding": "cp1250"}, 1.0),
    "Chinese": ("价格,b\n1,2\n".encode("gbk"), ["another encoding", "--encoding"], {"encoding": "gbk"}, 1.0),
    "Japanese": ("データ,b\n1,2\n".encode("shift-jis"), ["--encoding"], {"encoding": "shift-jis"}, 1.0),
}
REFUSED = {  # content -> what the refusal says
    "a short row": ("a;b\n1;2\n3\n", ["2 cells", "got 1 on line 3"]),
    "a long row": ("a\tb\n1\t2\n3\t4\t5\n", ["2 cells", "got 3 on line 3"]),
    "a row after a quoted newline": ('a,b\n"1\n",2\n3\n', ["got 1 on line 4"]),
    "a comment below": ("a;b\n1;2\n# note\n", ["got 1 on line 3"]),
    "an empty row": ("a;b\n;\n1;2\n", ["no missing values", "line 2"]),
    "no header": ("1,5;2\n3,5;4\n", ["header line", "1,5;2"]),
    "duplicate names": ("a;b;a\n1;2;3\n", ["distinct", "a more than once"]),
    "text with commas": ('note\n"hello, world"\n', ["'hello, world'", "'note'", "line 2"]),
    "yes": ("a,b\n1,yes\n", ["'yes'", "'b'"]),
    "True among numbers": ("a,b\n1,True\n2,3.5\n", ["'True'", "'b'", "line 2"]),
    "a damaged gzip file": (gzip.compress(SEMICOLONS.encode())[:-6], ["whole gzip file"]),
}


def read(folder, content, **options):
    """The numbers of all columns of a table with this content, how many are missing, and the remarks."""
    data = folder / "t.csv"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(data, TableOptions(**options))
    return table.numbers(table.columns if "note" not in table.columns[1:] else table.columns[:-1])


@pytest.mark.parametrize("case", READ)
def test_a_layout_is_recognized_and_said(tmp_path, case):
    content, words = READ[case]
    values, missing, remarks = read(tmp_path, content)
    assert values.tolist() == VALUES and missing == ""
    assert remarks == ((f"t.csv read as: {words}",) if words else ())


def test_windows_1252_is_recognized_by_its_words(tmp_path):
    for name in ("größe", "price €", "crème brûlée", "µm", "°C"):
        (tmp_path / "t.csv").write_bytes(f"{name},b\n1,2\n".encode("cp1252"))
        table = read_table(tmp_path / "t.csv")
        assert table.columns == (name, "b")
        assert table.numbers(["b"])[2] == ("t.csv read as: Windows-1252",)


@pytest.mark.parametrize("cell", NUMBERS)
def test_the_marks_of_a_number_are_read(tmp_path, cell):
    value, mark = NUMBERS[cell]
    values, _, remarks = read(tmp_path, f"a;b\n{cell};0{mark}5\n")
    assert values.tolist() == [[value, 0.5]]
    assert cell.isalpha() or f"thousands as in {cell}" in remarks[0]


def test_a_missing_cell_is_none_of_text(tmp_path):
    text = "a,b\n1,2\n" + "".join(f"{cell},{n}\n" for n, cell in enumerate(MISSING))
    with pytest.raises(InputError, match=rf"no missing values; got {len(MISSING)} in column 'a' \(first on line 3\)"):
        read(tmp_path, text)
    values = read_table(tmp_path / "t.csv").numbers(["a", "b"], may_miss=True)[0]
    assert np.isnan(values[:, 0]).sum() == len(MISSING) and values[1:, 1].tolist() == list(range(len(MISSING)))
    for cell in ("#12", "#red", "nano", "name", "-x", "yes"):  # control: text is none
        with pytest.raises(InputError, match="got the text"):
            read(tmp_path, f"a,b\n{cell},2\n")


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_is_ambiguous_asks_for_the_option_that_settles_it(tmp_path, case):
    content, parts, options, first = UNCLEAR[case]
    with pytest.raises(InputError) as refusal:
        read(tmp_path, content)
    assert all(part in str(refusal.value) for part in parts), refusal.value
    if options is not None:
        table = read_table(tmp_path / "t.csv", TableOptions(**options))
        assert table.numbers(table.columns[:1])[0][0, 0] == first


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_of_numbers_is_refused_with_its_place(tmp_path, case):
    content, parts = REFUSED[case]
    with pytest.raises(InputError) as refusal:
        read(tmp_path, content)
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_no_rows_are_no_fault_of_the_layout(tmp_path):
    for content in ("a;b", "a;b\n", "a;b\n\n"):
        assert read(tmp_path, content)[0].shape == (0, 2)


@pytest.mark.parametrize("option", [("--sep", "xy"), ("--decimal", ";"), ("--encoding", "klingon"), ("--missing", "x")])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_bad_option_of_a_table_is_refused(tmp_path, command, option):
    data = write(tmp_path / "t.csv", rows())
    arguments = ["fit", data, "--target", "y"] if command == "fit" else ["predict", hull_file(tmp_path), data]
    assert_one_line_refusal(invoke(*arguments, "--framework", "torch", *option), option[0], repr(option[1]), "ry --")


UNITS = Normalization((3.0, 5.0), (2.0, 4.0), (0.0,), (1.0,))


def hull_file(folder, *, units=UNITS):
    """A model of the columns a and b, whose training rows had the means 3 and 5."""
    torch.manual_seed(0)
    model = convexmoe_torch.VectorHull(2, petals=3, out_dim=1, normalization=units)
    convexmoe_torch.save(model, folder / "m.safetensors", notes=notes_of(("a", "b"), "y"))
    return folder / "m.safetensors"


def test_predict_fills_missing_cells_with_the_means_of_training(tmp_path):
    model, data = hull_file(tmp_path), tmp_path / "t.csv"
    data.write_bytes("a;b\n1,5;#N/A\nNaT;2\n".encode("utf-16"))
    options = ("predict", model, data, "--framework", "torch")
    line = assert_one_line_refusal(invoke(*options), "1 in column 'a' (first on line 3)", "--missing mean")
    assert "--missing drop" not in line
    assert_one_line_refusal(invoke(*options, "--missing", "drop"), "A row in is a row out")
    result = invoke(*options, "--missing", "mean")
    assert result.exit_code == 0 and "separator ;, UTF-16, decimal comma" in result.stderr, result.output
    assert "1 in column 'a'" in result.stderr
    filled = convexmoe_torch.predict(convexmoe_torch.load(model), [[1.5, 5.0], [3.0, 2.0]])[:, 0]
    np.testing.assert_allclose([float(value) for value in result.stdout.splitlines()[1:]], filled, rtol=1e-8)
    hull_file(tmp_path, units=None)
    assert_one_line_refusal(invoke(*options, "--missing", "mean"), "m.safetensors", "means of its training rows")


def test_prepare_drops_rows_or_fills_in_the_means_of_columns(tmp_path):
    def spoil(cells):
        cells[3][0], cells[9][1], cells[5][2] = "#N/A", "", "missing"

    table = read_table(write(tmp_path / "t.csv", rows(change=spoil)))
    with pytest.raises(InputError, match=r"1 in column 'y' \(first on line 6\). .*--missing"):
        prepare(table, "y", (), 0)
    whole = np.array(rows()[1:], float)
    dropped = prepare(table, "y", (), 0, "drop")
    assert (
        np.array_equal(dropped.x, np.delete(whole, [2, 4, 8], 0)[:, :2]) and "Rows left out: 3." in dropped.remarks[0]
    )
    filled = prepare(table, "y", (), 0, "mean")
    expected, at = np.delete(whole, 4, 0)[:, :2], [(2, 0), (7, 1)]
    for row, column in at:
        assert filled.x[row, column] == pytest.approx(np.delete(expected[:, column], row).mean(), rel=1e-12)
        assert filled.x[row, column] != pytest.approx(expected[:, column].mean(), rel=1e-6)  # control
        expected[row, column] = filled.x[row, column]
    assert np.array_equal(filled.x, expected) and "Rows left out: 1, " in filled.remarks[0]
    empty = read_table(write(tmp_path / "t.csv", rows(change=fill(1, "NA"))))
    with pytest.raises(InputError, match=r"a number in column 'b'.*--drop b"):
        prepare(empty, "y", (), 0, "mean")


@pytest.mark.parametrize("others", [True, False], ids=["beside others", "alone"])
def test_a_column_that_is_constant_without_one_fold_is_no_fault(tmp_path, monkeypatch, others):
    monkeypatch.setattr(frameworks, "installed", lambda: ("torch",))
    cells = rows(change=lambda cells: [row.insert(0, "rare" if k == 0 else k == 7) for k, row in enumerate(cells)])
    cells = cells if others else [[row[0], row[-1]] for row in cells]
    data, out = tmp_path / "t.csv", tmp_path / "run"
    data.write_text("\n".join(";".join(map(str, row)).replace(".", ",") for row in cells))
    result = invoke("fit", data, "--target", "y", "--framework", "torch", "--out", out, *QUICK)
    assert result.exit_code == 0 and "separator ;, decimal comma, True as 1 in rare" in result.stdout, result.output
    errors = json.loads((out / "metrics.json").read_text())["test_rmse_folds"]
    assert all(len(of) == 5 and max(of) < 10 for of in errors.values())


def test_a_column_that_nearly_is_constant_without_one_fold_is_refused(tmp_path):
    values = [1e12 if k == 7 else 1 + 1e-15 * (k % 2) for k in range(40)]
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{value!r},{k}\n" for k, value in enumerate(values)))
    with pytest.raises(InputError, match=r"t.csv, without fold \d of --seed 0: expected column 'a' to vary.*Subtract"):
        prepare(read_table(tmp_path / "t.csv"), "y", (), 0)


PEAK = """
import sys
from pathlib import Path
from interop.command.tables import read_table
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])
path, start = Path(sys.argv[1]), peak()
table = read_table(path)
kept = list(table.rows()) if sys.argv[2] == "text" else table.numbers(table.columns)
print((peak() - start) / path.stat().st_size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak of a process alone")
def test_a_table_takes_six_bytes_of_memory_for_each_of_its_bytes(tmp_path):
    values = np.random.default_rng(0).normal(size=(60_000, 9))
    np.savetxt(tmp_path / "t.csv", values, "%.4f", ",", header="a,b,c,d,e,f,g,h,y", comments="")
    run = [sys.executable, "-c", PEAK, str(tmp_path / "t.csv")]
    numbers, text = (float(subprocess.check_output([*run, kind], timeout=120)) for kind in ("numbers", "text"))
    assert numbers < 6 < text  # the control keeps the cells as text

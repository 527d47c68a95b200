"""Formulas of a workbook that no spreadsheet program has computed yet are said to be such."""

import re
import zipfile

import openpyxl
import pytest

from convexmoe.errors import InputError
from interop.command.dataset import prepare
from interop.command.tables import read_table


def save_formulas(path, value=None):
    """A workbook whose column c is 2 a by formulas from the third row on, with a saved value or without."""
    book = openpyxl.Workbook()
    book.active.append(["a", "b", "y", "c"])
    for k in range(30):
        a = 1.5 * k
        book.active.append([a, (7 * k) % 11 + 0.5, a * a, f"=2*A{k + 2}" if k > 1 else 2 * a])
    book.save(path)
    if value is None:
        return
    with zipfile.ZipFile(path) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    kind = b' t="str"' if value == b"" else b""
    sheet, count = re.subn(rb'<c r="(D\d+)">(<f>[^<]*</f>)<v ?/?>(</v>)?', rb'<c r="\1"%s>\2<v>%s</v>' % (kind, value),
                           parts["xl/worksheets/sheet1.xml"])  # fmt: skip
    assert count == 28
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in (parts | {"xl/worksheets/sheet1.xml": sheet}).items():
            packed.writestr(name, content)


def test_a_formula_without_a_saved_value_is_no_missing_cell(tmp_path):
    save_formulas(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    for target, missing in (("y", None), ("y", "mean"), ("c", "drop")):
        text = "a formula without one in column 'c' on line 4. Open and save it in a spreadsheet program"
        with pytest.raises(InputError, match=text):
            prepare(table, target, (), 0, missing)
    assert prepare(table, "y", ("c",), 0).columns == ("a", "b")  # which is left out is not asked for
    save_formulas(tmp_path / "t.xlsx", b"7.5")  # control: as a spreadsheet program saves it
    assert prepare(read_table(tmp_path / "t.xlsx"), "y", (), 0).x[:4, 2].tolist() == [0, 3, 7.5, 7.5]
    save_formulas(tmp_path / "t.xlsx", b"")  # and where the value is an empty text
    with pytest.raises(InputError, match="no missing values; got 28 in column 'c'"):
        prepare(read_table(tmp_path / "t.xlsx"), "y", (), 0)


def test_a_last_row_of_such_formulas_is_not_lost(tmp_path):
    book = openpyxl.Workbook()
    for k in range(20):
        book.active.append(["a", "y"] if k == 0 else [1.5 * k, k * k])
    book.active.append(["=1.5*20", "=20*20"])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match=r"a formula without one in column .a. on line 21\. Open"):
        prepare(read_table(tmp_path / "t.xlsx"), "y", (), 0)
    book.active["A21"], book.active["B21"] = None, None  # control: an empty row that has a format
    book.active["A21"].number_format = "0.00"
    book.save(tmp_path / "t.xlsx")
    assert len(prepare(read_table(tmp_path / "t.xlsx"), "y", (), 0).x) == 19

"""Tables as people have them: text as categories, dates and ids refused, missing cells told to the model, Excel."""

import datetime
import gzip
import json
import re
import zipfile
from unittest import mock

import numpy as np
import openpyxl
import pyarrow as pa
import pytest
from commands import assert_one_line_refusal, invoke
from pyarrow import parquet

import convexmoe_torch
from convexmoe.errors import InputError
from interop import frameworks
from interop.command import dataset, excel, tables
from interop.command.at import read_context
from interop.command.design import _DATE, Design, learn_design, read_design
from interop.command.function import NOTHING, Function
from interop.command.importance import importance
from interop.command.options import TableOptions
from interop.command.tables import read_table

pytestmark = pytest.mark.usefixtures("few_folds", "no_picture")

SHEET = "xl/worksheets/sheet1.xml"
N = 60
REGIONS = ("Süd", "Nord", "Ost, nah")  # half, a third and a sixth of the rows
MEDIAN = ("--loss", "quantile", "--level", 0.5)  # of which the rows are not asked for their curvature: quicker
RUN = ("--target", "Preis", "--framework", "torch", "--steps", 20, "--petals", 2, *MEDIAN)


def records():
    """Columns of a table: numbers, text, dates, ids; Alter and, in three rows, Region have missing cells."""
    rng = np.random.default_rng(3)
    area, age = rng.uniform(40, 1900, N).round(1), rng.uniform(0, 60, N).round(1)
    region = [REGIONS[k % 2 if k % 3 else 2 * (k % 2)] for k in range(N)]
    price = (1000 + (area / 100 - 9) ** 2 + 50 * np.array([name == "Nord" for name in region]) - age).round(1)
    return {
        "Fläche [m²]": area.tolist(),
        "Alter": [None if k % 10 == 4 else value for k, value in enumerate(age.tolist())],
        "Region": region,
        "Datum": [datetime.date(2020, 1, 1) + datetime.timedelta(k) for k in range(N)],
        "Kennung": [f"A-{k:03d}" for k in range(N)],
        "Preis": price.tolist(),
    }


def german(value):
    """A cell as a German spreadsheet exports it: 1.234,5 in quotes."""
    if isinstance(value, float):
        return '"' + f"{value:,.1f}".translate(str.maketrans(",.", ".,")) + '"'
    return "" if value is None else value.strftime("%d.%m.%Y") if hasattr(value, "year") else f'"{value}"'


def write_german(path, columns):
    lines = [";".join(columns), *(";".join(map(german, row)) for row in zip(*columns.values(), strict=True))]
    path.write_bytes(gzip.compress(("\r\n".join(lines) + "\r\n").encode("cp1252")))
    return path


def write_excel(path, columns, *others):
    book = openpyxl.Workbook()
    book.active.title = "Data"
    for row in ([], [*columns], *zip(*columns.values(), strict=True), [None] * 6):
        book.active.append(row)
    for title in others:
        book.create_sheet(title).append(["note"])
    book.save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """t.csv.gz, t.parquet and t.xlsx of the same rows; without gaps `whole`."""
    found, columns = tmp_path_factory.mktemp("tables"), records()
    write_german(found / "t.csv.gz", columns)
    table = pa.table(columns)
    parquet.write_table(table.set_column(2, "Region", table["Region"].dictionary_encode()), found / "t.parquet")
    write_excel(found / "t.xlsx", columns, "notes")
    columns["Alter"] = [value or 9.0 for value in columns["Alter"]]
    write_german(found / "whole.csv.gz", columns)
    return found


def prepare(path, missing=None, function=NOTHING, drop=("Datum", "Kennung")):
    return dataset.prepare(read_table(path), "Preis", drop, 0, missing, function)


def expected(columns):
    """The rows of a model, column by column, computed anew."""
    age = np.array([np.nan if value is None else value for value in columns["Alter"]])
    region = np.array(columns["Region"])
    filled = np.where(np.isnan(age), np.nanmean(age), age)
    return np.column_stack([columns["Fläche [m²]"], filled, region == "Nord", region == "Ost, nah", np.isnan(age)])


@pytest.mark.parametrize("kind", ["csv.gz", "parquet", "xlsx"])
def test_every_kind_of_file_gives_the_same_rows(folder, kind):
    data = prepare(folder / f"t.{kind}", "indicator")
    assert data.columns == ("Fläche [m²]", "Alter", "Region=Nord", "Region=Ost, nah", "Alter missing")
    assert data.inputs == ("Fläche [m²]", "Alter") and data.function.context == ("Region",)
    np.testing.assert_allclose(data.x, expected(records()), rtol=1e-12)
    assert "Region: 3 categories, as context (Süd, Nord, 'Ost, nah')." in data.remarks
    assert any("6 in column 'Alter' (first" in remark for remark in data.remarks)
    assert data.design.groups == ([0], [1, 4], [2, 3])
    filled = prepare(folder / f"t.{kind}", "mean")
    assert filled.columns == data.columns[:-1] and np.array_equal(filled.x, data.x[:, :-1])
    dropped = prepare(folder / f"t.{kind}", "drop")
    np.testing.assert_array_equal(dropped.x, data.x[data.x[:, -1] == 0, :-1])


def change(folder, **columns):
    cells = records() | {"Alter": NUMBERS} | columns
    return write_german(folder / "changed.csv.gz", cells)


GAP = [None, *REGIONS * 19, *REGIONS[:2]]
TEXTS, NUMBERS = [f"t{k % 37}" for k in range(N)], [float(k) for k in range(N)]
PLAIN = ("--drop", "Datum,Kennung")
STOPS = {  # what the table has, options, what the line says
    "dates and ids": ({}, (), ["dates or times in column 'Datum' ('01.01.2020')", "--drop Datum --drop Kennung."]),
    "dates": ({}, ("--drop", "Kennung"), ["--drop Datum, or write it as a number, such as the day of the year or the"]),
    "ids": ({}, ("--drop", "Datum"), ["an id, in column 'Kennung' ('A-000'). Leave it out with --drop Kennung."]),
    "many texts": ({"Region": TEXTS}, PLAIN, ["37 different texts in column 'Region'", "--categorical Region."]),
    "one text": ({"Region": ["x"] * N}, PLAIN, ["'Region' to vary; got the text 'x' throughout", "--drop Region"]),
    "a typing error": ({"Region": ["1O", *NUMBERS[1:]]}, PLAIN, ["the text '1O' in", "line 2. Leave it out with"]),
    "text alone": ({}, (*PLAIN, "--context", "Alter,Fläche [m²]"), ["numbers, or leave Alter out of --context."]),
    "a sign": ({}, (*PLAIN, "--increasing", "Region"), ["--increasing: expected columns of numbers; got 'Region'"]),
    "a weight": ({}, (*PLAIN, "--weights", "Region"), ["the text 'Süd' in column 'Region'"]),
    "a gap of text": ({"Region": GAP}, PLAIN, ["line 2). Fill in or remove those rows, or use --missing drop"]),
    "a gap of numbers": ({"Alter": [None, *NUMBERS[1:]]}, PLAIN, ["or use --missing mean or --missing drop or"]),
    "all contexts": (
        {},
        ("--drop", "Datum,Kennung,Region", "--context", "Alter,Fläche [m²]"),
        ["beside the target 'Preis'; got the others in --context and --drop. Add a column of inputs, or"],
    ),
    "a gap": ({"Region": GAP}, (*PLAIN, "--missing", "mean"), ["1 missing in column 'Region' (first on line 2)"]),
    "no such option": ({}, ("--missing", "x"), ["--missing: expected drop, mean or indicator; got 'x'"]),
    "no such column": ({}, ("--categorical", "Regoin"), ["--categorical: expected columns of", "is 'Region'"]),
    "a sheet of text": ({}, ("--sheet", "Data"), ["convexmoe fit --sheet: expected an Excel file, which has sheets"]),
}


@pytest.mark.parametrize("case", STOPS)
def test_each_stop_says_what_to_do(tmp_path, case):
    columns, options, parts = STOPS[case]
    result = invoke("fit", change(tmp_path, **columns), *RUN, *options, "--out", tmp_path / "run")
    line = assert_one_line_refusal(result, *parts)
    assert len(line) < 420 and not (tmp_path / "run").exists()


def test_what_is_a_date():
    iso = ("2020-01-31", "2020-01-31T12:30:00Z", "2020-01-31 12:30:00.5+01:00", "2020-01", "12:30", "2020 Q1")
    common = ("31.01.2020", "1/31/20", "3 Mar 2020", "March 3, 2020", "3. März 2020", "Mai 2020", "Mon, 3 Mar 2020")
    assert all(map(_DATE.fullmatch, iso + common))
    others = ("north", "A-17", "May", "Q1", "18-25", "10115", "3.5", "Marseille 3", "v1.2")  # control
    assert not any(map(_DATE.fullmatch, others))


def test_dates_in_eight_digits_are_remarked_on(tmp_path):
    for year, said in ((20200100.0, True), (20201300.0, False)):  # the control: there is no month 13
        data = prepare(change(tmp_path, Alter=[year + 1 + k % 28 for k in range(N)]))
        assert any("written as one number, as 20200131: Alter." in line for line in dataset.remarks_on(data)) == said


def test_text_in_parquet_is_read_as_other_text(tmp_path):
    table = pa.table({"a": ["1.5", "NA", "-2"], "b": ["x", "7", "8"], "c": [True, None, False]})
    parquet.write_table(table, tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet")
    values, gaps, _ = found.numbers(["a", "c"], may_miss=True)
    np.testing.assert_array_equal(values, [[1.5, 1], [np.nan, np.nan], [-2, 0]])
    assert gaps == "1 in column 'a' (first in row 2), 1 in column 'c' (first in row 2)"
    with pytest.raises(InputError, match="got the text 'x' in column 'b' in row 1"):
        found.numbers(["b"])


def test_a_category_that_is_a_number_is_one_however_it_is_written(tmp_path):
    said = Function(categorical=("Alter",))
    cells = [[4.0, 6.0, 8.0][k % 3] for k in range(N)]
    data = prepare(change(tmp_path, Alter=cells), None, said)
    assert data.function.context == ("Alter", "Region") and data.design.categories["Alter"] == ("4", "6", "8")
    assert data.columns[1:3] == ("Alter=6", "Alter=8") and prepare(change(tmp_path, Alter=cells)).inputs[1] == "Alter"
    notes = json.loads(json.dumps(data.design.notes(), sort_keys=True))
    assert read_design(notes, data.columns, 1) == data.design
    again = data.function.name_columns(read_table(tmp_path / "changed.csv.gz"), "Preis", ())
    assert again == data.function == Function.from_json(json.loads(json.dumps(vars(data.function))))
    many = prepare(change(tmp_path, Alter=TEXTS), None, said)  # named, so more than 20
    assert len(many.design.categories["Alter"]) == 37 and many.x.shape == (N, 1 + 36 + 2)


def test_a_category_of_rows_that_are_left_out_is_forgotten(tmp_path, monkeypatch):
    region = ["rare" if k == 4 else name for k, name in enumerate(records()["Region"])]
    path = change(tmp_path, Region=region, Alter=records()["Alter"])
    whole, dropped = prepare(path, "indicator"), prepare(path, "drop")
    assert "rare" in whole.design.categories["Region"] and "rare" not in dropped.design.categories["Region"]
    monkeypatch.setattr(tables, "LARGE", 10)
    large = prepare(path, "drop")
    assert large.design == dropped.design and large.stream is not None
    np.testing.assert_array_equal(large.x, dropped.x)
    with pytest.raises(InputError, match=r"expected drop, as changed\.csv\.gz is read in pieces; got indicator"):
        prepare(path, "indicator")


def test_columns_of_a_category_are_shuffled_together():
    class Framework:
        @staticmethod
        def predict(model, x):
            assert (x[:, 1:].sum(axis=1) <= 1).all(), "a row of two categories"
            return x @ [0.0, 3.0, 5.0]

    x = np.eye(3)[np.arange(N) % 3]
    growth = importance(Framework, None, x, Framework.predict(None, x), 0, groups=[[0], [1, 2]])
    assert growth.shape == (2,) and growth[0] == 0 < growth[1]
    with pytest.raises(AssertionError, match="two categories"):  # control
        importance(Framework, None, x, Framework.predict(None, x), 0)


@pytest.fixture(scope="module")
def run(folder):
    """The directory and the output of a fit whose model knows regions and missing ages."""
    with mock.patch.object(frameworks, "installed", lambda: ("torch",)):  # no parity, for which JAX would compile
        options = (*RUN, *PLAIN, "--missing", "indicator", "--out", folder / "run")
        result = invoke("fit", folder / "t.csv.gz", *options)
    assert result.exit_code == 0, result.output
    return folder / "run", result.stdout


def test_a_model_knows_its_columns(run):
    out, printed = run
    metrics = json.loads((out / "metrics.json").read_text())
    table = ["Fläche [m²]", "Alter", "Region"]
    assert {*metrics["importance"]} == {*table} and [*metrics["data"]["columns"], "Region"] == table
    assert "Region: 3 categories, as context" in printed and "Convexity for each Region: no violation" in printed
    notes = convexmoe_torch.read_notes(out / "model.safetensors")
    design = {"categories": {"Region": [*REGIONS]}, "columns": table, "indicators": ["Alter"]}
    assert notes["design"] == design
    shown = invoke("inspect", out / "model.safetensors").stdout
    assert "convex, for every value of Region." in shown and "Region: 3 categories, as context (Süd, Nord," in shown
    columns = (*notes["columns"], *notes["context"])
    assert read_design(notes, columns, 2).names == columns and read_design(notes, columns[::-1], 2) is None
    assert read_design({"columns": ["a"]}, ("a",), 1) == Design(("a",), 1, {})  # a file of an earlier version


def test_predictions_are_those_of_the_categories(run, folder, tmp_path):
    model = run[0] / "model.safetensors"
    x = expected(records())
    hull = convexmoe_torch.load(model)
    x[:, 1] = [hull.config.normalization.input_mean[1] if gap else age for age, gap in x[:, [1, 4]]]
    wanted = convexmoe_torch.predict(hull, x[:, :2], x[:, 2:])[:, 0]
    for kind in ("csv.gz", "parquet", "xlsx"):
        options = ("--framework", "torch", "--missing", "indicator" if kind != "xlsx" else "mean", "--flag")
        result = invoke("predict", model, folder / f"t.{kind}", *options)
        assert result.exit_code == 0, result.output
        header, *rows = result.stdout.splitlines()
        assert header == "predicted_Preis,outside" and all(row.endswith(",") for row in rows)  # none lies outside
        np.testing.assert_allclose([float(row[:-1]) for row in rows], wanted, rtol=1e-7)
    assert_one_line_refusal(invoke("predict", model, folder / "t.xlsx", "--framework", "torch"), "no missing values")
    unknown = change(tmp_path, Region=["Süd", "West", *records()["Region"][2:]])
    line = assert_one_line_refusal(invoke("predict", model, unknown, "--framework", "torch"), "'West'", "on line 3")
    assert "that the model knows (Süd, Nord, 'Ost, nah')" in line and "Correct or remove those rows, or fit" in line
    other = change(tmp_path, Region=[None, *records()["Region"][1:]])
    result = invoke("predict", model, other, "--framework", "torch", "--missing", "mean")
    assert_one_line_refusal(result, "1 missing in column 'Region' (first on line 2)")
    pounds = {"Fläche [ft²]" if name[0] == "F" else name: cells for name, cells in records().items()}
    result = invoke("predict", model, write_german(tmp_path / "ft.csv.gz", pounds), "--framework", "torch")
    assert_one_line_refusal(result, "got 'Fläche [m²]'. The closest column to 'Fläche [m²]' is 'Fläche [ft²]'.")


def test_a_minimum_is_at_a_category(run):
    model, found = run[0] / "model.safetensors", {}
    for text in ("Region=Nord", "Region=Ost, nah"):
        result = invoke("minimize", model, "--framework", "torch", "--tol", 1e-4, "--at", text)
        assert result.exit_code == 0, result.output
        found[text] = [line for line in result.stdout.splitlines() if line.startswith("Preis = ")]
    assert found["Region=Nord"] != found["Region=Ost, nah"]
    result = invoke("minimize", model, "--framework", "torch", "--at", "Region=West")
    assert_one_line_refusal(result, "a category of 'Region' that the model knows (Süd, Nord, 'Ost, nah'); got 'West'")
    assert_one_line_refusal(invoke("minimize", model, "--framework", "torch"), "Add --at Region=Süd, for example.")


def test_a_context_is_read_in_its_own_words():
    design = Design(("a", "season", "r"), 1, {"r": ("x=1", "b,c", "4")}, ("a", "r"))
    assert design.names == ("a", "season", "r=b,c", "r=4", "a missing", "r missing")
    for texts, code in ((["season=2", "r=x=1"], (0, 0, 0, 0)), (["season=2,r=4.0"], (0, 1, 0, 0)),
                        (["r=b,c", "season=2"], (1, 0, 0, 0)), (["r=missing", "season=2"], (0, 0, 0, 1))):  # fmt: skip
        assert read_context(texts, design).tolist() == [2.0, *code]
    assert read_context([], Design(("a",), 1, {}, ("a",))).tolist() == [0.0]  # an input that may be missing is not
    with pytest.raises(InputError, match="a column and a value, as season=2; got 'season'"):
        read_context(["season"], design)


def test_a_run_goes_on_with_its_categories(folder, tmp_path):
    options = (*RUN, *PLAIN, "--categorical", "Region", "--out", tmp_path / "run", "--steps", 200)
    begun = invoke("fit", folder / "whole.csv.gz", *options, "--pause-at", 1)
    assert begun.exit_code == 0 and "Go on, in either framework: convexmoe fit" in begun.output, begun.output
    options = ("--resume", tmp_path / "run", "--framework", "torch", "--pause-at", 21)
    resumed = invoke("fit", folder / "whole.csv.gz", *options)
    assert resumed.exit_code == 0 and "Going on from step" in resumed.output, resumed.output
    result = invoke("fit", folder / "whole.csv.gz", "--resume", tmp_path / "run", "--categorical", "Alter")
    assert_one_line_refusal(result, "Leave --categorical out.")


def test_a_sheet_is_chosen_and_what_is_no_workbook_refused(folder, tmp_path, monkeypatch):
    table = read_table(folder / "t.xlsx")
    assert table.columns == tuple(records()) and table.place(0) == "line 3"  # the first row of the sheet is empty
    assert table.numbers(["Preis"])[2] == ("t.xlsx read as: sheet Data, the first of 2",)
    with pytest.raises(InputError, match=r"^convexmoe predict --sheet: expected one of Data, notes; got 'nota'"):
        read_table(folder / "t.xlsx", TableOptions(sheet="nota", owner="convexmoe predict"))
    with pytest.raises(InputError, match="no --sep, --decimal and --encoding for an Excel file"):
        read_table(folder / "t.xlsx", TableOptions(sep=";"))
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (tmp_path / "cut.xlsx").write_bytes((folder / "t.xlsx").read_bytes()[:900])
    for name in ("old.xls", "cut.xlsx"):
        with pytest.raises(InputError, match=r"an Excel workbook \(.xlsx\); got .* Save it as .xlsx, or as CSV"):
            read_table(tmp_path / name)
    monkeypatch.setattr(excel, "is_installed", lambda name: False)
    with pytest.raises(InputError, match=r'expected openpyxl for an Excel file; it is not installed.*"\.\[excel\]"'):
        read_table(folder / "t.xlsx")


def test_a_name_that_a_category_would_have_is_taken(tmp_path):
    (tmp_path / "t.csv").write_text("a,r,r=y\n" + "1,x,1\n2,y,2\n3,y,1\n4,x,1\n" * 5)
    with pytest.raises(InputError, match=r"not called as a category, or .*; got 'r=y'"):
        learn_design(read_table(tmp_path / "t.csv"), ("a", "r"), (), ())


def change_member(path, member, change):
    """Rewrite a file inside a workbook."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(name, change(content) if name == member else content)


def workbook(path, rows=30, **states):
    """A workbook of one sheet of two columns, after empty ones of the given states."""
    book = openpyxl.Workbook()
    book.active.title = "data"
    for row in [("a", "t"), *((float(k), float(k * k)) for k in range(rows))]:
        book.active.append(row)
    for title, state in states.items():
        book.create_sheet(title, 0).sheet_state = state
    book.save(path)
    return path


@pytest.mark.parametrize("size", ["A1:B11", "A1:A31", "A1"])
def test_a_sheet_that_is_wrong_about_its_size_is_read_whole(tmp_path, size):
    path = workbook(tmp_path / "t.xlsx")
    wrong = f'<dimension ref="{size}"'.encode()
    change_member(path, SHEET, lambda text: re.sub(rb'<dimension ref="[^"]*"', wrong, text))
    table = read_table(path)
    assert table.columns == ("a", "t") and len(table.cells) == 30


def test_a_far_cell_that_only_has_a_format_is_none(tmp_path):
    path = workbook(tmp_path / "t.xlsx")
    book = openpyxl.load_workbook(path)
    book.active.cell(2000, 1000).number_format = "0.00"
    book.save(path)
    assert len(read_table(path).cells) == 30
    book.active.cell(40, 1).value = 1.0  # control: a value is read, and the empty rows before it
    book.save(path)
    assert [row for row, _ in read_table(path).cells][-1] == 40 and len(read_table(path).cells) == 39


@pytest.mark.parametrize("member", ["sheet", "xl/workbook.xml", "[Content_Types].xml"])
def test_damaged_workbooks_are_refused_in_a_line(tmp_path, member):
    path = workbook(tmp_path / "t.xlsx")
    change_member(path, SHEET if member == "sheet" else member, lambda text: text[: len(text) // 2])
    with pytest.raises(InputError, match=r"expected an Excel workbook \(.xlsx\); got another or a damaged one"):
        read_table(path)


def test_the_first_sheet_that_is_shown_is_read(tmp_path):
    path = workbook(tmp_path / "t.xlsx", notes="hidden")
    assert read_table(path).columns == ("a", "t")


def test_a_column_that_is_called_as_missing_cells_of_another_is_refused_before_any_work(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{k},{'' if k % 7 == 0 else k * 2 % 13},{int(k % 7 == 0)},{k * k}" for k in range(40)]
    path.write_text("\n".join(["a,w,w missing,t", *lines]))
    with pytest.raises(InputError, match="or as the missing cells of another; got 'w missing'"):
        dataset.prepare(read_table(path), "t", (), 0, "indicator")

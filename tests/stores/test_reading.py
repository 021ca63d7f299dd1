"Reading loses nothing: notations of numbers and dates, codes, words for missing values, and lines around a table."

import sqlite3

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcycle.data.clean import keep_values_of_source, plan_cleaning
from mlcycle.errors import SourceError
from mlcycle.ml.cleaning import apply_cleaning_plan
from mlcycle.stores.sources.ingest import read_source, read_source_with_provenance


def read_text(folder, text: str, options: str = "", **kwargs):
    (folder / "t.csv").write_text(text)
    return read_source_with_provenance(f"{folder}/t.csv{options}", **kwargs)


def column(folder, *values: str, options: str = "", quoted: bool = True, **kwargs) -> pd.Series:
    "A column `x` of a CSV file, beside a column of text."
    lines = [f'"{value}",a' if quoted else f"{value},a" for value in values]
    return read_text(folder, "\n".join(["x,y", *lines]) + "\n", options, **kwargs)[0].x


@pytest.mark.parametrize(
    "values",
    [
        ["04711", "10115", "99998"],
        ["007", "12", "5"],
        ["12E2", "14E1", "3E10"],
        ["1" * 25, "2"],
        ["157713480001800014", "", "157713480001800056"],
        ["1.2.3", "1.10.4"],
        ["+49 151 234567", "+49 30 1234"],
        ["<18", ">18", "<18"],
        ["$5", "€6"],
        ["5%", "0.5"],
        ["10-12", "1-2"],
    ],
)
def test_codes_stay_text(tmp_path, values):
    assert column(tmp_path, *values).fillna("").tolist() == values


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["19,999", "1,250,000", "3"], [19999, 1250000, 3]),
        (["$1,756.97", "$12.00", "-$3.50", "($4.25)"], [1756.97, 12, -3.5, -4.25]),
        (["5.9%", "12%"], [5.9, 12]),
        (["0.54-", "7.25"], [-0.54, 7.25]),
        (["1.234,50 €", "12,00 €"], [1234.5, 12]),
        (["1 234,5", "12"], [1234.5, 12]),
        (["EUR 5", "EUR 1,234.50"], [5, 1234.5]),
        (["1e-05", "2.5E+3"], [1e-5, 2500]),
        (["9007199254740993", "1"], [9007199254740993, 1]),
        (["774", "1.230", "21.464"], [774, 1230, 21464]),
        (["-0.0", "1.5"], [0.0, 1.5]),
    ],
)
def test_numbers_in_other_notations(tmp_path, values, numbers):
    read = column(tmp_path, *values)
    assert read.tolist() == numbers
    assert not np.signbit(read[read == 0]).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=3, max_size=30), st.booleans())
def test_integers_stay_exact(tmp_path_factory, numbers, gap):
    texts = [str(number) for number in numbers] + [""] * gap
    read = column(tmp_path_factory.mktemp("t"), *texts)
    assert [int(value) for value in read[: len(numbers)]] == numbers


@pytest.mark.parametrize(
    ("values", "day"),
    [
        (["01/31/2023 07:15 PM", "02/01/2023 08:00 AM"], "2023-01-31 19:15"),
        (["31/01/23", "01/02/23"], "2023-01-31"),
        (["31-Jan-2023", "01-Feb-2023"], "2023-01-31"),
        (["January 31, 2023", "May 1, 2023"], "2023-01-31"),
        (["31.1.2023", "1.2.2023"], "2023-01-31"),
        (["2023/1/31", "2023/2/1"], "2023-01-31"),
        (["1066-10-14", "9999-12-31"], "1066-10-14"),
    ],
)
def test_dates_in_other_notations(tmp_path, values, day):
    assert column(tmp_path, *values)[0] == pd.Timestamp(day)


def test_what_can_be_read_in_two_ways(tmp_path):
    text = "day,price,y\n03/04/2024,774,1\n01/02/2024,1.957,2\n"
    rows, _, [record] = read_text(tmp_path, text)
    assert rows.day.tolist() == ["03/04/2024", "01/02/2024"]
    assert rows.price.tolist() == [774, 1.957]
    assert sum("dayfirst=yes" in note for note in record.notes) == sum("decimal=," in note for note in record.notes) == 1
    rows, _, [record] = read_text(tmp_path, text, "#dayfirst=no&decimal=,")
    assert rows.day[0] == pd.Timestamp("2024-03-04")
    assert rows.price.tolist() == [774, 1957]
    rows = read_text(tmp_path, "day,paid,y\n03/04/2024,31/01/2024,1.5\n01/02/2024,01/02/2024,2\n")[0]
    assert rows.day[0] == pd.Timestamp("2024-04-03"), "as the other column"


def test_measurements_below_a_limit(tmp_path):
    values = ["<0.5"] * 5 + [">10", "1.1", "2.2", "3.1", "4.4", "5.5", "6.1"]
    rows, _, [record] = read_text(tmp_path, "\n".join(["x,y", *(f"{value},a" for value in values)]) + "\n")
    assert rows.x.tolist()[:7] == [0.5] * 5 + [10, 1.1]
    assert "6 values of x with < or > are read as the number" in record.notes


def test_words_for_missing_values(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "hours": rng.normal(7, 1, 200).round(2),
            "garage": rng.choice(["None", "Attached", "Built-in"], 200),
            "town": [*["Bonn", "Graz"] * 99, "None", "NULL"],
            "disorder": rng.choice(["None", "Apnea", "Insomnia"], 200),
        }
    )
    text = table.to_csv(index=False)
    rows, _, [record] = read_text(tmp_path, text, target="disorder")
    assert rows.disorder.tolist() == table.disorder.tolist()
    assert rows.garage.tolist() == table.garage.tolist()
    assert rows.town.isna().sum() == 2
    assert record.na_counts == {"town": {"None": 1, "NULL": 1}}
    assert any("of disorder is a class" in note for note in record.notes)
    rows = read_text(tmp_path, text, target="disorder", na_values=["None"])[0]
    assert rows.isna().sum().tolist() == [0, (table.garage == "None").sum(), 1, (table.disorder == "None").sum()]
    assert read_text(tmp_path, text, "#na_values=")[0].town.tolist() == table.town.tolist()
    exported = table.assign(hours=table.hours.astype("str").where(table.hours > 6, "None"))
    assert read_text(tmp_path, exported.to_csv(index=False))[0].garage.isna().any(), "the program writes None for missing numbers"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("sep=;\na;b\n1;x\n2;y\n", ""),
        ("# Export of orders, 2024\n# Unit: EUR\na,b\n1,x\n2,y\n", ""),
        ("Orders of March\n\na,b\n1,x\n2,y\n", ""),
        ("Orders,,\n,,\na,b,\n1,x,\n2,y,\n", ""),
        ("a,b,\n1,x,\n2,y,\n", ""),
        ("a,b\n1,x,\n2,y,\n", ""),
        ("\ufeffa,b\n1,x\n2,y\n", ""),
        ("!! 1\n!! 2\na,b\n1,x\n!! 3\n2,y\n", "#comment=!!"),
        ("x,y\n1,2\na,b\n1,x\n2,y\n", "#skip=2"),
        ("a,b\n1,x\n2,y\n7,z\n", "#footer=1"),
        ("First,\na,b\n1,x\n2,y\n", "#header=2"),
        ("a,b\n1,x\n\n2,y\n\n", ""),
    ],
)
def test_lines_around_a_table(tmp_path, text, options):
    rows, malformed, _ = read_text(tmp_path, text, options)
    assert rows.columns.tolist() == ["a", "b"]
    assert rows.to_numpy().tolist() == [[1, "x"], [2, "y"]]
    assert len(malformed) == 0


def test_a_row_of_totals(tmp_path):
    text = "town,sales\nRome,1.5\nOslo,2\nTotal,{}\n"
    rows, _, [record] = read_text(tmp_path, text.format("3.5"))
    assert rows.town.tolist() == ["Rome", "Oslo"]
    assert "totals" in record.notes[0]
    assert len(read_text(tmp_path, text.format("9"))[0]) == 3, "no sum of the others"


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["Total,55,"], "totals"),
        (["Average,5.5,x"], "averages"),
        (["Total,55,", "Printed on the 3rd of March,,"], "note below"),
        (["* provisional,,", "Page 1 of 2,,"], "note below"),
        (["town,SALES , kind"], "repeated header"),
        ([",,", "Total,55,", "Mean,5.5,", "SD,3.03,"], "3 rows"),
        (["Grand total,55,", "Mean,5.5,", "Source: the towns,,"], "2 rows"),
    ],
)
def test_lines_that_are_no_records(tmp_path, lines, kind):
    sales = [2, 3, 5, 7, 1, 9, 8, 4, 6, 10]
    records = [f"t{n},{n},{'xy'[n % 2]}" for n in sales]
    rows, malformed, [record] = read_text(tmp_path, "\n".join(["town,sales,kind", *records, *lines]) + "\n")
    assert rows.sales.tolist() == sales and len(malformed) == 0
    assert kind in " ".join(record.notes)
    assert len(read_text(tmp_path, "\n".join(["town,sales,kind", *records, *lines]) + "\n", "#footer=0")[0]) == 10 + len(lines)


def test_subtotals_of_groups(tmp_path):
    text = "town,sales\nRome,1\nBari,2\nItaly total,3\nOslo,4\nBergen,5\nNorway total,9\nTotal,12\n"
    rows, _, [record] = read_text(tmp_path, text)
    assert rows.town.tolist() == ["Rome", "Bari", "Oslo", "Bergen"]
    assert "3 rows" in record.notes[0]


def test_records_that_only_look_like_other_lines(tmp_path):
    names = ["Shell", "Total", "Aral", "Total Wallonie", "Min", "Average Joe"]
    text = "\n".join(["brand,price,town", *[f"{name},{1.5 + n},Rome" for n, name in enumerate(names * 5)]]) + "\n"
    assert len(read_text(tmp_path, text)[0]) == 30, "brands whose prices sum nothing"
    text = "id,note,price\n" + "".join(f"{n},a word {n},{n * n}\n" for n in range(30)) + "30,,\n"
    assert len(read_text(tmp_path, text)[0]) == 31, "a record of which only the number is known"
    text = (
        "remark,price,town\n" + "".join(f"a remark of some words {n},{n},Rome\n" for n in range(30)) + "a remark of some more,,\n"
    )
    assert len(read_text(tmp_path, text)[0]) == 31


@pytest.mark.parametrize(
    ("header", "records"),
    [
        ("id,name,points", [f"{n},{name},{n * n % 7}" for n, name in enumerate(["Ann", "Max", "Ben", "Kim", "Tom", "Lea"])]),
        ("year,name,points", [f"2023,{name},{n * n % 7}" for n, name in enumerate(["Ann", "Max", "Ben", "Kim", "Sum 41"])]),
        ("name,age,town", ["Ann,31,Bonn", "Ben,25,Bonn", "Kim,28,Bonn", "Max,42,Bonn"]),
        ("patient,test,value", [f"{n // 3},{('Albumin', 'Total protein', 'CRP')[n % 3]},{n * n % 11}" for n in range(30)]),
        ("brand,price,shop", [f"{('Shell', 'Total', 'Aral')[n % 3]},{1 + n * n % 5},{n}" for n in range(30)]),
        ("brand,stars", ["Shell,1", "Aral,2", "Total,3", "Jet,4", "Esso,3"]),
        ("site,kind,value", [f"{n // 3},{('mean', 'median', 'sd')[n % 3]},{n * n % 11}" for n in range(30)]),
        ("answer,score,more", [*[f"it was fine on the whole {n},{n * n},yes" for n in range(9)], "I had to wait two hours,,"]),
        ("place,height,more", [*[f"Rome{n},{n * n},yes" for n in range(9)], "San Pedro de la Sierra,,"]),
        ("title,price,more", [*[f"book{n},{n * n},yes" for n in range(9)], "Notes from Underground,,"]),
        ("name,grade,level", ["Al,C,F", *[f"n{n},{n * n},{n}" for n in range(25)]]),
        ("time,a,b", ["00:00,ERR,ERR", *[f"{n:02}:00,{n * n},{2 * n}" for n in range(1, 24)]]),
        ("sample,a,b", ["S1,trace,trace", *[f"S{n},{n * n},{2 * n}" for n in range(2, 24)]]),
    ],
)
def test_records_that_look_like_no_records(tmp_path, header, records):
    rows, malformed, [record] = read_text(tmp_path, "\n".join([header, *records]) + "\n")
    assert len(rows) == len(records) and not len(malformed), record.notes
    assert rows.columns.tolist() == header.split(",")


def test_units_below_the_header(tmp_path):
    rows = read_text(tmp_path, "name,mass,height\n,kg,cm\n" + "".join(f"n{n},{n},{2 * n}\n" for n in range(9)))[0]
    assert rows.mass.tolist() == list(range(9)) and rows.columns.tolist() == ["name", "mass", "height"]
    rows = read_text(tmp_path, "name,mass\n-,[kg]\n" + "".join(f"n{n},{n}\n" for n in range(9)))[0]
    assert rows.mass.tolist() == list(range(9))


def test_keys_and_values_above_the_header(tmp_path):
    table = "id,a,b,c\n" + "".join(f"{n},{n},{n},x\n" for n in range(9))
    for above in ("report,sales\ndate,2024-01-31\n\n", "report,sales,,\ndate,2024-01-31,,\n,,,\n"):
        assert read_text(tmp_path, above + table)[0].columns.tolist() == ["id", "a", "b", "c"]


def test_groups_of_columns(tmp_path):
    records = "".join(f"EU,{n},{n + 1},{n + 2},{n + 3}\n" for n in range(9))
    both = ["region", "2023 plan", "2023 actual", "2024 plan", "2024 actual"]
    assert read_text(tmp_path, ",2023,,2024,\nregion,plan,actual,plan,actual\n" + records)[0].columns.tolist() == both
    names = ["Region", "Q1 Plan", "Q1 Actual", "Q2 Plan", "Q2 Actual"]
    assert read_text(tmp_path, "Region,Q1,Q1,Q2,Q2\n,Plan,Actual,Plan,Actual\n" + records)[0].columns.tolist() == names
    assert len(read_text(tmp_path, ",a,b\nr0,low,high\n" + "".join(f"r{n},{n},{n}\n" for n in range(1, 25)))[0]) == 25
    with pytest.raises(SourceError, match="two columns named 'score'"):
        read_text(tmp_path, "name,score,score\nAl,x,y\nBo,1,2\nCy,3,4\nDi,5,6\n")


def test_merged_cells_of_a_workbook(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Sales by region"])
    sheet.append(["Region", "Sales", None, "Kind"])
    sheet.append([None, 2023, 2024, None])
    for number in range(8):
        sheet.append([f"r{number // 2}" if number % 2 == 0 else None, number, number + 1, "x"])
        if number % 2:
            sheet.merge_cells(start_row=number + 3, end_row=number + 4, start_column=1, end_column=1)
    for area in ("A1:D1", "A2:A3", "B2:C2", "D2:D3"):
        sheet.merge_cells(area)
    book.save(tmp_path / "t.xlsx")
    rows, _, [reading] = read_source_with_provenance(f"{tmp_path}/t.xlsx")
    assert rows.columns.tolist() == ["Region", "2023", "2024", "Kind"]
    assert rows.Region.tolist() == [f"r{number // 2}" for number in range(8)]
    assert "merged cells filled down: r0 (rows 4 to 5)" in reading.notes[0]


def test_names_that_are_years(tmp_path):
    rows = read_text(tmp_path, "country,2021,2022\nAT,8.9,9.1\nDE,83.2,83.8\n")[0]
    assert rows.columns.tolist() == ["country", "2021", "2022"]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("a\n" * 3 + "x~1~2\n" * 9, ""),
        ("title, of three, fields\na\n" + "1\t2\n" * 9, "separator=tab"),
        ("u,v\n" + "1,2,3,4\n" * 9, "skip=N"),
    ],
)
def test_the_error_names_the_option_that_helps(tmp_path, text, option):
    with pytest.raises(SourceError) as caught:
        read_text(tmp_path, text, "#separator=,")
    assert option in str(caught.value)


@pytest.mark.parametrize("option", ["skip=x", "decimal=;", "dayfirst=perhaps", "encoding=utf-99", "seperator=;"])
def test_options_are_checked(tmp_path, option):
    with pytest.raises(SourceError, match=option.split("=")[0]):
        read_text(tmp_path, "a,b\n1,2\n", f"#{option}")


def test_workbooks(tmp_path):
    body = [["0.13", 0, "EU", "00123"], ["-0.5", 1, "NA", "00456"], [0.75, 2, None, "00789"]]
    merged = [["Money", None, "Where", "Id"], ["amount", "calls", "region", "id"]]
    sheets = {
        "Title": [["Orders of March"], [], merged[1], *body],
        "Merged": [*merged, *body],
        "Totals": [["town", "sales"], ["Rome", 1], ["Oslo", 2], ["Total", 3]],
        "Equal": [["a", "a"], [1, 2]],
    }
    with pd.ExcelWriter(tmp_path / "t.xlsx", engine="openpyxl") as book:
        for name, cells in sheets.items():
            pd.DataFrame(cells).to_excel(book, sheet_name=name, header=False, index=False)
    for name in ("Title", "Merged", "sheet=Merged&header=2"):
        rows = read_source(f"{tmp_path}/t.xlsx#{name}")
        assert rows.amount.tolist() == [0.13, -0.5, 0.75]
        assert rows.calls.tolist() == [0, 1, 2]
        assert rows.id.tolist() == ["00123", "00456", "00789"]
    assert read_source(f"{tmp_path}/t.xlsx#Totals").sales.tolist() == [1, 2]
    assert read_source(f"{tmp_path}/t.xlsx#Totals&skip=1&header=no").shape == (2, 2)
    with pytest.raises(SourceError, match="two columns named 'a'"):
        read_source(f"{tmp_path}/t.xlsx#Equal")


def test_large_integers_of_sources_with_types(tmp_path):
    numbers = pd.array([2**60 + 1, None, 2**60 + 3], dtype="Int64")
    frame = pd.DataFrame({"id": numbers, "y": [1.5, 2.5, 3.5]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.astype(object).where(frame.notna(), None).to_json(tmp_path / "t.json", orient="records")
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("CREATE TABLE t (id INTEGER, y REAL)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(2**60 + 1, 1.5), (None, 2.5), (2**60 + 3, 3.5)])
    database.close()
    (tmp_path / "t.csv").write_text(frame.to_csv(index=False))
    for source in ("t.parquet", "t.json", "t.csv"):
        assert read_source(str(tmp_path / source)).id.dropna().tolist() == [str(2**60 + 1), str(2**60 + 3)], source
    assert read_source(f"sqlite:///{tmp_path}/t.db#t").id[0] == str(2**60 + 1)
    joined = read_source(str(tmp_path / "t.csv"), query="SELECT id, y FROM source WHERE y > 3")
    assert joined.id.tolist() == [str(2**60 + 3)], "a query sees what a file read alone gives"


def test_a_word_that_the_reader_keeps_is_no_missing_value_for_the_cleaning(tmp_path):
    smoker = ["N", "Y", "NA"] * 20
    rows, _, readings = read_text(tmp_path, "\n".join(["x,y", *[f"{word},{n}" for n, word in enumerate(smoker)]]) + "\n")
    assert readings[0].kept_words == {"x": {"NA": 20}}
    plan = keep_values_of_source(plan_cleaning(rows), readings)
    assert apply_cleaning_plan(rows, plan)[0].x.tolist() == smoker


def test_totals_in_the_notation_of_the_column_are_no_row(tmp_path):
    rows = read_text(tmp_path, "k;v\n" + "".join(f"a{n};1.{n:03},50\n" for n in range(20)) + "Summe;20.200,00\n")[0]
    assert len(rows) == 20 and rows.v.sum() == 20200

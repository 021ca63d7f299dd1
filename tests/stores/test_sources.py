"""Every kind of source for real: files on disk, a PostgreSQL server, an HTTP server that fails and throttles."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import sqlite3
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

import mlcycle as mc
from mlcycle.api import run_lifecycle
from mlcycle.core.secrets import mask_secrets
from mlcycle.errors import SourceError
from mlcycle.outcomes import NA_VALUES
from mlcycle.stores.sources.csv_dialect import detect_dialect
from mlcycle.stores.sources.csv_files import has_quotes, needs_line_check, read_csv_text
from mlcycle.stores.sources.ingest import read_source, read_source_with_provenance, save_frame_as_source
from mlcycle.stores.sources.rows import hash_rows, normalise_dtypes

ORDERS = pd.DataFrame(
    {
        "number": [1, 2, 3],
        "who": ["Ann", "Bob; Sons", "Zoë"],
        "price": [1.5, np.nan, 2500.25],
        "placed": pd.to_datetime(["2024-01-31", "2024-02-01", None]),
        "paid": ["yes", "no", "yes"],
    }
)
SAME = normalise_dtypes(ORDERS)


def same(rows: pd.DataFrame, expected: pd.DataFrame = SAME) -> None:
    "Equal in names, types and values."
    pd.testing.assert_frame_equal(rows, expected)
    assert hash_rows(rows) == hash_rows(expected)


def refusal(source: str, *words: str, **options) -> str:
    "The text of the error that a source gives."
    with pytest.raises(SourceError) as caught:
        read_source_with_provenance(source, **options)
    said = str(caught.value)
    for word in words:
        assert word in said, said
    return said


# Text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators(tmp_path, separator):
    ORDERS.to_csv(tmp_path / "orders.csv", sep=separator, index=False)
    rows, malformed, [record] = read_source_with_provenance(str(tmp_path / "orders.csv"))
    same(rows)
    assert len(malformed) == 0
    assert record.rows == 3
    assert record.sha256 == hash_rows(rows)
    assert record.bytes == (tmp_path / "orders.csv").stat().st_size
    assert f"separator {'tab' if separator == chr(9) else repr(separator)}" in record.description


@pytest.mark.parametrize(
    ("text", "separator", "header"),
    [
        ("a;b\n1,5;2,5\n3,5;4,25\n", ";", True),  # Decimal commas are no separators
        ("a,b,c\n1,2,3\n1,2\n1,2,3,4\n4,5,6\n", ",", True),  # Nor do malformed lines make another separator likelier
        ('a;b\n"x;y";1\n"z,w";2\n', ";", True),
        ("1;2\n3;4\n", ";", False),
    ],
)
def test_a_separator_is_found_where_a_general_sniffer_fails(tmp_path, text, separator, header):
    (tmp_path / "t.csv").write_text(text)
    dialect = detect_dialect(tmp_path / "t.csv")
    assert (dialect.separator, bool(dialect.header_rows)) == (separator, header)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zst", ".csv.zip", ".zip", ".tsv.gz"])
def test_packed(tmp_path, ending):
    text = ORDERS.to_csv(index=False, sep="\t" if "tsv" in ending else ",").encode()
    path = tmp_path / f"orders{ending}"
    if ending.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("orders.csv", text)
    elif ending.endswith(".zst"):
        with pa.output_stream(path, compression="zstd") as stream:
            stream.write(text)
    else:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(text))
    same(read_source(str(path)))


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8", ["Zoë", "Łódź"]),
        ("utf-8-sig", ["Zoë", "Łódź"]),
        ("utf-16", ["Zoë", "Łódź"]),
        ("utf-16-le", ["Zoë", "Ann"]),
        ("cp1252", ["Müller – „gut“", "Straße für €5"]),
        ("latin-1", ["Müller", "Straße, café, señor"]),
        ("cp1251", ["Привет, как дела", "Очень хорошо, спасибо"]),
        ("shift_jis", ["こんにちは世界", "日本語の文章です"]),
    ],
)
def test_encodings(tmp_path, encoding, words):
    table = pd.DataFrame({"n": range(200), "s": words * 100, "t": ["a", "b"] * 100})
    (tmp_path / "t.csv").write_bytes(table.to_csv(index=False).encode(encoding))
    rows, malformed, [record] = read_source_with_provenance(str(tmp_path / "t.csv"))
    assert rows.s.tolist() == words * 100, record.description
    assert len(malformed) == 0


def test_an_encoding_that_shows_late(tmp_path):
    "The sample at the beginning is ASCII, and one line far behind is not."
    lines = ["n,s"] + [f"{n},{'plain' * 5}" for n in range(60_000)] + ["1,Müller"] * 3
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("cp1252"))
    rows, malformed, [record] = read_source_with_provenance(str(tmp_path / "t.csv"))
    assert rows.s.iloc[-1] == "Müller"
    assert "cp1252" in record.description
    assert len(malformed) == 0


def test_a_line_in_another_encoding_is_kept_aside(tmp_path):
    (tmp_path / "t.csv").write_bytes("n,s\n1,Zoë\n2,Łódź\n".encode() + "3,café\n".encode("cp1252") + b"4,x\n")
    rows, malformed, _ = read_source_with_provenance(str(tmp_path / "t.csv"))
    assert rows.n.tolist() == [1, 2, 4]
    assert malformed.to_dict("records")[0] | {"source": ""} == {
        "source": "",
        "line": 4,
        "text": "3,caf\\xe9",
        "reason": "bytes that are not UTF-8",
    }


def test_decimal_comma_and_thousands(tmp_path):
    (tmp_path / "t.csv").write_text("a;b;c;d;e\n1,5;1.234,50;1.234.567;7;1,234\n-2,25;12,00;3;8;2,345\n")
    rows, _, [record] = read_source_with_provenance(str(tmp_path / "t.csv"))
    assert rows.a.tolist() == [1.5, -2.25]
    assert rows.b.tolist() == [1234.5, 12]
    assert rows.c.tolist() == [1234567, 3]
    assert "decimal comma in a, b, e" in record.notes
    assert rows.e.tolist() == [1.234, 2.345], "as the other columns"
    (tmp_path / "u.csv").write_text('a,b,c\n"1,234,567.5","1,234",x\n"12","2,345",y\n')
    rows, _, [record] = read_source_with_provenance(str(tmp_path / "u.csv"))
    assert rows.a.tolist() == [1234567.5, 12]
    assert rows.b.tolist() == [1234, 2345], "as the other columns"
    assert "comma between thousands in a, b" in record.notes


def test_what_a_person_says_is_not_questioned(tmp_path):
    (tmp_path / "t.csv").write_text("x;1,234\ny;2,345\n")
    rows, _, [record] = read_source_with_provenance(f"{tmp_path}/t.csv#header=no&decimal=,&separator=;")
    assert rows.column1.tolist() == [1.234, 2.345]
    assert "no header" in record.description
    refusal(f"{tmp_path}/t.csv#seperator=;", "seperator", "separator")


def test_switches_stay_text_and_mixed_columns_are_one_type(tmp_path):
    lines = [f"{n},{n},True" for n in range(300_000)] + ["007,x,"] + [f"{n},{n},false" for n in range(300_000)]
    (tmp_path / "t.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n")
    rows = read_source(str(tmp_path / "t.csv"))
    assert [str(kind) for kind in rows.dtypes] == ["str", "str", "str"]
    assert rows.a[300_000] == "007"
    assert rows.b[300_000] == "x"
    assert rows.c.value_counts().to_dict() == {"True": 300_000, "false": 300_000}


MALFORMED = """number,who,price
1,Ann,1.5
2,Bob
3,"Zoë, ""the"" best",2.5

4,Carl,3.5,extra
5,"multi
line",4.5
6,"open,5.5
7,Dora,6.5
8,Eve,"7.5
"""


def test_malformed_lines_have_number_text_and_reason(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(MALFORMED)
    rows, malformed, [record] = read_source_with_provenance(str(path))
    assert rows.number.tolist() == [1, 3, 5, 7]
    assert rows.who.tolist() == ["Ann", 'Zoë, "the" best', "multi\nline", "Dora"]
    assert rows.price.tolist() == [1.5, 2.5, 4.5, 6.5]
    assert malformed.line.tolist() == [3, 6, 9, 11]
    assert malformed.text.tolist() == ["2,Bob", "4,Carl,3.5,extra", '6,"open,5.5', '8,Eve,"7.5']
    assert malformed.reason.tolist() == [
        "2 fields instead of 3",
        "4 fields instead of 3",
        "a quote that is not closed",
        "a quote that is not closed",
    ]
    assert set(malformed.source) == {str(path)}
    assert record.malformed_lines == 4


def test_an_open_quote_swallows_nothing(tmp_path):
    "pandas alone would make one record of three lines here, of the right width."
    path = tmp_path / "t.csv"
    path.write_text('a,b,c\n1,"x\n2,y,3\n4,"z,5\n6,7,8\n9,8,7\n')
    assert len(pd.read_csv(path)) == 3
    rows, malformed, _ = read_source_with_provenance(str(path))
    assert rows.a.tolist() == [2, 6, 9]
    assert malformed.line.tolist() == [2, 4]


def test_every_short_or_long_line_of_a_large_file_is_found(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{n},{rng.integers(100)},{'' if n % 3 else 'z'}" for n in range(50_000)]
    bad = sorted(rng.choice(50_000, 200, replace=False))
    for n in bad:
        lines[n] = f"{n},1" if n % 2 else f"{n},1,2,3"
    (tmp_path / "t.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n")
    rows, malformed, _ = read_source_with_provenance(str(tmp_path / "t.csv"))
    assert (malformed.line - 2).tolist() == bad
    assert len(rows) == 50_000 - 200


def test_mostly_malformed_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n" + "1,2,3\n" * 5)
    refusal(str(tmp_path / "t.csv"), "5 of 6 lines are malformed", "Line 3", "3 fields instead of 2")


@pytest.mark.parametrize("packed", [False, True])
def test_malformed_lines_of_a_packed_file_in_another_encoding(tmp_path, packed):
    text = "a;b;c\n1;Müller;ä\n2;Straße\n3;Größe;ö\n".encode("cp1252")
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text) if packed else text)
    rows, malformed, _ = read_source_with_provenance(str(path))
    assert rows.b.tolist() == ["Müller", "Größe"]
    assert malformed[["line", "text"]].to_numpy().tolist() == [[3, "2;Straße"]]


def test_names(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    refusal(str(tmp_path / "t.csv"), "two columns named 'a'")
    (tmp_path / "u.csv").write_text(",a \n0,x\n1,y\n")
    assert read_source(str(tmp_path / "u.csv")).columns.tolist() == ["column0", "a"]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\x1a", exclude_categories=["Cs"]), max_size=8)
WORDS = CELLS.map(lambda text: text.strip() + "x").filter(lambda text: text not in NA_VALUES)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(WORDS, st.floats(-1e12, 1e12), WORDS), min_size=2, max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.booleans(),
)
def test_text_comes_back_as_it_was(records, separator, comma):
    "Separators, quotes, line ends and other letters within text; numbers with a decimal comma or point."
    comma = comma and separator == ";"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=separator, lineterminator="\n")
            writer.writerow(["first", "number", "last"])
            for first, number, last in records:
                text = f"{number:.2f}"
                writer.writerow([first, text.replace(".", ",") if comma else text, last])
        decimal = f"#separator={'tab' if separator == chr(9) else separator}&encoding=utf-8"
        rows, malformed, _ = read_source_with_provenance(f"{path}{decimal}")
    assert len(malformed) == 0
    assert rows["first"].tolist() == [record[0] for record in records]
    assert rows["last"].tolist() == [record[2] for record in records]
    assert rows.number.tolist() == [float(f"{record[1]:.2f}") for record in records]


# Other files


def test_parquet_single_folder_and_partitioned(tmp_path):
    ORDERS.to_parquet(tmp_path / "orders.parquet")
    same(read_source(str(tmp_path / "orders.parquet")))
    (tmp_path / "many").mkdir()
    for n in range(3):
        ORDERS[n : n + 1].to_parquet(tmp_path / "many" / f"{n}.parquet", index=False)
    (tmp_path / "many" / "_SUCCESS").touch()
    same(read_source(str(tmp_path / "many")))
    same(read_source(str(tmp_path / "many" / "*.parquet")))
    ORDERS.assign(year=[2023, 2024, 2024]).to_parquet(tmp_path / "parts", partition_cols=["year"], index=False)
    rows, _, [record] = read_source_with_provenance(str(tmp_path / "parts"))
    assert rows.year.tolist() == [2023, 2024, 2024]
    assert rows.number.tolist() == [1, 2, 3]
    assert record.bytes > 0


def test_parquet_of_many_types(tmp_path):
    table = pa.table(
        {
            "decimal": pa.array([1, 2], pa.decimal128(10, 2)),
            "day": pa.array([0, None], pa.date32()),
            "zoned": pa.array([0, None], pa.timestamp("ms", "Europe/Rome")),
            "kind": pa.array(["a", None]).dictionary_encode(),
            "small": pa.array([1, None], pa.int8()),
            "flag": pa.array([True, False]),
            "address": pa.array([{"town": "Rome", "more": {"zip": 1}}, {"town": "Oslo", "more": None}]),
            "list": pa.array([[1, 2], None]),
            "raw": pa.array([b"x", None]),
            "clock": pa.array([0, None], pa.time32("s")),
        }
    )
    pa.parquet = __import__("pyarrow.parquet").parquet
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    rows = read_source(str(tmp_path / "t.parquet"))
    assert rows.dtypes.astype(str).to_dict() == {
        "decimal": "float64",
        "day": "datetime64[us]",
        "zoned": "datetime64[us]",
        "kind": "str",
        "small": "float64",
        "flag": "bool",
        "address.town": "str",
        "address.more": "str",
        "list": "str",
        "raw": "str",
        "clock": "str",
    }
    assert json.loads(rows["address.more"][0]) == {"zip": 1}
    assert json.loads(rows["list"][0]) == [1, 2]


def test_a_folder_of_text_and_of_several_kinds(tmp_path):
    ORDERS[:2].to_csv(tmp_path / "1.csv", index=False)
    ORDERS[2:].to_csv(tmp_path / "2.csv", index=False)
    rows = read_source(str(tmp_path / "*.csv"))
    assert rows.number.tolist() == [1, 2, 3]
    (tmp_path / "2.csv").write_text("number,else\n1,2\n")
    refusal(str(tmp_path), "different columns", "else")
    ORDERS.to_parquet(tmp_path / "3.parquet")
    refusal(str(tmp_path), "several formats", "parquet", "text")


def records_of(frame: pd.DataFrame) -> list[dict]:
    "Records as JSON has them."
    return json.loads(frame.to_json(orient="records", date_format="iso"))


def test_json_and_lines(tmp_path):
    nested = [record | {"at": {"town": "Rome", "deep": {"zip": n}}} for n, record in enumerate(records_of(ORDERS))]
    (tmp_path / "list.json").write_text(json.dumps(nested))
    (tmp_path / "inside.json").write_text(json.dumps({"count": 3, "data": {"items": nested}}))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in nested))
    (tmp_path / "lines.ndjson.gz").write_bytes(gzip.compress((tmp_path / "lines.jsonl").read_bytes()))
    for name in ("list.json", "inside.json#records=data.items", "lines.jsonl", "lines.ndjson.gz"):
        rows = read_source(str(tmp_path / name))
        same(rows[ORDERS.columns])
        assert rows["at.town"].tolist() == ["Rome"] * 3
        assert json.loads(rows["at.deep"][2]) == {"zip": 2}
    refusal(str(tmp_path / "inside.json"), "records=")
    (tmp_path / "bad.json").write_text("{")
    refusal(str(tmp_path / "bad.json"), "not a table")


def test_malformed_lines_of_json(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1, "b": "x"}\n{"a": 2, "b"\n\n[3]\n{"a": "4", "b": "y"}\n{"a": 5, "b": "z"}\n')
    rows, malformed, _ = read_source_with_provenance(str(tmp_path / "t.jsonl"))
    assert rows.b.tolist() == ["x", "y", "z"]
    assert malformed.line.tolist() == [2, 4]
    assert malformed.text.tolist() == ['{"a": 2, "b"', "[3]"]


def test_excel(tmp_path):
    with pd.ExcelWriter(tmp_path / "t.xlsx", engine="openpyxl") as book:
        pd.DataFrame().to_excel(book, sheet_name="Empty")
        ORDERS.to_excel(book, sheet_name="Orders", index=False)
        ORDERS.assign(number=0).to_excel(book, sheet_name="Zeros", index=False)
    rows, _, [record] = read_source_with_provenance(str(tmp_path / "t.xlsx"))
    same(rows)
    assert "'Orders' of 3" in record.description
    assert read_source(f"{tmp_path}/t.xlsx#Zeros").number.sum() == 0
    refusal(f"{tmp_path}/t.xlsx#Order", "'Order'", "'Orders'")


def test_delta_and_its_versions(tmp_path):
    place = tmp_path / "orders"
    write_deltalake(place, ORDERS)
    write_deltalake(place, ORDERS.assign(number=0), mode="overwrite")
    same(read_source(f"delta:{place}@0"))
    same(read_source(f"{place}@0"))
    rows, _, [record] = read_source_with_provenance(str(place))
    assert rows.number.sum() == 0
    assert "version 1" in record.description
    refusal(f"delta:{place}@7", "version 7")


# Databases


@pytest.fixture(scope="module")
def postgres(postgresql):
    "The address of a PostgreSQL server, its password in the environment."
    os.environ["PG_PASSWORD"] = "hush/hush@1"
    return postgresql.set(password="$PG_PASSWORD").render_as_string(hide_password=False).replace("%24", "$")


@pytest.fixture(scope="module")
def shop(postgres):
    "A server with tables."
    engine = sa.create_engine(sa.make_url(postgres).set(password="x"))
    with engine.begin() as connection:
        ORDERS.to_sql("orders", connection, index=False)
        connection.execute(sa.text("CREATE SCHEMA archive"))
        connection.execute(
            sa.text(
                "CREATE TABLE archive.kinds (id serial PRIMARY KEY, amount numeric(10,2), day date, at timestamptz, "
                "flag boolean, tags jsonb, uid uuid)"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO archive.kinds (id, amount, day, at, flag, tags, uid) VALUES "
                "(2, 1.25, '2024-01-31', '2024-01-31 12:00+02', true, '{\"a\": 1}', gen_random_uuid()), "
                "(1, null, null, null, null, null, null)"
            )
        )
        connection.execute(sa.text("CREATE TABLE large AS SELECT n AS id, n * 2 AS twice FROM generate_series(1, 120000) n"))
    engine.dispose()
    return postgres


def test_postgresql_tables_and_questions(shop):
    rows, _, [record] = read_source_with_provenance(f"{shop}#orders")
    same(rows)
    assert record.source.startswith("postgresql+psycopg://postgres:$PG_PASSWORD@")
    assert record.description == "postgresql, table orders"
    kinds = read_source(f"{shop}#archive.kinds")
    assert kinds.dtypes.astype(str).tolist() == ["int64", "float64", "datetime64[us]", "datetime64[us]", "float64", "str", "str"]
    assert kinds.id.tolist() == [1, 2], "in the order of the primary key"
    assert kinds["at"][1] == pd.Timestamp("2024-01-31 10:00")
    assert json.loads(kinds.tags[1]) == {"a": 1}
    rows, _, [record] = read_source_with_provenance(
        shop, query="SELECT number, placed::date AS day FROM orders WHERE who LIKE '%o%' ORDER BY 1"
    )
    assert rows.number.tolist() == [2, 3]
    assert record.query.startswith("SELECT")
    assert len(read_source(f"{shop}#SELECT who, price FROM orders")) == 3


def test_postgresql_comes_in_pieces(shop):
    told = []
    rows, _, _ = read_source_with_provenance(f"{shop}#large", progress=lambda *state: told.append(state))
    assert len(rows) == 120_000
    assert [state[0] for state in told] == [50_000, 100_000, 120_000]


def test_postgresql_is_never_changed(shop):
    for query in (
        "DELETE FROM orders",
        "WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x",
        "SELECT 1; DROP TABLE orders",
    ):
        refusal(shop, "SELECT", query=query)
    refusal(shop, "read-only", query="SELECT nextval('archive.kinds_id_seq'), 1")
    assert len(read_source(f"{shop}#orders")) == 3
    refusal(f"{shop}#order", "'orders'")
    refusal(shop, "names no table")


def test_postgresql_joins_files(shop, tmp_path):
    pd.DataFrame({"who": ["Ann", "Zoë"], "town": ["Rome", "Oslo"]}).to_csv(tmp_path / "people.csv", index=False)
    rows, _, records = read_source_with_provenance(
        f"{shop}#orders",
        {"people": str(tmp_path / "people.csv")},
        "SELECT number, town FROM source JOIN people USING (who) ORDER BY 1",
    )
    assert rows.to_numpy().tolist() == [[1, "Rome"], [3, "Oslo"]]
    assert [record.rows for record in records] == [3, 2]


def test_sqlite(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    ORDERS.to_sql("orders", engine, index=False)
    engine.dispose()
    same(read_source(f"sqlite:///{tmp_path}/shop.db#orders"))
    refusal(f"sqlite:///{tmp_path}/shop.db", "SELECT", query="UPDATE orders SET price = 0")
    refusal(f"sqlite:///{tmp_path}/shop.db#nothing", "no table 'nothing'")
    refusal(f"sqlite:///{tmp_path}/shop.db", "no such column", query="SELECT lost FROM orders")
    with sqlite3.connect(f"{tmp_path}/shop.db") as shop:
        assert shop.execute("SELECT sum(price) FROM orders").fetchone()[0] == 2501.75
    shop.close()


# The web

TOKEN = "tok-5up3r-53cr3t"


class Shop(BaseHTTPRequestHandler):
    "Orders by page, offset, cursor and link; a server that fails, throttles and sends elsewhere."

    heard, fails, throttles, elsewhere = [], 0, 0, ""

    def do_GET(self):
        kind, asked = type(self), urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        kind.heard.append((time.monotonic(), self.path, self.headers.get("Authorization"), self.headers.get("X-Key")))
        if kind.fails:
            kind.fails -= 1
            return self.answer(503, {})
        if kind.throttles:
            kind.throttles -= 1
            return self.answer(429, {}, {"Retry-After": "0.3"})
        numbers, size = list(range(25)), int(query.get("limit", 10))
        if asked.path == "/elsewhere":
            return self.answer(302, {}, {"Location": f"{kind.elsewhere}/page"})
        if asked.path == "/drop":
            return self.connection.close()
        if asked.path == "/slow":
            time.sleep(1)
        if asked.path == "/html":
            return self.answer(200, None)
        if asked.path == "/private" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "no"})
        if asked.path == "/same":
            return self.answer(200, self.records(numbers[:size]))
        start = int(query.get("offset") or query.get("after") or (int(query.get("page", 1)) - 1) * size)
        page, more = numbers[start : start + size], start + size < 25
        headers = {"Link": f'</link?offset={start + size}>; rel="next"'} if asked.path == "/link" and more else {}
        cursor = {"meta": {"next": str(start + size) if more else None}}
        return self.answer(200, {"data": self.records(page)} | cursor, headers)

    def records(self, numbers):
        return [{"number": n, "at": "2024-01-31T10:00:00Z", "who": {"name": f"w{n}"}} for n in numbers]

    def answer(self, status, content, headers=None):
        body = b"<html>" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


def serve(handler: type):
    "A server on loopback; its address and how to end it."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def web(monkeypatch):
    "The address of a server, and its class."
    monkeypatch.setenv("SHOP_TOKEN", TOKEN)
    handler = type("Fresh", (Shop,), {"heard": []})
    server, url = serve(handler)
    yield url, handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "asked",
    [
        "/page#paging=page&size=10",
        "/page#paging=page&parameter=page",
        "/offset#paging=offset&size=7",
        "/cursor#paging=cursor&parameter=after&next=meta.next",
        "/link",
        "/link#paging=link",
    ],
)
def test_paging(web, asked):
    url, handler = web
    rows, _, [record] = read_source_with_provenance(f"{url}{asked}")
    assert rows.number.tolist() == list(range(25))
    assert rows["who.name"][24] == "w24"
    assert str(rows["at"].dtype) == "datetime64[us]"
    assert "pages" in record.description
    assert record.bytes > 0


def test_a_row_limit_and_a_file_of_options(web, tmp_path):
    url, handler = web
    (tmp_path / "shop.api.yaml").write_text(f"url: {url}/page\npaging: page\nsize: 10\nmax_rows: 12\nrecords: data\n")
    assert len(read_source(str(tmp_path / "shop.api.yaml"))) == 12
    assert len(handler.heard) == 2
    (tmp_path / "shop.api.yaml").write_text(f"url: {url}/page\npagign: page\n")
    refusal(str(tmp_path / "shop.api.yaml"), "pagign", "paging")


def test_failures_and_throttling_are_waited_for(web):
    url, handler = web
    handler.fails, handler.throttles = 2, 2
    assert len(read_source(f"{url}/page#paging=page&size=25&backoff=0.01")) == 25
    times = [moment for moment, *_ in handler.heard]
    assert len(times) >= 5
    assert times[3] - times[2] >= 0.3 <= times[4] - times[3], "as long as Retry-After asks"


def test_what_goes_on_failing_is_said_without_secrets(web, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    url, handler = web
    quick = "backoff=0.01&max_attempts=2&token=SHOP_TOKEN"
    handler.fails = 99
    said = refusal(f"{url}/page?key=$SHOP_TOKEN#{quick}", "503", "later")
    handler.fails = 0
    said += refusal(f"{url}/page?api_key={TOKEN}#{quick}&paging=offset&parameter=nothing&size=5", "same page again")
    said += refusal(f"{url}/drop#{quick}", "cannot be reached")
    said += refusal(f"{url}/slow#{quick}&timeout=0.1", "does not respond", "timeout")
    said += refusal(f"{url}/html#{quick}", "JSON")
    monkeypatch.setenv("SHOP_TOKEN", "wrong-token")
    said += refusal(f"{url}/private#{quick}", "401", "token")
    monkeypatch.delenv("SHOP_TOKEN")
    said += refusal(f"{url}/private#{quick}", "SHOP_TOKEN", "not set")
    said += refusal(f"{url}/private#token={TOKEN}", "not set")
    assert TOKEN not in said + caplog.text
    assert "wrong-token" not in said + caplog.text


def test_a_token_reaches_its_host_only(web):
    url, handler = web
    assert len(read_source(f"{url}/private#token=SHOP_TOKEN&paging=page&size=10")) == 25
    assert {token for _, _, token, _ in handler.heard} == {f"Bearer {TOKEN}"}
    other = type("Other", (Shop,), {"heard": []})
    server, handler.elsewhere = serve(other)
    try:
        handler.heard.clear()
        _, _, [record] = read_source_with_provenance(f"{url}/elsewhere#token=SHOP_TOKEN&header=X-Key&scheme=")
    finally:
        server.shutdown()
        server.server_close()
    assert handler.heard[0][3] == TOKEN
    assert other.heard[0][2:] == (None, None), "a redirect to another host takes nothing along"
    assert TOKEN not in record.model_dump_json()


def test_rate_limit(web):
    url, handler = web
    read_source(f"{url}/page#paging=page&size=10&rate=10")
    times = [moment for moment, *_ in handler.heard]
    assert all(after - before > 0.09 for before, after in zip(times, times[1:], strict=False))


# Python objects


def test_loaders():
    wine = read_source("sklearn.datasets:load_wine")
    assert wine.shape == (178, 14)
    assert "target" in wine
    refusal("sklearn.datasets:load_whine", "load_whine")
    refusal("no_such_module:load", "no_such_module")


def test_a_frame_as_source(tmp_path):
    frame = ORDERS.set_index(pd.Index([5, 6, 7]))
    kept = save_frame_as_source(frame, tmp_path)
    assert kept == save_frame_as_source(ORDERS.copy(), tmp_path)
    same(read_source(kept))
    assert [path.name for path in (tmp_path / "sources").iterdir()] == [Path(kept).name]


def test_a_run_on_a_frame_is_fresh_the_second_time(tmp_path):
    from sklearn.datasets import load_wine

    (tmp_path / "settings.ini").write_text("[engine]\nname = warm\n")
    first = run_lifecycle(load_wine(as_frame=True), "target", project=tmp_path, until="problem")
    assert first.problem.rows == 178
    assert run_lifecycle(load_wine(as_frame=True).frame, "target", project=tmp_path, until="problem").id == first.id
    again = mc.run(load_wine(as_frame=True).frame[:170], "target", project=tmp_path, until="problem")
    assert again.problem.rows == 170


# Joins


def test_several_sources_joined(tmp_path):
    (tmp_path / "orders.csv").write_bytes("number;who;price\n1;Jürgen;1,5\n2;Bob\n3;Ann;2,5\n".encode("cp1252"))
    pd.DataFrame({"who": ["Ann", "Jürgen"], "town": ["Rome", "Oslo"]}).to_parquet(tmp_path / "people.parquet")
    (tmp_path / "towns.jsonl").write_text('{"town": "Rome", "size": 3}\n{"town": "Oslo", "size": 1}\n')
    write_deltalake(tmp_path / "lands", pd.DataFrame({"town": ["Rome", "Oslo"], "land": ["IT", "NO"]}))
    more = {
        "people": f"{tmp_path}/people.parquet",
        "towns": f"{tmp_path}/towns.jsonl",
        "lands": f"delta:{tmp_path}/lands",
        "wine": "sklearn.datasets:load_wine",
    }
    rows, malformed, records = read_source_with_provenance(
        f"{tmp_path}/orders.csv",
        more,
        "SELECT s.number, s.price, t.size, l.land, (SELECT count(*) FROM wine) AS wines FROM source s JOIN people p USING (who) "
        "JOIN towns t USING (town) JOIN lands l USING (town) ORDER BY number",
    )
    assert rows.to_numpy().tolist() == [[1, 1.5, 1, "NO", 178], [3, 2.5, 3, "IT", 178]]
    assert malformed[["line", "text"]].to_numpy().tolist() == [[3, "2;Bob"]]
    assert [record.rows for record in records] == [2, 2, 2, 2, 178]
    assert all(len(record.sha256) == 64 for record in records)
    assert "cp1252" in records[0].description


def test_a_query_over_one_file_and_what_is_refused(tmp_path):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    place = f"{tmp_path}/orders.csv"
    assert read_source(place, query="SELECT number, who FROM source WHERE price > 1").number.tolist() == [1, 3]
    for query in ("DROP TABLE source", f"COPY source TO '{tmp_path}/x.csv'", "INSTALL httpfs", "SELECT 1; SELECT 2"):
        refusal(place, "SELECT", query=query)
    refusal(place, "lost", query="SELECT lost, number FROM source")
    refusal(place, "httpfs", query="SELECT * FROM read_csv('https://127.0.0.1:9/x.csv')")
    refusal(place, "no query", sources={"more": place})
    refusal(place, "'source'", sources={"source": place}, query="SELECT 1")
    assert not (tmp_path / "x.csv").exists()


def test_a_join_gives_the_same_rows_in_the_same_order(tmp_path):
    rng = np.random.default_rng(0)
    pd.DataFrame({"key": rng.integers(0, 1000, 300_000), "x": rng.random(300_000)}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"key": range(1000), "y": rng.random(1000)}).to_parquet(tmp_path / "b.parquet")
    query = "SELECT key, x, y FROM source JOIN b USING (key) WHERE y > 0.5"
    found = {hash_rows(read_source(f"{tmp_path}/a.parquet", {"b": f"{tmp_path}/b.parquet"}, query)) for _ in range(3)}
    assert len(found) == 1


# Secrets, progress, and the line by line reading


def test_masks(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://me:hush@127.0.0.1:1/db?connect_timeout=1")
    said = refusal("$DATABASE_URL#orders", "$DATABASE_URL")
    said += refusal("postgresql+psycopg://me:hush@127.0.0.1:1/db?connect_timeout=1#orders", "me:…@")
    said += refusal("nosuch://me:hush@127.0.0.1/db#orders")
    said += refusal("postgresql+psycopg://me:$NO_SUCH_PASSWORD@127.0.0.1:1/db#orders", "NO_SUCH_PASSWORD")
    assert "hush" not in said
    assert mask_secrets("https://me:hush@x.org/a?token=hush&n=1") == "https://me:…@x.org/a?token=…&n=1"


def test_progress_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("mlcycle.stores.sources.csv_files.FAST_PARSE_BYTES", 1000)
    monkeypatch.setattr("mlcycle.stores.sources.csv_files.BLOCK_BYTES", 1 << 20)
    (tmp_path / "t.csv").write_text("a,b\n" + "12345,67890\n" * 500_000)
    size, told = (tmp_path / "t.csv").stat().st_size, []
    read_source_with_provenance(str(tmp_path / "t.csv"), progress=lambda *state: told.append(state))
    assert len(told) > 3
    assert told[-1][1:] == (size, size)
    assert [state[1] for state in told] == sorted(state[1] for state in told)


def test_the_quick_way_is_taken_where_nothing_is_doubtful(tmp_path):
    for name, text in {"plain": "a,b\n1,2\n3,4\n", "gaps": "a,b\n1,\n3,4\n", "quotes": 'a,b\n"x,y",2\n"z",4\n'}.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        dialect = detect_dialect(path)
        assert not (has_quotes(path) and needs_line_check(path, dialect, read_csv_text(path, dialect))), name


def test_the_hash_does_not_see_pieces():
    words = ["", "a", None, "bc", "é" * 100] * 50
    whole = pd.DataFrame({"s": pd.Series(words, dtype="str"), "x": np.arange(250.0)}).rename_axis("row_id")
    pieces = pd.concat([whole[:7], whole[7:100], whole[100:]])
    python = whole.assign(s=pd.Series(words, dtype=pd.StringDtype("python", na_value=np.nan)))
    assert len({hash_rows(whole), hash_rows(pieces), hash_rows(python), hash_rows(whole.iloc[::-1].iloc[::-1])}) == 1
    moved = whole.assign(s=whole.s.shift(1))
    assert hash_rows(moved) != hash_rows(whole)
    other_nan = whole.assign(x=np.where(whole.x == 3, np.frombuffer(b"\x01\0\0\0\0\0\xf8\xff", "f8")[0], whole.x))
    assert hash_rows(other_nan) == hash_rows(whole.assign(x=whole.x.where(whole.x != 3)))


def test_buffers_are_closed(tmp_path):
    "Reading leaves no file open."
    ORDERS.to_csv(tmp_path / "t.csv.gz", index=False)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_source(str(tmp_path / "t.csv.gz"))
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert io.DEFAULT_BUFFER_SIZE

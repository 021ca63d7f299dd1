"""References of monitoring from all training rows, in memory and in partitions."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcycle.deployment.monitoring_documents import monitoring_documents
from mlcycle.deployment.reference_counts import count_partition, count_training_rows
from mlcycle.ml.table_profile import draw_half, profile_reference
from mlcycle.outcomes import Problem
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.release_description import Bundle
from mlcycle.stores.tables import datasets
from mlcycle.stores.tables.datasets import commit_table, read_table, write_table, write_table_file
from mlcycle.stores.tables.table_partitions import partitions_beyond_sample

COLUMNS = ["price", "zip", "town", "note"]
KNOWN = {"town": frozenset(["Ulm", "Bonn", "Bari"])}


def rows_of(seed, n):
    "Numbers with a tail, missing values, many codes, rare towns, free text, days."
    rng = np.random.default_rng(seed)
    price = np.where(rng.random(n) < 0.2, 0.0, rng.lognormal(3, 2, n).round(2))
    price[rng.random(n) < 0.1] = np.nan
    return pd.DataFrame({
        "price": price,
        "zip": rng.geometric(0.02, n).astype(str),
        "town": rng.choice(["Ulm", "Bonn", "Bari"], n, p=[0.6, 0.39, 0.01]),
        "note": [f"{each}" * (each % 7 + 1) for each in rng.integers(0, 10**6, n)],
        "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 5000, n)), unit="h"),
        "y": rng.choice(["late", "in time"], n),
    }).astype({"zip": "str", "town": "str", "note": "str", "day": "datetime64[us]"})  # fmt: skip


def stored(folder, rows, ends):
    "A table whose partitions end at some places."
    cuts = [0, *sorted({*ends} - {0, len(rows)}), len(rows)]
    parts = [rows[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    files = [write_table_file(folder, "train", part, number, "a") for number, part in enumerate(parts)]
    return commit_table(folder, "train", files, {name: str(kind) for name, kind in rows.dtypes.items()})


def as_numbers(counts):
    "All counts of rows."
    columns = {name: (*each.counts.tolist(), each.rows, each.missing, each.low, each.high, each.bins.expected_unseen)
               for name, each in counts.profile.columns.items()}  # fmt: skip
    seasons = {(season, part): [each.counts.tolist() for each in table.columns.values()]
               for season, found in counts.seasons.items() for part, table in found.parts.items()}  # fmt: skip
    return columns, seasons, counts.days.days.tolist(), {name: each.tolist() for name, each in counts.days.counts.items()}


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), step=st.integers(1, 4), ends=st.lists(st.integers(1, 999), max_size=4), order=st.randoms())
def test_counts_do_not_depend_on_how_rows_are_divided(seed, step, ends, order):
    rows = rows_of(seed, 1000)
    sample = rows[::step]
    layout = profile_reference(sample[COLUMNS], KNOWN).layout
    arguments = layout, "day", sample.index[draw_half(len(sample))]
    whole = count_partition(rows, 0, *arguments)
    cuts = [0, *sorted({*ends}), 1000]
    pairs = list(zip(cuts, cuts[1:], strict=False))
    order.shuffle(pairs)
    parts = [count_partition(rows[start:end], start, *arguments) for start, end in pairs]
    summed = sum(parts[1:], parts[0])
    assert as_numbers(summed) == as_numbers(whole)
    for name, each in summed.profile.columns.items():
        assert np.isclose(each.total, whole.profile.columns[name].total, rtol=1e-9, atol=1e-9)
        assert np.isclose(each.squares, whole.profile.columns[name].squares, rtol=1e-9, atol=1e-9)
        if not each.bins.halved:
            assert each.known + each.missing == each.rows == 1000
    if step == 1:
        there = profile_reference(rows[COLUMNS], KNOWN).columns
        assert all(each.counts.tolist() == there[name].counts.tolist() for name, each in summed.profile.columns.items())


class Constant:
    "A model."

    classes_ = np.array(["in time", "late"])

    def predict(self, rows):
        return np.array(["late"] * len(rows))

    def predict_proba(self, rows):
        return np.tile([0.4, 0.6], (len(rows), 1))


def documents_of(folder, table, rows):
    "Content of the documents of monitoring of a stored table."
    problem = Problem(decision="-", question="-", owner="-", source="-", source_sha256="-", target="y", task="binary", time="day",
                      classes=["in time", "late"], positive="late", metric="roc_auc", metrics=["roc_auc"], criteria=[],
                      rows=len(rows))  # fmt: skip
    train = read_table(folder, table)
    bundle = Bundle(problem=problem, columns={name: str(rows[name].dtype) for name in COLUMNS}, threshold=0.5,
                    training_values={name: describe_training_values(train[name]) for name in COLUMNS},
                    model={"name": "toy", "version": 1, "run_id": "-", "sha256": "-"})  # fmt: skip
    partitions = partitions_beyond_sample(folder, table, train)
    return monitoring_documents(bundle, Constant(), train, rows[-200:], partitions=partitions)


def test_a_table_in_partitions_that_fits_into_memory_has_the_same_documents(tmp_path):
    rows = rows_of(1, 3000)
    whole = documents_of(tmp_path / "a", write_table(tmp_path / "a", "train", rows), rows)
    assert whole == documents_of(tmp_path / "b", stored(tmp_path / "b", rows, [900, 1800, 2700]), rows)


@pytest.fixture
def large(tmp_path, monkeypatch):
    "A table of which every third row is read, and these rows."
    rows = rows_of(2, 6000)
    rows.loc[rows.index[1:121:3], "town"] = "Rimini"  # Not in the sample
    table = stored(tmp_path, rows, [2000, 2001, 4500])
    monkeypatch.setattr(datasets, "MAX_CELLS_READ", 2000 * rows.shape[1])
    return rows, table


def test_all_rows_are_counted(large, tmp_path):
    rows, table = large
    train = read_table(tmp_path, table)
    assert len(train) == 2000
    counts = count_training_rows(train, COLUMNS, KNOWN, "day", partitions_beyond_sample(tmp_path, table, train))
    price, zips, town, note = counts.profile.columns.values()
    assert counts.profile.rows == price.known + price.missing == town.known == note.known == 6000
    assert price.missing == rows.price.isna().sum() and (price.low, price.high) == (rows.price.min(), rows.price.max())
    assert price.counts[[0, -1]].tolist() == [0, 0] and np.isclose(price.mean, rows.price.mean())
    assert zips.bins.halved and 4500 < zips.known < 5500 and zips.rows == 6000
    assert town.counts[-1] == 40 and np.isclose(town.bins.expected_unseen, 41 / 4001) and not town.unseen
    assert sum(each.rows for each in counts.seasons["month"].parts.values()) == 6000


def test_a_release_names_the_rows_from_which_its_bins_are(large, tmp_path):
    import json

    rows, table = large
    described = json.loads(documents_of(tmp_path, table, rows)["reference_profile.json"])
    assert (described["rows"], described["bins_from_rows"]) == (6000, 2000)

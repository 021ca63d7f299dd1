"""Statistics of all rows of a table in partitions: those of a table in memory, however rows are divided."""

from functools import reduce
from operator import add
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcycle.features.explore.all_rows import count_statistics, make_layout
from mlcycle.features.explore.explore import PERIOD_FREQUENCIES, explore
from mlcycle.features.stage import sample_notes
from mlcycle.ml import distinct_sketch
from mlcycle.ml.missing import find_missing_patterns
from mlcycle.ml.outliers import count_beyond_limits, count_outliers, find_outlier_limits, outlier_table
from mlcycle.stores.tables import datasets
from mlcycle.stores.tables.datasets import commit_table, read_table, write_table_file
from mlcycle.stores.tables.table_partitions import partitions_beyond_sample

PROBLEM = SimpleNamespace(task="binary", positive="yes", time="placed")


def orders(n, seed=0):
    "Numbers with gaps, codes, ids, booleans, times."
    rng = np.random.default_rng(seed)
    late = rng.random(n) < 0.3
    rows = pd.DataFrame({
        "weight": rng.gamma(2, 3, n), "price": rng.integers(-3, 40, n), "town": rng.geometric(0.2, n).astype(str),
        "id": [f"o{each}" for each in rng.permutation(n)], "express": rng.random(n) < 0.4,
        "placed": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 9000, n)), unit="h"),
        "late": np.where(late, "yes", "no"),
    }).astype({"town": "str", "id": "str", "late": "str", "placed": "datetime64[us]"})  # fmt: skip
    rows.loc[late & (rng.random(n) < 0.5), "weight"] = np.nan
    rows.loc[rng.random(n) < 0.1, ["town", "weight"]] = np.nan
    return rows


def as_numbers(counts):
    "All that is counted exactly."
    columns = {name: (each.rows, each.missing, each.distinct.hashes.tolist(), each.distinct.counts.tolist(),
                      each.frequent.tolist(), each.targets.tolist(), each.where_missing.tolist(), each.zeros, each.fractions,
                      None if each.profile is None else (each.profile.counts.tolist(), each.profile.low, each.profile.high))
               for name, each in counts.columns.items()}  # fmt: skip
    periods = {number: (n, sums.tolist()) for number, (n, sums) in sorted(counts.periods.items())}
    return columns, counts.patterns, counts.classes, counts.target.tolist(), periods


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    ends=st.lists(st.integers(1, 599), max_size=4),
    order=st.randoms(),
    size=st.sampled_from([50, 4000]),
)
def test_statistics_do_not_depend_on_how_rows_are_divided(seed, ends, order, size):
    rows = orders(600, seed)
    sample = rows[::4]
    found = explore(sample, "late", PROBLEM)
    layout = make_layout(sample, found, PROBLEM, PERIOD_FREQUENCIES[found.period])
    cuts = [0, *sorted({*ends}), 600]
    pairs = list(zip(cuts, cuts[1:], strict=False))
    order.shuffle(pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct_sketch, "SKETCH_SIZE", size)
        whole = count_statistics(rows, 0, layout)
        summed = reduce(add, (count_statistics(rows[start:end], start, layout) for start, end in pairs))
        assert as_numbers(summed) == as_numbers(whole)
        assert whole.columns["id"].distinct.is_exact == (size > 600)
        assert abs(whole.columns["id"].distinct.n_distinct / 600 - 1) < (0.7 if size == 50 else 1e-9)


@pytest.fixture
def large(tmp_path, monkeypatch):
    "A table of which every fourth row is read: folder, table, all rows, those that are read."
    rows = orders(6000)
    files = [
        write_table_file(tmp_path, "train", rows[start : start + 2500], start // 2500, "a") for start in range(0, 6000, 2500)
    ]
    table = commit_table(tmp_path, "train", files, {name: str(kind) for name, kind in rows.dtypes.items()})
    monkeypatch.setattr(datasets, "MAX_CELLS_READ", 1500 * rows.shape[1])
    return tmp_path, table, rows, read_table(tmp_path, table)


def test_an_exploration_has_the_statistics_of_all_rows(large):
    folder, table, rows, sample = large
    whole = explore(rows, "late", PROBLEM)
    here = explore(sample, "late", PROBLEM, partitions=partitions_beyond_sample(folder, table, sample))
    assert (here.rows, here.sampled_rows, len(sample)) == (6000, 1500, 1500)
    exact = ["dtype", "value_type", "missing", "infinite", "distinct", "min", "max", "all_integers", "zero_share", "rare_share"]
    pd.testing.assert_frame_equal(here.columns[exact], whole.columns[exact], check_dtype=False)
    often = ["top", "top_share", "target_class"]
    repeated = whole.columns.index.drop(["id", "weight", "placed"])
    pd.testing.assert_frame_equal(here.columns.loc[repeated, often], whole.columns.loc[repeated, often], check_dtype=False)
    for column in ("mean", "std", "skew", "missing_correlation", "target_where_missing", "target_where_known"):
        np.testing.assert_allclose(
            here.columns[column].astype(float), whole.columns[column].astype(float), atol=1e-6, err_msg=column
        )
    for level in ("1%", "25%", "50%", "75%", "99%"):
        share = (rows.weight <= here.columns.loc["weight", level]).sum() / rows.weight.notna().sum()
        assert abs(share - float(level[:-1]) / 100) < 0.003
        assert here.columns.loc["price", level] == pytest.approx(rows.price.quantile(float(level[:-1]) / 100), abs=1)
    pd.testing.assert_frame_equal(here.missing_patterns, whole.missing_patterns)
    pd.testing.assert_frame_equal(here.target_over_time, whole.target_over_time.reset_index(drop=True), check_dtype=False)
    towns = [each.categories.query("column == 'town'").set_index("value")[["rows", "share", "yes"]] for each in (here, whole)]
    pd.testing.assert_frame_equal(towns[0].head(10), towns[1].head(10), check_dtype=False)


def test_pages_have_patterns_and_outliers_of_all_rows(large):
    folder, table, rows, sample = large
    partitions = partitions_beyond_sample(folder, table, sample)
    limits = find_outlier_limits(rows)
    counted = outlier_table(limits, sum(partitions.map(count_beyond_limits, [limits], columns=limits)), len(rows))
    pd.testing.assert_frame_equal(counted, count_outliers(rows))
    assert find_missing_patterns(rows)["rows"].sum() == 6000
    dataset = SimpleNamespace(tables={"train": table})
    assert "1,500 of 6,000 training rows" in sample_notes(sample, dataset)[0] and not sample_notes(rows, dataset)

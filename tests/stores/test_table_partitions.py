"""Partitions of a table: functions are called with each of them, with the same results here and on a Dask cluster."""

import shutil
from functools import reduce
from operator import add
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlcycle.core.execution import ExecutionSettings
from mlcycle.deployment.reference_counts import count_training_rows
from mlcycle.errors import ArtifactError, HoldoutError
from mlcycle.features.explore.all_rows import count_statistics, make_layout
from mlcycle.features.explore.explore import explore
from mlcycle.stores.tables import datasets
from mlcycle.stores.tables.datasets import commit_table, read_table, write_table_file
from mlcycle.stores.tables.table_partitions import partitions_beyond_sample


@pytest.fixture
def large(tmp_path, monkeypatch):
    "A table of which every third row is read: folder, table, these rows."
    rng, n = np.random.default_rng(0), 6000
    rows = pd.DataFrame({
        "x": rng.lognormal(3, 2, n), "code": rng.geometric(0.02, n).astype(str), "y": rng.choice(["no", "yes"], n),
        "day": pd.date_range("2026-01-01", periods=n, freq="h").as_unit("us")}).astype({"code": "str", "y": "str"})  # fmt: skip
    files = [write_table_file(tmp_path, "train", part, number, "a") for number, part in enumerate((rows[:2000], rows[2000:]))]
    table = commit_table(tmp_path, "train", files, {name: str(kind) for name, kind in rows.dtypes.items()})
    monkeypatch.setattr(datasets, "MAX_CELLS_READ", 2000 * rows.shape[1])
    return tmp_path, table, read_table(tmp_path, table)


def all_numbers(folder, table, sample, execution):
    "Whatever is counted in all rows, sums of floats included."
    partitions = partitions_beyond_sample(folder, table, sample, execution)
    counts = count_training_rows(sample, ["x", "code"], {}, "day", partitions)
    problem = SimpleNamespace(task="binary", positive="yes", time="")
    layout = make_layout(sample, explore(sample, "y", problem), problem)
    seen = reduce(add, partitions.map(count_statistics, [layout]))
    x = seen.columns["x"]
    return ([(each.counts.tolist(), each.total, each.squares, each.high) for each in counts.profile.columns.values()],
            {name: each.tolist() for name, each in counts.days.counts.items()}, seen.target.tolist(), x.profile.total, x.cubes,
            [(each.distinct.hashes.tolist(), each.frequent.tolist()) for each in seen.columns.values()])  # fmt: skip


def test_results_are_the_same_on_dask(large, on_dask):
    assert all_numbers(*large, ExecutionSettings()) == all_numbers(*large, on_dask)


def test_what_cannot_be_read_is_named(large):
    folder, table, sample = large
    with pytest.raises(HoldoutError):
        partitions_beyond_sample(folder, table.model_copy(update={"name": "holdout"}), sample)
    partitions = partitions_beyond_sample(folder, table, sample)
    shutil.rmtree(folder / "train")
    with pytest.raises(ArtifactError, match="cannot read the table"):
        list(partitions.map(len, columns=["x"]))

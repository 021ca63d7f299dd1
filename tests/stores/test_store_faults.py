"""An object store that refuses requests for a while, truncates bodies, or loses its responses."""

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from object_stores import bucket, faults, proxy_url, s3_url, stored_objects  # noqa: F401 - fixtures

from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.errors import StorageError
from mlcycle.stores.models import registry
from mlcycle.stores.tables import table_storage
from mlcycle.stores.tables.datasets import (
    commit_table,
    is_intact,
    read_table,
    remove_uncommitted_files,
    table_names,
    table_versions,
    write_table,
    write_table_file,
)
from mlcycle.stores.tables.holdout import read_holdout, read_holdout_accesses

ROWS = pd.DataFrame({"x": range(5000), "s": "text"}).rename_axis("row_id")
REASON = {"run": "one", "stage": "validation", "reason": "the verdict"}


@pytest.fixture
def space(bucket, tmp_path):  # noqa: F811
    "A workspace with tables in the object store."
    return Workspace(tmp_path, STORE_DEFAULTS | {"tables": f"s3://{bucket}/project"})


@pytest.fixture
def impatient(monkeypatch):
    "Few attempts, so that a store that stays away is an error soon."
    monkeypatch.setattr(table_storage, "S3_OPTIONS", table_storage.S3_OPTIONS | {"max_retries": "1"})
    monkeypatch.setattr(table_storage, "S3_ATTEMPTS", 2)


def one_version(space) -> bool:
    "Whether the table has one version with the rows, and nothing else is stored."
    (version,) = table_versions(space.tables, "train")
    pd.testing.assert_frame_equal(read_table(space.tables, version.table), ROWS, check_index_type=False, check_dtype=False)
    return remove_uncommitted_files(space.tables, "train", timedelta(days=-1)) == []


@pytest.mark.parametrize("path", ["_delta_log", r"\.parquet", "list-type"])
def test_requests_that_are_refused_for_a_while_are_repeated(space, faults, path):  # noqa: F811
    faults("503", path, count=2)
    table = write_table(space.tables, "train", ROWS)
    faults("503", path, count=2)
    assert len(read_table(space.tables, table)) == 5000
    faults("503", path, count=2)
    assert table_names(space.tables) == ["train"]
    assert one_version(space)


@pytest.mark.parametrize("path", ["_delta_log", r"\.parquet", "list-type"])
def test_truncated_bodies_are_read_again(space, faults, path):  # noqa: F811
    table = write_table(space.tables, "train", ROWS)
    faults("truncated", path, "GET", count=2)
    assert len(read_table(space.tables, table)) == 5000
    faults("truncated", path, "GET", count=2)
    assert write_table(space.tables, "train", ROWS) == table
    faults()
    assert one_version(space)


@pytest.mark.parametrize("path", ["_delta_log/0", r"\.parquet"])
def test_bodies_that_stay_truncated_are_a_clear_error(space, faults, impatient, path):  # noqa: F811
    table = write_table(space.tables, "train", ROWS)
    faults("truncated", path, "GET")
    for action in (lambda: read_table(space.tables, table), lambda: write_table(space.tables, "train", ROWS)):
        with pytest.raises(StorageError, match="cannot be used"):
            action()
    faults()
    assert is_intact(space.tables, table)
    assert one_version(space)


def test_a_lost_response_of_a_commit_is_no_second_version(space, faults):  # noqa: F811
    faults("lost response", "_delta_log/0+.json", "PUT", count=1)
    table = write_table(space.tables, "train", ROWS)
    assert table.version == 0
    assert one_version(space)


def test_a_lost_response_of_a_commit_of_partitions(space, faults):  # noqa: F811
    halves = [write_table_file(space.tables, "train", ROWS.iloc[start : start + 2500], start // 2500, "a") for start in (0, 2500)]
    faults("lost response", "_delta_log/0+.json", "PUT", count=1)
    dtypes = {name: str(kind) for name, kind in ROWS.dtypes.items()}
    assert commit_table(space.tables, "train", halves, dtypes).version == 0
    assert one_version(space)


@pytest.mark.parametrize("path", ["_delta_log", r"\.parquet"])
def test_a_write_that_fails_leaves_no_version(space, faults, impatient, bucket, path):  # noqa: F811
    first = write_table(space.tables, "train", ROWS.head(10))
    faults("503", path, "PUT")
    with pytest.raises(StorageError, match="503|cannot be used"):
        write_table(space.tables, "train", ROWS)
    faults()
    assert [each.table for each in table_versions(space.tables, "train")] == [first]
    assert len(read_table(space.tables, first)) == 10
    second = write_table(space.tables, "train", ROWS)
    assert (second.version, len(read_table(space.tables, second))) == (1, 5000)
    remove_uncommitted_files(space.tables, "train", timedelta(days=-1))
    assert sum(name.endswith(".parquet") for name in stored_objects(bucket)) == 2, "the remains are removed"
    assert is_intact(space.tables, first)
    assert is_intact(space.tables, second)


def test_holdout_rows_are_not_returned_without_a_record(space, faults, impatient):  # noqa: F811
    holdout = write_table(space.tables, "holdout", ROWS)
    faults("503", "holdout/accesses", "PUT")
    with pytest.raises(StorageError):
        read_holdout(space, holdout, **REASON)
    faults("503", "holdout/accesses", "POST")
    with pytest.raises(StorageError):
        read_holdout(space, holdout, **REASON)
    faults()
    assert read_holdout_accesses(space) == []
    faults("lost response", "holdout/accesses", count=1)
    assert len(read_holdout(space, holdout, **REASON)) == 5000
    assert len(read_holdout_accesses(space)) == 1


@pytest.mark.parametrize("kind", ["503", "truncated"])
def test_a_model_is_read_despite_faults_or_not_at_all(space, faults, bucket, tmp_path, kind):  # noqa: F811
    from mlflow.artifacts import download_artifacts
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    (tmp_path / "model.skops").write_bytes(bytes(range(256)) * 4000)
    place = f"s3://{bucket}/models/m-1/artifacts"
    faults("503", "model.skops", "PUT", count=1)
    get_artifact_repository(place).log_artifact(str(tmp_path / "model.skops"))
    faults(kind, "model.skops", "GET", count=2)
    try:
        path = download_artifacts(f"{place}/model.skops", dst_path=str(tmp_path / "there"))
    except Exception as error:
        assert registry.is_registry_error(error), "a clear error, and no half of a file"
        assert kind == "truncated"
    else:
        assert Path(path).read_bytes() == (tmp_path / "model.skops").read_bytes()

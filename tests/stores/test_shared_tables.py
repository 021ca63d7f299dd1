"""Tables in an object store or in a shared folder: several writers, one history, one access log."""

import json
import subprocess
import sys
from datetime import timedelta

import pandas as pd
import pytest
from commands import cli
from object_stores import bucket, s3_client, s3_url, store_environment, stored_objects  # noqa: F401 - fixtures

from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.errors import ArtifactError, HoldoutError, ParameterError, StorageError
from mlcycle.stores.tables.datasets import (
    commit_table,
    discard_table_files,
    is_intact,
    iterate_table,
    read_table,
    remove_uncommitted_files,
    resolve_table_address,
    table_names,
    table_versions,
    write_table,
    write_table_file,
)
from mlcycle.stores.tables.holdout import count_biasing_accesses, read_holdout, read_holdout_accesses
from mlcycle.stores.tables.table_diff import diff_tables
from mlcycle.stores.tables.table_storage import list_stored_files, table_storage


def table(**columns) -> pd.DataFrame:
    "Rows as they are stored."
    return pd.DataFrame(columns).rename_axis("row_id")


def shared(home, tables: str) -> Workspace:
    "The workspace of one machine, with shared tables."
    return Workspace(home, STORE_DEFAULTS | {"tables": tables})


@pytest.fixture(params=["folder", "object store"])
def tables(request, tmp_path):
    "The folder or address of tables."
    return str(tmp_path / "shared") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/project"


WRITER = """
import sys
import pandas as pd
from mlcycle.stores.tables.datasets import write_table
folder, name = sys.argv[1:]
print("ready", flush=True)
for line in sys.stdin:
    for number in range(2):
        rows = pd.DataFrame({"x": [number], "who": [name]}).rename_axis("row_id")
        print(write_table(folder, line.strip(), rows, run=f"{name} {number}").version, flush=True)
"""


def test_two_processes_write_one_table(tables, tmp_path):
    "Some tables are created by both at the same moment; all other commits compete too."
    place = shared(tmp_path, tables).tables
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(place), name], **pipes) for name in ("a", "b")]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for name in [f"table-{number}" for number in range(6)]:
        for writer in writers:
            writer.stdin.write(f"{name}\n")
        numbers = [[int(writer.stdout.readline()) for _ in range(2)] for writer in writers]
        assert sorted(sum(numbers, [])) == [0, 1, 2, 3], "each write has a version of its own"
        versions = {each.table.version: each for each in table_versions(place, name)}
        for who, mine in zip("ab", numbers, strict=True):
            for number, version in enumerate(mine):
                assert versions[version].metadata["run"] == f"{who} {number}"
                rows = read_table(place, versions[version].table)
                assert (rows.x.tolist(), rows.who.tolist()) == ([number], [who]), "and no row of the other writer"
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0


def test_versions_and_names_are_those_of_every_machine(tables, tmp_path):
    one, two = (shared(tmp_path / name, tables) for name in ("one", "two"))
    first = write_table(one.tables, "train", table(x=[1, 2]), run="first")
    second = write_table(two.tables, "train", table(x=[1, 3]), run="second")
    assert write_table(one.tables, "train", table(x=[1, 3]), run="third") == second, "nothing is written twice"
    assert [each.metadata["run"] for each in table_versions(one.tables, "train")] == ["second", "first"]
    assert diff_tables(read_table(one.tables, first), read_table(two.tables, second)).changed_rows == 1
    write_table(two.tables, "holdout", table(x=[7]))
    assert table_names(one.tables) == ["holdout", "train"]
    assert resolve_table_address(one.tables, "train@0").table == first
    assert not (tmp_path / "one" / ".mlcycle" / "tables").exists()
    with pytest.raises(ParameterError, match="Did you mean 'train'"):
        table_versions(one.tables, "trian")


def test_the_holdout_and_its_access_log_are_shared(tables, tmp_path):
    one, two = (shared(tmp_path / name, tables) for name in ("one", "two"))
    holdout = write_table(one.tables, "holdout", table(x=[1, 2]))
    with pytest.raises(HoldoutError, match="Stage 5"):
        read_table(two.tables, holdout)
    with pytest.raises(HoldoutError, match="not evaluated yet"):
        read_holdout(one, holdout, run="r1", stage="deployment", reason="parity")
    for _ in range(2):
        assert len(read_holdout(one, holdout, run="r1", stage="validation", reason="the verdict")) == 2
    read_holdout(two, holdout, run="r1", stage="deployment", reason="parity")
    read_holdout(two, holdout, reason="a look")
    read_holdout(two, holdout, reason="a look")
    assert count_biasing_accesses(one, holdout.sha256) == count_biasing_accesses(two, holdout.sha256) == 3
    found = read_holdout_accesses(two, holdout.sha256)
    assert sorted(each.purpose for each in found) == ["evaluation", "inspection", "inspection", "verification"]


def test_tables_in_partitions(tables, tmp_path):
    place = shared(tmp_path, tables).tables
    rows, dtypes = table(x=range(10)), {"x": "int64"}

    def files(tag: str, end: int = 10) -> list:
        return [write_table_file(place, "train", rows.iloc[start : start + 5], start // 5, tag) for start in range(0, end, 5)]

    first = commit_table(place, "train", files("aa"), dtypes)
    assert commit_table(place, "train", files("bb"), dtypes) == first, "the same rows"
    second = commit_table(place, "train", files("cc", 5), dtypes)
    files("dd")
    discard_table_files(place, "dd")
    assert [len(part) for part in iterate_table(place, first)] == [5, 5]
    assert (second.version, read_table(place, second).x.tolist()) == (1, [0, 1, 2, 3, 4])
    names = {name for name in list_stored_files(table_storage(place, "train").place) if name.endswith(".parquet")}
    assert {name[-10:-8] for name in names} == {"aa", "cc"}
    assert remove_uncommitted_files(place, "train", timedelta(0)) == []


def test_remains_of_failed_writes_are_removed_later(tables, tmp_path):
    place = shared(tmp_path, tables).tables
    kept = write_table(place, "train", table(x=[1]))
    write_table_file(place, "train", table(x=[1]), 0, "gone")
    assert remove_uncommitted_files(place, "train") == [], "another machine may be about to commit it"
    assert remove_uncommitted_files(place, "train", timedelta(days=-1), dry_run=True) == ["part-00000-gone.parquet"]
    assert remove_uncommitted_files(place, "train", timedelta(days=-1)) == ["part-00000-gone.parquet"]
    assert remove_uncommitted_files(place, "train", timedelta(days=-1)) == []
    assert is_intact(place, kept)


# Object stores only


def test_altered_and_missing_objects_are_noticed(bucket, tmp_path):  # noqa: F811
    place = shared(tmp_path, f"s3://{bucket}/project").tables
    first = write_table(place, "train", table(x=range(1000)))
    (name,) = [name for name in stored_objects(bucket) if name.endswith(".parquet")]
    body = s3_client().get_object(Bucket=bucket, Key=name)["Body"].read()
    for wrong in (body[:-500], body.replace(body[100:104], b"\0\0\0\0", 1), b""):
        s3_client().put_object(Bucket=bucket, Key=name, Body=wrong)
        with pytest.raises(ArtifactError, match="cannot be read|has been altered"):
            read_table(place, first)
    second = write_table(place, "train", table(x=range(1000)))
    assert (second.version, is_intact(place, second), is_intact(place, first)) == (1, True, False), "written again"
    s3_client().delete_object(Bucket=bucket, Key=name)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_table(place, first)
    log = f"{name.rpartition('/')[0]}/_delta_log/00000000000000000001.json"
    s3_client().put_object(Bucket=bucket, Key=log, Body=b'{"add": ')
    with pytest.raises(ArtifactError, match="Restore the objects"):
        write_table(place, "train", table(x=[1]))
    assert log in stored_objects(bucket), "nothing of a shared table is moved away"


def test_a_store_that_ignores_conditions_is_noticed(bucket, tmp_path, monkeypatch):  # noqa: F811
    from mlcycle.stores.tables import datasets

    place = shared(tmp_path, f"s3://{bucket}/project").tables
    write = datasets.write_deltalake

    def replaced(address, rows, **options):
        write(address, rows, **options)
        name = next(name for name in stored_objects(bucket) if name.endswith("0.json"))
        body = s3_client().get_object(Bucket=bucket, Key=name)["Body"].read().decode()
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            line.get("commitInfo", {}).update(commit="of another writer")
        s3_client().put_object(Bucket=bucket, Key=name, Body="\n".join(map(json.dumps, lines)).encode())

    monkeypatch.setattr(datasets, "write_deltalake", replaced)
    with pytest.raises(ArtifactError, match="conditional writes"):
        write_table(place, "train", table(x=[1]))


def test_a_store_that_cannot_be_used_is_a_clear_error(bucket, tmp_path, monkeypatch):  # noqa: F811
    from mlcycle.stores.tables import table_storage as module

    monkeypatch.setattr(module, "S3_OPTIONS", module.S3_OPTIONS | {"max_retries": "1"})
    monkeypatch.setattr(module, "S3_ATTEMPTS", 1)
    place = shared(tmp_path, f"s3://{bucket}/project").tables
    first = write_table(place, "train", table(x=[1]))
    with pytest.raises(StorageError, match="bucket exists"):
        write_table(f"s3://{bucket}-none/tables", "train", table(x=[1]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for action in (
        lambda: read_table(place, first),
        lambda: write_table(place, "train", table(x=[1])),
        lambda: table_names(place),
        lambda: is_intact(place, first),
        lambda: read_holdout_accesses(shared(tmp_path, f"s3://{bucket}/project")),
    ):
        with pytest.raises(StorageError, match="AWS_ENDPOINT_URL") as caught:
            action()
        assert "very-secret-key" not in str(caught.value)


def test_commands_read_tables_of_an_object_store(bucket, tmp_path):  # noqa: F811
    place = f"s3://{bucket}/project"
    (tmp_path / "settings.ini").write_text("[stores]\ntables = s3://$EXAMPLE_BUCKET/project\n")
    space = shared(tmp_path, place)
    for number in (1, 2):
        write_table(space.tables, "train", table(x=[number, 5]), run=f"run {number}")
    write_table(space.tables, "holdout", table(x=[9]))

    def said(*words: str) -> str:
        done = cli("data", *words, cwd=tmp_path, EXAMPLE_BUCKET=bucket, **store_environment())
        assert done.returncode == 0, done.stderr
        assert "very-secret-key" not in done.stdout + done.stderr
        return done.stdout

    assert [line.split()[1] for line in said("list").splitlines() if line.split()[:1] == ["train"]] == ["2"]
    assert "run 1" in said("history", "train")
    assert "1 of 2 others changed" in said("diff", "train@0", "train")
    assert "run 2" in said("lineage", "train")
    assert "9" in said("show", "holdout", "--reason", "a complaint")
    assert count_biasing_accesses(space, table_versions(space.tables, "holdout")[0].table.sha256) == 1


def test_a_workspace_in_an_object_store_is_refused(tmp_path):
    (tmp_path / "settings.ini").write_text("[stores]\nworkspace = s3://bucket/project\n")
    done = cli("status", cwd=tmp_path)
    assert done.returncode == 2
    for word in ("'workspace'", "A folder is expected", "'tables'", "'tracking_uri'"):
        assert word in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["settings.ini"]

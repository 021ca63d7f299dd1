"""The label store: a label is never changed, processes write at once, and a damaged database is a clear error."""

import os
import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from mlcycle.errors import InputError
from mlcycle.stores.labels.label_store import (
    Annotation,
    LabelSet,
    LabelStore,
    add_annotations,
    current_annotations,
    ensure_label_set,
    read_annotations,
    read_new_annotations,
)

TOY = LabelSet(name="toy", source="-", target="late", task="binary", classes=["No", "Yes"])
WRITER = """
import sys
from mlcycle.stores.labels.label_store import Annotation, LabelSet, LabelStore, add_annotations, ensure_label_set
url, person, n = sys.argv[1:]
store = LabelStore(url)
toy = ensure_label_set(store, LabelSet(name="toy", source="-", target="late", task="binary", classes=["No", "Yes"]))
for number in range(int(n)):
    lines = [Annotation(item=f"i{number}", annotator=person, label="Yes", comment="x" * 500) for _ in range(5)]
    add_annotations(store, toy, lines)
    print(number, flush=True)
"""


def start_writer(url: str, person: str, n: int) -> subprocess.Popen:
    "A process that writes labels, five in each transaction, and prints the number of each transaction once it is saved."
    return subprocess.Popen([sys.executable, "-c", WRITER, url, person, str(n)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def url(tmp_path):
    "Of a store in a SQLite file."
    return f"sqlite:///{tmp_path}/labels.db"


@pytest.fixture
def server_url(postgresql):
    "Of a store in PostgreSQL."
    return postgresql.render_as_string(hide_password=False)


def check_append_only(url):
    "The database refuses to change or remove a label, and adds one that is sent twice once."
    store = LabelStore(url)
    ensure_label_set(store, TOY)
    line = Annotation(item="a1", annotator="anna", label="Yes")
    assert [add_annotations(store, TOY, [line]) for _ in range(2)] == [1, 0]
    before = read_annotations(store, "toy")
    for statement in ("UPDATE annotations SET comment = 'other'", "DELETE FROM annotations"):
        with pytest.raises(DatabaseError, match="labels are never changed"), store.engine.begin() as connection:
            connection.execute(sa.text(statement))
        with pytest.raises(InputError, match="cannot be used: .*labels are never changed"), store.transaction() as connection:
            connection.execute(sa.text(statement))
    assert read_annotations(store, "toy").equals(before)
    store.close()


def check_writers(url):
    "Two processes write at once; a third one follows, and sees each line in order of the numbers. Nothing is lost."
    writers = [start_writer(url, person, 20) for person in ("anna", "ben")]
    store, seen, last = LabelStore(url), [], 0
    while any(writer.poll() is None for writer in writers) or last != len(seen):
        new = read_new_annotations(store, "toy", last)
        seen += [line.annotation_id for _, line in new]
        last = new[-1][0] if new else last
        if not new and all(writer.poll() is not None for writer in writers):
            break
    assert [writer.wait(60) for writer in writers] == [0, 0]
    seen += [line.annotation_id for _, line in read_new_annotations(store, "toy", last)]
    history = read_annotations(store, "toy")
    assert seen == history.annotation_id.tolist() and len(history) == 200
    assert history.groupby("annotator")["item"].nunique().to_dict() == {"anna": 20, "ben": 20}
    assert len(current_annotations(history)) == 40
    store.close()


def test_sqlite_refuses_to_change_a_label(url):
    check_append_only(url)


def test_processes_write_to_sqlite_at_once(url):
    check_writers(url)


def test_postgresql_refuses_to_change_a_label_and_takes_those_of_several_processes(server_url):
    check_writers(server_url)
    store = LabelStore(server_url)
    assert len(read_annotations(store, "toy")) == 200
    store.close()
    with sa.create_engine(server_url).begin() as connection:
        connection.execute(sa.text("DROP TABLE annotations"))
    check_append_only(server_url)


def test_a_process_that_is_killed_leaves_a_readable_store(url):
    writer = start_writer(url, "anna", 100_000)
    assert writer.stdout is not None
    saved = [int(writer.stdout.readline()) for _ in range(20)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    saved = max([saved, *map(int, writer.stdout.read().split())])
    writer.wait(30)
    store = LabelStore(url)
    history = read_annotations(store, "toy")
    per_item = history.groupby("item").size()
    assert len(per_item) >= saved + 1 and (per_item == 5).all(), "all labels of a transaction, or none of them"
    assert add_annotations(store, TOY, [Annotation(item="a1", annotator="ben", label="No")]) == 1
    store.close()


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path, url):
    (tmp_path / "labels.db").write_bytes(b"no database " * 1000)
    with pytest.raises(InputError, match=r"The label store sqlite:.*labels.db cannot be used: file is not a database"):
        LabelStore(url)


def test_a_damaged_database_is_a_clear_error(tmp_path, url):
    store = LabelStore(url)
    ensure_label_set(store, TOY)
    add_annotations(store, TOY, [Annotation(item=f"i{n}", annotator="anna", label="Yes", comment="x" * 300) for n in range(500)])
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    content = (tmp_path / "labels.db").read_bytes()
    (tmp_path / "labels.db").write_bytes(content[: 4096 * 12] + b"\xaa" * (len(content) - 4096 * 12))
    with pytest.raises(InputError, match="cannot be used: database disk image is malformed"):
        read_annotations(LabelStore(url), "toy")


def test_a_store_that_is_locked_for_long_is_a_clear_error(url):
    store = LabelStore(url)
    ensure_label_set(store, TOY)
    with store.engine.connect() as other, store.engine.connect() as waiting:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        waiting.exec_driver_sql("PRAGMA busy_timeout = 50")
        waiting.close()  # Its connection is the next one from the pool
        start = time.monotonic()
        with pytest.raises(InputError, match="cannot be used: database is locked"):
            add_annotations(store, TOY, [Annotation(item="a1", annotator="anna", label="Yes")])
        assert time.monotonic() - start < 20
    assert add_annotations(store, TOY, [Annotation(item="a1", annotator="anna", label="Yes")]) == 1
    store.close()


def test_processes_create_a_label_set_at_once(url):
    store, first = LabelStore(url), LabelStore(url)
    assert ensure_label_set(store, TOY) == ensure_label_set(first, TOY) == TOY
    with pytest.raises(InputError, match="has the target 'late' of a binary task"):
        ensure_label_set(first, TOY.model_copy(update={"target": "paid"}))
    more = ensure_label_set(first, TOY.model_copy(update={"classes": ["Yes", "Perhaps"]}))
    assert more.classes == ["No", "Yes", "Perhaps"] and store.read_label_set("toy") == more
    with pytest.raises(InputError, match="There is no label set 'toys'"):
        store.read_label_set("toys")
    store.close()
    first.close()


def test_an_unknown_label_saves_nothing(url):
    store = LabelStore(url)
    ensure_label_set(store, TOY)
    lines = [Annotation(item="a1", annotator="anna", label=label) for label in ("Yes", "Perhaps")]
    with pytest.raises(InputError, match="The label 'Perhaps' is no class of 'late'"):
        add_annotations(store, TOY, lines)
    assert read_annotations(store, "toy").empty
    store.close()

"""The prediction log: many writers, late and contradictory actual values, retention, faults; on SQLite and on PostgreSQL."""

import multiprocessing
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from mlcycle.errors import InputError
from mlcycle.service.prediction_log import PredictionLog
from mlcycle.service.service_settings import ServiceSettings
from mlcycle.stores import event_export
from mlcycle.stores import events as events_module
from mlcycle.stores.event_export import export_log, prune_log, recorded_columns, recorded_versions
from mlcycle.stores.event_log import open_event_log, read_log, read_requests
from mlcycle.stores.event_lookup import find_predictions
from mlcycle.stores.event_views import create_release_view
from mlcycle.stores.events import add_events, connect_event_database, create_event_tables, open_event_database

START = datetime(2024, 1, 1)
COMMON = {"run": "run", "model": "model", "model_version": "1", "role": "champion", "latency_ms": 2.0}
TYPES = {"x": "float64", "name": "str", "flag": "bool", "day": "datetime64[ns]", "rooms": "int64"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    "The URL of an empty database."
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/events.db"
    server = request.getfixturevalue("postgresql")
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"log_{abs(hash(request.node.name))}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def engine(url):
    "An engine of an event database with tables."
    made = open_event_database(url)
    yield made
    made.dispose()


def predictions(numbers, **more) -> list[dict]:
    "Events of predictions, one an hour."
    day = "2024-01-01T00:00:00.000000"
    return [
        COMMON
        | {"row_id": str(n), "received": START + timedelta(hours=n), "prediction": "yes" if n % 2 else "no", "score": n / 100}
        | {"features": {"x": n / 2, "name": "Ünal" if n else None, "flag": bool(n % 2), "day": day, "rooms": n}}
        | more
        for n in numbers
    ]


def actual(row_id: object, value: object, hours: float) -> dict:
    "An event of an actual value."
    return COMMON | {"row_id": str(row_id), "actual": value, "received": START + timedelta(hours=hours)}


def read_all(engine, columns=TYPES, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Events and features of all blocks."
    blocks = list(read_log(engine, "model", columns, **options))
    return tuple(pd.concat([getattr(block, part) for block in blocks], ignore_index=True) for part in ("events", "features"))


def test_rows_come_typed_in_order_of_time_whatever_the_size_of_a_block(engine):
    add_events(engine, "predictions", predictions(reversed(range(20))))
    add_events(engine, "predictions", predictions([3], role="shadow", model_version="2"))
    add_events(engine, "predictions", predictions([5], model="another"))
    for block_rows in (1, 7, 20, None):
        events, features = read_all(engine, block_rows=block_rows)
        assert events.row_id.tolist() == [str(n) for n in range(20)]
        assert events.score.tolist() == [n / 100 for n in range(20)]
        assert features.x.tolist() == [n / 2 for n in range(20)]
        assert features.name.isna().tolist() == [True] + 19 * [False]
        assert [features[name].dtype.kind for name in ("flag", "day", "rooms")] == ["b", "M", "i"]
    assert read_all(engine, shadow=True)[0].model_version.tolist() == ["2"]
    part = read_all(engine, since=START + timedelta(hours=4), until=START + timedelta(hours=6), versions=["1"])[0]
    assert part.row_id.tolist() == ["4", "5"]
    assert not list(read_log(engine, "nobody", TYPES))


def test_rows_of_the_same_time_are_neither_lost_nor_repeated(engine):
    add_events(engine, "predictions", predictions(range(10), received=START))
    assert read_all(engine, block_rows=3)[0].row_id.tolist() == [str(n) for n in range(10)]


def test_actual_values_that_are_late_early_repeated_or_contradictory(engine):
    add_events(engine, "actuals", [actual(0, "yes", -1)])  # Written before its prediction
    add_events(engine, "predictions", predictions(range(5)))
    later = [actual(1, "no", 5000), actual(1, "no", 6000), actual(2, "yes", 30), actual(2, "no", 20), actual(3, "a", 1)]
    add_events(engine, "actuals", [*later, actual(3, "b", 2), actual(3, "a", 3), actual("other", "a", 3)])
    events, _ = read_all(engine, block_rows=2)
    assert events.actual.tolist() == ["yes", "no", "yes", "a", None], "the last one in time counts, not the last one written"
    assert events.n_actuals.tolist() == [1, 1, 2, 2, 0]
    hours = (events.actual_when - START) / timedelta(hours=1)
    assert hours[:4].tolist() == [-1, 5000, 30, 3], "a repeated value counts from its first time"


def test_columns_that_are_missing_hashed_or_of_another_type(engine):
    add_events(engine, "predictions", predictions(range(2), features={"x": "much", "name__hmac": "12ab", "rooms": None}))
    add_events(engine, "predictions", predictions([2], features={}))
    (block,) = read_log(engine, "model", TYPES | {"gone": "float64"})
    assert block.missing_columns == {"gone", "name", "flag", "day"}
    assert block.hashed_columns == {"name"}
    assert block.bad_types == {"x": 2}
    assert block.without_features == 1
    assert block.features.x.isna().all()


def test_damaged_cells_are_left_out_and_counted(tmp_path):
    "Only SQLite keeps a text that is no JSON in such a cell."
    engine, file = open_event_database(f"sqlite:///{tmp_path}/events.db"), tmp_path / "model.parquet"
    add_events(engine, "predictions", predictions(range(9)))
    add_events(engine, "actuals", [actual(n, "yes", n) for n in range(6)])
    cells = {1: """prediction = '"ye'""", 2: "score = '[0.1,'", 3: """features = '{"x": 1.'""", 4: "features = ''",
             5: "features = '[1]'", 8: """prediction = '"a","b"'"""}  # fmt: skip
    with engine.begin() as connection:
        for row_id, cell in cells.items():
            connection.exec_driver_sql(f"UPDATE predictions SET {cell} WHERE row_id = '{row_id}'")
        connection.exec_driver_sql("UPDATE actuals SET actual = '\"y' WHERE row_id = '0'")
    for block_rows in (1, 4, None):
        blocks = list(read_log(engine, "model", TYPES, block_rows=block_rows))
        assert sum(block.damaged for block in blocks) == 7
        read = [block for block in blocks if len(block.events)]
        events, features = (pd.concat([getattr(block, part) for block in read]) for part in ("events", "features"))
        assert events.row_id.tolist() == ["0", "6", "7"]
        assert events.actual.tolist() == [None, None, None]
        assert features.x.tolist() == [0.0, 3.0, 3.5]
        assert [features[name].dtype.kind for name in ("flag", "day", "rooms")] == ["b", "M", "i"]
    columns = recorded_columns(engine, "model", lambda version: TYPES)
    with pytest.warns(UserWarning, match="7 rows of the log could not be read"):
        assert export_log(engine, "model", columns, file) == 3
    engine.dispose()


def test_clocks_that_are_wrong_are_counted(engine):
    early = START - timedelta(hours=1)
    add_events(engine, "predictions", [each | {"event_id": f"a-{n}"} for n, each in enumerate(predictions(range(3)))])
    add_events(engine, "predictions", predictions([3], received=early, event_id="a-3"))  # The clock was set back
    add_events(engine, "predictions", predictions([4], received=early, event_id="b-0"))  # Of another process, after an outage
    now = START + timedelta(hours=1, minutes=30)
    (block,) = read_log(engine, "model", {}, now=now)
    assert block.skewed == 2, "one in the future, one set back"
    assert block.events.when.max() == START + timedelta(hours=2), "times are kept"


def write_log(url: str, name: int, spool: str) -> None:
    "Write predictions and actual values, as a service does."
    log = PredictionLog(url, "run", ServiceSettings(spool=spool, drain_timeout=60))
    for n in range(600):
        common = {"row_id": f"{name}-{n}", "model": "model"}
        log.add("predictions", [common | {"latency_ms": 1.0, "features": {"x": n}, "prediction": n, "model_version": "1"}])
        if n % 3 == 0:
            log.add("actuals", [common | {"actual": n}])
    log.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_four_processes_write_at_the_same_time_and_nothing_is_lost(url, tmp_path):
    context = multiprocessing.get_context("fork")  # Of a process that has no connection
    writers = [context.Process(target=write_log, args=(url, n, str(tmp_path / f"spool {n % 2}"))) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    engine = open_event_log(url)
    events, features = read_all(engine, {"x": "int64"}, block_rows=1000)
    engine.dispose()
    assert sorted(events.row_id) == sorted(f"{writer}-{n}" for writer in range(4) for n in range(600))
    assert events.actual.notna().sum() == 800
    assert (features.x == events.prediction.astype(int)).all()


def test_a_view_has_typed_columns(engine):
    add_events(engine, "predictions", predictions([3]))
    add_events(engine, "actuals", [actual(3, "no", 1), actual(3, "yes", 2)])
    name = create_release_view(engine, "model", "1", TYPES)
    assert name == create_release_view(engine, "model", "1", TYPES) == "model_v1"
    with engine.connect() as connection:
        row = connection.execute(sa.text("SELECT * FROM model_v1")).mappings().one()
    assert (row["x"], row["name"], row["rooms"], row["probability"]) == (1.5, "Ünal", 3, 0.03)
    assert (row["flag"], str(row["day"])[:10]) == (1, "2024-01-01")
    assert (row["predicted_label"], row["actual_label"]) == ("yes", "yes")


def test_a_view_is_replaced_when_the_columns_change(engine):
    "Such as when a column is hashed from now on; else its values would be missing without a word."
    add_events(engine, "predictions", [predictions([3])[0] | {"features": {"name__hmac": "5f3a"}}])
    create_release_view(engine, "model", "1", TYPES)
    hashed = {("name__hmac" if name == "name" else name): kind for name, kind in TYPES.items()}
    for _ in range(2):
        create_release_view(engine, "model", "1", hashed)
    with engine.connect() as connection:
        row = connection.execute(sa.text("SELECT * FROM model_v1")).mappings().one()
    assert row["name__hmac"] == "5f3a"
    assert "name" not in row


def test_what_is_pruned_was_exported_and_actual_values_of_kept_rows_stay(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(event_export, "DELETED_ROWS", 50)
    add_events(engine, "predictions", predictions(range(240), score=[0.25, 0.75]))
    add_events(engine, "actuals", [actual(n, "yes", 0) for n in range(120, 240)])  # Early ones of rows that are kept
    errors = {"kind": "rejected", "rule": "type", "rows": 2, "received": START}
    add_events(engine, "request_errors", [COMMON | errors, COMMON | errors | {"received": START + timedelta(days=999)}])
    limit, file = START + timedelta(hours=160), tmp_path / "old.parquet"
    columns = recorded_columns(engine, "model", lambda version: TYPES)
    assert columns == TYPES
    assert export_log(engine, "model", columns, file, until=limit) == 160
    assert prune_log(engine, limit) == {"predictions": 160, "actuals": 40, "request_errors": 1}
    assert prune_log(engine, limit) == {"predictions": 0, "actuals": 0, "request_errors": 0}
    exported, (events, _) = pq.read_table(file), read_all(engine)
    assert exported.column("row_id").to_pylist() == [str(n) for n in range(160)]
    assert exported.column("scores")[0].as_py() == [0.25, 0.75]
    assert [str(exported.schema.field(name).type) for name in TYPES] == ["double", "string", "bool", "timestamp[us]", "int64"]
    assert len(events) == 80
    assert events.actual.eq("yes").all()
    assert recorded_versions(engine).loc[0, ["rows", "labelled"]].tolist() == [80, 80]
    assert read_requests(engine, "model").rows.tolist() == [2]


def test_a_log_of_an_earlier_version_is_migrated(engine):
    with engine.begin() as connection:
        for name in ("predictions", "actuals", "request_errors"):
            connection.execute(sa.text(f"DROP TABLE {name}"))
        serial = "SERIAL" if engine.dialect.name == "postgresql" else "INTEGER"
        common = (
            f"number {serial} PRIMARY KEY, run VARCHAR(80) NOT NULL, row_id VARCHAR(80) NOT NULL, received TIMESTAMP NOT NULL"
        )
        connection.execute(
            sa.text(
                f"CREATE TABLE predictions ({common}, latency_ms FLOAT NOT NULL, features JSON NOT NULL,"
                " prediction JSON NOT NULL, score JSON)"
            )
        )
        connection.execute(sa.text(f"CREATE TABLE actuals ({common}, actual JSON NOT NULL)"))
        for table, columns, values in (
            ("predictions", "latency_ms, features, prediction, score", """1.5, '{"x": 1.0}', '"yes"', '0.25'"""),
            ("actuals", "actual", """'"no"'"""),
        ):
            row = f"INSERT INTO {table} (run, row_id, received, {columns})"
            row += f" VALUES ('run', '1', '2023-12-01 00:00:00.000000', {values})"
            connection.exec_driver_sql(row)
    again = open_event_database(engine.url.render_as_string(hide_password=False))
    add_events(again, "predictions", predictions([2]))
    events, features = read_all(again, runs=["run"])
    again.dispose()
    assert events.row_id.tolist() == ["1", "2"]
    assert (events.score[0], events.actual[0], features.x.tolist()) == (0.25, "no", [1.0, 1.0])


def request_index(engine) -> list[str]:
    "Columns of the index by which requests are found."
    indexes = sa.inspect(engine).get_indexes("predictions")
    return next(each["column_names"] for each in indexes if each["name"] == "ix_predictions_model_received")


def test_requests_are_found_by_an_index_also_in_a_log_of_an_earlier_version(engine, monkeypatch):
    requests = [
        each | {"request_id": f"r-{n // 2}", "model": f"m-{n // 4}"}
        for n, each in enumerate(predictions(range(8), received=START))
    ]
    add_events(engine, "predictions", [*requests, predictions([8], model=None, request_id="r-8")[0]])
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_predictions_model_received")
        connection.exec_driver_sql("CREATE INDEX ix_predictions_model_received ON predictions (model, received)")
    monkeypatch.setattr(events_module, "MAX_REINDEXED", 5)
    create_event_tables(engine)
    assert request_index(engine) == ["model", "received"], "it is large"
    monkeypatch.undo()
    for _ in range(2):
        create_event_tables(engine)
        assert request_index(engine) == ["model", "received", "request_id"]
    statements: list[tuple] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *facts: statements.append(facts[2:4]))
    for name, rows in (("r-3", ["6", "7"]), ("r-0", ["0", "1"]), ("r-8", ["8"]), ("r-9", [])):
        assert [each["row_id"] for each in find_predictions(engine, name)] == rows
    assert [each["row_id"] for each in find_predictions(engine, "r-3", "m-1")] == ["6", "7"]
    assert find_predictions(engine, "r-3", "m-0") == []
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {each}", values).all() for each, values in [*statements]]
        assert [plan for plan in plans if any("SCAN" in step[3] for step in plan)] == []


def test_what_is_wrong_with_a_database_is_told_without_its_password(url, tmp_path):
    other = connect_event_database(url)
    with other.begin() as connection:
        connection.execute(sa.text("CREATE TABLE predictions (id INTEGER)"))
    with pytest.raises(InputError, match="no prediction log"):
        open_event_log(url)
    assert [column["name"] for column in sa.inspect(other).get_columns("predictions")] == ["id"], "it is not altered"
    other.dispose()
    (tmp_path / "text.db").write_text("This is no database, but a text. " * 50)
    down = "postgresql+psycopg://ann:geheim99@127.0.0.1:1/events"
    for wrong, words in (
        (f"sqlite:///{tmp_path}/text.db", "not a database"),
        (f"sqlite:///{tmp_path}/none.db", "no prediction log yet"),
        (down, "cannot be read"),
        ("postgresql+nothing://ann:geheim99@host/events", "cannot be used"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            open_event_log(wrong)
        assert "geheim99" not in str(caught.value)
    assert not Path(tmp_path / "none.db").exists()


def test_the_same_log_gives_the_same_blocks(engine):
    add_events(engine, "predictions", predictions(range(50)))
    add_events(engine, "actuals", [actual(n, "yes", n) for n in range(0, 50, 2)])
    first, second = (read_all(engine, block_rows=20) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_many_may_open_a_new_sqlite_file_at_once(tmp_path):
    "The first one turns its journal into a write-ahead log, for which SQLite lets no other one wait."
    for number in range(20):
        barrier, failed = threading.Barrier(8), []

        def connect(url=f"sqlite:///{tmp_path}/{number}.db", barrier=barrier, failed=failed):
            engine = connect_event_database(url)
            barrier.wait()
            try:
                create_event_tables(engine)
            except Exception as error:
                failed.append(error)
            finally:
                engine.dispose()

        threads = [threading.Thread(target=connect) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not failed

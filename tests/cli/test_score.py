"""`mlcycle score` as a person types it."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import cli

from mlcycle.stores.sources.databases import read_database


@pytest.fixture(scope="module")
def run(table_run):
    return table_run("orders")


def test_a_file_is_scored_with_a_summary(run, tmp_path):
    done = cli(
        "score", "last", "orders.csv", tmp_path / "out.parquet", "--id", "zip", "--with-version", cwd=run.workspace.project
    )
    assert done.returncode == 0 and not done.stdout, done.stderr
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert list(scored) == ["zip", "prediction", "score", "model", "version"] and len(scored) == 600
    assert "600 of 600 rows are predicted by orders-late version 1" in done.stderr and "A column is ignored: late." in done.stderr
    assert "spend: sentinels, such as" in done.stderr and "Traceback" not in done.stderr
    again = cli("score", "orders-late@1", "orders.csv", tmp_path / "out.parquet", cwd=run.workspace.project)
    assert again.returncode == 2 and "exists" in again.stderr and "--overwrite" in again.stderr


def test_several_workers_and_a_database(run, tmp_path):
    rows = pd.read_csv(run.workspace.project / "orders.csv")
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        rows.to_sql("orders", connection, index=False)
    connection.close()
    base = f"sqlite:///{tmp_path}/shop.db"
    options = ["--workers", "2", "--block-rows", "100", "-q"]
    done = cli(
        "score",
        "orders-late",
        f"{base}#SELECT * FROM orders WHERE paid = 1",
        f"{base}#scores",
        *options,
        cwd=run.workspace.project,
    )
    assert done.returncode == 0, done.stderr
    done = cli("score", run.id, "orders.csv", tmp_path / "out.csv", *options, cwd=run.workspace.project)
    assert done.returncode == 0, done.stderr
    scored, expected = read_database(f"{base}#scores").rows, pd.read_csv(tmp_path / "out.csv")[rows.paid == 1]
    assert scored.prediction.tolist() == expected.prediction.tolist()
    assert abs(scored.score.astype(float).to_numpy() - expected.score.to_numpy()).max() < 1e-12


def test_standard_streams(run):
    command = [str(Path(sys.executable).parent / "mlcycle"), "score", str(run.workspace.root / run.release.bundle), "-", "-"]
    rows = (run.workspace.project / "orders.csv").read_bytes()
    done = subprocess.run(command, input=rows, capture_output=True, cwd=run.workspace.project, env=os.environ)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 601, done.stderr
    assert done.stdout.startswith(b'"row","prediction","score"\n1,') and b"standard output" in done.stderr


def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(run, tmp_path):
    project = run.workspace.project
    (tmp_path / "fewer.csv").write_text("town,spend\nLima,5\nRome,6\n")
    (tmp_path / "bad.csv").write_text(
        "placed,town,zip,spend,vip,paid\n" + "2024-01-31,Lima,12345,five,True,1\n" * 3 + "2024-01-31,Lima,12345,5.5,True,1\n"
    )
    before = sorted(tmp_path.iterdir())
    wrong = {
        ("nobody", "orders.csv", "out.csv"): (2, "nobody"),
        ("orders-late@7", "orders.csv", "out.csv"): (2, "7"),
        ("last", "none.csv", "out.csv"): (2, "does not exist"),
        ("last", "orders.csv", "out.xlsx"): (2, "unknown ending"),
        ("last", "orders.csv", "no/out.csv"): (2, "does not exist"),
        ("last", str(tmp_path / "fewer.csv"), "out.csv"): (2, "are missing in 'fewer.csv'"),
        ("last", "postgresql+psycopg://localhost:1/x#t", "out.csv"): (2, "reports"),
        ("last", "orders.csv", "postgresql+psycopg://u:geheim@localhost:1/x#t"): (2, "reports"),
    }
    for (model, source, output), (code, message) in wrong.items():
        place = output if "://" in output else tmp_path / output
        done = cli("score", model, source, place, cwd=project)
        assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("Error:") == 1 and "geheim" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    done = cli("score", "last", tmp_path / "bad.csv", tmp_path / "out.csv", "--max-rejects", "50%", cwd=project)
    assert done.returncode == 1 and "3 of 4 rows are rejected" in done.stderr and not (tmp_path / "out.csv").exists()
    assert len(pd.read_csv(tmp_path / "out.csv.rejects.csv")) == 3
    done = cli("score", "last", tmp_path / "bad.csv", tmp_path / "out.csv", cwd=project)
    assert done.returncode == 0 and "3 rows are rejected (type 3)" in done.stderr and "resumed" in done.stderr


def test_a_registry_that_is_down_is_one_error(tmp_path):
    (tmp_path / "settings.ini").write_text("[stores]\ntracking_uri = http://127.0.0.1:1\n")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    done = cli("score", "toy@1", "rows.csv", "out.csv", cwd=tmp_path, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 1 and done.stderr.count("Error:") == 1 and "Traceback" not in done.stderr, done.stderr
    assert "127.0.0.1:1" in done.stderr and not list(tmp_path.glob("out.csv*"))

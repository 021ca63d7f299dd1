"""What a run survives: kills at any moment, altered files, other processes, a full disk."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import uuid4

import pytest
from commands import cli, fork_cli
from conftest import stored_rows
from projects import (
    SETTINGS,
    add_cell,
    computed,
    contents,
    listing,
    not_fresh,
    processes_in,
    run,
    toy_project,
    wait_for_end,
)

import mlcycle as mc
from mlcycle.core.runs import list_runs
from mlcycle.core.workspace import Workspace
from mlcycle.outcomes import STAGES


def start(project: Path, mark: str, *words: str, **environment: str) -> subprocess.Popen:
    "A run in a session of its own, whose processes inherit a mark."
    command = [str(Path(sys.executable).with_name("mlcycle")), "run", "-q", *words]
    marked = os.environ | {"TEST_MARK": mark, **environment}
    return subprocess.Popen(
        command, cwd=project, env=marked, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def whole(project: Path) -> None:
    "Every JSON file of outcomes, runs and cache can be read, but for those under a temporary name."
    for path in [*(project / ".mlcycle").rglob("*.json"), *(project / "reports").rglob("*.json")]:
        parts = path.relative_to(project).parts[1:]
        if not any(part.startswith(".") or part == "_delta_log" for part in parts):
            json.loads(path.read_text())


# Runs that start at once: forks of one warm server, from which their notebooks are forked too


def warm(project: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    "Start `mlcycle run` at once."
    return fork_cli(project, "run", "-q", stdout=project / "log.txt", stderr=project / "log.txt", prepare=prepare)


def kill_at_rename(left: int, when: str) -> None:
    "Have this process killed before or after it renames a file for the so-manieth time."

    def patched(rename):
        def called(*arguments, **options):
            nonlocal left
            left -= 1
            if not left and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments, **options)
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        return called

    os.rename, os.replace = patched(os.rename), patched(os.replace)


def finished_stages(project: Path) -> int:
    "How many stages the cache holds."
    return len(list((project / ".mlcycle" / "cache").glob("*/[!.]*/entry.json")))


def wait_at_random(process: BaseProcess, project: Path, rng: random.Random) -> None:
    "Let a run go on for a while: from its start, or from the moment when it has finished one more stage."
    before = finished_stages(project)
    if rng.random() < 0.6:
        while process.is_alive() and finished_stages(project) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.8))
    else:
        time.sleep(rng.uniform(0.1, 2))


def test_twenty_kills_at_random_moments_change_nothing(finished_toy, tmp_path):
    rng, expected = random.Random(7), contents(mc.open("last", finished_toy))
    kills, rounds, left = 0, 0, []
    while kills < 20:
        rounds += 1
        project = toy_project(tmp_path / f"round-{rounds}")
        process = None
        while process is None or process.exitcode:
            process = warm(project)
            if kills < 20:
                wait_at_random(process, project, rng)
                process.kill()  # Does nothing to one that has just ended
            process.join(120)
            kills += process.exitcode == -signal.SIGKILL
            assert process.exitcode in (0, -signal.SIGKILL), (project / "log.txt").read_text()
            assert processes_in(project, 20) == [], "kernels end with the run"
            whole(project)
            runs = list_runs(Workspace(project))
            left += [len(made.info["keys"]) for made in runs if made.info["status"] == "running"]
        made = mc.open("last", project)
        assert contents(made) == expected
        assert not_fresh(project) == []
        assert [each.info["status"] for each in list_runs(made.workspace)] == ["done"], "a killed run is taken up again"
    assert len(set(left)) > 2, f"stages that were done when a kill came: {left}"


def test_kills_while_something_is_written_change_nothing(finished_toy, new_toy):
    kills = 0
    for number in range(2, 200, 5):
        process = warm(new_toy, partial(kill_at_rename, number, ("before", "after")[number % 2]))
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL), (new_toy / "log.txt").read_text()
        whole(new_toy)
        if not process.exitcode:
            break
        kills += 1
        assert processes_in(new_toy, 20) == []
    assert cli("runs", cwd=new_toy).returncode == cli("status", cwd=new_toy).returncode == 0
    assert kills > 5
    run(new_toy)
    assert contents(mc.open("last", new_toy)) == contents(mc.open("last", finished_toy))
    assert "Nothing to do" in run(new_toy).stdout


def test_real_stages_survive_kills_too(base, new):
    "Killed while tables are written, and while models are fitted and logged: tables, studies and registry go on."
    for pattern in (".mlcycle/tables/*/_delta_log/*.json", ".mlcycle/studies/*"):
        mark = uuid4().hex
        with start(new, mark, "--until", "modelling") as process:
            while process.poll() is None and not list(new.glob(pattern)):
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            printed = process.communicate(timeout=120)[1]
        assert process.returncode == -signal.SIGKILL, printed
        assert wait_for_end(mark) == [], "the server, kernels and services end with the run"
        whole(new)
    run(new, "--until", "modelling")
    (made,) = list_runs(Workspace(new))
    assert made.info["status"] == "done", "a killed run is taken up again"
    expected = contents(mc.open("last", base))
    assert contents(made) == {stage: expected[stage] for stage in STAGES[:4]}


def test_a_torn_outcome_is_not_taken_for_one(new_toy):
    torn = """
import os, signal, time
from pathlib import Path
if not Path("killed").exists():
    Path("killed").touch()
    (Path(run_dir) / "features.json").write_text('{"decis')
    server = os.getppid()
    os.kill(int(Path(f"/proc/{server}/stat").read_text().split()[3]), signal.SIGKILL)
    time.sleep(60)
"""
    add_cell(new_toy, "features", torn)
    mark = uuid4().hex
    with start(new_toy, mark, "--until", "features") as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert wait_for_end(mark) == []
    (before,) = list_runs(Workspace(new_toy))
    assert before.info["status"] == "running"
    assert "killed" in cli("runs", cwd=new_toy).stdout
    run(new_toy, "--until", "features")
    (made,) = list_runs(Workspace(new_toy))
    assert (made.id, made.info["status"]) == (before.id, "done")
    assert made.plan.decision


def damage(path: Path, how: str) -> None:
    "Spoil a file."
    data = path.read_bytes()
    place = len(data) // 2
    changed = {
        "cut": data[:place],
        "garbage": b"\x00garbage",
        "edited": data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
    }
    path.write_bytes(changed[how])


LIGHT = {
    "contracts/*.yaml": ("edited", "data"),
    "plans/*.skops": ("edited", "features"),
    "selectors/*.skops": ("edited", "features"),
    "releases/*/bundle.json": ("edited", "deployment"),
    "cache/features/*/outcome.json": ("edited", "features"),
    "cache/deployment/*/entry.json": ("cut", "deployment"),
    "cache/problem/*/entry.json": ("edited", "problem"),
    "cache/validation/*/files.json": ("garbage", "validation"),
    "cache/validation/*/notebook.ipynb": ("cut", "validation"),
    "cache/code.json": ("garbage", ""),
}
HEAVY = {
    "holdout/holdout/*.parquet": ("cut", "data"),
    "tables/train/_delta_log/*0.json": ("cut", "data"),
    "artifacts/models/*/artifacts/model.skops": ("edited", "modelling"),
}


@pytest.mark.parametrize("files", [LIGHT, HEAVY], ids=["light", "heavy"])
def test_damaged_files_are_named_and_made_again(project, files):
    workspace, before = project / ".mlcycle", mc.open("last", project)
    expected = contents(before)
    for pattern, (how, stage) in files.items():
        (path,) = workspace.glob(pattern)
        good = path.read_bytes()
        damage(path, how)
        assert not_fresh(project) == (STAGES[STAGES.index(stage) :] if stage else []), pattern
        if stage:
            said = cli("why", stage, cwd=project).stdout
            assert f"{path} has changed or is missing" in said.replace("\n", "")
        path.write_bytes(good)
        assert not_fresh(project) == []
    for pattern, (how, _) in files.items():
        damage(next(workspace.glob(pattern)), how)
    run(project)
    made = mc.open("last", project)
    assert made.verdict.scores == before.verdict.scores
    assert [line.fold_scores for line in made.candidate.leaderboard] == [
        line.fold_scores for line in before.candidate.leaderboard
    ]
    assert made.release.released
    if files is LIGHT:
        assert computed(made) == ["problem", "data", "features", "validation", "deployment"]
        assert contents(made) == expected
    assert not_fresh(project) == []
    holdout = stored_rows(made, "holdout")
    assert len(made.predict(holdout)) == len(holdout)


def test_an_altered_outcome_of_a_run_is_never_shown_as_done(project):
    made = mc.open("last", project)
    damage(made.folder / "validation.json", "edited")
    assert "Nothing to do" not in run(project).stdout
    again = mc.open("last", project)
    assert again.id != made.id
    assert computed(again) == []
    assert again.verdict.approved


def test_a_damaged_run_is_passed_over_by_name(project):
    made = mc.open("last", project)
    other = made.folder.with_name("20200101-000000-aaaa")
    shutil.copytree(made.folder, other)
    damage(other / "run.json", "cut")
    for words in (["run", "-q"], ["runs"], ["report"]):
        done = cli(*words, cwd=project)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"{other / 'run.json'} cannot be read") == 1
        assert "Traceback" not in done.stderr
    assert mc.open("last", project).id == made.id


def test_two_processes_that_want_the_same_compute_it_once(new_toy):
    slow = "__import__('time').sleep(2)"
    for stage in ("problem", "data"):
        add_cell(new_toy, stage, slow)
    both = [start(new_toy, uuid4().hex, "--until", "modelling") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    runs = list_runs(Workspace(new_toy))
    assert len(runs) == 2
    done = sorted(stage for made in runs for stage in computed(made))
    assert done == sorted(["problem", "data", "features", "modelling"])
    assert contents(runs[0]) == contents(runs[1])
    waited = [text for text in said if "is being computed by run" in text]
    assert waited
    assert any(f"run {made.id} (process {made.info['process']})" in text for made in runs for text in waited)


@contextmanager
def disk(folder: Path):
    "A disk of its own for a folder, and how to set its size; where that needs rights, None."
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def check_full(project: Path, done: subprocess.CompletedProcess, before: dict[str, bytes]) -> None:
    "A run that met a full disk says so, and leaves the workspace as it was."
    assert done.returncode == 1, done.stderr
    assert f"The disk that holds {project / '.mlcycle'} is full." in done.stderr
    assert "Traceback" not in done.stderr
    whole(project)
    hidden = {name for name in listing(project) if re.search(r"/\.(?!mlcycle)|\.broken-", name)}
    assert hidden <= before.keys(), "nothing is left under a temporary name"
    assert cli("status", cwd=project).returncode == 0
    runs = {name: text for name, text in before.items() if name.startswith((".mlcycle/runs", "reports/2"))}
    assert {name: text for name, text in listing(project).items() if name.startswith((".mlcycle/runs", "reports/2"))} == runs


def test_a_full_disk_is_said_and_leaves_no_part_of_a_run(finished_toy, tmp_path):
    with disk(tmp_path / "disk") as resize:
        project = tmp_path / "disk" / "new"
        if resize is None:  # No rights: files may not grow instead, which fails in the same places
            toy_project(project)
            for size in (1_000, 5_000, 30_000):
                before = listing(project)
                check_full(project, limited(project, size), before)
        else:
            resize("80k")
            toy_project(project)
            for size in ("100k", "170k", "260k", "420k"):  # Full in the first stage, in later ones, at the pages
                resize(size)
                before = listing(project)
                check_full(project, cli("run", "-q", cwd=project), before)
            resize("20m")
        run(project)
        assert contents(mc.open("last", project)) == contents(mc.open("last", finished_toy))


def limited(project: Path, size: int) -> subprocess.CompletedProcess:
    "A run whose files may not grow beyond a size."
    command = [str(Path(sys.executable).with_name("mlcycle")), "run", "-q"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    return subprocess.run(command, cwd=project, capture_output=True, text=True, preexec_fn=limit)


def test_files_that_may_not_grow_are_like_a_full_disk(project):
    before = listing(project)
    (project / "settings.ini").write_text(SETTINGS.replace("folds = 2", "folds = 3"))
    size = (project / ".mlcycle" / "mlflow.db").stat().st_size
    check_full(project, limited(project, size), before)
    run(project)

"""Batches: many sets of parameters side by side; what goes wrong in one is no matter for the others."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from commands import cli
from conftest import TABLES, WORDS
from dask_clusters import worker_processes
from projects import add_cell, own_notebooks, processes_in

import mlcycle as mc
from mlcycle.core.parent_watch import PARENT_VARIABLE
from mlcycle.core.runs import Run, list_runs
from mlcycle.core.workspace import Workspace
from mlcycle.errors import ParameterError
from mlcycle.lifecycle.batch import run_batch
from mlcycle.lifecycle.choice import StageChoice
from mlcycle.lifecycle.parameter_sets import plan_batch, read_parameter_sets
from mlcycle.stores.models.registry import get_alias_version, open_experiment


def cancer(project: Path) -> Path:
    "A project with a small table."
    project.mkdir(exist_ok=True)
    TABLES["cancer"][0]().iloc[:200].to_csv(project / "cancer.csv", index=False)
    (project / "settings.ini").write_text("[problem]\nsource = cancer.csv\ntarget = target\n")
    return project


def results(project: Path) -> list[dict]:
    "The table that the newest batch left."
    newest = max(project.glob("reports/batches/*/results.parquet"), key=lambda path: path.stat().st_mtime_ns)
    return pyarrow.parquet.read_table(newest).to_pylist()


def runs_of(project: Path) -> list[Run]:
    "Oldest first."
    return list_runs(Workspace.from_project(project))[::-1]


def entries(project: Path) -> set[str]:
    "What the cache holds."
    return {str(path.relative_to(project)) for path in project.glob(".mlcycle/cache/*/*/")}


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    "A project in which four sets of a grid were run."
    project = cancer(tmp_path_factory.mktemp("grid"))
    grid = ["-g", "seed=1,2", "-g", "metric=roc_auc,f1"]
    done = cli("batch", *grid, "--until", "data", "--jobs", "2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs succeeded." in done.stdout
    assert "4 of 4: set" in done.stdout, "where there is no terminal, each run says when it is over"
    return project


def test_each_set_of_a_grid_is_a_run(grid):
    rows = results(grid)
    assert [(row["seed"], row["metric"]) for row in rows] == [(1, "roc_auc"), (1, "f1"), (2, "roc_auc"), (2, "f1")]
    assert len({row["run"] for row in rows}) == 4
    assert {(row["status"], row["error"]) for row in rows} == {("done", "")}
    for row in rows:
        run = mc.open(row["run"], grid)
        assert run.problem.metric == row["metric"]
        assert run.info["parameters"]["data"] == {"seed": row["seed"]}
        assert row["decision"] == run.dataset.decision


def test_what_runs_share_is_computed_once(grid):
    runs = runs_of(grid)
    assert len(list(grid.glob(".mlcycle/cache/problem/*/"))) == 2, "one for each metric, whatever the seed"
    assert len(list(grid.glob(".mlcycle/cache/data/*/"))) == 4
    for metric in ("roc_auc", "f1"):
        same = [run for run in runs if run.problem.metric == metric]
        reused = [run.info["stages"]["problem"].get("reused", "") for run in same]
        computed = next(run.id for run, other in zip(same, reused, strict=True) if not other)
        assert sorted(reused) == ["", computed]
        assert len({(run.folder / "problem.json").read_text() for run in same}) == 1


def test_the_same_batch_again_computes_nothing(grid):
    before, kept = results(grid), entries(grid)
    done = cli("batch", "-g", "seed=1,2", "-g", "metric=roc_auc,f1", "--until", "data", cwd=grid)
    assert done.returncode == 0, done.stderr
    assert [row["run"] for row in results(grid)] == [row["run"] for row in before]
    assert (len(runs_of(grid)), entries(grid)) == (4, kept)


@pytest.mark.browser
def test_the_comparison_page(grid, open_page):
    page = open_page((max(grid.glob("reports/batches/*/")) / "index.html").as_uri())
    assert page.locator("h1").inner_text().startswith("Batch ")
    text = page.locator("main").inner_text()
    for run in runs_of(grid):
        assert run.id in text
    page.get_by_role("link", name=runs_of(grid)[0].id).first.click()
    assert page.locator(".above").inner_text() == "Summary of the run"


def test_a_file_of_sets(grid, monkeypatch):
    "In CSV an empty cell says nothing; in YAML a stage may be named. What the grid has computed is there."
    (grid / "sets.csv").write_text("seed,metric\n1,f1\n2,\n")
    done = cli("batch", "sets.csv", "-p", "metric=roc_auc", "--until", "data", cwd=grid)
    assert done.returncode == 0, done.stderr
    assert [(row["seed"], row["metric"]) for row in results(grid)] == [(1, "f1"), (2, "roc_auc")]
    (grid / "sets.yaml").write_text("- {seed: 1, metric: f1}\n- problem: {metric: f1}\n  seed: 2\n")
    monkeypatch.chdir(grid)
    sets = read_parameter_sets(Path("sets.yaml"))
    result = run_batch(plan_batch(sets, {}, grid), sets, StageChoice(until="data"))
    assert [run.problem.metric for run in result.runs] == ["f1", "f1"]
    assert [(row["seed"], row["metric"], row["problem.metric"]) for row in results(grid)] == [(1, "f1", "f1"), (2, "f1", "f1")]
    assert len(runs_of(grid)) == 4


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("sets.csv", "seed,metric\n1,f1\n2,f1,3\n", "Line 3"),
        ("sets.csv", "seed\n", "no sets"),
        ("sets.yaml", "seed: 1\n", "no sets"),
        ("sets.yaml", "- seed: 1\n- seed: [\n", "Line 3 of sets.yaml is not YAML"),
        ("sets.yaml", "- seed: 1\n- seed: 2\n  seed: 3\n", "Line 3 of sets.yaml has the field '[2].seed' a second time"),
        ("sets.yaml", "- {seed: 1}\n- {seed: 2}\n- {sead: 3}\n", "Set 3 of 3: The parameter 'sead' (set 3) is not known."),
        ("sets.yaml", "- {seed: 1}\n- {seed: two}\n", "Set 2 of 2: The parameter 'seed' cannot be 'two'."),
    ],
)
def test_a_wrong_file_is_found_before_anything_runs(name, text, said, tmp_path):
    cancer(tmp_path)
    (tmp_path / name).write_text(text)
    done = cli("batch", name, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cancer.csv", "settings.ini", name])


STRANGE = """
import json, os, signal
from mlcycle.errors import InputError
if number == 2:
    raise RuntimeError("the moon is full")
if number == 3:
    os.kill(json.load(open(f"{run_dir}/run.json"))["process"], signal.SIGKILL)
"""


def test_a_set_that_fails_does_not_stop_the_others(new_toy):
    "A wrong input, an error in a cell, a process that is killed as the system does when memory runs out."
    add_cell(new_toy, "problem", "from mlcycle.errors import InputError\nif number == 9: raise InputError('nine does not fit')")
    add_cell(new_toy, "data", STRANGE)
    grid = ["-g", "problem.number=9,1", "-g", "data.number=1,2,3,4"]
    done = cli("batch", *grid, "--until", "data", "--jobs", "2", cwd=new_toy)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "2 of 8 runs succeeded." in done.stdout
    rows = results(new_toy)
    for row in rows[:4]:
        assert (row["run"], row["status"]) == ("", "failed"), "a wrong input leaves no run"
        assert "nine does not fit" in row["error"]
        assert row["error"] in done.stdout
    assert [row["status"] for row in rows[4:]] == ["done", "failed", "running", "done"]
    assert "the moon is full" in rows[5]["error"]
    assert "SIGKILL" in rows[6]["error"]
    assert "killed" in cli("runs", cwd=new_toy).stdout
    page = new_toy / "reports" / rows[5]["run"] / "02_data.html"
    assert "the moon is full" in page.read_text()
    assert "the moon is full" in max(new_toy.glob("reports/batches/*/index.html")).read_text()
    assert processes_in(new_toy) == [], "the notebook of a killed run ends too"


def start(project: Path, *words: str) -> subprocess.Popen:
    "A batch in a process of its own, once each of its two runs has begun to wait in stage 2."
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell has its children ignore it
    command = [Path(sys.executable).with_name("mlcycle"), "batch", *words, "--until", "data", "--jobs", "2"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    deadline = time.monotonic() + 120
    while not all((project / f"here-{number}").exists() for number in (1, 2)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"The batch does not wait: {process.communicate()}")
        time.sleep(0.1)
    return process


WAIT = """
import os, time
if number in (1, 2) and not os.path.exists("go"):
    open(f"here-{number}", "w").close()
    time.sleep(300)
"""


def ends_with_the_batch(project: Path) -> bool:
    "Whether nothing runs in a project any more; the workers of a cluster notice within seconds that they have lost it."
    deadline = time.monotonic() + 20
    while processes_in(project) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes_in(project) == []


@pytest.mark.parametrize(("how", "executor"), [(signal.SIGINT, "local"), (signal.SIGKILL, "local"), (signal.SIGKILL, "dask")])
def test_a_batch_that_was_ended_goes_on_where_it_was(how, executor, new_toy):
    add_cell(new_toy, "data", WAIT)
    with open(new_toy / "settings.ini", "a") as settings:
        settings.write(f"[hooks]\non_failure = touch told\n[execution]\nexecutor = {executor}\n")
    grid = ["-g", "data.number=3,1,2"]
    process = start(new_toy, *grid)
    process.send_signal(how)
    printed, complaints = process.communicate(timeout=60)
    assert ends_with_the_batch(new_toy) if executor == "dask" else processes_in(new_toy) == []
    before = {run.id: run.info for run in runs_of(new_toy)}
    first = next(run for run, info in before.items() if info["parameters"]["data"] == {"number": 3})
    assert before[first]["status"] == "done"
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Interrupted." in complaints
        assert "Traceback" not in printed + complaints
        assert {info["status"] for run, info in before.items() if run != first} == {"interrupted"}
        assert not (new_toy / "told").exists(), "who interrupts need not be told"
    (new_toy / "go").touch()
    done = cli("batch", *grid, "--until", "data", cwd=new_toy)
    assert done.returncode == 0, done.stderr
    rows = results(new_toy)
    assert [row["status"] for row in rows] == ["done"] * 3
    assert rows[0]["run"] == first, "what was done is not done again"
    for row in rows[1:]:
        assert mc.open(row["run"], new_toy).info["stages"]["problem"]["reused"] in before


def test_runs_on_a_cluster_survive_its_workers(new_toy, dask_cluster):
    "A plan is executed again by another worker, from the cache; a run that fails is the error of its set."
    add_cell(new_toy, "data", WAIT + STRANGE)
    with open(new_toy / "settings.ini", "a") as settings:
        settings.write(f"[execution]\nexecutor = dask\nscheduler = {dask_cluster.address}\n")
    process = start(new_toy, "-g", "data.number=1,2,3,4")
    for worker in worker_processes(dask_cluster):
        worker.kill()
    (new_toy / "go").touch()
    printed, complaints = process.communicate(timeout=200)
    assert "2 of 4 runs succeeded." in printed, printed + complaints
    assert [row["status"] for row in results(new_toy)] == ["done", "failed", "running", "done"]
    assert "the moon is full" in results(new_toy)[1]["error"] and "SIGKILL" in results(new_toy)[2]["error"]
    killed = [run.id for run in runs_of(new_toy)][:2]
    assert mc.open(results(new_toy)[0]["run"], new_toy).info["stages"]["problem"]["reused"] in killed
    assert not list((new_toy / ".mlcycle").glob("batch-*"))


def test_a_plan_that_is_sent_twice_is_one_run(new_toy):
    "As after a lost connection, while the first process goes on."
    [plan] = plan_batch([{"data.number": "1"}], {}, new_toy)
    code = "from mlcycle.lifecycle.batch_on_cluster import execute_sent_plan; execute_sent_plan()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=new_toy,
            start_new_session=True,
            env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
        )
        for _ in range(2)
    ]
    for process in processes:
        pickle.dump((plan, StageChoice(until="data"), "twice"), process.stdin)
        process.stdin.close()
    ends = [json.loads(process.stdout.read().splitlines()[-1]) for process in processes]
    assert all(process.wait(60) == 0 for process in processes)
    [run] = runs_of(new_toy)
    assert ends == [["result", str(run.folder), ""]] * 2


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Path:
    "A project in which two sets came to a verdict."
    project = cancer(tmp_path_factory.mktemp("judged"))
    done = cli("batch", "-g", "seed=1,2", *WORDS, "--until", "validation", cwd=project)
    assert done.returncode == 0, done.stderr
    return project


def test_the_table_says_what_the_verdicts_say(judged):
    rows = results(judged)
    assert [row["seed"] for row in rows] == [1, 2]
    for row in rows:
        run = mc.open(row["run"], judged)
        assert (row["decision"], row["approved"]) == (run.verdict.decision, run.verdict.approved)
        for score in run.verdict.scores:
            assert [row[score.metric + end] for end in ("", "_low", "_high")] == [score.value, score.low, score.high]
        seconds = [stage["seconds"] for stage in run.info["stages"].values() if not stage.get("reused")]
        assert row["seconds"] == pytest.approx(sum(seconds))


def test_a_batch_makes_no_champion_unless_told(judged):
    model = runs_of(judged)[0].candidate.model
    workspace = Workspace.from_project(judged)
    open_experiment(workspace.tracking_uri, workspace.artifacts, model.name)
    assert get_alias_version(model.name) is None
    assert {run.verdict.current_champion for run in runs_of(judged)} == {None}
    kept = {entry for entry in entries(judged) if "/validation/" not in entry}
    done = cli("batch", "-g", "seed=1", "-p", "promote=true", *WORDS, "--until", "validation", cwd=judged)
    assert done.returncode == 0, done.stderr
    run = mc.open(results(judged)[0]["run"], judged)
    assert run.verdict.approved
    assert get_alias_version(model.name) == run.candidate.model.version == run.verdict.current_champion
    assert {entry for entry in entries(judged) if "/validation/" not in entry} == kept, "only the verdict was new"


def test_a_project_may_have_other_parameters(tmp_path):
    "What a batch says by itself is said only where somebody listens; what a file says counts."
    own_notebooks(cancer(tmp_path), "data", "pass")
    path = tmp_path / "nbs" / "05_validation.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["source"] = [line for line in cell["source"] if not line.startswith("promote: bool")]
    path.write_text(json.dumps(notebook))
    [plan] = plan_batch([{"seed": "1"}], {}, tmp_path)
    assert "promote" not in plan.parameters["validation"]
    assert plan.parameters["modelling"]["jobs"] == 1
    (tmp_path / "more.yaml").write_text("jobs: 3\n")
    [plan] = plan_batch([{"seed": "1"}], {}, tmp_path, tmp_path / "more.yaml")
    assert plan.parameters["modelling"]["jobs"] == 3


def test_a_batch_needs_sets_and_processes(tmp_path):
    cancer(tmp_path)
    assert cli("batch", cwd=tmp_path).returncode == 2
    with pytest.raises(ParameterError, match="-1 runs at a time"):
        run_batch(plan_batch([{}], {}, tmp_path), [{}], jobs=-1)

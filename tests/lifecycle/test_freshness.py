"""What is fresh and what is stale, and what a run survives: kills, altered files, neighbours, a full disk."""

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
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, cli, stored_rows
from filelock import FileLock

import mlcycle as mc
from mlcycle.core.runs import list_runs
from mlcycle.core.workspace import Workspace
from mlcycle.outcomes import STAGES

SETTINGS = """
[problem]
source = orders.csv
target = late
time = placed
probe_seconds = 0
[features]
select = off
table_rows = 0
[modelling]
models = linear
trials = 1
folds = 2
curve = false
jobs = 1
[validation]
resamples = 50
[deployment]
parity_rows = 10
[monitoring]
replay_rows = 30
windows = 2
latency_budget_ms = 60000
"""


def orders(rows: int = 240) -> pd.DataFrame:
    "A small table, ordered in time, whose answer can be learnt."
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=rows).strftime("%Y-%m-%d")
    frame = pd.DataFrame({"placed": days, "price": rng.random(rows).round(3), "town": rng.choice(["Ulm", "Bonn"], rows)})
    return frame.assign(late=np.where(frame.price + rng.normal(0, 0.2, rows) > 0.6, "yes", "no"))


def make_project(folder: Path) -> Path:
    "A project with notebooks of its own and a table."
    assert cli("init", folder, cwd=folder.parent).returncode == 0
    (folder / "settings.ini").write_text(SETTINGS)
    orders().to_csv(folder / "orders.csv", index=False)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    "Replace a text that occurs once."
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new))


def add_cell(project: Path, stage: str, code: str) -> None:
    "Put a cell after the parameters of a project's own notebook; in place of one that was put there before."
    path = next((project / "nbs").glob(f"0*_{stage}.ipynb"))
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell.get("id") != "added"]
    place = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    cell = {"cell_type": "code", "id": "added", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook | {"cells": [*cells[: place + 1], *([cell] if code else []), *cells[place + 1 :]]}))


def states(project: Path, *words: str, **environment: str) -> dict[str, str]:
    "What `mlcycle status` says of each stage."
    done = cli("status", *words, cwd=project, **environment)
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in done.stdout.splitlines() if line.startswith("│")]
    return {stage: state for stage, state in cells if stage in STAGES}


def not_fresh(project: Path, *words: str, **environment: str) -> list[str]:
    "The stages that are not fresh."
    return [stage for stage, state in states(project, *words, **environment).items() if state != "fresh"]


def run(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    "A run that succeeds."
    done = cli("run", "-q", *words, cwd=project, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def computed(made: mc.Run) -> list[str]:
    "The stages that a run has not taken from the cache."
    return [stage for stage, facts in made.info["stages"].items() if "reused" not in facts]


def meanings(made: mc.Run) -> dict[str, dict]:
    "What a run decided, without what was only measured and names drawn at random."
    found = {stage: made.outcome(stage).content() for stage in made.info["stages"]}
    found.get("deployment", {"files": {}})["files"].pop("bundle.json", None)  # It names MLflow's run
    return found


def listing(folder: Path) -> dict[str, bytes]:
    "Every file below a folder."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def survivors(mark: str) -> list[int]:
    "Processes that have inherited a mark."
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # It has just ended
            continue
    return found


@pytest.fixture(scope="session")
def base(tmp_path_factory, worker_id):
    "A project with one undisturbed run, shared by all tests and workers; to be copied, not changed."
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = shared / "orders"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            run(make_project(folder))
    return folder


@pytest.fixture
def project(base, tmp_path):
    "A copy of the project with its run."
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture
def new(base, tmp_path):
    "A copy of the project before its run."
    return Path(shutil.copytree(base, tmp_path / "new", ignore=shutil.ignore_patterns(".mlcycle", "reports")))


@pytest.fixture
def package(tmp_path):
    "A copy of the package that subprocesses import, so that it can be edited."
    for name in ("mlcycle", "nbs"):
        shutil.copytree(ROOT / name, tmp_path / "lib" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "lib"


# What is stale


def test_a_copied_project_is_fresh_and_stands_alone(project, base):
    before = listing(base)
    assert set(states(project).values()) == {"fresh"}
    run(project)
    made = mc.open("last", project)
    assert made.workspace.project == project
    holdout = stored_rows(made, "holdout")
    assert len(made.predict(holdout)) == len(holdout)
    run(project, "-p", "holdout_share=0.3", "--until", "validation")
    assert mc.open("last", project).candidate.model.version == 2
    assert listing(base) == before, "nothing is written where it was copied from"
    assert not [path for path in (project / ".mlcycle").rglob("*") if path.name == "mlruns"]


def test_finding_nothing_to_do_imports_nothing_heavy(project):
    code = (
        "import sys; from mlcycle.cli.base import app\n"
        "try: app(['run', '-q'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ['pandas', 'numpy', 'sklearn', 'nbformat', 'nbconvert', 'papermill', 'jinja2', 'mlflow', 'matplotlib']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert "Nothing to do" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(list_runs(Workspace(project))) == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "first"),
    [
        pytest.param("features/kinds.py", "def infer_column_types(\n", "def infer_column_types(\n    *_,\n", "features", id="stage 3's"),
        pytest.param("features/kinds.py", "def infer_column_types(\n", "# A remark\ndef infer_column_types(\n", "", id="a comment"),
        pytest.param("validation/gates.py", "def decide_gates(\n", "def decide_gates(\n    *_,\n", "validation", id="stage 5's"),
        pytest.param(
            "metrics.py", "def bootstrap_difference(\n", "def bootstrap_difference(\n    *_,\n", "validation", id="metric"
        ),
        pytest.param("stores/files.py", "def read_file(\n", "def read_file(\n    *_,\n", "problem", id="reading rows"),
        pytest.param("lifecycle/report.py", "def write_page(\n", "def write_page(\n    *_,\n", "", id="pages are no outcome"),
    ],
)
def test_an_edited_function_makes_stale_what_uses_it_and_what_follows(project, package, file, old, new, first):
    imported = {"PYTHONPATH": str(package)}
    assert not_fresh(project, **imported) == []
    edit(package / "mlcycle" / file, old, new)
    assert not_fresh(project, **imported) == (STAGES[STAGES.index(first) :] if first else [])
    if first:
        name = f"code mlcycle.{file[:-3].replace('/', '.')}.{old[4:-2]}"
        assert name in cli("why", first, cwd=project, **imported).stdout


def test_an_edited_docstring_makes_nothing_stale(project, package):
    path = package / "mlcycle" / "features" / "kinds.py"
    first = next(line for line in path.read_text().splitlines() if line.startswith('    "'))
    edit(path, first, '    "Another sentence."')
    assert not_fresh(project, PYTHONPATH=str(package)) == []


def test_an_edited_function_runs_its_stage_and_no_other_if_it_decides_the_same(project, package):
    "Early cutoff: what follows has nothing new to learn."
    edit(package / "mlcycle" / "features" / "kinds.py", "if distinct < 2:", "if distinct <= 1:")
    assert not_fresh(project, PYTHONPATH=str(package)) == STAGES[2:]
    run(project, PYTHONPATH=str(package))
    made = mc.open("last", project)
    assert computed(made) == ["features"]
    assert meanings(made) == meanings(list_runs(made.workspace)[-1])
    assert not_fresh(project, PYTHONPATH=str(package)) == []


def test_edited_prose_is_shown_and_runs_nothing(project):
    edit(project / "nbs" / "02_data.ipynb", "Every row that came in is in exactly one part:", "No row is lost on the way.")
    assert not_fresh(project) == []
    done = run(project)
    assert "Nothing to do" in done.stdout
    assert "renewed the page of data" in done.stderr
    (made,) = list_runs(Workspace(project))
    page = (project / "reports" / made.id / "02_data.html").read_text()
    assert "No row is lost on the way." in page
    assert "data:image/png" in page, "outputs stay"
    assert "renewed" not in run(project).stderr
    (project / "reports" / made.id / "05_validation.html").unlink()
    run(project)
    assert (project / "reports" / made.id / "05_validation.html").is_file()


def test_an_edited_plot_runs_its_stage_and_trains_nothing(project):
    edit(project / "nbs" / "05_validation.ipynb", "Training, validation, holdout", "Three kinds of rows")
    assert not_fresh(project) == STAGES[4:]
    run(project)
    made = mc.open("last", project)
    assert computed(made) == ["validation"]
    assert not_fresh(project) == []


def test_a_changed_file_is_noticed_though_size_and_time_are_the_same(project):
    path = project / "orders.csv"
    before = path.stat()
    edit(path, "2024-02-01,", "2024-02-02,")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not_fresh(project) == STAGES
    assert "file orders.csv" in cli("why", "problem", cwd=project).stdout


def test_a_newer_library_makes_stale_what_uses_it(project, tmp_path):
    about = tmp_path / "optuna-99.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 99.0\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    assert not_fresh(project, PYTHONPATH=path) == STAGES[3:]
    said = cli("why", "modelling", cwd=project, PYTHONPATH=path).stdout
    assert "library optuna" in said
    assert "99.0" in said


def test_why_names_old_and_new_value(project):
    assert not_fresh(project, "-p", "resamples=60") == STAGES[4:]
    said = cli("why", "validation", "-p", "resamples=60", cwd=project).stdout
    assert "parameter resamples 50 → 60" in said
    assert ["parameter resamples", "50", "60"] in [[c.strip() for c in line.split("│")[1:4]] for line in said.splitlines()]
    assert "nothing has changed" in cli("why", "data", cwd=project).stdout
    assert "follows validation" in cli("why", "monitoring", "-p", "resamples=60", cwd=project).stdout


def test_modules_of_the_project_count(new):
    (new / "helpers.py").write_text("def f():\n    return 1\n\n\ndef g():\n    return 2\n")
    add_cell(new, "data", "import helpers\nhelpers.f()")
    run(new, "--until", "data")
    assert not_fresh(new) == STAGES[2:]
    edit(new / "helpers.py", "return 2", "return 3")
    assert not_fresh(new) == STAGES[2:]
    edit(new / "helpers.py", "return 1", "return 4")
    assert not_fresh(new) == STAGES[1:]
    assert "code helpers.f" in cli("why", "data", cwd=new).stdout


def test_what_changes_while_a_stage_runs_is_not_kept(new):
    (new / "helpers.py").write_text("def f():\n    return 1\n")
    add_cell(new, "data", "import helpers\nhelpers.f()\nopen('helpers.py', 'w').write('def f():\\n    return 2\\n')")
    assert "data will run again next time" in run(new, "--until", "data").stderr
    assert states(new)["problem"] == "fresh"
    assert states(new)["data"] != "fresh"
    run(new, "--until", "data")
    assert states(new)["data"] == "fresh"


# Which stages


def test_force_from_until_only(project):
    run(project, "--force", "problem", "--until", "data")
    assert computed(mc.open("last", project)) == ["problem"]
    run(project, "--from", "monitoring")
    assert computed(mc.open("last", project)) == ["monitoring"]
    run(project, "--only", "data")
    made = mc.open("last", project)
    assert computed(made) == ["data"]
    assert list(made.info["stages"]) == ["problem", "data"]
    done = cli("run", "--only", "validation", "-p", "data.seed=1", "-p", "holdout_share=0.3", cwd=project)
    assert done.returncode == 2
    assert "cannot run alone: data is stale" in done.stderr
    assert not_fresh(project) == []


def test_a_dry_run_leaves_nothing_behind(new, project):
    for folder in (new, project):
        before = listing(folder)
        done = cli("run", "--dry-run", "--force", "validation", cwd=folder)
        assert done.returncode == 0
        assert "validation" in done.stdout
        assert listing(folder) == before
    assert not (new / ".mlcycle").exists()


def test_a_repaired_notebook_goes_on_where_it_failed(new):
    add_cell(new, "features", "1 / 0")
    assert cli("run", "-q", "--until", "features", cwd=new).returncode == 1
    assert mc.open("last", new).about["status"] == "failed"
    assert list(states(new).values())[:3] == ["fresh", "fresh", "missing"]
    add_cell(new, "features", "")
    run(new, "--until", "features")
    made = mc.open("last", new)
    assert computed(made) == ["features"]
    assert len(list_runs(made.workspace)) == 2


def test_an_interrupted_run_goes_on_under_its_name(new):
    once = "import time, os\nif not os.path.exists('here'):\n    open('here', 'w').close()\n    time.sleep(300)"
    add_cell(new, "features", once)
    command = [Path(sys.executable).with_name("mlcycle"), "run", "-q", "--until", "features"]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell has its children ignore it
    with subprocess.Popen(command, cwd=new, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (new / "here").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    before = mc.open("last", new)
    assert (before.info["status"], list(before.info["keys"])) == ("interrupted", ["problem", "data"])
    run(new, "--until", "features")
    made = mc.open("last", new)
    assert (made.id, made.info["status"], computed(made)) == (before.id, "done", ["features"])


# What a run survives


def start(project: Path, mark: str, *words: str, **environment: str) -> subprocess.Popen:
    "A run in a session of its own, whose processes inherit a mark."
    command = [str(Path(sys.executable).with_name("mlcycle")), "run", "-q", *words]
    marked = os.environ | {"TEST_MARK": mark, **environment}
    return subprocess.Popen(
        command, cwd=project, env=marked, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_end(mark: str, seconds: float = 3) -> list[int]:
    "The processes that are still there after a while."
    until = time.monotonic() + seconds
    while (left := survivors(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def whole(project: Path) -> None:
    "Every JSON file of outcomes, facts and cache can be read, but for those under a temporary name."
    for path in [*(project / ".mlcycle").rglob("*.json"), *(project / "reports").rglob("*.json")]:
        parts = path.relative_to(project).parts[1:]
        if not any(part.startswith(".") or part == "_delta_log" for part in parts):
            json.loads(path.read_text())


def wait_at_random(process: subprocess.Popen, project: Path, rng: random.Random) -> None:
    "Let a run go on for a while: from its start, or from the moment when it has finished one more stage."
    finished = lambda: len(list((project / ".mlcycle" / "cache").glob("*/[!.]*/entry.json")))  # noqa: E731
    before = finished()
    if rng.random() < 0.6:
        while process.poll() is None and finished() == before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 3))
    else:
        time.sleep(rng.uniform(0.3, 6))


def test_twenty_kills_at_random_moments_change_nothing(base, tmp_path):
    rng, expected = random.Random(7), meanings(mc.open("last", base))
    kills, rounds, left = 0, 0, []
    while kills < 20:
        rounds += 1
        project = tmp_path / f"round-{rounds}"
        shutil.copytree(base, project, ignore=shutil.ignore_patterns(".mlcycle", "reports"))
        done = False
        while not done:
            mark = uuid4().hex
            with start(project, mark) as process:
                if kills < 20:
                    wait_at_random(process, project, rng)
                    process.send_signal(signal.SIGKILL)  # Does nothing to one that has just ended
                said = process.communicate(timeout=120)[1]
            done = process.returncode == 0
            kills += not done
            assert process.returncode in (0, -signal.SIGKILL), said
            assert wait_for_end(mark) == [], "kernels and services end with the run"
            whole(project)
            left += [len(made.info["keys"]) for made in list_runs(Workspace(project)) if made.info["status"] == "running"]
        made = mc.open("last", project)
        assert meanings(made) == expected
        assert not_fresh(project) == []
        assert [each.info["status"] for each in list_runs(made.workspace)] == ["done"], "a killed run is taken up again"
    assert len(set(left)) > 2, f"stages that were done when a kill came: {left}"


AT_A_RENAME = """
import os, signal, sys
if os.path.basename(sys.argv[0]) == "mlcycle" and "KILL_AT" in os.environ:
    left, when, before = int(os.environ["KILL_AT"]), os.environ["KILL_WHEN"], {"rename": os.rename, "replace": os.replace}

    def patched(name):
        def rename(*arguments, **options):
            global left
            left -= 1
            if not left and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            before[name](*arguments, **options)
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return rename

    os.rename, os.replace = patched("rename"), patched("replace")
"""


def test_kills_while_something_is_written_change_nothing(base, new, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_A_RENAME)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    kills = 0
    for number in range(2, 200, 7):
        mark = uuid4().hex
        with start(new, mark, PYTHONPATH=path, KILL_AT=str(number), KILL_WHEN=("before", "after")[number % 2]) as process:
            said = process.communicate(timeout=120)[1]
        assert process.returncode in (0, -signal.SIGKILL), said
        whole(new)
        if not process.returncode:
            break
        kills += 1
        assert wait_for_end(mark) == []
        assert cli("runs", cwd=new).returncode == cli("status", cwd=new).returncode == 0
    assert kills > 5
    run(new)
    assert meanings(mc.open("last", new)) == meanings(mc.open("last", base))
    assert "Nothing to do" in run(new).stdout


def test_a_torn_outcome_is_not_taken_for_one(new):
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
    add_cell(new, "features", torn)
    mark = uuid4().hex
    with start(new, mark, "--until", "features") as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert wait_for_end(mark) == []
    (before,) = list_runs(Workspace(new))
    assert before.info["status"] == "running"
    assert "killed" in cli("runs", cwd=new).stdout
    run(new, "--until", "features")
    (made,) = list_runs(Workspace(new))
    assert (made.id, made.info["status"]) == (before.id, "done")
    assert made.plan.input_columns


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
    expected = meanings(before)
    for pattern, (how, stage) in files.items():
        (path,) = workspace.glob(pattern)
        good = path.read_bytes()
        damage(path, how)
        assert not_fresh(project) == (STAGES[STAGES.index(stage) :] if stage else []), pattern
        if stage:
            said = cli("why", stage, cwd=project).stdout
            assert f"{path} is not what it was" in said.replace("\n", "")
        path.write_bytes(good)
        assert not_fresh(project) == []
    for pattern, (how, _) in files.items():
        damage(next(workspace.glob(pattern)), how)
    run(project)
    made = mc.open("last", project)
    assert made.verdict.scores == before.verdict.scores
    assert [line.folds for line in made.candidate.leaderboard] == [line.folds for line in before.candidate.leaderboard]
    assert made.release.released
    if files is LIGHT:
        assert computed(made) == ["problem", "data", "features", "validation", "deployment"]
        assert meanings(made) == expected
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


def test_two_processes_that_want_the_same_compute_it_once(new):
    slow = "__import__('time').sleep(2)"
    for stage in ("problem", "data"):
        add_cell(new, stage, slow)
    both = [start(new, uuid4().hex, "--until", "modelling") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    runs = list_runs(Workspace(new))
    assert len(runs) == 2
    done = sorted(stage for made in runs for stage in computed(made))
    assert done == sorted(["problem", "data", "features", "modelling"])
    assert meanings(runs[0]) == meanings(runs[1])
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


def test_a_full_disk_is_said_and_leaves_no_part_of_a_run(base, tmp_path):
    with disk(tmp_path / "disk") as resize:
        project = tmp_path / "disk" / "new"
        if resize is None:  # No rights: files may not grow instead, which fails in the same places
            shutil.copytree(base, project, ignore=shutil.ignore_patterns(".mlcycle", "reports"))
            for size in (10_000, 60_000, 400_000):
                before = listing(project)
                check_full(project, limited(project, size), before)
        else:
            resize("400k")
            shutil.copytree(base, project, ignore=shutil.ignore_patterns(".mlcycle", "reports"))
            for size in ("480k", "900k", "1300k", "3m"):
                resize(size)
                before = listing(project)
                check_full(project, cli("run", "-q", cwd=project), before)
            resize("200m")
        run(project)
        made = mc.open("last", project)
        assert meanings(made) == meanings(mc.open("last", base))


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

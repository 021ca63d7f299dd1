"""What is fresh and what is stale, why, and which stages run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import cli
from conftest import stored_rows
from projects import add_cell, computed, contents, edit, listing, not_fresh, run, states

import mlcycle as mc
from mlcycle.core.runs import list_runs
from mlcycle.core.workspace import Workspace
from mlcycle.outcomes import STAGES

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
        "import sys; from mlcycle.cli.app import app\n"
        "try: app(['run', '-q'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ['pandas', 'numpy', 'sklearn', 'nbformat', 'nbconvert', 'papermill', 'jinja2', 'mlflow', 'matplotlib']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert "Nothing to do" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(list_runs(Workspace(project))) == 1


def test_stages_that_are_not_computed_have_parentheses_and_later_ones_are_left_out(project):
    first = run(project, "--until", "data").stdout
    assert re.findall(r"^ ?([a-z]+) +\([\d.]+\)", first, re.MULTILINE) == ["problem", "data"] and "features" not in first
    made = run(project, "-p", "holdout_share=0.35", "--until", "data").stdout
    assert re.search(r"^ ?problem +\([\d.]+\)", made, re.MULTILINE) and re.search(r"^ ?data +[\d.]+", made, re.MULTILINE)
    checks = cli("checks", "--run", "last", cwd=project)
    assert checks.returncode == 1 and "stage of the run is 'data'" in checks.stderr and "--until validation" in checks.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "first"),
    [
        pytest.param(
            "features/encode/encode.py",
            "def make_encoder_for_type(\n",
            "def make_encoder_for_type(\n    *_,\n",
            "features",
            id="stage 3's",
        ),
        pytest.param(
            "features/encode/encode.py",
            "def make_encoder_for_type(\n",
            "# A remark\ndef make_encoder_for_type(\n",
            "",
            id="a comment",
        ),
        pytest.param(
            "validation/gates.py", "def evaluate_gates(\n", "def evaluate_gates(\n    *_,\n", "validation", id="stage 5's"
        ),
        pytest.param(
            "ml/bootstrap.py",
            "def bootstrap_difference(\n",
            "def bootstrap_difference(\n    _: object,\n",
            "validation",
            id="metric",
        ),
        pytest.param("stores/sources/files.py", "def read_file(\n", "def read_file(\n    *_,\n", "problem", id="reading rows"),
        pytest.param("reports/pages.py", "def write_page(\n", "def write_page(\n    *_,\n", "", id="pages are no outcome"),
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
    path = package / "mlcycle" / "features" / "encode" / "encode.py"
    first = next(line for line in path.read_text().splitlines() if line.startswith('    "'))
    edit(path, first, '    "Another sentence."')
    assert not_fresh(project, PYTHONPATH=str(package)) == []


def test_an_edited_function_runs_its_stage_and_no_other_if_it_decides_the_same(project, package):
    "Early cutoff: what follows has nothing new to learn."
    edit(package / "mlcycle" / "features" / "encode" / "encode.py", "if self.fill_empty:", "if self.fill_empty is True:")
    assert not_fresh(project, PYTHONPATH=str(package)) == STAGES[2:]
    run(project, PYTHONPATH=str(package))
    made = mc.open("last", project)
    assert computed(made) == ["features"]
    assert contents(made) == contents(list_runs(made.workspace)[-1])
    assert not_fresh(project, PYTHONPATH=str(package)) == []


def test_edited_prose_is_shown_and_runs_nothing(project):
    edit(project / "nbs" / "02_data.ipynb", "Every row that came in is in exactly one part:", "No row is lost on the way.")
    assert not_fresh(project) == []
    done = run(project)
    assert "Nothing to do" in done.stdout
    assert "updated the page of data" in done.stderr
    (made,) = list_runs(Workspace(project))
    page = (project / "reports" / made.id / "02_data.html").read_text()
    assert "No row is lost on the way." in page
    assert "data:image/png" in page, "outputs stay"
    assert "renewed" not in run(project).stderr
    (project / "reports" / made.id / "05_validation.html").unlink()
    run(project)
    assert (project / "reports" / made.id / "05_validation.html").is_file()


def test_an_edited_plot_runs_its_stage_and_trains_nothing(project):
    edit(project / "nbs" / "05_validation.ipynb", "Training rows, cross-validation, holdout", "Three kinds of rows")
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
    assert not_fresh(project, "-p", "n_resamples=60") == STAGES[4:]
    printed = cli("why", "validation", "-p", "n_resamples=60", cwd=project).stdout
    assert "parameter n_resamples 50 → 60" in printed
    assert ["parameter", "n_resamples", "50", "60"] in [line.split() for line in printed.splitlines()]
    assert "nothing has changed" in cli("why", "data", cwd=project).stdout
    assert "validation must run first" in cli("why", "monitoring", "-p", "n_resamples=60", cwd=project).stdout


def test_modules_of_the_project_count(new_toy):
    (new_toy / "helpers.py").write_text("def f():\n    return 1\n\n\ndef g():\n    return 2\n")
    add_cell(new_toy, "data", "import helpers\nhelpers.f()")
    run(new_toy, "--until", "data")
    assert not_fresh(new_toy) == STAGES[2:]
    edit(new_toy / "helpers.py", "return 2", "return 3")
    assert not_fresh(new_toy) == STAGES[2:]
    edit(new_toy / "helpers.py", "return 1", "return 4")
    assert not_fresh(new_toy) == STAGES[1:]
    assert "code helpers.f" in cli("why", "data", cwd=new_toy).stdout


def test_what_changes_while_a_stage_runs_is_not_kept(new_toy):
    (new_toy / "helpers.py").write_text("def f():\n    return 1\n")
    add_cell(new_toy, "data", "import helpers\nhelpers.f()\nopen('helpers.py', 'w').write('def f():\\n    return 2\\n')")
    assert "data will run again next time" in run(new_toy, "--until", "data").stderr
    assert states(new_toy)["problem"] == "fresh"
    assert states(new_toy)["data"] != "fresh"
    run(new_toy, "--until", "data")
    assert states(new_toy)["data"] == "fresh"


# Which stages


def test_force_from_until_only(toy):
    run(toy, "--force", "problem", "--until", "data")
    assert computed(mc.open("last", toy)) == ["problem"]
    run(toy, "--from", "monitoring")
    assert computed(mc.open("last", toy)) == ["monitoring"]
    run(toy, "--only", "data")
    made = mc.open("last", toy)
    assert computed(made) == ["data"]
    assert list(made.info["stages"]) == ["problem", "data"]
    done = cli("run", "--only", "validation", "-p", "data.number=9", cwd=toy)
    assert done.returncode == 2
    assert "cannot run alone: data is stale" in done.stderr
    assert not_fresh(toy) == []


def test_a_dry_run_leaves_nothing_behind(new_toy, toy):
    for folder in (new_toy, toy):
        before = listing(folder)
        done = cli("run", "--dry-run", "--force", "validation", cwd=folder)
        assert done.returncode == 0
        assert "validation" in done.stdout
        assert listing(folder) == before
    assert not (new_toy / ".mlcycle").exists()


def test_a_repaired_notebook_goes_on_where_it_failed(new_toy):
    add_cell(new_toy, "features", "1 / 0")
    assert cli("run", "-q", "--until", "features", cwd=new_toy).returncode == 1
    assert mc.open("last", new_toy).info["status"] == "failed"
    assert list(states(new_toy).values())[:3] == ["fresh", "fresh", "missing"]
    add_cell(new_toy, "features", "")
    run(new_toy, "--until", "features")
    made = mc.open("last", new_toy)
    assert computed(made) == ["features"]
    assert len(list_runs(made.workspace)) == 2


def test_an_interrupted_run_goes_on_under_its_name(new_toy):
    once = "import time, os\nif not os.path.exists('here'):\n    open('here', 'w').close()\n    time.sleep(300)"
    add_cell(new_toy, "features", once)
    command = [Path(sys.executable).with_name("mlcycle"), "run", "-q", "--until", "features"]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell has its children ignore it
    with subprocess.Popen(command, cwd=new_toy, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (new_toy / "here").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    before = mc.open("last", new_toy)
    assert (before.info["status"], list(before.info["keys"])) == ("interrupted", ["problem", "data"])
    run(new_toy, "--until", "features")
    made = mc.open("last", new_toy)
    assert (made.id, made.info["status"], computed(made)) == (before.id, "done", ["features"])

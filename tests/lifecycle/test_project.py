"""A project of one's own: made whole or not at all, run from its notebooks, merged with what is shipped later."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from commands import cli
from conftest import ROOT

from mlcycle.core.settings import SECTION_DEFAULTS, read_settings
from mlcycle.errors import InputError, MlcycleError
from mlcycle.lifecycle import project as module
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.project import (
    NOTEBOOK_NAMES,
    describe_shipped_changes,
    diff_shipped_notebook_versions,
    init_project,
    merge_shipped_notebooks,
)
from mlcycle.nb.notebook import package_file, read_executable_part, read_parameters, stage_notebooks
from mlcycle.outcomes import STAGES


@pytest.fixture
def project(tmp_path):
    "A new project."
    init_project(tmp_path / "orders")
    return tmp_path / "orders"


@pytest.fixture
def newer(tmp_path):
    "A folder of shipped notebooks, as a later version might bring them."
    folder = tmp_path / "newer"
    folder.mkdir()
    for name in NOTEBOOK_NAMES.values():
        shutil.copy(package_file(name), folder)
    return folder


def read_notebook(path) -> nbformat.NotebookNode:
    "A notebook as Jupyter reads it."
    return nbformat.read(path, as_version=4)


def replace(path, old: str, new: str) -> None:
    "Change text in the last cell of a notebook that has it."
    notebook = read_notebook(path)
    cell = [cell for cell in notebook.cells if old in cell.source][-1]
    cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)


def sources(path) -> str:
    "All sources of a notebook."
    return "\n".join(cell.source for cell in read_notebook(path).cells)


def everything(folder) -> dict[str, bytes]:
    "Every file below a folder."
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_finds_the_projects_notebooks_and_settings(project):
    plan = make_plan_from_parameters({}, project)
    assert list(plan.notebooks.values()) == [project / "nbs" / name for name in NOTEBOOK_NAMES.values()]
    assert plan.parameters["problem"]["source"] == "flights"
    assert {path.name for path in project.iterdir()} == {"settings.ini", "README.md", ".gitignore", "nbs"}
    assert (project / "README.md").read_text().startswith("# orders\n")


def test_a_run_executes_an_edited_notebook(project):
    notebook = read_notebook(project / "nbs/01_problem.ipynb")
    notebook.cells.insert(-1, nbformat.v4.new_code_cell("print(6 * 7, 'is mine')"))
    nbformat.write(notebook, project / "nbs/01_problem.ipynb")
    done = cli("run", "-q", "--source", "sample", "--until", "problem", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    page = next((project / "reports").glob("*/01_problem.ipynb"))
    assert "42 is mine" in page.read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_a_copy_runs_what_is_shipped(project, stage):
    shipped, copy = package_file(NOTEBOOK_NAMES[stage]), stage_notebooks(project)[stage]
    assert read_parameters(copy) == read_parameters(shipped)
    assert read_executable_part(copy)["cells"] == read_executable_part(shipped)["cells"]
    text = sources(copy)
    assert f"`mlcycle.{stage}.stage`" in text
    assert "#| export" not in text
    assert copy.read_bytes() == (project / "nbs/.shipped" / copy.name).read_bytes()
    nbformat.validate(read_notebook(copy))


def test_every_suggested_setting_is_one(project):
    file = project / "settings.ini"
    before, _, _ = file.read_text().partition("[hooks]")
    file.write_text(re.sub(r"^# ?(?=[a-z_]+ =|    )", "", before, flags=re.MULTILINE))
    settings = read_settings(project)
    assert len(settings["problem"]) > 5
    parameters = make_plan_from_parameters({}, project).parameters
    assert parameters["problem"]["criteria"] == ["roc_auc >= 0.75", "beats baseline by 5 %"]
    assert parameters["problem"]["excluded"] == {"arrived": "known only after the delivery"}


def test_git_ignores_state_and_keeps_what_was_shipped(project):
    for name in (".mlcycle/mlflow.db", "reports/index.html"):
        (project / name).parent.mkdir()
        (project / name).touch()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    shown = ["git", "ls-files", "--others", "--exclude-standard"]
    seen = subprocess.run(shown, cwd=project, check=True, capture_output=True, text=True).stdout.split()
    assert len(seen) == 17
    assert "nbs/.shipped/01_problem.ipynb" in seen


@pytest.mark.parametrize(
    "name", ["settings.ini", "README.md", ".gitignore", "nbs/04_modelling.ipynb", "nbs/.shipped/02_data.ipynb"]
)
def test_a_folder_with_such_a_file_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=re.escape(name)) as raised:
        init_project(tmp_path)
    assert raised.value.remedy
    assert everything(tmp_path) == {name: b"mine"}


def test_a_second_project_is_refused(project):
    before = everything(project)
    with pytest.raises(InputError):
        init_project(project)
    assert everything(project) == before


def test_an_existing_folder_keeps_what_it_has(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/sketch.ipynb").write_text("mine")
    (tmp_path / "orders.csv").write_text("x,late\n")
    files = init_project(tmp_path)
    assert set(everything(tmp_path)) == {"nbs/sketch.ipynb", "orders.csv", *(str(f.relative_to(tmp_path)) for f in files)}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("moves", [0, 5, 16])
def test_a_project_is_made_whole_or_not_at_all(tmp_path, monkeypatch, there, moves):
    folder, rename, left = tmp_path / "orders", type(tmp_path).rename, [moves]
    if there:
        (folder / "nbs").mkdir(parents=True)
        (folder / "nbs/sketch.ipynb").write_text("mine")

    def full(self, target):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", full)
    with pytest.raises(InputError, match="No space left"):
        init_project(folder)
    assert folder.exists() == there
    assert everything(tmp_path) == ({"orders/nbs/sketch.ipynb": b"mine"} if there else {})


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "orders").write_text("mine")
    with pytest.raises(InputError, match="orders"):
        init_project(tmp_path / "orders")


def test_nothing_has_changed(project, newer):
    before = everything(project)
    assert diff_shipped_notebook_versions(project, newer) == {}
    assert "have not changed" in describe_shipped_changes(project, shipped=newer)
    assert str(merge_shipped_notebooks(project, newer)) == "There is nothing to merge."
    assert everything(project) == before


def test_a_change_of_the_library_half_is_none(project, newer):
    replace(newer / "03_features.ipynb", "The columns that a plan reads.", "Columns that a plan reads.")
    assert diff_shipped_notebook_versions(project, newer) == {}


def test_a_change_is_shown(project, newer):
    replace(newer / "03_features.ipynb", "plotted_rows: int = 5000", "plotted_rows: int = 4000")
    assert list(diff_shipped_notebook_versions(project, newer)) == ["features"]
    shown = describe_shipped_changes(project, shipped=newer)
    assert "03_features.ipynb" in shown
    assert re.search(r"^- .*plotted_rows: int = 5000", shown, re.MULTILINE)
    assert re.search(r"^\+ .*plotted_rows: int = 4000", shown, re.MULTILINE)
    assert "\033[" not in shown
    assert "\033[32m" in describe_shipped_changes(project, color=True, shipped=newer)


def test_a_merge_brings_the_change_and_keeps_the_edit(project, newer):
    own, untouched = project / "nbs/03_features.ipynb", project / "nbs/02_data.ipynb"
    replace(own, "set_plot_theme()\n", "set_plot_theme()\nprint('mine')\n")
    replace(untouched, "holdout_share: float = 0.2", "holdout_share: float = 0.3")
    before = untouched.read_bytes()
    notebook = read_notebook(newer / own.name)
    notebook.cells.insert(-1, nbformat.v4.new_markdown_cell("A new paragraph."))
    nbformat.write(notebook, newer / own.name)
    replace(newer / own.name, "plotted_rows: int = 5000", "plotted_rows: int = 4000")
    result = merge_shipped_notebooks(project, newer)
    assert result.merged == {"features": own}
    assert result.conflicts == {}
    text = sources(own)
    assert "print('mine')" in text
    assert "A new paragraph." in text
    assert "plotted_rows: int = 4000" in text
    assert untouched.read_bytes() == before
    assert read_parameters(own) == read_parameters(newer / own.name)
    assert diff_shipped_notebook_versions(project, newer) == {}
    assert str(merge_shipped_notebooks(project, newer)) == "There is nothing to merge."
    nbformat.validate(read_notebook(own))
    replace(newer / own.name, "A new paragraph.", "A newer paragraph.")  # And the version after that
    assert merge_shipped_notebooks(project, newer).merged == {"features": own}
    assert "A newer paragraph." in sources(own)


def test_outputs_and_the_kernel_are_no_conflict(project, newer):
    own = project / "nbs/03_features.ipynb"
    notebook = read_notebook(own)
    notebook.metadata.kernelspec = {"display_name": "Mine", "language": "python", "name": "mine"}
    for count, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.execution_count = count
            cell.outputs = [nbformat.v4.new_output("stream", text="printed")]
    nbformat.write(notebook, own)
    changed = read_notebook(newer / own.name)
    changed.metadata.kernelspec.name = "theirs"
    del changed.cells[-2]
    nbformat.write(changed, newer / own.name)
    assert merge_shipped_notebooks(project, newer).conflicts == {}
    assert read_notebook(own).metadata.kernelspec.name == "mine"
    assert "printed" not in own.read_text()


@pytest.fixture
def conflict(project, newer):
    "A project whose plotted rows differ from the shipped ones; own notebook and draft."
    own = project / "nbs/03_features.ipynb"
    replace(own, "int = 5000", "int = 3000")
    replace(newer / own.name, "int = 5000", "int = 4000")
    replace(newer / "02_data.ipynb", "holdout_share: float = 0.2", "holdout_share: float = 0.25")
    before = everything(project)
    result = merge_shipped_notebooks(project, newer)
    assert list(result.merged) == ["data"]
    assert "03_features.merge.ipynb" in result.conflicts["features"]
    assert "03_features.merge.ipynb" in str(result)
    changed = {"nbs/03_features.merge.ipynb", "nbs/02_data.ipynb", "nbs/.shipped/02_data.ipynb"}
    after = everything(project)
    assert {name for name in after if after[name] != before.get(name)} == changed
    return own, own.with_suffix(".merge.ipynb")


def choose(draft, value: str) -> None:
    "Keep the line with a value, and remove the marks."
    notebook = read_notebook(draft)
    for cell in notebook.cells:
        if "<<<<<<<" in cell.source:
            lines = cell.source.splitlines()
            kept = [line for line in lines if line[:3] not in ("<<<", "===", ">>>")]
            cell.source = "\n".join(line for line in kept if "plotted_rows" not in line or value in line)
    nbformat.write(notebook, draft)


@pytest.mark.parametrize("moved_by_hand", [False, True])
@pytest.mark.parametrize("value", ["3000", "4000", "3500"])
def test_a_conflict_is_settled_by_a_person(project, newer, conflict, moved_by_hand, value):
    own, draft = conflict
    choose(draft, value if value != "3500" else "3000")
    if value == "3500":  # Neither one nor the other
        replace(draft, "int = 3000", "int = 3500")
    if moved_by_hand:
        draft.rename(own)
    assert merge_shipped_notebooks(project, newer).merged == {"features": own}
    assert not draft.exists()
    assert f"plotted_rows: int = {value}" in sources(own)
    assert diff_shipped_notebook_versions(project, newer) == {}
    assert str(merge_shipped_notebooks(project, newer)) == "There is nothing to merge."


def test_a_conflict_stays_until_it_is_settled(project, newer, conflict):
    own, draft = conflict
    before = everything(project)
    assert list(merge_shipped_notebooks(project, newer).conflicts) == ["features"]
    assert everything(project) == before
    draft.rename(own)  # With its marks
    assert "03_features.ipynb" in merge_shipped_notebooks(project, newer).conflicts["features"]
    assert "<<<<<<<" in sources(own)


@pytest.mark.parametrize("whose", ["own", "shipped"])
def test_a_draft_of_other_versions_is_not_taken(project, newer, conflict, whose):
    own, draft = conflict
    choose(draft, "4000")
    replace(own if whose == "own" else newer / own.name, "set_plot_theme()\n", "set_plot_theme()\nprint('later')\n")
    before = everything(project)
    assert "delete it" in merge_shipped_notebooks(project, newer).conflicts["features"]
    assert everything(project) == before
    draft.unlink()
    assert "merge again" in merge_shipped_notebooks(project, newer).conflicts["features"]
    assert "print('later')" in sources(draft)


def test_a_merge_cut_short_is_carried_on(project, newer, monkeypatch):
    own, base = project / "nbs/03_features.ipynb", project / "nbs/.shipped/03_features.ipynb"
    replace(own, "set_plot_theme()\n", "set_plot_theme()\nprint('mine')\n")
    replace(newer / own.name, "int = 5000", "int = 4000")
    write = module._write_notebook

    def cut(path, notebook):
        if path == base:
            raise KeyboardInterrupt
        write(path, notebook)

    monkeypatch.setattr(module, "_write_notebook", cut)
    with pytest.raises(KeyboardInterrupt):
        merge_shipped_notebooks(project, newer)
    monkeypatch.undo()
    replace(own, "int = 4000", "int = 4500")  # What came in may be edited already
    assert merge_shipped_notebooks(project, newer).merged == {"features": own}
    assert "int = 4500" in sources(own)
    assert diff_shipped_notebook_versions(project, newer) == {}


def test_a_cell_that_is_gone_on_one_side_is_a_conflict(project, newer):
    own = project / "nbs/03_features.ipynb"
    notebook = read_notebook(newer / own.name)
    notebook.cells[-2].source += "\nprint('changed')"
    nbformat.write(notebook, newer / own.name)
    notebook = read_notebook(own)
    del notebook.cells[-2]
    nbformat.write(notebook, own)
    before = own.read_bytes()
    assert list(merge_shipped_notebooks(project, newer).conflicts) == ["features"]
    assert own.read_bytes() == before
    assert list(merge_shipped_notebooks(project, newer).conflicts) == ["features"]


def test_what_is_no_project_of_its_own_is_said(tmp_path, project):
    with pytest.raises(InputError, match="mlcycle init"):
        diff_shipped_notebook_versions(tmp_path)
    (project / "nbs/05_validation.ipynb").unlink()
    with pytest.raises(InputError, match=r"05_validation\.ipynb is missing"):
        merge_shipped_notebooks(project)
    shutil.copy(project / "nbs/.shipped/05_validation.ipynb", project / "nbs")
    for text in ("{", "[]", "{}", "", '{"nbformat": "four"}'):
        (project / "nbs/05_validation.ipynb").write_text(text)
        with pytest.raises(InputError, match="not a notebook"):
            describe_shipped_changes(project)
    shutil.rmtree(project / "nbs/.shipped")
    with pytest.raises(InputError, match="shipped"):
        merge_shipped_notebooks(project)


def test_without_nbdime_the_remedy_is_named(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbdime", None)
    with pytest.raises(MlcycleError, match=re.escape("pip install 'mlcycle-notebooks[lab]'")):
        diff_shipped_notebook_versions(project)


def test_importing_the_module_is_light():
    heavy = ["nbformat", "nbdime", "pandas", "nbconvert"]
    code = f"import json, sys, mlcycle.lifecycle.project; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("path", [ROOT / "settings.ini", ROOT / "nbs" / "lifecycle" / "templates" / "project_settings.ini"])
def test_settings_that_files_suggest_exist(path):
    known = {stage: {p.name for p in read_parameters(notebook)} for stage, notebook in stage_notebooks(ROOT).items()}
    known |= {name: set(defaults) for name, defaults in SECTION_DEFAULTS.items()}
    section = ""
    for line in path.read_text().splitlines():
        if header := re.match(r"\[(\w+)\]", line):
            section = header[1]
        elif name := re.match(r"#? ?(\w+) *=", line):
            assert name[1] in known[section], line

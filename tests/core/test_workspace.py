"""A workspace says how it is laid out, and one of another layout is refused in words before anything is written."""

import json
from pathlib import Path

import pytest
from commands import cli

from mlcycle.core.files import write_text
from mlcycle.core.workspace import LAYOUT_FILE, LAYOUT_VERSION, Workspace
from mlcycle.errors import ArtifactError

OLD = {
    "a holdout under its old name": ("sealed/sealed/_delta_log/0.json", "{}", "'sealed'"),
    "a cached stage": ("cache/problem/0123456789ab/entry.json", "{}", "entry.json"),
    "an older layout": (LAYOUT_FILE, '{"version": 1}', "layout 1"),
    "a newer layout": (LAYOUT_FILE, json.dumps({"version": LAYOUT_VERSION + 1}), f"layout {LAYOUT_VERSION + 1}"),
    "a damaged file": (LAYOUT_FILE, "{", "cannot be read"),
}


def everything(folder: Path) -> list[str]:
    "Each file of a folder."
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("name", "text", "said"), OLD.values(), ids=OLD)
def test_another_layout_is_refused_and_left_alone(tmp_path, name, text, said):
    write_text(tmp_path / "settings.ini", "[problem]\nsource = sample\n")
    write_text(tmp_path / ".mlcycle" / name, text)
    before = everything(tmp_path)
    with pytest.raises(ArtifactError, match="Name another folder as 'workspace'") as refused:
        Workspace.from_project(tmp_path)
    assert said in str(refused.value)
    assert f"Layout {LAYOUT_VERSION} is expected" in str(refused.value)
    with pytest.raises(ArtifactError):
        Workspace(tmp_path)
    assert everything(tmp_path) == before


def test_the_command_line_says_what_to_do(tmp_path):
    write_text(tmp_path / "settings.ini", "[problem]\nsource = sample\n")
    write_text(tmp_path / ".mlcycle/sealed/openings.jsonl", "")
    before = everything(tmp_path)
    for words in (["status"], ["runs"], ["run", "-q", "--until", "problem"], ["data", "list"]):
        done = cli(*words, cwd=tmp_path)
        assert done.returncode == 1, words
        assert "has the layout 1" in done.stderr
        assert "workspace" in done.stderr
        assert "Traceback" not in done.stderr
    assert everything(tmp_path) == before
    settings = "[stores]\nworkspace = new\n[problem]\nsource = sample\n"
    write_text(tmp_path / "settings.ini", settings)
    assert cli("status", cwd=tmp_path).returncode == 0


def test_a_new_workspace_notes_its_layout_with_its_first_lock(tmp_path):
    space = Workspace.from_project(tmp_path)
    assert not space.root.exists(), "a look at nothing leaves nothing"
    with space.lock("registry"):
        write_text(space.root / "runs" / "one" / "run.json", "{}")
    assert json.loads((space.root / LAYOUT_FILE).read_text()) == {"version": LAYOUT_VERSION}
    assert Workspace.from_project(tmp_path) == space

"""Files and folders that are written whole or not at all, wherever an error occurs."""

from pathlib import Path

import pytest

from mlcycle.core.files import atomic_folder, atomic_write, write_text


def everything(folder: Path) -> dict[str, str]:
    "What is in each file, hidden ones too."
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def failing_rename(monkeypatch, after: int) -> None:
    "Let renames fail, but for the first ones; what an error undoes works."
    rename, left = Path.rename, [after]

    def full(self, target):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "deep" / "file", "old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "deep" / "file") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert everything(tmp_path) == {"deep/file": "old"}
    write_text(tmp_path / "deep" / "file", "new")
    assert everything(tmp_path) == {"deep/file": "new"}


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, there):
    folder, before = tmp_path / "home" / "folder", {}
    if there:
        write_text(folder / "one", "old")
        write_text(folder / "two", "old")
        before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as draft:
        (draft / "one").write_text("new")
        raise KeyboardInterrupt
    assert everything(tmp_path) == before
    assert folder.exists() == there
    with atomic_folder(folder) as draft:
        (draft / "one").write_text("new")
    assert everything(tmp_path) == {"home/folder/one": "new"}, "what the old folder had is gone with it"
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize(("there", "renames"), [(False, 0), (True, 0), (True, 1)])
def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch, there, renames):
    if there:
        write_text(tmp_path / "folder" / "one", "old")
    before = everything(tmp_path)
    failing_rename(monkeypatch, renames)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "folder") as draft:
        (draft / "one").write_text("new")
    assert everything(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] * there


def test_merged_files_stand_beside_what_was_there(tmp_path):
    write_text(tmp_path / "folder" / "mine", "mine")
    with atomic_folder(tmp_path / "folder", merge=True) as draft:
        write_text(draft / "deep" / "er" / "one", "new")
        write_text(draft / "two", "new")
    assert everything(tmp_path) == {"folder/deep/er/one": "new", "folder/mine": "mine", "folder/two": "new"}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_all_files_are_merged_or_none(tmp_path, monkeypatch, renames):
    write_text(tmp_path / "folder" / "mine", "mine")
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "folder", merge=True) as draft:
        for name in ("deep/er/one", "three", "two"):
            write_text(draft / name, "new")
        failing_rename(monkeypatch, renames)
    assert sorted(path.name for path in (tmp_path / "folder").rglob("*")) == ["mine"]


def test_merging_overwrites_nothing(tmp_path):
    write_text(tmp_path / "folder" / "two", "mine")
    with pytest.raises(FileExistsError, match="two"), atomic_folder(tmp_path / "folder", merge=True) as draft:
        (draft / "one").write_text("new")
        (draft / "two").write_text("new")
    assert everything(tmp_path) == {"folder/two": "mine"}

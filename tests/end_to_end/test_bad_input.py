"""What is wrong with the input is said once, clearly, with exit code 2, and nothing is written."""

import numpy as np
import pandas as pd
import pytest
from commands import cli

GOOD = pd.DataFrame({"x": np.arange(100.0), "word": [f"w{i % 3}" for i in range(100)], "late": ["yes", "no"] * 50})


@pytest.fixture
def folder(tmp_path):
    "A folder with tables, good and bad."
    GOOD.to_csv(tmp_path / "good.csv", index=False)
    GOOD.assign(late="no").to_csv(tmp_path / "constant.csv", index=False)
    GOOD.assign(late=None).to_csv(tmp_path / "unknown.csv", index=False)
    pd.DataFrame({"x": range(3000), "late": [f"c{i % 1000}" for i in range(3000)]}).to_csv(tmp_path / "many.csv", index=False)
    GOOD.head(10).to_csv(tmp_path / "short.csv", index=False)
    GOOD.head(0).to_csv(tmp_path / "header.csv", index=False)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "prose.csv").write_text("This is a letter.\nIt is not a table.\n")
    (tmp_path / "fake.parquet").write_text("not parquet")
    (tmp_path / "notes.docx").write_text("a;b\n1;2\n")
    (tmp_path / "p.yaml").write_text("sead: 7\n")
    return tmp_path


CASES = {
    "a missing file": (["--source", "goood.csv", "--target", "late"], ["goood.csv", "good.csv"]),
    "an empty file": (["--source", "empty.csv", "--target", "late"], ["empty.csv", "empty"]),
    "a file with a header only": (["--source", "header.csv", "--target", "late"], ["header.csv", "no rows"]),
    "a file that is no table": (["--source", "binary.csv", "--target", "late"], ["binary.csv", "not a table"]),
    "prose": (["--source", "prose.csv", "--target", "late"], ["prose.csv", "single column"]),
    "a false ending": (["--source", "fake.parquet", "--target", "late"], ["fake.parquet", "not a table"]),
    "an unknown ending": (["--source", "notes.docx", "--target", "late"], [".docx", ".csv"]),
    "no target": (["--source", "good.csv"], ["target", "late"]),
    "a missing target": (["--source", "good.csv", "--target", "lat"], ["'lat'", "Did you mean 'late'"]),
    "a constant target": (["--source", "constant.csv", "--target", "late"], ["late", "constant"]),
    "a target without values": (["--source", "unknown.csv", "--target", "late"], ["late", "0 labelled rows"]),
    "a target with 1,000 classes": (["--source", "many.csv", "--target", "late"], ["late", "1000 classes"]),
    "too few rows": (["--source", "short.csv", "--target", "late"], ["late", "10 labelled rows"]),
    "an unknown metric": (["--source", "good.csv", "--target", "late", "--metric", "roc_auk"], ["roc_auk", "'roc_auc'"]),
    "a metric that does not fit": (["--source", "good.csv", "--target", "late", "--metric", "rmse"], ["rmse", "binary", "f1"]),
    "an unknown parameter": (["-p", "sead=7"], ["sead", "Did you mean 'seed'"]),
    "an unknown parameter in a file": (["-f", "p.yaml"], ["sead", "p.yaml", "'seed'"]),
    "a missing parameter file": (["-f", "q.yaml"], ["q.yaml"]),
    "a parameter of the wrong type": (["-p", "trials=many"], ["trials", "'many'", "int"]),
    "a value that is not allowed": (["-p", "task=guess"], ["task", "'guess'", "binary"]),
    "no assignment": (["-p", "trials"], ["trials", "name=value"]),
    "an unknown stage": (["--until", "modeling"], ["modeling", "'modelling'"]),
    "a missing time column": (["--source", "good.csv", "--target", "late", "--time", "y"], ["'y'", "x"]),
    "a time column of words": (["--source", "good.csv", "--target", "late", "--time", "word"], ["'word'", "w0"]),
    "an unreadable criterion": (
        ["--source", "good.csv", "--target", "late", "-p", "criteria=roc_auc > 0.7"],
        ["roc_auc > 0.7\n            ^", "column 9", "Did you mean '>='"],
    ),
    "an unknown positive class": (["--source", "good.csv", "--target", "late", "-p", "positive=maybe"], ["maybe", "no, yes"]),
}


@pytest.mark.parametrize("case", CASES)
def test_clear_message_and_exit_code_2(case, folder):
    words, expected = CASES[case]
    before = sorted(folder.rglob("*"))
    done = cli("run", "-q", *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    for word in expected:
        assert word in done.stderr
    assert done.stderr.count("Error:") == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert sorted(folder.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[modeling]\ntrials = 3\n", ["modeling", "'modelling'"]),
        ("[modelling]\ntrails = 3\n", ["trails", "'trials'", "settings.ini"]),
        ("[modelling]\ntrials = few\n", ["trials", "'few'"]),
        ("[stores]\nworkspaces = x\n", ["workspaces", "'workspace'"]),
        ("trials = 3\n", ["settings.ini", "section"]),
    ],
)
def test_wrong_settings(text, expected, folder):
    (folder / "settings.ini").write_text(text)
    done = cli("run", "-q", cwd=folder)
    assert done.returncode == 2, done.stderr
    for word in expected:
        assert word in done.stderr
    assert not (folder / ".mlcycle").exists()

"""The command of a model's wheel reads a CSV file as `mlcycle score` does, or refuses it by line number."""

import os
import shutil
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier

from mlcycle.core.files import hash_file
from mlcycle.deployment.model_wheel import build_model_wheel, imported_model
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.scoring.batch import ScoreOptions, score
from mlcycle.service.bundle import build_bundle, open_release
from mlcycle.service.input_values import TrainingValues
from mlcycle.service.prediction_table import predict_table
from mlcycle.service.release_description import Bundle
from mlcycle.stores.models.library_versions import add_versions_to_skops
from mlcycle.stores.models.model_files import model_to_skops_bytes

pytestmark = pytest.mark.filterwarnings("ignore:The release")
TOWNS = ("NA", "None", "nan", "Lima", "Bern")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    "A release with the labels 0 and 1; three towns are words that usually stand for a missing value."
    folder = tmp_path_factory.mktemp("towns")
    rows = pd.DataFrame({"town": list(TOWNS) * 20, "a": [float(number % 7) for number in range(100)]})
    encode = ColumnTransformer([("town", OneHotEncoder(handle_unknown="ignore"), ["town"])], remainder="passthrough")
    model = Pipeline([("encode", encode), ("model", DecisionTreeClassifier(min_samples_leaf=20, random_state=0))])
    model.fit(rows, (rows.town.isin(["NA", "None", "nan"]) != (rows.a == 6)).astype(int))
    file = folder / "model.skops"
    file.write_bytes(add_versions_to_skops(model_to_skops_bytes(model)))
    texts = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    problem = Problem(
        **texts, target="y", task="binary", metric="f1", metrics=["f1"], criteria=[], rows=100, classes=[0, 1], positive=1
    )
    bundle = Bundle(
        problem=problem,
        columns={"town": "str", "a": "float64"},
        threshold=0.5,
        model=ModelRef(name="towns", version=1, run_id="-", sha256=hash_file(file)),
        training_values={"town": TrainingValues(texts=TOWNS, kept=TOWNS[:3]), "a": TrainingValues(largest=6.0)},
        examples=[{"town": "Lima", "a": 1.0}],
    )
    return build_bundle(folder / "releases", bundle, file)


@pytest.fixture
def command(release, tmp_path, monkeypatch, capsys):
    "The command of the package, called in this process: returns exit code, standard output and standard error."
    with zipfile.ZipFile(build_model_wheel(release, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    with imported_model(tmp_path, "towns"):
        main = import_module("towns.__main__").main

        def call(*words: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["towns", *words])
            code = main()
            return code, *capsys.readouterr()

        yield call


ROWS = [(town, number) for number in range(4) for town in TOWNS]
DIALECTS = {
    "plain": "town,a\n" + "".join(f"{town},{number}\n" for town, number in ROWS),
    "trailing separator": "a,town,late\n" + "".join(f"{number},{town},0,\n" for town, number in ROWS),
    "sep line": "sep=;\r\ntown;a\r\n" + "".join(f"{town};{number}\r\n" for town, number in ROWS),
    "byte order mark": "\ufefftown\ta\n" + "".join(f"{town}\t{number}\n" for town, number in ROWS),
    "quotes and gaps": 'note,"town",a\n' + "".join(f'"x,\n{number}","{town}",\n\n,,\n' for town, number in ROWS),
    "pipe": "town|a\n" + "".join(f"{town}|{number}\n" for town, number in ROWS) + "TOWN|A\nLima|1\n",
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=list(DIALECTS))
def test_wheel_and_batch_scoring_predict_a_file_alike(release, command, tmp_path, text):
    (tmp_path / "rows.csv").write_bytes(text.encode())
    code, printed, reported = command("rows.csv", "--block-rows", "7")
    assert code == 0, reported
    (tmp_path / "out.csv").write_text(printed)
    score(release, str(tmp_path / "rows.csv"), str(tmp_path / "scored.csv"), ScoreOptions())
    found, scored = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "scored.csv")
    assert found[["prediction", "score"]].to_numpy().tolist() == scored[["prediction", "score"]].to_numpy().tolist()
    known = [("NA" in town or town in ("None", "nan")) for town, _ in ROWS]
    assert found.prediction.astype(bool).tolist()[: len(ROWS)] == known
    bundle, model = open_release(release)
    rows = [{"town": town, "a": None if "note" in text else number} for town, number in ROWS]
    assert predict_table(bundle, model, rows).prediction.tolist() == found.prediction.tolist()[: len(ROWS)]


REFUSED = {
    b"Towns of May\n\ntown,a\nLima,1\nBern,2\n": "Line 1 of rows.csv is a title above the header: 'Towns of May'.",
    b"Lima,1\nBern,2\n": "Line 1 of rows.csv is a row, and not a header: 'Lima,1'.",
    b"town,a\nZ\xfcrich,1\nLima,2\n": "Line 2 of rows.csv has bytes that are not UTF-8: 'Z\\xfcrich,1'.",
    b"town,a\nLima,1\nBern\n": "Line 3 of rows.csv has 1 field instead of 2: 'Bern'.",
    b'town,a\nLima,1\n"Bern,1\n': "Line 3 of rows.csv has a quote that is not closed",
    b"town,a\n1,Lima,1\n2,Bern,2\n": "Line 2 of rows.csv has 3 fields, and the header 2.",
    "town,a\nLima,1\n".encode("utf-16"): "The file rows.csv is in UTF-16.",
    b"town,a\nLi\0ma,1\n": "Line 2 of rows.csv has a zero byte.",
}


@pytest.mark.parametrize(("content", "message"), REFUSED.items(), ids=[each[:30] for each in REFUSED.values()])
def test_other_dialects_are_refused_by_line(command, tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    code, _, reported = command("rows.csv", "-o", "out.csv")
    assert code == 2
    assert message in reported
    assert "a header in the first line, a separator, UTF-8" in reported and "`mlcycle score` reads other dialects" in reported
    assert reported.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_rejected_rows_leave_labels_as_they_are(command, tmp_path):
    (tmp_path / "rows.csv").write_text("id,town,a\n01,Lima,1\n02,NA,x\n03,NA,3\n04,Bern,y\n")
    code, _, reported = command("rows.csv", "-o", "out.csv")
    assert code == 2
    assert "in row 2: " in reported and reported.endswith("Leave the cell empty.\n")
    for size, words in (("1", ("--keep", "all")), ("50", ("--keep", "id", "--keep", "town", "--keep", "a"))):
        code, _, reported = command("rows.csv", "-o", "out.csv", "--overwrite", "--skip-invalid", "--block-rows", size, *words)
        assert code == 0, reported
        assert reported.endswith("2 of 4 rows predicted to out.csv; 2 rejected.\n")
        assert "in row 4: " in reported
        lines = [line.rpartition(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()]
        assert lines == ["id,town,a,prediction", "01,Lima,1,0", "02,NA,x,", "03,NA,3,1", "04,Bern,y,"]


def test_a_first_block_without_a_prediction_gets_the_columns_of_the_others(command, tmp_path):
    (tmp_path / "rows.csv").write_text("id,town,a\n,Lima,x\n,NA,2\n03,NA,3\n")
    for name, read in {"out.csv": pd.read_csv, "out.parquet": pd.read_parquet}.items():
        words = ("-o", name, "--skip-invalid", "--block-rows", "1", "--keep", "id")
        code, _, reported = command("rows.csv", *words)
        assert code == 0, reported
        table = read(tmp_path / name)
        assert list(table) == ["id", "prediction", "score"]
        assert table.isna().to_numpy().tolist() == [[True] * 3, [True, False, False], [False] * 3]
    (tmp_path / "bad.csv").write_text("town,a\nLima,x\nNA,y\n")
    code, _, reported = command("bad.csv", "-o", "none.csv", "--skip-invalid")
    assert code == 2 and "All 2 rows are rejected." in reported and not (tmp_path / "none.csv").exists()


def test_one_row_is_one_row_and_options_are_those_of_batch_scoring(command, tmp_path):
    (tmp_path / "rows.csv").write_text("town,a,prediction\nLima,1,7\n")
    assert command("rows.csv", "-o", "out.csv", "--keep", "none")[2] == "1 row predicted to out.csv.\n"
    assert (tmp_path / "out.csv").read_text().startswith("prediction,score\n0,")
    for word, message in {
        "prediction": "The output has a column 'prediction' of its own, so that of the input cannot be kept.",
        "twon": "There is no column 'twon' to keep. Did you mean 'town'?",
    }.items():
        code, _, reported = command("rows.csv", "--keep", word)
        assert code == 2 and message in reported
    assert command("rows.csv", "--keep", "all")[1].startswith("town,a,prediction,score\nLima,1,0,")
    with pytest.raises(SystemExit):
        command("rows.csv", "--block-rows", "0")
    code, _, reported = command("rows.csv", "--separator", "ab")
    assert code == 2 and "The separator is 'ab'." in reported


def test_an_output_replaces_no_input_and_no_file_without_overwrite(command, tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("town,a\nLima,1\n")
    os.link(rows, "hard.csv")
    for output in ("rows.csv", f"../{tmp_path.name}/rows.csv", "hard.csv"):
        code, _, reported = command("rows.csv", "-o", output, "--overwrite")
        assert code == 2 and "would replace the input" in reported and rows.read_text() == "town,a\nLima,1\n"
    (tmp_path / "out.csv").write_text("mine")
    code, _, reported = command("rows.csv", "-o", "out.csv")
    assert code == 2 and "--overwrite" in reported and (tmp_path / "out.csv").read_text() == "mine"
    assert command("rows.csv", "-o", "out.csv", "--overwrite")[0] == 0
    assert "does not exist" in command("rows.csv", "-o", "no/out.csv")[2] and not (tmp_path / "no").exists()
    monkeypatch.setattr(os, "access", lambda *words, **options: False)
    reported = command("rows.csv", "-o", "new.csv")[2]
    assert "The output new.csv cannot be written" in reported and "--project" not in reported


def test_a_package_without_its_release_is_to_be_installed_again(release, tmp_path):
    with zipfile.ZipFile(build_model_wheel(release, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path)
    shutil.rmtree(tmp_path / "towns" / "release")
    with imported_model(tmp_path, "towns") as model:
        for call in (model.input_schema, model.model_card, lambda: model.predict({"town": "Lima", "a": 1})):
            with pytest.raises(model.ArtifactError, match="Install the package again"):
                call()

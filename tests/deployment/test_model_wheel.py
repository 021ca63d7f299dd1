"""The wheel of a model: installed where nothing else is, typed, reproducible, and refused when it was altered."""

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from commands import cli
from conftest import TABLES
from toy_releases import toy_release, toy_rows

from mlcycle.core.files import hash_file
from mlcycle.core.release_keys import generate_release_key, load_release_key, public_key_pem
from mlcycle.deployment.model_wheel import build_model_wheel, imported_model, package_name, predict_by_wheel
from mlcycle.deployment.parity import compare_predictions, predict_by_pipeline, release_edge_rows
from mlcycle.errors import ArtifactError
from mlcycle.ml.outliers import OutlierLimits
from mlcycle.service.bundle import open_release
from mlcycle.service.release_files import write_manifest
from mlcycle.service.release_signature import sign_release
from mlcycle.stores.models.model_files import model_to_skops_bytes

INSTALLED = """
import importlib.util, json, pickle, sys, warnings
import pandas as pd
absent = ("mlcycle", "fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "mlflow", "pyarrow")
assert [name for name in absent if importlib.util.find_spec(name)] == []
import orders_late, toy
warnings.simplefilter("ignore")
frame = pd.read_csv("rows.csv")
record = json.loads(frame.head(1).to_json(orient="records"))[0]
tables = [orders_late.predict(frame), orders_late.predict(frame, intervals=True), orders_late.predict(record),
          orders_late.predict([record, record]), orders_late.predict_proba(frame), toy.predict(pd.read_csv("toy.csv"))]
pickle.dump(tables, open("tables.pkl", "wb"))
assert orders_late.__version__ == "1" and toy.__version__ == "7" and "# " in orders_late.model_card()
assert orders_late.input_schema()["properties"]
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    "Releases of versions 1 and 7 of the model `toy`, and their wheels."
    folder = tmp_path_factory.mktemp("toys")
    releases = [toy_release(folder, version) for version in (1, 7)]
    return releases, [build_model_wheel(each, folder / "dist") for each in releases]


@pytest.fixture
def unpacked(toys, tmp_path):
    "The package of a model in a folder, as an installer leaves it."
    with zipfile.ZipFile(toys[1][0]) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def environment(folder: Path, *wheels: Path, wheelhouse: Path) -> Path:
    "A virtual environment with wheels and what they require, and nothing else; its interpreter."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--find-links", wheelhouse, *wheels], check=True)
    return python


def test_it_predicts_in_an_environment_without_mlcycle(wheelhouse, table_run, toys, tmp_path):
    run = table_run("orders")
    wheel = build_model_wheel(run.workspace.root / run.release.bundle, tmp_path / "dist")
    python = environment(tmp_path / "env", wheel, toys[1][1], wheelhouse=wheelhouse)
    TABLES["orders"][0]().to_csv(tmp_path / "rows.csv", index=False)
    toy_rows().to_csv(tmp_path / "toy.csv", index=False)
    frame = pd.read_csv(tmp_path / "rows.csv")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLCYCLE"))}
    subprocess.run([python, "-c", INSTALLED], cwd=tmp_path, env=clean, check=True)

    with pytest.warns(UserWarning, match="was changed"):
        expected = [run.predict(frame), run.predict(frame, intervals=True)]
    whole, intervals, one, two, probabilities, toy = pd.read_pickle(tmp_path / "tables.pkl")
    for there, here in zip((whole, intervals), expected, strict=True):  # Text has another storage without pyarrow
        assert there.to_dict("split") == here.to_dict("split")
        assert there.dtypes.drop("prediction").to_dict() == here.dtypes.drop("prediction").to_dict()
        assert there.attrs == here.attrs
    assert one.score.tolist() == whole.score[:1].tolist()
    assert two.score.tolist() == [whole.score[0]] * 2
    assert probabilities[run.problem.positive].tolist() == whole.score.tolist()
    bundle, model = open_release(toys[0][1])
    assert toy.prediction.tolist() == predict_by_pipeline(model, bundle, toy_rows()).labels.tolist()

    words = ["rows.csv", "-o", "out.csv", "--keep", "town"]
    done = subprocess.run([python, "-m", "orders_late", *words], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "600 rows predicted to out.csv.\n")
    lines = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [float(line["score"]) for line in lines] == whole.score.tolist()
    assert [line["town"] for line in lines] == frame.town.tolist()
    done = subprocess.run([tmp_path / "env/bin/orders_late", "--help"], env=clean, capture_output=True, text=True)
    assert "--skip-invalid" in done.stdout


@pytest.fixture
def command(unpacked, monkeypatch, capsys):
    "The command of a package, called in this process: returns exit code and standard error."
    monkeypatch.chdir(unpacked)
    with imported_model(unpacked, "toy"):
        main = import_module("toy.__main__").main

        def call(*words: str) -> tuple[int, str]:
            monkeypatch.setattr(sys, "argv", ["toy", *words])
            return main(), capsys.readouterr().err

        yield call


def test_bad_files_give_a_line_and_no_output(unpacked, command):
    rows = toy_rows(5).astype(object)
    rows.to_csv(unpacked / "good.csv", index=False)
    rows.drop(columns="x3").to_csv(unpacked / "missing.csv", index=False)
    rows.assign(x1=["1", "2", "3", "many", "5"]).to_csv(unpacked / "bad.csv", index=False)
    (unpacked / "empty.csv").write_text("")
    (unpacked / "binary.csv").write_bytes(b"x0,x1\n\xff\xfe,1\n")
    (unpacked / "false.parquet").write_bytes(b"no Parquet")
    cases = {
        ("none.csv",): "There is no file none.csv",
        ("missing.csv",): "'x3' is missing",
        ("bad.csv", "--block-rows", "2"): "The column 'x1' has the value 'many' in row 4",
        ("empty.csv",): "is empty",
        ("binary.csv",): "Line 2 of binary.csv has bytes that are not UTF-8",
        ("false.parquet",): "is no Parquet file",
        ("good.csv", "--keep", "town"): "There is no column 'town'",
        ("good.csv", "-o", "good.csv/out.csv"): "good.csv",
        ("good.csv", "-o", "out.xlsx"): "The format of out.xlsx is not known",
    }
    before = sorted(unpacked.iterdir())
    for words, message in cases.items():
        code, printed = command(*(words if "-o" in words else (*words, "-o", "out.csv")))
        assert code, words
        assert message in printed, (words, printed)
        assert printed.count("\n") == 1, printed
    assert sorted(unpacked.iterdir()) == before


def test_a_row_that_cannot_be_used_is_left_without_a_prediction(unpacked, command):
    toy_rows(5).astype(object).assign(x1=["1", "2", "3", "many", "5"]).to_csv(unpacked / "bad.csv", index=False)
    code, printed = command("bad.csv", "-o", "out.parquet", "--skip-invalid", "--block-rows", "3")
    assert code == 0, printed
    assert "row 4" in printed
    assert printed.endswith("4 of 5 rows predicted to out.parquet; 1 rejected.\n")
    assert pd.read_parquet(unpacked / "out.parquet").prediction.isna().tolist() == [False] * 3 + [True, False]


def test_equal_releases_give_equal_bytes_and_record_lists_them(toys, tmp_path):
    (release, _), (wheel, _) = toys
    copy = shutil.copytree(release, tmp_path / "elsewhere" / release.name)
    os.utime(copy / "bundle.json", (0, 0))
    again = build_model_wheel(copy, tmp_path / "dist")
    assert again.read_bytes() == wheel.read_bytes()
    assert again.name == "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(again) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = {line[0]: line[1:] for line in csv.reader(io.StringIO(contents["toy-1.dist-info/RECORD"].decode()))}
    assert record.keys() == contents.keys()
    for name, (digest, size) in record.items():
        if digest:
            expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(contents[name])), name
    inside = {name.removeprefix("toy/release/"): data for name, data in contents.items() if name.startswith("toy/release/")}
    assert inside == {path.name: path.read_bytes() for path in release.iterdir()}
    required = [line for line in contents["toy-1.dist-info/METADATA"].decode().splitlines() if line.startswith("Requires-Dist")]
    assert any("lightgbm==" in line for line in required)
    assert not any(name in line for line in required for name in ("fastapi", "uvicorn", "sqlalchemy", "mlcycle"))


def test_every_prediction_is_that_of_the_pipeline(toys):
    (release, _), (wheel, _) = toys
    bundle, model = open_release(release)
    rows = [*toy_rows(50).to_dict("records"), *release_edge_rows(bundle)]
    expected = predict_by_pipeline(model, bundle, rows)
    for cold_start in (True, False):
        result = compare_predictions("wheel", expected, predict_by_wheel(wheel, rows, bundle, cold_start=cold_start))
        assert result.passed, result


def altered_model(release: Path) -> None:
    with (release / "model.skops").open("ab") as file:
        file.write(b"more")


def added_functions(release: Path) -> None:
    (release / "functions.py").write_text("print('code')\n")


def another_threshold(release: Path) -> None:
    "With a manifest that fits, and the signature of somebody else."
    described = json.loads((release / "bundle.json").read_text())
    (release / "bundle.json").write_text(json.dumps(described | {"threshold": 0.1}))
    generate_release_key(release.parent / "other.pem")
    os.environ["MLCYCLE_RELEASE_KEY"] = str(release.parent / "other.pem")
    try:
        key = load_release_key()
    finally:
        del os.environ["MLCYCLE_RELEASE_KEY"]
    for name in ("manifest.json", "model.sig"):
        (release / name).unlink()
    (release / "signing_key.pem").write_bytes(public_key_pem(key.public_key()))
    write_manifest(release, release.name)
    sign_release(release, key)


def no_signature(release: Path) -> None:
    (release / "model.sig").unlink()


@pytest.mark.parametrize("alter", [altered_model, added_functions, another_threshold, no_signature])
def test_an_altered_release_is_refused(alter, unpacked):
    alter(unpacked / "toy" / "release")
    with imported_model(unpacked, "toy") as toy, pytest.raises(toy.ArtifactError) as refused:
        toy.predict(toy_rows(1))
    assert "Install the package again" in str(refused.value) or "Copy the release again" in str(refused.value)


def test_an_installer_may_compile_the_functions_of_a_release(unpacked):
    (unpacked / "toy" / "release" / "__pycache__").mkdir()
    with imported_model(unpacked, "toy") as toy:
        assert len(toy.predict(toy_rows(2))) == 2


def test_a_crafted_model_file_gets_classes_of_the_private_package_only(unpacked):
    good = model_to_skops_bytes(OutlierLimits())
    with imported_model(unpacked, "toy") as toy:
        files = import_module("toy._runtime.stores.models.model_files")
        assert files.relocate_model(good, "toy._runtime").count(b"toy._runtime.ml.outliers")
        for name in ("toy.pwn.Model", "toy._runtime.ml.outliers.BaseEstimator", "mlcycle.ml.outliers.OutlierLimits", "os.system"):
            assert files.select_untrusted([name]) == [name]
        assert files.select_untrusted(["toy._runtime.ml.array_steps.nothing"])
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(unpacked / "model.skops", "w") as crafted:
            for name in old.namelist():
                crafted.writestr(name, old.read(name).replace(b"OutlierLimits", b"BaseEstimator"))
        with pytest.raises(toy.ArtifactError, match="not trusted"):
            files.load_model(unpacked / "model.skops")


def test_two_models_and_an_installed_mlcycle_share_a_process(toys, tmp_path):
    "The runtimes are separate modules, also while threads load both models at once."
    names = {"toy": toys[1][0], "other": tmp_path / "other.whl"}
    for name, wheel in names.items():
        source = toys[1][1] if name == "other" else wheel
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / name)
    shutil.copytree(tmp_path / "other" / "toy", tmp_path / "second" / "other_toy")  # Its imports are relative
    results: dict[str, float] = {}
    with imported_model(tmp_path / "toy", "toy") as toy, imported_model(tmp_path / "second", "other_toy") as other:
        pause = threading.Barrier(2)

        def predict(name, model):
            pause.wait()
            results[name] = round(float(model.predict(toy_rows(1)).prediction[0]))

        threads = [threading.Thread(target=predict, args=each) for each in (("toy", toy), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {"toy": 1, "other": 7}
        assert toy.InputError is not other.InputError
        with pytest.raises(toy.InputError, match="are missing"):
            toy.predict({"x0": 1.0})
    assert round(open_release(toys[0][0])[1].predict(toy_rows(1))[0]) == 1


def test_a_type_checker_sees_the_types(unpacked, tmp_path):
    (tmp_path / "use.py").write_text(
        "import toy\n\ntable = toy.predict([{'x0': 1.0}], intervals=True)\nprint(table.prediction)\n"
    )
    (tmp_path / "misuse.py").write_text("import toy\n\ntoy.predict(3)\ntoy.predict([], intervals='yes')\ntoy.score\n")
    check = [str(Path(sys.executable).parent / "ty"), "check", "--python", sys.prefix, "--project", str(tmp_path)]
    assert (unpacked / "toy" / "py.typed").is_file()
    good = subprocess.run([*check, "use.py", "toy/__init__.py", "toy/__main__.py"], cwd=tmp_path, capture_output=True, text=True)
    assert good.returncode == 0, good.stdout
    bad = subprocess.run([*check, "--output-format", "concise", "misuse.py"], cwd=tmp_path, capture_output=True, text=True)
    assert [f"misuse.py:{line}:" in bad.stdout for line in (3, 4, 5)] == [True] * 3, bad.stdout


def test_an_import_is_light(unpacked):
    code = "import sys, toy; print([m for m in ('pandas', 'numpy', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names_of_packages_can_be_imported():
    names = {"flights-late": "flights_late", "3-late": "model_3_late", "import": "import_model", "mlcycle": "mlcycle_model"}
    assert {name: package_name(name) for name in names} == names


def test_the_command_writes_all_or_nothing(table_run, tmp_path):
    run = table_run("orders")
    project = run.workspace.project
    done = cli("package", "wheel", "--output", tmp_path / "dist", cwd=project)
    path = tmp_path / "dist" / "orders_late-1-py3-none-any.whl"
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    assert "pip install" in done.stderr
    first = hash_file(path)
    broken = shutil.copytree(run.workspace.root / run.release.bundle, tmp_path / "broken")
    (broken / "bundle.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "readable").mkdir()
    wrong = {
        ("weel",): "There is no target 'weel'",
        ("wheel", "nobody@3"): "nobody",
        ("wheel", "no-run"): "no-run",
        ("wheel", str(broken)): "bundle.json",
        ("wheel", "last", "--output", str(tmp_path / "file")): "is not a folder",
    }
    for words, message in wrong.items():
        more = () if "--output" in words else ("--output", tmp_path / "dist")
        done = cli("package", *words, *more, cwd=project)
        assert done.returncode, words
        assert message in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert [(each.name, hash_file(each)) for each in (tmp_path / "dist").iterdir()] == [(path.name, first)]


def test_a_registry_that_is_down_is_named(table_run, tmp_path):
    shutil.copytree(table_run("orders").workspace.project, tmp_path / "project", symlinks=True)
    with (tmp_path / "project" / "settings.ini").open("a") as settings:
        settings.write("\n[stores]\ntracking_uri = http://127.0.0.1:9\n")
    done = cli("package", "wheel", "orders-late@1", cwd=tmp_path / "project", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "project" / "dist").exists()


def test_a_release_of_an_older_mlcycle_is_refused(toys, tmp_path):
    with pytest.raises(ArtifactError, match="no module"):
        from mlcycle.nb.runtime_files import ModuleSources, runtime_files

        with zipfile.ZipFile(tmp_path / "old.whl", "w") as old:
            old.writestr("mlcycle/__init__.py", "")
        runtime_files(["mlcycle.service.model_library"], sources=ModuleSources(tmp_path / "old.whl"))

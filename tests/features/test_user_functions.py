"""Features of a person's own: what is refused, where code comes from and where it never does, and a whole run with one."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import nbformat
import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import TABLES, WORDS, stored_rows
from joblib import Parallel, delayed
from nbformat.v4 import new_code_cell, new_notebook

import mlcycle as mc
from mlcycle.core.workspace import Workspace
from mlcycle.deployment.model_wheel import build_model_wheel, predict_by_wheel
from mlcycle.errors import ArtifactError, InputError, StageError
from mlcycle.features.create.recipes import FeatureCreator
from mlcycle.features.create.user_functions import (
    DECLARED_FUNCTIONS,
    FunctionFeature,
    check_feature_function,
    decorated_functions,
    feature,
    make_function_recipes,
)
from mlcycle.service.bundle import read_description
from mlcycle.service.local import running_service
from mlcycle.service.rows import to_json_rows
from mlcycle.stores.models.function_files import (
    KNOWN_FUNCTIONS,
    find_estimators_calling_functions,
    get_loaded_function,
    load_functions,
    load_workspace_functions,
    parse_feature_functions,
    save_functions,
    workspace_functions_file,
)
from mlcycle.stores.models.model_files import load_model, save_model

SECRET = 7


@pytest.fixture(autouse=True)
def clean_register():
    "What a test defines is gone after it."
    known, declared = dict(KNOWN_FUNCTIONS), dict(DECLARED_FUNCTIONS)
    yield
    for register, before in ((KNOWN_FUNCTIONS, known), (DECLARED_FUNCTIONS, declared)):
        register.clear()
        register.update(before)


def define():
    "A function of two columns."

    @feature("distance", "seats")
    def per_seat(distance, seats):
        "Distance for each seat."
        return distance / seats

    return per_seat


def trips(size: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"distance": rng.random(size) * 100, "seats": rng.integers(1, 200, size), "town": ["Rome", None] * (size // 2)}
    )


def recipe_of(function) -> FunctionFeature:
    (recipe,) = make_function_recipes([function], trips(), {})
    return recipe


def test_a_defined_function_is_known_and_the_last_definition_counts():
    first = define()
    assert decorated_functions() == [first] and get_loaded_function("per_seat", first.sha256) is first
    source = "@feature\ndef per_seat(distance):\n    return distance"
    (second,) = parse_feature_functions(source)
    assert second.sha256 != first.sha256 and second.inputs == ("distance",)
    assert feature(inputs=["seats"], kind="category")(_plain).inputs == ("seats",)


def _plain(x):
    return x


def _reads_more(distance):
    return distance * SECRET


def _too_many(distance, seats, town):
    return distance


def _starred(*columns):
    return columns[0]


def _helper_inside(distance):
    from math import pi

    return [pi * each for each in distance]


def test_what_is_wrong_with_the_text_is_said_when_it_is_defined():
    with pytest.raises(InputError, match="'_reads_more' reads 'SECRET' in its line 2"):
        feature("distance")(_reads_more)
    with pytest.raises(InputError, match="takes 3 columns, and 2 are declared"):
        feature("distance", "seats")(_too_many)
    with pytest.raises(InputError, match="no plain function"):
        feature("distance")(_starred)
    with pytest.raises(InputError, match="no kind 'numbr'"):
        feature("distance", kind="numbr")(_plain)
    with pytest.raises(InputError, match="cannot be found"):
        feature("distance")(eval("lambda distance: distance"))
    assert len(feature("distance")(_helper_inside)(pd.Series([1.0, 2]))) == 2
    hidden = 3
    with pytest.raises(InputError, match="reads 'hidden'"):

        @feature
        def enclosed(distance):
            return distance * hidden


BAD = {
    "return distance - distance.mean()": "alone",
    "return distance.rank()": "alone",
    "return distance.shift(1)": "alone",
    "return distance.fillna(distance.median())": "alone",
    "return np.random.default_rng().random(len(distance))": "alone",
    "return 1": "returns one value for",
    "return distance.head(3)": r"returns an array of shape \(3,\)",
    "return distance * np.nan": "only missing values",
    "return distance.astype(int)": r"fails in its line 2 \(return distance.astype\(int\)\)",
    "return distance / 'two'": "fails in its line 2",
    "return distance.astype(str) + ' km'": "not return values of kind 'number'",
}


@pytest.mark.parametrize("body", BAD)
def test_what_is_wrong_with_its_values_is_said_before_it_is_used(body):
    (function,) = parse_feature_functions(f"@feature\ndef mine(distance):\n    {body}")
    with pytest.raises(InputError, match=BAD[body]) as caught:
        check_feature_function(function, trips())
    assert "'mine'" in caught.value.found


def test_what_may_not_be_read_is_not_read():
    function = define()
    with pytest.raises(InputError, match="Did you mean 'distance'"):
        check_feature_function(parse_feature_functions("@feature\ndef mine(distanc):\n    return distanc")[0], trips())
    with pytest.raises(InputError, match="may not be used: known afterwards"):
        make_function_recipes([function], trips(), {"seats": "known afterwards"})
    with pytest.raises(InputError, match="has the name of a column"):
        make_function_recipes([function], trips().assign(per_seat=1), {})


@pytest.mark.parametrize(
    ("kind", "body"), [("category", "return town.str.upper()"), ("date", "return pd.to_datetime(town, errors='coerce')")]
)
def test_kinds_have_one_type_for_one_row_and_for_many(kind, body):
    (function,) = parse_feature_functions(f"@feature(kind={kind!r})\ndef mine(town):\n    {body}")
    rows = trips().assign(town=["2020-01-01", None] * 30)
    recipe = FunctionFeature("mine", function.sha256, ["town"], kind)
    check_feature_function(function, rows)
    KNOWN_FUNCTIONS["mine", function.sha256] = function
    whole = FeatureCreator([recipe]).fit_transform(rows)["mine"]
    for place in (0, 1):
        one = FeatureCreator([recipe]).fit_transform(rows.iloc[[place]])["mine"]
        assert one.dtype == whole.dtype and (
            one.iloc[0] == whole.iloc[place] or pd.isna(one.iloc[0]) and pd.isna(whole.iloc[place])
        )


def test_a_model_file_holds_a_name_and_a_hash_and_makes_nothing_without_the_function(tmp_path):
    function = define()
    step = FeatureCreator([recipe_of(function)]).fit(trips())
    sha256 = save_model(step, tmp_path / "m.skops")
    with zipfile.ZipFile(tmp_path / "m.skops") as file:
        everything = b"".join(file.read(name) for name in file.namelist())
    assert b"return distance" not in everything and function.sha256.encode() in everything
    saved = save_functions([function], tmp_path / "functions")
    KNOWN_FUNCTIONS.clear()
    again = load_model(tmp_path / "m.skops", sha256)
    assert not KNOWN_FUNCTIONS and [call.name for call in find_estimators_calling_functions(again)] == ["per_seat", "per_seat"]
    with pytest.raises(ArtifactError, match=f"'per_seat' .{function.sha256[:12]}.* not loaded in this process.*--functions"):
        again.transform(trips())
    load_workspace_functions(saved, Workspace(tmp_path, {"workspace": "."}))
    np.testing.assert_array_equal(again.transform(trips())["per_seat"], trips().distance / trips().seats)


def test_a_crafted_model_brings_no_code(tmp_path):
    step = FeatureCreator([recipe_of(define())])
    save_model(step, tmp_path / "m.skops")
    with zipfile.ZipFile(tmp_path / "m.skops") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    marker = tmp_path / "ran"
    code = f"def per_seat(distance, seats):\n    open({str(marker)!r}, 'w')\n    return distance"
    schema = parts["schema.json"].decode().replace("Distance for each seat.", json.dumps(json.dumps(code))[3:-3])
    for module, name in (
        ("mlcycle.stores.models.function_files", "FeatureFunction"),
        ("mlcycle.stores.models.function_files", "_rebuild_caller"),
    ):
        crafted = schema.replace('"FunctionFeature"', f'"{name}"').replace(
            '"mlcycle.features.create.user_functions"', f'"{module}"'
        )
        with zipfile.ZipFile(tmp_path / "crafted.skops", "w") as file:
            for part, content in (parts | {"schema.json": crafted.encode()}).items():
                file.writestr(part, content)
        KNOWN_FUNCTIONS.clear()
        with pytest.raises(ArtifactError, match="not trusted"):
            load_model(tmp_path / "crafted.skops")
    assert not marker.exists() and not KNOWN_FUNCTIONS


def test_only_the_file_whose_hash_is_known_is_read(tmp_path):
    function, space = define(), Workspace(tmp_path, {"workspace": "."})
    saved = save_functions([function], space.root / "functions")
    path = workspace_functions_file(saved, space)
    KNOWN_FUNCTIONS.clear()
    (tmp_path / "elsewhere.py").write_text(path.read_text())
    for wrong in ({"path": "elsewhere.py"}, {"path": "functions/../elsewhere.py"}, {"sha256": "0" * 64}):
        with pytest.raises(ArtifactError, match="not the one that stage 3 wrote"):
            load_workspace_functions(saved.model_copy(update=wrong), space)
    path.write_text(path.read_text().replace("distance / seats", "distance * seats"))
    with pytest.raises(ArtifactError, match="stage 3"):
        load_workspace_functions(saved, space)
    with pytest.raises(ArtifactError, match="altered"):
        load_functions(path, saved.sha256)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_functions(tmp_path / "nothing.py")
    assert not KNOWN_FUNCTIONS


def test_a_saved_file_is_a_module_that_gives_the_same_functions(tmp_path):
    function = define()
    saved = save_functions([function], tmp_path / "functions")
    code = "import runpy, sys; from mlcycle.stores.models.function_files import KNOWN_FUNCTIONS; "
    code += "runpy.run_path(sys.argv[1]); print(*KNOWN_FUNCTIONS)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / saved.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(("per_seat", function.sha256))
    assert saved == save_functions([function], tmp_path / "functions")
    (tmp_path / "more.py").write_text("raise SystemExit('this is not run')\n\n" + (tmp_path / saved.path).read_text())
    assert load_functions(tmp_path / "more.py") == [function]


def _transform(step, rows):
    return step.transform(rows)["per_seat"].to_numpy()


def test_worker_processes_know_the_functions():
    step = FeatureCreator([recipe_of(define())]).fit(trips())
    expected = _transform(step, trips())
    for backend in ("loky", "multiprocessing"):
        for made in Parallel(n_jobs=2, backend=backend)(delayed(_transform)(step, trips()) for _ in range(2)):
            np.testing.assert_array_equal(made, expected)
    frozen = pickle.dumps(step)
    KNOWN_FUNCTIONS.clear()
    np.testing.assert_array_equal(_transform(pickle.loads(frozen), trips()), expected)


CELL = """from mlcycle.features.create.user_functions import feature, decorated_functions

@feature("mean radius", "mean area")
def compactness(radius, area):
    "Area that a circle of that radius has, against the area it has."
    return 3.14159 * radius**2 / area
"""


@pytest.mark.parametrize("engine", ["warm", None])
def test_cells_of_notebooks_have_a_source(tmp_path, engine):
    papermill = pytest.importorskip("papermill")
    notebook = new_notebook(cells=[new_code_cell(CELL), new_code_cell("print(decorated_functions()[0].sha256)")])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    done = papermill.execute_notebook(tmp_path / "a.ipynb", None, engine_name=engine, progress_bar=False)
    (function,) = parse_feature_functions(CELL)
    assert done.cells[1].outputs[0].text.strip() == function.sha256


@pytest.fixture(scope="module")
def own_run(tmp_path_factory) -> mc.Run:
    "A run of a project whose notebook of stage 3 defines a feature."
    folder = tmp_path_factory.mktemp("own") / "project"
    made = cli("init", folder, cwd=folder.parent)
    assert made.returncode == 0, made.stderr
    path = folder / "nbs" / "03_features.ipynb"
    notebook = nbformat.read(path, 4)
    (cell,) = [cell for cell in notebook.cells if "functions" in cell.metadata.get("tags", ())]
    cell.source = CELL
    nbformat.write(notebook, path)
    frame, target = TABLES["cancer"]
    frame().to_csv(folder / "cancer.csv", index=False)
    done = cli("run", "-q", "--source", "cancer.csv", "--target", target, *WORDS, cwd=folder)
    run = mc.open("last", folder)
    assert run.info["status"] == "done", done.stdout + done.stderr
    return run


def test_a_run_with_a_feature_of_ones_own(own_run):
    plan = own_run.plan
    assert "compactness" in {each.name for each in plan.features} and "compactness" not in plan.input_columns
    assert plan.user_functions == own_run.candidate.model.user_functions == own_run.release.model.user_functions
    assert "functions.py" in own_run.release.files
    assert own_run.release.parity.n_equal == own_run.release.parity.rows
    rows = stored_rows(own_run, "holdout")[plan.input_columns].head(20)
    said = own_run.predict(rows)
    bundle = own_run.workspace.root / own_run.release.bundle
    with running_service(bundle, functions=workspace_functions_file(plan.user_functions, own_run.workspace)) as service:
        told = [service.predict([row], ["1"]) for row in to_json_rows(rows)]
    assert [each["predictions"][0] for each in told] == said.prediction.tolist()
    np.testing.assert_allclose([each["scores"][0] for each in told], said.score, rtol=1e-12)


def test_a_service_is_told_which_functions_it_may_call(own_run, tmp_path):
    bundle = own_run.workspace.root / own_run.release.bundle
    command = [sys.executable, "-c", "from mlcycle.service.server import main; main()", str(bundle)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0 and not refused.stdout
    assert "compactness" in refused.stderr and f"--functions {bundle / 'functions.py'}" in refused.stderr
    assert "Traceback" not in refused.stderr
    with running_service(bundle, functions=bundle / "functions.py") as service:
        assert service.client.get("/health").is_success
    other = tmp_path / "other.py"
    other.write_text((bundle / "functions.py").read_text().replace("3.14159", "3"))
    with pytest.raises(StageError, match="compactness"), running_service(bundle, functions=other):
        pass


def test_the_wheel_of_a_model_calls_its_functions(own_run, tmp_path):
    "Who installs the wheel trusts its code; functions that are loaded elsewhere in the process are not used."
    release = own_run.workspace.root / own_run.release.bundle
    wheel, bundle = build_model_wheel(release, tmp_path), read_description(release)
    rows = to_json_rows(stored_rows(own_run, "holdout")[own_run.plan.input_columns].head(20))
    expected = own_run.predict(rows).score.tolist()
    KNOWN_FUNCTIONS.clear()
    assert predict_by_wheel(wheel, rows, bundle, cold_start=False).scores.tolist() == expected
    assert not KNOWN_FUNCTIONS
    assert predict_by_wheel(wheel, rows, bundle, cold_start=True).scores.tolist() == expected


def test_an_altered_file_of_functions_is_noticed(own_run, tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(own_run.workspace.project, copy)
    run = mc.open("last", copy)
    path = run.workspace.root / run.plan.user_functions.path
    os.chmod(path, 0o644)
    path.write_text(path.read_text().replace("3.14159", "3"))
    rows = stored_rows(own_run, "holdout")[own_run.plan.input_columns].head(2)
    with pytest.raises(ArtifactError, match="stage 3"):
        run.predict(rows)
    assert "features" in cli("status", cwd=copy).stdout

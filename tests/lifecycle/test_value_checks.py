"What a late stage would refuse is refused before the first stage; functions of the user are tried on a few rows."

import json
from pathlib import Path

import pytest
from projects import orders

from mlcycle.errors import InputError, MlcycleError, ParameterError, StorageError
from mlcycle.lifecycle.last_options import make_plan_of_last_run, save_last_options
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.project import init_project
from mlcycle.lifecycle.run_folders import check_folders_are_writable
from mlcycle.lifecycle.value_checks import check_plan
from mlcycle.outcomes import STAGES


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    "A project with notebooks of its own, and a table with a column of zeros."
    init_project(tmp_path / "shop")
    orders().assign(zero=0).to_csv(tmp_path / "shop" / "orders.csv", index=False)
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def insert_cell(project: Path, stage: str, code: str) -> None:
    "Put a cell at the end of a stage notebook."
    path = next((project / "nbs").glob(f"0*_{stage}.ipynb"))
    notebook = json.loads(path.read_text())
    cell = {"cell_type": "code", "id": "mine", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook | {"cells": [*notebook["cells"][:-1], cell, notebook["cells"][-1]]}))


def check(project: Path, **parameters) -> None:
    "Check the values of a plan."
    given = {"source": "orders.csv", "target": "late"} | parameters
    check_plan(make_plan_from_parameters(given, project, origin="program"), STAGES, with_rows=True)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"models": ["lightgmb"]}, "lightgbm"),
        ({"weights": "zero"}, "all 240 values are 0"),
        ({"weights": "nowhere"}, "no such column"),
        ({"trials": 0}, "trials = 0"),
        ({"holdout_share": 2.0}, "holdout_share cannot be 2"),
        ({"split": "group"}, "'entity'"),
        ({"metric": "rmse"}, "does not fit"),
        ({"target": "lat"}, "'late'"),
        ({"key": ["order"]}, "'key'"),
        ({"target": "town", "positive": "Rome"}, "does not occur"),
    ],
)
def test_a_value_that_a_stage_would_refuse_is_refused_before_it_runs(shop, parameters, words):
    with pytest.raises(MlcycleError) as caught:
        check(shop, **parameters)
    assert words in str(caught.value)


def test_good_values_pass(shop):
    check(shop, models=["linear"], weights="balanced", metric="f1")


@pytest.mark.parametrize(
    ("stage", "code", "name"),
    [
        ("features", "@feature('price')\ndef bad(price):\n    return price.nowhere()\n", "AttributeError"),
        ("features", "@feature('prices')\ndef bad(prices):\n    return prices\n", "does not exist"),
        (
            "modelling",
            "from mlcycle.modelling.candidates import candidate_model\n@candidate_model('mine')\n"
            "def bad(task, seed):\n    return 1 / 0\n",
            "ZeroDivisionError",
        ),
    ],
)
def test_a_function_that_fails_is_named_with_its_file_and_the_exception(shop, stage, code, name):
    imported = "from mlcycle.features.create.user_functions import feature\n" if stage == "features" else ""
    insert_cell(shop, stage, imported + code)
    with pytest.raises(InputError) as caught:
        check(shop)
    assert "'bad'" in str(caught.value)
    assert f"_{stage}.ipynb" in str(caught.value)
    assert name in str(caught.value)


def test_a_function_that_works_passes(shop):
    imported = "from mlcycle.features.create.user_functions import feature\n"
    insert_cell(shop, "features", imported + "@feature('price')\ndef twice(price):\n    return 2 * price\n")
    check(shop)


def test_the_options_of_the_last_run_are_used_and_named(shop):
    plan = make_plan_from_parameters({"source": "orders.csv", "target": "late", "seed": "7"}, shop)
    save_last_options(plan, "20260101-000000-abcd")
    again, words = make_plan_of_last_run(shop)
    assert again.parameters == plan.parameters
    assert "20260101-000000-abcd: --source orders.csv --target late" in words


def test_a_file_in_place_of_a_folder_and_a_missing_project_are_one_sentence(tmp_path):
    (tmp_path / ".mlcycle").write_text("")
    plan = make_plan_from_parameters({}, tmp_path)
    with pytest.raises(StorageError, match="is not a folder"):
        check_folders_are_writable(plan.workspace)
    with pytest.raises(ParameterError, match="does not exist"):
        make_plan_from_parameters({}, tmp_path / "nowhere")

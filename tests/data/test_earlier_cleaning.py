"""Rows that an earlier run has cleaned: the service of the new model cleans requests as that run did."""

import pandas as pd
import pytest

from mlcycle.core.workspace import Workspace
from mlcycle.data.stage import prepare_data
from mlcycle.errors import ParameterError
from mlcycle.ml.cleaning_plan import CleaningPlan
from mlcycle.problem.stage import define_problem


def prepared_plan(folder, problem, **options) -> CleaningPlan:
    dataset = prepare_data(problem, Workspace(folder), contract_file="", **options)
    return CleaningPlan.model_validate_json((folder / ".mlcycle" / dataset.cleaning_plan.path).read_text())


def test_the_plan_of_the_earlier_run_is_part_of_the_new_one(tmp_path):
    prices = [f"{n},50 EUR" for n in range(200)]
    raw = pd.DataFrame({"price": prices, "town": ["Oslo", "Rome"] * 100, "late": ["no", "yes", "no", "no"] * 50})
    raw.to_csv(tmp_path / "raw.csv", index=False)
    first = define_problem(str(tmp_path / "raw.csv"), "late", probe_seconds=0)
    plan = prepared_plan(tmp_path, first)
    assert plan.columns["price"].number_format.comma == "decimal"
    raw.assign(price=[n + 0.5 for n in range(200)]).drop(columns="town").to_parquet(tmp_path / "clean.parquet")
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    second = define_problem(str(tmp_path / "clean.parquet"), "late", probe_seconds=0)
    assert "price" not in prepared_plan(tmp_path, second).columns
    joined = prepared_plan(tmp_path, second, earlier_cleaning="plan.json")
    assert joined.columns.keys() == {"price"}
    assert joined.columns["price"].number_format == plan.columns["price"].number_format
    with pytest.raises(ParameterError, match="is no cleaning plan"):
        prepare_data(second, Workspace(tmp_path), contract_file="", earlier_cleaning="clean.parquet")

"""The written question, whether it can be answered, and what stage 1 makes of both."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import cli
from conftest import ROOT
from jsonschema import Draft202012Validator
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

import mlcycle as mc
from mlcycle.errors import InputError, ParameterError
from mlcycle.problem.document import ProblemDocument, load_problem_document, problem_schema_text, render_problem_yaml
from mlcycle.problem.feasibility import assess_feasibility
from mlcycle.problem.stage import define_problem, draft_problem_fields
from mlcycle.stores.sources.ingest import normalise_dtypes

GOOD = """\
question: Will the order arrive late?
owner: Logistics
expert: Ada
source: orders.csv
target: late
positive: yes
metric: f1
criteria:
- f1 >= 0.3
- beats baseline
costs:
  yes: {no: 5, yes: -1}
  no:
    yes: 1
protected_columns: [town]
entity: customer
excluded:
  arrived: it is known only afterwards
"""


def orders(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    "Orders of customers, late more often if they are dear."
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"price": rng.random(rows).round(3), "town": rng.choice(["Ulm", "Bonn"], rows)})
    frame = frame.assign(customer=[f"c{number}" for number in rng.integers(0, 80, rows)], arrived=rng.random(rows).round(3))
    return frame.assign(late=np.where(frame.price + rng.normal(0, 0.2, rows) > 0.6, "yes", "no"))


@pytest.fixture
def project(tmp_path):
    "A project with a table and a written question."
    (tmp_path / "settings.ini").touch()
    orders().to_csv(tmp_path / "orders.csv", index=False)
    (tmp_path / "problem.yaml").write_text(GOOD)
    return tmp_path


def noise(seed: int, rows: int = 150, task: str = "binary") -> pd.DataFrame:
    "Columns that say nothing about the answer."
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 6)), columns=list("abcdef")).assign(word=rng.choice(["x", "y", "z"], rows))
    answers = {"binary": ["no", "yes"], "multiclass": ["p", "q", "r"]}.get(task)
    return normalise_dtypes(frame.assign(y=rng.normal(size=rows) if answers is None else rng.choice(answers, rows)))


# Each breaks one line of the file; what is printed names the line, the field, and what would be right.
BROKEN = {
    "an unknown field": ("metric: f1", "metrik: f1", ["Line 7", "'metrik'", "Did you mean 'metric'?"]),
    "a list where text is expected": ("owner: Logistics", "owner: [a, b]", ["Line 2", "'owner'", "Text"]),
    "text where a list is expected": (
        "protected_columns: [town]",
        "protected_columns: town",
        ["Line 15", "'protected_columns'", "list"],
    ),
    "a cost that is no number": ("    yes: 1", "    yes: much", ["Line 14", "'costs.no.yes'", "'much'", "number"]),
    "a budget below zero": ("expert: Ada", "latency_budget_ms: -3", ["Line 3", "'latency_budget_ms'", "greater than 0"]),
    "a task that is none": ("expert: Ada", "task: binnary", ["Line 3", "'task'", "'binary'"]),
    "a field twice": ("expert: Ada", "owner: Ada", ["Line 3", "'owner'", "second time"]),
    "no YAML": ("owner: Logistics", "owner: [Logistics", ["Line 3", "not YAML"]),
    "a target that is no column": ("target: late", "target: lat", ["Line 5", "'target'", "Did you mean 'late'?"]),
    "an excluded column that is none": ("  arrived: it", "  arived: it", ["Line 18", "'excluded.arived'", "'arrived'"]),
    "an entity that is no column": ("entity: customer", "entity: custommer", ["Line 16", "'entity'", "'customer'"]),
    "a group that is no column": (
        "protected_columns: [town]",
        "protected_columns: [tawn]",
        ["Line 15", "'protected_columns[1]'", "'town'"],
    ),
    "a group that is excluded": (
        "protected_columns: [town]",
        "protected_columns: [arrived]",
        ["Line 15", "'protected_columns[1]'", "also excluded"],
    ),
    "a cost of a class that is none": ("  yes: {no: 5, yes: -1}", "  maybe: {no: 5}", ["Line 12", "'maybe'", "no, yes"]),
    "a metric that does not fit": ("metric: f1", "metric: rmse", ["Line 7", "'metric'", "rmse"]),
    "a criterion that cannot be read": ("- beats baseline", "- beats everybody", ["Line 10", "'criteria[2]'", "beats everybody"]),
    "a positive class that is none": ("positive: yes", "positive: perhaps", ["Line 6", "'positive'", "no, yes"]),
    "a source that is none": ("source: orders.csv", "source: oders.csv", ["Line 4", "'source'", "orders.csv"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_with_line_and_field(case, project, monkeypatch):
    old, new, words = BROKEN[case]
    assert GOOD.count(old) == 1
    monkeypatch.chdir(project)
    (project / "problem.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        define_problem(document=load_problem_document(project / "problem.yaml"), probe_seconds=0)
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert caught.value.exit_code == 2


def test_every_mistake_is_named(project):
    (project / "problem.yaml").write_text("metrik: f1\nprotected_columns: town\n")
    with pytest.raises(ParameterError, match=r"(?s)Line 1 .*Also: Line 2 "):
        load_problem_document(project / "problem.yaml")


def test_a_field_of_an_older_name_is_told_its_new_one(project):
    (project / "problem.yaml").write_text("target: late\ngroups: [town]\n")
    with pytest.raises(ParameterError, match="Line 2 .*'groups' has another name now.*'protected_columns'"):
        load_problem_document(project / "problem.yaml")
    with pytest.raises(ParameterError, match="'protected_columns'"):
        define_problem("orders.csv", "late", probe_seconds=0, groups=["town"])


def test_command_line_checks_and_nothing_is_run(project):
    good = cli("problem", "check", cwd=project)
    assert good.returncode == 0 and "class 'yes' on 240" in good.stdout and "Not signed off" in good.stdout
    (project / "problem.yaml").write_text(GOOD.replace("target: late", "target: lat"))
    for words in (["problem", "check"], ["run", "-q", "--until", "problem"]):
        bad = cli(*words, cwd=project)
        assert bad.returncode == 2 and "Line 5 of problem.yaml, field 'target'" in bad.stderr
    assert not list(project.glob(".mlcycle/runs/2*")) and not list(project.glob("reports/2*"))
    missing = cli("run", "-q", "-p", "problem_file=other.yaml", cwd=project)
    assert missing.returncode == 2 and "other.yaml" in missing.stderr


def test_schema_in_the_documentation_is_the_models():
    published = (ROOT / "docs" / "_static" / "problem.schema.json").read_text()
    assert published == problem_schema_text(), "mlcycle problem schema > docs/_static/problem.schema.json"
    assert all(field.get("description") for field in json.loads(published)["properties"].values())


def test_schema_accepts_and_refuses_what_the_reader_does(project):
    schema = Draft202012Validator(json.loads(problem_schema_text()))
    assert schema.is_valid(yaml.safe_load(GOOD.replace("yes:", "'yes':").replace("no:", "'no':")))
    for text in ("metrik: f1", "protected_columns: town", "latency_budget_ms: -3", "task: binnary", "costs: {a: {b: much}}"):
        assert not schema.is_valid(yaml.safe_load(text)), text


def test_draft_is_read_back_and_an_existing_file_stays(project):
    (project / "problem.yaml").unlink()
    made = cli("problem", "init", "--source", "orders.csv", "--target", "late", cwd=project)
    assert made.returncode == 0, made.stderr
    text = (project / "problem.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=problem.schema.json"
    assert (project / "problem.schema.json").read_text() == problem_schema_text()
    draft = load_problem_document(project / "problem.yaml")
    assert (draft.source, draft.target, draft.task, draft.positive) == ("orders.csv", "late", "binary", "yes")
    assert all(f"{name}:" in text for name in ProblemDocument.model_fields)
    again = cli("problem", "init", cwd=project)
    assert again.returncode == 2 and "exists" in again.stderr and (project / "problem.yaml").read_text() == text
    assert cli("problem", "check", cwd=project).returncode == 0


def test_draft_without_comments_is_the_schemas_too():
    frame = normalise_dtypes(orders())
    text = render_problem_yaml(*draft_problem_fields("orders", "late", frame))
    assert Draft202012Validator(json.loads(problem_schema_text())).is_valid(yaml.safe_load(text))


def test_run_uses_the_file_and_an_edit_makes_it_stale(project):
    quick = ["-p", "probe_seconds=0"]
    (project / "problem.yaml").unlink()
    first = cli("run", "-q", "--until", "problem", "--source", "orders.csv", "--target", "late", *quick, cwd=project)
    assert first.returncode == 0, first.stderr
    given = ["--source", "orders.csv", "--target", "late", *quick]
    assert "fresh" in _status(project, *given)
    (project / "problem.yaml").write_text(GOOD)
    assert "file problem.yaml" in _status(project, *given), "a file that appears counts"
    run = cli("run", "-q", "--until", "problem", *quick, cwd=project)
    assert run.returncode == 0, run.stderr
    problem = mc.open("last", project).problem
    assert (problem.owner, problem.metric, problem.protected_columns, problem.entity) == ("Logistics", "f1", ["town"], "customer")
    assert problem.costs == {"yes": {"no": 5.0, "yes": -1.0}, "no": {"yes": 1.0}} and problem.source == "orders.csv"
    page = next((project / "reports" / mc.open("last", project).id).glob("01*.html")).read_text()
    assert "not signed off" in page and "Not assessed" in page
    assert "fresh" in _status(project, *quick)
    (project / "problem.yaml").write_text(GOOD.replace("Logistics", "Sales"))
    assert "file problem.yaml" in _status(project, *quick)
    (project / "problem.yaml").write_text(GOOD)
    orders(seed=1).to_csv(project / "orders.csv", index=False)
    assert "file orders.csv" in _status(project, *quick), "a source that only the file names counts"


def _status(project, *words) -> str:
    "The line of stage 1."
    return next(line for line in cli("status", *words, cwd=project).stdout.splitlines() if "problem" in line)


def test_what_is_said_for_a_run_wins_over_the_file_and_the_file_over_a_bundled_source(project):
    document, frame = load_problem_document(project / "problem.yaml"), normalise_dtypes(orders())
    problem = define_problem("orders.csv", metric="recall", rows=frame, document=document, probe_seconds=0)
    assert (problem.metric, problem.owner, problem.target) == ("recall", "Logistics", "late")
    flights = define_problem("sample", document=ProblemDocument(owner="Me"), probe_seconds=0)
    assert (flights.owner, flights.target, flights.feasibility) == ("Me", "late", None)
    with pytest.raises(ParameterError, match="No source"):
        define_problem(target="late", probe_seconds=0)


def test_pure_noise_is_infeasible_for_19_of_20_seeds():
    verdicts = [define_problem("noise", "y", rows=noise(seed), probe_seconds=600).feasibility.verdict for seed in range(20)]
    assert verdicts.count("infeasible") >= 19


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_noise_is_infeasible_for_other_tasks(task):
    tables = [noise(seed, 120, task) for seed in range(3)]
    verdicts = [define_problem("noise", "y", rows=table, probe_seconds=600).feasibility.verdict for table in tables]
    assert verdicts.count("infeasible") >= 2


def test_breast_cancer_is_feasible_and_the_same_each_time():
    frame = normalise_dtypes(load_breast_cancer(as_frame=True).frame)
    criteria = ["roc_auc >= 0.95", "accuracy >= 0.9", "beats baseline by 20 %"]
    one = define_problem("cancer", "target", criteria, rows=frame, probe_seconds=600)
    found = one.feasibility
    assert found.verdict == "feasible" and set(found.criteria.values()) == {"within reach"}
    assert found.p_value <= 0.05 and found.scores["dummy"].value == 0.5
    assert found.extrapolated_score.low <= found.extrapolated_score.value <= found.extrapolated_score.high <= 1
    assert "Feasible:" in one.decision
    assert one.content() == define_problem("cancer", "target", criteria, rows=frame, probe_seconds=600).content()
    greedy = define_problem("cancer", "target", ["accuracy >= 0.9999"], rows=frame, probe_seconds=600).feasibility
    assert greedy.verdict == "infeasible" and "'accuracy >= 0.9999'" in greedy.reason


@pytest.mark.parametrize(("load", "metric"), [(load_wine, "accuracy"), (load_diabetes, "r2")])
def test_other_tasks_are_probed(load, metric):
    found = define_problem("table", "target", rows=normalise_dtypes(load(as_frame=True).frame), probe_seconds=600).feasibility
    assert found.verdict == "feasible" and found.extrapolated_score.metric == metric and len(found.learning_curve) == 5
    assert [point.train_size for point in found.learning_curve] == sorted(point.train_size for point in found.learning_curve)


def test_odd_columns_do_no_harm():
    frame = orders(150).assign(same=1, none=np.nan, no_text=None, huge=1e300, endless=np.inf)
    frame.loc[3, "endless"] = 0.0
    frame["when"] = pd.date_range("2024-01-01", periods=150).where(np.arange(150) % 7 > 0)
    frame["id"] = [f"id{number}" for number in range(150)]
    found = define_problem("odd", "late", rows=normalise_dtypes(frame), entity="customer", probe_seconds=600).feasibility
    assert found.verdict in ("feasible", "doubtful") and found.p_value <= 0.05
    nothing = normalise_dtypes(frame[["same", "none", "late"]])
    assert define_problem("odd", "late", rows=nothing, probe_seconds=600).feasibility.verdict == "infeasible"


def test_rows_in_order_of_time_are_asked_about_by_the_past_even_if_it_knows_one_class():
    frame = orders(120).assign(when=pd.date_range("2024-01-01", periods=120))
    frame.loc[:30, "late"] = "no"
    found = define_problem("orders", "late", rows=normalise_dtypes(frame), time="when", probe_seconds=600).feasibility
    assert 0 < found.p_value <= 1 and found.scores["boosting"].value > 0


def test_answers_that_contradict_each_other_bound_what_can_be_reached():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.integers(0, 5, 400), "b": rng.integers(0, 3, 400)})
    frame["y"] = np.where((frame.a > 2) ^ (rng.random(400) < 0.25), "yes", "no")
    problem = define_problem(
        "coins", "y", ["accuracy >= 0.95"], rows=normalise_dtypes(frame), metric="accuracy", probe_seconds=600
    )
    found = problem.feasibility
    assert found.label_noise > 0.9 and 0.7 < found.noise_ceiling < 0.85 and found.extrapolated_score.high <= found.noise_ceiling
    assert (found.verdict, found.criteria) == ("infeasible", {"accuracy >= 0.95": "out of reach"})


def test_fewer_entities_than_folds_are_probed_with_a_warning():
    frame = normalise_dtypes(orders(150).assign(customer=[f"c{row % 3}" for row in range(150)]))
    found = define_problem("orders", "late", rows=frame, entity="customer", probe_seconds=600).feasibility
    assert "3 values of 'customer' for 5 folds" in found.warnings[0]
    many = frame.assign(customer=[f"c{row % 30}" for row in range(150)])
    assert define_problem("orders", "late", rows=many, entity="customer", probe_seconds=600).feasibility.warnings == []


def test_time_that_is_up_is_told():
    frame = normalise_dtypes(load_wine(as_frame=True).frame)
    problem = define_problem("wine", "target", rows=frame, probe_seconds=0)
    hasty = assess_feasibility(frame, problem, seconds=1e-9)
    assert hasty.verdict == "not assessed" and "gradient boosting" in hasty.skipped and "boosting" not in hasty.scores

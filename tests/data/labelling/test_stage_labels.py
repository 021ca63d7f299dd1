"""Labels in stages 1 and 2: where they come from, what becomes of rows without one, and what is to be labelled next."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlcycle.core.workspace import Workspace
from mlcycle.data.labelling.label_section import describe_labels
from mlcycle.data.labelling.queue_file import queue_path
from mlcycle.data.labelling.row_labels import LabelSettings
from mlcycle.data.stage import prepare_data
from mlcycle.errors import InputError, TargetError
from mlcycle.features.stage import FeatureSettings, find_leakage_suspects
from mlcycle.lifecycle.labelling import LabellingOptions, open_labelling
from mlcycle.lifecycle.stage_inputs import label_inputs
from mlcycle.ml.folds import exclude_from_validation, make_folds
from mlcycle.modelling.stage import find_unscored_rows
from mlcycle.modelling.weights import sample_weights
from mlcycle.outcomes import Dataset, Problem
from mlcycle.problem.stage import define_problem
from mlcycle.stores.tables.holdout import read_any_table

RULES = """from mlcycle.data.labelling.rules import ABSTAIN, rule
@rule
def cheap(row): return "No" if row["spend"] < 45 else ABSTAIN
@rule
def dear(row): return "Yes" if row["spend"] > 55 else ABSTAIN
@rule
def from_lima(row): return "Yes" if row["town"] == "Lima" else ABSTAIN
"""


def orders(n: int = 120, labelled: int = 80) -> pd.DataFrame:
    "Orders, late if they are dear; the last ones have no label."
    rng = np.random.default_rng(0)
    spend = rng.normal(50, 12, n).round(3)
    late = pd.Series(np.where(spend > 50, "Yes", "No"), dtype=object)
    late[labelled:] = None
    return pd.DataFrame({"spend": spend, "town": rng.choice(["Lima", "Oslo", "Rome"], n), "paid": rng.integers(0, 2, n),
                         "late": late})  # fmt: skip


class Project(SimpleNamespace):
    "A source and a workspace, and what people and stages do with them."

    def write(self, rows: pd.DataFrame) -> None:
        rows.to_csv(self.source, index=False)

    def problem(self, **fields) -> Problem:
        return define_problem(self.source, "late", workspace=self.workspace, probe_seconds=0, **fields)

    def data(self, problem=None, *, split="stratified", **settings) -> Dataset:
        settings = {"query_strategy": "random"} | settings  # Without a model, which takes a second
        return prepare_data(problem or self.problem(), self.workspace, labels=LabelSettings(**settings), split=split)

    def table(self, dataset: Dataset, name: str) -> pd.DataFrame:
        return read_any_table(self.workspace, dataset.tables[name], reason="a test looks")

    def used(self, dataset: Dataset) -> pd.DataFrame:
        "All rows that are used, as they were stored."
        return pd.concat([self.table(dataset, name) for name in ("train", "holdout", "future") if name in dataset.tables])

    def label(self, who: str, decide, *, limit: int = 1000, overlap: int = 1, **options) -> list[str]:
        "Let a person label the queue; returns the numbers of the rows in the source."
        options |= {"target": "late", "overlap": overlap, "settings": LabelSettings(query_strategy="random")}
        opened = open_labelling(self.source, self.workspace, LabellingOptions(**options))
        return self.label_all(opened, who, decide, limit)

    def label_queue(self, who: str, decide, limit: int = 1000, overlap: int = 1) -> list[str]:
        "The same, for the queue that stage 2 has filled."
        opened = open_labelling("orders-late", self.workspace, LabellingOptions(overlap=overlap))
        return self.label_all(opened, who, decide, limit)

    def label_all(self, opened, who: str, decide, limit: int) -> list[str]:
        session, rows = opened.session(who), []
        while len(rows) < limit and (item := session.state()["item"]):
            fields = {field["name"]: field["text"] for field in item["fields"]}
            state = session.act({"kind": "label", "item": item["id"], "label": decide(fields), "seconds": 1.0})
            assert not state["error"]
            rows.append(item["row_id"])
        opened.store.close()
        return rows

    def queue(self) -> list[dict]:
        path = queue_path(self.workspace, "orders-late")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture
def project(tmp_path):
    made = Project(source=str(tmp_path / "orders.csv"), workspace=Workspace.from_project(tmp_path))
    made.write(orders())
    return made


def honest(fields: dict) -> str:
    return "Yes" if float(fields["spend"]) > 50 else "No"


def counted(dataset: Dataset) -> tuple[int, int]:
    "Rows that were read, and those that are in some table."
    return dataset.rows_in, dataset.rows_clean + dataset.rows_set_aside + dataset.rows_quarantined + dataset.rows_unlabelled


# --- Rows without a label ---------------------------------------------------------------------------------------------------


def test_rows_without_a_label_are_kept_and_queued(project):
    rows = orders()
    project.write(pd.concat([rows, rows.iloc[[0, 1]]]))  # Two duplicates, which are set aside
    dataset = project.data(queue_size=30, query_strategy="auto")
    assert (dataset.rows_clean, dataset.rows_set_aside, dataset.rows_unlabelled) == (80, 2, 40)
    assert counted(dataset) == (122, 122)
    unlabelled = project.table(dataset, "unlabelled")
    assert unlabelled.spend.tolist() == rows.spend[80:].tolist() and unlabelled.late.isna().all()
    lines = project.queue()
    assert len(lines) == 30 == dataset.labels.queued and all(line["reason"] for line in lines)
    assert all(line["features"].keys() == {"spend", "town", "paid"} for line in lines), "the target is not shown"
    assert {line["features"]["spend"] for line in lines} <= set(rows.spend[80:])
    assert "labels" not in dataset.tables, "all labels are of the source"
    assert describe_labels(dataset, project.problem()).startswith(
        "40 rows (32.8%) have no label.\n\n30 rows without a label by a person or the source are in"
    )
    project.write(orders(labelled=120))
    assert project.data().labels is None and not project.queue(), "nothing is wanted any more"


def test_without_a_need_nothing_is_made(project):
    project.write(orders(labelled=120))
    problem = project.problem()
    dataset = project.data(problem)
    assert dataset.labels is None and not {"labels", "annotations", "unlabelled"} & set(dataset.tables)
    assert describe_labels(dataset, problem) == "All labels are those of the source, and no row lacks one."
    assert not list(project.workspace.root.rglob("labels.db*")) and not (project.workspace.root / "labelling").exists()
    assert label_inputs(SimpleNamespace(workspace=project.workspace, parameters={}), "data") == {}


# --- Labels by people -------------------------------------------------------------------------------------------------------


def test_labels_by_people_become_the_target_and_change_the_inputs_of_both_stages(project):
    plan = SimpleNamespace(workspace=project.workspace, parameters={"problem": {"source": project.source, "target": "late"}})
    first = project.data()
    before = label_inputs(plan, "data")
    numbers = project.label_queue("anna", honest, 15)
    after = label_inputs(plan, "data")
    assert before != after == label_inputs(plan, "problem") and label_inputs(plan, "modelling") == {}
    problem = project.problem()
    assert "95 labelled rows" in problem.decision
    dataset = project.data(problem)
    assert (dataset.rows_clean, dataset.rows_unlabelled) == (95, 25) and counted(dataset) == (120, 120)
    labels = project.table(dataset, "labels")
    assert labels.origin.value_counts().to_dict() == {"source": 80, "person": 15} == dataset.labels.by_origin
    by_people = labels.index[labels.origin == "person"]
    assert (labels.weight == 1).all() and set(by_people) == set(map(int, numbers)) <= set(
        project.table(first, "unlabelled").index
    )
    used = project.used(dataset)
    assert (used.late == np.where(used.spend > 50, "Yes", "No")).all() and set(by_people) <= set(used.index)
    for part in ("train", "holdout"):
        assert set(project.table(first, part).index) < set(project.table(dataset, part).index), "a labelled row keeps its part"
    assert len(project.table(dataset, "annotations")) == 15
    assert not dataset.ledger or all(line.step != "labels" for line in dataset.ledger), "no label of the source changed"
    assert len(project.queue()) == 25, "labelled rows leave the queue"


@pytest.mark.parametrize("kind", ["text", "whole", "yes or no", "decimal"])
def test_labels_have_the_type_of_the_source(project, kind):
    rows = orders()
    values = {"text": ["No", "Yes"], "whole": [0, 1], "yes or no": [False, True], "decimal": [0.5, 1.5]}[kind]
    rows.late = rows.late.map(dict(zip(["No", "Yes"], values, strict=True)))
    project.write(rows)
    problem = project.problem(task="binary")
    project.data(problem)
    classes = dict(zip(["No", "Yes"], problem.classes, strict=True))
    assert len(project.label_queue("anna", lambda fields: classes[honest(fields)], 40)) == 40
    again = project.problem(task="binary")
    dataset = project.data(again)
    if kind == "yes or no":  # A column of a CSV file with empty cells is text
        values = [str(each) for each in values]
    assert again.classes == problem.classes == values
    assert (dataset.rows_clean, dataset.rows_unlabelled) == (120, 0)
    used = project.used(dataset)
    assert (used.late == np.where(used.spend > 50, values[1], values[0])).all()


def test_a_target_that_is_no_column_is_labelled_by_people(project):
    project.write(orders().drop(columns="late"))
    with pytest.raises(TargetError, match="To label the rows by hand: mlcycle label"):
        project.problem()
    assert len(project.label("anna", honest, classes=["No", "Yes"], limit=90)) == 90
    problem = project.problem()
    assert (problem.task, problem.classes) == ("binary", ["No", "Yes"])
    dataset = project.data(problem)
    assert (dataset.rows_clean, dataset.rows_unlabelled) == (90, 30) and counted(dataset) == (120, 120)
    assert dataset.labels.by_origin == {"person": 90} and dataset.labels.queued == 30
    with pytest.raises(TargetError):
        project.problem(label_source="source")


def test_numbers_are_labelled(project):
    rows = orders()
    rows.late = (rows.spend * 2).where(rows.late.notna())
    project.write(rows)
    assert project.problem().task == "regression"
    project.data()
    assert len(project.label_queue("anna", lambda fields: 2 * float(fields["spend"]), 20)) == 20
    dataset = project.data()
    assert (dataset.rows_clean, dataset.rows_unlabelled) == (100, 20)
    used = project.used(dataset)
    assert np.allclose(used.late, 2 * used.spend) and project.table(dataset, "unlabelled").late.dtype == float


def test_people_who_differ_give_less_weight(project):
    project.data(queue_size=20)
    project.label_queue("anna", honest, overlap=2)
    flip = {"Yes": "No", "No": "Yes"}
    numbers = iter(range(20))
    project.label_queue("ben", lambda fields: flip[honest(fields)] if next(numbers) < 4 else honest(fields), overlap=2)
    dataset = project.data()
    labels = project.table(dataset, "labels")
    both = labels[labels.n_annotators == 2]
    assert len(both) == 20 and (both.weight == 0.5).sum() == 4 and (both.weight == 1).sum() == 16
    assert dataset.labels.annotators == 2
    kappa = {each.statistic: each for each in dataset.labels.agreement}
    assert any(each.value is not None and 0 < each.value < 1 and each.items == 20 for each in kappa.values())
    again = dataset.labels.rows_to_relabel
    assert {each.row_id for each in again} == set(map(str, both.index[both.weight == 0.5]))
    assert all(each.confidence == 0.5 and each.reason == "labels: No (1), Yes (1)" for each in again)
    assert "predictions" in describe_labels(dataset, project.problem()).lower() and dataset.labels.stop_reason
    ties = [line["reason"] for line in project.queue() if line.get("overlap") == 3]
    assert ties == ["No majority of 2 labels."] * 4, "the next person does not see the labels of others"
    sizes = [each.labels for each in dataset.labels.learning_curve]
    assert sizes == sorted(sizes) and 20 <= sizes[0] < sizes[-1] < dataset.tables["train"].rows
    assert set(project.label_queue("cleo", honest, limit=4)) == {each.row_id for each in again}, (
        "rows without a majority come first"
    )
    assert {each.n_labels for each in project.data(queue_size=0).labels.rows_to_relabel} == {3}
    for unknown in ({"consensus": "loudest"}, {"query_strategy": "nicest"}, {"rule_combination": "dice", "rules_file": "x.py"}):
        with pytest.raises(InputError):
            project.data(**unknown)


def test_a_person_corrects_the_source(project):
    rows = orders(labelled=120)
    rows.loc[3, "late"] = "No" if rows.late[3] == "Yes" else "Yes"  # A slip
    project.write(rows.assign(late=rows.late.where(~rows.index.isin([3, 4]))))
    assert sorted(project.label("anna", honest)) == ["3", "4"]
    project.write(rows)
    dataset = project.data()
    line = next(line for line in dataset.ledger if line.step == "labels")
    assert (line.rows, line.column, dataset.labels.changed) == (1, "late", 1)
    example = line.examples[0]
    assert (example.before, example.after) == (rows.late[3], "No" if rows.late[3] == "Yes" else "Yes")
    assert "Labels of the source that people changed: 1" in describe_labels(dataset, project.problem())


# --- Where labels come from -------------------------------------------------------------------------------------------------


def test_label_source_decides_whose_labels_count(project, tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    project.data()
    project.label_queue("anna", honest, 40)
    rules = {"rules_file": str(tmp_path / "rules.py")}
    wanted = {"source": (80, None), "people": (40, {"person": 40}), "auto": (120, {"source": 80, "person": 40})}
    for source, (clean, by_origin) in wanted.items():
        problem = project.problem(label_source=source)
        dataset = project.data(problem, **(rules if source == "source" else {}))
        assert dataset.rows_clean == clean and counted(dataset) == (120, 120)
        assert (dataset.labels and dataset.labels.by_origin or None) == by_origin
    dataset = project.data(project.problem(label_source="rules"), **rules)
    assert dataset.labels.by_origin.keys() == {"person", "rule"} and dataset.labels.by_origin["person"] == 40


def test_labels_of_people_only_when_nobody_has_labelled(project):
    with pytest.raises(TargetError, match="No row has a label"):
        project.data(project.problem(label_source="people"))
    with pytest.raises(InputError, match="rules_file is empty"):
        project.data(project.problem(label_source="rules"))


def test_labels_of_another_version_of_the_data(project):
    project.data()
    project.label_queue("anna", honest, 5)
    rows = orders()
    project.write(rows.assign(spend=rows.spend + 1))
    with pytest.raises(InputError, match="5 labels, and none belongs to a row of this source, whose values have changed"):
        project.problem()
    project.write(rows.drop(columns="town").assign(city=rows.town))
    with pytest.raises(InputError, match="whose columns have changed: added 'city'; removed 'town'"):
        project.problem()
    project.write(rows.assign(weight=range(len(rows)), spend=rows.spend.where(rows.index < 117, 0.5)))
    dataset = project.data()
    lost = dataset.labels.unmatched
    assert dataset.labels.by_origin["person"] + lost == 5, (
        "a row with one more column is the same, one with a changed value is not"
    )
    assert any("labelled rows are not in the source any more" in text for text in dataset.notices) == bool(lost)
    project.label_queue("ben", honest, 2)
    assert project.data().labels.by_origin["person"] >= dataset.labels.by_origin["person"] + 2
    project.write(rows)
    assert project.data(project.problem(label_source="source")).rows_clean == 80
    project.write(pd.concat([rows.iloc[::-1], rows.iloc[:1].assign(spend=1.25)]))  # Another order, and one more row
    by_origin = project.data().labels.by_origin
    assert by_origin["source"] == 81 and 5 <= by_origin["person"] <= 7


# --- Rules ------------------------------------------------------------------------------------------------------------------


def test_rows_labelled_by_rules_are_training_rows_with_weights(project, tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    dataset = project.data(rules_file=str(tmp_path / "rules.py"))
    labels = project.table(dataset, "labels")
    by_rules = labels.index[labels.origin == "rule"]
    assert 20 <= len(by_rules) <= 40 and dataset.rows_clean == 80 + len(by_rules) and counted(dataset) == (120, 120)
    assert set(by_rules) <= set(project.table(dataset, "train").index)
    assert not set(by_rules) & set(project.table(dataset, "holdout").index)
    assert (labels.weight[labels.origin == "source"] == 1).all() and labels.weight[by_rules].nunique() > 1
    assert {each.name for each in dataset.labels.rules} == {"cheap", "dear", "from_lima"}
    assert "labelled by rules alone are training rows" in dataset.split_description
    assert dataset.labels.queued == 40, "rows that rules label are still worth a label by a person"


def test_weights_of_rules_count_in_training_and_their_rows_are_not_scored(project, tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    problem = project.problem()
    dataset = project.data(problem, rules_file=str(tmp_path / "rules.py"))
    train, labels = project.table(dataset, "train"), project.table(dataset, "labels")
    by_rules = labels.index[labels.origin == "rule"]
    weights = pd.Series(sample_weights(problem, train, "", labels), train.index)
    assert weights.mean() == pytest.approx(1) and np.allclose(
        weights / weights.max(), labels.weight[train.index] / labels.weight[train.index].max()
    )
    folds = exclude_from_validation(make_folds(problem, train, 3, 0), train, by_rules)
    validated = np.concatenate([valid for _, valid in folds])
    assert set(train.index[validated]) == set(train.index) - set(by_rules), "each other row is scored once"
    assert all(train.index[fitted].isin(by_rules).any() for fitted, _ in folds), "models learn from rules"


def test_rules_may_label_all_rows_before_a_holdout_that_is_labelled_otherwise(project, tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    rows = orders(200, 200).drop(columns="town").assign(day=pd.date_range("2026-01-01", periods=200))
    noisy = np.where(rows.spend + np.random.default_rng(1).normal(0, 4, 200) > 50, "Yes", "No")
    project.write(rows.assign(late=np.where(rows.day < "2026-05-01", None, noisy)))
    (tmp_path / "rules.py").write_text(RULES.rpartition("@rule")[0])
    problem, settings = project.problem(time="day"), LabelSettings(rules_file=str(tmp_path / "rules.py"), queue_size=0)
    dataset = prepare_data(problem, project.workspace, labels=settings, split="time", holdout_from="2026-05-01", future_share=0)
    train, labels = project.table(dataset, "train"), project.table(dataset, "labels")
    assert set(labels.origin[train.index]) == {"rule"} and dataset.tables["holdout"].rows == 80
    folds = make_folds(problem, train, 3, 0)
    assert find_unscored_rows(labels, train, folds, problem) is None, "no other rows can be scored"
    suspects, _ = find_leakage_suspects(problem, dataset, train, project.workspace, FeatureSettings())
    assert not suspects, "that rules read a column is no target leakage"
    few = prepare_data(problem, project.workspace, labels=settings, split="time", holdout_from="2026-05-05", future_share=0)
    train, labels = project.table(few, "train"), project.table(few, "labels")
    assert labels.origin[train.index].value_counts()["source"] == 4
    assert find_unscored_rows(labels, train, make_folds(problem, train, 3, 0), problem) is None
    assert find_leakage_suspects(problem, few, train, project.workspace, FeatureSettings()) == ([], {})


def test_labels_by_rules_alone_cannot_be_judged(project, tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    with pytest.raises(TargetError, match="labels are by rules"):
        project.data(project.problem(label_source="rules"), rules_file=str(tmp_path / "rules.py"))


def test_rules_that_cannot_be_used(project, tmp_path):
    rows = orders()
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "wrong.py").write_text(RULES.replace('"Yes" if row["spend"]', '"Perhaps" if row["spend"]'))
    with pytest.raises(InputError, match="Perhaps"):
        project.data(rules_file=str(tmp_path / "wrong.py"))
    with pytest.raises(InputError, match=r"none\.py"):
        project.data(rules_file=str(tmp_path / "none.py"))
    project.write(rows.assign(late=rows.spend.where(rows.late.notna())))
    with pytest.raises(InputError, match="'late' is a number"):
        project.data(rules_file=str(tmp_path / "rules.py"))


# --- Suspect labels ---------------------------------------------------------------------------------------------------------


def test_suspect_labels_are_queued_and_a_person_wins_over_the_source(project):
    rows = orders(600, 600)
    flipped = rows.index[(rows.spend - 50).abs() > 10][:12]
    rows.loc[flipped, "late"] = rows.late[flipped].map({"Yes": "No", "No": "Yes"})
    project.write(rows)
    dataset = project.data(suspect_labels=15)
    lines = project.queue()
    wrong = {f"{rows.spend[row]}" for row in flipped}
    found = [line for line in lines if str(line["features"]["spend"]) in wrong]
    assert len(found) >= 7 and all(line["origin"] == "suspect" and line["note"].startswith("The label is") for line in found)
    assert dataset.labels.suspects == len(lines) and dataset.labels.suspect_labels
    project.label_queue("anna", honest)
    again = project.data()
    labels = project.table(again, "labels")
    assert again.labels.changed == len(found) == next(line.rows for line in again.ledger if line.step == "labels")
    assert (labels.origin == "correction").sum() == len(lines)
    used = project.used(again)
    assert (used.late != np.where(used.spend > 50, "Yes", "No")).sum() == 12 - len(found)


def test_a_row_stays_in_the_queue_until_enough_people_have_labelled_it(project):
    project.data(queue_size=10, overlap=2)
    first = project.label_queue("anna", honest, 6)  # The overlap is that of stage 2
    dataset = project.data(queue_size=10, overlap=2)
    lines = project.queue()
    assert [line["source_row"] for line in lines if "1 of 2" in line["reason"]] == sorted(first, key=int)
    assert len(lines) == 16 and dataset.labels.queued == 10 and dataset.rows_unlabelled == 34
    assert project.label_queue("ben", honest, 6) == sorted(first, key=int), "what another person has labelled comes first"
    project.write(orders(labelled=120))
    project.data(overlap=3)
    assert len(project.queue()) == 6 and {line["reason"] for line in project.queue()} == {"Labelled by 2 of 3 people."}
    project.data(overlap=2)
    assert not project.queue()
    for wrong in ({"overlap": 0}, {"queue_size": -1}, {"suspect_labels": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} = .* is too small"):
            project.data(**wrong)

"""Each kind of criterion, decided on the holdout."""

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, cancer, stored_rows
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

import mlcycle as mc
from mlcycle.ml.baselines import baseline_predictions
from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import Gate, Problem
from mlcycle.service.bundle import open_release
from mlcycle.service.rows import predict_rows
from mlcycle.validation.gates import (
    GateInputs,
    evaluate_gates,
    plot_gates,
)
from mlcycle.validation.group_statistics import group_labels

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")


def asked(*criteria: str, **more) -> Problem:
    "A binary problem with criteria."
    predictions = {"task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": "roc_auc", "target": "y", "rows": 1}
    return Problem(**EMPTY | predictions | {"metrics": ["roc_auc"], "criteria": list(criteria)} | more)


def answers(rows: int = 2000, noise: float = 1.0, seed: int = 0) -> tuple[pd.Series, Predictions]:
    "Truth, and scores that know it but for some noise."
    actual = np.random.default_rng(0).random(rows) < 0.3
    score = 1 / (1 + np.exp(-(3 * actual - 1.5 + noise * np.random.default_rng(seed).normal(size=rows))))
    return pd.Series(np.where(actual, "yes", "no")), Predictions(np.where(score > 0.5, "yes", "no"), score)


def decide(
    *criteria: str, predictions: Predictions, actual: pd.Series, champion=None, note="", groups=None, **more
) -> list[Gate]:
    "The gates of some criteria."
    problem = asked(*criteria, **more)
    evaluation = GateInputs(
        actual=actual,
        predictions=predictions,
        baseline=baseline_predictions(problem, actual, len(actual)),
        champion=champion,
        champion_note=note,
        latency_ms=np.arange(1.0, 101),
        rows=pd.DataFrame() if groups is None else groups,
    )
    return evaluate_gates(problem, evaluation)


def test_an_operating_point_is_checked_with_the_threshold_of_the_model():
    actual, predictions = answers()
    positive = actual == "yes"
    cautious, bold = (
        Predictions(np.where(predictions.scores >= threshold, "yes", "no"), predictions.scores) for threshold in (0.95, 0.5)
    )
    line = "recall >= 0.6 at precision >= 0.6"
    (missed,), (reached,) = (decide(line, actual=actual, predictions=each) for each in (cautious, bold))
    assert (missed.result, reached.result) == ("fail", "pass"), "both have the same scores, and other thresholds"
    for gate, labels in ((missed, cautious.labels), (reached, bold.labels)):
        assert gate.value == pytest.approx(recall_score(positive, labels == "yes"))
    (strict,) = decide("recall >= 0.1 at precision >= 0.99", actual=actual, predictions=bold)
    assert strict.result == "fail"
    assert "which does not reach its bound" in strict.note


def test_few_rows_without_an_error_leave_room_for_errors():
    actual, positive = pd.Series(["no", "yes"] * 6), np.array([0.1, 0.9] * 6)
    perfect = Predictions(actual.to_numpy(), positive)
    for line in ("recall >= 0.9", "accuracy >= 0.9", "roc_auc >= 0.9"):
        (gate,) = decide(line, actual=actual, predictions=perfect)
        assert gate.value == gate.high == 1
        assert gate.low < 0.8
        assert not gate.passed


def test_the_champion_is_met_on_the_same_rows():
    actual, predictions = answers()
    line = "not worse than champion by more than 0.01"
    _, worse = answers(noise=3, seed=1)
    _, better = answers(noise=0.1, seed=1)
    assert decide(line, actual=actual, predictions=predictions, champion=worse)[0].passed
    assert not decide(line, actual=actual, predictions=predictions, champion=better)[0].passed
    (same,) = decide(line, actual=actual, predictions=predictions, champion=predictions, note="It is itself.")
    assert (same.value, same.low, same.bound, same.passed, same.note) == (0, 0, -0.01, True, "It is itself.")
    (relative,) = decide("not worse than champion by more than 10 %", actual=actual, predictions=predictions, champion=worse)
    assert -0.1 < relative.bound < -0.05
    (alone,) = decide(line, actual=actual, predictions=predictions)
    assert (alone.passed, alone.value) == (True, None)
    assert "no champion" in alone.note
    (unusable,) = decide(line, actual=actual, predictions=predictions, note="It cannot answer.")
    assert (unusable.result, unusable.passed) == ("undecided", False)


def test_better_than_champion_needs_an_interval_above_the_margin():
    actual, predictions = answers()
    _, worse = answers(noise=3, seed=1)
    lines = ["better than champion", "better than champion by 0.5", "better than champion by 1 %"]
    plain, margin, relative = decide(*lines, actual=actual, predictions=predictions, champion=worse)
    assert (plain.result, margin.result, relative.result) == ("pass", "fail", "pass")
    assert (plain.bound, margin.bound) == (0, 0.5)
    assert 0.005 < relative.bound < 0.01
    assert decide(lines[0], actual=actual, predictions=predictions, champion=predictions)[0].result == "fail"
    assert decide(lines[0], actual=actual, predictions=predictions)[0].result == "pass", "there is no champion"


def test_an_undecided_gate_names_the_rows_that_decide():
    actual, predictions = answers(400)
    recall = recall_score(actual == "yes", predictions.labels == "yes")
    bound = round(recall - 0.03, 2)
    (gate,) = decide(f"recall >= {bound}", actual=actual, predictions=predictions)
    assert gate.result == "undecided"
    assert not gate.passed
    assert gate.more_rows == int(float(f"{gate.more_rows:.2g}")), "two digits"
    assert f"About {gate.more_rows:,} more holdout rows" in gate.note
    half = (gate.value - gate.low) * np.sqrt(400 / (400 + gate.more_rows))
    assert gate.value - half == pytest.approx(bound, abs=0.002), "the interval then ends at the bound"
    (wrong_side,) = decide(f"recall >= {round(recall + 0.03, 2)}", actual=actual, predictions=predictions)
    assert wrong_side.result == "undecided"
    assert wrong_side.more_rows > 0


def test_records_without_a_result_can_be_read():
    old = {"criterion": "f1 >= 0.5", "value": 0.6, "low": 0.55, "high": 0.65, "bound": 0.5}
    assert [Gate(**old, passed=passed).result for passed in (True, False)] == ["pass", "fail"]
    gate = Gate(**old, result="undecided")
    assert not gate.passed
    assert Gate.model_validate_json(gate.model_dump_json()) == gate


def test_latency_is_decided_and_means_nothing_more():
    actual, predictions = answers(100)
    first, second = decide("p50 latency <= 70 ms", actual=actual, predictions=predictions, latency_budget_ms=96.0)
    assert (first.result, second.result) == ("pass", "undecided"), "the interval of the 95th percentile contains 96"
    assert "timed predictions" in second.note
    assert first.value == 50.5
    assert first.content() == first.model_copy(update={"value": 1.0, "low": 0.5, "high": 2.0, "note": "-"}).content()
    assert Gate.model_validate_json(first.model_dump_json()).content() == first.content()


def test_groups_are_compared_and_the_worst_pair_is_named():
    actual, predictions = answers(3000)
    groups = pd.DataFrame({"town": np.resize(["north", "south", "west"], 3000), "few": ["one"] * 2990 + ["two"] * 10})
    groups["age"] = np.random.default_rng(0).integers(18, 90, 3000)
    line = "selection_rate ratio between groups >= 0.7"
    unfair = Predictions(
        np.where((groups.town == "west") & (np.arange(3000) % 4 > 0), "no", predictions.labels), predictions.scores
    )
    problem = asked(line, protected_columns=["town", "age"])
    given = {"actual": actual, "baseline": baseline_predictions(problem, actual, len(actual)), "rows": groups}
    (good,) = evaluate_gates(problem, GateInputs(predictions=predictions, **given))
    (bad,) = evaluate_gates(problem, GateInputs(predictions=unfair, **given))
    assert (good.result, bad.result) == ("pass", "fail")
    assert "town: worst is west" in bad.note
    assert "age: worst is (" in bad.note
    assert bad.low < bad.value < bad.high < 0.5
    lower = decide('log_loss ratio between groups of "town" >= 0.5', actual=actual, predictions=predictions, groups=groups)[0]
    assert lower.passed
    few = decide("recall ratio between groups of few >= 0.8", actual=actual, predictions=predictions, groups=groups)[0]
    assert (few.result, few.value) == ("undecided", None)
    assert "fewer than two groups" in few.note
    gone = decide("recall ratio between groups of tawn >= 0.8", actual=actual, predictions=predictions, groups=groups)[0]
    assert "no column 'tawn'" in gone.note
    assert plot_gates([good, bad, few]).axes


def test_groups_have_names():
    assert sorted(set(group_labels(pd.Series([1, 2, None])))) == ["1.0", "2.0", "missing"]
    assert len(set(group_labels(pd.Series(np.arange(100.0))))) == 4
    assert set(group_labels(pd.Series([True, False]))) == {"True", "False"}
    assert set(group_labels(pd.Series(pd.to_datetime(["2020-01-05", "2021-01-05"])))) == {"2020", "2021"}


def test_cost_is_a_gate():
    actual, predictions = answers()
    costs = {"yes": {"no": 10.0}, "no": {"yes": 1.0}}
    dear, cheap = decide("cost <= 100", "cost <= 1500", actual=actual, predictions=predictions, costs=costs)
    assert (dear.result, cheap.result) == ("fail", "pass")
    assert decide("beats baseline by 20 %", actual=actual, predictions=predictions, costs=costs, metric="cost")[0].passed


LINES = ["recall >= 0.6 at precision >= 0.8", "not worse than champion by more than 0.05", "p95 latency <= 60 s"]
LINES += ["selection_rate ratio between groups of half >= 0.2"]


def test_all_kinds_in_a_run(tmp_path):
    frame = cancer()
    frame["half"] = np.resize(["left", "right"], len(frame))
    frame.to_parquet(tmp_path / "cancer.parquet")
    source = str(tmp_path / "cancer.parquet")
    first = mc.run(source, "target", tmp_path, "validation", criteria=LINES, **QUICK).verdict
    assert first.approved, first
    assert [gate.criterion for gate in first.gates] == [*LINES[:2], "p95 latency <= 60000 ms", LINES[3]]
    assert "no champion" in first.gates[1].note
    second = mc.run(source, "target", tmp_path, "validation", criteria=LINES, **QUICK | {"seed": 1}).verdict
    assert second.previous_champion == first.current_champion == 1
    assert "version 1" in second.gates[1].note
    assert second.gates[1].value is not None
    moved = second.current_champion != 1
    assert moved == second.approved
    assert ("It meets the criterion 'not worse than champion" in second.promotion_reason) == moved
    assert first.promotion_reason == "No version was champion."


def test_what_is_gated_is_what_is_deployed(tmp_path):
    lines = ["recall >= 0.5 at precision >= 0.5", "f1 >= 0.5", "accuracy >= 0.5", "roc_auc >= 0.5", "beats baseline"]
    run = mc.run(cancer(), "target", tmp_path, until="deployment", **QUICK | {"criteria": lines, "positive": "1"})
    rows = stored_rows(run, "holdout")
    predicted, _ = predict_rows(*open_release(run.workspace.root / run.release.bundle), rows.drop(columns="target"))
    actual, positive = rows.target == run.problem.positive, predicted.labels == run.problem.positive
    expected = {
        "recall": recall_score(actual, positive),
        "f1": f1_score(actual, positive),
        "accuracy": accuracy_score(actual, positive),
        "roc_auc": roc_auc_score(actual, predicted.scores),
    }
    assert run.verdict.approved
    for gate in run.verdict.gates:
        name = gate.criterion.split()[0]
        if name in expected:
            assert gate.value == pytest.approx(expected[name]), gate.criterion
    point = next(gate for gate in run.verdict.gates if " at " in gate.criterion)
    assert f"precision {precision_score(actual, positive):.3f}"[:12] in point.note
    assert run.candidate.threshold_metric == "recall >= 0.5 at precision >= 0.5"


def test_an_approved_model_that_is_not_better_does_not_become_champion(tmp_path):
    settings = QUICK | {"criteria": ["roc_auc >= 0.6"]}
    first, second = (
        mc.run(cancer(), "target", tmp_path, "deployment", **settings | {"seed": seed, "models": [model]})
        for seed, model in ((0, "linear"), (1, "lightgbm"))
    )
    assert first.verdict.current_champion == first.candidate.model.version
    verdict = second.verdict
    assert verdict.approved
    assert second.release.released, "the release is that of the approved candidate"
    assert second.release.model == second.candidate.model != first.candidate.model
    difference = verdict.champion_difference
    assert difference.low <= 0, "the two models are about equally good"
    assert verdict.current_champion == verdict.previous_champion == first.verdict.current_champion
    assert "not worse than champion by more than" in verdict.decision
    assert f"{difference.value:.2f}" in verdict.decision

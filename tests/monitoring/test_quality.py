"""Realised and estimated quality: every task, late and strange actual values, alarms and their absence."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlcycle.errors import ArtifactError
from mlcycle.ml.metrics import DEFAULT_METRICS, METRICS, compute_score
from mlcycle.ml.predictions import Predictions, predictions_from_values
from mlcycle.ml.resampling import Resampling
from mlcycle.ml.row_losses import fit_row_loss
from mlcycle.monitoring.estimation import check_estimates
from mlcycle.monitoring.loss_monitor import monitor_mean
from mlcycle.monitoring.quality import match_labels
from mlcycle.monitoring.quality_over_time import measure_quality
from mlcycle.outcomes import Problem, Score
from mlcycle.service.reference_scores import (
    MAX_HOLDOUT_SCORES,
    estimate_row_loss,
    make_reference_scores,
    read_reference_scores,
    write_reference_scores,
)

TASKS = ["binary", "multiclass", "regression"]
CLASSES = {"binary": [0, 1], "multiclass": ["a", "b", "c"], "regression": []}


def a_problem(task="binary", metric=""):
    metric = metric or DEFAULT_METRICS[task][0]
    classes = CLASSES[task]
    costs = {str(one): {str(other): 1.0 for other in classes if other != one} for one in classes} if metric == "cost" else {}
    return Problem(
        decision="-", question="-", owner="-", source="-", source_sha256="-", target="y", task=task, classes=classes,
        positive=1 if task == "binary" else None, metric=metric, metrics=[metric], criteria=[], rows=300, costs=costs,
    )  # fmt: skip


def draw(task, rows, seed=0, worse=False):
    "Features, actual values and predictions of a well calibrated model; `worse`: the relation has changed."
    rng, problem = np.random.default_rng(seed), a_problem(task)
    x = rng.normal(size=(rows, 3))
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    if task == "regression":
        spread = np.where(x[:, 1] > 0, 2, 1) * (1.5 if worse else 1)
        return frame, 10 + x[:, 0] + rng.normal(size=rows) * spread, Predictions(10 + x[:, 0])
    if task == "binary":
        scores = 1 / (1 + np.exp(1 - 1.5 * x[:, 0]))
        actual = (rng.random(rows) < (0.3 * scores + 0.7 * scores.mean() if worse else scores)).astype(int)
        return frame, actual, predictions_from_values(scores, problem)
    scores = np.exp(1.5 * x) / np.exp(1.5 * x).sum(axis=1, keepdims=True)
    given = scores * 0.3 + 0.7 / 3 if worse else scores
    codes = (rng.random((rows, 1)) > given.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return frame, np.array(CLASSES[task])[codes], predictions_from_values(scores, problem)


def references_of(problem, rows=3000):
    frame, actual, given = draw(problem.task, rows, seed=99)
    content = write_reference_scores(make_reference_scores(problem, frame, actual, given))
    return SimpleNamespace(scores=read_reference_scores(content))


def a_window(problem, references, number=0, rows=400, worse=False, **columns):
    frame, actual, given = draw(problem.task, rows, seed=number, worse=worse)
    start = pd.Timestamp("2026-03-01") + pd.Timedelta(days=number)
    labelled = pd.DataFrame({"when": start, "version": "1", "role": "champion", "prediction": given.labels.astype(object)})
    labelled["score"] = None if given.scores is None else given.scores.tolist()
    labelled["actual"] = pd.Series(actual.tolist(), dtype=object)
    labelled["estimated_loss"] = estimate_row_loss(references, frame, given.labels) if problem.task == "regression" else np.nan
    return SimpleNamespace(start=start, end=start + pd.Timedelta(days=1), labelled=labelled.assign(**columns))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_measured_estimated_and_checked(task):
    problem = a_problem(task)
    references = references_of(problem)
    windows = [a_window(problem, references, k) for k in range(6)]
    quality = measure_quality(references, windows, problem)
    assert not quality.alarms
    assert all(each.score.low < each.score.value < each.score.high for each in quality.windows)
    assert all(each.estimated is not None and each.coverage == 1 for each in quality.windows)
    assert quality.check.windows == 6 and quality.check.reliable is not False and quality.check.covered >= 0.5
    large = measure_quality(references, [a_window(problem, references, k, 6000) for k in range(3)], problem)
    assert large.check.reliable and "smallest change that matters" in str(large.check)
    worse = [*windows, *(a_window(problem, references, k, worse=True) for k in range(6, 14))]
    alarms = [alarm for alarm in measure_quality(references, worse, problem).alarms if alarm.rule == "quality"]
    assert re.search(r"evidence of a higher loss [0-9,a-z ]+ \(threshold 67\); .* in a year is 3 %\.", alarms[0].summary)
    assert len(alarms) == 1 and "2026-03-06" <= alarms[0].since[:10] <= "2026-03-09"


def scores_of(*values, half=None):
    return [Score(metric="mae", value=x, low=half and x - half, high=half and x + half) for x in values]


@pytest.mark.parametrize(
    ("estimated", "realised", "reliable", "reason"),
    [
        (scores_of(1.0, 1.1, 0.9, 1.0, half=0.1), scores_of(1.08, 1.04, 0.95, 1.12), None, "noise"),
        (scores_of(0.7, 0.72, 0.68, half=0.12), scores_of(0.6, 0.62, 0.575), True, "smaller than that of the holdout"),
        (scores_of(0.7, 0.9, 0.7, 0.8, half=0.5), scores_of(1.0, 1.01, 0.99, 1.0), False, "larger than that of the holdout"),
        (scores_of(1.0, 1.1, 0.9, half=0.01), scores_of(1.2, 1.3, 1.2), False, "fewer scores than 95 %"),
        (scores_of(1.0, 1.1, half=0.1), scores_of(1.0, 1.1), None, "3 windows are needed"),
    ],
)
def test_the_check_of_estimates_agrees_with_its_figures(estimated, realised, reliable, reason):
    check = check_estimates(estimated, realised, Score(metric="mae", value=1.0), tolerance=0.02)
    assert check.reliable is reliable and reason in check.reason and reason in str(check)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        *(("binary", name) for name in ("f1", "average_precision", "log_loss", "d2_brier_score", "cost", "selection_rate")),
        *(("multiclass", name) for name in ("roc_auc", "f1_macro", "log_loss", "brier", "cost")),
        *(("regression", name) for name in ("rmse", "r2", "mean_poisson_deviance", "median_absolute_error", "max_error")),
    ],
)
def test_metrics_are_estimated_or_the_reason_is_given(task, name):
    problem = a_problem(task, name)
    references = references_of(problem, 300)
    quality = measure_quality(references, [a_window(problem, references, k, 60) for k in range(2)], problem)
    assert quality.score is not None
    assert quality.estimated is not None or any("is not estimated" in note for note in quality.notes)
    assert quality.loss is not None or name == "selection_rate"


@pytest.mark.parametrize(
    "name", [name for name, metric in METRICS.items() if "binary" in metric.tasks and name != "selection_rate"]
)
def test_the_row_loss_of_each_metric_rises_with_its_decline(name):
    problem = a_problem("binary", name)
    _, actual, given = draw("binary", 4000)
    _, later, same = draw("binary", 4000, seed=1, worse=True)
    loss = fit_row_loss(problem, actual, given)
    sign = METRICS[name].sign
    declined = sign * compute_score(name, problem, actual, given) - sign * compute_score(name, problem, later, same)
    assert declined > 0 and loss(later, same).mean() > loss(actual, given).mean()


def test_actual_values_in_other_spellings_and_unknown_ones():
    problem = a_problem()
    references = references_of(problem)
    window = a_window(problem, references)
    spelled = window.labelled.actual.map({0: "0", 1: 1.0}).astype(object)
    spelled.iloc[0] = "maybe"
    other = SimpleNamespace(start=window.start, end=window.end, labelled=window.labelled.assign(actual=spelled))
    quality = measure_quality(references, [other], problem)
    assert quality.n_labelled == len(spelled) - 1
    assert any("1 actual value cannot be read" in note for note in quality.notes)


def test_the_order_and_the_delay_of_actual_values_change_no_final_result():
    problem = a_problem("binary", "brier")
    references = references_of(problem)
    windows = [a_window(problem, references, k, worse=k > 2) for k in range(9)]
    rng = np.random.default_rng(0)
    arrived = [SimpleNamespace(start=each.start, end=each.end, labelled=each.labelled.assign(
        actual_when=each.start + pd.to_timedelta(rng.random(len(each.labelled)) * 30, "D"))) for each in windows]  # fmt: skip
    plain, late = (measure_quality(references, each, problem) for each in (windows, arrived))
    assert np.allclose(plain.loss.evidence.values, late.loss.evidence.values)
    assert [alarm.rule for alarm in plain.alarms] == [alarm.rule for alarm in late.alarms]


def test_strange_windows_never_fail():
    for task in TASKS:
        problem = a_problem(task)
        references = references_of(problem, 400)
        full = a_window(problem, references, 3)
        empty = SimpleNamespace(start=full.start, end=full.end, labelled=full.labelled.head(0))
        one = SimpleNamespace(start=full.start, end=full.end, labelled=full.labelled.head(1))
        same = SimpleNamespace(start=full.start, end=full.end, labelled=full.labelled.assign(actual=full.labelled.actual.iloc[0]))
        blind = SimpleNamespace(start=full.start, end=full.end, labelled=full.labelled.assign(actual=None))
        no_scores = SimpleNamespace(
            start=full.start, end=full.end, labelled=full.labelled.assign(score=None, estimated_loss=np.nan)
        )
        for windows in ([], [empty], [one], [empty, one, empty], [same], [blind], [no_scores], [full, no_scores, blind]):
            quality = measure_quality(references, windows, problem)
            assert len(quality.windows) == len(windows)
            assert quality.notes
            assert bool(quality.reason) == (quality.score is None)
        assert any("No actual values" in note for note in measure_quality(references, [blind], problem).notes)


def test_one_class_is_judged_as_far_as_it_can_be():
    "The metric needs both classes; accuracy, errors of the probabilities and the shift of the target do not."
    problem = a_problem()
    references = references_of(problem)
    quality = measure_quality(references, [a_window(problem, references, rows=150, actual=0)], problem)
    (note,) = [note for note in quality.notes if "needs rows of both classes" in note]
    assert quality.reason == "all 150 known actual values are '0', and roc_auc needs rows of both classes"
    assert "All 150 known actual values are '0'" in note and "accuracy" in note and "brier" in note and "on the holdout" in note
    assert [alarm.rule for alarm in quality.alarms] == ["prior shift"] and "p = " in quality.alarms[0].summary


def test_a_metric_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "own_scores_of_windows.py").write_text(
        "def hits(actual, predicted):\n    'Share of hits.'\n    return float((actual == predicted).mean())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    problem = a_problem("binary", "own_scores_of_windows:hits")
    references = references_of(problem, 500)
    quality = measure_quality(references, [a_window(problem, references, k, 100) for k in range(2)], problem)
    assert quality.score.metric == "own_scores_of_windows:hits" and quality.estimated is not None


def test_versions_are_compared_and_only_the_judged_one_is_scored():
    problem = a_problem()
    references = references_of(problem)
    good, bad = a_window(problem, references, 0, 1500), a_window(problem, references, 5, 1500, worse=True, version="2")
    quality = measure_quality(references, [good, bad], problem, version="1")
    assert [alarm.rule for alarm in quality.alarms] == ["version"] and "Version 2 (champion) is worse" in quality.alarms[
        0
    ].summary
    assert quality.n_labelled == 1500


def test_a_shadow_that_is_worse_gets_a_note_and_numbers_their_plural():
    problem = a_problem("binary", "accuracy")
    references = references_of(problem, 300)
    window = a_window(problem, references, 0, 400, row_id=[str(k) for k in range(400)])
    shadow = window.labelled.assign(role="shadow", version="2", prediction=1 - window.labelled.prediction.astype(int))
    window.labelled = pd.concat([window.labelled, shadow])
    quality = measure_quality(references, [window], problem, version="1")
    assert not quality.alarms and any("shadow version 2 is worse than version 1" in note for note in quality.notes)
    window.labelled = window.labelled.head(1).assign(score=None)
    notes = measure_quality(references, [window], problem).notes
    assert any("1 prediction without" in note for note in notes) and not any("1 predictions" in note for note in notes)


def test_dependent_rows_make_the_test_slower():
    "Rows of an entity repeat each other; as independent rows they would prove too much."
    rng = np.random.default_rng(0)
    entities = np.repeat(np.arange(100), 20)
    problem = a_problem("regression", "mae")
    y = np.repeat(rng.normal(size=100), 20)
    frame, given = pd.DataFrame({"a": y}), Predictions(np.zeros(2000))
    plain = make_reference_scores(problem, frame, y, given, resampling=Resampling())
    grouped = make_reference_scores(problem, frame, y, given, resampling=Resampling("entity", entities))
    assert grouped.scores[0].high - grouped.scores[0].low > 3 * (plain.scores[0].high - plain.scores[0].low)
    days = [np.repeat(rng.random(20), 20) * 0.6 for _ in range(30)]
    reference = np.repeat(rng.random(100), 20) * 0.5
    fast, slow = (monitor_mean(days, np.full(30, 1 / 365), reference, effect=effect) for effect in (1, 20))
    assert fast.evidence.values[-1] > 1e3 * slow.evidence.values[-1]


def test_no_alarm_in_years_without_change():
    "The chance is at most 5 % a year; daily and hourly looks, small and large holdout."
    rng, alarms = np.random.default_rng(0), []
    for rows, windows, holdout in [(200, 365, 1000), (200, 365, 10_000), (1000, 365, 1000), (10, 365 * 4, 1000)]:
        for _ in range(10):
            reference = (rng.random(holdout) < 0.2).astype(float)
            losses = (rng.random((windows, rows)) < 0.2).astype(float)
            alarms.append(monitor_mean(list(losses), np.full(windows, 1 / windows), reference).alarms.any())
    assert np.mean(alarms) <= 0.05


def test_a_large_holdout_is_sampled_and_the_file_stays_small():
    problem = a_problem("multiclass")
    frame, actual, given = draw("multiclass", 60_000)
    reference = make_reference_scores(problem, frame, actual, given, resampling=Resampling(), scores=[])
    content = write_reference_scores(reference)
    assert len(reference.actual) == MAX_HOLDOUT_SCORES and reference.holdout_rows == 60_000 and len(content) < 500_000
    assert content == write_reference_scores(make_reference_scores(problem, frame, actual, given, resampling=Resampling()))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_file_is_named(content):
    with pytest.raises(ArtifactError, match=r"reference_scores\.npz"):
        read_reference_scores(content)


def test_a_pickled_array_is_not_loaded(tmp_path):
    np.savez(tmp_path / "pickled.npz", about=np.array([{"format": 1}], dtype=object))
    with pytest.raises(ArtifactError, match="allow_pickle"):
        read_reference_scores((tmp_path / "pickled.npz").read_bytes())


def test_an_alarm_counts_the_actual_values_since_it_began():
    "Not those of the good time before, from which no new model can learn what has changed."
    problem = a_problem()
    references = references_of(problem)
    windows = [a_window(problem, references, k, worse=k > 6) for k in range(12)]
    quality = measure_quality(references, windows, problem)
    (alarm,) = [alarm for alarm in quality.alarms if alarm.rule == "quality"]
    began = (pd.Timestamp(alarm.since) - windows[0].start).days
    assert quality.n_labelled == 4800 and alarm.n_labelled == 400 * (12 - began) <= 2800
    flat = [a_window(problem, references, k, actual=None) for k in range(8)]
    for each in flat[2:]:
        each.labelled["score"] = each.labelled.score * 0.1 + 0.2
    (alarm,) = [alarm for alarm in measure_quality(references, flat, problem).alarms if alarm.rule == "estimated quality"]
    assert alarm.n_labelled == 0


def test_an_alarm_began_when_there_were_rows():
    "Windows before the first actual value prove nothing, and are not its beginning."
    problem = a_problem()
    references = references_of(problem)
    empty = [a_window(problem, references, k, 40, actual=None) for k in range(6)]
    windows = [*empty, *(a_window(problem, references, k, worse=True) for k in range(6, 10))]
    alarms = measure_quality(references, windows, problem).alarms
    assert {alarm.rule: alarm.since[:10] for alarm in alarms} == {"quality": "2026-03-07"}


def test_a_version_that_had_failed_is_no_reason_to_roll_back():
    "Its good days are over: it is compared by its last rows, and a note names them."
    problem = a_problem()
    references = references_of(problem)
    windows = [a_window(problem, references, k, 100) for k in range(24)]
    for place, each in enumerate(windows):
        flip = each.labelled.score if place < 18 else 1 - each.labelled.score  # The relation has turned round on day 18
        shown = flip if place < 21 else each.labelled.score * 0.2 + 0.4 * np.random.default_rng(place).random(100)
        windows[place].labelled = each.labelled.assign(
            score=shown, prediction=(shown > 0.5).astype(int).astype(object), version="0" if place < 21 else "1"
        )
    quality = measure_quality(references, windows, problem, version="1")
    assert quality.versions[0].difference.value > 0.1 and not [alarm for alarm in quality.alarms if alarm.rule == "version"]
    assert quality.versions[0].other_rows == 300
    assert any(
        "Version 1 is compared with version 0 by its last 300 rows with actual values, 2026-03-19 to 2026-03-21" in note
        for note in quality.notes
    )


def test_an_alarm_ends_when_the_scores_are_back():
    "Of the loss, of the target and of the estimate; the score since the onset would stay low for ever."
    problem = a_problem()
    references = references_of(problem)
    windows = [a_window(problem, references, k, 200, worse=4 <= k < 10) for k in range(22)]
    assert {alarm.rule for alarm in measure_quality(references, windows[:10], problem).alarms} == {"quality"}
    assert not measure_quality(references, windows, problem).alarms
    for place, each in enumerate(windows):
        if 4 <= place < 8:
            each.labelled["score"] = each.labelled.score * 0.1 + 0.2
            each.labelled["actual"] = pd.Series([1, 1, 1, 0, 0] * 40, dtype=object)
    rules = [{alarm.rule for alarm in measure_quality(references, part, problem).alarms} for part in (windows[:8], windows)]
    assert rules == [{"quality", "estimated quality", "prior shift"}, set()]


def test_the_end_of_an_alarm_takes_three_quiet_windows_and_no_row_is_no_quiet():
    rng = np.random.default_rng(0)
    rates = np.r_[np.full(20, 0.2), np.full(10, 0.35), np.full(20, 0.2), np.full(10, 0.35)]
    days = [(rng.random(300) < rate).astype(float) for rate in rates]
    reference = (rng.random(5000) < 0.2).astype(float)
    alarms = monitor_mean(days, np.full(60, 1 / 365), reference).alarms
    assert not alarms[:20].any() and alarms[24:31].all() and not alarms[36:50].any() and alarms[54:].all()
    blind = [*days[:30], *[np.empty(0)] * 10]
    assert monitor_mean(blind, np.full(40, 1 / 365), reference).alarms[24:].all()


def test_nearly_empty_windows_cost_next_to_nothing(monkeypatch):
    "Rows are converted once, and not once for each window."
    problem = a_problem("binary", "brier")
    references = references_of(problem, 300)
    windows = [a_window(problem, references, k, k % 2) for k in range(100)]
    calls = []

    def counted(values, problem):
        calls.append(len(values))
        return match_labels(values, problem)

    monkeypatch.setattr("mlcycle.monitoring.quality_over_time.match_labels", counted)
    quality = measure_quality(references, windows, problem)
    assert [each.n_labelled for each in quality.windows] == [0, 1] * 50 and calls == [50, 50]


def test_actual_numbers_of_another_order_are_left_out_and_reported():
    problem = a_problem("regression", "r2")
    references = references_of(problem, 500)
    windows = [a_window(problem, references, k, 200) for k in range(5)]
    plain = measure_quality(references, windows, problem)
    windows[3].labelled.loc[7, "actual"] = windows[3].labelled.loc[9, "actual"] = 1e12
    quality = measure_quality(references, windows, problem)
    (alarm,) = quality.alarms
    assert (
        alarm.rule == "prior shift" and "2 of 1,000 actual values are far outside" in alarm.summary and "1e+12" in alarm.summary
    )
    assert quality.n_labelled == 998 and abs(quality.score.value - plain.score.value) < 0.01 and not plain.alarms


@pytest.mark.parametrize(("delay", "alarms"), [("1 day", ["no actual values"]), ("30 days", [])])
def test_labels_that_stop_arriving_are_reported(delay, alarms):
    problem = a_problem("binary", "brier")
    references = references_of(problem, 500)
    windows = [a_window(problem, references, k, 50) for k in range(12)]
    for place, each in enumerate(windows):
        each.labelled["actual_when"] = each.start + pd.Timedelta(delay) if place < 6 else pd.NaT
        each.labelled["actual"] = each.labelled.actual if place < 6 else None
    quality = measure_quality(references, windows, problem)
    assert [alarm.rule for alarm in quality.alarms] == alarms
    assert "No actual value is known for predictions since 2026-03-07 (300 rows)." in quality.notes
    assert not any("since 2026" in note for note in measure_quality(references, windows[:9], problem).notes)

"""The estimate of stage 1 looks at what stages 2 to 4 will use, and concludes no more than was computed."""

import time

import numpy as np
import pandas as pd
import pytest

from mlcycle.outcomes import Problem, Score
from mlcycle.problem import feasibility
from mlcycle.problem.feasibility import assess_feasibility
from mlcycle.problem.probe_budget import Deadline
from mlcycle.problem.probe_data import LEAKAGE_STEP, draw_feasibility_sample, prepare_feasibility_sample
from mlcycle.problem.search_gain import allow_for_search, compare_with_bound
from mlcycle.problem.stage import define_problem
from mlcycle.stores.sources.ingest import normalise_dtypes


def numbers(rows: int = 400, columns: int = 5, seed: int = 0) -> pd.DataFrame:
    "Numbers, of which the first two shift the target."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(rows, columns)), columns=[f"x{place}" for place in range(columns)])
    return table.assign(y=np.where(table.x0 + table.x1 + rng.normal(size=rows) > 0, "yes", "no"))


def assess(table: pd.DataFrame, *criteria: str, **fields):
    "The assessment of a table whose target is `y`, without a time limit that matters."
    rows = normalise_dtypes(table)
    return define_problem("table", "y", list(criteria) or None, rows=rows, probe_seconds=600, **fields).feasibility


def test_what_stage_3_leaves_out_does_not_change_the_estimate():
    table = numbers()
    rng = np.random.default_rng(1)
    more = table.assign(
        refund=np.where(table.y == "yes", rng.gamma(2, 5, 400), 0.0),
        order=rng.permutation(400) + 5000,
        code=[f"k{number}" for number in rng.permutation(400)],
        same="a",
    )
    plain, found = assess(table), assess(more)
    assert set(found.left_out) == {"refund", "order", "code", "same"}
    assert "may leak the target" in found.left_out["refund"] and "identifier" in found.left_out["order"]
    assert found.scores == plain.scores and found.extrapolated_score == plain.extrapolated_score
    assert "without 'refund', which may leak the target" in found.reason and not plain.left_out


def test_a_column_that_is_missing_where_the_label_is_missing_is_left_out():
    table = numbers(600)
    unknown = np.arange(600) % 6 == 0
    table = table.assign(closed=np.where(unknown, np.nan, np.random.default_rng(0).gamma(2, 3, 600)))
    assert "closed" in assess(table.assign(y=table.y.where(~unknown))).left_out
    assert "closed" not in assess(table).left_out


def test_texts_are_read():
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")

    def words(count):
        return ["".join(rng.choice(letters, rng.integers(4, 9))) for _ in range(count)]

    common, own = words(200), {topic: words(15) for topic in ("a", "b")}
    topics = rng.choice(["a", "b"], 500)
    texts = [" ".join(rng.permutation([*rng.choice(common, 8), *rng.choice(own[topic], 3)])) for topic in topics]
    found = assess(pd.DataFrame({"text": texts, "x": rng.normal(size=500), "y": topics}))
    assert min(found.scores[name].value for name in ("linear", "boosting")) > 0.85 and found.verdict == "feasible"


def test_many_categories_are_target_encoded_within_folds():
    rng = np.random.default_rng(0)
    town = rng.integers(0, 80, 800)
    chance = rng.random(80)
    for signal in (True, False):
        target = np.where(rng.random(800) < (chance[town] if signal else 0.5), "yes", "no")
        scores = assess(pd.DataFrame({"town": [f"t{place}" for place in town], "x": rng.normal(size=800), "y": target})).scores
        for name in ("linear", "boosting"):
            assert scores[name].value > 0.72 if signal else abs(scores[name].value - 0.5) < 0.08


def test_numbers_with_a_unit_are_numbers():
    table = numbers()
    written = table.assign(x0=[f"{value:.3f} kg" for value in table.x0])
    found, plain = assess(written), assess(table)
    assert abs(found.extrapolated_score.value - plain.extrapolated_score.value) < 0.01 and not found.left_out


def test_a_few_other_texts_do_not_hide_the_signal_of_a_column_of_numbers():
    table = numbers(columns=2)
    texts = table.assign(x0=table.x0.map("{:.3f}".format), x1=table.x1.map("{:.3f}".format))
    texts.loc[[3, 40], "x0"] = "see invoice"
    found, plain = assess(texts), assess(table)
    assert abs(found.scores["linear"].value - plain.scores["linear"].value) < 0.02 and not found.left_out


def test_late_deliveries_are_visible_in_the_difference_of_dates_only():
    rng = np.random.default_rng(3)
    promised = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, 2000), unit="D")
    delay = np.where(rng.random(2000) < 0.1, rng.integers(1, 5, 2000), -rng.integers(0, 4, 2000))
    complaint = np.where(rng.random(2000) < np.where(delay > 0, 1 / 3, 1 / 30), "yes", "no")
    found = assess(pd.DataFrame({"promised": promised, "came": promised + pd.to_timedelta(delay, unit="D"), "y": complaint}))
    assert found.verdict == "feasible" and found.p_value <= 0.05


def test_a_rare_class_enlarges_the_sample_and_keeps_its_share():
    rng = np.random.default_rng(0)
    table = numbers(30_000).assign(y=np.where(rng.random(30_000) < 0.01, "yes", "no"))
    problem = define_problem("table", "y", rows=normalise_dtypes(table), probe_seconds=0)
    share = (table.y == "yes").mean()
    sample = draw_feasibility_sample(table, problem, 4000, max_rare_rows=20_000)
    assert 95 <= (sample.y == "yes").sum() <= 105 and abs((sample.y == "yes").mean() - share) < 1e-3
    data = prepare_feasibility_sample(table, problem)
    assert len(data.sample) == len(sample) and abs(data.y[data.valid_index].mean() - share) < 1e-3


def test_no_signal_with_few_rows_of_a_class_is_doubtful():
    rng = np.random.default_rng(5)
    table = pd.DataFrame(rng.normal(size=(600, 4)), columns=list("abcd"))
    few = assess(table.assign(y=np.where(np.arange(600) % 50 == 0, "yes", "no")))
    many = assess(table.assign(y=np.where(np.arange(600) % 2 == 0, "yes", "no")))
    assert min(few.p_value, many.p_value) > 0.05, "there is none"
    assert (few.verdict, many.verdict) == ("doubtful", "infeasible")
    assert "12 rows" in few.reason and "infeasible" not in few.reason


@pytest.mark.parametrize(("metric", "best", "low", "high"), [("roc_auc", 1.0, 0.7, 0.8), ("rmse", 0.0, 3.0, 4.0)])
def test_only_a_bound_far_beyond_the_interval_is_out_of_reach(metric, best, low, high):
    reachable = allow_for_search(Score(metric=metric, value=(low + high) / 2, low=low, high=high), best)
    worse, better = (low, high) if best else (high, low)
    end = reachable.score.interval[bool(best)]
    assert (worse in reachable.score.interval) and abs(best - reachable.limit) < abs(best - end) < abs(best - better)
    bounds = [worse - 0.01 if best else worse + 0.01, better, (end + reachable.limit) / 2, (reachable.limit + best) / 2]
    assert [compare_with_bound(reachable, bound) for bound in bounds] == ["within reach", "doubtful", "doubtful", "out of reach"]


def test_a_criterion_little_above_the_quick_models_is_not_infeasible():
    table = numbers(600)
    found = assess(table)
    assert found.scores["linear"].high < found.extrapolated_score.high
    bound = round(found.scores["linear"].high + 0.005, 3)
    assert assess(table, f"roc_auc >= {bound}").verdict == "doubtful"


class _StopBefore(Deadline):
    "A time limit that is reached before some steps, whatever the time."

    steps: tuple = ()

    def allows(self, step: str) -> bool:
        if step in self.steps:
            self.skipped.append(step)
        return step not in self.steps


@pytest.mark.parametrize(
    ("steps", "criterion", "verdict"),
    [
        (("the permutation test",), "roc_auc >= 0.7", "feasible"),
        (("the permutation test",), "roc_auc >= 0.9", "doubtful"),
        (("the permutation test",), "roc_auc >= 0.9999", "infeasible"),
        (("gradient boosting",), "roc_auc >= 0.7", "feasible"),
        (("gradient boosting",), "roc_auc >= 0.9", "not assessed"),
        (("gradient boosting",), "roc_auc >= 0.9999", "not assessed"),
        ((LEAKAGE_STEP,), "roc_auc >= 0.7", "not assessed"),
    ],
)
def test_a_skipped_step_is_no_verdict(steps, criterion, verdict, monkeypatch):
    monkeypatch.setattr(feasibility, "Deadline", type("Stop", (_StopBefore,), {"steps": steps}))
    found = assess(numbers(600), criterion)
    assert found.verdict == verdict and found.skipped == ", ".join(steps)
    assert (found.p_value is None) == ("the permutation test" in steps)


def test_without_a_test_and_without_a_score_above_the_baseline_nothing_is_concluded(monkeypatch):
    steps = ("the permutation test",)
    monkeypatch.setattr(feasibility, "Deadline", type("Stop", (_StopBefore,), {"steps": steps}))
    rng = np.random.default_rng(0)
    noise = pd.DataFrame(rng.normal(size=(300, 4)), columns=list("abcd")).assign(y=rng.choice(["yes", "no"], 300))
    found = assess(noise)
    assert found.verdict == "not assessed" and "the permutation test" in found.reason and "probe_seconds" in found.reason


def test_a_wide_table_ends_in_time():
    "In seconds of this process: other processes do not count. Without a limit on the work it took two minutes."
    table = normalise_dtypes(numbers(1000, 2000))
    problem = define_problem("wide", "y", rows=table, probe_seconds=0)
    assert isinstance(problem, Problem)
    start = time.process_time()
    found = assess_feasibility(table, problem, seconds=10)
    assert time.process_time() - start < 12 and found.scores["linear"].value > 0.55
    assert found.verdict in ("feasible", "not assessed")

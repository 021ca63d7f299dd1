"""The grammar of criteria: what is read, what is written out again, and what an error says."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcycle.errors import CriterionError
from mlcycle.ml.criteria import Criterion, parse_criterion, parse_problem_criteria
from mlcycle.ml.metrics import METRICS
from mlcycle.outcomes import Problem

READ = {
    "roc_auc >= 0.75": {"kind": "bound", "metric": "roc_auc", "bound": 0.75},
    "cost <= 120": {"kind": "bound", "metric": "cost", "operator": "<=", "bound": 120},
    "cost <= -1e3": {"kind": "bound", "metric": "cost", "operator": "<=", "bound": -1000},
    "neg_log_loss ≤ .5": {"kind": "bound", "metric": "log_loss", "operator": "<=", "bound": 0.5},
    "recall>=0.6 at precision>=0.5": {
        "kind": "operating point",
        "metric": "recall",
        "bound": 0.6,
        "constraint_metric": "precision",
        "constraint_bound": 0.5,
    },
    "beats baseline": {"kind": "baseline", "metric": "f1", "bound": 0},
    " beats  baseline\tby 5% ": {"kind": "baseline", "metric": "f1", "bound": 0.05, "is_relative": True},
    "beats baseline by 5 % relative": {"kind": "baseline", "metric": "f1", "bound": 0.05, "is_relative": True},
    "beats baseline by 0.02": {"kind": "baseline", "metric": "f1", "bound": 0.02},
    "not worse than champion": {"kind": "champion", "metric": "f1", "bound": 0},
    "not worse than champion by more than 0.005": {"kind": "champion", "metric": "f1", "bound": 0.005},
    "better than champion": {"kind": "better than champion", "metric": "f1", "bound": 0},
    "better than champion by 2 % relative": {
        "kind": "better than champion",
        "metric": "f1",
        "bound": 0.02,
        "is_relative": True,
    },
    "not worse than champion by more than 1 %": {"kind": "champion", "metric": "f1", "bound": 0.01, "is_relative": True},
    "p95 latency <= 50 ms": {"kind": "latency", "operator": "<=", "bound": 50, "percentile": 95},
    "p99 latency <= 0.2s": {"kind": "latency", "operator": "<=", "bound": 200, "percentile": 99},
    "selection_rate ratio between groups >= 0.8": {"kind": "ratio", "metric": "selection_rate", "bound": 0.8},
    "recall ratio between groups of town >= 0.9": {"kind": "ratio", "metric": "recall", "bound": 0.9, "column": "town"},
    'f1 ratio between groups of "home town" >= 1': {"kind": "ratio", "metric": "f1", "bound": 1, "column": "home town"},
}


@pytest.mark.parametrize("line", READ)
def test_each_form_is_read(line):
    assert parse_criterion(line, "binary", "f1") == Criterion(**READ[line])


WRONG = {  # Line: column, and what is said about it
    "roc_auc > 0.7": (9, "'>='"),
    "roc_auc >=": (12, "a number"),
    "roc_auc >= high": (12, "a number"),
    "roc_auc >= 0.7 0.8": (16, "end of the line"),
    "roc_auc <= 0.7": (9, "Write 'roc_auc >= 0.7'"),
    "log_loss >= 0.7": (10, "Write 'log_loss <= 0.7'"),
    "roc_auk >= 0.7": (1, "Did you mean 'roc_auc'"),
    "rmse <= 3": (1, "does not fit a binary task"),
    "accuracy >= 75": (13, "0 to 1"),
    "accuracy >= 75 %": (16, "end of the line"),
    "beatz baseline": (1, "Did you mean 'beats'"),
    "beats basline": (7, "Did you mean 'baseline'"),
    "beats champion": (7, "'baseline'"),
    "beats baseline by 5 percent": (21, "'%'"),
    "beats baseline by -1": (19, "a number"),
    "beats baseline by 1e999": (19, "too large"),
    "better then champion": (8, "Did you mean 'than'"),
    "betters than champion": (1, "Did you mean 'better'"),
    "  not worse then champion": (13, "Did you mean 'than'"),
    "not worse than champion by more 3": (33, "'than'"),
    "p95 latency <= 50": (19, "'ms' or 's'"),
    "p95 latency >= 50 ms": (13, "'<='"),
    "p97 latency <= 50 ms": (1, "Did you mean 'p9"),
    "p95 latency <= 0 ms": (16, "greater than 0"),
    "recall >= 0.6 at accuracy >= 0.5": (15, "operating point"),
    "recall >= 0.6 at precision >= 5": (31, "0 to 1"),
    "selection_rate >= 0.1": (1, "ratio between groups"),
    "f1 ratio betwen groups >= 0.8": (10, "Did you mean 'between'"),
    "f1 ratio between groups >= 80": (28, "at most 1"),
    'f1 ratio between groups of "" >= 0.8': (28, "must not be empty"),
    "matthews_corrcoef ratio between groups >= 0.8": (1, "negative"),
    "no_such_module:f >= 1": (1, "no_such_module"),
    "": (1, "Examples of criteria: roc_auc >= 0.75"),
    "?": (1, "Examples of criteria: roc_auc >= 0.75"),
}


@pytest.mark.parametrize("line", WRONG)
def test_an_error_points_at_the_place_and_says_what_was_expected(line):
    column, said = WRONG[line]
    with pytest.raises(CriterionError) as caught:
        parse_criterion(line, "binary", "f1")
    message, shown, caret = caught.value.found.split("\n")
    assert message == f"The criterion cannot be read at column {column}:"
    assert shown == f"    {line}"
    assert caret == " " * (4 + column - 1) + "^"
    assert said in f"{caught.value.expected} {caught.value.remedy}"


def test_what_fits_no_other_task():
    for line in ("recall >= 0.6 at precision >= 0.5", "selection_rate ratio between groups >= 0.8"):
        with pytest.raises(CriterionError):
            parse_criterion(line, "multiclass", "f1")
    with pytest.raises(CriterionError, match="neither higher nor lower"):
        parse_criterion("beats baseline", "binary", "selection_rate")


NUMBERS = {"allow_nan": False, "allow_infinity": False}
PLAIN = [name for name, metric in METRICS.items() if "binary" in metric.tasks and metric.higher_is_better is not None]


@st.composite
def bounds(draw):
    "A metric with a bound that it can reach."
    metric = METRICS[draw(st.sampled_from(PLAIN))]
    low, high = (end if abs(end) < 1e300 else None for end in (metric.low, metric.high))
    operator = ">=" if metric.higher_is_better else "<="
    return Criterion(kind="bound", metric=metric.name, operator=operator, bound=draw(st.floats(low, high, **NUMBERS)))


SHARES = st.floats(0, 1)
MARGINS = st.builds(
    lambda kind, bound, relative: Criterion(kind=kind, metric="f1", bound=bound, is_relative=relative and bound > 0),
    st.sampled_from(["baseline", "champion", "better than champion"]),
    st.floats(0, 1e300, **NUMBERS),
    st.booleans(),
)
POINTS = st.builds(
    lambda pair, bound, at: Criterion(
        kind="operating point", metric=pair[0], bound=bound, constraint_metric=pair[1], constraint_bound=at
    ),
    st.permutations(["precision", "recall"]),
    SHARES,
    SHARES,
)
LATENCIES = st.builds(
    lambda percentile, bound: Criterion(kind="latency", operator="<=", percentile=percentile, bound=bound),
    st.sampled_from([50, 90, 95, 99]),
    st.floats(1e-6, 1e300, **NUMBERS),
)
RATIOS = st.builds(
    lambda metric, column, bound: Criterion(kind="ratio", metric=metric, column=column, bound=bound),
    st.sampled_from(["selection_rate", "recall", "log_loss"]),
    st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: " ".join(text.split())),
    st.floats(1e-6, 1, **NUMBERS),
)


@given(st.one_of(bounds(), MARGINS, POINTS, LATENCIES, RATIOS))
def test_what_is_written_out_reads_back_the_same(criterion):
    assert parse_criterion(str(criterion), "binary", "f1") == criterion
    assert parse_criterion(f"  {criterion} ", "binary", "f1") == criterion


WORDS = " roc_auc recall precision f1 cost beats baseline by not worse better than champion more p95 latency ms s at of"
WORDS += ' ratio between groups relative % >= <= ≥ 5 0.5 -1 1e999 . : a:b "x y" "\\'


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS.split(" ")), max_size=9).map(" ".join)))
def test_any_text_is_read_or_refused_with_a_caret(text):
    try:
        criterion = parse_criterion(text, "binary", "f1")
    except CriterionError as error:
        found = error.found.split("\n")
        assert len(found) == 3
        assert found[2].strip() == "^"
        assert int(re.search(r"column (\d+)", found[0])[1]) == found[2].index("^") - 3
        assert error.expected
    else:
        assert criterion.metric in METRICS or criterion.kind == "latency"
        assert parse_criterion(criterion.text, "binary", "f1") == criterion


def test_a_problem_adds_its_latency_budget_once():
    empty = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256", "target"], "-")
    asked = Problem(task="regression", metric="r2", metrics=["r2"], criteria=["r2 >= 0.5"], rows=1, **empty)
    for lines, budget, expected in (
        (["r2 >= 0.5"], None, ["r2 >= 0.5"]),
        (["r2 >= 0.5"], 20.0, ["r2 >= 0.5", "p95 latency <= 20 ms"]),
        (["p95 latency <= 0.02 s", "r2 >= .5", "r2 >= 0.50"], 20.0, ["p95 latency <= 20 ms", "r2 >= 0.5"]),
    ):
        problem = asked.model_copy(update={"criteria": lines, "latency_budget_ms": budget})
        assert [criterion.text for criterion in parse_problem_criteria(problem)] == expected
    unfair = asked.model_copy(update={"criteria": ["mae ratio between groups >= 0.8"]})
    with pytest.raises(CriterionError, match="no protected columns"):
        parse_problem_criteria(unfair)
    assert len(parse_problem_criteria(unfair.model_copy(update={"protected_columns": ["town"]}))) == 1

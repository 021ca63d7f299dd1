"""Agreement of annotators: published examples, other libraries, invariances, intervals, and what cannot be measured."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from mlcycle.data.labelling.agreement import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    measure_agreement,
    pairwise_kappa,
    percent_agreement,
    select_labels,
)
from mlcycle.errors import InputError


def frame(lines) -> pd.DataFrame:
    "Annotations from tuples."
    return pd.DataFrame(lines, columns=["item", "annotator", "label"])


def draw(seed: int, items: int, annotators: int, guesses: float, classes: str = "abc", share: float = 0.8) -> pd.DataFrame:
    "Labels of annotators who guess in some cases."
    rng = np.random.default_rng(seed)
    lines = []
    for item in range(items):
        actual = rng.choice(list(classes))
        for who in range(annotators):
            if rng.random() < share:
                label = rng.choice(list(classes)) if rng.random() < guesses else actual
                lines.append((f"i{item}", f"a{who}", str(label)))
    return frame(lines)


tables = st.lists(
    st.tuples(st.integers(0, 7).map("i{}".format), st.integers(0, 3).map("a{}".format), st.sampled_from("xyz")),
    min_size=1,
    max_size=40,
    unique_by=lambda line: line[:2],
)
STATISTICS = [
    percent_agreement,
    fleiss_kappa,
    krippendorff_alpha,
    lambda table, **options: krippendorff_alpha(table.assign(label=table.label.map(ord)), "interval", **options),
]


@given(tables, st.randoms())
@settings(max_examples=20, deadline=None)
def test_order_of_rows_and_names_of_annotators_classes_and_items_do_not_matter(lines, random):
    table = frame(lines)
    shuffled = random.sample(lines, len(lines))
    renamed = frame([(f"z{item}", {"a0": "p", "a1": "c", "a2": "q", "a3": "b"}[who], label) for item, who, label in shuffled])
    for measure in STATISTICS:
        one, other = measure(table, n_resamples=50), measure(renamed, n_resamples=50)
        assert (one.n_items, one.n_annotators, one.reason) == (other.n_items, other.n_annotators, other.reason)
        np.testing.assert_allclose([one.value, one.low, one.high], [other.value, other.low, other.high], atol=1e-9)
    swapped = table.assign(label=table.label.map({"x": "z", "y": "x", "z": "y"}))
    for measure in STATISTICS[:3]:
        np.testing.assert_allclose(measure(swapped, n_resamples=2).value, measure(table, n_resamples=2).value, atol=1e-9)


@given(tables)
@settings(max_examples=25, deadline=None)
def test_a_value_is_in_its_range_and_inside_its_interval_or_has_a_reason(lines):
    for measure in STATISTICS:
        found = measure(frame(lines), n_resamples=50)
        lowest = -np.inf if found.statistic == "Fleiss' kappa" else -1  # Items with one label count as chance only
        assert np.isnan([found.value, found.low, found.high]).any() == bool(found.reason)
        if not np.isnan(found.value):
            assert lowest <= found.value <= 1 + 1e-12
        if not found.reason:
            assert lowest <= found.low <= found.value <= found.high <= 1


@given(tables, st.floats(0.1, 50), st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_the_alpha_of_intervals_does_not_depend_on_unit_and_origin(lines, unit, origin):
    numbers = frame(lines).assign(label=lambda table: table.label.map(ord) - 119.0)
    one = krippendorff_alpha(numbers, "interval", n_resamples=2)
    other = krippendorff_alpha(numbers.assign(label=unit * numbers.label + origin), "interval", n_resamples=2)
    np.testing.assert_allclose(one.value, other.value, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_crowd_kit(seed):
    from crowdkit.metrics.data import alpha_krippendorff

    table = draw(seed, items=40, annotators=4, guesses=0.5)
    numbers = table.assign(label=table.label.map({"a": 1.0, "b": 2.5, "c": 7.0}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nominal, interval = (
            alpha_krippendorff(each.rename(columns={"item": "task", "annotator": "worker"}), **options)
            for each, options in ((table, {}), (numbers, {"distance": lambda one, other: (one - other) ** 2}))
        )
    assert krippendorff_alpha(table).value == pytest.approx(nominal)
    assert krippendorff_alpha(numbers, "interval").value == pytest.approx(interval)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_of_two_is_that_of_scikit_learn(seed):
    table = draw(seed, items=60, annotators=3, guesses=0.4)
    wide = table.pivot(index="item", columns="annotator", values="label")
    pairs = pairwise_kappa(table, n_resamples=2).set_index(["first", "second"]).value
    assert len(pairs) == 3
    for (one, other), value in pairs.items():
        both = wide[[one, other]].dropna()
        assert value == pytest.approx(cohen_kappa_score(both[one], both[other]))
        assert cohen_kappa(table, other, one, n_resamples=2).value == pytest.approx(value)


def test_fleiss_with_unequal_numbers_of_labels():
    "Values of irrCAC 0.4.4 (Gwet, 2014)."
    rng, found = np.random.default_rng(0), []
    for _ in range(3):
        lines = [
            (f"i{item}", f"a{who}", float(rng.choice(3, p=[0.6, 0.3, 0.1]) if rng.random() < 0.5 else item % 3))
            for item in range(30)
            for who in range(4)
            if rng.random() < 0.7
        ]
        found.append(fleiss_kappa(frame(lines)).value)
    np.testing.assert_allclose(found, [0.30068272, 0.31589342, 0.2347876], atol=1e-7)


def test_intervals_cover_the_true_value():
    "Of 200 tables with 60 items, about 95 % of the intervals hold the value of a large table."
    true = krippendorff_alpha(draw(0, items=20_000, annotators=3, guesses=0.4), n_resamples=2).value
    found = [krippendorff_alpha(draw(seed, items=60, annotators=3, guesses=0.4), n_resamples=200) for seed in range(1, 201)]
    assert 0.91 <= np.mean([each.low <= true <= each.high for each in found]) <= 0.99


def test_full_agreement_has_an_interval_too():
    table = frame([(f"i{n}", who, "ab"[n % 2]) for n in range(30) for who in ("p", "q")])
    for found in (percent_agreement(table), fleiss_kappa(table), krippendorff_alpha(table), cohen_kappa(table, "p", "q")):
        assert found.value == 1.0 == found.high and 0.7 < found.low < 0.95 and not found.reason


def test_opposite_labels_are_below_chance():
    table = frame([(f"i{n}", who, "ab"[(n + k) % 2]) for n in range(30) for k, who in enumerate(("p", "q"))])
    assert cohen_kappa(table, "p", "q").value == -1.0 and percent_agreement(table).value == 0.0


def test_what_cannot_be_measured_has_a_reason():
    two = [(f"i{n}", who, "ab"[n % 2]) for n in range(30) for who in ("p", "q")]
    cases = {
        "there are no labels": frame([]),
        "all labels are by one annotator": frame(two)[lambda table: table.annotator == "p"],
        "no item has labels of two annotators": frame([(f"{item}{who}", who, label) for item, who, label in two]),
        "only one item has labels of two annotators": frame(two[:2] + [("x", "p", "a"), ("y", "q", "b")]),
    }
    for reason, table in cases.items():
        found = measure_agreement(table)
        assert found.reason.iloc[:3].tolist() == [reason] * 3 and found.value.isna().all()
        numbers = measure_agreement(table.assign(label=table.label.map({"a": 1.0, "b": 2.0})), numeric=True)
        assert numbers.reason.tolist() == [reason] and numbers.value.isna().all()
    same = frame(two).assign(label="a")
    found = measure_agreement(same, ["a", "b"]).set_index("statistic")
    assert found.value["percent agreement"] == 1.0
    assert found.value.drop("percent agreement").isna().all() and found.reason.drop("percent agreement").ne("").all()
    assert np.isnan(krippendorff_alpha(same.assign(label=3.3), "interval").value)
    few = percent_agreement(frame(two[:8]))
    assert few.value == 1.0 and np.isnan(few.low) and few.reason == "too few items for an interval"
    singles = [(f"single-{n}", "p", "ab"[n % 2]) for n in range(30)]
    nine = [(f"{n}", who, "ab"[n % 2]) for n in range(8) for who in "pq"] + [("8", "p", "a"), ("8", "q", "b")]
    found = measure_agreement(frame(nine + singles))
    assert found.low.isna().all() and found.high.isna().all() and (found.reason == "too few items for an interval").all()
    assert found.value.notna().all() and (found.n_items == 9).all()


def test_pairs_without_a_common_item():
    table = frame([("1", "p", "a"), ("2", "p", "b"), ("3", "q", "a"), ("1", "r", "a"), ("2", "r", "b")])
    found = pairwise_kappa(table).set_index(["first", "second"]).reason
    assert found[("p", "q")] == "they have labelled no item in common" and found[("p", "r")] == "too few items for an interval"
    assert pairwise_kappa(table[table.annotator == "p"]).empty


def test_the_last_label_that_was_not_taken_back_counts():
    history = frame([("1", "p", "a"), ("1", "p", "b"), ("2", "p", "a"), ("2", "p", None), ("3", "p", "a"), ("3", "p", None)])
    history["action"] = ["label", "label", "label", "undo", "label", "skip"]
    history["annotation_id"], history["undoes"] = list("uvwxyz"), ["", "", "", "w", "", ""]
    assert select_labels(history)[["item", "label"]].to_numpy().tolist() == [["1", "b"]]


@pytest.mark.parametrize(
    ("table", "classes", "message"),
    [
        (pd.DataFrame({"item": ["1"], "label": ["a"]}), None, "no column 'annotator'"),
        (frame([("1", "p", None), ("2", "p", "a")]), None, "1 annotations have no item, annotator or label"),
        (frame([("1", "p", "yess"), ("2", "p", "yes")]), ["yes", "no"], "'yess' of item '1' by 'p' is unknown.*'yes'"),
    ],
)
def test_bad_input_is_refused(table, classes, message):
    for measure in (percent_agreement, fleiss_kappa, pairwise_kappa):
        with pytest.raises(InputError, match=message):
            measure(table, classes)


def test_other_bad_input_is_refused():
    table = frame([("1", "p", "a"), ("1", "q", "b")])
    with pytest.raises(InputError, match="no labels by 'pp'.*'p'"):
        cohen_kappa(table, "pp", "q")
    with pytest.raises(InputError, match="'a' of item '1' by 'p' is no number"):
        krippendorff_alpha(table, "interval")
    with pytest.raises(InputError, match="level of measurement 'ordinal'"):
        krippendorff_alpha(table, "ordinal")


def test_a_large_table_is_quick():
    "150,000 labels of 50,000 items, with the intervals, in seconds."
    import time

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"item": np.repeat([f"i{n}" for n in range(50_000)], 3), "annotator": np.tile(["p", "q", "r"], 50_000)})
    table["label"] = rng.integers(0, 4, len(table))
    start = time.perf_counter()
    found = measure_agreement(table)
    assert abs(found.value[1:]).max() < 0.02
    assert time.perf_counter() - start < 10

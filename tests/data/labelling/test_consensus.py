"""Consensus of people: ties, invariances, simulated annotators with known confusion matrices, quality, bad input."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from mlcycle.data.labelling.consensus import (
    annotator_quality,
    crowdlab,
    dawid_skene,
    find_consensus,
    items_to_relabel,
    majority_vote,
    median_consensus,
    simulate_annotators,
)
from mlcycle.errors import InputError

COLUMNS = ["item", "annotator", "label"]
ACCURACIES = {"anna": 0.9, "ben": 0.8, "cem": 0.7, "dora": 0.6, "emil": 0.5}


def frame(lines) -> pd.DataFrame:
    "Annotations from tuples."
    return pd.DataFrame(lines, columns=COLUMNS)


def confusions(rng: np.random.Generator, accuracies: dict[str, float], n_classes: int) -> dict[str, np.ndarray]:
    "Random confusion matrices of annotators who are right in a share of the cases of each class."
    return {
        name: np.stack([np.insert((1 - right) * rng.dirichlet(np.full(n_classes - 1, 0.5)), k, right) for k in range(n_classes)])
        for name, right in accuracies.items()
    }


@pytest.fixture(scope="module")
def digits():
    "Images, digits, labels of five annotators for 60 % of the images, and out-of-fold probabilities."
    images, numbers = load_digits(return_X_y=True)
    actual = pd.Series(numbers, [f"{n:04}" for n in range(len(numbers))])
    known = confusions(np.random.default_rng(0), ACCURACIES, 10)
    annotations = simulate_annotators(actual, known, range(10), share=0.6)
    vote = majority_vote(annotations).labels.label
    rows = pd.DataFrame(images / 16, actual.index).loc[vote.index]
    probs = cross_val_predict(LogisticRegression(C=0.1, max_iter=100), rows, vote, cv=3, method="predict_proba")
    return actual, known, annotations, pd.DataFrame(probs, rows.index)


def accuracy(found, actual) -> float:
    "The share of items with the right label."
    return (found.labels.label == actual[found.labels.index]).mean()


tables = st.lists(
    st.tuples(st.integers(0, 7).map("i{}".format), st.integers(0, 3).map("a{}".format), st.sampled_from("xyz")),
    min_size=2,
    max_size=40,
    unique_by=lambda line: line[:2],
)


def methods(table: pd.DataFrame, slow: bool = False):
    "The methods that a table allows, each with a function of annotations."
    items = sorted(table["item"].unique())
    rng = np.random.default_rng(0)
    probs = pd.DataFrame(rng.dirichlet([1, 1, 1], len(items)), items, list("xyz"))
    yield lambda each: majority_vote(each, list("xyz"))
    if table.annotator.nunique() > 1 and table.duplicated("item").sum() > 1 and table["item"].value_counts().gt(1).sum() > 1:
        yield lambda each: crowdlab(each, probs)
        if slow:
            yield lambda each: dawid_skene(each, list("xyz"))


@given(tables, st.randoms(), st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_order_of_rows_and_names_of_annotators_do_not_matter(lines, random, slow):
    table = frame(lines)
    names = {"a0": "p", "a1": "c", "a2": "q", "a3": "b"}
    other = frame([(item, names[who], label) for item, who, label in random.sample(lines, len(lines))])
    for method in methods(table, slow == 0):
        one, two = method(table), method(other)
        pd.testing.assert_frame_equal(one.labels, two.labels)
        np.testing.assert_allclose(one.soft_labels, two.soft_labels, atol=1e-9)
        left, right = (annotator_quality(*pair).drop(columns="remark") for pair in ((table, one), (other, two)))
        np.testing.assert_allclose(left.astype(float), right.loc[left.index.map(names)].astype(float), atol=1e-9)


@given(tables, st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_soft_labels_are_probabilities_and_the_label_has_the_highest_one(lines, slow):
    table = frame(lines)
    for method in methods(table, slow == 0):
        found = method(table)
        soft = found.soft_labels
        assert (soft.index == found.labels.index).all() and found.labels.index.tolist() == sorted(table["item"].unique())
        assert (soft >= 0).all(axis=None) and np.allclose(soft.sum(axis=1), 1)
        chosen = [soft.loc[item, label] for item, label in found.labels.label.items()]
        assert np.allclose(chosen, soft.max(axis=1)) and np.allclose(chosen, found.labels.confidence)
        assert found.labels.n_labels.sum() == len(table)
        again = items_to_relabel(table, found, 3)
        assert again.confidence.is_monotonic_increasing and len(again) <= 3
        if found.method == "majority":
            assert {*again.index} <= {*found.labels.index[found.labels.confidence < 1]}


def test_ties():
    sure = [(f"s{n}", who, "b") for n in range(4) for who in ("anna", "ben")]
    tie = [("t", "anna", "c"), ("t", "cem", "a")]
    assert majority_vote(frame(sure + tie)).labels.label["t"] == "c", "anna agrees with ben, cem with nobody"
    unknown = [("t", "cem", "c"), ("t", "dora", "b")]
    assert majority_vote(frame(sure + unknown)).labels.label["t"] == "b", "the most frequent class of all items"
    assert majority_vote(frame(unknown)).labels.label["t"] == "b", "the first class"
    assert majority_vote(frame(unknown), ["c", "b"]).labels.label["t"] == "c", "the first class in the given order"


def test_a_correction_decides_in_every_method(digits):
    _, _, annotations, probs = digits
    item = annotations["item"].value_counts().index[0]
    labels = annotations[annotations["item"] == item].label
    wrong = next(digit for digit in range(10) if digit not in set(labels) and probs.loc[item, digit] < 0.1)
    lines = annotations.assign(origin="person")
    lines.loc[len(lines)] = [item, "fred", wrong, "correction"]
    for method in ("majority", "dawid-skene", "crowdlab"):
        found = find_consensus(lines, method, range(10), probs)
        assert found.labels.loc[item, ["label", "confidence", "origin"]].tolist() == [wrong, 1.0, "correction"]
        assert found.labels.n_labels[item] == len(labels) + 1
        assert found.labels.origin.value_counts().to_dict() == {"person": len(found.labels) - 1, "correction": 1}
    numbers = find_consensus(lines.assign(label=lines.label.astype(float)), "median")
    assert numbers.labels.label[item] == wrong and numbers.labels.confidence[item] == 1.0


def test_simulated_annotators_are_as_their_matrices(digits):
    actual, known, annotations, _ = digits
    for name, lines in annotations.groupby("annotator"):
        assert len(lines) == pytest.approx(0.6 * len(actual), rel=0.06)
        found = pd.crosstab(actual[lines["item"]].to_numpy(), lines.label.to_numpy(), normalize="index")
        assert abs(found - known[name]).mean(axis=None) < 0.02


def test_digits_with_five_annotators(digits):
    "Majority, Dawid-Skene and CROWDLAB in this order; the confusion matrices are recovered."
    actual, known, annotations, probs = digits
    vote, skene, lab = (
        find_consensus(annotations, method, range(10), probs) for method in ("majority", "dawid-skene", "crowdlab")
    )
    assert accuracy(vote, actual) == pytest.approx(0.874, abs=0.01)
    assert accuracy(skene, actual) > accuracy(vote, actual) + 0.015
    assert accuracy(lab, actual) > max(0.97, accuracy(skene, actual) + 0.05)
    for name, matrix in known.items():
        assert abs(skene.confusion.loc[name] - matrix).mean(axis=None) < 0.025
        assert np.diag(skene.confusion.loc[name]).mean() == pytest.approx(ACCURACIES[name], abs=0.03)
    assert np.allclose(skene.confusion.sum(axis=1), 1)
    for found in (skene, lab):
        quality = annotator_quality(annotations, found)
        assert abs(quality.estimated_accuracy - pd.Series(ACCURACIES)).max() < 0.03
        assert quality.index.tolist() == ["emil", "dora", "cem", "ben", "anna"] and not quality.at_chance.any()


def test_the_doubtful_items_are_more_often_wrong(digits):
    actual, _, annotations, probs = digits
    for method in ("majority", "dawid-skene", "crowdlab"):
        found = find_consensus(annotations, method, range(10), probs)
        wrong = found.labels.label != actual[found.labels.index]
        again = items_to_relabel(annotations, found, 180)
        assert wrong[again.index].mean() > 3 * wrong.mean(), method


@pytest.mark.parametrize("seed", range(2))
def test_dawid_skene_recovers_systematic_confusion(seed):
    "One annotator swaps the classes and one guesses: Dawid-Skene turns the swapped labels round, a vote does not."
    rng = np.random.default_rng(seed)
    actual = pd.Series(rng.choice(["n", "y"], 600, p=[0.6, 0.4]), [f"i{n}" for n in range(600)])
    rates = {"a": 0.8, "b": 0.7, "c": 0.7, "swap": 0.05, "guess": 0.5}
    known = {name: np.array([[right, 1 - right], [1 - right, right]]) for name, right in rates.items()}
    annotations = simulate_annotators(actual, known, ["n", "y"], seed=seed)
    vote, skene = majority_vote(annotations), dawid_skene(annotations)
    assert accuracy(skene, actual) > 0.93 > accuracy(vote, actual) + 0.1
    for name, matrix in known.items():
        assert abs(skene.confusion.loc[name] - matrix).max(axis=None) < 0.1
    quality = annotator_quality(annotations, skene)
    assert quality.at_chance.to_dict() == {"a": False, "b": False, "c": False, "guess": True, "swap": True}
    assert "less than by chance" in quality.remark["swap"] and quality.remark["guess"] == "at chance level"


def test_crowdlab_is_that_of_cleanlab(digits):
    from cleanlab.multiannotator import get_label_quality_multiannotator

    _, _, annotations, probs = digits
    wide = annotations.assign(label=annotations.label.astype(float)).pivot(index="item", columns="annotator", values="label")
    wide = wide.loc[probs.index]
    found = crowdlab(annotations, probs)
    plain, best = (
        get_label_quality_multiannotator(wide.reset_index(drop=True), probs.to_numpy(), consensus_method=method, verbose=False)
        for method in ("majority_vote", "best_quality")
    )
    assert (found.labels.label.to_numpy() == best["label_quality"].consensus_label.to_numpy()).all()
    quality = plain["detailed_label_quality"].to_numpy()
    for column, name in enumerate(wide):
        labels = wide[name].dropna().astype(int)
        ours = [found.soft_labels.loc[item, label] for item, label in labels.items()]
        np.testing.assert_allclose(ours, quality[wide[name].notna(), column])


def test_guessing_annotators_are_flagged_and_good_ones_are_not():
    "Of 200 guessing annotators nearly all, and of 200 good ones few, with 40 labels and a rare class."
    flagged = {"guess": [], "good": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        actual = pd.Series(rng.choice(["n", "y"], 400, p=[0.85, 0.15]), [f"i{n}" for n in range(400)])
        good, guess = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.85, 0.15], [0.85, 0.15]])
        known = {f"good {n}": good for n in range(10)} | {f"guess {n}": guess for n in range(10)}
        parts = [simulate_annotators(actual, {"base 1": good, "base 2": good}, ["n", "y"], share=0.8, seed=seed)]
        parts += [simulate_annotators(actual, known, ["n", "y"], share=0.1, seed=seed + 100)]
        annotations = pd.concat(parts, ignore_index=True)
        quality = annotator_quality(annotations, majority_vote(annotations))
        for kind, found in flagged.items():
            found.extend(quality.at_chance[quality.index.str.startswith(kind)])
    assert len(flagged["good"]) == 200 and np.mean(flagged["guess"]) > 0.8 and np.mean(flagged["good"]) < 0.1


def test_work_of_annotators():
    table = [("1", "p", "a", "label", 2.0), ("2", "p", "a", "label", 6.0), ("3", "p", None, "skip", 9.0)]
    table += [("4", "p", None, "unsure", 1.0), ("1", "q", "b", "label", 3.0), ("5", "r", None, "skip", 3.0)]
    lines = pd.DataFrame(table, columns=[*COLUMNS, "action", "seconds"])
    quality = annotator_quality(lines, majority_vote(lines))
    assert quality.loc["p", ["n_labels", "seconds_median", "skipped", "unsure"]].tolist() == [2, 4.0, 0.25, 0.25]
    assert quality.loc["r", ["n_labels", "skipped", "n_compared"]].tolist() == [0, 1.0, 0] and np.isnan(quality.agreement["r"])
    assert quality.remark.str.startswith("too few labels in common").all() and not quality.at_chance.any()
    assert quality.estimated_accuracy.isna().all()


def test_the_own_label_is_left_out():
    "With the own label among the votes, each annotator would agree with half of the ties."
    lines = frame([(f"i{n}", who, label) for n in range(20) for who, label in (("p", "a"), ("q", "b"))])
    assert annotator_quality(lines, majority_vote(lines)).agreement.tolist() == [0.0, 0.0]
    three = frame([(f"i{n}", who, label) for n in range(20) for who, label in (("p", "a"), ("q", "a"), ("r", "b"))])
    assert annotator_quality(three, majority_vote(three)).agreement.to_dict() == {"p": 0.5, "q": 0.5, "r": 0.0}


def test_numbers():
    rng = np.random.default_rng(0)
    actual = pd.Series(rng.normal(100, 20, 200), [f"i{n}" for n in range(200)])
    noise, hard = {"good": 3, "fair": 8, "fine": 5}, pd.Series(rng.random(200) < 0.2, actual.index)
    numbers = {name: actual + rng.normal(0, sd, 200) * (1 + 2 * hard) for name, sd in noise.items()}
    numbers["guess"] = rng.normal(100, 20, 200)
    parts = [pd.DataFrame({"item": actual.index, "annotator": name, "label": each}) for name, each in numbers.items()]
    lines = pd.concat(parts, ignore_index=True)
    found = find_consensus(lines, "median")
    assert found.soft_labels is None and abs(found.labels.label - actual).mean() < 6
    assert found.labels.confidence.between(0, 1).all() and found.labels.spread.notna().all()
    quality = annotator_quality(lines, found)
    assert quality.at_chance.to_dict() == {"guess": True, "fair": False, "fine": False, "good": False}
    assert quality.index.tolist() == ["guess", "fair", "fine", "good"]
    people = lines[lines.annotator != "guess"]
    found = find_consensus(people, "median")
    again = items_to_relabel(people, found, 40)
    assert hard[again.index].mean() > 2 * hard.mean() and again.reason.iloc[0].startswith("labels from ")
    alone = median_consensus(lines[lines.annotator == "good"])
    assert (alone.labels.confidence == 1).all() and alone.labels.spread.isna().all()
    pd.testing.assert_frame_equal(found.labels, median_consensus(people.iloc[::-1]).labels)


def test_labels_of_any_kind_and_classes_that_nobody_gave():
    for one, other in ((True, False), (1, 2), ("a", "b"), (1.5, -2.0)):
        lines = frame([(f"i{n}", who, one if n % 3 or who == "q" else other) for n in range(12) for who in "pqr"])
        for found in (majority_vote(lines), dawid_skene(lines), majority_vote(lines, [one, other, "never"])):
            assert [*found.labels.label] == [other if n % 3 == 0 else one for n in (0, 1, 10, 11, *range(2, 10))], found.method
    probs = pd.DataFrame(1 / 3, lines["item"].unique(), [one, other, "never"])
    assert crowdlab(lines, probs).soft_labels.columns.tolist() == [one, other, "never"]


def test_a_lost_class_is_noted():
    "Dawid-Skene gives no item the class of an annotator who uses it for everything."
    lines = [(f"i{n}", who, "ab"[n % 2]) for n in range(40) for who in ("p", "q")] + [(f"i{n}", "r", "c") for n in range(42)]
    found = dawid_skene(frame(lines))
    assert majority_vote(frame(lines)).labels.label.value_counts()["c"] == 2 and not majority_vote(frame(lines)).notes
    assert set(found.labels.label) == {"a", "b"}
    assert found.notes == ("The majority vote gives some items the class 'c', and dawid-skene none.",)


def test_an_annotator_without_common_items_and_no_warnings():
    lines = frame([(f"i{n}", who, "ab"[n % 2]) for n in range(12) for who in ("p", "q")] + [("x", "alone", "a")])
    probs = pd.DataFrame(0.5, lines["item"].unique(), ["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("majority", "dawid-skene", "crowdlab"):
            found = find_consensus(lines, method, ["a", "b"], probs)
            assert found.labels.label["x"] == "a" and found.soft_labels.notna().all(axis=None)
            annotator_quality(lines, found)


def test_no_labels():
    empty = frame([])
    for found in (majority_vote(empty, ["a", "b"]), majority_vote(empty), median_consensus(empty)):
        assert found.labels.empty and "confidence" in found.labels
        assert annotator_quality(empty, found).empty and items_to_relabel(empty, found).empty


def test_a_large_table_is_quick():
    "150,000 labels of 50,000 items by 30 annotators."
    import time

    rng = np.random.default_rng(0)
    lines = pd.DataFrame({"item": np.repeat([f"i{n}" for n in range(50_000)], 3)})
    lines["annotator"] = [f"a{n}" for n in (np.repeat(rng.integers(0, 10, 50_000), 3) + np.tile([0, 10, 20], 50_000))]
    lines["label"] = rng.integers(0, 4, len(lines))
    start = time.perf_counter()
    found = majority_vote(lines)
    annotator_quality(lines, found)
    items_to_relabel(lines, found)
    assert time.perf_counter() - start < 10


GOOD = frame([("1", "p", "a"), ("1", "q", "b"), ("2", "p", "a"), ("2", "q", "a")])
PROBS = pd.DataFrame(0.5, ["1", "2"], ["a", "b"])


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (GOOD, {"method": "mean"}, "consensus method 'mean' is unknown"),
        (GOOD, {"classes": ["a", "c"]}, "'b' of item '1' by 'q' is unknown.*Classes are: a, c"),
        (GOOD, {"method": "median"}, "'a' of item '1' by 'p' is no number"),
        (GOOD, {"method": "crowdlab"}, "needs predicted probabilities"),
        (GOOD, {"method": "crowdlab", "pred_probs": PROBS[["a"]], "classes": ["a", "b"]}, "no column for the class 'b'"),
        (GOOD, {"method": "crowdlab", "pred_probs": PROBS[["a"]]}, "'b' of item '1' by 'q' is unknown"),
        (GOOD, {"method": "crowdlab", "pred_probs": PROBS.iloc[:1]}, "1 labelled items have no predicted probabilities.*'2'"),
        (GOOD, {"method": "crowdlab", "pred_probs": 2 * PROBS}, "do not sum to 1"),
        (GOOD, {"method": "crowdlab", "pred_probs": PROBS.replace(0.5, np.nan)}, "do not sum to 1"),
        (GOOD[:1], {"method": "crowdlab", "pred_probs": PROBS}, "all labels are by one annotator"),
        (GOOD[1:3], {"method": "dawid-skene"}, "no item has labels of two annotators"),
        (GOOD[:2], {"method": "dawid-skene"}, "only one item has labels of two annotators"),
        (GOOD.assign(origin=["person", "person", "rule", "rule"]), {"method": "dawid-skene"}, "labels of rules, such as 'p'"),
        (GOOD.drop(columns="item"), {}, "no column 'item'"),
    ],
)
def test_bad_input_is_refused(lines, options, message):
    with pytest.raises(InputError, match=message):
        find_consensus(lines, **options)


def test_crowd_kit_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)
    with pytest.raises(InputError, match=r"pip install 'mlcycle-notebooks\[crowds\]'"):
        dawid_skene(GOOD)
    assert majority_vote(GOOD).labels.label.tolist() == ["a", "a"]

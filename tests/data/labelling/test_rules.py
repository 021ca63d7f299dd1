"""Labelling rules: loading, votes, summary, combination."""

import json
import sys
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlcycle.data.labelling import rules as rules_module
from mlcycle.data.labelling.rule_labels import combine_votes
from mlcycle.data.labelling.rule_summary import summarise_rules
from mlcycle.data.labelling.rules import (
    ABSTAIN,
    DECLARED_RULES,
    LabellingRule,
    Not,
    apply_rules,
    encode_votes,
    load_rules,
    rule,
)
from mlcycle.errors import InputError, MlcycleError

IMPORT = "from mlcycle.data.labelling.rules import ABSTAIN, Not, rule\n"
ROWS = pd.DataFrame({"text": ["good", "bad", None], "size": [1.0, np.nan, 3.0]}, index=["a", "b", "c"])
CLASSES = ["no", "yes"]


@pytest.fixture(autouse=True)
def no_rules_are_left():
    yield
    DECLARED_RULES.clear()


def made(function, name="r", vectorised=False):
    return LabellingRule(name, function, vectorised)


# --- Loading --------------------------------------------------------------------------------------------------------------


def test_a_file_has_rules_in_order_with_imported_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shared_rules_of_a_test.py").write_text(
        f"{IMPORT}@rule\ndef shared(row): return None\n@rule\ndef unused(row): ...\n"
    )
    (tmp_path / "rules.py").write_text(
        f"{IMPORT}from shared_rules_of_a_test import shared\n@rule\ndef second(row): return 'yes'\n"
        "@rule(name='first', vectorised=True)\ndef named(rows): 'Words.'\n"
    )
    for _ in range(2):  # The second time, the imported module is already loaded
        found = load_rules(tmp_path / "rules.py")
        assert [each.name for each in found] == ["shared", "second", "first"]
    assert found[2].vectorised
    assert found[2].description == "Words."
    assert not DECLARED_RULES


def test_an_edited_file_is_read_again(tmp_path):
    path = tmp_path / "rules.py"
    for name in ("aa", "bb"):
        path.write_text(f"{IMPORT}@rule\ndef {name}(row): ...\n")
        assert [each.name for each in load_rules(path)] == [name]


def test_a_relative_file_is_found_in_the_project(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("")
    (tmp_path / "rules.py").write_text(f"{IMPORT}@rule\ndef one(row): ...\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert load_rules("rules.py")[0].name == "one"


def test_cells_of_a_notebook(tmp_path):
    def write(*cells):
        made = [{"cell_type": "code", "source": text, "metadata": {"tags": tags}} for text, tags in cells]
        (tmp_path / "n.ipynb").write_text(json.dumps({"cells": made, "metadata": {}}))
        return load_rules(tmp_path / "n.ipynb")

    one = f"{IMPORT}@rule\ndef one(row): return WORD"
    assert [each.name for each in write(("1 / 0", []), (one, []))] == ["one"]
    found = write(("1 / 0", []), ("WORD = 'yes'", ["rules"]), (one, ["rules"]), (one.replace("one", "two"), []))
    assert [each.name for each in found] == ["one"]
    assert apply_rules(ROWS, found, CLASSES)["one"].tolist() == ["yes"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no rule in"),
        ("def f(:", "is not valid Python"),
        ("x = 1\ny = x / 0", "line 2 (y = x / 0), fails: ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_module_of_this_name", "No module named 'no_module_of_this_name'"),
        (f"{IMPORT}@rule\ndef f(row): ...\n@rule\ndef f(row): ...", "are named 'f', lines 2 and 4"),
        (f"{IMPORT}@rule('x')\ndef f(row): ...", "'x', which is not a function"),
    ],
)
def test_errors_in_a_file(tmp_path, text, message):
    (tmp_path / "rules.py").write_text(text)
    with pytest.raises(InputError) as error:
        load_rules(tmp_path / "rules.py")
    assert message in str(error.value)
    assert "rules.py" in str(error.value)
    declared = rule(lambda row: ...)  # A failed file does not swallow what is declared later
    assert list(DECLARED_RULES.values()) == [declared]


def test_files_that_are_no_rules_files(tmp_path):
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    (tmp_path / "no.ipynb").write_text("[]")
    for name in ("absent.py", "bytes.py", "no.ipynb", "."):
        with pytest.raises(InputError, match="cannot be read"):
            load_rules(tmp_path / name)


# --- Votes ----------------------------------------------------------------------------------------------------------------


def test_missing_values_are_none_or_nan_and_a_row_is_read_only():
    seen = []
    apply_rules(ROWS.assign(when=pd.to_datetime(["2024-01-01", None, None])), [made(seen.append)], CLASSES)
    assert [row.text for row in seen] == ["good", "bad", None]
    assert np.isnan(seen[1]["size"])
    assert seen[1].when is None
    assert dict(seen[0])["size"] == 1
    with pytest.raises(TypeError):
        seen[0]["text"] = "x"
    assert not hasattr(seen[0], "other")


def failing(row):
    return "yes" if row.text.upper() == "X" else ABSTAIN


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (made(failing), "The rule 'r' fails for the row c, line"),
        (made(lambda row: row["txt"]), "no column 'txt'. Did you mean 'text'?"),
        (made(lambda rows: rows["txt"], vectorised=True), "no column 'txt'"),
        (made(lambda row: "yess"), "returns 'yess' for the row a. A class ('no', 'yes')"),
        (made(lambda row: Not("maybe")), "Not(label='maybe')"),
        (made(lambda row: True), "returns True for the row a"),
        (made(lambda row: ["yes"]), "returns ['yes'] for the row a"),
        (made(lambda rows: "yes", vectorised=True), "returns one value for 3 rows"),
        (made(lambda rows: ["yes"], vectorised=True), "returns an array of shape (1,) for 3 rows"),
        (made(lambda rows: rows["text"].sort_values(), vectorised=True), "another index"),
        (made(lambda rows: np.where(rows["size"] > 1, "yes", np.nan), vectorised=True), "returns 'nan' for the row a"),
        (failing, "is not a rule"),
    ],
)
def test_rules_that_fail_or_return_no_vote(one, message):
    with pytest.raises(InputError) as error:
        apply_rules(ROWS, [one], CLASSES)
    assert message in str(error.value)


def test_classes_that_rules_cannot_vote_for():
    for classes in ([], ["yes"], ["yes", "yes"], [1, 1.0]):
        with pytest.raises(InputError, match="classes are expected|given twice"):
            apply_rules(ROWS, [made(lambda row: None)], classes)
    with pytest.raises(InputError, match="Two rules"):
        apply_rules(ROWS, [made(lambda row: None)] * 2, CLASSES)


def test_classes_are_compared_by_value_and_kind():
    votes = apply_rules(ROWS, [made(lambda rows: np.array([1, 0, 1]), vectorised=True)], [0, 1])
    assert [(type(each), each) for each in votes["r"]] == [(int, 1), (int, 0), (int, 1)]
    for classes, wrong in (([0, 1], True), ([0, 1], "1"), ([False, True], 1), (["0", "1"], 1)):
        with pytest.raises(InputError, match="for the row a"):
            apply_rules(ROWS, [made(lambda row, wrong=wrong: wrong)], classes)
    assert apply_rules(ROWS, [made(lambda row: row["size"] > 1)], [False, True])["r"].tolist() == [False, False, True]


def test_a_vectorised_rule_cannot_change_the_rows_and_votes_like_one_of_rows():
    def change(rows):
        rows["text"] = "x"
        return rows["size"].map({1.0: "yes", 3.0: Not("yes")})

    kept = ROWS.copy()
    by_row = made(lambda row: {1.0: "yes", 3.0: Not("yes")}.get(row["size"]), "s")
    votes = apply_rules(ROWS, [made(change, vectorised=True), by_row], CLASSES)
    pd.testing.assert_frame_equal(ROWS, kept)
    assert votes["r"].tolist() == votes["s"].tolist() == ["yes", None, Not("yes")]
    assert apply_rules(ROWS[:0], [made(change, vectorised=True), by_row], CLASSES).shape == (0, 2)


def test_progress_counts_votes(monkeypatch):
    bar = Mock()
    monkeypatch.setattr(rules_module, "ProgressBar", lambda *given, **named: bar)
    apply_rules(pd.DataFrame({"x": range(1100)}), [made(lambda row: None), made(lambda row: None, "s")], CLASSES)
    assert [each.args for each in bar.call_args_list] == [(0, n, 2200) for n in (1000, 1100, 2100, 2200)]
    bar.close.assert_called_once()


# --- Summary --------------------------------------------------------------------------------------------------------------


def simulate(rng, actual, classes, accuracies, coverage=0.5):
    "Votes of rules with given accuracies; a quarter of them against a class."
    votes = {}
    for place, accuracy in enumerate(accuracies):
        right, column = rng.random(len(actual)) < accuracy, np.empty(len(actual), dtype=object)
        for row, (label, hit) in enumerate(zip(actual, right, strict=True)):
            others = [each for each in classes if each != label]
            other = others[rng.integers(len(others))]
            column[row] = (Not(other) if hit else Not(label)) if place % 4 == 3 else (label if hit else other)
        column[rng.random(len(actual)) >= coverage] = None
        votes[f"rule {place}"] = column
    return pd.DataFrame(votes, index=actual.index)


def test_inverted_rules_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    actual = pd.Series(rng.choice(CLASSES, 600, p=[0.4, 0.6]))
    votes = simulate(rng, actual, CLASSES, [0.8, 0.3, 0.7, 0.2, 0.65, 0.25])
    table = summarise_rules(votes, actual[:300])
    assert table["inverted"].tolist() == [False, True, False, True, False, True]
    assert ((table["low"] < table["accuracy"]) & (table["accuracy"] < table["high"])).all()


def test_a_vote_against_one_of_many_classes_is_inverted_below_its_own_chance():
    rng = np.random.default_rng(1)
    actual = pd.Series(rng.choice(["a", "b", "c", "d"], 800))
    votes = pd.DataFrame({"against": [Not(each) if rng.random() < 0.5 else Not("a") for each in actual],
                          "constant": [Not("a")] * 800}, dtype=object)  # fmt: skip
    table = summarise_rules(votes, actual[:150])
    assert table["inverted"].tolist() == [True, False]
    assert table["chance"].between(0.6, 0.85).all(), "three of four classes agree with such a vote"


def test_rules_without_information_are_rarely_called_inverted():
    rng, flagged = np.random.default_rng(0), 0
    for table in range(30):
        actual = pd.Series(rng.choice(CLASSES, 120, p=[[0.5, 0.5], [0.15, 0.85]][table % 2]))
        votes = pd.DataFrame({f"r{place}": rng.choice(np.array(["no", "yes", Not("yes"), None], dtype=object), 120,
                                                      p=rng.dirichlet([1, 1, 1, 1])) for place in range(8)})  # fmt: skip
        flagged += summarise_rules(votes, actual, CLASSES)["inverted"].any()
    assert flagged <= 2, "one in a hundred is expected at most"


def test_few_or_no_labels_and_rules_without_votes():
    votes = pd.DataFrame({"one": ["yes", "no", "yes"], "none": [None] * 3}, dtype=object, index=[1, 2, 3])
    assert list(summarise_rules(votes)) == ["polarity", "votes", "coverage", "overlaps", "conflicts"]
    for labels in (pd.Series([], dtype=object), pd.Series([None, "no"], [1, 2]), pd.Series({9: "yes", 2: "yes"})):
        table = summarise_rules(votes, labels, CLASSES)
        assert not table["inverted"].any()
        assert table.loc["none", ["labelled", "coverage"]].tolist() == [0, 0]
    assert summarise_rules(votes[:0], classes=CLASSES)["coverage"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.Series({"1": "yes"}), "None of the 1 labelled items"),
        (pd.Series(["yes", "no"], [1, 1]), "The item 1 has two labels"),
        (pd.Series({2: "maybe"}), "The item 2 has the label 'maybe'"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    votes = pd.DataFrame({"one": ["yes", "no", None]}, dtype=object, index=[1, 2, 3])
    for call in (lambda: summarise_rules(votes, labels, CLASSES), lambda: combine_votes(votes, CLASSES, labels=labels)):
        with pytest.raises(InputError, match=message):
            call()


# --- Combination ----------------------------------------------------------------------------------------------------------

VOTE = st.sampled_from([None, np.nan, "a", "b", "c", Not("a"), Not("b"), Not("c")])
TABLE = st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(VOTE, min_size=width, max_size=width), min_size=1, max_size=12))


@settings(max_examples=40, deadline=None)
@given(TABLE, st.lists(st.floats(0.05, 1), min_size=3, max_size=3), st.sampled_from(["none", "prior"]), st.randoms())
def test_what_holds_for_all_votes(cells, prior, ties, random):
    votes = pd.DataFrame(cells, dtype=object).rename(columns=str)
    combined = combine_votes(votes, list("abc"), prior=prior, ties=ties)
    soft, labels = combined.soft.to_numpy(), combined.labels
    silent = votes.isna().all(axis=1).to_numpy()
    assert (np.isnan(soft).all(axis=1) == silent).all()
    assert combined.n_uncovered == silent.sum()
    assert np.allclose(soft[~silent].sum(axis=1), 1)
    assert (soft[~silent] >= 0).all()
    assert labels["confidence"][~silent].between(1 / 3 - 1e-9, 1).all()
    assert (labels["label"].isna() == (labels["weight"] == 0)).all()
    assert (labels["label"].isna().sum() == silent.sum() + combined.n_ties) or ties == "prior"
    sums = labels[labels["label"].notna()].groupby("label")["weight"].sum()
    assert np.allclose(sums / sums.sum(), combined.prior[sums.index] / combined.prior[sums.index].sum())
    shares = (labels["weight"] / labels["confidence"])[labels["label"].notna()]
    assert not len(shares) or shares.max() == pytest.approx(1), "no label weighs more than its confidence"
    table = summarise_rules(votes, classes=list("abc"))
    assert (table["conflicts"] <= table["overlaps"]).all()
    assert (table["overlaps"] <= table["coverage"]).all()
    order = random.sample(range(len(votes)), len(votes))
    mirrored = combine_votes(votes.iloc[order, ::-1], list("abc"), prior=prior, ties=ties)
    assert np.allclose(mirrored.soft, combined.soft.iloc[order], equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, "no", "yes"]), min_size=3, max_size=3), min_size=2, max_size=10))
def test_of_two_classes_not_one_is_the_other(cells):
    votes = pd.DataFrame(cells, dtype=object).rename(columns=str)
    turned = votes.map(lambda vote: None if vote is None else Not("no" if vote == "yes" else "yes"))
    for method in ("majority", *(["weighted"] if find_spec("crowdkit") else [])):
        one, other = combine_votes(votes, CLASSES, method), combine_votes(turned, CLASSES, method)
        assert np.allclose(one.soft, other.soft, equal_nan=True)
    tables = summarise_rules(votes, classes=CLASSES), summarise_rules(turned, classes=CLASSES)
    pd.testing.assert_frame_equal(*(each.drop(columns="polarity") for each in tables))


def test_ties_and_priors():
    votes = pd.DataFrame({"x": ["yes", "no", "yes", "yes", None], "y": ["no", "yes", "yes", None, None]}, dtype=object)
    combined = combine_votes(votes, CLASSES)
    assert combined.labels["label"].tolist() == [None, None, "yes", "yes", None]
    assert combined.labels["origin"].unique().tolist() == ["rule"]
    assert combined.labels["n_labels"].tolist() == [2, 2, 2, 1, 0]
    assert combined.describe().startswith("2 of 5 rows are labelled by rules (majority); on 1 no rule votes, and 2 ties")
    assert combine_votes(votes, CLASSES, ties="prior").labels["label"].tolist()[:2] == ["no", "no"]
    assert combine_votes(votes, CLASSES, ties="prior", prior={"yes": 3, "no": 1}).labels["label"].tolist()[:2] == ["yes", "yes"]
    known = pd.Series(["yes", "yes", "yes", "no"], index=[0, 1, 2, 3])
    assert combine_votes(votes, CLASSES, labels=known).prior.tolist() == [2 / 6, 4 / 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "majorty"}, "Did you mean 'majority'"),
        ({"ties": "first"}, "'first' does not exist"),
        ({"prior": [1]}, "2 positive shares are expected"),
        ({"prior": [1, 0]}, "2 positive shares are expected"),
        ({"prior": [1, float("nan")]}, "2 positive shares are expected"),
        ({"prior": {"no": 1}}, "has no class yes"),
        ({"prior": {"no": 1, "yes": 1, "maybe": 1}}, "names the class maybe"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(MlcycleError, match=message):
        combine_votes(pd.DataFrame({"x": ["yes"]}, dtype=object), CLASSES, **options)
    with pytest.raises(InputError, match="The rule 'x' returns 'maybe' for the row 0"):
        combine_votes(pd.DataFrame({"x": ["maybe"]}, dtype=object), CLASSES)


def test_the_weighted_vote_is_that_of_crowd_kit():
    aggregation = pytest.importorskip("crowdkit.aggregation")
    rng = np.random.default_rng(0)
    actual = pd.Series(rng.choice(list("abc"), 500))
    votes = simulate(rng, actual, list("abc"), [0.9, 0.6, 0.4], 0.6)
    combined = combine_votes(votes, list("abc"), "weighted")
    long = votes.stack().rename_axis(["task", "worker"]).rename("label").dropna().reset_index()
    expected = (
        aggregation.MajorityVote().fit(long, aggregation.Wawa().fit(long).skills_).probas_
    )  # As Wawa's `predict_proba` does
    assert np.allclose(combined.soft.loc[expected.index], expected[list("abc")])
    skills = combine_votes(votes, list("abc"), "weighted", labels=actual[:200]).skills
    assert skills.sort_values(ascending=False).index.tolist() == votes.columns.tolist()
    assert np.allclose(skills, [0.9, 0.6, 0.4], atol=0.15)
    few = combine_votes(votes, list("abc"), "weighted", labels=actual[:15]).skills
    assert np.allclose(few, combined.skills), "fewer than 20 labelled votes do not count"
    silent = combine_votes(votes.assign(silent=None).astype(object), list("abc"), "weighted")
    assert silent.skills["silent"] == 0
    assert np.allclose(silent.soft, combined.soft, equal_nan=True)
    assert combine_votes(votes.iloc[:0], list("abc"), "weighted").soft.empty


def test_libraries_that_are_not_installed(monkeypatch):
    votes = pd.DataFrame({"x": ["yes"], "y": ["no"], "z": [None]}, dtype=object)
    for method, module, remedy in (("weighted", "crowdkit.aggregation", "mlcycle-notebooks[crowds]"),
                                   ("snorkel", "snorkel.labeling.model", "pip install snorkel")):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=remedy.replace("[", r"\[")):
            combine_votes(votes, CLASSES, method)


def test_what_snorkel_is_given(monkeypatch):
    "The real library is too large for the tests; this one has the same methods."

    class LabelModel:
        def __init__(self, cardinality, verbose):
            assert cardinality == 2

        def fit(self, matrix, class_balance, progress_bar, seed):
            np.random.seed(seed)  # noqa: NPY002 - as Snorkel does
            assert matrix.tolist() == [[1, 0, 1], [0, -1, -1], [-1, -1, -1]]
            assert class_balance == [0.25, 0.75]

        def predict_proba(self, matrix):
            return np.array([[0.2, 0.8], [0.5, 0.5], [0.25, 0.75]])

        def get_weights(self):
            return np.array([0.9, 0.8, 0.7])

    module = ModuleType("snorkel.labeling.model")
    module.LabelModel = LabelModel
    for name in ("snorkel", "snorkel.labeling"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "snorkel.labeling.model", module)
    votes = pd.DataFrame({"x": ["yes", "no", None], "y": ["no", None, None], "z": [Not("no"), None, None]}, dtype=object)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    combined = combine_votes(votes, CLASSES, "snorkel", prior=[1, 3])
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert combined.labels["label"].tolist() == ["yes", None, None]
    assert combined.soft.loc[2].isna().all()
    assert combined.skills.tolist() == [0.9, 0.8, 0.7]
    with pytest.raises(InputError, match="three rules"):
        combine_votes(votes[["x", "y"]], CLASSES, "snorkel")
    with pytest.raises(InputError, match="no votes against"):
        combine_votes(votes, [*CLASSES, "maybe"], "snorkel")


def test_the_label_model_of_snorkel():
    pytest.importorskip("snorkel")
    rng = np.random.default_rng(0)
    actual = pd.Series(rng.choice(CLASSES, 2000))
    votes = simulate(rng, actual, CLASSES, [0.9, 0.8, 0.7, 0.6, 0.3], 0.6)
    combined = combine_votes(votes, CLASSES, "snorkel")
    known = combined.labels["label"].notna()
    assert (combined.labels["label"] == actual)[known].mean() > (combine_votes(votes, CLASSES, ties="prior").labels["label"]
                                                                 == actual)[known].mean()  # fmt: skip
    assert combined.skills["rule 0"] > combined.skills["rule 4"]
    assert (combined.soft.isna().all(axis=1) == votes.isna().all(axis=1)).all()
    again = combine_votes(votes, CLASSES, "snorkel")
    assert np.array_equal(again.soft, combined.soft, equal_nan=True)


def test_a_model_taught_by_rules_beats_the_rules():
    "Texts of words with an evidence each; rules see ten of sixty words, and the labels of people are not used."
    rng = np.random.default_rng(0)
    words = np.array([f"word{place}" for place in range(60)])
    actual = pd.Series(rng.choice(CLASSES, 3000))
    tilt = np.exp(np.linspace(-1, 1, 60) * 1.2)
    draws = {"yes": tilt / tilt.sum(), "no": tilt[::-1] / tilt.sum()}
    rows = pd.DataFrame({"text": [" ".join(rng.choice(words, 12, p=draws[each])) for each in actual]})
    found = [made(lambda row, word=f"word{place} ", vote=vote: vote if word in f"{row.text} " else ABSTAIN, f"{vote} {place}")
             for vote, places in {"no": range(5), "yes": range(52, 60)}.items() for place in places]  # fmt: skip
    votes = apply_rules(rows, found, CLASSES)
    combined = combine_votes(votes.iloc[:2000], CLASSES)
    known = combined.labels["label"].notna()
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(rows["text"][:2000][known], combined.labels["label"][known].to_numpy(str),
              logisticregression__sample_weight=combined.labels["weight"][known])  # fmt: skip
    alone = combine_votes(votes.iloc[2000:], CLASSES).labels["label"]
    rules_score = np.where(alone.isna(), 0.5, alone == actual[2000:]).mean()
    score = (model.predict(rows["text"][2000:]) == actual[2000:]).mean()
    assert score > rules_score + 0.05, (score, rules_score)


def test_votes_are_encoded_by_position():
    votes = pd.DataFrame({"x": ["b", None, np.nan, pd.NA], "y": [Not("a"), "a", Not("b"), None]}, dtype=object)
    positive, negative = encode_votes(votes, ["a", "b"])
    assert positive.tolist() == [[1, -1], [-1, 0], [-1, -1], [-1, -1]]
    assert negative.tolist() == [[-1, 0], [-1, -1], [-1, 1], [-1, -1]]

"""Drift of columns in a window: what production really sends, with references of a release that knows no training table."""

import re

import numpy as np
import pandas as pd
import pytest

from mlcycle.errors import ArtifactError
from mlcycle.ml.predictions import Predictions
from mlcycle.ml.table_profile import add_profiles, count_column, count_table, profile_reference, profile_reference_column
from mlcycle.monitoring.column_tests import column_p_values
from mlcycle.monitoring.drift import compare_columns, detect_drift
from mlcycle.monitoring.windows import FrameBlock, summarise_frame, summarise_log
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.monitoring_references import read_references
from mlcycle.service.reference_profile import reference_documents
from mlcycle.service.release_description import Bundle


def orders(n=1500, seed=0):
    "Orders of a shop, the last tenth of which has a fault in each test."
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "placed": pd.date_range("2024-01-01", periods=n, freq="6h"),
            "channel": rng.choice(["web", "shop"], n),
            "spend": rng.normal(50, 15, n).round(2),
            "calls": rng.integers(0, 9, n),
            "code": rng.integers(1, 6, n),
        }
    )


def references_of(folder, train, labels=None, scores=None, **more):
    "The references that a release with these training rows has."
    folder.mkdir(parents=True, exist_ok=True)
    texts = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    about = {"task": "binary", "classes": [0, 1], "positive": 1, "metric": "roc_auc", "metrics": ["roc_auc"]} | more
    problem = Problem(**texts, target="late", criteria=[], rows=len(train), **about)
    bundle = Bundle(
        problem=problem,
        columns={name: str(kind) for name, kind in train.dtypes.items()},
        threshold=0.5,
        model=ModelRef(name="toy", version=1, run_id="-", sha256="-"),
        training_values={name: describe_training_values(values) for name, values in train.items()},
    )
    if labels is None:
        scores = np.random.default_rng(5).beta(2, 5, 2000)
        labels = (scores > 0.5).astype(int)
    (folder / "bundle.json").write_text(bundle.model_dump_json())
    for name, content in reference_documents(bundle, train, labels, scores).items():
        (folder / name).write_bytes(content)
    return read_references(folder)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return references_of(tmp_path_factory.mktemp("release"), orders()[:1350])


def drift_of(references, rows, predictions=None):
    "Drift of rows that are one window."
    (window,) = summarise_frame(rows, references, predictions=predictions)
    return detect_drift(references, window.columns, window.predictions, window.scores)


def events_of(rows):
    "Events of the prediction log for some orders."
    same = {"model_version": "1", "role": "champion", "latency_ms": 1.0, "outlier_p": np.nan, "prediction": 1, "score": 0.7}
    return pd.DataFrame({"row_id": [f"r{i}" for i in range(len(rows))], "when": rows.placed}).assign(**same, actual=None)


def test_rows_without_drift_have_no_finding(references):
    assert not [each for each in drift_of(references, orders()[1350:]) if each.drifted or each.finding]
    assert all(each.e_value is None and each.p_value > 0.01 for each in drift_of(references, orders(150, seed=3)))


def test_a_column_that_is_all_missing_is_named_first(references):
    first, *others = drift_of(references, orders()[1350:].assign(spend=np.nan, channel="shop"))
    assert (first.column, first.finding, first.drifted) == ("spend", "all missing", True)
    assert first.change == "" and first.effect == 1 and first.test == "Fisher's test of missing values"
    assert (others[0].column, others[0].finding) == ("channel", "constant")
    assert others[0].change == "only the value 'shop'"
    assert not any(each.drifted for each in others[1:])


def test_missing_values_are_found(references):
    rows = orders()[1350:]
    rows.loc[np.arange(150) % 5 < 3, "spend"] = np.nan
    first, *others = drift_of(references, rows)
    assert (first.column, first.finding, first.drifted) == ("spend", "missing values", True)
    assert first.change.startswith("missing 0 % → 60 %")
    assert first.effect == pytest.approx(0.6) and first.test == "Fisher's test of missing values"
    assert not any(each.drifted for each in others)


def test_a_new_category_is_found(references):
    for rows in (
        orders()[1350:].assign(channel="app"),
        orders()[1350:].assign(channel=["app"] * 15 + ["web", "shop", "web"] * 45),
    ):
        first, *others = drift_of(references, rows)
        assert (first.column, first.finding, first.drifted) == ("channel", "unseen categories", True)
        assert "app (unseen) 0 % →" in first.change
        assert not any(each.drifted for each in others)


def test_faults_come_in_the_order_of_their_gravity(references):
    rows = orders()[1350:].drop(columns="calls").assign(code="n/a", spend=np.nan, channel="web")
    found = drift_of(references, rows)
    assert [(each.column, each.finding) for each in found[:4]] == [
        ("calls", "vanished"), ("spend", "all missing"), ("code", "type changed"), ("channel", "constant")]  # fmt: skip
    assert all(each.drifted for each in found[:4])


def test_what_was_so_in_training_is_no_finding(tmp_path):
    train = orders().assign(channel="web", spend=np.nan)
    found = drift_of(references_of(tmp_path, train), train[1350:])
    assert not [each for each in found if each.finding or each.drifted]


@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_window_and_one_of_one_row_are_no_fault(references, rows):
    some = orders()[700 : 700 + rows]
    assert not [each for window in summarise_frame(some, references) for each in detect_drift(references, window.columns)
                if each.drifted or each.finding]  # fmt: skip
    missing = some.assign(spend=np.nan)
    assert not [each for window in summarise_frame(missing, references) for each in detect_drift(references, window.columns)
                if each.finding]  # fmt: skip


def test_effects_are_in_units_of_the_column(references):
    found = {each.column: each for each in drift_of(references, orders(1000, seed=3).assign(spend=lambda rows: rows.spend + 15))}
    assert found["spend"].drifted
    assert found["spend"].effect == pytest.approx(1, abs=0.15)
    assert "median 49.5 → 65" in found["spend"].change
    assert "(+1.1 standard deviations)" in found["spend"].change
    moved = orders(1000, seed=3).assign(channel=np.random.default_rng(0).choice(["web", "shop"], 1000, p=[0.8, 0.2]))
    found = {each.column: each for each in drift_of(references, moved)}
    assert found["channel"].effect == pytest.approx(0.3, abs=0.05)
    assert "shop 52 % → 21 %" in found["channel"].change and "web 48 % → 79 %" in found["channel"].change


def test_a_shift_without_overlap_has_its_size_in_plain_digits(references):
    found = {each.column: each for each in drift_of(references, orders(100, seed=3).assign(spend=lambda rows: rows.spend + 4800))}
    assert found["spend"].effect == pytest.approx(320, rel=0.05)
    assert re.search(r"\(\+3[0-9]{2} standard deviations\)", found["spend"].change)


def test_few_known_values_are_counted(references):
    found = {each.column: each.change for each in drift_of(references, orders(1, seed=3))}
    assert found["channel"].endswith(" (1 known value)") and found["spend"].endswith(" (1 known value)")
    assert "known value" not in str([each.change for each in drift_of(references, orders(100, seed=3))])


def test_a_constant_number_is_named(references):
    first = drift_of(references, orders()[1350:].assign(spend=0.0))[0]
    assert (first.column, first.finding, first.change) == ("spend", "constant", "only the value 0.00")


def test_a_small_difference_in_many_rows_is_no_drift(tmp_path):
    rng = np.random.default_rng(0)
    references = references_of(tmp_path, pd.DataFrame({"x": rng.normal(size=200_000)}))
    (found,) = drift_of(references, pd.DataFrame({"x": rng.normal(0.03, 1, 100_000)}))
    assert found.p_value < 0.001
    assert not found.drifted


def test_a_window_larger_than_the_reference_is_subsampled_and_says_so(references):
    found = drift_of(references, orders(20_000, seed=4))
    assert not [each for each in found if each.drifted]
    assert {each.test for each in found} == {
        "Kolmogorov-Smirnov, window sub-sampled to 1,350 rows", "chi-squared, window sub-sampled to 1,350 rows"}  # fmt: skip


def test_ids_and_free_text_are_no_drift(tmp_path):
    def rows(n, seed):
        rng = np.random.default_rng(seed)
        words = np.array(["late", "good", "parcel", "box", "blue", "returned", "thanks", "never", "again"])
        return pd.DataFrame(
            {
                "id": [f"{seed}-{i:05d}" for i in range(n)],
                "note": [" ".join(rng.choice(words, size)) for size in rng.integers(2, 12, n)],
                "tail": rng.zipf(1.3, n).astype("str"),  # Many categories, a part of which is new each time
            }
        )

    references = references_of(tmp_path, rows(3000, 1))
    assert references.profile.columns["id"].bins.kind == references.profile.columns["note"].bins.kind == "text"
    assert references.profile.columns["tail"].bins.kind == "category"
    assert references.column_names == ["tail"]
    for seed in (2, 3, 4):
        assert not [each for each in drift_of(references, rows(1000, seed)) if each.drifted or each.finding]
    longer = rows(1000, 5).assign(note=lambda table: table.note + " and I would like to have my money back")
    assert [each.column for each in drift_of(references, longer) if each.drifted] == ["note"]


def test_predictions_are_compared_with_those_for_the_holdout(references):
    rng = np.random.default_rng(1)
    same, higher = rng.beta(2, 5, 500), rng.beta(4, 4, 500)
    rows = orders(500, seed=6)
    for scores, drifted in ((same, False), (higher, True)):
        found = drift_of(references, rows, Predictions((scores > 0.5).astype(int), scores))
        assert [each.drifted for each in found if each.column == "(prediction)"] == [drifted]


def test_windows_follow_the_time_of_the_rows(references):
    rows = orders(400, seed=7)
    windows = summarise_frame(rows, references, rows.placed)
    assert [each.rows for each in windows] == [4] * 100
    assert (windows[1].start - windows[0].start).days == 1
    gap = rows[(rows.placed < "2024-01-11") | (rows.placed >= "2024-01-13")]
    assert [each.rows for each in summarise_frame(gap, references, gap.placed)[9:14]] == [4, 0, 0, 4, 4]


def test_the_same_log_gives_the_same_summary_twice_and_in_any_blocks(references):
    rows = orders(600, seed=8)
    events = events_of(rows)
    width = rows.placed.diff().max() * 100

    def summaries(*cuts):
        places = zip((0, *cuts), (*cuts, 600), strict=True)
        return summarise_log([FrameBlock(events[a:b], rows[a:b], set()) for a, b in places], references, width)

    def drift(windows):
        parts = [detect_drift(references, each.columns, each.predictions, each.scores) for each in windows]
        return [[each.model_dump() for each in part] for part in parts]

    once, again, cut = drift(summaries()), drift(summaries()), drift(summaries(130, 131, 477))
    assert once == again == cut
    assert len(once) == 7


def test_values_of_another_type_in_the_log_are_a_type_change(references):
    rows = orders(200, seed=9)
    read = rows.assign(spend=np.where(np.arange(200) < 150, np.nan, rows.spend), channel=["4711"] * 100 + ["web"] * 100)
    (window,) = summarise_log(
        [FrameBlock(events_of(rows), read, set(), {"spend": 150, "channel": 100})], references, pd.Timedelta(days=10**4)
    )
    assert window.bad_types == {"spend": 150, "channel": 100}
    found = {each.column: each.finding for each in detect_drift(references, window.columns)}
    assert found == dict.fromkeys(("spend", "channel"), "type changed") | dict.fromkeys(("calls", "code"), "")


def test_profiles_of_other_bins_are_not_added(references):
    one, other = (profile_reference_column(pd.Series(values)) for values in ([1.0, 2, 3], [4.0, 5, 6]))
    with pytest.raises(ValueError, match="different bins"):
        add_profiles(one, other)


def test_numbers_that_are_hard_to_count():
    huge = profile_reference_column(pd.Series([1e308, -1e308, np.inf, 5e-324, 0.0] * 20))
    assert huge.known == 100 and np.isfinite(huge.mean) and np.isfinite(huge.deviation)
    big = pd.Series(np.arange(2**60, 2**60 + 100))
    assert count_column(big, profile_reference_column(big).bins)[0].counts.sum() == 100
    mixed = pd.Series([1, "2", "x", None, True, pd.Timestamp("2024-01-01")], dtype=object)
    profile = count_column(mixed, profile_reference_column(pd.Series([1.0, 2.0])).bins)[0]
    assert profile.rows == profile.known + profile.missing + profile.bad_types == 6
    assert profile.missing == 1


def test_p_values_hold_with_the_error_of_a_small_reference():
    rng, below = np.random.default_rng(3), []
    for _ in range(60):
        train = pd.DataFrame({"x": rng.normal(size=300), "town": rng.choice(list("abcdef"), 300)})
        profile = profile_reference(train)
        (window,) = count_table(
            pd.DataFrame({"x": rng.normal(size=300), "town": rng.choice(list("abcdef"), 300)}), profile.layout
        )
        below += [column_p_values(profile.columns[name], each) < 0.05 for name, each in window.columns.items()]
    assert np.mean(below) < 0.12


def test_one_of_a_hundred_columns_without_drift_raises_no_alarm():
    rng = np.random.default_rng(4)
    train = pd.DataFrame(rng.normal(size=(5000, 100)), columns=[f"x{i}" for i in range(100)])
    profile = profile_reference(train)
    for n in (20, 500):
        later = pd.DataFrame(rng.normal(size=(n, 100)), columns=train.columns)
        (window,) = count_table(later, profile.layout)
        pairs = ((name, profile.columns[name], each) for name, each in window.columns.items())
        assert not [each for each in compare_columns(pairs) if each.drifted]


def test_a_release_of_an_earlier_version_is_refused_in_words(tmp_path):
    references_of(tmp_path / "toy-1-0a", orders())
    (tmp_path / "toy-1-0a" / "reference_rows.npz").unlink()
    with pytest.raises(ArtifactError, match="toy-1-0a cannot be monitored.*run stage 6 again"):
        read_references(tmp_path / "toy-1-0a")


def test_the_files_of_a_release_hold_no_rare_value(tmp_path):
    rng = np.random.default_rng(0)
    train = orders().assign(
        owner=[*["Ann", "Bob"] * 748, "Zacharias", "Ophelia", "Ann", "Bob"], customer=[f"k{i}" for i in range(1500)]
    )
    train["amount"] = rng.integers(10**8, 10**9, 1500) + 0.125
    references = references_of(tmp_path, train, entity="owner")
    shipped = (tmp_path / "reference_profile.json").read_text()
    assert not [name for name in ("Zacharias", "Ophelia", "k17") if name in shipped]
    assert sum(str(value) in shipped for value in train.amount) <= 260  # Edges of bins, each with five rows or more
    assert set(references.column_names) == {"channel", "spend", "calls", "code", "amount"}
    with np.load(tmp_path / "reference_rows.npz", allow_pickle=False) as file:
        assert file["codes"].dtype == np.uint8 and file["codes"].max() <= 64

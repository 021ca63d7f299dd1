"""Active learning on real tables."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from palmerpenguins import load_penguins_raw
from sklearn.datasets import load_digits

from mlcycle.data.labelling.active_learning import (
    choose_items,
    decide_to_stop,
    label_learning_curve,
    plot_label_learning_curve,
)
from mlcycle.data.labelling.quick_probabilities import encode_labelling_rows, labelling_folds, quick_predictions
from mlcycle.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from labelling_active import simulate  # noqa: E402 - needs the path
from labelling_tables import labelling_problem  # noqa: E402


@pytest.fixture(scope="module")
def digits() -> pd.DataFrame:
    return load_digits(as_frame=True).frame


@pytest.fixture(scope="module")
def penguins() -> pd.DataFrame:
    rows = load_penguins_raw()
    return rows.assign(**{"Date Egg": pd.to_datetime(rows["Date Egg"])}).rename(index="penguin {}".format)


def test_margin_beats_random_on_digits_by_two_points(digits):
    "Two seeds; five are in the benchmark. Both strategies start with the same random labels."
    gains = [
        simulate(digits, "target", False, "auto", seed, (200,), batch=25)[200]
        - simulate(digits, "target", False, "random", seed, (200,), batch=25)[200]
        for seed in (0, 1)
    ]
    assert np.mean(gains) >= 0.02


def test_a_mixed_table_has_items_with_reasons(penguins):
    problem = labelling_problem(penguins, "Species").model_copy(update={"entity": "Individual ID"})
    some = penguins["Species"].where(np.random.default_rng(0).random(len(penguins)) < 0.2)
    chosen = choose_items(penguins, some, 12, problem)
    assert (chosen["strategy"] == "margin").all()
    assert chosen["reason"].str.startswith("least certain: ").all()
    assert some[chosen["item"]].isna().all()
    assert chosen["item"].is_unique
    pd.testing.assert_frame_equal(chosen, choose_items(penguins, some, 12, problem))


def test_an_item_is_chosen_once_although_its_row_occurs_twice(penguins):
    twice = pd.concat([penguins, penguins])
    problem = labelling_problem(twice, "Species")
    labels = twice["Species"].where(np.arange(len(twice)) < 100)
    chosen = choose_items(twice, labels, 1000, problem)
    assert len(chosen) == len(penguins) - 100
    assert chosen["item"].is_unique
    assert not set(chosen["item"]) & set(twice.index[:100])


def test_rows_of_an_entity_stay_in_one_fold_and_time_is_cut_in_blocks(penguins):
    problem = labelling_problem(penguins, "Species").model_copy(update={"entity": "Individual ID"})
    codes = pd.factorize(penguins["Species"])[0]
    for train, valid in labelling_folds(penguins, codes, problem):
        assert not set(penguins["Individual ID"].iloc[train]) & set(penguins["Individual ID"].iloc[valid])
    timed = labelling_problem(penguins, "Species").model_copy(update={"time": "Date Egg"})
    days = penguins["Date Egg"].reset_index(drop=True)
    for train, valid in labelling_folds(penguins, codes, timed):
        low, high = days[valid].min(), days[valid].max()
        assert not ((days[train] > low) & (days[train] < high)).any()


def test_probabilities_are_calibrated_out_of_fold(digits):
    "The labels of half of the digits were shuffled: an honest model predicts the class frequencies, on every row."
    problem, some = labelling_problem(digits, "target"), digits[:600]
    shuffled = some["target"].sample(frac=1, random_state=0).set_axis(some.index).where(some.index % 2 == 0)
    quick = quick_predictions(some, shuffled, problem)
    assert quick.probabilities.max() < 0.5
    known = shuffled.notna()
    right = quick.predicted[known] == shuffled[known]
    assert abs(right.mean() - quick.probabilities[known].max(axis=1).mean()) < 0.06


def test_the_curve_rises_and_is_drawn(digits):
    problem = labelling_problem(digits, "target")
    labels = digits["target"].where(digits.index < 400)
    curve = label_learning_curve(digits, labels, problem, points=3)
    assert curve["score"].is_monotonic_increasing
    assert curve["labels"].iloc[-1] == 320
    assert (curve["low"] <= curve["score"]).all()
    axes = plot_label_learning_curve(curve)
    assert axes.get_ylabel() == "accuracy"


def test_labelling_stops_when_predictions_are_stable(penguins):
    "Species of penguins are easy, sex is not."
    stops = []
    for target in ("Species", "Sex"):
        rows = penguins.dropna(subset=[target])
        labels = rows[target].where(np.random.default_rng(0).permutation(len(rows)) < 150)
        features = encode_labelling_rows(rows, problem := labelling_problem(rows, target))
        stops.append(decide_to_stop(rows, labels, problem, features=features))
    assert [each.stop for each in stops] == [True, False]
    assert stops[0].agreement > stops[1].agreement


def test_wrong_labels_are_named(penguins):
    problem = labelling_problem(penguins, "Species")
    with pytest.raises(InputError, match="'Penguin' is not a class of 'Species'"):
        choose_items(penguins, penguins["Species"].where(np.arange(len(penguins)) > 0, "Penguin"), 3, problem)

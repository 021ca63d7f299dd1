"""Which features stay: planted ones, noise, duplicates; order of time; every kind of metric."""

import re

import numpy as np
import pandas as pd
import pytest

import mlcycle.features.select.bench as bench
import mlcycle.features.select.comparison as comparison
import mlcycle.features.select.selection as select
from mlcycle.features.create.recipes import Recipe
from mlcycle.features.select.comparison import cross_validate_feature_sets
from mlcycle.features.select.ledger import features_table, plot_feature_graph, write_features_csv
from mlcycle.features.select.selection import measure_and_select_features, select_features
from mlcycle.outcomes import Feature, Problem, Score


class Two(Recipe):
    "Two columns with a sign between them."

    def __init__(self, left, sign, right):
        self.left, self.sign, self.right = left, sign, right

    def input_columns(self):
        return [self.left, self.right]

    def describe(self):
        return {f"{self.left}{self.sign}{self.right}": f"{self.left} {self.sign} {self.right}"}

    def compute(self, rows):
        left, right = rows[self.left].to_numpy(float), rows[self.right].to_numpy(float)
        sums = {"*": np.multiply, "/": np.divide, "-": np.subtract, "+": np.add}
        return {f"{self.left}{self.sign}{self.right}": sums[self.sign](left, right)}


class Twice(Two):
    "The product again, stretched: another name for the same."

    def describe(self):
        return {f"twice {self.left}{self.right}": f"2 {self.left} {self.right}"}

    def compute(self, rows):
        return {f"twice {self.left}{self.right}": 2 * rows[self.left].to_numpy(float) * rows[self.right].to_numpy(float)}


def asked(task: str = "regression", metric: str = "rmse", **more) -> Problem:
    "A problem about `y`."
    usual = {"decision": "-", "question": "-", "owner": "-", "source": "-", "source_sha256": "-", "rows": 0, "criteria": []}
    return Problem(target="y", task=task, metric=metric, metrics=[metric], **usual | more)


def table(rows: int = 600, seed: int = 0, signal: float = 1.0) -> pd.DataFrame:
    "The answer is a product of `a` and `b`, plus `c`; `d` and `e` say nothing."
    rng = np.random.default_rng(seed)
    made = pd.DataFrame({name: rng.normal(size=rows) for name in "abcde"})
    return made.assign(y=signal * (2 * made.a * made.b + made.c) + rng.normal(scale=0.5, size=rows))


KINDS = dict.fromkeys("abcde", "number")
CANDIDATES = [Two("a", "*", "b"), Twice("a", "*", "b"), Two("d", "*", "e"), Two("c", "-", "d"), Two("a", "+", "e")]


def kept(features: list[Feature]) -> set[str]:
    "Names of the created features that stay."
    return {each.name for each in features if each.selected and each.transformation != "raw column"}


def test_what_is_planted_is_found():
    found = select_features(KINDS, CANDIDATES, table(), asked())
    assert "a*b" in found.column_types
    assert "d*e" not in found.column_types
    line = {each.name: each for each in found.features}
    assert "same rank order as a*b" in line["twice ab"].reason
    assert line["a*b"].selection_frequency == 1
    assert line["a*b"].importance.low > line["a*b"].shadow_importance
    assert found.feature_set_scores["improvement"].low > 0
    assert found.feature_set_scores["selected"].value < found.feature_set_scores["raw"].value, (
        "an error is better when it is lower"
    )
    assert {"a", "b"} <= {column for recipe in found.recipes for column in recipe.input_columns()}
    assert all(each.reason for each in found.features)


def test_the_same_each_time():
    once, again = (measure_and_select_features(KINDS, CANDIDATES, table(200), asked(), seed=3, jobs=jobs) for jobs in (1, 2))
    assert once == again


def test_noise_keeps_nothing_that_was_created():
    few = [Two(a, sign, b) for a, b in ("ab", "bc", "cd", "de", "ea") for sign in "*-"]
    wrong = sum(
        bool(kept(measure_and_select_features(KINDS, few, table(120, seed, signal=0), asked(), n_repeats=2, seed=seed)))
        for seed in range(40)
    )
    assert wrong <= 2


@pytest.mark.parametrize(
    ("task", "metric", "more"),
    [
        ("binary", "roc_auc", {}),
        ("binary", "f1", {}),
        ("binary", "cost", {"costs": {"yes": {"no": 5.0}, "no": {"yes": 1.0}}}),
        ("binary", "log_loss", {}),
        ("multiclass", "accuracy", {"classes": [0, 1, 2]}),
        ("multiclass", "log_loss", {"classes": [0, 1, 2]}),
        ("regression", "r2", {}),
    ],
)
def test_every_task_and_direction(task, metric, more):
    rows = table()
    if task == "binary":
        more = {"classes": ["no", "yes"], "positive": "yes"} | more
        rows["y"] = np.where(rows.y > 1, "yes", "no")
    elif task == "multiclass":
        rows["y"] = np.digitize(rows.y, [-1, 1])
    found = measure_and_select_features(KINDS, CANDIDATES, rows, asked(task, metric, **more))
    line = {each.name: each for each in found}
    assert line["a*b"].importance.value > max(
        line["d"].importance.value, line["d*e"].importance.value, line["a*b"].shadow_importance
    )
    assert line["a*b"].selected or re.search(r"no significant improvement: gain in \S+ \+", line["a*b"].reason), (
        "of two classes there is less to learn"
    )
    assert line["a*b"].selected or task == "binary"


def test_time_never_looks_ahead(monkeypatch):
    seen, encode = [], bench.encode_feature_fold

    def spy(pipeline, rows, problem, fold):
        seen.append((rows.day.iloc[fold.train_index].max(), rows.day.iloc[fold.valid_index].min()))
        return encode(pipeline, rows, problem, fold)

    monkeypatch.setattr(bench, "encode_feature_fold", spy)
    rows = table(300).assign(day=pd.date_range("2020-01-01", periods=300, freq="h"))
    select_features(KINDS | {"day": "date"}, CANDIDATES[:1], rows, asked(time="day"))
    assert len(seen) >= 15
    assert all(past < later for past, later in seen)


def test_an_entity_is_never_on_both_sides(monkeypatch):
    seen, encode = [], bench.encode_feature_fold

    def spy(pipeline, rows, problem, fold):
        seen.append(set(rows.who.iloc[fold.train_index]) & set(rows.who.iloc[fold.valid_index]))
        return encode(pipeline, rows, problem, fold)

    monkeypatch.setattr(bench, "encode_feature_fold", spy)
    measure_and_select_features(KINDS, [], table(300).assign(who=np.arange(300) // 10), asked(entity="who"))
    assert seen
    assert not any(seen)


def test_raw_is_taken_where_it_is_better(monkeypatch):
    worse = Score(metric="rmse", value=-0.1, low=-0.3, high=0.1)
    monkeypatch.setattr(
        select, "cross_validate_feature_sets", lambda *_, **__: {"raw": worse, "selected": worse, "improvement": worse}
    )
    found = select_features(KINDS, CANDIDATES, table(), asked())
    assert set(found.column_types) == set(KINDS)
    assert "raw columns were better" in found.reason
    assert not found.recipes


def test_what_is_asked_for_stays_and_off_measures_nothing():
    found = measure_and_select_features(KINDS, CANDIDATES, table(200), asked(), always_keep=["d*e"])
    assert "d*e" in kept(found)
    off = select_features(KINDS, CANDIDATES, table(100), asked(), select="off")
    assert set(off.column_types) == {each.name for each in off.features}
    assert all(each.importance is None for each in off.features)


def test_too_few_rows_and_metrics_that_fail_keep_the_columns():
    for rows, metric in ((table(20), "rmse"), (table(100), "mean_squared_log_error")):
        found = select_features(KINDS, CANDIDATES, rows, asked(metric=metric))
        assert set(found.column_types) == set(KINDS)
        assert found.feature_set_scores == {}
        assert found.reason.startswith("The raw columns are kept: ")


def test_missing_values_categories_and_dates():
    rng = np.random.default_rng(0)
    rows = table(300).assign(
        town=rng.choice(["Ulm", "Bonn", None], 300), street=rng.choice([f"s{k}" for k in range(40)], 300).astype(str)
    )
    rows.loc[::7, "a"] = np.nan
    rows["y"] += 3 * (rows.town == "Ulm")
    found = measure_and_select_features(KINDS | {"town": "category", "street": "many categories"}, CANDIDATES, rows, asked())
    line = {each.name: each for each in found}
    assert line["town"].importance.low > 0
    assert line["a"].missing_share == pytest.approx(43 / 300)
    assert line["a*b"].missing_share == pytest.approx(43 / 300)


def test_equal_sets_are_compared_once(monkeypatch):
    fitted, encode = [], comparison.encode_feature_fold
    monkeypatch.setattr(comparison, "encode_feature_fold", lambda *given: fitted.append(1) or encode(*given))
    sets = {name: select.build_preprocessor(KINDS, [], classification=False) for name in ("raw", "all", "selected")}
    found = cross_validate_feature_sets(sets, table(100), asked())
    assert len(fitted) == 5
    assert found["improvement"].value == 0


@pytest.mark.parametrize("many", [0, 1, 3, 100])
def test_a_ledger_of_any_size_is_drawn_without_overlap(many, tmp_path):
    import matplotlib.pyplot as plt

    features = [
        Feature(
            name=f"a feature with a rather long name, number {k}",
            source_columns=[f"column {k % 17} whose name is long too", f"column {k % 5}"] if k % 3 else [f"column {k}"],
            column_type="number",
            transformation=f"something made of column {k % 17} and of column {k % 5}" if k % 3 else "raw column",
            importance=Score(metric="rmse", value=1 / (k + 1), low=0, high=1) if k % 4 else None,
            selected=k % 2 == 0,
        )
        for k in range(many)
    ]
    figure = plot_feature_graph(features)
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])
    plt.close(figure)
    write_features_csv(features, tmp_path / "features.csv")
    assert len(pd.read_csv(tmp_path / "features.csv")) == many == len(features_table(features))


def test_of_many_columns_those_with_a_signal_are_kept():
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(240, 300)), columns=[f"x{k}" for k in range(300)])
    wide["y"] = wide[["x0", "x1", "x2", "x3", "x4"]].sum(axis=1) + rng.normal(size=240)
    selection = select_features(dict.fromkeys(wide.columns[:-1], "number"), [], wide, asked(), n_repeats=1)
    kept = set(selection.column_types)
    assert {"x0", "x1", "x2", "x3", "x4"} <= kept and len(kept) <= 12

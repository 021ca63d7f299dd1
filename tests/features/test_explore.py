"""Exploring a table: measures as the references have them, planted problems first, and no table that breaks it."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import contingency, kruskal, spearmanr

from mlcycle.features.explore import plots as explore_plots
from mlcycle.features.explore.associations import (
    correlation_ratios,
    measure_associations,
    pairwise_cramer_v,
    pearson_matrix_of_ranks,
    rank_values,
)
from mlcycle.features.explore.column_summary import group_means, summarize_numbers
from mlcycle.features.explore.explore import bin_timestamps, explore, top_findings
from mlcycle.features.explore.sample_report import sample_report
from mlcycle.reports.pages import render_template, script_hash, skrub_table_script

PLOTS = [getattr(explore_plots, name) for name in explore_plots.__all__]


def asked(task: str = "binary", positive: object = "yes", time: str = "") -> SimpleNamespace:
    "What is read of a problem."
    return SimpleNamespace(task=task, positive=positive, time=time)


def orders(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    "A clean table of mixed columns."
    rng = np.random.default_rng(seed)
    late = rng.random(n) < 0.3
    return pd.DataFrame({
        "distance": rng.normal(size=n) + 0.5 * late,
        "weight": rng.normal(size=n).round(2),
        "town": rng.choice(["Rome", "Oslo", "Lima"], n),
        "express": rng.random(n) < 0.4,
        "placed": pd.date_range("2020-01-01", periods=n, freq="h"),
        "late": np.where(late, "yes", "no"),
    })  # fmt: skip


# ---- measures


@given(st.lists(st.tuples(*[st.integers(-5, 5)] * 3), min_size=5, max_size=60))
@settings(max_examples=60, deadline=None)
def test_rank_correlations_are_scipys(lines):
    table = np.array(lines, dtype=float)
    ranks = np.column_stack([rank_values(column) for column in table.T])
    found = pearson_matrix_of_ranks(ranks)
    for a in range(3):
        for b in range(3):
            if np.ptp(table[:, a]) and np.ptp(table[:, b]):
                assert found[a, b] == pytest.approx(spearmanr(table[:, a], table[:, b]).statistic, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=12, max_size=80))
@settings(max_examples=60, deadline=None)
def test_correlation_ratio_is_that_of_kruskal_and_wallis(lines):
    numbers, groups = np.array(lines, dtype=float)[:, 0], pd.factorize(np.array(lines)[:, 1])[0]
    n, k = len(numbers), groups.max() + 1
    found = correlation_ratios(rank_values(numbers)[:, None], groups[:, None])[0, 0]
    if k < 2 or not np.ptp(numbers):
        assert not found > 0
        return
    share = kruskal(*(numbers[groups == one] for one in range(k))).statistic / (n - 1)
    assert found**2 == pytest.approx(max(0, 1 - (1 - share) * (n - 1) / (n - k)), abs=1e-9)


@given(st.lists(st.lists(st.integers(1, 200), min_size=3, max_size=3), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_cramer_v_is_bergsmas(table):
    table = np.array(table)
    n, (r, k) = table.sum(), table.shape
    plain = contingency.association(table, method="cramer", correction=False)
    phi2 = max(0, plain**2 * (min(r, k) - 1) - (r - 1) * (k - 1) / (n - 1))
    sides = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1))
    rows = np.repeat([(i, j) for i in range(r) for j in range(k)], table.ravel(), axis=0)
    assert pairwise_cramer_v(rows)[0, 1] == pytest.approx(min(1, np.sqrt(phi2 / (sides - 1))), abs=1e-9)


def test_measures_agree_where_types_overlap():
    rng = np.random.default_rng(0)
    a = rng.random(4000) < 0.4
    b = a ^ (rng.random(4000) < 0.2)
    numbers = measure_associations(pd.DataFrame({"a": a.astype(float), "b": b.astype(float)}))[0].loc["a", "b"]
    mixed = measure_associations(pd.DataFrame({"a": a.astype(float), "b": b}))[0].loc["a", "b"]
    categories = measure_associations(pd.DataFrame({"a": a, "b": b}))[0].loc["a", "b"]
    assert numbers == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    assert mixed == pytest.approx(numbers, abs=1e-3)
    assert categories == pytest.approx(numbers, abs=1e-3)


def test_associations_are_a_symmetric_table_and_ignore_missing_values():
    rows = orders().assign(gone=np.nan, one=1)
    rows.loc[::3, "distance"] = np.nan
    strength, signed = measure_associations(rows)
    assert strength.equals(strength.T)
    values = strength.to_numpy()
    assert ((values >= 0) & (values <= 1) | np.isnan(values)).all()
    assert strength.drop(index=["gone", "one"])[["gone", "one"]].isna().all(axis=None)
    known = rows.dropna(subset=["distance"])
    assert signed.loc["distance", "weight"] == pytest.approx(spearmanr(known.distance, known.weight).statistic, abs=0.01)


@given(st.lists(st.floats(-1e9, 1e9) | st.none(), min_size=1, max_size=60))
@settings(max_examples=80, deadline=None)
def test_facts_about_numbers_are_pandas(cells):
    values = pd.Series(cells, dtype=float)
    facts = summarize_numbers(values)
    assert (facts["missing"], facts["distinct"]) == (values.isna().mean(), values.nunique())
    if facts["distinct"]:
        assert facts["50%"] == pytest.approx(values.median())
        assert (facts["min"], facts["max"]) == (values.min(), values.max())
        assert facts["mean"] == pytest.approx(values.mean(), abs=1e-6)


def test_what_is_cheap_is_exact_whatever_the_sample():
    rows = orders(5000)
    rows.loc[::7, "weight"] = np.nan
    seen = explore(rows, "late", asked(time="placed"), max_rows=300)
    assert len(seen.sample) == 300
    assert seen.columns.missing["weight"] == rows.weight.isna().mean()
    assert seen.columns.loc["distance", "50%"] == pytest.approx(rows.distance.median())
    shares = (rows.late == "yes").groupby(rows.town).mean()
    told = seen.categories[seen.categories["column"] == "town"].set_index("value")
    assert told["yes"].to_dict() == pytest.approx(shares.to_dict())
    assert told["rows"].to_dict() == rows.town.value_counts().to_dict()
    assert seen.target_over_time["rows"].sum() == 5000
    assert seen.missing_patterns["rows"].sum() == 5000


def test_the_same_each_time():
    first, second = (explore(orders(), "late", asked(time="placed"), max_rows=500, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(top_findings(first), top_findings(second))
    pd.testing.assert_frame_equal(first.associations, second.associations)


def test_means_by_group():
    found = group_means(np.array([0, 0, -1, 2]), np.array([1.0, np.nan, 5.0, 7.0]), 3)
    assert found[[0, 2]].tolist() == [1, 7]
    assert np.isnan(found[1])


@pytest.mark.parametrize(
    ("freq", "periods", "unit"), [("min", 300, "hour"), ("D", 30, "day"), ("D", 400, "month"), ("D", 9000, "year")]
)
def test_periods_fit_the_table(freq, periods, unit):
    times = pd.Series(pd.date_range("2020-01-01", periods=periods, freq=freq, tz="UTC"))
    counted, codes, begins = bin_timestamps(times)
    assert counted == unit
    assert codes.max() == len(begins) - 1 < 40


# ---- what is planted is found, and stands first


def plant(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    "One known problem in a clean table."
    rng, n = np.random.default_rng(1), len(rows)
    late = (rows.late == "yes").to_numpy()
    made = {
        "possible target leakage": lambda: late * 10.0 + rng.random(n),
        "missing values depend on the target": lambda: np.where(late, rng.normal(size=n), np.nan),
        "constant": lambda: np.full(n, "only"),
        "always empty": lambda: np.full(n, np.nan),
        "mostly missing": lambda: np.where(rng.random(n) < 0.1, rng.normal(size=n), np.nan),
        "identifier": lambda: [f"order {i}" for i in range(n)],
        "numbers stored as text": lambda: rng.integers(1, 500, n).astype(str),
        "dates stored as text": lambda: pd.Series(rows.placed.sample(n, random_state=0).dt.strftime("%Y-%m-%d").to_numpy()),
        "one value in several spellings": lambda: rng.choice(["red", "Red ", "blue"], n),
        "possible sentinel value": lambda: np.where(rng.random(n) < 0.03, -999, rng.gamma(3, 5, n)),
        "infinite values": lambda: np.where(rng.random(n) < 0.01, np.inf, rng.normal(size=n)),
        "mixed types": lambda: pd.Series([1 if i % 2 else "one" for i in range(n)], dtype=object),
        "nearly constant": lambda: np.where(np.arange(n) % 200 == 0, "b", "a"),
        "extreme skew": lambda: np.exp(rng.normal(0, 3, n)),
        "changes over time": lambda: np.arange(n) / n + rng.normal(0, 0.3, n),
        "missing share changes over time": lambda: np.where(np.arange(n) < n / 2, np.nan, rng.normal(size=n)),
    }[what]()
    return rows.assign(planted=made)


PLANTED = [
    "possible target leakage", "missing values depend on the target", "constant", "always empty", "mostly missing", "identifier",
    "numbers stored as text", "dates stored as text", "one value in several spellings", "possible sentinel value",
    "infinite values", "mixed types", "nearly constant", "extreme skew", "changes over time", "missing share changes over time",
]  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_problem_is_found(what):
    first = top_findings(explore(plant(orders(), what), "late", asked(time="placed")))
    assert what in first.loc[first["column"] == "planted", "finding"].tolist()
    if what not in ("changes over time", "extreme skew", "nearly constant"):
        assert first["column"][0] == "planted", "before what a clean column has"
    assert first.detail.str.contains(r"\d|Always|no value|type", regex=True).all(), "with figures"


def test_of_a_clean_table_nothing_grave_is_said():
    assert "high" not in set(top_findings(explore(orders(), "late", asked(time="placed"))).severity)


def test_columns_that_say_the_same_are_named_together():
    rows = orders()
    seen = top_findings(explore(rows.assign(miles=rows.distance * 0.62, again=rows.town), "late", asked()))
    assert {"distance, miles", "town, again"} <= set(seen.loc[seen.finding == "redundant columns", "column"])


def test_a_rare_answer_and_missing_answers():
    rows = orders()
    rows["late"] = np.where(np.arange(2000) < 12, "yes", "no")
    rows.loc[50:99, "late"] = None
    assert top_findings(explore(rows, "late", asked()))["finding"].tolist()[:2] == ["missing labels", "rare class"]


def test_many_columns_with_one_finding_are_one_line():
    rows = orders().assign(**{f"c{i}": 1 for i in range(30)})
    first = top_findings(explore(rows, "late", asked()))
    assert first["column"][0] == "c0, c1, c2, c3, c4, c5 and 24 more"
    assert first.detail[0].startswith("30 columns, ")


# ---- any table


def tables() -> dict[str, tuple[pd.DataFrame, str, SimpleNamespace]]:
    "Tables that lack something, or have too much of it."
    rows, rng = orders(400), np.random.default_rng(0)
    return {
        "binary": (rows, "late", asked(time="placed")),
        "multiclass": (rows, "town", asked("multiclass", None, "placed")),
        "regression": (rows, "distance", asked("regression", None, "placed")),
        "no numbers": (rows[["town", "express", "late"]], "late", asked()),
        "no categories": (rows[["distance", "weight"]], "distance", asked("regression", None)),
        "one column": (rows[["town", "late"]], "late", asked()),
        "target alone": (rows[["late"]], "late", asked()),
        "wide": (
            pd.DataFrame(rng.normal(size=(60, 100))).rename(columns=str).assign(y=rng.integers(0, 2, 60)),
            "y",
            asked(positive=1),
        ),
        "five rows": (rows.head(5), "late", asked(time="placed")),
        "one answer": (rows.assign(late="no"), "late", asked(time="placed")),
        "time is a number": (rows.assign(placed=np.arange(400)), "late", asked(time="placed")),
        "empty columns": (rows.assign(a=None, b=np.nan, c=pd.NaT), "late", asked(time="placed")),
        "lists": (rows.assign(tags=[["a"]] * 200 + [["b"]] * 200), "late", asked()),
        "nullable": (rows.convert_dtypes(), "late", asked(time="placed")),
        "categories": (rows.astype({"town": "category", "late": "category"}), "late", asked()),
        "time zone": (rows.assign(placed=rows.placed.dt.tz_localize("UTC")), "late", asked(time="placed")),
        "durations": (rows.assign(took=pd.to_timedelta(rows.weight.abs(), unit="h")), "late", asked()),
        "formulas": (rows.rename(columns={"weight": "$w_1$", "town": "a, b"}), "late", asked()),
    }


@pytest.mark.parametrize("name", tables())
def test_any_table_is_explored_and_drawn(name):
    rows, target, problem = tables()[name]
    before = rows.copy()
    seen = explore(rows, target, problem)
    assert list(top_findings(seen).columns) == ["column", "finding", "detail", "severity"]
    assert list(seen.columns.index) == list(rows)
    for plot in PLOTS:
        figure = plot(seen)
        figure.canvas.draw()
        assert len(figure.axes) <= 10, "nine panels and a scale"
        assert all(
            axes.get_xlabel() or axes.get_label() == "<colorbar>"
            for axes in figure.axes
            if plot is not explore_plots.plot_association_matrix
        )
        plt.close(figure)
    pd.testing.assert_frame_equal(rows, before)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_the_cells_hold(data):
    cells = st.one_of(st.none(), st.integers(-9, 9), st.floats(), st.text(max_size=3), st.booleans())
    n = data.draw(st.integers(2, 30))
    columns = {f"c{i}": pd.Series(data.draw(st.lists(cells, min_size=n, max_size=n)), dtype=object) for i in range(3)}
    rows = pd.DataFrame(columns).infer_objects().assign(y=["a", "b"] * (n // 2) + ["a"] * (n % 2))
    first = top_findings(explore(rows, "y", asked(positive="a")))
    assert first.detail.str.endswith((".", "?")).all()


# ---- the sample


def test_the_sample_says_what_it_is_and_holds_no_script_but_skrubs():
    evil = "<script>document.title = 'owned'</script>"
    rows = orders().assign(town=evil)
    report = sample_report(rows, n_rows=100)
    assert "A sample: 100 of 2,000 rows, drawn at random." in report
    assert report == sample_report(rows, n_rows=100)
    assert evil not in report
    assert report.count("<script") == 1
    assert f'<script type="module">{skrub_table_script()}</script>' in report
    assert len(report) < 200_000


def test_only_a_page_with_a_sample_lets_skrubs_script_run():
    allowed = script_hash(skrub_table_script()).strip("'")
    page = {
        "title": "t",
        "contents": [],
        "failure": None,
        "index": "",
        "notebook": "n",
        "parameters": {},
        "seconds": 1,
        "error": "",
    }
    assert allowed in render_template("notebook.html.j2", body="<skrub-table-report></skrub-table-report>", **page)
    assert allowed not in render_template("notebook.html.j2", body="<p>plain</p>", **page)

"""Logged rows that are unlike the training rows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from mlcycle.monitoring.outlier_rows import (
    MAX_OUTLIER_ROWS,
    OutlierCollector,
    false_discovery_limit,
    find_outliers,
    outlier_level,
    outlier_share_bound,
)
from mlcycle.monitoring.proportion_monitor import monitor_proportion
from mlcycle.service.outlier_fit import fit_outlier_model
from mlcycle.service.outlier_model import outlier_columns, outlier_p_values
from mlcycle.stores.event_log import LogBlock

START = pd.Timestamp("2026-01-01")


def make_rows(n: int, seed: int) -> pd.DataFrame:
    "Rows with two columns that agree, and a text."
    rng = np.random.default_rng(seed)
    x = rng.normal(10, 1, n)
    return pd.DataFrame({"x": x, "y": x + rng.normal(0, 0.3, n), "town": rng.choice(["Ulm", "Bonn"], n)})


@pytest.fixture(scope="module")
def model():
    return fit_outlier_model(make_rows(6000, 0))


def block(model, rows: pd.DataFrame, day: int = 0, missing=()) -> LogBlock:
    "A block of the log, a day long."
    events = pd.DataFrame(
        {
            "row_id": [f"{day}-{row}" for row in range(len(rows))],
            "model_version": "1",
            "when": START + pd.Timedelta(days=day) + pd.to_timedelta(np.arange(len(rows)), unit="s"),
            "outlier_p": outlier_p_values(model, outlier_columns(rows, model.names), len(rows)),
        }
    )
    return LogBlock(events, rows.drop(columns=list(missing)), missing_columns=set(missing))


def found_in(blocks, model, version="1"):
    "What is found when a window has the p-values of a block."
    collector = OutlierCollector(model, version)
    windows = [
        SimpleNamespace(start=START + pd.Timedelta(days=day), end=START + pd.Timedelta(days=day + 1),
                        outlier_p=each.events["outlier_p"].dropna().to_numpy())
        for day, each in enumerate(collector.watch(blocks))
    ]  # fmt: skip
    return find_outliers(windows, collector)


def test_no_alarm_in_years_without_change_whatever_the_calibration_rows_are():
    "A share is drawn for each release from the distribution that its calibration rows leave, then years of 500 rows a day."
    rng, alarms = np.random.default_rng(0), []
    for n_calibration in (120, 600, 10_000):
        level = outlier_level(n_calibration)
        rank, bound = int(level * (n_calibration + 1)), outlier_share_bound(level, n_calibration)
        for share in rng.beta(rank, n_calibration + 1 - rank, 15):
            alarms.append(monitor_proportion(rng.binomial(500, share, 365), [500] * 365, bound, looks=365).alarms.any())
    assert np.mean(alarms) <= 0.03


def test_selected_rows_are_false_at_most_at_the_rate():
    "5 % of the rows are far away, and the p-values of all depend on the same calibration rows."
    rng, false = np.random.default_rng(0), []
    for _ in range(200):
        calibration = np.sort(rng.normal(size=2000))
        scores = np.concatenate([rng.normal(size=950), rng.normal(6, 1, 50)])
        p = (1 + 2000 - np.searchsorted(calibration, scores)) / 2001
        selected = p <= false_discovery_limit(p)
        assert selected[950:].mean() > 0.9
        false.append(selected[:950].sum() / max(selected.sum(), 1))
    assert np.mean(false) <= 0.05


def test_rows_are_listed_with_columns_in_the_same_order_for_any_blocks(model):
    rows = make_rows(3000, 5)
    rows.loc[10, "x"], rows.loc[20, "town"], rows.loc[[30, 31], "y"] = 1e6, "Rome", -50.0
    whole = block(model, rows)
    parts = [LogBlock(whole.events[a : a + 700], rows[a : a + 700]) for a in range(0, 3000, 700)]
    one, other = found_in([whole], model), found_in(parts, model)
    assert one.rows == other.rows and len(one.rows) <= MAX_OUTLIER_ROWS
    first = {row.row_id: row.columns[0] for row in one.rows[:4]}
    assert first == {"0-10": "x", "0-20": "town", "0-30": "y", "0-31": "y"}
    assert [row.p_value for row in one.rows] == sorted(row.p_value for row in one.rows)
    assert found_in([whole], model).rows == one.rows and one.counts == [sum(other.counts)]


def test_columns_that_the_log_does_not_have_are_not_named(model):
    rows = make_rows(50, 1)
    rows.loc[7, ["x", "town"]] = [1e6, "Rome"]
    hidden = found_in([block(model, rows, missing=["x"])], model)
    assert hidden.rows[0].row_id == "0-7" and hidden.rows[0].columns == ["town"]
    assert found_in([block(model, rows, missing=["x", "y", "town"])], model).rows[0].columns == []
    assert found_in([block(model, rows)], model, version="2").rows[0].columns == []


def test_logs_without_p_values_or_without_a_model(model):
    rows, hidden = block(model, make_rows(30, 1)), block(model, make_rows(30, 1), missing=["x"])
    recorded = found_in([rows], model)
    rows.events["outlier_p"] = hidden.events["outlier_p"] = np.nan
    again = found_in([rows], model)  # The p-values are computed from the features
    assert (again.rows, again.counts, again.notes) == (recorded.rows, recorded.counts, [])
    found = found_in([hidden], model)
    assert found.rows == [] == found.alarms and "30 of 30 rows" in found.notes[-1]
    old = found_in([block(model, make_rows(30, 1).assign(x=1e9))], None)
    assert len(old.rows) == 30 and old.alarms == [] and "no outlier model" in old.notes[0]
    small = fit_outlier_model(make_rows(40, 0))
    assert any("too few for an alarm" in note for note in found_in([block(small, make_rows(9, 1))], small).notes)
    nothing = found_in([], model)
    assert nothing.rows == nothing.counts == nothing.alarms == nothing.notes == []


def test_a_share_of_4_percent_is_noticed_within_a_week_and_the_alarm_ends(model):
    days = [block(model, make_rows(1000, 10 + day), day) for day in range(10)]
    for day in range(10, 17):
        rows = make_rows(1000, 10 + day)
        rows.loc[::33, "y"] = 0.0
        days.append(block(model, rows, day))
    days += [block(model, make_rows(1000, 10 + day), day) for day in range(17, 30)]
    assert found_in(days[:10], model).alarms == []
    (alarm,) = found_in(days[:17], model).alarms
    assert alarm.rule == "outliers" and alarm.columns[0] == "y" and "1 % is expected" in alarm.summary
    assert START + pd.Timedelta(days=9) <= pd.Timestamp(alarm.since) <= START + pd.Timedelta(days=12)
    assert found_in(days, model).alarms == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_the_procedure_of_benjamini_and_hochberg(p_values):
    p = np.array(p_values)
    expected = false_discovery_control(p) <= 0.05
    assert (((p <= false_discovery_limit(p)) == expected) | np.isclose(false_discovery_control(p), 0.05) | (p == 0)).all()

"""Drift over a stream: odd windows, dependent rows, seasons, and the figures that the notebook reports."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlcycle.ml.table_profile import code_rows, count_column, count_table, profile_reference, profile_reference_column
from mlcycle.monitoring.minimum_effect import category_scores, make_column_bets, number_scores
from mlcycle.monitoring.sequential import DriftDetector, alarm_threshold
from mlcycle.monitoring.stream import add_stream_evidence, dependence_of_rows, monitor_stream
from mlcycle.monitoring.windows import WindowSummary
from mlcycle.service.reference_days import count_days
from mlcycle.service.reference_seasons import profile_seasons

ROOT = Path(__file__).resolve().parents[2]


def draw(rng: np.random.Generator, rows: int, shift: float | np.ndarray = 0.0) -> pd.DataFrame:
    frame = pd.DataFrame(rng.normal(size=(rows, 4)), columns=["a", "b", "c", "d"])
    frame["a"] += shift
    return frame.assign(town=rng.choice(["north", "south"], rows))


def make_references(train: pd.DataFrame, times: pd.Series | None = None, season: str = "", dependent: bool = False):
    profile = profile_reference(train)
    return SimpleNamespace(
        profile=profile,
        predictions=profile_reference_column(train["b"]),
        score_profile=None,
        column_names=[*train],
        rows=code_rows(train.iloc[:4000], profile.layout),
        seasons=profile_seasons(train, times, profile, season) if season else None,
        days=count_days(train, times, profile) if dependent else None,
        prediction_days=None,
    )


def summarise(references, day: int, frame: pd.DataFrame, hours: int = 24) -> WindowSummary:
    start = pd.Timestamp("2026-01-05") + pd.Timedelta(hours=hours) * day
    (columns,) = count_table(frame, references.profile.layout)
    (predicted,) = count_column(frame["b"] if "b" in frame else pd.Series(dtype=float), references.predictions.bins)
    times = pd.DataFrame({"when": start + pd.to_timedelta(np.arange(len(frame)), unit="s")})
    codes = code_rows(frame, references.profile.layout)
    end = start + pd.Timedelta(hours=hours)
    return WindowSummary(start, end, len(frame), columns, predicted, None, codes, np.empty(0), times, np.empty(0), np.empty(0))


BROKEN = {
    "vanished": lambda frame: frame.drop(columns="a"),
    "all missing": lambda frame: frame.assign(a=np.nan),
    "constant": lambda frame: frame.assign(a=0.0),
    "another type": lambda frame: frame.assign(a="text"),
    "another category": lambda frame: frame.assign(town="east"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_column_is_named(fault):
    rng = np.random.default_rng(0)
    references = make_references(draw(rng, 5000))
    windows = [draw(rng, 200) for _ in range(16)]
    windows = [BROKEN[fault](each) if day >= 8 else each for day, each in enumerate(windows)]
    stream = monitor_stream(references, [summarise(references, day, each) for day, each in enumerate(windows)])
    broken = "town" if fault == "another category" else "a"
    assert {alarm.column for alarm in stream.alarms} - {"(joint)"} == {broken}
    assert all(alarm.since >= 8 for alarm in stream.alarms) and broken in stream.drifted[-1]


def test_small_windows_add_up():
    "A shift in windows of five rows is found; the same rows without a shift raise no alarm."
    rng = np.random.default_rng(1)
    references = make_references(draw(rng, 5000))
    found = []
    for shift in (0.0, 1.0):
        windows = [summarise(references, hour, draw(rng, 5, shift), hours=1) for hour in range(72)]
        found.append({alarm.column for alarm in monitor_stream(references, windows, max_fits=3).alarms} - {"(joint)"})
    assert found == [set(), {"a"}]


def test_joint_drift_of_few_rows_is_not_tested():
    rng = np.random.default_rng(1)
    references = make_references(draw(rng, 5000))
    for rows, is_tested in ((30, False), (60, True)):
        stream = monitor_stream(references, [summarise(references, 0, draw(rng, rows))])
        assert any(each.column == "(joint)" for each in add_stream_evidence([], stream)) is is_tested
        assert ("Joint drift is not tested: 30 rows, 50 are needed." in stream.notes) is not is_tested


def test_windows_larger_than_the_reference_with_plain_datetimes():
    "They are sub-sampled, the same way each time; `summarise_log` gives starts that are no pandas timestamps."
    rng = np.random.default_rng(3)
    references = make_references(draw(rng, 400))
    windows = [summarise(references, day, draw(rng, 600)) for day in range(3)]
    plain = [replace(each, start=each.start.to_pydatetime(), end=each.end.to_pydatetime()) for each in windows]
    first, second = monitor_stream(references, plain, max_fits=1), monitor_stream(references, windows, max_fits=1)
    assert "3 of 3 windows are larger than the reference" in first.notes[-1]
    np.testing.assert_array_equal(first.evidence, second.evidence)


def test_dependent_rows_of_a_day():
    "Rows that share the mean of their day: counted as independent, nearly every day is drift; counted as dependent, none is."
    rng = np.random.default_rng(2)
    means = rng.normal(size=(2, 120))
    times = pd.Series(np.repeat(pd.date_range("2025-01-01", periods=120), 100))
    train = draw(rng, 120 * 100, np.repeat(means[0], 100))
    alarms = {}
    for dependent in (False, True):
        references = make_references(train, times, dependent=dependent)
        windows = [summarise(references, day, draw(np.random.default_rng(day), 100, means[1, day])) for day in range(120)]
        stream = monitor_stream(references, windows, max_fits=3)
        alarms[dependent] = {alarm.column for alarm in stream.alarms}
    assert alarms[True] == set() and "a" in alarms[False]
    assert any("leaves out columns" in note and note.endswith(": a.") for note in stream.notes)
    (note,) = [each for each in stream.notes if "counts days rather than rows" in each]
    named = note.split(" in the columns ")[1].split(": ")[0].split(", ")
    assert "a" in named and set(named) == set(dependence_of_rows(references, references.profile.columns))
    alone = monitor_stream(make_references(train), windows[:3], max_fits=3)
    assert not any("depend on each other" in note for note in alone.notes)


def test_weekday_season():
    rng = np.random.default_rng(3)
    times = pd.Series(pd.date_range("2025-01-06", periods=7 * 30 * 100, freq="864s"))
    weekend = (times.dt.day_of_week >= 5).to_numpy()
    train = draw(rng, len(times), np.where(weekend, 3.0, 0.0))
    alarms = []
    for season in ("", "weekday"):
        references = make_references(train, times, season)
        windows = [
            summarise(references, day, draw(np.random.default_rng(day), 100, 3.0 if day % 7 >= 5 else 0.0)) for day in range(56)
        ]
        alarms.append({alarm.column for alarm in monitor_stream(references, windows, max_fits=3).alarms})
    assert "a" in alarms[0] and alarms[1] == set()


def test_threshold_grows_with_the_looks():
    assert alarm_threshold(365) == 14_600 and alarm_threshold(8_760) == 350_400 and alarm_threshold(365, 0.1) == 7_300


def test_evidence_grows_at_most_linearly_on_average():
    "Without drift, the mean evidence is at most the number of windows, also with a reference as small as the window."
    rng, evidence = np.random.default_rng(4), []
    for _ in range(100):
        shares, towns = rng.dirichlet(np.full(20, 5.0)), rng.dirichlet([3.0, 2.0, 1.0])
        numbers, categories = np.full(20, 5), rng.multinomial(100, towns)
        bets = {
            "x": make_column_bets(number_scores(numbers), np.append(numbers, 0), 0.5),
            "town": make_column_bets(category_scores(categories), np.append(categories, 0), 0.5),
        }
        detector = DriftDetector(bets, windows_per_year=365)
        for _ in range(30):
            counts = [np.append(rng.multinomial(100, each), 0) for each in (shares, towns)]
            detector.update(np.concatenate([each.log_e_values(row) for each, row in zip(bets.values(), counts, strict=True)]))
        evidence.append(detector.evidence.columns.sum())
        assert not detector.alarms
    assert np.mean(evidence) < 30


def test_notebook_has_the_figures_of_the_benchmark():
    notebook = json.loads((ROOT / "nbs" / "monitoring" / "stream_simulation.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    results = (ROOT / "benchmarks" / "results" / "monitoring.md").read_text()
    section = results.split("## Drift alarms: simulated years\n")[1].split("\n## ")[0].strip()
    (reported,) = [cell for cell in cells if cell.startswith("## Results")]
    assert section in reported and section.count("| daily") >= 9

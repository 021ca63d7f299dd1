"""Response times, errors, the end of the traffic, and shares that are looked at again and again."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcycle.monitoring.latency import measure_response_times, usual_requests
from mlcycle.monitoring.proportion_monitor import monitor_proportion
from mlcycle.monitoring.traffic_windows import (
    LatencySketch,
    TrafficCollector,
    add_predictions,
    add_request_errors,
    bucket_latencies,
)

DAY, HOUR = pd.Timedelta(days=1), pd.Timedelta(hours=1)
MONDAY = pd.Timestamp("2026-01-05")


def requests(times, latency, version="1", role="champion") -> pd.DataFrame:
    "Events of requests of one row."
    when = pd.DatetimeIndex(times).astype("datetime64[us]")
    return pd.DataFrame({"when": when, "model_version": version, "role": role, "latency_ms": latency})


def failures(times, kind="failed", version="1") -> pd.DataFrame:
    "Request errors."
    when = pd.DatetimeIndex(times).astype("datetime64[us]")
    return pd.DataFrame({"when": when, "model_version": version, "role": "champion", "kind": kind, "request_id": None})


def measured(events: pd.DataFrame, errors: pd.DataFrame | None = None, now=None, width=DAY, budget=10.0):
    "Response times of events."
    collector = TrafficCollector(width)
    add_predictions(collector, events)
    if errors is not None:
        add_request_errors(collector, errors)
    return measure_response_times(collector.windows(), budget, pd.Timestamp(now or events["when"].max()))


def steady(days: int, per_hour: int, seed: int = 0, scale: float = 2.0) -> pd.DataFrame:
    "Requests at any time of the day; 0.7 % take longer than 10 ms."
    times = pd.date_range(MONDAY, periods=days * 24 * per_hour, freq=HOUR / per_hour)
    return requests(times, np.random.default_rng(seed).exponential(scale, len(times)))


@pytest.mark.parametrize(("looks", "n", "bound"), [(365, 500, 0.02), (365, 20, 0.05), (8760, 60, 0.01)])
def test_the_chance_of_an_alarm_in_a_year_without_change_is_at_most_5_percent(looks, n, bound):
    "At the bound itself and without persistence; benchmarks/monitoring.py simulates more years."
    rng, years = np.random.default_rng(0), 60 if looks == 365 else 2
    alarms = [
        monitor_proportion(rng.binomial(n, bound, looks), [n] * looks, bound, looks=looks, min_windows=1).alarms.any()
        for _ in range(years)
    ]
    assert np.mean(alarms) <= 0.05


def test_clustered_rows_and_windows_of_any_size_raise_no_alarm():
    "A day has 5 to 50,000 rows, sent by clients of whom each has its own share; on average half the bound."
    rng = np.random.default_rng(1)
    for _ in range(20):
        totals = (5 * 10 ** (4 * rng.random(365))).astype(int)
        hits = rng.binomial(totals, rng.beta(2, 198, 365))
        assert not monitor_proportion(hits, totals, 0.02, looks=365).alarms.any()


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=40), st.floats(0.001, 0.6))
@settings(max_examples=60, deadline=None)
def test_any_counts_give_finite_evidence_and_no_share_up_to_the_bound_an_alarm(pairs, bound):
    hits, totals = [min(pair) for pair in pairs], [max(pair) for pair in pairs]
    found = monitor_proportion(hits, totals, bound, looks=365)
    assert len(found.e_values) == len(pairs) and np.isfinite(found.e_values).all() and (found.e_values >= 0).all()
    below = monitor_proportion([int(bound * n) for n in totals], totals, bound, looks=365)
    assert not below.alarms.any()


numbers = st.lists(st.floats(0, 1e7), max_size=30)


@given(st.lists(numbers, max_size=6))
@settings(max_examples=60, deadline=None)
def test_sketches_add_up(parts):
    total, values = sum(map(LatencySketch, map(np.array, parts)), LatencySketch()), np.array([x for part in parts for x in part])
    bucketed = sum((bucket_latencies(LatencySketch(np.array(part))) for part in parts), LatencySketch())
    assert total.n == bucketed.n == len(values)
    for share in (0.5, 0.95, 1):
        if len(values):
            assert total.quantile(share) == np.quantile(values, share)
            ordered = np.sort(values)[max(int(np.ceil(share * len(values) - 1e-9)), 1) - 1]
            assert bucketed.quantile(share) == pytest.approx(max(ordered, 1e-6), rel=0.006)
    assert total.count_above(5) == (values > 5).sum()


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["1", "2", None]), st.sampled_from(["champion", "shadow"]),
                          st.one_of(st.none(), st.sampled_from([1.0, 2.0]), st.floats(0, 1e6))), min_size=1, max_size=30),
       st.integers(1, 30))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_blocks_of_any_size_give_the_same_windows(events, size):
    table = pd.DataFrame(events, columns=["second", "model_version", "role", "latency_ms"]).sort_values("second", kind="stable")
    table["when"] = MONDAY + pd.to_timedelta(table.pop("second"), unit="s")
    table = table.drop_duplicates(["when"])  # So that no block divides a request
    table["latency_ms"] = table["latency_ms"].astype(float)
    whole, parts = TrafficCollector(DAY), TrafficCollector(DAY)
    add_predictions(whole, table)
    for start in range(0, len(table), size):
        add_predictions(parts, table[start : start + size])
    one, other = (measure_response_times(each.windows(), 10.0, MONDAY + 30 * DAY) for each in (whole, parts))
    pd.testing.assert_frame_equal(one.table, other.table)
    assert one.latency_ms == other.latency_ms and one.notes == other.notes and one.alarms == other.alarms
    seen = table[table.role != "shadow"]
    assert sum(window.requests for window in whole.windows()) == seen.latency_ms.notna().sum()


def test_one_slow_request_and_an_idle_night_raise_no_alarm():
    events = steady(21, 10)
    events.loc[len(events) - 1, "latency_ms"] = 60_000
    nights = events[(events["when"].dt.hour >= 6) & (events["when"].dt.hour < 22)]
    assert measured(events).alarms == []
    assert measured(nights, now=MONDAY + 21 * DAY + pd.Timedelta(hours=5, minutes=59), width=HOUR).alarms == []
    lone = requests([MONDAY], [60_000.0])
    assert measured(lone, now=MONDAY + DAY).alarms == [] and measured(lone, width=HOUR).alarms == []


def test_a_budget_that_is_exceeded_raises_an_alarm_that_ends():
    slow = steady(3, 20, 1, scale=6).assign(when=lambda rows: rows["when"] + 20 * DAY)
    again = steady(5, 20, 2).assign(when=lambda rows: rows["when"] + 23 * DAY)
    before, during = steady(20, 20), pd.concat([steady(20, 20), slow])
    (alarm,) = measured(during).alarms
    assert alarm.rule == "latency" and alarm.since.startswith("2026-01-25") and "10 ms" in alarm.summary
    assert measured(before).alarms == [] == measured(pd.concat([during, again])).alarms
    assert measured(during, budget=None).alarms == [] and "no latency budget" in measured(during, budget=None).notes[0]


def test_a_slow_canary_is_named():
    events = pd.concat([steady(10, 60), steady(10, 6, 1, scale=30).assign(model_version="2")]).sort_values("when")
    alarms = measured(events).alarms
    assert ("latency", "2") in [(alarm.rule, alarm.subject) for alarm in alarms]
    assert ("latency", "1") not in [(alarm.rule, alarm.subject) for alarm in alarms]
    table = measured(events).table
    assert set(table.version) == {"all", "1", "2"} and table[table.version == "2"].p50.min() > 10


def test_failed_requests_raise_an_alarm_and_rejected_ones_do_not():
    events = steady(10, 20)
    failed = failures(pd.date_range(MONDAY + 9 * DAY, periods=60, freq="10min"))
    (alarm,) = measured(events, failed).alarms
    assert alarm.rule == "errors" and alarm.severity == "critical" and "60 of 540" in alarm.summary
    rejected = measured(events, failures(failed["when"], "rejected"))
    assert rejected.alarms == [] and rejected.table.rejected.sum() == 60
    few = failures(pd.date_range(MONDAY, periods=10, freq=DAY))
    assert measured(events, few).alarms == []
    only = measured(requests([], []), failed, now=MONDAY + 10 * DAY)
    assert [each.rule for each in only.alarms] == ["errors"] and only.latency_ms == {}


def test_an_end_of_the_traffic_is_noticed_and_compared_with_the_same_hours():
    events = steady(28, 20)
    end = MONDAY + 28 * DAY
    assert measured(events, now=end + pd.Timedelta(minutes=50)).alarms == []
    (alarm,) = measured(events, now=end + pd.Timedelta(hours=2)).alarms
    assert alarm.rule == "no traffic" and alarm.severity == "critical" and alarm.since == str(end)
    weekdays = events[events["when"].dt.day_of_week < 5]
    assert measured(weekdays, now=end).alarms == []
    assert [each.rule for each in measured(weekdays, now=end + 3 * HOUR).alarms] == ["no traffic"]
    short = measured(steady(3, 20), now=MONDAY + 6 * DAY)
    assert short.alarms == [] and any("less than a week" in note for note in short.notes)
    assert any("days old" in note for note in short.notes)
    outage = events[(events["when"] < MONDAY + 10 * DAY) | (events["when"] >= MONDAY + 11 * DAY)]
    assert measured(outage, now=end + 3 * DAY + 6 * HOUR).alarms[0].rule == "no traffic", "one outage does not make one usual"
    assert usual_requests({0: 5, 1: 5}, 2) == 0

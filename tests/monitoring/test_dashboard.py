"""The live page in a browser and on its own: numbers, refresh, ranges, untrusted values, faults."""

import re
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest
import uvicorn
from browsing import DESK, PHONE, browser, open_page  # noqa: F401
from playwright.sync_api import expect
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from mlcycle.lifecycle.watched_model import WatchedLog
from mlcycle.monitoring.alert_rules import AlertSettings
from mlcycle.monitoring.alerts import process_alarms
from mlcycle.monitoring.background_health import BackgroundHealth, HealthResult, WatchSource, refresh_result
from mlcycle.monitoring.dashboard import create_dashboard, data_status
from mlcycle.monitoring.dashboard_data import WATCH_RANGES, dashboard_data
from mlcycle.outcomes import Alarm, ColumnDrift, Health, OutlierRow, Score, VersionHealth, Window
from mlcycle.service.server import bind_socket
from mlcycle.stores.alert_store import AlertStore, add_mute
from mlcycle.stores.events import add_events, connect_event_database, log_state, open_event_database

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
BARS = "#traffic .chart >> nth=0 >> svg[role=img] rect.fill.s1"  # Of version 3, one in each window
EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"'&{{7*7}}"


def roc(value: float, half: float = 0.02) -> Score:
    return Score(metric="roc_auc", value=value, low=value - half, high=value + half)


def window(start: datetime, width: timedelta, place: int) -> Window:
    return Window(
        start=str(start.replace(tzinfo=None)), end=str((start + width).replace(tzinfo=None)), rows=100 + place,
        score=roc(0.8 - place / 1000), n_labelled=50, estimated=roc(0.79), latency_ms={"p50": 3.0, "p95": 8.5, "p99": 21.0},
        n_rejected=2, n_failed=1, n_outliers=1, versions={"3": 90, "4": 10 + place}, e_values={"distance": 2.0**place},
    )  # fmt: skip


def made_health(stretch, action="retrain", name="distance", rows=12_345) -> Health:
    "A health in which every panel has something to show."
    count = round(stretch.span / stretch.width)
    start = NOW - stretch.span
    drift = [
        ColumnDrift(column=name, test="Kolmogorov-Smirnov", statistic=0.3, p_value=1e-9, drifted=True, effect=0.42,
                    change="median 872 -> 1,104 miles", e_value=41_000.0, since="2026-05-04 03:00:00"),
        ColumnDrift(column="wind", test="G test", statistic=0.0, p_value=0.7, drifted=False, effect=0.01, e_value=0.3),
    ]  # fmt: skip
    return Health(
        decision="-", monitored="traffic", rows=rows, n_labelled=6000, action=action, reason=f"The score of {name} fell.",
        back_to_stage="data", model="flights", latency_ms={"p50": 3.0, "p95": 8.5, "p99": 21.0}, latency_budget_ms=25.0,
        windows=[window(start + stretch.width * n, stretch.width, n) for n in range(count)], drift=drift, score=roc(0.741),
        estimated=roc(0.738), reference_score=roc(0.763), e_value_threshold=3650.0,
        versions=[VersionHealth(version="4", role="canary", rows=345, n_labelled=150, score=roc(0.702),
                                latency_ms={"p95": 9.25})],
        outliers=[OutlierRow(row_id=f"row {name}", when="2026-05-04 04:00:00", p_value=0.0002, columns=[name])],
        alarms=[Alarm(rule="drift", severity="critical", summary=f"{name} has moved.", subject=name,
                      since="2026-05-04 03:00:00")],
        notes=[f"{name}: 212 rows have a time in the future."],
    )  # fmt: skip


class FakeLog:
    "A prediction log whose state and health a test sets."

    def __init__(self, **made):
        self.state, self.made, self.loads, self.alerts, self.error = 1, made, [], None, None

    def source(self) -> WatchSource:
        return WatchSource(
            load=lambda stretch: self.load(stretch), state=self.read_state, alerts=lambda: self.alerts, now=lambda: NOW
        )

    def read_state(self):
        if self.error:
            raise self.error
        return self.state

    def load(self, stretch):
        self.loads.append(stretch.name)
        return made_health(stretch, **self.made)


@contextmanager
def served(log: FakeLog, model: str = "flights"):
    "The address of a live page in a thread, and its server."
    background, bound = BackgroundHealth(log.source(), rest=0), bind_socket("127.0.0.1", 0)
    app = create_dashboard(background, log.source(), model)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    bound.listen()
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(10)
        background.close()


def ready(page, text: str = "Live monitoring"):
    page.wait_for_selector("#content:not([hidden])")
    page.get_by_text(text).first.wait_for()
    return page


def part(page, name: str) -> str:
    return page.inner_text(f"#{name}")


def test_every_panel_shows_the_numbers_of_the_health(open_page):  # noqa: F811
    log = FakeLog()
    log.alerts = [SimpleNamespace(severity="critical", state="firing", rule="drift", subject="distance", summary="It moved.",
                                  since="2026-05-04 03:00:00", runbook="Look at the source.\nThen retrain.")]  # fmt: skip
    with served(log) as (address, _):
        page = ready(open_page(address))
        assert part(page, "headline").split("\n")[0] == "Retrain · Go back to stage: data"
        figures = part(page, "figures")
        for text in ("12,345", "8.50 ms", "0.741", "[0.721, 0.761]", "0.738", "48.6 %", "48 / 24", "1\nof 2"):
            assert text in figures, text
        assert "critical drift: distance firing It moved. 2026-05-04 03:00" in " ".join(part(page, "alerts").split())
        page.click("#alerts summary")
        expect(page.locator("#alerts")).to_contain_text("Then retrain.")  # The fold is filled when it opens
        assert "holdout 0.763 [0.743, 0.783]" in part(page, "quality")
        assert "0 of 24 windows have a 95th percentile over the budget of 25.0 ms." in part(page, "latency")
        assert {"version 3", "version 4", "rejected", "failed"} <= set(part(page, "traffic").split("\n"))
        drift = " ".join(part(page, "drift").split())
        assert "distance since 2026-05-04 03:00 – median 872 -> 1,104 miles 0.42 4 × 10⁴ < 0.0001 Kolmogorov-Smirnov" in drift
        assert "row distance 2026-05-04 04:00 0.0002 distance" in " ".join(part(page, "outliers").split())
        assert "4 canary 345 150 0.702 [0.682, 0.722] – 9.25 ms – 0" in " ".join(part(page, "versions").split())
        assert "212 rows have a time in the future." in part(page, "notes")
        assert len(page.query_selector_all("#traffic svg[role=img]")) == 2
        heights = page.eval_on_selector_all(BARS, "bars => bars.map(bar => +bar.getAttribute('height'))")
        assert len(heights) == 24
        assert max(heights) - min(heights) < 0.2, "version 3 has 90 rows in each window"
        page.click("#latency summary")
        row = page.inner_text("#latency tbody tr:last-child").split("\t")
        assert [text.strip() for text in row[1:]] == ["3.00", "8.50", "21.00"]


def test_it_refreshes_by_itself_and_keeps_scroll_fold_and_focus(open_page):  # noqa: F811
    log = FakeLog()
    with served(log) as (address, _):
        page = ready(open_page(f"{address}/?range=week&refresh=30"))
        assert log.loads == ["week"]
        page.clock.install()
        page.click("[data-range=day]")  # From here on, the timers of the page are those of the test
        expect(page.locator(BARS)).to_have_count(24)
        page.click("#drift details:last-of-type summary")
        page.focus("#quality .chart")
        page.evaluate("scrollTo(0, 700)")
        page.evaluate("window.before = document.querySelector('#drift')")
        log.state, log.made = 2, {"rows": 54_321, "action": "roll back"}
        page.clock.fast_forward(29_000)
        assert "12,345" in part(page, "figures")
        page.clock.fast_forward(2_000)
        page.get_by_text("54,321", exact=True).wait_for()
        assert "Roll back" in part(page, "headline")
        assert page.evaluate("scrollY") == 700
        assert page.evaluate("document.activeElement.dataset.key") == "quality-chart-0"
        assert page.evaluate("window.before === document.querySelector('#drift')"), "what has not changed is not drawn again"
        assert "G test" in part(page, "drift"), "the fold is still open"
        with page.expect_response("**/api/dashboard*"):  # It is read once more at this moment
            page.select_option("#refresh", "0")
        log.state, log.made = 3, {"rows": 77}
        page.clock.fast_forward(120_000)
        assert "54,321" in part(page, "figures")
        assert page.url.endswith("range=day&refresh=0")
        page.click("#now")
        page.get_by_text("77", exact=True).wait_for()


def test_a_range_is_chosen_by_mouse_keyboard_and_back_button(open_page):  # noqa: F811
    log = FakeLog()
    with served(log) as (address, _):
        page = ready(open_page(address))
        for name, count in (("hour", 60), ("year", 52)):
            page.focus(f"[data-range={name}]")
            page.keyboard.press("Enter")
            expect(page.locator(BARS)).to_have_count(count)
            assert f"range={name}" in page.url
            assert page.get_attribute(f"[data-range={name}]", "aria-current") == "page"
        page.go_back()
        expect(page.locator(BARS)).to_have_count(60)
        page.focus("#latency .chart")
        page.keyboard.press("ArrowLeft")
        assert "8.50" in page.inner_text("#latency .key")
        assert "11:59 – 12:00" in page.inner_text("#latency .key .time")
        assert log.loads[:3] == ["day", "hour", "year"]


def test_untrusted_names_are_inert(open_page):  # noqa: F811
    log = FakeLog(name=EVIL)
    log.alerts = [SimpleNamespace(severity=EVIL, state=EVIL, rule=EVIL, subject=EVIL, summary=EVIL, since=EVIL, runbook=EVIL)]
    with served(log, model=EVIL) as (address, _):
        page = ready(open_page(address))
        for summary in page.query_selector_all("summary"):
            summary.click()
        assert page.inner_text("h1") == EVIL
        for name in ("headline", "alerts", "drift", "outliers", "notes"):
            assert EVIL in part(page, name), name
        assert page.evaluate("window.hit") is None
        assert page.query_selector("main img, main script, main [onerror]") is None
        assert "49" not in page.inner_text("h1")


def test_it_is_accessible_and_as_wide_as_the_screen(open_page):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    with served(FakeLog(name="a_column_with_a_very_long_name_" * 3)) as (address, _):
        page = ready(open_page(address, color_scheme="light"))
        for size, scheme in ((DESK, "light"), (PHONE, "dark")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            found = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
            assert not found, [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
        page.emulate_media(media="print")
        assert not page.is_visible("#refresh")
        assert page.is_visible("#latency svg")


def test_it_says_that_its_data_are_old(open_page):  # noqa: F811
    log = FakeLog()
    with served(log) as (address, server):
        page = ready(open_page(address))
        assert part(page, "status").startswith("Shown are data of 12:00:00 UTC, computed in")
        log.error = ConnectionError("the database is away")
        page.click("#now")
        page.wait_for_selector("#stale:not([hidden])")
        assert part(page, "stale") == ("The prediction log cannot be read since 12:00:00 UTC. Shown are data of 12:00:00 UTC. "
                                       "ConnectionError: the database is away")  # fmt: skip
        assert "12,345" in part(page, "figures")
        log.error = None
        page.click("#now")
        page.wait_for_selector("#stale[hidden]", state="attached")
        server.should_exit = True
        time.sleep(0.5)
        page.click("#now")
        page.wait_for_selector("#stale:not([hidden])")
        assert "The server of this page has not responded since" in part(page, "stale")
        assert "12,345" in part(page, "figures")
        page.complaints.clear()  # The refused connection


TICKS = """() => [...document.querySelector("#traffic .chart").querySelectorAll("text.tick")].map(
  (each) => [each.textContent, Math.round(each.getAttribute("x"))])"""


def test_ticks_are_at_whole_hours_and_days_at_equal_distances(open_page):  # noqa: F811
    with served(FakeLog()) as (address, _):
        for name, form in (
            ("hour", r"\d\d:\d[05]"),
            ("day", r"\d\d:00"),
            ("week", r"[A-Z][a-z]{2},? \d+"),
            ("month", r"\d+ \w+"),
        ):
            page = ready(open_page(f"{address}/?range={name}"))
            page.wait_for_selector("#traffic .chart text.tick")
            ticks = page.evaluate(TICKS)
            assert len(ticks) >= 3, name
            assert all(re.fullmatch(form, text) for text, _ in ticks), ticks
            steps = [right - left for (_, left), (_, right) in pairwise(ticks)]
            assert max(steps) - min(steps) <= 1, ticks


def test_a_range_ends_now_and_not_at_the_last_row():
    "Windows without rows are gaps, also where traffic has stopped."
    day = WATCH_RANGES["day"]
    health = made_health(day)
    stopped = health.model_copy(update={"windows": health.windows[6:12]})
    panels = {each["id"]: each for each in dashboard_data(stopped, None, day, NOW)["panels"]}
    (chart,) = panels["latency"]["charts"]
    assert (chart["times"][0], chart["ends"][-1]) == ("2026-05-03T12:00:00Z", "2026-05-04T12:00:00Z")
    assert [value is not None for value in chart["series"][0]["values"]] == [False] * 6 + [True] * 6 + [False] * 12
    assert "of 6 windows" in panels["latency"]["note"]


def test_what_limits_the_reader_is_told():
    day = WATCH_RANGES["day"]
    health = made_health(day)
    doubtful = dashboard_data(health.model_copy(update={"estimate_reliable": False}))
    assert "not reliable" in [each["note"] for each in doubtful["figures"] if each["name"].startswith("Estimated")]
    few = health.model_copy(update={"windows": [each.model_copy(update={"score": None}) for each in health.windows]})
    many = health.model_copy(update={"outliers": health.outliers * 50})
    panels = {each["id"]: each for each in dashboard_data(few)["panels"]}
    assert "No window has enough rows with actual values" in panels["quality"]["note"]
    panels = {each["id"]: each for each in dashboard_data(many)["panels"]}
    assert [len(each["rows"]) for each in panels["outliers"]["tables"]] == [12, 38]
    assert (panels["outliers"]["tables"][1]["caption"], panels["outliers"]["tables"][1]["folded"]) == ("and 38 more", True)
    idle = dashboard_data(health.model_copy(update={"rows": 0, "action": "nothing"}))["headline"]
    assert (idle["tone"], idle["action"]) == ("", "Nothing to judge")


def test_mutes_are_shown(tmp_path):
    log = WatchedLog(f"sqlite:///{tmp_path}/events.db")
    store, now = AlertStore.open(log.url), datetime.now(UTC).replace(tzinfo=None)
    judged = made_health(WATCH_RANGES["day"])
    process_alarms(judged, store, AlertSettings(), now)
    assert [each.state for each in log.alerts("flights")] == ["firing"]
    add_mute(store, rule="drift", until=now + timedelta(days=2), user="ann", now=now)
    (row,) = dashboard_data(judged, log.alerts("flights"))["panels"][0]["tables"][0]["rows"]
    assert row[2] == f"firing, muted until {now + timedelta(days=2):%Y-%m-%d %H:%M}"
    store.engine.dispose()


def test_an_empty_log_says_how_to_start(open_page):  # noqa: F811
    log = FakeLog()
    log.load = lambda stretch: Health(decision="-", monitored="none", rows=0, latency_ms={}, windows=[], drift=[],
                                      action="nothing", reason="No predictions in the last day.")  # fmt: skip
    with served(log) as (address, _):
        page = ready(open_page(address))
        assert "mlcycle serve flights" in part(page, "start")
        assert "/predict" in part(page, "start")
        assert part(page, "headline").startswith("Nothing to judge")
        assert not page.is_visible("#figures")


def client_of(log, host="127.0.0.1"):
    background = BackgroundHealth(log.source(), rest=0)
    return TestClient(create_dashboard(background, log.source(), "flights", host), base_url="http://127.0.0.1:8090"), background


def test_only_own_host_names_and_nothing_from_elsewhere():
    client, background = client_of(FakeLog())
    paths = ("/", "/watch.js", "/watch.css", "/page.js", "/early.js", "/api/dashboard", "/api/health?range=hour")
    for path in paths:
        response = client.get(path)
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert client.get(path, headers={"Host": "rebound.example:8090"}).status_code == 421, path
        if not path.startswith("/api"):
            assert not any(text in response.text for text in ("https://", "//cdn", "@import", "url(")), path
    assert "http://www.w3.org/2000/svg" in client.get("/watch.js").text, "the only address is the name space of SVG"
    assert client.get("/api/dashboard?range=<b>").status_code == 422
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    assert client.get("/../../settings.ini").status_code == client.get("/page.html").status_code == 404
    assert client.post("/api/dashboard").status_code == 405
    background.close()


def test_the_interface_returns_the_health_itself():
    client, background = client_of(FakeLog())
    body = client.get("/api/health?range=month").json()
    assert Health.model_validate(body["health"]) == made_health(WATCH_RANGES["month"])
    assert body["status"]["busy"] is False
    background.close()


def test_one_computation_at_a_time_and_none_without_a_change():
    log, running, most, go = FakeLog(), [0], [0], threading.Event()
    real = log.load

    def slow(stretch):
        running[0] += 1
        most[0] = max(most[0], running[0])
        go.wait(5)
        running[0] -= 1
        return real(stretch)

    log.load = slow
    background = BackgroundHealth(log.source(), rest=0)
    for name in ("day", "week", "day"):
        assert background.result(name, wait=0.02).health is None
    assert background.result("day", wait=0).computing_since == NOW
    go.set()
    assert background.result("week", wait=5).health.rows == background.result("day", wait=5).health.rows == 12_345
    for _ in range(5):
        background.result("day", wait=5)
    assert (most, log.loads) == ([1], ["day", "week"])
    log.state = 2
    background.result("day", wait=5)
    assert log.loads == ["day", "week", "day"]
    background.close()


def test_a_busy_log_leaves_time_to_others():
    log = FakeLog()
    real = log.load
    log.load = lambda stretch: (time.sleep(0.05), real(stretch))[1]
    background = BackgroundHealth(log.source(), rest=100)
    for log.state in range(5):
        background.result("day", wait=5)
    assert log.loads == ["day"], "five changes within the rest are one computation"
    background.close()


def test_the_last_result_stays_while_the_log_cannot_be_judged():
    log = FakeLog()
    background = BackgroundHealth(log.source(), rest=0)
    background.result("day", wait=5)
    log.state, log.load = 2, lambda stretch: 1 / 0
    failed = background.result("day", wait=5)
    assert (failed.health.rows, failed.error, failed.error_since) == (12_345, "ZeroDivisionError: division by zero", NOW)
    assert data_status(failed, NOW)["warning"].startswith("The predictions cannot be judged since 12:00:00 UTC.")
    log.load = lambda stretch: (_ for _ in ()).throw(OperationalError("SELECT 1", {}, Exception("away")))
    assert data_status(background.result("day", wait=5), NOW)["warning"].startswith("The prediction log cannot be read since")
    log.load = lambda stretch: made_health(stretch, rows=1)
    again = background.result("day", wait=5)
    assert (again.health.rows, again.error, again.error_since) == (1, "", None)
    background.close()


def test_the_state_of_a_log_changes_with_each_event_and_creates_no_file(tmp_path):
    engine = connect_event_database(f"sqlite:///{tmp_path}/events.db")
    assert not any(log_state(engine))
    assert not list(tmp_path.iterdir())
    states = [log_state(open_event_database(f"sqlite:///{tmp_path}/events.db"))]
    common = {"run": "m", "row_id": "1", "received": NOW.replace(tzinfo=None)}
    prediction = common | {"latency_ms": 1.0, "features": {}, "prediction": 1}
    for table, event in (("predictions", prediction), ("actuals", common | {"actual": 1}), ("predictions", prediction)):
        add_events(engine, table, [event])
        states.append(log_state(engine))
    assert len(set(states)) == 4
    engine.dispose()


def test_a_log_that_is_gone_or_replaced_is_noticed(tmp_path):
    "No connection to the old file stays open."
    url, file, made = f"sqlite:///{tmp_path}/events.db", tmp_path / "events.db", FakeLog()
    log = WatchedLog(url)
    source = WatchSource(load=made.load, state=log.state, alerts=lambda: log.alerts("flights"), now=lambda: NOW)
    day = WATCH_RANGES["day"]
    result = refresh_result(HealthResult(), day, source)
    assert not result.error
    assert not file.exists(), "watching creates no file"
    open_event_database(url).dispose()
    result = refresh_result(result, day, source)
    for each in tmp_path.iterdir():
        each.unlink()
    gone = refresh_result(result, day, source)
    assert "was there and is gone" in gone.error
    assert data_status(gone, NOW)["warning"].startswith("The prediction log cannot be read since")
    assert (gone.health, gone.as_of) == (result.health, result.as_of)
    file.with_name("blocker").touch()  # So that the new file has another inode
    open_event_database(url).dispose()
    assert not refresh_result(gone, day, source).error
    assert len(made.loads) == 3


@pytest.mark.parametrize("change", [{"windows": []}, {"drift": []}, {"versions": [], "outliers": []}, {"n_labelled": 0},
                                    {"score": None, "estimated": None, "reference_score": None}, {"latency_budget_ms": None}],
                         ids=lambda change: ", ".join(change))  # fmt: skip
def test_whatever_is_missing_has_a_line_of_its_own(change):
    health = made_health(WATCH_RANGES["day"])
    if "n_labelled" in change:
        change = change | {"windows": [each.model_copy(update={"score": None, "n_labelled": 0}) for each in health.windows]}
    if "score" in change:
        change = change | {"windows": [each.model_copy(update={"score": None, "estimated": None}) for each in health.windows]}
    for panel in dashboard_data(health.model_copy(update=change))["panels"]:
        assert panel["empty"] or panel["charts"] or panel["tables"] or panel["lines"], panel["id"]

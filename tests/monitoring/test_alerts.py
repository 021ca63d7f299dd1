"""Alerts over time: any sequence of looks, mutes and acknowledgements; several monitors at once; what a look cannot judge."""

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from threading import Barrier, Thread

import pytest
import sqlalchemy as sa
from alerting import health, web_server
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlcycle.core.durations import read_duration
from mlcycle.core.settings import ALERT_DEFAULTS, SECTION_DEFAULTS
from mlcycle.errors import ParameterError
from mlcycle.monitoring.alert_rules import ALERT_RULES, AlertSettings, make_alarm, read_alert_settings
from mlcycle.monitoring.alert_state import SEVERITIES
from mlcycle.monitoring.alerts import process_alarms
from mlcycle.monitoring.decision import RULE_ACTIONS
from mlcycle.monitoring.latency import MAX_FAILED_SHARE
from mlcycle.outcomes import STAGES, Alarm
from mlcycle.stores.alert_store import (
    AlertStore,
    acknowledge_alert,
    add_mute,
    count_waiting_notifications,
    define_alert_tables,
    end_mutes,
    list_alerts,
)

START = datetime(2024, 1, 1)
DAY = timedelta(days=1)
DRIFT = make_alarm("drift", "The median moved.", "price", columns=["price"])


@pytest.fixture
def store(tmp_path):
    "Alerts in a new SQLite file."
    store = AlertStore.open(f"sqlite:///{tmp_path}/events.db")
    yield store
    store.engine.dispose()


EXAMPLES = count()


@cache
def memory_store() -> AlertStore:
    "Alerts in memory."
    return AlertStore.open("sqlite://")


def notices(store: AlertStore, model: str = "") -> list[dict]:
    "All notifications, in order."
    table = define_alert_tables()["alert_notifications"]
    with store.engine.connect() as connection:
        found = list(connection.scalars(sa.select(table.c.content).order_by(table.c.number)))
    return [each for each in found if not model or each["model"] == model]


def kinds(store: AlertStore) -> list[str]:
    "The kind of each notification; `again` if it was sent before."
    return ["again" if each["repeated"] else each["kind"] for each in notices(store)]


STEP = st.fixed_dictionaries(
    {
        "hours": st.integers(1, 60),
        "alarm": st.sampled_from(["", "warning", "warning", "critical"]),
        "person": st.sampled_from(["", "", "", "ack", "mute", "unmute"]),
        "rows": st.sampled_from([500, 500, 500, 0]),
    }
)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=1, max_size=15), cooldown=st.sampled_from([1, 24, 72]))
def test_any_sequence_of_looks(steps, cooldown):
    "What is sent about one alert, whatever happens."
    settings = AlertSettings(file="/dev/null", cooldowns={"drift": timedelta(hours=cooldown)})
    model, store = f"model {next(EXAMPLES)}", memory_store()  # One database: making one takes longer than ten looks
    now, shown, muted_until, n_before, is_silenced = START, [], START, 0, False
    for step in steps:
        now += timedelta(hours=step["hours"])
        if step["person"] == "mute":
            add_mute(store, rule="drift", model=model, until=(muted_until := now + DAY), user="ann", now=now)
        if step["person"] == "unmute":
            end_mutes(store, now, rule="drift", model=model)
            muted_until = now
        if step["person"] == "ack" and shown and shown[0].state != "resolved":
            acknowledge_alert(store, shown[0].id, "ann", now)
        was_acknowledged = step["person"] == "ack" and bool(shown) and shown[0].state != "resolved"
        alarms = [DRIFT.model_copy(update={"severity": step["alarm"]})] if step["alarm"] else []
        after = process_alarms(health(*alarms, rows=step["rows"], model=model), store, settings, now)
        sent = notices(store, model)
        new, n_before = sent[n_before:], len(sent)
        fired = [each for each in sent if each["kind"] == "firing"]
        assert len(new) <= 1
        if alarms:
            assert [alert.state != "resolved" for alert in after] == [True]
            assert not any(each["kind"] == "resolved" for each in new)
            if now >= muted_until and after[0].state == "firing":
                last = datetime.fromisoformat(fired[-1]["time"])
                assert now - last < timedelta(hours=cooldown) or last == now, "it is not silent for longer than the cooldown"
                assert step["alarm"] != "critical" or sent[-1]["kind"] == "firing", (
                    "the last notice of a critical alert is that it fires"
                )
            if was_acknowledged and new:
                assert step["alarm"] == "critical", "an acknowledged alert is sent again only if it has become graver"
        elif step["rows"]:
            assert all(alert.state == "resolved" for alert in after)
            is_silenced = not new and (is_silenced or now < muted_until and any(alert.state != "resolved" for alert in shown))
            assert not fired or sent[-1]["kind"] == "resolved" or is_silenced, "what was sent as firing is sent as resolved"
        else:
            assert not new, "without rows nothing is known about drift"
            assert [alert.id for alert in after] == [alert.id for alert in shown if alert.state != "resolved"]
        if now < muted_until:
            assert not new, "a mute silences everything"
        shown = after
    check_notifications(notices(store, model), timedelta(hours=cooldown))


def check_notifications(sent: list[dict], cooldown: timedelta) -> None:
    """No two resolved ones follow each other, and no two firing ones within the cooldown.

    The exceptions are a second one that is graver, and a critical one that comes back after it was sent as resolved.
    """
    assert not any(one["kind"] == other["kind"] == "resolved" for one, other in zip(sent, sent[1:], strict=False))
    assert not sent or sent[0]["kind"] == "firing"
    fired = [each for each in sent if each["kind"] == "firing"]
    for one, other in zip(fired, fired[1:], strict=False):
        pause = datetime.fromisoformat(other["time"]) - datetime.fromisoformat(one["time"])
        is_back = other["severity"] == "critical" and sent[sent.index(other) - 1]["kind"] == "resolved"
        assert pause >= cooldown or SEVERITIES.index(other["severity"]) > SEVERITIES.index(one["severity"]) or is_back


def test_a_repeated_alarm_is_sent_again_after_the_cooldown_and_once_when_it_has_gone(store):
    settings = AlertSettings(file="/dev/null", cooldowns={"drift": 3 * DAY})
    for day, holds in enumerate([1, 1, 1, 1, 1, 0, 0]):
        alerts = process_alarms(health(*[DRIFT] * holds), store, settings, START + day * DAY)
    assert kinds(store) == ["firing", "again", "resolved"]
    assert alerts == []


def test_a_flapping_alarm_is_sent_once_within_the_cooldown(store):
    settings = AlertSettings(file="/dev/null", cooldowns={"drift": 3 * DAY})
    for hour, holds in enumerate([1, 0] * 8):
        process_alarms(health(*[DRIFT] * holds), store, settings, START + timedelta(hours=hour))
    assert kinds(store) == ["firing", "resolved"]
    process_alarms(health(DRIFT), store, settings, START + 4 * DAY)
    assert kinds(store) == ["firing", "resolved", "firing"]


def test_a_flapping_alarm_that_holds_at_the_end_of_the_cooldown_is_sent(store):
    settings = AlertSettings(file="/dev/null", cooldowns={"drift": 3 * DAY})
    for day, holds in enumerate([1, 0, 1, 1]):
        process_alarms(health(*[DRIFT] * holds), store, settings, START + day * DAY)
    assert kinds(store) == ["firing", "resolved", "firing"], "it was not sent since it was resolved"


def test_a_critical_alarm_that_comes_back_is_sent_at_once(store):
    "Also if it was acknowledged before it was resolved."
    settings = AlertSettings(file="/dev/null", cooldowns={"drift": 3 * DAY})
    grave = DRIFT.model_copy(update={"severity": "critical"})
    for hour, holds in enumerate([1, 0, 1, 1, 0]):
        process_alarms(health(*[grave] * holds), store, settings, START + timedelta(hours=hour))
    assert kinds(store) == ["firing", "resolved", "firing", "resolved"]
    (alert,) = process_alarms(health(grave), store, settings, START + timedelta(hours=5))
    acknowledge_alert(store, alert.id, "ann", START + timedelta(hours=5))
    for hour, holds in ((6, 0), (7, 1)):
        process_alarms(health(*[grave] * holds), store, settings, START + timedelta(hours=hour))
    assert kinds(store)[4:] == ["firing", "resolved", "firing"]


def test_a_mute_silences_that_an_alert_is_resolved(store):
    settings = AlertSettings(file="/dev/null")
    process_alarms(health(DRIFT), store, settings, START)
    add_mute(store, rule="drift", until=START + DAY, user="ann", now=START)
    for hours in (2, 30):
        process_alarms(health(), store, settings, START + timedelta(hours=hours))
    assert kinds(store) == ["firing"]


def test_a_resolved_notification_tells_the_end_and_no_problem(store):
    settings = AlertSettings(file="/dev/null")
    for hours, holds in ((0, 1), (1, 0)):
        process_alarms(health(*[DRIFT] * holds), store, settings, START + timedelta(hours=hours))
    fired, resolved = notices(store)
    assert fired["summary"] == DRIFT.summary
    assert fired["runbook"]
    assert resolved["runbook"] == ""
    assert DRIFT.summary not in resolved["summary"]
    assert f"{START + timedelta(hours=1):%Y-%m-%d %H:%M} UTC" in resolved["summary"]


def test_a_second_acknowledgement_keeps_the_note_and_grave_alerts_are_listed_first(store):
    grave = make_alarm("quality", "It fell.", severity="critical")
    process_alarms(health(grave), store, AlertSettings(), START)
    fallen, drifted, _ = process_alarms(
        health(DRIFT, grave, make_alarm("latency", "It is slow.")), store, AlertSettings(), START + DAY
    )
    listed = list_alerts(store)
    assert [each["severity"] for each in listed] == ["critical", "warning", "warning"]
    assert listed[0]["id"] == fallen.id, "although it is the oldest"
    acknowledge_alert(store, drifted.id, "ann", START, "The supplier is asked.")
    assert acknowledge_alert(store, drifted.id, "bob", START + DAY)["note"] == "The supplier is asked."


def test_an_acknowledged_alert_is_silent_until_it_becomes_graver(store):
    settings = AlertSettings(file="/dev/null", cooldowns={"drift": DAY})
    (alert,) = process_alarms(health(DRIFT), store, settings, START)
    acknowledge_alert(store, alert.id, "ann", START, "The supplier is asked.")
    (alert,) = process_alarms(health(DRIFT), store, settings, START + 5 * DAY)
    assert (alert.state, alert.acknowledged_by, alert.note) == ("acknowledged", "ann", "The supplier is asked.")
    assert kinds(store) == ["firing"]
    (alert,) = process_alarms(health(DRIFT.model_copy(update={"severity": "critical"})), store, settings, START + 6 * DAY)
    assert alert.state == "firing"
    assert kinds(store) == ["firing", "again"]


def test_subjects_rules_and_models_are_alerts_of_their_own(store):
    settings = AlertSettings(file="/dev/null")
    alarms = [DRIFT, make_alarm("drift", "It moved.", "size"), make_alarm("constant", "It is 3.", "price")]
    assert len(process_alarms(health(*alarms, *alarms), store, settings, START)) == 3, "an alarm given twice is one"
    process_alarms(health(model="hotels"), store, settings, START + DAY)
    assert kinds(store) == ["firing"] * 3, "a look at one model resolves nothing of another"
    assert notices(store)[0]["rule"] == "constant", "the gravest is sent first"


def test_what_a_look_cannot_judge_stays(store):
    settings = AlertSettings(file="/dev/null")
    alarms = [DRIFT, make_alarm("quality", "It fell.", "roc_auc")]
    process_alarms(health(*alarms), store, settings, START)
    states = [alert.rule for alert in process_alarms(health(rows=0, n_labelled=0), store, settings, START + DAY)]
    assert sorted(states) == ["drift", "quality"]
    after = process_alarms(health(n_labelled=0), store, settings, START + 2 * DAY)
    assert {alert.rule: alert.state for alert in after} == {"drift": "resolved", "quality": "firing"}


def test_a_replay_changes_nothing(store):
    settings = AlertSettings(file="/dev/null")
    assert process_alarms(health(DRIFT, monitored="future"), store, settings, START) == []
    assert kinds(store) == []


def test_many_columns_that_drift_are_one_notification(store):
    settings = AlertSettings(file="/dev/null")
    alarms = [make_alarm("drift", "It moved.", f"x{n:02}") for n in range(40)]
    assert len(process_alarms(health(*alarms, make_alarm("latency", "Slow.")), store, settings, START)) == 41
    assert [(each["rule"], len(each["columns"])) for each in notices(store)] == [("drift", 40), ("latency", 0)]
    process_alarms(health(), store, settings, START + DAY)
    assert kinds(store) == ["firing", "firing", "resolved", "resolved"]


def test_a_rule_that_is_muted_in_the_settings_is_never_sent(store):
    settings = AlertSettings(file="/dev/null", muted=["drift"], severities={"latency": "critical"})
    alerts = process_alarms(health(DRIFT, make_alarm("latency", "Slow.")), store, settings, START)
    assert [(alert.rule, alert.severity) for alert in alerts] == [("latency", "critical"), ("drift", "warning")]
    assert [each["rule"] for each in notices(store)] == ["latency"]


def test_a_rule_without_a_runbook_is_an_alert_all_the_same(store):
    alarm = Alarm(rule="weather", severity="warning", summary="It rains.")
    (alert,) = process_alarms(health(alarm), store, AlertSettings(file="/dev/null"), START)
    assert "no runbook" in alert.runbook


def test_times_with_a_zone_are_converted(store):
    (alert,) = process_alarms(health(DRIFT), store, AlertSettings(), datetime(2024, 1, 1, 12, tzinfo=UTC))
    assert alert.first_seen == datetime(2024, 1, 1, 12)


def monitor_at_once(url: str, path: Path, n: int = 4, rounds: int = 4) -> list[dict]:
    "Let several monitors judge the same traffic at the same time; what the file has received."
    barrier, settings, failed = Barrier(n, timeout=20), AlertSettings(file=str(path)), []

    def monitor():
        store = AlertStore.open(url)
        try:
            for number in range(rounds):
                barrier.wait()
                process_alarms(health(DRIFT, model=f"model {number}"), store, settings, START)
        except Exception as error:
            failed.append(error)
            barrier.abort()
        finally:
            store.engine.dispose()

    threads = [Thread(target=monitor) for _ in range(n)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_monitors_at_the_same_time_send_once(tmp_path):
    sent = monitor_at_once(f"sqlite:///{tmp_path}/events.db", tmp_path / "alerts.jsonl")
    assert sorted(each["model"] for each in sent) == [f"model {number}" for number in range(4)]


def test_the_same_on_postgresql(postgresql, tmp_path):
    url = postgresql.render_as_string(hide_password=False)
    sent = monitor_at_once(url, tmp_path / "alerts.jsonl")
    assert sorted(each["model"] for each in sent) == [f"model {number}" for number in range(4)]
    store = AlertStore.open(url)
    (alert,) = process_alarms(health(model="model 0"), store, AlertSettings(), START + DAY)
    assert alert.state == "resolved"
    assert kinds(store).count("resolved") == 0, "no sink is set"
    store.engine.dispose()


def test_a_database_that_is_down_is_reported_and_stops_nothing(tmp_path, capsys):
    store = AlertStore.open(f"sqlite:///{tmp_path}/events.db")
    with store.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE alerts"))
    assert process_alarms(health(DRIFT), store, AlertSettings(), START) == []
    store.engine.dispose()
    assert "event database fails: OperationalError" in capsys.readouterr().err


def test_a_sink_that_fails_keeps_its_notifications_until_it_takes_them(store, tmp_path, capsys):
    settings = AlertSettings(file=str(tmp_path / "alerts.jsonl"), webhook="http://127.0.0.1:9/T0p-Secret?key=T0p-Secret")
    process_alarms(health(DRIFT, make_alarm("latency", "Slow.")), store, settings, START)
    printed = capsys.readouterr().err
    assert printed.count("Warning: The webhook of alerts at http://127.0.0.1 cannot be reached") == 1
    assert "T0p-Secret" not in printed
    assert count_waiting_notifications(store)["webhook"][0] == 2
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 2, "the other sink is not affected"
    with web_server(204) as (port, received):
        settings = settings.model_copy(update={"webhook": f"http://127.0.0.1:{port}/hook"})
        process_alarms(health(), store, settings, START + timedelta(hours=1))
    assert [body["kind"] for _, body in received] == ["firing", "firing", "resolved", "resolved"], "in order"
    assert count_waiting_notifications(store) == {}
    assert not capsys.readouterr().err


def test_a_notification_that_a_sink_refuses_does_not_block_the_others(store):
    with web_server(400, 400, 204) as (port, received):
        settings = AlertSettings(webhook=f"http://127.0.0.1:{port}")
        process_alarms(health(make_alarm("constant", "It is 3.", "a")), store, settings, START)
        process_alarms(health(make_alarm("constant", "It is 3.", "a"), DRIFT), store, settings, START + timedelta(hours=1))
    assert [body["rule"] for _, body in received] == ["constant", "constant", "drift"]
    assert count_waiting_notifications(store)["webhook"][0] == 1


# Rules and settings


def test_each_rule_has_a_runbook_and_the_stage_of_the_decision():
    assert set(ALERT_RULES) == set(RULE_ACTIONS)
    for name, rule in ALERT_RULES.items():
        assert rule.name == name
        assert rule.back_to_stage == RULE_ACTIONS[name][1] and rule.back_to_stage in STAGES
        assert len(rule.runbook.splitlines()) == 4
        assert make_alarm(name, "It holds.").severity == rule.severity
    assert f"{100 * MAX_FAILED_SHARE:g} %" in ALERT_RULES["errors"].meaning


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("severity = drft: critical", "Did you mean 'drift'?"),
        ("severity = drift: criticl", "Did you mean 'critical'?"),
        ("severity = drift", "is not 'rule: value'"),
        ("cooldown = drift: soon", "30s, 90m, 12h, 7d or 4w"),
        ("cooldown = drift: 99999w", "at most 100 years"),
        ("mute = latencey", "Did you mean 'latency'?"),
        ("mute = drift, latencey", "Did you mean 'latency'?"),
        ("webhook = localhost:8396", "'webhook' in [alerts] of settings.ini is not an address: it has no scheme"),
        ("alertmanager = alerts.example.org", "http://HOST, https://HOST or $NAME"),
        ("webhok = http://localhost", "Did you mean 'webhook'?"),
        ("email = a@b.c", "'smtp' in [alerts] of settings.ini is not the address"),
        ("email = a@b.c\nsmtp = smtp://ann:hunter2@mail", "without user and password"),
        ("email = a@b.c\nsmtp = smtp://mail\nsmtp_password = hunter2", "is not the name of an environment variable"),
        ("email = a@b.c\nsmtp = smtp://mail\nsmtp_password = $P\nsmtp_tls = off", "without encryption"),
        ("smtp_tls = maybe", "Expected: required or off."),
    ],
)
def test_settings_that_cannot_be_read(tmp_path, line, expected):
    (tmp_path / "settings.ini").write_text(f"[alerts]\n{line}\n")
    with pytest.raises(ParameterError) as caught:
        read_alert_settings(tmp_path)
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_of_a_project_without_a_section(tmp_path):
    assert read_alert_settings(tmp_path) == AlertSettings(file=str(tmp_path / ".mlcycle" / "alerts.jsonl"))
    assert SECTION_DEFAULTS["alerts"] is ALERT_DEFAULTS


def test_muted_rules_and_addresses_as_people_write_them(tmp_path):
    text = "[alerts]\nmute = drift, outliers,\n    no traffic\nwebhook = $HOOK\nalertmanager = https://ann:$PW@am:9093/\n"
    (tmp_path / "settings.ini").write_text(text)
    settings = read_alert_settings(tmp_path)
    assert settings.muted == ["drift", "outliers", "no traffic"]
    assert (settings.webhook, settings.alertmanager) == ("$HOOK", "https://ann:$PW@am:9093/")


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "٣d\n"])
def test_durations_that_cannot_be_read(text):
    with pytest.raises(ParameterError):
        read_duration(text, "--for")

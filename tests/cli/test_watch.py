"""`mlcycle watch`: the page of a release and its prediction log, the dashboard for Grafana, errors."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from commands import cli, fork_cli
from load import wait_until
from toy_releases import toy_release

from mlcycle.monitoring.grafana import grafana_dashboard
from mlcycle.stores.events import add_events, open_event_database


def record(url: str, *minutes: int) -> None:
    "Record a prediction so many minutes ago."
    engine, now = open_event_database(url), datetime.now(UTC).replace(tzinfo=None)
    common = {"run": "", "model": "toy", "latency_ms": 4.0, "model_version": "1", "features": {}, "prediction": 1.0}
    add_events(
        engine, "predictions", [common | {"row_id": str(each), "received": now - timedelta(minutes=each)} for each in minutes]
    )
    engine.dispose()


def test_the_page_follows_the_prediction_log_until_it_is_stopped(tmp_path):
    url, release, out, err = (
        f"sqlite:///{tmp_path}/log.db",
        toy_release(tmp_path, 1, monitored=True),
        tmp_path / "out",
        tmp_path / "err",
    )
    (tmp_path / "settings.ini").write_text(f"[stores]\nevents_url = {url}\n")
    process = fork_cli(tmp_path, "watch", str(release), "--port", "0", stdout=out, stderr=err)
    try:
        wait_until(lambda: out.is_file() and "http://127.0.0.1:" in out.read_text())
        with httpx.Client(base_url=out.read_text().strip()) as client:
            assert release.name in client.get("/").text

            def rows(name: str) -> int:
                health = client.get(f"/api/health?range={name}").json()["health"]
                return health["rows"] if health else -1  # It is being computed

            wait_until(lambda: rows("hour") == 0)
            assert not Path(tmp_path / "log.db").exists(), "looking at a log does not create it"
            record(url, 5, 10, 90)
            wait_until(lambda: (rows("hour"), rows("day")) == (2, 3))  # After a rest, which is longer on a busy machine
            record(url, 7)
            wait_until(lambda: (rows("hour"), rows("day")) == (3, 4))
        process.terminate()
        process.join(20)
        assert (process.exitcode, err.read_text()) == (0, "")
    finally:
        process.kill()


def test_the_dashboard_for_grafana_is_written(tmp_path):
    done = cli("watch", str(toy_release(tmp_path, 1)), "--grafana", "mlcycle.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "mlcycle.json") in done.stdout
    assert json.loads((tmp_path / "mlcycle.json").read_text()) == grafana_dashboard()


def test_what_cannot_be_watched_is_a_clear_error(tmp_path):
    (tmp_path / "settings.ini").write_text("")
    for words, named in (
        (["nothing@3"], "nothing"),
        ([str(toy_release(tmp_path, 1, monitored=True)), "--host", "host.invalid"], "host.invalid"),
    ):
        done = cli("watch", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert named in done.stderr
        assert "Traceback" not in done.stderr

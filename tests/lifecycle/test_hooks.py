"""Hooks: told the facts, patient with a webhook that is busy, and silent about secrets."""

import json
import logging
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT

from mlcycle.core.files import write_text
from mlcycle.core.retries import _wait_seconds
from mlcycle.core.runs import Run
from mlcycle.core.settings import HOOK_DEFAULTS, STORE_DEFAULTS
from mlcycle.lifecycle.hooks import call_webhook_or_command, hook_payload

SECRET = "T0p-Secret"
FACTS = {"id": "20240131-1200-ab12", "status": "failed", "decision": 'Späť: it\'s "late"', "pages": "/somewhere/reports"}
QUICK = {"backoff": 0.01, "timeout": 5}


@contextmanager
def webhook(*answers: int, pause: float = 0, headers: dict | None = None):
    "A server on loopback that gives some answers, the last one for ever; its port, and what it was sent and when."
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((time.perf_counter(), self.path, self.headers["Content-Type"], json.loads(body)))
            time.sleep(pause)
            self.send_response(answers[min(len(heard), len(answers)) - 1])
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port, heard
        server.shutdown()


@pytest.fixture(autouse=True)
def quiet_about_secrets(monkeypatch, caplog, capfd):
    "No log and no output may hold the secret."
    monkeypatch.setenv("HOOK_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)
    yield
    assert not [record for record in caplog.get_records("call") if SECRET in record.getMessage()]
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_webhook_is_asked_again(status):
    with webhook(status, status, 200) as (port, heard):
        assert call_webhook_or_command(f"http://127.0.0.1:{port}/hooks/$HOOK_TOKEN?v=1", FACTS, **QUICK) == ""
    assert len(heard) == 3
    assert {path for _, path, _, _ in heard} == {f"/hooks/{SECRET}?v=1"}
    assert all(kind == "application/json" and facts == FACTS for _, _, kind, facts in heard)


def test_pauses_grow():
    with webhook(503) as (port, heard):
        assert "503" in call_webhook_or_command(f"http://127.0.0.1:{port}/", FACTS, backoff=0.1)
    assert len(heard) == 4
    pauses = [after[0] - before[0] for before, after in zip(heard, heard[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))


@pytest.mark.parametrize("status", [301, 400, 401, 404, 410])
def test_a_refusal_is_final(status):
    with webhook(status, headers={"Location": "/elsewhere"}) as (port, heard):
        said = call_webhook_or_command(f"http://user:{SECRET}@127.0.0.1:{port}/{SECRET}", FACTS, **QUICK)
    assert len(heard) == 1
    assert said == f"The webhook at http://127.0.0.1 responded with status {status}."


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound, not listening: connections are refused
        said = call_webhook_or_command(f"http://127.0.0.1:{taken.getsockname()[1]}/$HOOK_TOKEN", FACTS, **QUICK)
    assert said == "The webhook at http://127.0.0.1 cannot be reached: ConnectError."


def test_a_slow_webhook_is_not_waited_for():
    with webhook(200, pause=10) as (port, heard):
        start = time.perf_counter()
        said = call_webhook_or_command(f"http://127.0.0.1:{port}/$HOOK_TOKEN", FACTS, timeout=0.1, attempts=2, backoff=0.01)
        took = time.perf_counter() - start
    assert said == "The webhook at http://127.0.0.1 did not respond within 0.1 seconds, in 2 attempts."
    assert len(heard) == 2
    assert took < 10


def test_a_server_may_ask_for_a_pause():
    with webhook(429, 204, headers={"Retry-After": "0.3"}) as (port, heard):
        assert call_webhook_or_command(f"http://127.0.0.1:{port}/", FACTS, **QUICK) == ""
    assert heard[1][0] - heard[0][0] >= 0.3


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("7", 7, 7),
        ("86400", 60, 60),
        ("in half a minute", 1, 30),
        ("long ago", 0, 0),
        ("soon", 2, 2),
        ("nan", 2, 2),
        ("", 2, 2),
    ],
)
def test_the_pause_is_bounded(retry_after, least, most):
    dates = {"in half a minute": time.time() + 30, "long ago": 0}

    class Response:
        headers = {"Retry-After": formatdate(dates[retry_after], usegmt=True) if retry_after in dates else retry_after}

    class Outcome:
        failed = False
        result = staticmethod(lambda: Response)

    assert least <= _wait_seconds(Outcome, 2) <= most


def test_an_address_that_is_none():
    assert "cannot be read" in call_webhook_or_command("https://hooks.example.org:port/$HOOK_TOKEN", FACTS, **QUICK)
    assert "cannot be reached" in call_webhook_or_command("https:///$HOOK_TOKEN", FACTS, **QUICK)


@pytest.mark.parametrize("hook", ["https://hooks.example.org/$NOT_SET", "$NOT_SET", "${NOT_SET} --now", "  $NOT_SET"])
def test_a_variable_that_is_not_set_is_named(hook):
    assert call_webhook_or_command(hook, FACTS) == "The hook names the environment variable NOT_SET, which is not set."


def test_a_whole_address_may_be_secret(monkeypatch):
    with webhook(403) as (port, heard):
        monkeypatch.setenv("HOOK_URL", f"HTTP://127.0.0.1:{port}/{SECRET}")
        assert (
            call_webhook_or_command("$HOOK_URL", FACTS, **QUICK) == "The webhook at http://127.0.0.1 responded with status 403."
        )
    assert heard[0][1] == f"/{SECRET}"


def test_no_hook_does_nothing():
    assert HOOK_DEFAULTS == {"on_success": "", "on_failure": ""}
    assert call_webhook_or_command("", FACTS) == call_webhook_or_command("  ", FACTS) == ""


def test_a_command_is_told(tmp_path):
    script = tmp_path / "notify.py"
    script.write_text(
        "import json, os, sys; from pathlib import Path\n"
        "told = {key: os.environ[key] for key in os.environ if key.startswith('MLCYCLE_')}\n"
        "Path(sys.argv[1]).write_text(json.dumps([sys.argv[2:], json.load(sys.stdin), told]))\n"
    )
    out = tmp_path / "with space.json"
    assert call_webhook_or_command(f"{sys.executable} {script} '{out}' 'two words' $HOOK_TOKEN ; '|'", FACTS) == ""
    words, facts, told = json.loads(out.read_text())
    assert words == ["two words", SECRET, ";", "|"]
    assert facts == FACTS
    assert (
        told.items()
        >= {
            "MLCYCLE_RUN": FACTS["id"],
            "MLCYCLE_STATUS": "failed",
            "MLCYCLE_DECISION": FACTS["decision"],
            "MLCYCLE_PAGES": FACTS["pages"],
        }.items()
    )


def test_a_value_is_one_word_whatever_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_FILE", f"{tmp_path}/a 'b; c")
    assert call_webhook_or_command("touch $HOOK_FILE", FACTS) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a 'b; c"]


def test_a_command_that_fails_says_its_last_line():
    said = call_webhook_or_command("sh -c 'echo first >&2; echo no such channel >&2; exit 3'", FACTS)
    assert said == "The command 'sh' of the hook ended with code 3: no such channel."
    assert call_webhook_or_command("false", FACTS) == "The command 'false' of the hook ended with code 1."


@pytest.mark.parametrize(
    "line",
    [
        "refused: $HOOK_TOKEN",
        f"no route to https://hooks.example.org/{SECRET}?a=b",
        f"no route to ftp://user:{SECRET}@hooks.example.org",
        f"$HOOK_TOKEN and {SECRET}{SECRET}",
    ],
)
def test_a_failed_command_tells_no_secret(line):
    said = call_webhook_or_command(f'sh -c "echo {line} >&2; exit 1"', FACTS)
    assert "code 1" in said
    assert SECRET not in said
    assert "echo" not in said
    assert ("hooks.example.org" in said) == ("hooks.example.org" in line)


def test_a_command_that_cannot_start():
    assert "cannot be started: No such file" in call_webhook_or_command("no-such-command $HOOK_TOKEN", FACTS)
    assert "cannot be started: Permission denied" in call_webhook_or_command("/etc/passwd", FACTS)
    assert "cannot be read: No closing quotation" in call_webhook_or_command("echo 'half", FACTS)


def test_a_slow_command_is_ended_with_its_children(tmp_path):
    said = call_webhook_or_command(f"sh -c 'sleep 60 & echo $! > {tmp_path}/child; wait'", FACTS, timeout=1)
    assert said == "The command 'sh' of the hook took longer than 1 seconds and was killed."
    child, deadline = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat"), time.perf_counter() + 30
    while child.is_file() and child.read_text().split()[2] != "Z":  # Gone, or nobody has asked how it ended
        assert time.perf_counter() < deadline
        time.sleep(0.01)


def test_a_child_that_stays_behind_is_not_waited_for():
    start = time.perf_counter()
    assert call_webhook_or_command("sh -c 'sleep 20 & exit 0'", FACTS) == ""
    assert time.perf_counter() - start < 20


def test_more_input_than_a_pipe_holds():
    assert call_webhook_or_command("true", FACTS | {"error": "x" * 1_000_000}) == ""


@pytest.mark.parametrize("stages", [{}, {"problem": {"seconds": 1.26, "decision": "A binary task.", "failed": False}}])
def test_facts_of_a_run(tmp_path, stages):
    about = {"id": "one", "project": str(tmp_path / "orders"), "stores": STORE_DEFAULTS, "status": "failed", "error": "No rows."}
    about |= {"started": "2024-01-31 12:00 UTC", "stages": stages}
    write_text(tmp_path / "run.json", json.dumps(about))
    facts = hook_payload(Run(tmp_path))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["id"], facts["project"], facts["status"], facts["error"]) == ("one", "orders", "failed", "No rows.")
    assert (facts["seconds"], facts["decision"]) == ((1.3, "A binary task.") if stages else (0, ""))
    assert facts["pages"] == str(tmp_path / "orders/reports/one")
    assert facts["index"] == str(tmp_path / "orders/reports/index.html")


def test_importing_the_module_is_light():
    heavy = ["httpx", "tenacity", "pandas", "nbformat"]
    code = f"import json, sys, mlcycle.lifecycle.hooks; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []

"""Limits, API keys, request ids and the access log, over real connections where it matters."""

import asyncio
import io
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from commands import cli
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response
from toy_releases import toy_release, toy_rows

from mlcycle.errors import InputError
from mlcycle.service import access_log
from mlcycle.service.access_control import KeyRing, make_api_key, read_key_entries, required_scope
from mlcycle.service.app import create_app
from mlcycle.service.error_responses import add_error_handlers
from mlcycle.service.operation import add_operation
from mlcycle.service.service_metrics import ServiceMetrics
from mlcycle.service.service_settings import REQUEST_ID, ServiceSettings


def small_app(**settings) -> tuple[FastAPI, ServiceMetrics]:
    "An application whose predictions return the number of bytes, after the seconds of the query."
    app, metrics = FastAPI(), ServiceMetrics()
    add_error_handlers(app)

    @app.post("/predict")
    async def predict(request: Request) -> dict:
        await asyncio.sleep(float(request.query_params.get("seconds", 0)))
        return {"bytes": len(await request.body()), "request_id": REQUEST_ID.get()}

    @app.post("/feedback")
    def feedback(seconds: float = 0) -> dict:
        time.sleep(seconds)
        return {"received": 1}

    @app.get("/model")
    def model() -> Response:
        raise ZeroDivisionError("secret")

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ready"}

    add_operation(app, metrics, ServiceSettings(**settings))
    return app, metrics


@contextmanager
def listening(app: FastAPI) -> Generator[str]:
    "The address of an application that listens on a real port."
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


# Limits


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_gets_413_over_a_real_connection(chunked):
    app, _ = small_app(max_body_bytes=100_000)

    def body(size: int):
        return (b"x" * 1000 for _ in range(size // 1000)) if chunked else b"x" * size

    with listening(app) as url, httpx.Client(base_url=url) as client:
        assert client.post("/predict", content=body(100_000)).json()["bytes"] == 100_000
        for size in (101_000, 1_000_000):
            response = client.post("/predict", content=body(size))
            assert response.status_code == 413
            assert "100,000 bytes" in response.json()["detail"]
            assert response.json()["request_id"] == response.headers["x-request-id"]
        assert client.post("/predict", content=body(5000)).json()["bytes"] == 5000


def test_long_urls_and_headers_are_refused():
    client = TestClient(small_app(max_url_bytes=200, max_header_bytes=1000)[0])
    assert client.post("/predict?" + "x" * 200).status_code == 414
    assert client.post("/predict", headers={"x-more": "x" * 1000}).status_code == 431
    assert client.post("/predict").status_code == 200


def test_too_many_requests_at_once_get_503_and_health_does_not():
    app, metrics = small_app(max_concurrency=2)
    with listening(app) as url:
        statuses, headers = [], []

        def send():
            response = httpx.post(f"{url}/predict?seconds=1", timeout=30)
            statuses.append(response.status_code)
            headers.append(response.headers.get("retry-after"))

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/metrics").status_code == 200
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200, 200, 503, 503, 503, 503]
        assert headers.count("1") == 4
        assert httpx.post(f"{url}/predict").status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
def test_a_request_that_takes_too_long_gets_503(path):
    app, _ = small_app(request_timeout=0.3, max_concurrency=1)
    with listening(app) as url, httpx.Client(base_url=url) as client:
        start = time.monotonic()
        response = client.post(f"{path}?seconds=2")
        assert time.monotonic() - start < 1.5
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "0.3 seconds" in response.json()["detail"]
        assert client.post("/predict").status_code == 200


def test_a_body_that_arrives_too_slowly_gets_408_and_takes_no_place():
    app, _ = small_app(request_timeout=0.5, max_concurrency=1)
    with listening(app) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
            assert httpx.post(f"{url}/predict").status_code == 200
            slow.settimeout(10)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert httpx.post(f"{url}/predict").status_code == 200


def test_a_request_with_too_many_rows_gets_413(tmp_path):
    rows = toy_rows(1, seed=1).to_dict("records") * 51
    app = create_app(toy_release(tmp_path, 1), settings=ServiceSettings(max_rows=50))
    with TestClient(app) as client:
        assert client.post("/predict", json={"rows": rows[:50]}).status_code == 200
        response = client.post("/predict", json={"rows": rows})
        assert response.status_code == 413
        assert "at most 50" in response.json()["detail"]


# API keys


@pytest.fixture
def keys(tmp_path):
    "A key file with a key for each scope; the keys by scope."
    made = {scope: make_api_key(f"for-{scope}", [scope]) for scope in ("predict", "feedback", "read")}
    (tmp_path / "keys").write_text("\n".join(line for _, line in made.values()))
    return tmp_path / "keys", {scope: key for scope, (key, _) in made.items()}


def test_each_route_needs_its_scope(keys):
    file, by_scope = keys
    client = TestClient(small_app(api_keys=str(file))[0], raise_server_exceptions=False)
    routes = {"predict": ("POST", "/predict"), "feedback": ("POST", "/feedback"), "read": ("GET", "/metrics")}
    for needed, (method, path) in routes.items():
        assert client.request(method, path).headers["www-authenticate"] == 'Bearer realm="mlcycle"'
        for scope, key in by_scope.items():
            response = client.request(method, path, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == (200 if scope == needed else 403), (path, scope)
            if scope != needed:
                assert f'scope="{needed}"' in response.headers["www-authenticate"]
                assert response.json()["request_id"]
            assert client.request(method, path, headers={"X-API-Key": key}).status_code == response.status_code
    assert client.get("/health").status_code == 200
    assert client.get("/docs").status_code == client.get("/nowhere").status_code == 401


@given(key=st.text(max_size=60))
def test_no_other_key_is_accepted(key):
    made, line = make_api_key("one", ["predict"])
    ring = KeyRing(ServiceSettings(api_key_entries=line))
    assert ring.find(made)
    assert ring.find(key) is None
    assert ring.find(made + key[:1]) is None or not key


def test_odd_credentials_are_401_and_not_an_error(keys):
    client = TestClient(small_app(api_keys=str(keys[0]))[0])
    for value in (b"Bearer", b"Bearer ", b"Basic abc", b"\xff\xfe", b"Bearer \xff", b"Bearer " + b"x" * 5000, b""):
        assert client.post("/predict", headers={b"authorization": value}).status_code == 401


def test_only_hashes_are_stored_and_each_key_differs():
    (first, line), (second, _) = (make_api_key("name", ["read"]) for _ in range(2))
    assert first != second
    assert len(first) > 40
    assert first.removeprefix("mlc_") not in line


def test_a_changed_file_counts_without_a_restart(keys, monkeypatch, capfd):
    file, by_scope = keys
    ring = KeyRing(ServiceSettings(api_keys=str(file)))
    assert ring.find(by_scope["predict"])
    text = file.read_text()

    def write(content: str) -> None:
        file.write_text(content)
        ring.next_look = 0.0

    write("\n".join(line for line in text.splitlines() if "for-predict" not in line))
    assert ring.find(by_scope["predict"]) is None
    assert ring.find(by_scope["read"])
    write("not a key")
    assert ring.find(by_scope["read"]), "an error in the file locks nobody out"
    file.unlink()
    ring.next_look = 0.0
    assert ring.find(by_scope["read"])
    shown = capfd.readouterr().err
    assert "Entry 1" in shown
    assert "not a key" not in shown
    write(text)
    assert ring.find(by_scope["predict"])


def test_a_key_file_that_cannot_be_read_stops_the_start(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        small_app(api_keys=str(tmp_path / "none"))
    (tmp_path / "empty").write_text("# none yet\n")
    assert TestClient(small_app(api_keys=str(tmp_path / "empty"))[0]).post("/predict").status_code == 401


def test_a_rate_is_held_for_each_key():
    (first, line), (second, other) = make_api_key("slow", ["predict"], rate=2), make_api_key("other", ["predict"])
    client = TestClient(small_app(api_key_entries=f"{line};{other}")[0])
    responses = [client.post("/predict", headers={"X-API-Key": first}) for _ in range(4)]
    assert [response.status_code for response in responses[:2]] == [200, 200]
    assert (responses[3].status_code, responses[3].headers["retry-after"]) == (429, "1")
    assert all(client.post("/predict", headers={"X-API-Key": second}).status_code == 200 for _ in range(5))


@pytest.mark.parametrize(
    "path", ["/health/live/../../predict", "//predict", "/predict/", "/PREDICT", "/health%2flive", "/v2/health"]
)
def test_only_the_health_checks_themselves_are_open(path):
    assert required_scope("POST", path) == "predict"
    assert required_scope("GET", path) == "read"


def test_the_command_makes_keys_that_the_service_accepts(tmp_path):
    file = tmp_path / "keys"
    made = cli("key", "create", "--name", "booking", "--scope", "predict", "--rate", "5", "--file", file, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    client = TestClient(small_app(api_keys=str(file))[0])
    assert client.post("/predict", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert read_key_entries(file.read_text().splitlines(), "file")[0].rate == 5
    again = cli("key", "create", "--name", "booking", "--scope", "read", "--file", file, cwd=tmp_path)
    assert again.returncode == 2
    assert "mlcycle key revoke booking" in again.stderr
    assert cli("key", "revoke", "booking", "--file", file, cwd=tmp_path).returncode == 0
    assert file.read_text() == ""


# Access log


def entries(stream: io.StringIO) -> list[dict]:
    "Lines of an access log, once it has had time to write."
    time.sleep(0.2)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_the_access_log_has_a_line_for_each_request_and_no_personal_data(keys, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(access_log.sys, "stdout", stream)
    file, by_scope = keys
    app, metrics = small_app(api_keys=str(file), access_log="json")
    client = TestClient(app, raise_server_exceptions=False)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-API-Key": by_scope["predict"], "x-request-id": "order-1", "traceparent": trace, "user-agent": "Private"}
    response = client.post("/predict?name=private", content=b"private", headers=headers)
    assert client.get("/model", headers={"X-API-Key": by_scope["read"]}).status_code == 500
    client.get("/private/path")
    first, second, third = entries(stream)
    assert first | {"time": "", "seconds": 0, "span_id": ""} == {
        "time": "", "method": "POST", "route": "/predict", "status": 200, "seconds": 0, "bytes": len(response.content),
        "request_id": "order-1", "trace_id": trace[3:35], "span_id": "", "api_key": "for-predict", "model_version": None,
    }  # fmt: skip
    assert response.headers["traceparent"] == f"00-{trace[3:35]}-{first['span_id']}-01"
    assert (second["route"], second["status"]) == ("/model", 500)
    assert (third["route"], third["status"], third["api_key"]) == ("unmatched", 401, None)
    text = stream.getvalue().lower()
    assert all(word not in text for word in ("private", "testclient", "secret", *by_scope.values()))


def test_a_failure_has_the_ids_in_header_and_body():
    client = TestClient(small_app()[0], raise_server_exceptions=False)
    response = client.get("/model", headers={"x-request-id": "r-1"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == response.json()["request_id"] == "r-1"
    assert "secret" not in response.text


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"a\nb", b"\xc3\xa4", b'"'])
def test_request_ids_that_could_harm_a_log_are_replaced(given):
    ids = access_log.request_ids({"headers": [(b"x-request-id", given)]})
    assert len(ids["request_id"]) == 32


@given(value=st.binary(max_size=80))
def test_any_traceparent_gives_a_valid_trace(value):
    ids = access_log.request_ids({"headers": [(b"traceparent", value)]})
    parent = f"00-{ids['trace_id']}-{ids['span_id']}-{ids['trace_flags']}".encode()
    assert access_log.TRACEPARENT.fullmatch(parent)


def test_a_reader_that_stalls_delays_no_request(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(access_log.sys, "stdout", os.fdopen(writer, "w"))
    monkeypatch.setattr(access_log, "MAX_WAITING_LINES", 500)
    client = TestClient(small_app(access_log="json")[0])
    start = time.monotonic()
    for _ in range(1500):  # More than fits into the pipe
        client.get("/health")
    assert time.monotonic() - start < 20
    assert client.get("/health").status_code == 200
    os.close(reader)  # The writer gives up


def test_events_and_errors_of_a_release_carry_the_request_id(tmp_path, monkeypatch):
    from mlcycle.stores.events import open_event_database, read_events

    url, rows, stream = f"sqlite:///{tmp_path}/events.db", toy_rows(1, seed=1).to_dict("records"), io.StringIO()
    monkeypatch.setattr(access_log.sys, "stdout", stream)
    with TestClient(create_app(toy_release(tmp_path, 1), url, "run", settings=ServiceSettings(access_log="json"))) as client:
        assert client.post("/predict", json={"rows": rows}, headers={"x-request-id": "r-7"}).status_code == 200
        for path, body in (("/predict", {"rows": []}), ("/nowhere", {})):
            response = client.post(path, json=body, headers={"x-request-id": "r-8"})
            assert response.json()["request_id"] == response.headers["x-request-id"] == "r-8"
    engine = open_event_database(url)
    events, _ = read_events(engine, "run")
    engine.dispose()
    assert [entry["model_version"] for entry in entries(stream)] == ["1", None, None]
    assert events[["request_id", "model_version", "role"]].values.tolist() == [["r-7", "1", "champion"]]


def test_a_key_file_that_is_gone_is_reported_by_a_health_check_too(keys, capfd):
    file, by_scope = keys
    app, _ = small_app(api_keys=str(file))
    client, text = TestClient(app), file.read_text()
    ring = app.middleware_stack.app.keys

    def look(content: str | None) -> str:
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        ring.next_look = 0.0
        assert client.get("/health").status_code == 200
        return capfd.readouterr().err

    assert "Entry 1" in look("not a key")
    assert look("not a key") == ""
    assert "No such file" in (printed := look(None))
    assert "remain valid until it is back" in printed
    assert client.post("/predict", headers={"X-API-Key": by_scope["predict"]}).status_code == 200
    assert look(None) == ""
    assert "was read again" in look(text)

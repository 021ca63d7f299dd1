"""Ten thousand malformed requests over raw connections: the service rejects each, and predicts the same afterwards."""

import json
import random
import socket
import struct
from collections import Counter

import pytest
from conftest import stored_rows

from mlcycle.service.local import running_service
from mlcycle.service.rows import to_json_rows

REQUESTS, SEED = 10_000, 17
PATHS = ("/predict", "/feedback", "/invocations", "/v2/models/{model}/infer", "/v2/models/{model}/versions/1/infer")
VALUES = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0.0",
    "9" * 400,
    '"\\ud800"',
    '"' + "x" * 5000 + '"',
    "null",
    "true",
    "{}",
    "[[]]",
)
TYPES = (
    "application/json",
    "text/plain",
    "",
    "application/json; charset=utf-16",
    "application/octet-stream",
    "multipart/form-data",
)


@pytest.fixture(scope="module")
def served(table_run):
    "A running service of the orders' release, and rows for it."
    run = table_run("orders")
    rows = to_json_rows(stored_rows(run, "holdout")[run.plan.input_columns].head(20))
    with running_service(run.workspace.root / run.release.bundle, fork=True) as service:
        yield run, service, rows


def malformed_body(chance: random.Random, row: dict) -> bytes:
    "A body that is cut, damaged, nested, mistyped or of another protocol."
    column, names = chance.choice(list(row)), list(row)
    bodies = [
        lambda: chance.randbytes(chance.randrange(200)),
        lambda: json.dumps({"rows": [row]}).encode()[: -chance.randrange(1, 30)],
        lambda: b"[" * chance.choice((10, 1000, 50_000)) + b"]" * chance.choice((0, 10)),
        lambda: b'{"rows":' * 2000 + b"1" + b"}" * 2000,
        lambda: json.dumps({"rows": [row]}).replace(json.dumps(row[column]), chance.choice(VALUES), 1).encode(),
        lambda: json.dumps({"rows": [row | {column: chance.choice(([1], {"a": 1}, "no", "\0", -1e308))}]}).encode(),
        lambda: json.dumps({"rows": chance.choice((None, 3, "all", {}, [], [[]], [None], [row, 7]))}).encode(),
        lambda: json.dumps({"rows": [row], "row_ids": chance.choice((5, ["a", "a"], [""], ["x" * 500], [None], {}))}).encode(),
        lambda: json.dumps({"rows": [row]}).encode(chance.choice(("utf-16", "utf-32", "utf-8-sig"))),
        lambda: json.dumps({"dataframe_split": {"columns": names[:3], "data": chance.choice(([[1]], 5, [[]], None))}}).encode(),
        lambda: json.dumps({"dataframe_records": chance.choice(([1], {"a": 2}, [[1]]))}).encode(),
        lambda: json.dumps({"instances": chance.choice((1, [], {"a": [1, 2], "b": [1]}))}).encode(),
        lambda: json.dumps({"inputs": [malformed_tensor(chance, name) for name in names[: chance.randrange(9)]]}).encode(),
        lambda: json.dumps({"actuals": chance.choice(([1], "yes", [None], [])), "row_ids": ["nobody"]}).encode(),
        lambda: struct.pack("<i", chance.randrange(-5, 9)) + chance.randbytes(20),
    ]
    return chance.choice(bodies)()


def malformed_tensor(chance: random.Random, name: str) -> dict:
    "An input of the Open Inference Protocol with a wrong shape, type or content."
    shape = chance.choice(([1], [2], [-1], [], [1, 1, 1], ["a"], [10**12], None, [True]))
    datatype = chance.choice(("FP32", "BYTES", "INT64", "BOOL", "FP16", "XYZ", 5, None))
    data = chance.choice(([1], ["a"], [], None, [[1]], [None], "a", 3))
    parameters = chance.choice(({}, {}, {"binary_data_size": chance.choice((4, -1, 10**12, "a"))}))
    return {
        "name": chance.choice((name, name, "other", 7)),
        "shape": shape,
        "datatype": datatype,
        "data": data,
        "parameters": parameters,
    }


def malformed_request(chance: random.Random, rows: list[dict], model: str) -> bytes:
    "A request whose framing is valid, so that the connection stays open."
    body = malformed_body(chance, chance.choice(rows))
    path = chance.choice((*PATHS, *PATHS, "/model/../x", "/%00", "/predict?x=%ff", "//predict", "/v2/models/none/infer"))
    method = chance.choice(("POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
    length = f"Inference-Header-Content-Length: {chance.choice((0, 5, 10**9, -1, 'a'))}\r\n"
    odd = ("Content-Encoding: gzip\r\n", "traceparent: 00-zz\r\n", f"X-Request-Id: {'é' * 50}\r\n", "Authorization: Bearer\r\n")
    extra = chance.choice(("", "", "", length, *odd))
    kind = chance.choice(TYPES)
    head = f"{method} {path.format(model=model)} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n"
    return f"{head}{f'Content-Type: {kind}' + chr(13) + chr(10) if kind else ''}\r\n".encode("latin-1") + body


def read_response(file) -> tuple[int, bytes]:
    "Status and body of a response on a connection that is kept."
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return status, file.read(length)


def connect(url: str) -> socket.socket:
    "A connection to a service."
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_malformed_requests_are_rejected_and_change_nothing(served):
    run, service, rows = served
    before = service.predict(rows, [str(n) for n in range(len(rows))])
    chance, statuses = random.Random(SEED), Counter()
    connection = connect(service.url)
    file = connection.makefile("rb")
    for _ in range(REQUESTS):
        request = malformed_request(chance, rows, run.release.model.name)
        try:
            connection.sendall(request)
            status, body = read_response(file)
        except (IndexError, OSError):  # The service may close a connection after a request that it cannot read
            connection.close()
            connection = connect(service.url)
            file, status, body = connection.makefile("rb"), 0, b""
        statuses[status] += 1
        assert status < 500 or status == 501, (status, request[:600], body[:600])
        assert b"Traceback" not in body, request[:600]
    connection.close()
    assert sum(count for status, count in statuses.items() if 400 <= status < 500) > 0.8 * REQUESTS, statuses
    assert statuses[0] < 0.05 * REQUESTS, statuses
    assert service.predict(rows, [str(n) for n in range(len(rows))])["predictions"] == before["predictions"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n12345",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(20_000)) + b"\r\n",
        b"BREW /predict HTCPCP/1.0\r\n\r\n",
        b"",
    ],
    ids=[
        "tls",
        "negative length",
        "two lengths",
        "bad chunk",
        "short body",
        "long path",
        "many headers",
        "other protocol",
        "nothing",
    ],
)
def test_malformed_framing_closes_a_connection_and_leaves_the_others(served, sent):
    _, service, rows = served
    with connect(service.url) as connection, connection.makefile("rb") as file:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = file.read()
    assert received == b"" or received.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), received[:300]
    assert len(service.predict(rows, [str(n) for n in range(len(rows))])["predictions"]) == len(rows)

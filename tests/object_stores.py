"An S3-compatible server on this machine, for tests of shared stores."

import os
import subprocess
import sys
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

SERVER = """
import sys
from threading import Lock
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
put_object, lock = S3Response.put_object, Lock()

def put_atomically(self): # moto checks If-None-Match and stores in two steps, S3 in one
    with lock:
        return put_object(self)

S3Response.put_object = put_atomically
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
PROXY = """
import json, re, sys
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

faults, lock = [], Lock()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, headers, body, length=None):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(2)

    def body(self):
        encoding = self.headers.get("Transfer-Encoding") or ""
        del self.headers["Transfer-Encoding"]
        if "chunked" not in encoding:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def forward(self):
        body = self.body()
        if self.path == "/faults":
            with lock:
                faults[:] = json.loads(body)
            return self.send(200, [], b"")
        with lock:
            fault = next((each for each in faults if each["count"] and each["method"] in ("", self.command)
                          and re.search(each["path"], self.path)), {"kind": ""})
            if fault["kind"]:
                fault["count"] -= 1
        if fault["kind"] == "503":
            return self.send(503, [], b"")
        server = HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("content-length", "expect")}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content, length = answer.read(), answer.headers.get("Content-Length")
        server.close()
        if fault["kind"] == "lost response":
            return self.drop()
        if fault["kind"] == "truncated" and content:
            self.send(answer.status, answer.getheaders(), content[:len(content) // 2], len(content))
            return self.drop()
        self.send(answer.status, answer.getheaders(), content, length if self.command == "HEAD" else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
proxy.daemon_threads = True
print("port", proxy.server_port, flush=True)
from threading import Thread
Thread(target=proxy.serve_forever, daemon=True).start()
sys.stdin.read()
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-user", "AWS_SECRET_ACCESS_KEY": "very-secret-key", "AWS_REGION": "us-east-1"}
ENVIRONMENT = CREDENTIALS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true"}


def s3_client():
    "A client of the server, for looking at objects."
    import boto3

    return boto3.client("s3")


def stored_objects(bucket: str) -> list[str]:
    "Sorted names of all objects in a bucket."
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


@contextmanager
def serving(code: str, *words: str):
    "Context manager: a server in a process of its own; its port."
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen([sys.executable, "-c", code, *words], **pipes)
    try:
        yield next(line.split()[1] for line in server.stdout if line.startswith("port"))
    finally:
        server.stdin.close()
        server.wait(20)


@pytest.fixture(scope="module")
def s3_url():
    "The address of a server."
    with serving(SERVER) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def proxy_url(s3_url):
    "The address of a proxy in front of the server, which can make faults."
    with serving(PROXY, s3_url.rpartition(":")[2]) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def faults(bucket, proxy_url, monkeypatch):
    "A function that sets the faults of the requests to come; requests go through the proxy."
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy_url)

    def set_faults(kind: str = "", path: str = "", method: str = "", count: int = 10**9) -> None:
        listed = [{"kind": kind, "path": path, "method": method, "count": count}] if kind else []
        httpx.post(f"{proxy_url}/faults", json=listed).raise_for_status()

    yield set_faults
    set_faults()


@pytest.fixture
def bucket(s3_url, monkeypatch):
    "The name of an empty bucket; the environment has the endpoint and credentials."
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_url}).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid4().hex[:8]}"
    s3_client().create_bucket(Bucket=name)
    return name


def store_environment() -> dict[str, str]:
    "The variables that other processes need."
    return {name: os.environ[name] for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")}

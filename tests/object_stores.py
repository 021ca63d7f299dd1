"An S3-compatible server on this machine, for tests of shared stores."

import os
import subprocess
import sys
from uuid import uuid4

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


@pytest.fixture(scope="module")
def s3_url():
    "The address of a server."
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    port = next(line.split()[1] for line in server.stdout if line.startswith("port"))
    yield f"http://127.0.0.1:{port}"
    server.stdin.close()
    server.wait(20)


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

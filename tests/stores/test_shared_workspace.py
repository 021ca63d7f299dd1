"""A workspace that machines share in an object store: killed senders, simultaneous ones, and a store with faults."""

import json
import os
import signal
import subprocess
import sys

import pytest
from object_stores import (  # noqa: F401 - fixtures
    bucket,
    faults,
    proxy_url,
    s3_client,
    s3_url,
    store_environment,
    stored_objects,
)

from mlcycle.core.files import json_hash, write_checksummed_json, write_text
from mlcycle.core.runs import list_runs
from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.errors import ArtifactError, StorageError
from mlcycle.lifecycle.locks import is_run_in_progress
from mlcycle.lifecycle.workspace_sharing import receive_workspace, send_workspace
from mlcycle.stores.shared_files import SharedFiles
from mlcycle.stores.shared_workspace import STATE_FILE, receive_units, send_units
from mlcycle.stores.tables import table_storage

SENDER = """
import sys, time
from pathlib import Path
from mlcycle.core.workspace import Workspace
from mlcycle.stores import shared_files, shared_workspace
if "slow" in sys.argv:
    read_parts = shared_files.read_parts
    def slowly(path):
        for part in read_parts(path):
            print(f"sending {path.name}\\n", end="", flush=True) # In one piece: there are several threads
            time.sleep(60 if path.name == "late.html" else 0)
            yield part
    shared_files.read_parts = slowly
space = Workspace.from_project(Path(sys.argv[1]))
print("ready", flush=True)
if "slow" not in sys.argv:
    sys.stdin.readline()
shared_workspace.send_units(space)
"""


@pytest.fixture
def machine(bucket, tmp_path):  # noqa: F811
    "A function that makes a project on a machine of its own."

    def make(name: str) -> Workspace:
        stores = {"shared_workspace": f"s3://{bucket}/project", "tables": f"s3://{bucket}/t"}
        stores |= {"tracking_uri": "http://registry"}
        lines = ["[stores]", *(f"{key} = {value}" for key, value in stores.items())]
        write_text(tmp_path / name / "settings.ini", "\n".join(lines))
        return Workspace(tmp_path / name, STORE_DEFAULTS | stores)

    return make


def add_run(space: Workspace, run: str, key: str = "", pages: int = 3, **facts) -> None:
    "Write a run with pages, a release, and the result of a stage."
    space.prepare()
    entry = space.root / "cache" / "deployment" / (key or f"key{run}")
    files = json.dumps({f"releases/model-{run}/bundle.json": "hash"})
    write_text(space.root / "releases" / f"model-{run}" / "bundle.json", f"release of {run}")
    write_text(entry / "files.json", files)
    write_checksummed_json(entry / "entry.json", {"key": entry.name, "run": run, "inputs": {}})
    for page in range(pages):
        write_text(space.reports / run / f"{page}.html", f"page {page} of {run}" + "text" * 1000)
    write_text(space.root / "runs" / run / "deployment.files.json", files)
    known = {"id": run, "status": "done", "keys": {"deployment": entry.name}, "stages": {}, "parameters": {}, "started": ""}
    known |= {"stores": space.stores, "project": str(space.project)} | facts
    write_text(space.root / "runs" / run / "run.json", json.dumps(known))


def is_complete(space: Workspace, run: str, pages: int = 3) -> bool:
    "Whether a run with all its files is in a workspace, and nothing half-written is."
    texts = [space.reports / run / f"{page}.html" for page in range(pages)]
    drafts = [path for path in space.project.rglob(".*") if path.name != ".mlcycle"]
    return (
        not drafts
        and all(text.read_text().startswith(f"page {page} of {run}text") for page, text in enumerate(texts))
        and (space.root / "releases" / f"model-{run}" / "bundle.json").read_text() == f"release of {run}"
        and run in [each.id for each in list_runs(space)]
    )


def sender(space: Workspace, *words: str) -> subprocess.Popen:
    "A process that sends a workspace; it has printed its first line."
    command = [sys.executable, "-c", SENDER, str(space.project), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | store_environment(), **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def test_runs_whose_tables_are_on_this_machine_only_are_named_once(machine, caplog):
    space = machine("one")
    add_run(space, "new", keys={"data": "k"})
    add_run(space, "old", keys={"data": "k"}, stores=STORE_DEFAULTS)
    add_run(space, "planned", keys={"problem": "k"}, stores=STORE_DEFAULTS)  # Has no tables
    assert len([unit for unit in send_units(space) if unit.startswith("runs/")]) == 3
    (text,) = [record.getMessage() for record in caplog.records]
    assert ": old, in " in text and str(space.root / "tables") in text and "mlcycle run" in text
    add_run(space, "old", keys={"data": "k"}, stores=STORE_DEFAULTS, pages=4)
    assert "runs/old" in send_units(space) and len(caplog.records) == 1


def test_two_machines_that_send_at_once_lose_nothing(machine):
    one, two, three = machine("one"), machine("two"), machine("three")
    for space, runs in ((one, "abc"), (two, "xyz")):
        for run in runs:
            add_run(space, run, key="same")  # Both have computed the same stage, with another release each
    processes = [sender(one), sender(two)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    for space in (one, two, three):
        receive_units(space)
        assert all(is_complete(space, run) for run in "abcxyz")
    found = json.loads((three.root / "cache/deployment/same/files.json").read_text())
    assert all((three.root / name).is_file() for name in found), "the result of the stage is that of one machine, and whole"
    assert send_units(one) == send_units(two) == send_units(three) == []


def test_a_killed_sender_leaves_the_former_state(machine, bucket):  # noqa: F811
    one, two, three = machine("one"), machine("two"), machine("three")
    add_run(one, "a")
    send_units(one)
    write_text(one.reports / "a" / "0.html", "page 0 of a" + "text" * 2000)
    write_text(one.reports / "a" / "late.html", "late")
    add_run(one, "b")
    process = sender(one, "slow")
    assert "sending late.html\n" in iter(process.stdout.readline, ""), "its upload has begun"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert not any("runs/b" in name for name in stored_objects(bucket))
    assert "runs/a" in receive_units(two) and is_complete(two, "a") and not (two.reports / "a" / "late.html").exists()
    assert {"runs/a", "runs/b"} <= {*send_units(one)}, "the next command sends the rest"
    for space in (two, three):
        receive_units(space)
        assert is_complete(space, "a") and is_complete(space, "b") and (space.reports / "a" / "late.html").read_text() == "late"


@pytest.mark.parametrize(("kind", "method"), [("503", ""), ("truncated", "GET"), ("lost response", "PUT")])
def test_faults_of_a_store_are_overcome(machine, faults, kind, method):  # noqa: F811
    one, two = machine("one"), machine("two")
    add_run(one, "a")
    faults(kind, "files|units", method, count=1)
    send_units(one)
    faults(kind, "files|units", method, count=1)
    assert receive_units(two) == ["stages/deployment/keya", "runs/a"] and is_complete(two, "a")


def test_a_store_that_is_away_changes_nothing(machine, faults, monkeypatch):  # noqa: F811
    monkeypatch.setattr(table_storage, "S3_ATTEMPTS", 2)
    one, two = machine("one"), machine("two")
    add_run(one, "a")
    faults("503")
    with pytest.raises(StorageError, match=r"s3://bucket-\w+/project.* cannot be used") as caught:
        send_workspace(one)
    assert "very-secret-key" not in str(caught.value)
    faults()
    send_workspace(one)
    faults("503", r"files/")
    with pytest.raises(StorageError):
        receive_workspace(two)
    assert not (two.root / "runs").exists() and not two.reports.exists()
    faults()
    assert receive_workspace(two) == ["a"] and is_complete(two, "a")


def test_altered_and_foreign_content_is_refused(machine, bucket, caplog):  # noqa: F811
    one, two = machine("one"), machine("two")
    add_run(one, "a")
    send_units(one)
    page = next(name for name in stored_objects(bucket) if name.startswith("project/files/"))
    body = s3_client().get_object(Bucket=bucket, Key=page)["Body"].read()
    s3_client().put_object(Bucket=bucket, Key=page, Body=bytes(len(body)))
    receive_units(two)
    assert "is not complete" in caplog.text and list_runs(two) == []
    store = SharedFiles(one.shared_address)
    index = json.loads(store.read("units/runs/a.json"))
    index["value"]["files"]["audit.jsonl"] = index["value"]["files"]["runs/a/run.json"]
    store.write("units/runs/a.json", [json.dumps({"value": index["value"], "sha256": json_hash(index["value"])}).encode()])
    with pytest.raises(ArtifactError, match=r"audit\.jsonl"):
        receive_units(two)
    assert not (two.root / "audit.jsonl").exists()


def test_a_run_of_another_machine_is_neither_resumed_nor_deleted(machine):
    one, two = machine("one"), machine("two")
    add_run(one, "a", status="running")
    assert [unit for unit in send_units(one) if unit.startswith("runs")] == [], "only the process that executes it sends it"
    assert "runs/a" in send_units(one, running="a")
    receive_units(two)
    (run,) = list_runs(two)
    assert is_run_in_progress(run) and run.workspace.project == two.project
    (one.root / STATE_FILE).unlink()
    add_run(one, "a", status="done", pages=4)
    send_units(one)
    assert receive_units(two) == ["runs/a"] and is_complete(two, "a", pages=4) and not is_run_in_progress(list_runs(two)[0])

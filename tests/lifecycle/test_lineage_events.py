"""OpenLineage events: valid, complete for each stage, sent by HTTP, and enough to trace a model version."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from commands import cli
from jsonschema import Draft202012Validator, FormatChecker
from projects import add_cell, edit

import mlcycle as mc
from mlcycle.core.openlineage import FACET_SCHEMAS
from mlcycle.lifecycle.lineage_events import LINEAGE_FILE, job_namespace, read_lineage_events, way_back_from_events
from mlcycle.outcomes import STAGES
from mlcycle.stores.models.way_back import trace_model_version

# The parts of the specification 2-0-2 that a run event of a stage must have, and the facets that are used
FACET = {
    "type": "object",
    "required": ["_producer", "_schemaURL"],
    "properties": {"_producer": {"type": "string", "format": "uri"}, "_schemaURL": {"type": "string", "format": "uri"}},
}


def facets(**known: dict) -> dict:
    "The schema of a mapping of facets, of which some have required fields."
    properties = {
        name: {"allOf": [FACET, {"properties": fields, "required": [*fields]}], "type": "object"}
        for name, fields in known.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": FACET}


TEXT, UUID = {"type": "string"}, {"type": "string", "format": "uuid"}
JOB = {"type": "object", "required": ["namespace", "name"], "properties": {"namespace": TEXT, "name": TEXT}}
DATASET = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": TEXT,
        "name": TEXT,
        "facets": facets(
            version={"datasetVersion": TEXT},
            dataSource={"name": TEXT, "uri": {"type": "string", "format": "uri"}},
            schema={"fields": {"type": "array", "items": {"required": ["name"], "properties": {"name": TEXT, "type": TEXT}}}},
        ),
    },
}
PARAMETER = {"type": "object", "required": ["key"], "properties": {"key": TEXT, "value": TEXT}, "additionalProperties": False}
RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "eventType", "run", "job", "inputs", "outputs"],
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "required": ["runId", "facets"],
            "properties": {
                "runId": UUID,
                "facets": facets(
                    parent={"run": {"type": "object", "required": ["runId"], "properties": {"runId": UUID}}, "job": JOB},
                    errorMessage={"message": TEXT, "programmingLanguage": TEXT},
                    executionParameters={"parameters": {"type": "array", "items": PARAMETER}},
                    processing_engine={"version": TEXT, "name": TEXT},
                ),
            },
        },
        "job": {
            **JOB,
            "properties": JOB["properties"] | {"facets": facets(jobType={"processingType": TEXT, "integration": TEXT})},
        },
        "inputs": {"type": "array", "items": DATASET},
        "outputs": {"type": "array", "items": DATASET},
    },
}
VALIDATOR = Draft202012Validator(RUN_EVENT, format_checker=FormatChecker())


def events_of(run: mc.Run) -> list[dict]:
    "The events of a run, all valid."
    events = [json.loads(line) for line in (run.folder / LINEAGE_FILE).read_text().splitlines()]
    assert [error.message for event in events for error in VALIDATOR.iter_errors(event)] == []
    return events


def states(events: list[dict]) -> list[tuple[str, str]]:
    "Stage and state of each event."
    return [(event["job"]["name"], event["eventType"]) for event in events]


def test_the_schema_of_the_tests_refuses_what_the_specification_refuses():
    good = {"eventType": "START", "eventTime": "2026-01-01T00:00:00Z", "producer": "https://example.org"}
    good |= {"schemaURL": RUN_EVENT["properties"]["schemaURL"]["const"], "inputs": [], "outputs": []}
    good |= {"run": {"runId": "7f1c2f0e-0000-4000-8000-000000000000", "facets": {}}, "job": {"namespace": "a", "name": "b"}}
    assert VALIDATOR.is_valid(good)
    assert not VALIDATOR.is_valid(good | {"run": {"runId": "last", "facets": {}}})
    assert not VALIDATOR.is_valid(good | {"eventType": "DONE"})
    assert not VALIDATOR.is_valid(good | {"inputs": [{"name": "x"}]})
    assert not VALIDATOR.is_valid(good | {"job": {"namespace": "a", "name": "b", "facets": {"mlcycle_code": {}}}})


def test_each_stage_starts_and_completes_with_valid_events(base):
    run = mc.open("last", base)
    events = events_of(run)
    assert states(events) == [(stage, state) for stage in STAGES for state in ("START", "COMPLETE")]
    assert set(Counter(event["run"]["runId"] for event in events).values()) == {2}, "both events of a stage have one id"
    assert len({json.dumps(event["run"]["facets"]["parent"]["run"]) for event in events}) == 1
    assert {event["job"]["namespace"] for event in events} == {job_namespace(run.workspace)}


def test_data_sets_have_versions_columns_and_addresses(base):
    run = mc.open("last", base)
    by_stage = {event["job"]["name"]: event for event in events_of(run) if event["eventType"] == "COMPLETE"}
    train = next(each for each in by_stage["data"]["outputs"] if each["name"] == "tables/train")
    columns = {each["name"]: each["type"] for each in train["facets"]["schema"]["fields"]}
    assert columns["price"] == "double"
    assert {"placed", "town", "late"} <= columns.keys()
    assert train["facets"]["version"]["datasetVersion"] == str(run.dataset.tables["train"].version)
    assert train in by_stage["modelling"]["inputs"]
    source = by_stage["data"]["inputs"][0]
    assert (source["namespace"], source["name"]) == ("file", "orders.csv")
    assert source["facets"]["version"]["datasetVersion"] == run.problem.source_sha256
    used = {
        name for event in by_stage.values() for part in ("inputs", "outputs") for each in event[part] for name in each["facets"]
    }
    assert {"schema", "dataSource", "version"} <= used
    assert {name for name in used if name not in FACET_SCHEMAS} == {"mlcycle_content"}


def test_the_way_back_is_rebuilt_from_events_alone(base):
    run = mc.open("last", base)
    model = run.candidate.model
    from_events = way_back_from_events(events_of(run), model.name, model.version)
    recorded = trace_model_version(run.workspace, model.name, model.version)
    for name in ("model", "version", "sha256", "run", "trained_by", "winner", "score", "parameters"):
        assert from_events[name] == recorded[name], name
    for name in ("notebook", "notebook_sha256"):
        assert from_events["code"][name] == recorded["code"][name]
    trained_on = {table["name"]: (table["version"], table["sha256"], table["rows"]) for table in from_events["tables"]}
    stored = {table["name"]: (table["version"], table["sha256"], table["rows"]) for table in recorded["tables"]}
    assert trained_on == {"train": stored["train"]}
    assert [(each["source"], each["sha256"]) for each in from_events["sources"]] == [
        (each["source"], each["sha256"]) for each in recorded["sources"]
    ]
    settings = {name: value for name, value in recorded["settings"].items() if name in from_events["settings"]}
    assert {"folds", "trials", "seed", "models"} <= settings.keys()
    given = {name: from_events["settings"][name] for name in settings if from_events["settings"][name] is not None}
    assert given == {name: settings[name] for name in given}, "None: the stage chose the value"


def test_restored_stages_have_events_that_name_the_run(toy):
    assert cli("run", "-q", "-p", "modelling.number=9", cwd=toy).returncode == 0
    run = mc.open("last", toy)
    events = events_of(run)
    assert states(events) == [(stage, state) for stage in STAGES for state in ("START", "COMPLETE")]
    reused = [event["job"]["name"] for event in events if "mlcycle_cache" in event["run"]["facets"]]
    assert reused == ["problem", "problem", "data", "data", "features", "features"]
    assert len(read_lineage_events(run.workspace)) == 28


def test_a_stage_that_fails_has_an_event_with_the_error(toy):
    add_cell(toy, "features", 'raise ValueError("no such thing")')
    assert cli("run", "-q", cwd=toy).returncode == 1
    events = events_of(mc.open("last", toy))
    assert states(events)[-2:] == [("features", "START"), ("features", "FAIL")]
    assert "no such thing" in events[-1]["run"]["facets"]["errorMessage"]["message"]
    assert events[-1]["outputs"] == []


class _Collector(BaseHTTPRequestHandler):
    "Keeps the events that are posted, and responds with a status."

    received: list[dict]
    status = 201

    def do_POST(self):
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        "Print nothing."


@pytest.fixture
def collector():
    "A server that receives events; its handler, whose status can be set."
    handler = type("Handler", (_Collector,), {"received": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}/api/v1/lineage"
    yield handler
    server.shutdown()


def name_address(project: Path, address: str) -> None:
    "Set `openlineage_url`."
    edit(project / "settings.ini", "[problem]", f"[governance]\nopenlineage_url = {address}\n[problem]")


def test_events_are_posted_as_they_are_written(toy, collector):
    name_address(toy, "$CATALOGUE/api/v1/lineage")
    done = cli("run", "-q", "-p", "number=4", cwd=toy, CATALOGUE=collector.address.removesuffix("/api/v1/lineage"))
    assert done.returncode == 0, done.stderr
    assert collector.received == events_of(mc.open("last", toy))


@pytest.mark.parametrize("status", [500, None])
def test_a_catalogue_that_fails_is_noted_once_and_stops_nothing(toy, collector, status):
    collector.status = status
    name_address(toy, collector.address if status else "http://token:secret@127.0.0.1:9/lineage")
    done = cli("run", "-q", "-p", "number=5", cwd=toy)
    run = mc.open("last", toy)
    assert done.returncode == 0, done.stderr
    assert len(collector.received) == (1 if status else 0)
    assert ("status 500" if status else "ConnectError") in run.info["lineage_note"]
    assert len(events_of(run)) == 14
    assert "secret" not in done.stdout + done.stderr + json.dumps(run.info)

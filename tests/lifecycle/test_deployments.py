"""`mlcycle deployments`: services that are really running, under load, with a real registry and audit log."""

import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import cli
from load import Load, wait_until
from served_models import Serving, folder_service
from typer.testing import CliRunner

from mlcycle.cli.app import app
from mlcycle.core.workspace import Workspace
from mlcycle.errors import StageError
from mlcycle.lifecycle.deployment_records import DEPLOYMENTS_FILE, Deployment, read_deployments
from mlcycle.lifecycle.deployment_status import NotReachableError, PlanWait, deployment_status
from mlcycle.lifecycle.deployments import add_deployment
from mlcycle.lifecycle.serving import traffic_file
from mlcycle.service import bundle as bundle_module
from mlcycle.service.bundle import build_bundle, open_release
from mlcycle.service.traffic import TrafficPlan, read_traffic_plan
from mlcycle.stores.models.audit_log import readable_entries, verify_audit_log
from mlcycle.stores.models.registry import set_alias


def deployments(project: Path, *words: str, code: int = 0):
    "Run `mlcycle deployments …` in this process, where MLflow has opened the registry already."
    given = ["deployments", *map(str, words), "--project", str(project)]
    done = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def listed(project: Path) -> dict[str, dict]:
    "The deployments by name."
    return {each["name"]: each for each in json.loads(deployments(project, "--json").stdout)}


def last_change(workspace) -> tuple[str, str, dict]:
    "Action, reason and details of the last entry of the audit log."
    entry = readable_entries(workspace)[-1]
    return entry.action, entry.reason, entry.details


def test_a_local_service_is_updated_under_load_and_rolled_back(served):
    run, second, rows = served
    name, project, first = run.release.model.name, run.workspace.project, run.release.model.version
    later, previous = f"{name}@{second.version}", f"{name}@{first}"
    with Serving(project, name) as serving, Load(str(serving.client.base_url), rows) as load:
        facts = listed(project)[name]
        assert (facts["kind"], facts["state"], facts["version"], facts["follows"]) == (
            "local service",
            "serving",
            first,
            "champion",
        )
        with Serving(project, name, "--workers", "2") as beside:
            port = beside.client.base_url.port
            assert {name, f"{name}-{port}"} <= listed(project).keys()
        assert f"{name}-{port}" not in listed(project)  # It has ended in good order
        load.wait_for(first)
        done = deployments(project, "update", name, later, "--reason", "better")
        assert f"{name} serves {later}. Previous: {previous}." in done.stdout
        assert serving.version(rows) == second.version
        load.wait_for(second.version)
        action, reason, details = last_change(run.workspace)
        assert (action, reason, details["change"]) == ("deploy", "better", "update")
        assert (details["before"], details["after"]) == ({"champion": previous}, {"champion": later})
        assert "better" in cli("history", cwd=project).stdout
        assert (listed(project)[name]["follows"], listed(project)[name]["pinned"]) == ("", True)
        assert f"{name}: update" in " ".join(cli("history", cwd=project).stdout.split())
        set_alias(run.release.model.model_copy(update={"version": 3}), workspace=run.workspace)
        set_alias(run.release.model, workspace=run.workspace)  # It is pinned: the alias is not followed
        deployments(project, "canary", name, previous, "--share", "0.5")
        assert listed(project)[name]["canary"] == previous
        deployments(project, "rollback", name)  # Ends the canary
        facts = listed(project)[name]
        assert (facts["version"], facts["canary"], facts["pinned"]) == (second.version, "", True)
        deployments(project, "canary", name, previous, "--share", "1")
        deployments(project, "canary", name, "--promote")
        assert serving.version(rows) == first
        deployments(project, "rollback", name)
        assert serving.version(rows) == second.version
        deployments(project, "rollback", name)
        assert serving.version(rows) == first
        assert (listed(project)[name]["follows"], listed(project)[name]["pinned"]) == ("champion", False)
        assert "No previous version" in deployments(project, "rollback", name, code=2).stderr
        deployments(project, "update", name, later)
        deployments(project, "update", name, f"{name}@champion")  # Follows the alias again
        assert not read_traffic_plan(traffic_file(run.workspace, name)).pinned
        assert not verify_audit_log(run.workspace)
    assert not load.failed
    assert name not in listed(project)


def test_a_deployment_folder_is_updated_under_load_and_a_bad_release_changes_nothing(served, tmp_path, monkeypatch):
    run, second, rows = served
    name, project, first = run.release.model.name, run.workspace.project, run.release.model.version
    releases = run.workspace.root / "releases"
    folder = tmp_path / "folder"
    (folder / "releases").mkdir(parents=True)
    source = run.workspace.root / run.release.bundle
    os.symlink(source, folder / "releases" / source.name)
    (folder / "traffic.json").write_text(json.dumps({"champion": f"releases/{source.name}"}))
    bundle, _ = open_release(source)

    def other(version: int, problem=bundle.problem, **changes) -> Path:
        "A signed release."
        model = second.model_copy(update={"version": version, **changes})
        made = bundle.model_copy(update={"model": model, "problem": problem})
        return build_bundle(tmp_path / "releases", made, source / "model.skops")

    unlike = other(89, bundle.problem.model_copy(update={"target": "another"}))
    wrong = other(90, sha256="0" * 64)  # It is intact, and cannot be loaded
    plain = bundle_module.service_requirements
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "service_requirements", lambda path: plain(path) + "shap==1\n")
        foreign = other(91)
    altered = next(releases.glob(f"{name}-{second.version}-*[!z]"))
    with folder_service(folder) as (url, service), Load(url, rows) as load:
        load.wait_for(first)
        assert "serves" in deployments(project, "add", "shop", "--url", url, "--folder", folder).stdout
        refuse_other_folders(project, url, tmp_path)
        another = url.replace("127.0.0.1", "localhost")  # A second address of the service, and a folder that it does not read
        deployments(project, "add", "twin", "--url", another, "--folder", tmp_path / "twin")
        for release, named in ((foreign, "other packages"), (unlike, "predicts 'another'"), (tmp_path / "none", "none")):
            before = (folder / "traffic.json").read_bytes()
            assert named in deployments(project, "update", "shop", release, code=2).stderr
            assert (folder / "traffic.json").read_bytes() == before
        done = deployments(project, "update", "shop", wrong, "--timeout", "20", code=1)
        assert "cannot serve it" in done.stderr
        assert last_change(run.workspace)[0] == "failed"
        done = deployments(project, "update", "shop", f"{name}@{second.version}", "--reason", "test")
        assert f"shop serves {name}@{second.version}. Previous: {name}@{first}." in done.stdout
        load.wait_for(second.version)
        assert listed(project)["shop"] | {"kind": "container", "state": "serving"} == listed(project)["shop"]
        deployments(project, "canary", "shop", f"{name}@{first}", "--share", "0.25")
        assert listed(project)["shop"]["canary_share"] == 0.25
        before = (tmp_path / "twin" / "traffic.json").read_bytes()
        done = deployments(project, "update", "twin", f"{name}@{second.version}", code=2)
        assert f"names {source.name}" in done.stderr
        assert (tmp_path / "twin" / "traffic.json").read_bytes() == before
        assert [path.name for path in (tmp_path / "twin" / "releases").iterdir()] == [source.name]
        deployments(project, "remove", "twin")
        done = deployments(project, "rollback", "shop")
        assert f"serves {name}@{second.version}. Previous: {name}@{second.version}, canary" in done.stdout
        before = load.versions[first]
        deployments(project, "rollback", "shop")
        wait_until(lambda: load.versions[first] > before)
        facts = listed(project)["shop"]
        assert (facts["version"], facts["canary"]) == (first, "")
        (folder / "traffic.json").write_text(json.dumps({"champion": f"releases/{altered.name.removesuffix('.tar.gz')}"}))
        wait_until(lambda: listed(project)["shop"]["state"] == "other version than recorded")
    assert not load.failed
    assert listed(project)["shop"]["state"] == "not reachable"
    assert "is not reachable" in deployments(project, "update", "shop", f"{name}@{second.version}", code=1).stderr
    deployments(project, "remove", "shop")
    assert "There is no deployment 'shop'" in deployments(project, "rollback", "shop", code=2).stderr


def refuse_other_folders(project: Path, url: str, place: Path) -> None:
    "What is no deployment folder of this service is not recorded, and nothing is written into it."
    (place / "system").mkdir()
    (place / "system" / "passwd").touch()
    (place / "other").mkdir()
    (place / "other" / "traffic.json").write_text('{"champion": "releases/late-7-00"}')
    for folder, named in (
        ("system", "is no deployment folder"),
        ("other", "names late-7-00"),
        ("no/folder", "There is no folder"),
    ):
        assert named in deployments(project, "add", "shop", "--url", url, "--folder", place / folder, code=2).stderr
    assert [path.name for path in (place / "system").iterdir()] == ["passwd"]
    assert "'shop' has the URL" in deployments(project, "add", "bad", "--url", url, code=2).stderr


def test_a_killed_service_is_stopped_and_replaced_by_the_next_one(served):
    run, _, rows = served
    project, pinned = run.workspace.project, f"{run.release.model.name}@{run.release.model.version}"
    with Serving(project, pinned) as serving:
        serving.process.kill()
        serving.process.wait()
    assert listed(project)[pinned]["state"] == "stopped"
    assert "is not reachable" in deployments(project, "update", pinned, pinned, code=1).stderr
    with Serving(project, pinned):
        assert [each.name for each in read_deployments(run.workspace)] == [pinned]
        assert listed(project)[pinned]["state"] == "serving"
    deployments(project, "remove", pinned)


def test_a_service_that_fails_at_its_start_is_no_deployment(served):
    run, _, _ = served
    project, pinned = run.workspace.project, f"{run.release.model.name}@{run.release.model.version}"
    done = cli("serve", pinned, "--port", "0", "--api-keys", "missing.json", cwd=project)
    assert done.returncode != 0
    assert "missing.json" in done.stderr
    assert pinned in (run.workspace.root / DEPLOYMENTS_FILE).read_text(), "it was recorded before it failed"
    assert pinned not in listed(project)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["update", "nowhere", "last"], "There is no deployment 'nowhere'"),
        (["add", "x", "--url", "http://127.0.0.1:9"], "is not reachable"),
        (["add", "x", "--url", "127.0.0.1:9411"], "Expected is a URL such as http://"),
        (["canary", "nowhere", "--end", "--promote"], "One of them"),
    ],
)
def test_what_cannot_be_changed_is_a_clear_error(served, words, named):
    run, _, _ = served
    done = cli("deployments", *words, cwd=run.workspace.project)
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


FOREIGN = {
    "other JSON": (200, '{"name": "nginx"}'),
    "a list": (200, "[1]"),
    "no version": (200, '{"release": {"name": "x"}, "traffic": {"champion": null}}'),
    "a text in place of a plan": (200, '{"release": {"name": "x"}, "model": {"name": "x", "version": 1}, "traffic": "x"}'),
    "an empty release": (200, '{"release": {"name": ""}, "model": {}, "traffic": {}}'),
    "no such page": (404, "{}"),
    "a text": (200, "hello"),
    "an empty body": (200, ""),
    "no response": (0, ""),
}


@contextmanager
def foreign_server(status: int, body: str):
    "Something else than a service of mlcycle; its address."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            if status:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "body"), FOREIGN.values(), ids=FOREIGN.keys())
def test_another_server_is_not_taken_for_a_service(status, body, tmp_path):
    workspace = Workspace(tmp_path)
    plan = TrafficPlan(champion="releases/late-1-00")
    with foreign_server(status, body) as url:
        with pytest.raises(NotReachableError, match="not reachable" if not status else "does not respond as a service"):
            add_deployment(workspace, "x", url)
        assert not read_deployments(workspace)
        record = Deployment(name="x", kind="endpoint", url=url, since="")
        status_now = deployment_status(workspace, record)
        assert status_now.state == "not reachable"
        assert status_now.problem
        with pytest.raises(NotReachableError):
            PlanWait(record, plan, 0.1).note_problem()
        with pytest.raises(StageError, match="does not serve it after"):
            PlanWait(record, plan, 0.1).wait()


def test_a_foreign_server_is_one_line_on_the_command_line(served):
    run, _, _ = served
    project = run.workspace.project
    with foreign_server(*FOREIGN["other JSON"]) as url:
        assert "does not respond as a service of mlcycle" in deployments(project, "add", "x", "--url", url, code=1).stderr
    assert "x" not in listed(project)

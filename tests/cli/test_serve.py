"""`mlcycle serve` and `mlcycle models traffic` with a real registry: names, errors, an alias that moves under a service."""

import os
import socket
import time
from pathlib import Path

import pytest
from commands import cli
from load import wait_until
from served_models import Serving

from mlcycle.lifecycle.serving import traffic_file
from mlcycle.stores.models.registry import set_alias


def test_a_served_alias_follows_promotion_and_rollback(served):
    run, second, rows = served
    with Serving(run.workspace.project, run.release.model.name) as serving:
        assert serving.version(rows) == run.release.model.version
        set_alias(second)
        wait_until(lambda: serving.version(rows) == second.version)
        set_alias(run.release.model)
        wait_until(lambda: serving.version(rows) == run.release.model.version)
    assert serving.code == 0


def test_canary_and_shadow_of_a_running_service_change_by_one_command(served):
    run, second, rows = served
    name, project = run.release.model.name, run.workspace.project
    with Serving(project, f"{name}:{run.release.model.version}", "--workers", "1") as serving:
        children = Path(f"/proc/{serving.process.pid}/task/{serving.process.pid}/children").read_text().split()
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
        assert [b"event_writer_process" in command for command in commands] == [True]  # It predicts itself, without workers
        done = cli("models", "traffic", name, "--canary", str(second.version), "--canary-share", "1", cwd=project)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: serving.version(rows) == second.version)
        done = cli("models", "traffic", name, "--canary", "", "--shadow", str(second.version), cwd=project)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: serving.version(rows) == run.release.model.version)
        assert serving.client.get("/model").json()["traffic"]["shadow"]["version"] == second.version
    assert serving.code == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nothing"], "nothing"),
        (["{name}@winner"], "winner"),
        (["{name}@99"], "99"),
        (["{name}:3"], "not released"),
        (["{name}", "--canary", "3"], "not released"),
        (["{run}", "--canary", "2"], "not a registered model"),
    ],
)
def test_what_cannot_be_served_is_a_clear_error(served, words, named):
    run, _, _ = served
    words = [word.format(name=run.release.model.name, run=run.id) for word in words]
    done = cli("serve", *words, "--port", "0", cwd=run.workspace.project)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_release_folder_is_served(served):
    run, _, rows = served
    with Serving(run.workspace.project, os.fspath(run.workspace.root / run.release.bundle)) as serving:
        assert serving.version(rows) == run.release.model.version
    assert serving.code == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_ends_when_the_process_that_follows_its_alias_is_killed(served, workers):
    run, _, rows = served
    with Serving(run.workspace.project, run.release.model.name, "--workers", workers) as serving:
        serving.version(rows)
        parent = serving.process.pid
        (service,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        serving.process.kill()
        wait_until(lambda: not Path(f"/proc/{service}").exists())
        assert not serving.is_ready()


def test_a_start_that_names_no_canary_or_fails_leaves_the_traffic_alone(served):
    run, second, _ = served
    project, pinned = run.workspace.project, f"{run.release.model.name}:{run.release.model.version}"
    plan, canary = traffic_file(run.workspace, pinned), str(second.version)
    with Serving(project, pinned, "--canary", canary, "--canary-share", "0.2"):
        before = plan.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words in ([], ["--canary", ""], ["--shadow", canary]):
            done = cli("serve", pinned, "--port", port, *words, cwd=project)
            assert done.returncode == 2
            assert "cannot be used" in done.stderr
    assert cli("serve", pinned, "--port", "99999", cwd=project).returncode == 2
    assert plan.read_bytes() == before
    with Serving(project, pinned) as serving:
        assert serving.client.get("/model").json()["traffic"]["canary"]["version"] == second.version
    assert plan.read_bytes() == before
    with Serving(project, pinned, "--canary", "") as serving:
        assert "canary" not in serving.client.get("/model").json()["traffic"]


def test_a_version_that_is_named_stays_whatever_other_services_serve(served):
    run, second, rows = served
    name, project, first = run.release.model.name, run.workspace.project, run.release.model.version
    with Serving(project, f"{name}@{first}") as one, Serving(project, f"{name}@{second.version}") as two:
        wait_until(lambda: two.version(rows) == second.version)
        time.sleep(2.5)  # Longer than a service takes to notice a changed plan
        assert (one.version(rows), two.version(rows)) == (first, second.version)

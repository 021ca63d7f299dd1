"""Runs of two machines on shared stores: tables and models in an object store, registry, log and labels in PostgreSQL."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from commands import cli
from conftest import WORDS, cancer, wine
from object_stores import bucket, s3_client, s3_url, store_environment, stored_objects  # noqa: F401 - fixtures

import mlcycle as mc
from mlcycle.errors import ArtifactError, RegistryError
from mlcycle.modelling.studies import publish_study
from mlcycle.service.local import running_service
from mlcycle.stores.models import registry
from mlcycle.stores.models.registry import DOWNLOADS, load_registered_model, open_experiment
from mlcycle.stores.tables.datasets import read_table

MOVER = """
import sys, time
from pathlib import Path
from mlcycle.core.workspace import Workspace
from mlcycle.outcomes import ModelRef
from mlcycle.stores.models import champion_moves
space, ref = Workspace.from_project(Path(sys.argv[1])), ModelRef(name=sys.argv[2], version=int(sys.argv[3]), run_id="", sha256="")
set_alias = champion_moves.set_alias
champion_moves.set_alias = lambda *words, **facts: (time.sleep(2), set_alias(*words, **facts))
import mlflow, sqlalchemy
print("ready", flush=True)
sys.stdin.readline()
print("moved", champion_moves.move_champion_once(space, ref, 1, sys.argv[3], "a better score"), flush=True)
"""
SETTINGS = """[stores]
tables = s3://$SHARED_BUCKET/project
artifacts = s3://$SHARED_BUCKET/models
tracking_uri = $SHARED_DATABASE
events_url = $SHARED_DATABASE
labels_url = $SHARED_DATABASE
studies_url = $SHARED_STUDIES
"""


@pytest.fixture
def machine(bucket, postgresql, tmp_path, monkeypatch):  # noqa: F811
    "A function that makes a project folder, as on a machine of its own, and one that runs commands in it."
    monkeypatch.setenv("SHARED_BUCKET", bucket)
    monkeypatch.setenv("SHARED_DATABASE", postgresql.render_as_string(hide_password=False))
    database = f"studies_{bucket[-8:]}"
    with sa.create_engine(postgresql, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {database}"))
    monkeypatch.setenv("SHARED_STUDIES", postgresql.set(database=database).render_as_string(hide_password=False))

    def make(name: str):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.ini").write_text(SETTINGS)
        return folder

    def command(*words: str, cwd):
        shared = {name: os.environ[name] for name in ("SHARED_BUCKET", "SHARED_DATABASE", "SHARED_STUDIES")}
        done = cli(*words, cwd=cwd, **store_environment(), **shared)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return make, command


def moved_at_once(run: mc.Run, folders: list[Path]) -> list[str]:
    "What machines print that, at the same time, make each a version of its own champion in place of version 1."
    name, client = run.candidate.model.name, open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, "moves")
    versions = [client.create_model_version(name, f"s3://nothing/{folder.name}").version for folder in folders]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [
        [sys.executable, "-c", MOVER, str(folder), name, str(version)] for folder, version in zip(folders, versions, strict=True)
    ]
    movers = [subprocess.Popen(command, **pipes) for command in commands]
    for mover in movers:
        assert mover.stdout.readline() == "ready\n"
    for mover in movers:
        mover.stdin.write("\n")
        mover.stdin.flush()
    return [mover.communicate(timeout=120)[0] for mover in movers]


def test_two_machines_share_all_stores(machine, bucket):  # noqa: F811
    make, command = machine
    one, two = make("one"), make("two")
    for folder in (one, two):
        cancer().to_csv(folder / "cancer.csv", index=False)
    words = ["run", "-q", "--source", "cancer.csv", "--target", "target", *WORDS]
    command(*words, cwd=one)
    first = mc.open("last", one)
    names = stored_objects(bucket)
    assert {name.split("/")[0] for name in names} == {"project", "models"}
    assert any(name.startswith("models/models/m-") and name.endswith("/model.skops") for name in names)
    assert not any((one / ".mlcycle" / name).exists() for name in ("tables", "holdout", "artifacts", "mlflow.db"))

    command(*words, cwd=two)
    second = mc.open("last", two)
    assert second.dataset.tables == first.dataset.tables, "the same rows are stored once"
    assert second.candidate.model == first.candidate.model, "the same model is registered once"
    assert second.verdict.holdout_accesses == 2, "the access on the other machine counts"
    assert "Nothing to do" in command(*words, cwd=one)

    (study,) = optuna.get_all_study_summaries(second.workspace.studies_url)
    assert study.n_trials == 2, "both machines have searched the same, so it is one study"
    assert study.study_name.startswith(f"cancer-target/{second.candidate.study.split('/')[1]}/")
    with pytest.warns(UserWarning, match="database of its own"):
        assert not publish_study(one / ".mlcycle" / first.candidate.study, "roc_auc", first.workspace.tracking_uri, "x")

    rows = read_table(second.workspace.tables, second.dataset.tables["train"]).head(20)
    for run in (first, second):
        DOWNLOADS.clear()
        assert len(run.predict(rows)) == 20, "the model comes from the object store"
    with running_service(two / ".mlcycle" / second.release.bundle, second.workspace.events_url, second.id) as service:
        service.predict(rows[second.plan.input_columns].head(3), ["a", "b", "c"])
    for word in ("1 model versions", "tables", "3 predictions"):
        assert word in command("doctor", cwd=one)
    three = make("three")
    cancer().to_csv(three / "cancer.csv", index=False)
    for folder in (one, three):
        (folder / "settings.ini").write_text(SETTINGS + "shared_workspace = s3://$SHARED_BUCKET/runs\n")
    command("runs", cwd=one)
    command(*words, "-p", "n_resamples=40", "--until", "validation", cwd=three)
    continued = mc.open("last", three)
    reused = [facts.get("reused", "") for facts in continued.info["stages"].values()]
    assert reused[:4] == [first.id] * 4 and not any(reused[4:]), "the third machine continues where the first one has ended"
    assert (three / "contract.yaml").read_text() == (one / "contract.yaml").read_text()
    assert (three / "reports" / first.id / "07_monitoring.html").is_file()
    assert continued.id in command("runs", "--project", one, cwd=two), "the option names the project that receives runs"
    assert "2 runs" in (facts := command("doctor", cwd=one)) and f"s3://{bucket}/runs" in facts
    assert sorted(moved_at_once(first, [one, two])) == ["moved False\n", "moved True\n"], "the second one sees the first move"
    for folder in (one, two, three):
        assert not any(b"very-secret-key" in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_model_in_an_object_store_is_verified_and_deleted(machine, bucket):  # noqa: F811
    make, command = machine
    folder = make("one")
    wine().to_csv(folder / "wine.csv", index=False)
    command("run", "-q", "--source", "wine.csv", "--target", "target", *WORDS, "--until", "modelling", cwd=folder)
    run = mc.open("last", folder)
    (name,) = [name for name in stored_objects(bucket) if name.endswith("/model.skops")]
    body = s3_client().get_object(Bucket=bucket, Key=name)["Body"].read()
    s3_client().put_object(Bucket=bucket, Key=name, Body=body[:-10] + bytes(10))
    DOWNLOADS.clear()
    open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
    with pytest.raises(ArtifactError, match="altered"):
        load_registered_model(run.candidate.model, run.workspace)
    command("models", "delete", f"{run.candidate.model.name}@1", "--yes", "--force", cwd=folder)
    assert not [name for name in stored_objects(bucket) if name.startswith("models/models/")]


def test_artifacts_in_an_object_store_need_boto3(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(RegistryError, match=r"mlcycle-notebooks\[s3\]"):
        registry.connect_registry("sqlite:///none.db", "s3://bucket/models")

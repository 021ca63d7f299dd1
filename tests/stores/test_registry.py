"""The registry: versions, aliases, commands, files of other versions, and what happens when it does not answer."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import TABLES, WORDS
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.preprocessing import FunctionTransformer
from typer.testing import CliRunner

import mlcycle as mc
from mlcycle.cli.app import app
from mlcycle.cli.base import console
from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.versions import installed_versions
from mlcycle.core.workspace import Workspace
from mlcycle.errors import ArtifactError, DiskFullError, ParameterError, RegistryError
from mlcycle.nb.fingerprints import stage_fingerprint
from mlcycle.outcomes import Candidate, LeaderboardEntry, ModelRef, Score
from mlcycle.stores.models.audit_log import verify_audit_log
from mlcycle.stores.models.library_versions import add_versions_to_skops, read_versions
from mlcycle.stores.models.model_files import load_model, model_to_skops_bytes
from mlcycle.stores.models.offline_queue import queued_models, register_candidate, register_queued_model
from mlcycle.stores.models.registration import lineage_tags, register_model
from mlcycle.stores.models.registry import (
    alias_history,
    get_alias_version,
    load_registered_model,
    open_experiment,
    registered_model_file,
    set_alias,
)
from mlcycle.stores.models.registry_queries import (
    delete_version,
    describe_version,
    diff_versions,
    find_usages,
    list_versions,
    open_registry_read_only,
    tag_version,
)
from mlcycle.stores.models.trial_tracking import TrialRecord

ROWS = pd.DataFrame({"size": np.arange(60.0), "day": pd.Timestamp("2024-01-01"), "count": np.arange(60)})
NAME = "orders-late"


def fitted(cut: int) -> HistGradientBoostingClassifier:
    "A model that differs with `cut`."
    return HistGradientBoostingClassifier(max_iter=3, random_state=0).fit(ROWS[["size", "count"]], ROWS["size"] > cut)


def board(value: float, **parameters) -> list[LeaderboardEntry]:
    "A leaderboard of two."
    score = Score(metric="roc_auc", value=value, low=value - 0.1, high=value + 0.1)
    winner = LeaderboardEntry(model="boosting 1", score=score, fold_scores=[value] * 3, fit_seconds=0.1, parameters=parameters)
    return [winner, winner.model_copy(update={"model": "dummy", "parameters": {}})]


def tried(*names: str) -> list[TrialRecord]:
    "Trials: the first is complete, the second was pruned, the third raised."
    how = [("complete", "", [0.2, 0.3]), ("pruned", "worse than the median", [0.1]), ("failed", "ValueError: no", [None])]
    return [
        TrialRecord(
            name=name,
            model_type=name.split()[0],
            role="search",
            metric="roc_auc",
            fold_scores=folds,
            status=status,
            reason=reason,
        )
        for name, (status, reason, folds) in zip(names, how, strict=False)
    ]


def put(workspace: Workspace, cut: int, trials: list[TrialRecord] = (), **tags: str) -> ModelRef:
    "Register a model."
    model, rows = fitted(cut), ROWS[["size", "count"]]
    open_experiment(workspace.tracking_uri, workspace.artifacts, NAME)
    outputs = pd.Series(model.predict(rows), name="prediction")
    tags = {"run": "one", "table_train": f"{cut} abc", "settings": '{"folds": 3}'} | tags
    return register_model(NAME, model, rows.head(3), outputs.head(3), board(cut / 100, depth=cut), tags, trials=trials)


def typed(*words: str, cwd: Path, **environment: str):
    "Run `mlcycle models …` in this process: importing MLflow anew for each would take longer than all else."
    given, variables = ["models", *words, "--project", str(cwd)], {"COLUMNS": "200", **environment}
    with patch.object(console, "_width", int(variables["COLUMNS"])):  # It was set when the first test imported the console
        return CliRunner().invoke(app, given, env=variables, input="n\n")


def space(folder: Path, tracking_uri: str = "") -> Workspace:
    "An empty workspace."
    (folder / "settings.ini").write_text(f"[stores]\ntracking_uri = {tracking_uri}\n")
    made = Workspace(folder, STORE_DEFAULTS | {"tracking_uri": tracking_uri})
    made.root.mkdir(exist_ok=True)
    return made


@pytest.fixture(scope="module")
def server(postgresql, tmp_path_factory):
    "The address of a real `mlflow server` on PostgreSQL."
    with _serving(postgresql.render_as_string(hide_password=False), tmp_path_factory.mktemp("server")) as address:
        yield address


class _serving:
    "A server process of its own, ended by its id."

    def __init__(self, database: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.log = folder / "server.txt"
        self.command = [str(Path(sys.executable).parent / "mlflow"), "server", "--backend-store-uri", database, "--workers", "1"]
        self.command += ["--artifacts-destination", str(folder / "files"), "--serve-artifacts", "--port", self.port]

    def __enter__(self) -> str:
        address, until = f"http://127.0.0.1:{self.port}", time.monotonic() + 240
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                return address
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.__exit__()
                    raise RuntimeError(self.log.read_text()[-3000:]) from None
                time.sleep(0.5)

    def __exit__(self, *_):
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)  # The group that this test began, its workers included
                self.process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@pytest.mark.parametrize("where", ["sqlite", "server"])
def test_a_version_goes_through_its_whole_life(where, tmp_path, request):
    workspace = space(tmp_path, request.getfixturevalue("server") if where == "server" else "")
    assert where == "server" or list_versions(workspace).empty
    first = put(workspace, 20)
    assert put(workspace, 20) == first, "equal models are one version"
    set_alias(first, reason="All gates passed.")
    second, third = put(workspace, 30), put(workspace, 40, note="a trial")
    assert [second.version, third.version] == [2, 3]

    listed = list_versions(workspace, NAME)
    assert listed.version.tolist() == [3, 2, 1]
    assert listed.aliases.tolist() == [["challenger"], [], ["champion"]]
    assert listed.score.tolist() == [0.4, 0.3, 0.2]
    assert (listed.bytes > 1000).all()
    moves = [(move["alias"], move["previous_version"], move["version"]) for move in alias_history(NAME)]
    assert moves == [("challenger", None, 1), ("champion", None, 1), ("challenger", 1, None)] + [
        ("challenger", None, 2),
        ("challenger", 2, 3),
    ]
    assert all(move["user"] and move["time"] for move in alias_history(NAME))

    told = describe_version(workspace, f"{NAME}@champion")
    assert told["signature"] == {"inputs": {"size": "double", "count": "long"}, "outputs": {"prediction": "boolean"}}
    assert told["lineage"]["tables"] == {"train": "20 abc"}
    assert told["versions"] == read_versions(registered_model_file(NAME, 1)) == installed_versions()
    assert told["alias_history"][-2]["reason"] == "All gates passed."
    found = diff_versions(workspace, f"{NAME}@1", NAME)
    assert {("parameters", "depth"), ("score", "roc_auc"), ("data", "train"), ("tag", "note")} <= set(
        zip(found.group, found.name, strict=True)
    )
    assert diff_versions(workspace, f"{NAME}@2", f"{NAME}@2").empty

    rows = ROWS[["size", "count"]]
    assert (load_registered_model(second).predict(rows) == fitted(30).predict(rows)).all()
    tag_version(workspace, f"{NAME}@2", {"owner": "Ann"})
    assert describe_version(workspace, f"{NAME}@2")["tags"] == {"owner": "Ann"}
    tag_version(workspace, f"{NAME}@2", {}, ("owner",))
    with pytest.raises(ArtifactError, match="champion"):
        delete_version(workspace, f"{NAME}@champion", force=True)
    assert delete_version(workspace, f"{NAME}@2") == f"{NAME}@2"
    assert list_versions(workspace, NAME).version.tolist() == [3, 1]
    if where == "sqlite":
        assert len(list((workspace.root / "artifacts" / "models").iterdir())) == 2, "its files are gone too"
    assert delete_version(workspace, f"{NAME}@challenger") == f"{NAME}@3", "the newest version may go, and its alias with it"
    assert list_versions(workspace, NAME).aliases.tolist() == [["champion"]]
    last = alias_history(NAME)[-1]
    assert (last["alias"], last["previous_version"], last["version"], last["reason"]) == (
        "challenger",
        3,
        None,
        "Its version was deleted.",
    )
    assert put(workspace, 50).version > 3, "no number is given twice"


def test_mlflow_reads_what_was_registered(tmp_path):
    import mlflow

    workspace = space(tmp_path)
    trials = tried("boosting 1", "forest 2", "own 3")
    ref = put(workspace, 20, trials, study="abc", code="def")
    rows = ROWS[["size", "count"]]
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert (model.predict(rows) == fitted(20).predict(rows)).all()
    assert model.input_example.shape == (3, 2) if hasattr(model, "input_example") else True
    runs = mlflow.search_runs(search_all_experiments=True)
    parent = runs[runs.run_id == ref.run_id].iloc[0]
    assert (parent["metrics.roc_auc"], parent["metrics.roc_auc_low"], parent["params.depth"]) == (0.2, 0.1, "20")
    lines = runs[runs["tags.mlflow.parentRunId"] == ref.run_id].set_index("tags.mlflow.runName")
    assert lines.status.to_dict() == {"boosting 1": "FINISHED", "forest 2": "KILLED", "own 3": "FAILED"}
    assert lines.loc["own 3", "tags.reason"] == "ValueError: no"
    assert set(lines["tags.table_train"]) == {"20 abc"}, "each says which rows it saw"
    assert set(lines["tags.code"]) == {"def"}
    assert lines.loc["boosting 1", "metrics.roc_auc"] == pytest.approx(0.25)
    folds = mlflow.MlflowClient().get_metric_history(lines.loc["boosting 1", "run_id"], "fold_roc_auc")
    assert [(each.step, each.value) for each in folds] == [(0, 0.2), (1, 0.3)]
    more = [*trials, tried("linear 4")[0]]
    assert put(workspace, 20, more, study="abc", code="def") == ref, "the same model, but one more trial"
    put(workspace, 30, more, study="abc", code="def")
    names = [run.info.run_name for run in mlflow.search_runs(filter_string="tags.study = 'abc'", output_format="list")]
    assert sorted(name for name in names if name != "one") == ["boosting 1", "forest 2", "linear 4", "own 3"]


def test_the_commands(tmp_path):
    workspace = space(tmp_path)
    for cut in (20, 30, 40):
        ref = put(workspace, cut)
    set_alias(ref)
    listed = typed("list", cwd=tmp_path, COLUMNS="80").stdout
    assert f"{NAME}@3" in listed
    assert "champion" in listed
    assert "roc_auc 0.4000" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert [line["version"] for line in json.loads(typed("list", NAME, "--json", cwd=tmp_path).stdout)] == [3, 2, 1]
    shown = typed("show", f"{NAME}@champion", cwd=tmp_path).stdout
    for word in ("roc_auc 0.40 [0.30, 0.50]", "depth: 40", "scikit-learn", "size (double)", "table train: version 40"):
        assert word in shown
    assert json.loads(typed("show", NAME, "--json", cwd=tmp_path).stdout)["version"] == 3
    differing = typed("diff", f"{NAME}@1", f"{NAME}@2", cwd=tmp_path).stdout
    assert "depth" in differing
    assert "library" not in differing
    assert typed("tag", f"{NAME}@1", "owner=Ann", "why=a trial", cwd=tmp_path).exit_code == 0
    assert describe_version(workspace, f"{NAME}@1")["tags"] == {"owner": "Ann", "why": "a trial"}
    assert typed("tag", f"{NAME}@1", "--remove", "why", cwd=tmp_path).exit_code == 0
    refused = typed("delete", f"{NAME}@champion", "--yes", "--force", cwd=tmp_path)
    assert (refused.exit_code, "is champion" in refused.stderr) == (1, True)
    asked = typed("delete", f"{NAME}@2", cwd=tmp_path)
    assert (asked.exit_code, f"Delete {NAME}@2? " in asked.stdout) == (1, True), "nobody said yes"
    assert typed("delete", f"{NAME}@1", "--yes", cwd=tmp_path).exit_code == 0
    assert list_versions(workspace).version.tolist() == [3, 2]
    ref = put(workspace, 50)
    assert "the challenger?" in typed("delete", f"{NAME}@{ref.version}", cwd=tmp_path).stdout
    assert typed("delete", f"{NAME}@challenger", "--yes", cwd=tmp_path).exit_code == 0
    assert list_versions(workspace).aliases.tolist() == [["champion"], []]
    for words, meant in (
        (("show", "order-late"), NAME),
        (("show", f"{NAME}@9"), "champion"),
        (("show", f"{NAME}@champoin"), "champion"),
        (("tag", f"{NAME}@2", "sha256=0"), "cannot be changed"),
        (("tag", f"{NAME}@2", "--remove", "none"), "no tag"),
        (("diff", NAME, f"{NAME}@1"), "no version '1'"),
    ):
        wrong = typed(*words, cwd=tmp_path)
        assert wrong.exit_code == 2, words
        assert meant in wrong.stderr, wrong.stderr
        assert "Traceback" not in wrong.stderr


def test_a_look_at_nothing_leaves_nothing(tmp_path):
    looked = typed("list", cwd=tmp_path)
    assert (looked.exit_code, "There are no models yet." in looked.stdout) == (0, True)
    assert not (tmp_path / ".mlcycle").exists()
    assert typed("show", "any", cwd=tmp_path).exit_code == 2


def test_what_runs_and_bundles_name_is_not_deleted(table_run):
    run = table_run("wine")
    model = run.candidate.model
    with open_registry_read_only(run.workspace):
        assert get_alias_version(model.name) == model.version
    uses = find_usages(run.workspace, model.name, model.version)
    assert uses[0] == f"The run {run.id} released it."
    assert any(use.startswith("The bundle releases/") for use in uses)
    told = describe_version(run.workspace, f"{model.name}@champion")
    assert told["file"]["sha256"] == model.sha256
    assert told["lineage"]["run"] == run.id
    assert told["lineage"]["tables"]["train"].split()[1] == run.dataset.tables["train"].sha256[:12]
    with pytest.raises(ArtifactError, match="champion"):
        delete_version(run.workspace, f"{model.name}@champion", force=True)
    code = stage_fingerprint(run.workspace)
    tags = lineage_tags(run.problem, run.dataset, run.id, code_tags=code, folds=3, seed=7)
    assert (tags["notebook"], tags["seed"], json.loads(tags["settings"])) == ("04_modelling.ipynb", "7", {"folds": 3, "seed": 7})


def test_a_bundle_protects_a_version_until_somebody_insists(tmp_path):
    workspace = space(tmp_path)
    put(workspace, 20), put(workspace, 30)
    bundle = workspace.root / "releases" / "one" / "bundle.json"
    bundle.parent.mkdir(parents=True)
    bundle.write_text(json.dumps({"model": {"name": NAME, "version": 1}}))
    with pytest.raises(ArtifactError, match="releases/one"):
        delete_version(workspace, f"{NAME}@1")
    delete_version(workspace, f"{NAME}@1", force=True)
    with pytest.raises(ParameterError, match="does not name a version"):
        delete_version(workspace, NAME)


# Files from elsewhere and from other times


def test_a_crafted_artefact_cannot_approve_itself(tmp_path):
    import yaml

    workspace = space(tmp_path)
    ref = put(workspace, 20)
    file = registered_model_file(NAME, 1)
    crafted = model_to_skops_bytes(FunctionTransformer(os.mkdir, kw_args={"path": str(tmp_path / "ran")}))
    file.write_bytes(crafted)
    described = yaml.safe_load((file.parent / "MLmodel").read_text())
    described["flavors"]["sklearn"]["skops_trusted_types"] = ["posix.mkdir", "builtins.mkdir", "os.mkdir"]
    (file.parent / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(ArtifactError, match="altered"):
        load_registered_model(ref)
    with pytest.raises(ArtifactError, match="not trusted"):
        load_registered_model(ref.model_copy(update={"sha256": ""}))
    assert not (tmp_path / "ran").exists()


def test_another_major_or_minor_version_is_named_once(tmp_path):
    model, now = fitted(20), installed_versions()
    path = tmp_path / "model.skops"
    path.write_bytes(add_versions_to_skops(model_to_skops_bytes(model), now | {"scikit-learn": "1.2.3"}))
    with pytest.warns(UserWarning, match=rf"scikit-learn 1\.2\.3 -> {now['scikit-learn']}") as heard:
        again = load_model(path)
    assert len(heard) == 1
    assert (again.predict(ROWS[["size", "count"]]) == model.predict(ROWS[["size", "count"]])).all()
    for silent in (now, now | {"pandas": "1.0", "numpy": ".".join([*now["numpy"].split(".")[:2], "99"])}):
        path.write_bytes(add_versions_to_skops(model_to_skops_bytes(model), silent))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_model(path)


def test_a_file_that_does_not_load_says_which_versions_differ(tmp_path, monkeypatch):
    from mlcycle.stores.models.skops_copy import skops_copy

    path = tmp_path / "model.skops"
    path.write_bytes(
        add_versions_to_skops(
            model_to_skops_bytes(fitted(20)), installed_versions() | {"numpy": "1.26.0", "scikit-learn": "1.2.3"}
        )
    )

    def broken(*_, **__):
        raise TypeError("__init__() got an unexpected keyword argument")

    monkeypatch.setattr(skops_copy(), "load", broken)
    with pytest.raises(ArtifactError, match=r"numpy 1\.26\.0 -> \S+, scikit-learn 1\.2\.3 -> \S+"):
        load_model(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_model(path)


def test_a_stamp_names_the_booster_and_changes_no_answer(tmp_path):
    from lightgbm import LGBMClassifier

    rows = ROWS[["size", "count"]]
    model = LGBMClassifier(n_estimators=2, verbose=-1, n_jobs=1).fit(rows, rows["size"] > 20)
    data = add_versions_to_skops(model_to_skops_bytes(model))
    (tmp_path / "model.skops").write_bytes(data)
    assert "lightgbm" in read_versions(tmp_path / "model.skops")
    assert data == add_versions_to_skops(model_to_skops_bytes(model))


# A registry that does not answer


def candidate(value: float = 0.7) -> Candidate:
    "What the search found, not registered yet."
    return Candidate(
        decision="The booster won.",
        model=ModelRef(name=NAME, version=0, run_id="", sha256=""),
        winner="boosting 1",
        leaderboard=board(value, depth=3),
        n_trials=1,
        search_rows=60,
        train_rows=60,
    )


def again(workspace: Workspace) -> Candidate:
    "What the next run does: the same model once more."
    rows = ROWS[["size", "count"]].assign(day=ROWS.day).head(3)
    outputs, trials = pd.Series([False] * 3), tried("boosting 1")
    return register_candidate(
        workspace, candidate(), fitted(20), example=rows, outputs=outputs, tags={"run": "one"}, trials=trials
    )


def lose(workspace: Workspace) -> RegistryError:
    "The error of a registration that fails."
    with pytest.raises(RegistryError) as raised:
        again(workspace)
    assert "Nothing is lost" in raised.value.expected
    return raised.value


class _Ill(BaseHTTPRequestHandler):
    "A server that is ill in a way that its class says."

    status, sleep = 500, 0.0

    def do_GET(self):
        time.sleep(self.sleep)
        self.send_response(self.status)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        "Say nothing."


@pytest.fixture
def ill():
    "Start servers that are ill."
    started = []

    def start(**how) -> str:
        one = HTTPServer(("127.0.0.1", 0), type("Ill", (_Ill,), how))
        started.append(one)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{one.server_port}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def test_a_server_that_is_down_loses_nothing(tmp_path, ill, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    away, there = space(tmp_path, "http://127.0.0.1:9"), space(tmp_path)
    assert "Connection refused" in lose(away).found
    assert "took too long" in lose(space(tmp_path, ill(sleep=3.0))).found
    assert "500" in lose(space(tmp_path, ill(status=500))).found
    (kept,) = queued_models(there)
    assert kept.candidate == candidate()
    assert [trial.name for trial in kept.trials] == ["boosting 1"]
    listed = typed("list", cwd=tmp_path)
    assert "Not registered yet" not in listed.stdout or listed.exit_code == 0
    done = again(there)
    assert (done.model.version, done.decision) == (1, f"The booster won; registered as {NAME} version 1.")
    assert queued_models(there) == [], "it has a version now"
    rows = ROWS[["size", "count"]]
    assert (load_registered_model(done.model).predict(rows) == fitted(20).predict(rows)).all()


def test_a_kept_model_can_be_registered_by_hand(tmp_path):
    lose(space(tmp_path, "http://127.0.0.1:9"))
    down = typed("register", cwd=tmp_path)
    assert (down.exit_code, "Connection refused" in down.stderr) == (1, True)
    space(tmp_path)
    listed = typed("list", cwd=tmp_path).stdout
    assert f"Not registered yet: {NAME}" in listed
    assert typed("register", cwd=tmp_path).stdout.strip() == f"Registered: {NAME}@1"
    assert "The offline queue is empty" in typed("register", cwd=tmp_path).stdout
    assert "Not registered yet" not in typed("list", cwd=tmp_path).stdout
    workspace = space(tmp_path)
    assert queued_models(workspace) == []
    assert again(workspace).model.version == 1, "the next run finds it there"


@pytest.mark.parametrize("reason", ["attempt to write a readonly database", "database or disk is full"])
def test_a_database_that_cannot_write_loses_nothing(reason, tmp_path):
    import sqlite3

    workspace = space(tmp_path)
    open_experiment(workspace.tracking_uri, workspace.artifacts, NAME)
    with sqlite3.connect(workspace.root / "mlflow.db") as database:
        database.execute(f"CREATE TRIGGER ill BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, '{reason}'); END")
    assert reason in lose(workspace).found
    with sqlite3.connect(workspace.root / "mlflow.db") as database:
        database.execute("DROP TRIGGER ill")
    assert again(workspace).model.version == 1
    assert queued_models(workspace) == []


def test_a_full_disk_is_said_and_leaves_no_half(tmp_path, monkeypatch):
    import errno

    from mlcycle.stores.models import offline_queue as pending
    from mlcycle.stores.models import registration

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    workspace = space(tmp_path)
    monkeypatch.setattr(registration, "_log_model", full)
    assert "No space left" in lose(workspace).found
    monkeypatch.setattr(pending.pd.DataFrame, "to_parquet", full)
    with pytest.raises(DiskFullError):
        register_candidate(workspace, candidate(), fitted(30), example=ROWS.head(3), outputs=pd.Series([False] * 3), tags={})
    assert len(list((workspace.root / "pending").iterdir())) == 1


def test_a_kept_file_that_was_altered_is_not_registered(tmp_path):
    lose(space(tmp_path, "http://127.0.0.1:9"))
    workspace = space(tmp_path)
    (kept,) = queued_models(workspace)
    file = workspace.root / "pending" / kept.fingerprint / "model.skops"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="altered"):
        register_queued_model(workspace, kept)
    assert again(workspace).model.version == 1, "the work is done again"
    assert queued_models(workspace) == []


def test_cleaning_leaves_what_waits(tmp_path):
    lose(space(tmp_path, "http://127.0.0.1:9"))
    done = CliRunner().invoke(app, ["clean", "--keep", "0", "--project", str(tmp_path)])
    assert (done.exit_code, "0 runs removed" in done.stdout) == (0, True)
    assert len(queued_models(space(tmp_path))) == 1


def test_a_search_whose_registry_is_down_is_not_repeated(tmp_path, monkeypatch):
    from mlcycle.modelling import search
    from mlcycle.modelling.settings import ModellingSettings
    from mlcycle.modelling.stage import find_model

    TABLES["wine"][0]().to_csv(tmp_path / "wine.csv", index=False)
    settings = tmp_path / "settings.ini"
    words = ["run", "-q", "--source", "wine.csv", "--target", "target", "--until", "modelling"]
    few = {"models": "linear", "trials": 1, "folds": 3, "repeats": 1, "learning_curve": "false", "select": "off", "jobs": 1}
    words += [word for key, value in few.items() for word in ("-p", f"{key}={value}")]
    settings.write_text("[stores]\ntracking_uri = http://127.0.0.1:9\n")
    failed = cli(*words, cwd=tmp_path, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert failed.returncode == 1
    assert "Nothing is lost" in failed.stderr
    assert "Connection refused" in failed.stderr
    settings.write_text("")
    workspace = Workspace.from_project(tmp_path)
    (kept,) = queued_models(workspace)
    assert {trial.name for trial in kept.trials} >= {"dummy", "linear", "linear 1"}

    def no_trial(*_, **__):
        raise AssertionError("a trial was tried twice")

    monkeypatch.setattr(search, "run_trial", no_trial)
    run = mc.open("last", tmp_path)
    settings = ModellingSettings(models=["linear"], folds=3, repeats=1, trials=1, learning_curve=False, jobs=1)
    found, _ = find_model(run.problem, run.dataset, run.plan, workspace, settings, run.id)
    assert (found.model.version, found.resumed_trials, found.winner) == (1, 1, kept.candidate.winner)
    assert queued_models(workspace) == [], "it has a version now"
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mc.open("last", tmp_path).candidate.model == found.model


def test_passwords_are_not_shown(tmp_path):
    assert "hush" not in str(lose(space(tmp_path, "http://me:hush@127.0.0.1:9")))


def test_the_commands_import_nothing_heavy():
    code = "import sys, mlcycle.cli.models; print([n for n in ('pandas', 'mlflow', 'pydantic') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_run_on_a_shared_registry(server, tmp_path):
    TABLES["wine"][0]().to_csv(tmp_path / "wine.csv", index=False)
    (tmp_path / "settings.ini").write_text(f"[stores]\ntracking_uri = {server}\n[problem]\nsource = wine.csv\ntarget = target\n")
    done = cli("run", "-q", *WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = mc.open("last", tmp_path)
    assert run.verdict.current_champion == run.candidate.model.version
    assert not (run.workspace.root / "mlflow.db").exists()
    told = json.loads(typed("show", "wine-target@champion", "--json", cwd=tmp_path).stdout)
    assert told["used_by"][0] == f"The run {run.id} released it."
    with open_registry_read_only(run.workspace) as client:
        model_id = client.get_model_version("wine-target", str(run.candidate.model.version)).source.rpartition("/")[2]
        card = [each.path for each in client.list_logged_model_artifacts(model_id, "model_card")]
        assert verify_audit_log(run.workspace, client) == []
        version = client.get_model_version("wine-target", str(run.candidate.model.version))
        logged = client.get_run(version.run_id)
        code = [each.path for each in client.list_logged_model_artifacts(model_id, "code/mlcycle/service")]
    assert version.tags["verdict"] == "approved"
    assert {each.dataset.name for each in logged.inputs.dataset_inputs} == {"train", "holdout"}
    assert f"holdout_{run.problem.metric}_low" in logged.data.metrics
    assert "code/mlcycle/service/mlflow_model.py" in code
    assert len(card) == 4, "the model card is attached through the server"
    assert len(run.predict(TABLES["wine"][0]())) == 178

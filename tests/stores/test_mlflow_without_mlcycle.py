"""What a colleague who has MLflow, but not mlcycle, can do with a registered version, and what MLflow shows."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import stored_rows
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

import mlcycle as mc
from mlcycle.core.workspace import Workspace
from mlcycle.deployment.mlflow_form import predict_by_mlflow
from mlcycle.deployment.parity import compare_predictions, predict_by_pipeline, release_edge_rows
from mlcycle.errors import StageError
from mlcycle.features.create.recipes import FeatureCreator
from mlcycle.features.create.user_functions import FunctionFeature
from mlcycle.outcomes import FileRef, LeaderboardEntry, ModelRef, Problem, Score, TableRef
from mlcycle.service.bundle import open_release
from mlcycle.service.release_description import Bundle
from mlcycle.service.rows import to_json_rows
from mlcycle.stores.models.dataset_inputs import DIGEST_LENGTH
from mlcycle.stores.models.function_files import FeatureFunction, save_functions
from mlcycle.stores.models.model_parameters import innermost_estimator
from mlcycle.stores.models.registration import PyfuncDescription, register_model
from mlcycle.stores.models.registry import load_registered_model, open_experiment, registered_model_file, set_alias
from mlcycle.stores.models.verdict_tracking import log_verdict

NAMES = ["wine", "orders"]  # Three classes; two classes, with dates, text and a cleaning plan


@pytest.fixture(scope="module")
def colleague(tmp_path_factory) -> Path:
    "A virtual environment with the installed packages, in which mlcycle cannot be imported: its Python."
    home = tmp_path_factory.mktemp("colleague") / "venv"
    venv.create(home, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (packages / "packages.pth").write_text("\n".join(dict.fromkeys(folders)) + "\n")  # Their own .pth files are not read
    python = home / "bin" / "python"
    (home / "bin" / "uvicorn").write_text(f"#!{python} -I\nfrom uvicorn.main import main\nmain()\n")
    (home / "bin" / "uvicorn").chmod(0o755)
    return python


def environment(python: Path, run: mc.Run | None = None) -> dict[str, str]:
    "The variables of a shell in which a virtual environment is active."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLCYCLE", "MLFLOW"))}
    tracking = {"MLFLOW_TRACKING_URI": run.workspace.tracking_uri} if run else {}
    return kept | tracking | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}


def version_folder(run: mc.Run) -> Path:
    "The folder of the registered version of a run."
    open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
    return registered_model_file(run.candidate.model.name, run.candidate.model.version).parent


def rows_of(run: mc.Run) -> tuple[list[dict], Bundle, object]:
    "Holdout rows and edge rows, as a client sends them; the release's description and model."
    bundle, model = open_release(run.workspace.root / run.release.bundle)
    holdout = to_json_rows(stored_rows(run, "holdout")[list(bundle.columns)].head(40))
    return [*holdout, *release_edge_rows(bundle)], bundle, model


def test_mlcycle_cannot_be_imported_there(colleague):
    given = {"env": environment(colleague), "cwd": colleague.parent}
    done = subprocess.run([colleague, "-c", "import mlcycle"], capture_output=True, text=True, **given)
    assert done.returncode == 1
    assert "No module named 'mlcycle'" in done.stderr
    subprocess.run([colleague, "-c", "import mlflow, sklearn"], check=True, **given)


@pytest.mark.parametrize("name", NAMES)
def test_pyfunc_predicts_the_bits_of_the_pipeline(name, table_run):
    run = table_run(name)
    rows, bundle, model = rows_of(run)
    found = predict_by_mlflow(version_folder(run), rows, bundle)
    assert compare_predictions("pyfunc", predict_by_pipeline(model, bundle, rows), found).n_equal == len(rows) > 50


def test_a_colleague_loads_predicts_and_reads_what_is_wrong(colleague, table_run):
    run = table_run("orders")
    code = """if True:
        import json, mlflow, pandas as pd
        uri = "models:/orders-late@champion"
        model = mlflow.pyfunc.load_model(uri)
        rows = pd.read_csv("orders.csv").head(9)
        labels = model.predict(rows)
        chances = model.predict(rows, params={"predict_method": "predict_proba"})
        changed = rows.assign(zip=None, paid=[None, "1", 0.0] * 3, spend="61.5", town="Lima ")
        again = model.predict(changed)
        errors = []
        wrong = [(rows.assign(spend="many"), None), (rows.drop(columns="town"), None), (rows, {"predict_method": "x"})]
        for sent, params in wrong:
            try:
                model.predict(sent, params=params)
            except mlflow.exceptions.MlflowException as error:
                errors.append(error.message)
        plain = mlflow.sklearn.load_model(uri)
        threshold = model.metadata.metadata["threshold"]
        import mlcycle
        print(json.dumps([labels.tolist(), chances.tolist(), again.tolist(), errors, type(plain).__name__, threshold,
                          mlcycle.__file__]))
    """
    given = {"cwd": run.workspace.project, "env": environment(colleague, run), "capture_output": True, "text": True}
    done = subprocess.run([colleague, "-W", "ignore", "-c", code], **given)
    assert done.returncode == 0, done.stderr
    labels, chances, again, errors, kind, threshold, file = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(version_folder(run) / "code")
    rows = pd.read_csv(Path(run.workspace.project) / "orders.csv").head(9)
    expected = run.predict(rows)
    assert labels == expected.prediction.tolist()
    assert [each[1] for each in chances] == expected.score.tolist()
    assert [("No", "Yes")[each[1] >= threshold] for each in chances] == labels
    changed = rows.assign(zip=None, paid=[None, "1", 0.0] * 3, spend="61.5", town="Lima ")
    assert again == run.predict(changed).prediction.tolist()
    assert len(errors) == 3
    assert "The column 'spend' has the value 'many'" in errors[0]
    assert "town" in errors[1]
    assert "predict_method" in errors[2]
    assert kind == type(load_registered_model(run.candidate.model, run.workspace)).__name__


def test_mlflow_serves_the_version(colleague, table_run):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    run = table_run("orders")
    rows, bundle, model = rows_of(run)
    expected = predict_by_pipeline(model, bundle, rows)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"-m mlflow models serve -m models:/orders-late@champion --env-manager local -h 127.0.0.1 -p {port} --workers 1"
    log = run.workspace.root / "served.txt"
    with log.open("w") as out:
        given = {
            "env": environment(colleague, run),
            "cwd": colleague.parent,
            "stdout": out,
            "stderr": out,
            "start_new_session": True,
        }
        server = subprocess.Popen([colleague, *words.split()], **given)
    try:
        ScoringServerClient("127.0.0.1", port).wait_server_ready(timeout=120, scoring_server_proc=server)
        names = list(bundle.columns)
        body = {"dataframe_split": {"columns": names, "data": [[row[name] for name in names] for row in rows]}}
        post = lambda more: httpx.post(f"http://127.0.0.1:{port}/invocations", json=body | more, timeout=60)  # noqa: E731
        assert post({}).json() == {"predictions": expected.labels.tolist()}
        scores = np.array(post({"params": {"predict_method": "predict_proba"}}).json()["predictions"])
        assert scores[:, 1].tolist() == expected.scores.tolist()
        bad = post({"params": {"predict_method": "proba"}})
        assert (bad.status_code, "predict_method" in bad.json()["message"]) == (400, True)
        bad = post({"dataframe_split": {"columns": names, "data": [["many"] * len(names)]}})
        assert (bad.status_code, "The column 'placed'" in bad.json()["message"]) == (400, True)
    except Exception as error:
        raise AssertionError(log.read_text()[-3000:]) from error
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_the_requirements_are_enough_and_name_no_mlcycle(table_run):
    folder = version_folder(table_run("orders"))
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    assert not any("mlcycle" in (folder / name).read_text() for name in ("requirements.txt", "conda.yaml", "python_env.yaml"))
    code = "import sys, mlcycle.service.mlflow_model; print(sorted({name.split('.')[0] for name in sys.modules}))"
    shell = os.environ | {"PYTHONPATH": str(folder / "code")}
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=shell).stdout
    assert "mlflow" not in names  # Imported by MLflow itself
    sizes = {each.name: each.stat().st_size for each in folder.rglob("*") if each.is_file()}
    assert not any(name.endswith(".whl") for name in sizes)
    assert sum(size for name, size in sizes.items() if name.endswith(".py")) < 600_000
    assert not any(each.is_relative_to(folder / "code" / "mlcycle" / room) for room in ("cli", "lifecycle", "validation")
                   for each in folder.rglob("*.py"))  # fmt: skip


# What MLflow shows


@pytest.fixture
def shown(table_run):
    "A run, MLflow's client, and the version."
    run = table_run("wine")
    client = open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
    return run, client, client.get_model_version_by_alias(run.candidate.model.name, "champion")


def test_all_parameters_of_the_winner_are_logged(shown):
    run, client, version = shown
    logged = client.get_run(version.run_id).data.params
    prefix, final = innermost_estimator(load_registered_model(run.candidate.model, run.workspace))
    assert prefix.endswith("model__")
    assert {name: str(value)[:500] for name, value in final.get_params().items()}.items() <= logged.items()
    assert logged["estimator"] == type(final).__name__
    assert {"encode__encoding", "encode__scaling"} <= set(logged)
    page = client.get_logged_model(version.source.rpartition("/")[2])
    assert page.params == logged


def test_scores_of_cross_validation_and_holdout_are_logged(shown):
    run, client, version = shown
    metrics = client.get_run(version.run_id).data.metrics
    for score in run.verdict.scores:
        ends = (metrics[f"holdout_{score.metric}{end}"] for end in ("", "_low", "_high"))
        assert tuple(ends) == (score.value, score.low, score.high)
    assert metrics[run.problem.metric] == run.candidate.leaderboard[0].score.value
    assert run.candidate.fold_mean_scores.keys() <= metrics.keys()
    folds = client.get_metric_history(version.run_id, f"fold_{run.problem.metric}")
    assert [each.value for each in folds] == run.candidate.leaderboard[0].fold_scores
    page = {each.key: each for each in client.get_logged_model(version.source.rpartition("/")[2]).metrics}
    assert page[f"holdout_{run.problem.metric}"].dataset_name == "holdout"
    assert page[run.problem.metric].dataset_digest == run.dataset.tables["train"].sha256[:DIGEST_LENGTH]


def test_tables_are_dataset_inputs(shown):
    run, client, version = shown
    given = {each.tags[0].value: each.dataset for each in client.get_run(version.run_id).inputs.dataset_inputs}
    for context, name in (("training", "train"), ("holdout", "holdout")):
        table, dataset = run.dataset.tables[name], given[context]
        assert (dataset.name, dataset.digest) == (name, table.sha256[:DIGEST_LENGTH])
        assert json.loads(dataset.profile) == {"num_rows": table.rows}
        source = json.loads(dataset.source)
        assert source == {"path": str(run.workspace.tables / name), "delta_table_version": table.version, "sha256": table.sha256}
        assert mlflow.data.get_source(dataset).to_dict()["path"] == source["path"]


def test_the_verdict_and_the_reason_of_the_alias_are_shown(shown):
    run, client, version = shown
    assert version.tags["verdict"] == "approved"
    assert [each["result"] for each in json.loads(version.tags["gates"])] == ["pass"] * len(run.verdict.gates)
    assert version.tags["champion_reason"].startswith(run.verdict.promotion_reason)
    assert "challenger_reason" not in version.tags
    assert run.verdict.decision in version.description
    assert all(gate.criterion in version.description for gate in run.verdict.gates)
    assert client.get_run(version.run_id).data.tags["mlflow.note.content"] == version.description


def test_signature_and_example_are_shown(shown):
    run, _, version = shown
    info = mlflow.models.get_model_info(f"models:/{version.name}/{version.version}")
    assert info.signature.inputs.input_names() == run.plan.input_columns
    assert info.signature.params.params[0].name == "predict_method"
    assert info.metadata["columns"].keys() == set(run.plan.input_columns)
    assert info.metadata["classes"] == run.problem.classes
    example = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}").input_example
    assert list(example.columns) == run.plan.input_columns
    folder = version_folder(run)
    assert Bundle.model_validate_json((folder / "bundle.json").read_text()).model.sha256 == run.candidate.model.sha256


# Versions without a run

FIELDS = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
NUMBERS = pd.DataFrame({"x": np.arange(12.0), "n": np.arange(12)})


def registered(folder: Path, model, name: str = "sums", **tags: str) -> tuple[Workspace, Bundle, ModelRef, Path]:
    "Register a regression with its description."
    workspace = Workspace(folder)
    workspace.root.mkdir(exist_ok=True)
    problem = Problem(**FIELDS, target="y", task="regression", metric="r2", metrics=["r2"], criteria=[], rows=12)
    bundle = Bundle(problem=problem, columns={"x": "float64", "n": "int64"}, threshold=None,
                    model=ModelRef(name=name, version=0, run_id="", sha256=""))  # fmt: skip
    pyfunc = PyfuncDescription(loader_module="mlcycle.service.mlflow_model", description=bundle.model_dump(mode="json"))
    entry = LeaderboardEntry(model="m", score=Score(metric="r2", value=1), fold_scores=[1], fit_seconds=0, parameters={"a": 1})
    open_experiment(workspace.tracking_uri, workspace.artifacts, name)
    outputs = pd.Series(np.zeros(3))
    ref = register_model(name, model, NUMBERS.head(3), outputs, [entry], tags, pyfunc=pyfunc, workspace=workspace)
    return workspace, bundle, ref, registered_model_file(name, ref.version).parent


def test_a_regression_predicts_numbers(tmp_path):
    model = LinearRegression().fit(NUMBERS, NUMBERS.x * 1.1 + NUMBERS.n)
    _, bundle, _, folder = registered(tmp_path, model)
    rows = [{"x": 0.1, "n": 3}, {"x": "2.5", "n": "4"}, {"x": 1e9, "n": 7.0}]
    found = predict_by_mlflow(folder, rows, bundle)
    assert found.labels.tolist() == predict_by_pipeline(model, bundle, rows).labels.tolist()
    loaded = mlflow.pyfunc.load_model(str(folder))
    with pytest.raises(mlflow.exceptions.MlflowException, match="numbers"):
        loaded._model_impl.predict(NUMBERS, {"predict_method": "predict_proba"})


def test_user_functions_run_only_from_a_reviewed_file(tmp_path):
    source = "def total(x, n):\n    return x + n"
    function = FeatureFunction("total", source, ("x", "n"))
    ref = save_functions([function], tmp_path / ".mlcycle" / "functions")
    assert isinstance(ref, FileRef)
    path = tmp_path / ".mlcycle" / ref.path
    from mlcycle.stores.models.function_files import load_functions

    load_functions(path)
    model = make_pipeline(FeatureCreator([FunctionFeature("total", function.sha256, ["x", "n"])]), LinearRegression())
    model.fit(NUMBERS, NUMBERS.x + NUMBERS.n)
    _, bundle, _, folder = registered(tmp_path, model, functions=ref.sha256)
    assert (folder / "functions.py").read_bytes() == path.read_bytes()
    rows = to_json_rows(NUMBERS.head(4))
    with pytest.raises(StageError, match=r"calls user functions that are not loaded: total"):
        predict_by_mlflow(folder, rows, bundle)
    other = tmp_path / "other.py"
    other.write_text(path.read_text().replace("x + n", "__import__('os').system('true')"))
    with pytest.raises(StageError, match=r"other\.py is not the file of user functions of this model"):
        predict_by_mlflow(folder, rows, bundle, other)
    reviewed = predict_by_mlflow(folder, rows, bundle, folder / "functions.py")
    assert reviewed.labels.tolist() == predict_by_pipeline(model, bundle, rows).labels.tolist()


def test_an_altered_version_is_refused_and_mlcycle_executes_none_of_its_code(tmp_path):
    model = LinearRegression().fit(NUMBERS, NUMBERS.x)
    workspace, bundle, ref, folder = registered(tmp_path, model)
    mark = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for file in (folder / "code").rglob("*.py"):
        file.write_text(mark + file.read_text().replace("from __future__ import annotations\n", ""))
    code = f"""if True:
        import sys
        from pathlib import Path
        from mlcycle.core.workspace import Workspace
        from mlcycle.outcomes import ModelRef
        from mlcycle.stores.models.registry import load_registered_model, open_experiment

        workspace = Workspace(Path({str(tmp_path)!r}))
        open_experiment(workspace.tracking_uri, workspace.artifacts, "sums")
        load_registered_model(ModelRef.model_validate_json({ref.model_dump_json()!r}), workspace)
        assert not any("artifacts" in each for each in sys.path), sys.path
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)
    assert not (tmp_path / "ran").exists()
    (folder / "model.skops").write_bytes((folder / "model.skops").read_bytes() + b" ")
    with pytest.raises(StageError, match="has been altered"):
        predict_by_mlflow(folder, [{"x": 1, "n": 1}], bundle)
    assert (tmp_path / "ran").exists(), "MLflow does execute the code of a version that it loads"


def test_a_description_by_a_person_stays_and_reasons_follow_the_alias(tmp_path, table_run):
    workspace, _, first, _ = registered(tmp_path, LinearRegression().fit(NUMBERS, NUMBERS.x))
    *_, second, _ = registered(tmp_path, LinearRegression().fit(NUMBERS, NUMBERS.n * 2))
    client, verdict = mlflow.MlflowClient(), table_run("wine").verdict
    tags = lambda ref: client.get_model_version(ref.name, str(ref.version)).tags  # noqa: E731
    assert "challenger_reason" not in tags(first)
    assert tags(second)["challenger_reason"].startswith("The newest version")
    set_alias(first, reason="The only one.")
    set_alias(second, reason="It is better.")
    assert "champion_reason" not in tags(first)
    assert tags(second)["champion_reason"].startswith("It is better.")
    table = TableRef(name="holdout", version=0, rows=5, sha256="ab" * 32)
    for word, approved in (("approved", True), ("rejected", False)):
        log_verdict(client, second, verdict.model_copy(update={"approved": approved}), table, workspace)
        assert tags(second)["verdict"] == word
        assert client.get_model_version("sums", str(second.version)).description.startswith(f"**Verdict**: {word}.")
    client.update_model_version("sums", str(second.version), "For the shop in Lima.")
    log_verdict(client, second, verdict, table, workspace)
    assert client.get_model_version("sums", str(second.version)).description == "For the shop in Lima."
    assert len(client.get_run(second.run_id).inputs.dataset_inputs) == 1

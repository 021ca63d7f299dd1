"""Descriptors for SageMaker, Vertex AI and Azure ML, and the predictions of each contract."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from botocore.stub import Stubber
from fastapi.testclient import TestClient
from moto import mock_aws
from toy_releases import toy_release

from mlcycle.core.files import hash_file
from mlcycle.deployment import azure
from mlcycle.deployment.cloud_parity import (
    CLOUD_ENVIRONMENT,
    EntryScriptRequest,
    load_entry_script,
    predict_by_azure,
    predict_by_sagemaker,
    predict_by_score_script,
    predict_by_vertex,
)
from mlcycle.deployment.parity import compare_predictions, predict_by_pipeline, release_edge_rows
from mlcycle.deployment.targets import TARGETS
from mlcycle.errors import ArtifactError, MlcycleError
from mlcycle.ml.cleaning_plan import CleaningPlan, ColumnCleaningPlan, NumberFormat
from mlcycle.service.app import create_app
from mlcycle.service.bundle import open_release
from mlcycle.service.local import running_service
from mlcycle.service.rows import to_json_rows
from mlcycle.stores.tables.holdout import read_any_table

CLOUDS = ("sagemaker", "vertex", "azure")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release."
    return toy_release(tmp_path_factory.mktemp("clouds"), 3, trees=False)


@pytest.fixture(scope="module")
def folders(release, tmp_path_factory):
    "The folder of each cloud."
    output = tmp_path_factory.mktemp("dist")
    return {name: TARGETS[name].function()(release, output) for name in CLOUDS}


def request_of(folder: Path, name: str) -> dict:
    "A request, as `--cli-input-json` reads it, with the placeholders replaced."
    text = (folder / f"{name}.json").read_text()
    for placeholder, value in {
        "ACCOUNT_ID": "123456789012",
        "REGION": "eu-central-1",
        "ROLE": "role",
        "BUCKET": "bucket",
    }.items():
        text = text.replace(f"YOUR_{placeholder}", value)
    assert "YOUR_" not in text
    return json.loads(text)


@pytest.fixture
def aws(monkeypatch):
    "Clients of moto's AWS, by service."
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        yield boto3.client


def test_sagemaker_requests_are_accepted_by_aws(folders, aws, release):
    folder, sagemaker = folders["sagemaker"], aws("sagemaker")
    sagemaker.create_model(**request_of(folder, "create-model"))
    sagemaker.create_endpoint_config(**request_of(folder, "create-endpoint-config"))
    sagemaker.create_endpoint(**request_of(folder, "create-endpoint"))
    sagemaker.create_transform_job(**request_of(folder, "create-transform-job"))
    endpoint = sagemaker.describe_endpoint(EndpointName="toy")
    assert endpoint["ProductionVariants"][0]["VariantName"] == "main"
    name = endpoint["EndpointConfigName"]
    assert re.fullmatch(r"toy-3-[0-9a-f]{8}", name)
    model = sagemaker.describe_model(ModelName=name)
    assert model["PrimaryContainer"]["Image"] == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/toy:3"
    assert sagemaker.describe_transform_job(TransformJobName=name)["TransformOutput"]["AssembleWith"] == "Line"
    with pytest.raises(ParamValidationError):  # The client knows all fields
        sagemaker.create_endpoint(**request_of(folder, "create-endpoint"), Canary=True)
    scaling, alarms = aws("application-autoscaling"), aws("cloudwatch")
    scaling.register_scalable_target(**request_of(folder, "register-scalable-target"))
    scaling.put_scaling_policy(**request_of(folder, "put-scaling-policy"))
    for kind in ("errors", "latency"):
        alarms.put_metric_alarm(**request_of(folder, f"alarm-{kind}"))
    update = request_of(folder, "update-endpoint")
    assert update["RetainAllVariantProperties"]  # Or the number of instances that autoscaling has reached is lost
    named = {alarm["AlarmName"] for alarm in update["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]}
    assert named == {alarm["AlarmName"] for alarm in alarms.describe_alarms()["MetricAlarms"]}
    with Stubber(sagemaker) as stub:  # moto has no update_endpoint; the client checks the fields
        stub.add_response("update_endpoint", {"EndpointArn": "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/toy"}, update)
        sagemaker.update_endpoint(**update)


def test_example_csv_is_predicted(folders, release):
    folder = folders["sagemaker"]
    with TestClient(create_app(release)) as client:
        for kind in ("text/csv", "text/csv; header=absent"):
            response = client.post("/invocations", content=(folder / "request.csv").read_text(), headers={"Content-Type": kind})
            assert len(response.json()["predictions"]) == 2


@pytest.mark.parametrize(("cloud", "path", "name"), [("vertex", "/invocations", "request"), ("azure", "/predict", "request")])
def test_example_requests_are_predicted(folders, release, cloud, path, name):
    with TestClient(create_app(release)) as client:
        response = client.post(
            path, content=(folders[cloud] / f"{name}.json").read_text(), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 200 and len(response.json()["predictions"]) == 2


def test_routes_of_vertex_and_azure_exist(folders, release):
    container = json.loads((folders["vertex"] / "model.json").read_text())["model"]["containerSpec"]
    config = yaml.safe_load((folders["azure"] / "environment.yml").read_text())["inference_config"]
    assert {route["port"] for route in config.values()} == {port["containerPort"] for port in container["ports"]} == {8080}
    with TestClient(create_app(release)) as client:
        assert [client.get(config[f"{kind}_route"]["path"]).status_code for kind in ("liveness", "readiness")] == [200, 200]
        assert client.get(container["healthRoute"]).status_code == 200
        assert client.get(container["predictRoute"]).status_code == client.get(config["scoring_route"]["path"]).status_code == 405


def test_a_later_version_of_vertex_has_the_same_model_and_a_parent(folders):
    first, later = (json.loads((folders["vertex"] / f"{name}.json").read_text()) for name in ("model", "model-version"))
    parent = f"projects/YOUR_PROJECT/locations/YOUR_REGION/models/{first['modelId']}"
    assert later == {"parentModel": parent, "model": first["model"]}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_commands_name_files_that_exist_and_all_placeholders(folders, cloud):
    folder = folders[cloud]
    text = (folder / "README.md").read_text()
    commands = [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    words = [word for block in commands for line in block.splitlines() for word in shlex.split(line, comments=True)]
    named = {re.split("//|=|@", word)[-1] for word in words if re.search(r"\.(json|yml|csv)$", word)}
    listed = {path.name for path in folder.iterdir() if path.suffix in (".json", ".yml", ".csv")}
    assert {name for name in named if "*" not in name} == listed
    replaced = set(re.findall(r"s/(YOUR_\w+)/", commands[0]))
    contents = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".yml", ".md"))
    assert set(re.findall(r"YOUR_[A-Z_]+", contents)) == replaced
    assert "$" not in re.sub(r"\$\(gcloud auth print-access-token\)|\"\$schema\"|\$schema:", "", contents)


def test_azure_readme_and_descriptors_name_the_same_endpoint(release, tmp_path, monkeypatch):
    read = azure.read_cloud_release(release)
    long = replace(read, facts=replace(read.facts, model="a-model-with-a-name-of-forty-characters1"))
    monkeypatch.setattr(azure, "read_cloud_release", lambda path: long)
    folder = azure.write_azure(release, tmp_path)
    name = yaml.safe_load((folder / "endpoint.yml").read_text())["name"]
    assert len(name) <= 32
    deployments = [yaml.safe_load(path.read_text()) for path in folder.glob("deployment*.yml")]
    assert {each["endpoint_name"] for each in deployments} == {name}
    readme = (folder / "README.md").read_text()
    named = re.findall(r"az ml online-endpoint .*--name (\S+)|--endpoint-name (\S+)", readme)
    assert {one or other for one, other in named} == {name}


def test_azure_folder_has_the_release_unchanged(folders, release):
    copied = folders["azure"] / "release"
    assert {path.name: hash_file(path) for path in copied.iterdir()} == {path.name: hash_file(path) for path in release.iterdir()}
    context = folders["azure"] / "context"
    assert "scikit_learn.libs/libgomp" in (context / "Dockerfile").read_text()  # LightGBM needs it, and slim images lack it
    wheel = next(release.glob("*.whl")).name
    assert {path.name for path in context.iterdir()} == {"Dockerfile", "requirements.txt", "score.py", wheel}
    ours, theirs = (set((place / "requirements.txt").read_text().splitlines()) for place in (release, context))
    assert {line.partition("==")[0] for line in ours - theirs} == {"fastapi", "pydantic"}
    assert theirs - ours == {"fastapi", "pydantic", "azureml-inference-server-http==1.5.1"}


def test_nothing_is_written_for_an_altered_release(release, tmp_path):
    import shutil

    altered = tmp_path / release.name
    shutil.copytree(release, altered)
    (altered / "bundle.json").write_text((altered / "bundle.json").read_text() + " ")
    for cloud in CLOUDS:
        with pytest.raises(ArtifactError):
            TARGETS[cloud].function()(altered, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(MlcycleError, match="cannot be written"):
        TARGETS["vertex"].function()(release, tmp_path / "file")


@pytest.mark.parametrize("table", ["penguins", "orders"])
def test_each_contract_predicts_as_the_pipeline(table_run, table):
    run = table_run(table)
    folder = run.workspace.root / run.release.bundle
    bundle, model = open_release(folder)
    holdout = read_any_table(run.workspace, run.dataset.tables["holdout"], reason="a test")[run.plan.input_columns]
    rows = to_json_rows(holdout) + release_edge_rows(bundle)
    expected = predict_by_pipeline(model, bundle, rows)
    with running_service(folder, platform=CLOUD_ENVIRONMENT) as service:
        served = [predict(service, rows, bundle) for predict in (predict_by_sagemaker, predict_by_vertex, predict_by_azure)]
    for predictions in (*served, predict_by_score_script(folder, rows, bundle)):
        compared = compare_predictions("-", expected, predictions)
        assert compared.n_equal == compared.rows == len(rows)


def test_each_contract_reads_the_numbers_of_a_source_with_decimal_commas(tmp_path):
    german = ColumnCleaningPlan(value_type="number", number_format=NumberFormat(comma="decimal", point="thousands"))
    cleaning = CleaningPlan(columns={"x0": german})
    release = toy_release(tmp_path / "toy", 3, trees=False, cleaning=cleaning)
    bundle, model = open_release(release)
    values = (1.957, 0.5, 1957.0, 1234.567, -1e-7, 12, "1.957", "1.957,5")
    usual = dict.fromkeys(bundle.columns, 0.25)
    rows = [usual | {"x0": value, "x7": 1.957} for value in values]
    expected = predict_by_pipeline(model, bundle, rows)
    assert expected.labels[6] > expected.labels[0] + 10  # 1957 and 1.957
    with running_service(release, platform=CLOUD_ENVIRONMENT) as service:
        for predict in (predict_by_sagemaker, predict_by_vertex, predict_by_azure):
            assert np.allclose(predict(service, rows, bundle).labels, expected.labels, rtol=1e-9, atol=1e-9)
        plain = service.client.post("/invocations", content="0.5" + ",0" * 7, headers={"Content-Type": "text/csv; header=absent"})
    assert plain.status_code == 400 and "a point separates thousands" in plain.text and "0,5" in plain.text
    folder = TARGETS["sagemaker"].function()(release, tmp_path)
    assert "decimal comma in `x0`" in (folder / "README.md").read_text()
    assert (folder / "request.csv").read_text().splitlines()[1].startswith('"0,5",0.5')


def test_entry_script_returns_the_response_of_the_service(release, monkeypatch):
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(release))
    script, rows = load_entry_script(), [dict.fromkeys((f"x{number}" for number in range(8)), 0.5)]
    script["init"]()

    def run(body: str, kind: str = "application/json"):
        return script["run"](EntryScriptRequest(body.encode(), {"Content-Type": kind, "X-Request-Id": "r1"}))

    bad = run(json.dumps({"rows": [rows[0] | {"x3": "much"}]}))
    assert bad.status == 422 and bad.headers["Content-Type"] == "application/json" and bad.headers["X-Request-Id"] == "r1"
    assert json.loads(bad.body)["errors"][0]["column"] == "x3"
    assert run("{").status == 422 and run("", "application/x-npy").status == 415
    good = run(json.dumps({"rows": rows}))
    csv = run(",".join(["0.5"] * 8), "text/csv; header=absent")
    assert good.status == csv.status == 200
    assert np.array_equal(json.loads(good.body)["predictions"], json.loads(csv.body)["predictions"])
    script["SERVICE"].close()

"""Outside judges of what mlcycle writes: programs of others, each in an environment of its own.

`python benchmarks/judges.py` runs all judges, `python benchmarks/judges.py azure-server` one of them. An environment is made
once, in `.bench/judges/`, from `benchmarks/environments/NAME.txt`. A judge is a function that takes the Python of its
environment and returns what was found, as one sentence; it raises AssertionError for what the judge rejects.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # Releases of toy models
JUDGES: dict[str, Callable[[Path], str]] = {}


def judge(name: str) -> Callable:
    """Register a judge; its environment is `benchmarks/environments/NAME.txt`."""

    def register(function: Callable[[Path], str]) -> Callable[[Path], str]:
        JUDGES[name] = function
        return function

    return register


def python_of(name: str, more: Path | None = None) -> Path:
    """The Python of an environment, which is made if necessary; `more` are further requirements, installed from their folder."""
    home = HERE.parent / ".bench" / "judges" / name
    python, listed = home / "bin" / "python", HERE / "environments" / f"{name}.txt"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", listed], check=True)
    if more:
        environment = os.environ | {"PWD": str(more.parent)}  # The path of mlcycle's wheel
        subprocess.run([*pip, "--requirement", more.name], cwd=more.parent, check=True, env=environment)
    return python


def run_code(python: Path, code: str, *words: object) -> str:
    """The output of code in an environment; AssertionError with its error if it fails."""
    command = [python, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=plain_environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def plain_environment(**more: str) -> dict[str, str]:
    """The environment variables of this process, without its paths of Python and its settings of mlcycle."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("MLCYCLE_")} | more


@contextmanager
def cloud_folder(target: str) -> Iterator[tuple[Path, Path]]:
    """A release of a toy model, and its folder for a cloud."""
    from toy_releases import toy_release

    from mlcycle.deployment.targets import TARGETS

    with TemporaryDirectory() as home:
        release = toy_release(Path(home), 3, trees=False)
        yield release, TARGETS[target].function()(release, Path(home) / "dist")


@contextmanager
def inference_server(python: Path, folder: Path) -> Iterator[str]:
    """Azure ML's inference server with the entry script of a folder: its address, once it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, model = folder / "context" / "score.py", folder / "release"
    command = [python.with_name("azmlinfsrv"), "--entry_script", script, "--model_dir", model, "--port", str(port)]
    environment = plain_environment(PATH=f"{python.parent}:{os.environ['PATH']}")
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/score"
    finally:
        process.terminate()
        process.wait(30)


@judge("azure-server")
def azure_server(python: Path) -> str:
    """Azure ML's inference server runs `score.py`: the pipeline's predictions bit by bit, the service's body for bad rows."""
    import numpy as np
    from toy_releases import toy_rows

    from mlcycle.deployment.parity import predict_by_pipeline
    from mlcycle.service.bundle import open_release

    with cloud_folder("azure") as (release, folder):
        python_of("azure-server", folder / "context" / "requirements.txt")
        bundle, model = open_release(release)
        rows = toy_rows(100, seed=3).to_dict("records")
        expected = predict_by_pipeline(model, bundle, rows).labels
        with inference_server(python, folder) as url, httpx.Client(timeout=30) as client:
            served = client.post(url, json={"rows": rows})
            assert served.status_code == 200, served.text
            assert np.array_equal(np.asarray(served.json()["predictions"]).view(np.int64), expected.view(np.int64))
            bad = client.post(url, json={"rows": [rows[0] | {"x3": "much"}]})
            assert bad.status_code == 422 and bad.json()["errors"][0]["column"] == "x3", (bad.status_code, bad.text)
            assert client.post(url, content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
            lines = "\n".join(",".join(repr(value) for value in row.values()) for row in rows)
            csv = client.post(url, content=lines, headers={"Content-Type": "text/csv; header=absent", "Accept": "text/csv"})
            assert [float(line) for line in csv.text.splitlines()] == expected.tolist(), csv.text[:500]
            start = time.perf_counter()
            for row in rows[:50]:
                client.post(url, json={"rows": [row]}).raise_for_status()
            milliseconds = (time.perf_counter() - start) * 20
        return f"100 rows bitwise equal, a bad row has status 422, {milliseconds:.1f} ms a request"


AZURE_ML = """
import sys, pathlib
from azure.ai.ml import load_environment, load_model, load_online_deployment, load_online_endpoint
folder = pathlib.Path(sys.argv[1])
load = {"environment": load_environment, "model": load_model, "deployment": load_online_deployment,
        "endpoint": load_online_endpoint}
names = sorted(path.name for path in folder.glob("*.yml"))
for name in names:
    loaded = load[name.removesuffix(".yml").split("-")[0]](folder / name)
    print(name, loaded.name)
try:
    (folder / "deployment-wrong.yml").write_text((folder / "deployment.yml").read_text() + "canary: 1\\n")
    load_online_deployment(folder / "deployment-wrong.yml")
except Exception as error:
    assert "canary" in str(error), error
else:
    raise AssertionError("An unknown field is accepted.")
"""


@judge("azure-ml")
def azure_ml(python: Path) -> str:
    """The client of Azure ML reads all descriptors, and rejects one with an unknown field."""
    with cloud_folder("azure") as (_, folder):
        return ", ".join(run_code(python, AZURE_ML, folder).splitlines())


VERTEX = """
import json, pathlib, sys
import googleapiclient
documents = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
document = json.loads((documents / "aiplatform.v1.json").read_text())
schemas = document["schemas"]
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}

def check(value, schema, place):
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    if schema.get("type") == "any":
        return
    kind = TYPES.get(schema.get("type"))
    assert kind is None or isinstance(value, kind), f"{place} is {value!r}"
    assert "enum" not in schema or value in schema["enum"], f"{place} is {value!r}"
    if isinstance(value, list):
        for number, each in enumerate(value):
            check(each, schema["items"], f"{place}[{number}]")
    if isinstance(value, dict):
        for name, each in value.items():
            known = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            assert known is not None, f"{place} has the unknown field {name}"
            check(each, known, f"{place}.{name}")

folder, prefix = pathlib.Path(sys.argv[1]), "GoogleCloudAiplatformV1"
requests = {"model": "UploadModelRequest", "deploy-model": "DeployModelRequest", "batch-prediction-job": "BatchPredictionJob",
            "request": "PredictRequest"}
for name, kind in requests.items():
    check(json.loads((folder / f"{name}.json").read_text()), schemas[prefix + kind], name)
    print(name)
try:
    check({"model": {"canary": 1}}, schemas[prefix + "UploadModelRequest"], "wrong")
except AssertionError:
    pass
else:
    raise AssertionError("An unknown field is accepted.")
print(document["revision"])
"""


@judge("vertex")
def vertex(python: Path) -> str:
    """Vertex AI's discovery document knows all fields of the requests, and their types."""
    with cloud_folder("vertex") as (_, folder):
        *names, revision = run_code(python, VERTEX, folder).splitlines()
        return f"{', '.join(names)} fit the document of {revision}"


MLFLOW = """
import json, sys
import mlflow, pandas
rows = pandas.DataFrame(json.load(open(sys.argv[2])), dtype=object)
mlflow.sklearn.load_model(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[1])
params = [None, {"predict_method": "predict_proba"}]
json.dump([model.predict(rows, params=each).tolist() for each in params], open(sys.argv[3], "w"))
"""


@judge("mlflow")
def mlflow(python: Path) -> str:
    """MLflow loads a registered version with the version's own requirements, and predicts as the pipeline, bit by bit."""
    import json

    from sklearn.datasets import load_breast_cancer

    import mlcycle as mc
    from mlcycle.deployment.parity import predict_by_pipeline, release_edge_rows
    from mlcycle.service.release_description import Bundle
    from mlcycle.stores.models.registry import load_registered_model, open_experiment, registered_model_file

    with TemporaryDirectory() as folder:
        home = Path(folder)
        quick = {"trials": 2, "folds": 3, "models": ["linear", "lightgbm"], "learning_curve": False, "probe_seconds": 0.0}
        table = load_breast_cancer(as_frame=True).frame
        run = mc.run(table, target="target", project=home, until="modelling", **quick)
        open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
        version = registered_model_file(run.candidate.model.name, run.candidate.model.version).parent
        bundle = Bundle.model_validate_json((version / "bundle.json").read_text())
        rows = release_edge_rows(bundle)
        expected = predict_by_pipeline(load_registered_model(run.candidate.model, run.workspace), bundle, rows)
        python_of("mlflow", version / "requirements.txt")
        try:
            run_code(python, "import mlcycle")
        except AssertionError:
            pass
        else:
            raise AssertionError("mlcycle is installed in the environment of MLflow")
        (home / "rows.json").write_text(json.dumps(rows))
        run_code(python, MLFLOW, version, home / "rows.json", home / "found.json")
        labels, probabilities = json.loads((home / "found.json").read_text())
    found = [each[bundle.problem.positive_index] for each in probabilities]
    assert labels == expected.labels.tolist() and found == expected.scores.tolist()
    return f"{len(rows)} rows by pyfunc are bitwise equal to the pipeline's"


LABEL_STUDIO = """
import json, pathlib, sys
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import TaskValue
judged = 0
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    interface = LabelInterface(file.with_suffix(".xml").read_text())
    interface.validate()
    for task in json.loads(file.read_text()):
        TaskValue.model_validate(task)
        assert interface.validate_task({"data": task["data"]}), (file.name, task["id"], task["data"])
        for annotation in task["annotations"]:
            assert interface.validate_annotation(annotation), (file.name, task["id"], annotation)
            judged += 1
            for result in annotation["result"]:
                if "choices" in result["value"]:
                    wrong = result | {"value": {"choices": ["canary"]}}
                    assert not interface.validate_annotation(annotation | {"result": [wrong]}), "An unknown choice is accepted."
print(judged)
"""


@judge("label-studio")
def label_studio(python: Path) -> str:
    """Label Studio's SDK accepts the labelling configuration and each annotation, and rejects an unknown choice."""
    import pandas as pd

    from mlcycle.data.labelling.label_studio import write_label_studio
    from mlcycle.data.labelling.readable_rows import read_rows
    from mlcycle.outcomes import Label, Task
    from mlcycle.stores.labels.label_store import Annotation, LabelSet, LabelStore, add_annotations, ensure_label_set
    from mlcycle.stores.labels.label_store import read_annotations as read

    rows = pd.DataFrame(
        {"spend": [61, None, 2.5], "$ of <it>": ["a & b", "", None], "item": ["https://a.b/?c&d", None, "http://x"]}
    )
    rows.index = pd.Index(["a1", "b2", "c3"])
    kinds: dict[str, tuple[Task, list[Label]]] = {
        "odd": ("multiclass", ["No", "$5", "", " a", "ü <b>", "1", 1, "\n", "True"]),
        "booleans": ("binary", [False, True]),
        "numbers": ("regression", []),
    }
    with TemporaryDirectory() as folder:
        for name, (task, classes) in kinds.items():
            label_set = LabelSet(name=name, source="-", target="late", task=task, classes=classes)
            store = LabelStore(f"sqlite:///{folder}/{name}.db")
            ensure_label_set(store, label_set)
            given = [
                Annotation(item="a1", annotator=f"p{n}", label=label, comment="?" * n)
                for n, label in enumerate(classes or [0.5, -3e9])
            ]
            other = [Annotation(item=item, annotator="ann", action=do) for item, do in (("b2", "skip"), ("c3", "unsure"))]
            add_annotations(store, label_set, [*given, *other])
            write_label_studio(Path(folder) / f"{name}.json", label_set, read(store, name), read_rows(rows, "late"))
            store.close()
        return f"{run_code(python, LABEL_STUDIO, folder)} annotations are valid, an unknown choice is not"


Names = Annotated[list[str] | None, typer.Argument(help="Judges; default: all.")]


def main(names: Names = None) -> None:
    """Run outside judges, each in an environment of its own."""
    failed = False
    for name in names or JUDGES:
        if name not in JUDGES:
            raise typer.BadParameter(f"There is no judge {name!r}. Expected is one of {', '.join(JUDGES)}.")
        try:
            print(f"{name}: {JUDGES[name](python_of(name))}", flush=True)
        except (AssertionError, subprocess.CalledProcessError, httpx.HTTPError) as error:
            failed = True
            print(f"{name}: REJECTED. {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    typer.run(main)

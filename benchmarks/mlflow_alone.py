"""A registered version in an environment that is made from its own requirements: MLflow, and nothing of mlcycle.

`python benchmarks/mlflow_alone.py PROJECT` takes the last run of a project; without a project, it makes a run on the bundled
sample. It installs `requirements.txt` of the version into a new virtual environment, loads the version there by
`mlflow.pyfunc.load_model` and by `mlflow.sklearn.load_model`, and compares labels and probabilities of rows with those of the
pipeline, bit by bit. It exits with 1 if one differs. `tests/stores/test_mlflow_without_mlcycle.py` does the same with
the installed packages, and serves the version too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import mlcycle as mc
from mlcycle.deployment.parity import predict_by_pipeline, release_edge_rows
from mlcycle.service.release_description import Bundle
from mlcycle.stores.models.registry import load_registered_model, open_experiment, registered_model_file

CODE = """
import json, sys
try:
    import mlcycle
except ImportError:
    pass
else:
    raise SystemExit("mlcycle is installed there")
import mlflow, pandas
rows = pandas.DataFrame(json.load(open(sys.argv[2])), dtype=object)
mlflow.sklearn.load_model(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[1])
params = [None, {"predict_method": "predict_proba"}] if model.metadata.get_params_schema() else [None]
json.dump([model.predict(rows, params=each).tolist() for each in params], open(sys.argv[3], "w"))
"""


def make_environment(home: Path, requirements: Path) -> Path:
    "A virtual environment with the requirements of a version: its Python."
    python = home / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    listed = Path(__file__).parent / "environments" / "mlflow.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", listed, "-r", requirements], check=True)
    return python


def main(project: str = "") -> int:
    "Compare, and return the exit code."
    with TemporaryDirectory() as folder:
        home = Path(folder)
        if not project:
            subprocess.run([Path(sys.executable).parent / "mlcycle", "run", "-q"], cwd=home, check=True)
        run = mc.open("last", project or home)
        open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
        version = registered_model_file(run.candidate.model.name, run.candidate.model.version).parent
        bundle = Bundle.model_validate_json((version / "bundle.json").read_text())
        model = load_registered_model(run.candidate.model, run.workspace)
        rows = release_edge_rows(bundle)
        python = make_environment(home, version / "requirements.txt")
        (home / "rows.json").write_text(json.dumps(rows))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLCYCLE"))}
        words = [python, "-c", CODE, version, home / "rows.json", home / "found.json"]
        subprocess.run(words, check=True, cwd=home, env=kept)
        labels, *chances = json.loads((home / "found.json").read_text())
    expected = predict_by_pipeline(model, bundle, rows)
    same = labels == expected.labels.tolist()
    if chances:
        found = [each[bundle.problem.positive_index] if expected.scores.ndim == 1 else each for each in chances[0]]
        same &= found == expected.scores.tolist()
    print(f"{run.candidate.model.name} version {run.candidate.model.version}: {len(rows)} rows", "equal" if same else "DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""What leaves the workspace carries this package as a wheel; no requirement names what a stranger could publish."""

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor

from mlcycle.core import own_wheel
from mlcycle.core.own_wheel import own_requirement, pack_own_wheel
from mlcycle.core.versions import DISTRIBUTION
from mlcycle.core.workspace import Workspace
from mlcycle.outcomes import LeaderboardEntry, ModelRef, Problem, Score
from mlcycle.service.bundle import Bundle, build_bundle
from mlcycle.stores.models.model_files import save_model
from mlcycle.stores.models.registration import register_model
from mlcycle.stores.models.registry import open_experiment, registered_model_file

ROWS = pd.DataFrame({"x": [1.0, 2.0]})


def could_be_a_stranger(line: str) -> bool:
    "Whether an installer could look this package up by name, or take a file that is another than the one beside it."
    name = re.split(r"[\s=<>~!@;\[]", line.strip())[0].lower().replace("_", "-")
    ours = name.startswith("mlcycle") or "mlcycle" in line
    return ours and not re.fullmatch(rf"{DISTRIBUTION} @ file://\$\{{PWD\}}/[\w.-]+\.whl#sha256=[0-9a-f]{{64}}", line.strip())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    "A release bundle."
    folder = tmp_path_factory.mktemp("bundle")
    sha256 = save_model(DummyRegressor().fit(ROWS, ROWS.x), folder / "m.skops")
    fields = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    problem = Problem(**fields, target="y", task="regression", metric="r2", metrics=["r2"], criteria=[], rows=2)
    ref = ModelRef(name="m", version=1, run_id="-", sha256=sha256)
    about = Bundle(problem=problem, columns={"x": "float64"}, threshold=None, model=ref)
    return build_bundle(folder / "releases", about, folder / "m.skops")


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> Path:
    "The folder of a registered model."
    workspace = Workspace(tmp_path_factory.mktemp("registry"))
    workspace.root.mkdir()
    open_experiment(workspace.tracking_uri, workspace.artifacts, "m")
    model = DummyRegressor().fit(ROWS, ROWS.x)
    entry = LeaderboardEntry(
        model="dummy", score=Score(metric="r2", value=0.0), fold_scores=[0.0], fit_seconds=0.0, parameters={}
    )
    register_model("m", model, ROWS, pd.Series(model.predict(ROWS)), [entry], {})
    return registered_model_file("m", 1).parent


@pytest.mark.parametrize("where", ["bundle", "registered"])
def test_no_requirement_can_resolve_to_a_stranger(where, request):
    folder = request.getfixturevalue(where)
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        if (folder / name).exists():
            lines = [line.strip().removeprefix("- ").strip("'\"") for line in (folder / name).read_text().splitlines()]
            kept = [line for line in lines if not line.startswith(("#", "name:"))]
            assert not [line for line in kept if could_be_a_stranger(line)], name
    named = own_requirement(dependencies=False) in (folder / "requirements.txt").read_text().splitlines()
    assert named == (where == "bundle")  # A registered version has the modules that it imports in its folder


def test_what_could_be_a_stranger_is_noticed():
    for line in ("mlcycle==0.1.0", "mlcycle", f"{DISTRIBUTION}==0.1.0", f"{DISTRIBUTION} @ file://${{PWD}}/x.whl", "MLcycle>=0"):
        assert could_be_a_stranger(line), line
    assert not could_be_a_stranger(own_requirement())


def test_pip_installs_the_wheel_beside_it_and_nothing_else(bundle, tmp_path):
    folder = bundle
    line = next(line for line in (folder / "requirements.txt").read_text().splitlines() if line.startswith(DISTRIBUTION))
    (tmp_path / "own.txt").write_text(line + "\n")
    install = f"'{sys.executable}' -m pip install -q --no-deps --no-index --target '{tmp_path}/here' -r '{tmp_path}/own.txt'"
    subprocess.run(install, shell=True, cwd=folder, check=True)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import mlcycle, mlcycle.service.bundle as b; print(b.__file__)"
    found = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "here")], text=True, cwd=tmp_path).strip()
    assert Path(found).is_relative_to(tmp_path / "here")


def test_the_wheel_is_the_same_each_time(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(own_wheel, "package_files", lambda: {"mlcycle/a.py": tmp_path / "a.py"})
    packed = []
    for when in (1, 2_000_000_000):
        os.utime(tmp_path / "a.py", (when, when))
        packed.append(pack_own_wheel.__wrapped__())
    assert packed[0] == packed[1]
    (tmp_path / "a.py").write_text("x = 2\n")
    assert pack_own_wheel.__wrapped__() != packed[0], "other code, another hash"


def test_the_wheel_is_complete():
    names = ZipFile(BytesIO(pack_own_wheel()[1])).namelist()
    assert {"mlcycle/notebooks/04_modelling.ipynb", "mlcycle/service/app.py", "mlcycle/reports/pages.py"} <= set(names)
    assert any(each.startswith("mlcycle/notebooks/reports/templates/") for each in names)
    assert not [each for each in names if each.endswith(".pyc") or "/tests/" in each]


def test_an_installed_wheel_packs_itself_again(tmp_path):
    "From the wheel, installed where no checkout is, comes the same wheel."
    name, data = pack_own_wheel()
    (tmp_path / name).write_bytes(data)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path),
            tmp_path / name,
        ],
        check=True,
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hashlib, mlcycle; "
        "from mlcycle.core.own_wheel import pack_own_wheel; print(mlcycle.__file__); "
        "print(hashlib.sha256(pack_own_wheel()[1]).hexdigest())"
    )
    where, sha256 = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True, cwd=tmp_path).split()
    assert Path(where).is_relative_to(tmp_path)
    assert own_requirement().endswith(sha256)


def test_it_is_packed_where_nothing_is_installed(monkeypatch):
    def absent(name):
        raise own_wheel.PackageNotFoundError(name)

    monkeypatch.setattr(own_wheel, "distribution", absent)
    assert f"Name: {DISTRIBUTION}\n" in own_wheel.wheel_metadata()["METADATA"]


def test_the_commands_of_the_wheel_exist():
    "Each console script of the wheel, which is packed into releases too, names a function."
    with ZipFile(BytesIO(pack_own_wheel()[1])) as wheel:
        text = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))).decode()
    entry_points = ConfigParser(delimiters="=")
    entry_points.read_string(text)
    scripts = dict(entry_points["console_scripts"])
    assert set(scripts) == {"mlcycle", "mlcycle-service"}
    for place in scripts.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name)), place

"""The wheel carries what a run needs: notebooks, templates, code."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT, TABLES, WORDS

import mlcycle as mc
from mlcycle.outcomes import STAGES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of this checkout, built from a copy of what git tracks."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run([sys.executable, *build], check=True)
    return next(out.glob("*.whl"))


def test_holds_notebooks_and_templates(wheel):
    names = ZipFile(wheel).namelist()
    for number, stage in enumerate(STAGES, 1):
        assert f"mlcycle/notebooks/{number:02}_{stage}.ipynb" in names
        assert f"mlcycle/{stage}/stage.py" in names
    assert "mlcycle/notebooks/reports/templates/page.html.j2" in names
    assert not any(name.startswith(("tests/", "nbs/", "docs/")) for name in names)


def test_runs_from_any_folder(wheel, tmp_path):
    "Installed in an environment of its own that sees our dependencies but not this checkout."
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(
        subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    (tmp_path / "elsewhere").mkdir()
    TABLES["wine"][0]().to_csv(tmp_path / "elsewhere" / "wine.csv", index=False)
    options = [*WORDS, "-p", "cold_start=true"]
    run = [python.with_name("mlcycle"), "run", "-q", "--source", "wine.csv", "--target", "target", *options]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # Page templates are data files of our dependencies
    done = subprocess.run(run, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mc.open("last", tmp_path / "elsewhere").verdict.approved
    where = subprocess.check_output(
        [python, "-c", "import mlcycle; print(mlcycle.__file__)"], cwd=tmp_path, env=environment, text=True
    )
    assert where.strip().startswith(str(tmp_path))

"""Versions of packages, and the name of our own, have one place."""

import re
from importlib.metadata import metadata
from pathlib import Path

import mlcycle
from mlcycle.core.versions import DISTRIBUTION, installed_versions, mlcycle_install_command, package_version

PACKAGE = Path(mlcycle.__file__).parent


def test_only_one_module_asks_for_versions():
    asking = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "importlib.metadata import" in path.read_text()
    }
    assert asking <= {"core/versions.py", "core/own_wheel.py"}


def test_our_name_is_that_of_the_distribution():
    assert metadata(DISTRIBUTION)["Name"] == DISTRIBUTION
    assert package_version("mlcycle") == installed_versions()["mlcycle"] == mlcycle.__version__
    for extra in ("boosters", "holidays", "lab", "postgres"):
        assert extra in metadata(DISTRIBUTION).get_all("Provides-Extra"), mlcycle_install_command(extra)


def test_no_message_tells_to_install_a_stranger():
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "nbs").rglob("*.ipynb"), PACKAGE.parent / "README.md"]:
        found = re.findall(r"(?:pip|uv) install[^\n]*?['\"\s]mlcycle(?![\w-])", path.read_text())
        assert not found, (path, found)

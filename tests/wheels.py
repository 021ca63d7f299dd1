"""The wheels of a release, downloaded once for all tests."""

import os
from hashlib import sha256
from pathlib import Path
from platform import machine, python_version

import pytest
from filelock import FileLock
from toy_releases import toy_release

from mlcycle.deployment.wheelhouse import fill_wheelhouse, index_requirements
from mlcycle.errors import InputError


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory):
    """A folder with the wheels that a release of a boosted model needs (`toy_release`), and pip; for `--no-index --find-links`.

    Between sessions it is kept in the cache folder of the user, under the hash of its requirements."""
    requirements = toy_release(tmp_path_factory.mktemp("release"), 1) / "requirements.txt"
    lines = [*index_requirements(requirements), "pip", python_version(), machine()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlcycle-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"wheelhouse-{sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"
    with FileLock(f"{folder}.lock"):
        try:
            fill_wheelhouse(requirements, folder, ["pip"])
        except InputError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"No wheels: {error}")
    return folder

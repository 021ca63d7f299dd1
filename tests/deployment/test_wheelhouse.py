"""A wheelhouse: wheels of real packages, kept hashes, and errors of pip as one line."""

import shutil

import pytest

from mlcycle.deployment.wheelhouse import fill_wheelhouse, verify_sums
from mlcycle.errors import ArtifactError, InputError


def test_a_wheelhouse_has_wheels_only_with_their_hashes(wheelhouse, tmp_path):
    files = verify_sums(wheelhouse)
    assert {"numpy", "pandas", "scikit_learn", "uvicorn", "pip"} <= {name.split("-")[0] for name in files}
    assert all(name.endswith(".whl") for name in files if name != "requirements.txt")
    copy = shutil.copytree(wheelhouse, tmp_path / "copy")
    next(copy.glob("pip-*.whl")).write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="pip-.* has been altered"):
        verify_sums(copy)


@pytest.mark.parametrize(
    ("line", "reason"), [("numpy==2.2.0", "Connection refused"), ("mlcycle-notebooks-none==9", "mlcycle-notebooks-none")]
)
def test_without_network_or_package_nothing_is_left_behind(tmp_path, monkeypatch, line, reason):
    if "refused" in reason:
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    else:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "requirements.txt").write_text(f"{line}\n")
    with pytest.raises(InputError, match=reason):
        fill_wheelhouse(tmp_path / "requirements.txt", tmp_path / "wheels")
    assert [path.name for path in tmp_path.iterdir()] == ["requirements.txt"]

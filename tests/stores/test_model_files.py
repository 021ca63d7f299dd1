"""Model files that somebody crafted, and files of an older layout."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mlcycle.errors import ArtifactError
from mlcycle.ml.outliers import OutlierLimits
from mlcycle.stores.models.library_versions import add_versions_to_skops
from mlcycle.stores.models.model_files import (
    is_mlcycle_estimator_name,
    load_model,
    model_to_skops_bytes,
    save_model,
    untrusted_types,
)


def craft(path: Path, module: str, name: str, loader: str = "") -> Path:
    "A model file whose estimator is said to be another class."
    with (
        zipfile.ZipFile(io.BytesIO(add_versions_to_skops(model_to_skops_bytes(FunctionTransformer())))) as file,
        zipfile.ZipFile(path, "w") as out,
    ):
        schema = json.loads(file.read("schema.json")) | {"__module__": module, "__class__": name}
        out.writestr("schema.json", json.dumps(schema | ({"__loader__": loader} if loader else {})))
        out.writestr("versions.json", file.read("versions.json"))
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mlcycle.blends", "BlendClassifier"),
        ("mlcycle.features.encoders", "Lookup"),
        ("mlcycle.features.recipes", "CreateFeatures"),
        ("mlcycle.ml.outliers", "OutlierGuard"),
    ],
)
def test_an_older_layout_is_refused_in_words(module, name, tmp_path):
    with pytest.raises(ArtifactError) as refused:
        load_model(craft(tmp_path / "old.skops", module, name))
    assert f"{module}.{name}" in refused.value.found
    assert "older layout of mlcycle" in refused.value.expected
    assert "Train again: mlcycle run" in refused.value.remedy
    assert "registers" in refused.value.remedy


@pytest.mark.parametrize(
    ("module", "name", "loader"),
    [
        ("mlcycle.core.files", "write_text", "FunctionNode"),  # A function of ours
        ("mlcycle.core.workspace", "Workspace", "ObjectNode"),  # A class of ours that is no estimator
        ("mlcycle.ml.outliers", "BaseEstimator", "ObjectNode"),  # Not defined where the file says
        ("mlcycle.core.files", "os", "ObjectNode"),  # A module
        ("mlcycle_other.blends", "Model", "ObjectNode"),  # A package whose name begins like ours
        ("posix", "system", "FunctionNode"),
    ],
)
def test_a_crafted_file_is_refused(module, name, loader, tmp_path):
    with pytest.raises(ArtifactError, match="not trusted"):
        load_model(craft(tmp_path / "crafted.skops", module, name, loader))


def test_own_estimators_are_trusted_by_where_they_are_defined(tmp_path):
    assert untrusted_types(OutlierLimits()) == []
    assert isinstance(load_model(tmp_path / "m.skops", save_model(OutlierLimits(), tmp_path / "m.skops")), OutlierLimits)
    assert not is_mlcycle_estimator_name("mlcycle")
    assert not is_mlcycle_estimator_name("mlcycle.ml.outliers.OutlierLimits.fit")
    assert not is_mlcycle_estimator_name("sklearn.preprocessing._data.StandardScaler")


def test_a_module_outside_of_the_package_is_not_ours(tmp_path, monkeypatch):
    "Somebody else's module under our name, such as one that a plugin put into sys.modules."
    import sys
    import types

    fake = types.ModuleType("mlcycle.fake")
    fake.__file__ = str(tmp_path / "fake.py")
    fake.Model = type("Model", (StandardScaler,), {"__module__": "mlcycle.fake"})
    monkeypatch.setitem(sys.modules, "mlcycle.fake", fake)
    assert not is_mlcycle_estimator_name("mlcycle.fake.Model")

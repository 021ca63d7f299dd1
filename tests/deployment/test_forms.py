"""What stage 6 packages is kept only if all of it predicts as the pipeline."""

import pytest
from toy_releases import toy_release, toy_rows

from mlcycle.deployment import forms
from mlcycle.deployment.forms import ComparedRows, package_release
from mlcycle.deployment.parity import predict_by_pipeline
from mlcycle.errors import ParameterError, StageError
from mlcycle.lifecycle.value_checks import check_targets
from mlcycle.ml.predictions import Predictions
from mlcycle.service.bundle import open_release


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A release and rows with the predictions of its pipeline."
    release = toy_release(tmp_path_factory.mktemp("forms"), 1)
    bundle, model = open_release(release)
    rows = toy_rows(20, seed=3).to_dict("records")
    return release, ComparedRows(bundle, rows, predict_by_pipeline(model, bundle, rows), len(rows))


def test_packages_are_written_and_those_that_predict_are_compared(toy, tmp_path):
    written, compared = package_release(["azure", "wheel"], toy[0], tmp_path / "dist", toy[1], cold_start=False)
    assert [each.form for each in compared] == ["library"] and compared[0].n_equal == 20 and compared[0].proof
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == sorted(path.name for path in written.values())


def test_a_difference_in_the_last_bit_keeps_nothing(toy, tmp_path, monkeypatch):
    release, compared = toy
    altered = compared.expected.labels.copy()
    altered[7] *= 1 + 2**-52
    monkeypatch.setattr(forms, "predict_by_wheel", lambda *arguments, **options: Predictions(altered))
    (tmp_path / "older").touch()
    with pytest.raises(StageError, match="1 of 20 predictions of the form 'library' differ"):
        package_release(["sagemaker", "wheel"], release, tmp_path, compared)
    assert [path.name for path in tmp_path.iterdir()] == ["older"]


def test_an_unknown_target_is_refused_before_anything_runs():
    with pytest.raises(ParameterError, match="Did you mean 'wheel'"):
        check_targets(["weel"])

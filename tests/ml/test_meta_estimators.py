"""Sample weights reach every model of an ensemble, and wrappers keep scikit-learn's promises."""

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mlcycle.ml.meta_estimators import CalibratedClassifier, LabelEncodedClassifier, fit_with_sample_weight
from mlcycle.stores.models.model_files import load_model, save_model

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(RNG.normal(size=(200, 3)), columns=["a", "b", "c"])
TARGET = np.where(TABLE.a + RNG.normal(size=200) > 0, "yes", "no")
WEIGHTS = np.where(TARGET == "yes", 5.0, 0.2)


def scaled(model):
    "A pipeline whose transformer knows sample weights too."
    return make_pipeline(make_column_transformer((StandardScaler(), ["b", "a"])), model)


@pytest.mark.parametrize("model", [LogisticRegression(), LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1)], ids=str)
def test_weights_reach_each_member_of_an_ensemble_and_no_transformer(model):
    members = [("one", scaled(clone(model))), ("nested", Pipeline([("inner", scaled(clone(model)))]))]
    ensemble = fit_with_sample_weight(VotingClassifier(members, voting="soft", weights=[0.5, 0.5]), TABLE, TARGET, WEIGHTS)
    features = StandardScaler().fit_transform(TABLE[["b", "a"]])
    alone = clone(model).fit(features, TARGET, sample_weight=WEIGHTS).predict_proba(features)
    plain = clone(model).fit(features, TARGET).predict_proba(features)
    assert not np.allclose(alone, plain, atol=0.05), "the weights matter"
    for each in ensemble.estimators_:
        np.testing.assert_allclose(each.predict_proba(TABLE), alone)
    np.testing.assert_allclose(ensemble.predict_proba(TABLE), alone)


def test_a_model_that_knows_no_weights_does_without():
    members = [("known", scaled(LogisticRegression())), ("unknown", scaled(KNeighborsClassifier()))]
    ensemble = fit_with_sample_weight(VotingClassifier(members, voting="soft"), TABLE, TARGET, WEIGHTS)
    np.testing.assert_array_equal(
        ensemble.estimators_[1].predict_proba(TABLE),
        scaled(KNeighborsClassifier()).fit(TABLE, TARGET == "yes").predict_proba(TABLE),
    )
    fit_with_sample_weight(scaled(KNeighborsClassifier()), TABLE, TARGET, WEIGHTS)
    numbers = fit_with_sample_weight(VotingRegressor([("r", scaled(Ridge()))]), TABLE, TABLE.c, WEIGHTS)
    features = StandardScaler().fit_transform(TABLE[["b", "a"]])
    np.testing.assert_allclose(numbers.predict(TABLE), Ridge().fit(features, TABLE.c, WEIGHTS).predict(features))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_a_fitted_ensemble_is_saved_without_what_routing_left(weights, tmp_path):
    ensemble = VotingClassifier([("a", scaled(LogisticRegression())), ("b", scaled(LogisticRegression(C=0.1)))], voting="soft")
    model = CalibratedClassifier(ensemble, 0.8, [0.0, 0.1])
    model = fit_with_sample_weight(model, TABLE, TARGET, weights)
    save_model(model, tmp_path / "model.skops")
    again = load_model(tmp_path / "model.skops")
    np.testing.assert_array_equal(again.predict_proba(TABLE), model.predict_proba(TABLE))
    assert set(again.predict(TABLE)) <= {"yes", "no"}


@pytest.mark.parametrize("wrapper", [CalibratedClassifier, LabelEncodedClassifier])
def test_wrappers_say_when_they_are_not_fitted_and_know_their_columns(wrapper):
    model = wrapper(LogisticRegression())
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(model, method)(TABLE)
    model = clone(model).fit(TABLE, TARGET)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.n_features_in_ == 3
    assert model.classes_.tolist() == ["no", "yes"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(TABLE.rename(columns={"c": "d"}))

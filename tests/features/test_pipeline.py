"""The feature pipeline: one row is its line in the batch, names lead back to columns, files hold no code."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import TargetEncoder
from threadpoolctl import threadpool_limits

from mlcycle.errors import InputError, ParameterError
from mlcycle.features.encode.encode import ENCODINGS, FeatureEncoder
from mlcycle.features.encode.encoders import SCALERS, columns_to_floats
from mlcycle.features.encode.pipeline import build_preprocessor, map_outputs_to_features
from mlcycle.service.bundle import EVENT_DRIVERS, SERVICE_PACKAGES, service_requirements
from mlcycle.stores.models.library_versions import add_versions_to_skops
from mlcycle.stores.models.model_files import load_model, model_to_skops_bytes, save_model

KINDS = {
    "price": "number",
    "seats": "number",
    "paid": "number",
    "size": "category",
    "grade": "category",
    "coach": "category",
    "town": "many categories",
    "zip": "many categories",
    "placed": "date",
    "note": "text",
}


def make_table(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    "Columns of every kind and of many types, with missing values in most."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "price": np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(size=rows)),
            "seats": pd.array(rng.integers(1, 5, rows), "Int64"),
            "paid": pd.array(rng.random(rows) < 0.5, "boolean"),
            "size": pd.Series(rng.choice(["S", "M", "L", None], rows), dtype="str"),
            "grade": pd.Categorical(rng.choice(["low", "middle", "high"], rows), ["low", "middle", "high"], ordered=True),
            "coach": pd.Series(rng.choice([True, False, None], rows), dtype=object),
            "town": pd.array(rng.choice([f"t{i}" for i in range(60)], rows), "string"),
            "zip": rng.choice(np.arange(1000.0, 1040.0), rows),
            "placed": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10_000, rows), "h"),
            "note": pd.Series(rng.choice(["late, snow", "no delay", "windy day", "", None], rows), dtype=object),
        }
    )
    table.loc[:: max(2, rows // 15), ["seats", "paid", "grade", "zip", "town", "placed"]] = None
    return table


TABLE = make_table()
TARGET = (TABLE.price.fillna(1) + TABLE["size"].eq("S") > 1.2).map({True: "yes", False: "no"})
FITTED = {encoding: build_preprocessor(KINDS, encoding=encoding, outliers="flag").fit(TABLE, TARGET) for encoding in ENCODINGS}

anything = {
    "price": st.one_of(st.none(), st.floats(), st.integers(-(10**9), 10**9).map(float)),
    "seats": st.one_of(st.none(), st.integers(-3, 10**6)),
    "paid": st.sampled_from([None, True, False]),
    "size": st.one_of(st.none(), st.sampled_from(["S", "M", "L", ""]), st.text(max_size=4)),
    "grade": st.sampled_from([None, "low", "middle", "high"]),
    "coach": st.sampled_from([None, True, False, "True", "perhaps", "", 1, 0.0]),
    "town": st.one_of(st.none(), st.sampled_from(["t1", "t2", ""]), st.text(max_size=4)),
    "zip": st.one_of(st.none(), st.integers(1000, 1050).map(float), st.just(float("inf"))),
    "placed": st.one_of(st.none(), st.datetimes(pd.Timestamp("1900-01-01"), pd.Timestamp("2200-01-01"))),
    "note": st.one_of(st.none(), st.sampled_from(["no delay", "snow", ""]), st.text(max_size=12)),
}


def to_table(rows: list[dict]) -> pd.DataFrame:
    "Rows with the types of the table."
    return pd.DataFrame(rows, columns=list(KINDS), dtype=object).astype(TABLE.dtypes.to_dict())


def same(one, other) -> None:
    "Equal to the last bit that rounding leaves, missing ones and categories included."
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, rtol=1e-9)
    else:
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(rows=st.lists(st.fixed_dictionaries(anything), min_size=1, max_size=5), copies=st.sampled_from([1, 40]))
@settings(max_examples=25, deadline=None)
def test_one_row_is_its_line_in_the_batch(encoding, rows, copies):
    batch = to_table(rows * copies)  # Many rows are read in another way than few
    together = FITTED[encoding].transform(batch)
    for place in range(len(rows)):
        alone = FITTED[encoding].transform(batch.iloc[[place]])
        same(alone, together.iloc[[place]] if encoding == "native" else together[[place]])
    numbers = together.select_dtypes("number") if encoding == "native" else together
    assert not np.isinf(np.asarray(numbers, dtype=float)).any()
    if encoding in ("linear", "neighbours"):
        assert np.isfinite(together).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_saved_and_loaded_without_code(encoding, tmp_path):
    pipeline = build_preprocessor(KINDS, encoding=encoding, outliers="flag")
    sha256 = save_model(pipeline, tmp_path / "plan.skops")
    again = load_model(tmp_path / "plan.skops", sha256)
    assert again["encode"].get_params() == pipeline["encode"].get_params()
    same(again.fit(TABLE, TARGET).transform(TABLE), FITTED[encoding].transform(TABLE))
    fitted = save_model(FITTED[encoding], tmp_path / "fitted.skops")
    loaded = load_model(tmp_path / "fitted.skops", fitted)
    same(loaded.transform(TABLE), FITTED[encoding].transform(TABLE))
    assert loaded.get_feature_names_out().tolist() == FITTED[encoding].get_feature_names_out().tolist()
    assert save_model(loaded, tmp_path / "again.skops") == fitted, "asking a model changes nothing in it"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_number_has_a_name_and_an_origin(encoding):
    names, made = FITTED[encoding].get_feature_names_out(), FITTED[encoding].transform(TABLE)
    origins = map_outputs_to_features(FITTED[encoding])
    assert list(origins) == names.tolist() and len(set(names)) == made.shape[1]
    assert set(origins.values()) == set(KINDS)
    if encoding == "native":
        assert made.columns.tolist() == names.tolist()


def test_origins_are_not_guessed_from_names():
    "Columns whose names begin alike, or look like another's feature."
    rows = 100
    table = pd.DataFrame({"a": ["b", "c"] * 50, "a_b": np.arange(rows), "a_b_c": ["c", "d"] * 50, "a_b_month": ["c", "x"] * 50})
    column_types = {"a": "category", "a_b": "number", "a_b_c": "category", "a_b_month": "category"}
    origins = map_outputs_to_features(build_preprocessor(column_types).fit(table, table.a))
    assert list(origins.values()) == ["a_b", "a", "a", "a_b_c", "a_b_c", "a_b_month", "a_b_month"]
    assert list(origins)[:2] == ["a_b", "a_b_2"], "two numbers never have the same name"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_order_of_columns_and_further_columns_do_not_matter(encoding):
    shuffled = TABLE[list(KINDS)[::-1]].assign(more=1)
    same(FITTED[encoding].transform(shuffled), FITTED[encoding].transform(TABLE))
    assert FITTED[encoding].feature_names_in_.tolist() == list(TABLE)


def test_a_missing_column_is_named():
    with pytest.raises(InputError, match="no column 'town', 'note'"):
        FITTED["trees"].transform(TABLE.drop(columns=["town", "note"]))
    with pytest.raises(InputError, match="no column 'town'"):
        build_preprocessor(KINDS).fit(TABLE.drop(columns="town"), TARGET)


def test_what_does_not_exist_is_named():
    for change in ({"encoding": "cats"}, {"scaling": "none"}, {"column_types": {"price": "prices"}}):
        with pytest.raises(ParameterError, match="cats|none|prices"):
            FeatureEncoder(KINDS).set_params(**change).fit(TABLE, TARGET)


def test_types_of_the_same_values_give_the_same_numbers():
    "Whole numbers with missing ones as Int64, float or objects; text as str, string, object or category."
    other = TABLE.assign(
        seats=TABLE.seats.astype("float64"),
        paid=TABLE.paid.astype(object).where(TABLE.paid.notna(), None),
        size=TABLE["size"].astype("category"),
        grade=TABLE.grade.astype("str"),
        town=TABLE.town.astype(object),
        zip=pd.array(TABLE.zip, "Int64"),
        placed=TABLE.placed.astype("str"),
    )
    for encoding in ENCODINGS:
        same(FITTED[encoding].transform(other), FITTED[encoding].transform(TABLE))
    arrow = TABLE.assign(size=TABLE["size"].astype("string[pyarrow]"), price=TABLE.price.astype("float64[pyarrow]"))
    same(FITTED["trees"].transform(arrow), FITTED["trees"].transform(TABLE))


def test_parameters_are_changed_from_outside():
    pipeline = clone(FITTED["trees"]).set_params(encode__encoding="linear", encode__scaling="robust")
    assert pipeline["encode"].encoding == "linear" and pipeline.get_params()["encode__scaling"] == "robust"
    assert isinstance(pipeline, Pipeline) and not hasattr(pipeline["encode"], "encoders_")


@pytest.mark.parametrize("scaling", SCALERS)
def test_scaled_numbers_are_near_nought(scaling):
    table = pd.DataFrame({"far": np.append(np.random.default_rng(0).normal(50, 9, 999), np.inf), "same": 7.0, "none": np.nan})
    encode = FeatureEncoder(dict.fromkeys(table, "number"), "linear", scaling=scaling).fit(table)
    made = encode.transform(table)
    assert np.isfinite(made).all() and abs(np.median(made[:, 0])) < 0.2 and np.abs(made).max() < 10


def test_training_rows_are_cross_fitted_as_scikit_learn_does():
    column_types, numbers = {"town": "many categories"}, (TABLE.price.fillna(1) > 1).to_numpy()
    made = build_preprocessor(column_types, seed=3).fit_transform(TABLE, numbers)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    towns = TABLE[["town"]].astype(object).where(TABLE[["town"]].notna(), None)
    peer = TargetEncoder(cv=folds).fit(towns, numbers)
    np.testing.assert_allclose(made, clone(peer).fit_transform(towns, numbers))
    fitted = build_preprocessor(column_types, seed=3).fit(TABLE, numbers)
    np.testing.assert_allclose(fitted.transform(TABLE), peer.transform(towns))
    assert not np.allclose(made, fitted.transform(TABLE))


def test_in_order_of_time_later_rows_say_nothing():
    rows, cut = 800, 500
    rng = np.random.default_rng(0)
    table, target = pd.DataFrame({"town": rng.choice(list("abcdefgh"), rows)}), rng.random(rows)
    encode = FeatureEncoder({"town": "many categories"}, classification=False, time_ordered=True)
    before = encode.fit_transform(table, target)
    changed = np.append(target[:cut], rng.random(rows - cut) + 9)
    np.testing.assert_allclose(encode.fit_transform(table, changed)[:cut], before[:cut])
    shuffled = FeatureEncoder({"town": "many categories"}, classification=False)
    assert not np.allclose(shuffled.fit_transform(table, changed)[:cut], shuffled.fit_transform(table, target)[:cut])


def test_a_whole_number_to_predict_is_no_class():
    encode = FeatureEncoder({"town": "many categories"}, classification=False).fit(TABLE, np.arange(len(TABLE)) % 7)
    assert len(encode.get_feature_names_out()) == 1
    several = FeatureEncoder({"town": "many categories"}).fit(TABLE, pd.Series(np.arange(len(TABLE)) % 3).map(str))
    assert map_outputs_to_features(Pipeline([("encode", several)])) == {"town_0": "town", "town_1": "town", "town_2": "town"}


def test_many_categories_are_lumped_for_boosters():
    table = pd.DataFrame({"town": [f"t{i}" for i in range(400) for _ in range(1 + i % 3)]})
    encode = FeatureEncoder({"town": "many categories"}, "native").fit(table)
    made = encode.transform(pd.DataFrame({"town": ["t2", "t3", "never seen", None]})).town
    assert made.tolist()[:3] == ["t2", "(other)", "(other)"] and made.isna().tolist() == [False, False, False, True]
    assert len(made.cat.categories) == 201
    HistGradientBoostingClassifier(max_iter=2).fit(encode.transform(table), table.town.str.len() > 2)


@pytest.mark.parametrize("encoding", ["trees", "native"])
def test_a_column_that_is_missing_in_all_training_rows_is_constant(encoding, tmp_path):
    "As the history of the first rows is. A booster that refuses such a column learns, and later values change nothing."
    empty = TABLE.assign(price=np.nan, size=None, town=None, placed=pd.NaT)
    pipeline = build_preprocessor({name: KINDS[name] for name in KINDS if name != "note"}, encoding=encoding, outliers="flag")
    model = make_pipeline(pipeline, HistGradientBoostingClassifier(max_iter=3))
    model.fit(empty, TARGET)
    made = pipeline.fit(empty, TARGET).transform(TABLE)
    price = np.asarray(made)[:, pipeline.get_feature_names_out().tolist().index("price")]
    assert (price.astype(float) == 0).all()
    same(pipeline.transform(TABLE.iloc[[3]]), made.iloc[[3]] if encoding == "native" else made[[3]])
    assert np.array_equal(model.predict(TABLE.assign(price=9.0)), model.predict(TABLE))
    sha256 = save_model(pipeline, tmp_path / "m.skops")
    same(load_model(tmp_path / "m.skops", sha256).transform(TABLE), made)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dates_go_round_for_models_that_draw_lines(encoding):
    days = pd.DataFrame({"placed": pd.date_range("2019-01-01", periods=900)})
    names = set(
        build_preprocessor({"placed": "date"}, encoding=encoding).fit(days, days.placed.dt.day > 9).get_feature_names_out()
    )
    assert "placed_year" in names
    assert ("placed_month_sin" in names) == (encoding in ("linear", "neighbours"))
    assert ("placed_month" in names) == (encoding in ("trees", "native"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_holidays_of_a_country_are_told_apart(encoding, tmp_path):
    days = pd.DataFrame({"placed": pd.date_range("2019-01-01", periods=900)})
    off = days.placed.dt.strftime("%m-%d").isin(["01-01", "07-04", "12-25"])
    pipeline = build_preprocessor({"placed": "date"}, encoding=encoding, holidays="US")
    sha256 = save_model(pipeline, tmp_path / "plan.skops")
    fitted = load_model(tmp_path / "plan.skops", sha256).fit(days, off)
    place = fitted.get_feature_names_out().tolist().index("placed_holiday")
    said = np.asarray(fitted.transform(days))[:, place]
    assert said[off].min() > said[~off].mean()
    assert set(map_outputs_to_features(fitted).values()) == {"placed"}

    def needed(name):
        lines = service_requirements(tmp_path / name).splitlines()
        return [line.split("==")[0] for line in lines if "==" in line]

    model = make_pipeline(fitted, LGBMClassifier(n_estimators=2, n_jobs=1, verbose=-1)).fit(days, off)
    (tmp_path / "m.skops").write_bytes(add_versions_to_skops(model_to_skops_bytes(model)))  # As it is registered
    assert needed("m.skops") == [*SERVICE_PACKAGES, *EVENT_DRIVERS, "holidays", "lightgbm"]
    save_model(FITTED[encoding], tmp_path / "plain.skops")
    assert needed("plain.skops") == [*SERVICE_PACKAGES, *EVENT_DRIVERS]


MODELS = [
    ("native", LGBMClassifier(n_estimators=20, min_child_samples=5, n_jobs=1, verbose=-1)),
    ("native", HistGradientBoostingClassifier(max_iter=20, min_samples_leaf=5)),
    ("trees", HistGradientBoostingClassifier(max_iter=20, min_samples_leaf=5)),
    ("linear", LogisticRegression(max_iter=500)),
    ("neighbours", KNeighborsClassifier()),
]


@pytest.mark.parametrize(("encoding", "model"), [pytest.param(*pair, id=f"{pair[0]} {pair[1]}"[:20]) for pair in MODELS])
def test_models_learn_from_it(encoding, model):
    table = make_table(600, seed=1)
    target = (table.price.fillna(1) + 2 * table["size"].eq("S") + table.town.isin([f"t{i}" for i in range(30)]) > 2).to_numpy()
    both = make_pipeline(build_preprocessor(KINDS, encoding=encoding), model)
    with threadpool_limits(1):  # Threads wait for each other on a busy machine
        assert cross_val_score(both, table, target, scoring="roc_auc", cv=3).mean() > 0.65
        fitted = both.fit(table, target)
    several = table.iloc[:5].assign(size="never seen", town=None)
    alone = [fitted.predict_proba(several.iloc[[place]])[0] for place in range(5)]
    np.testing.assert_allclose(fitted.predict_proba(several), alone)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_rows_and_few_rows(encoding):
    assert FITTED[encoding].transform(TABLE.head(0)).shape == (0, len(FITTED[encoding].get_feature_names_out()))
    few = build_preprocessor(KINDS, encoding=encoding).fit(TABLE.head(6), TARGET.head(6))
    assert len(few.transform(TABLE)) == len(TABLE)


def test_a_date_without_parts_that_vary_gives_nothing():
    table = pd.DataFrame({"x": np.arange(10.0), "day": pd.Timestamp("2020-01-01")})
    encode = FeatureEncoder({"x": "number", "day": "date"}, "linear").fit(table)
    assert encode.get_feature_names_out().tolist() == ["x"] and encode.transform(table).shape == (10, 1)


HUGE = {"trees": RandomForestClassifier(10, random_state=0), "linear": LogisticRegression(), "neighbours": KNeighborsClassifier()}


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize("huge", [1e39, -1e200, 1.7e308])
@pytest.mark.parametrize("encoding", HUGE)
def test_huge_numbers_are_learnt_from_and_predicted(encoding, huge, scaling):
    rows = pd.DataFrame({"a": np.linspace(-1, 1, 60), "b": np.linspace(0, 1, 60) % 0.3})
    target, asked = pd.Series(rows.a > 0).astype(int), rows.iloc[[0, 30]].copy()
    asked.iloc[0, 1] = huge
    preprocessor = FeatureEncoder({"a": "number", "b": "number"}, encoding=encoding, scaling=scaling)
    for train in (rows, pd.concat([rows, asked.iloc[:1]])):
        model = make_pipeline(clone(preprocessor), clone(HUGE[encoding]))
        model.fit(train, target.reindex(train.index))
        assert np.isfinite(model[:-1].transform(asked)).all()
        assert np.isfinite(model.predict_proba(asked)).all()
        if train is rows or scaling == "squashing":  # The others scale by what the huge number has stretched
            assert model.score(rows, target) > 0.9


def test_numbers_of_32_bits_stay_as_they_are():
    given = pd.DataFrame({"a": [0.0, -0.0, 5e-324, 1e30, -3.4e38, np.nan, np.inf]})
    assert np.array_equal(columns_to_floats(given, ["a"])[:-2, 0], given.a[:-2].to_numpy())
    assert np.isnan(columns_to_floats(given, ["a"])[-2:]).all()


def make_texts(rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    "Texts of eight of 400 words, and a number: the mean of the words' values, which are 1 or -1."
    words = ["".join(letters) for letters in np.random.default_rng(0).choice(list("abcdefghijklmnop"), (400, 6))]
    places = np.random.default_rng(seed).integers(0, 400, (rows, 8))
    return pd.DataFrame({"text": [" ".join(words[place] for place in line) for line in places]}), (places % 2 - 0.5).mean(axis=1)


def test_a_text_whose_single_words_matter_is_learnt():
    (rows, value), (new, later) = make_texts(1000, 1), make_texts(1000, 2)
    for encoding in ("trees", "linear"):
        encode = FeatureEncoder({"text": "text"}, encoding)
        made, scored = np.asarray(encode.fit_transform(rows, value > 0)), np.asarray(encode.transform(new))
        model = LogisticRegression(C=0.1).fit(made, value > 0)
        assert model.score(scored, later > 0) > 0.8  # 0.62 by the 30 components alone
    target = np.select([value < -0.1, value > 0.1], ["low", "high"], "middle")
    names = FeatureEncoder({"text": "text"}).fit(rows, target).get_feature_names_out()
    assert names[30:].tolist() == ["text_score_high", "text_score_low", "text_score_middle"]
    encode = FeatureEncoder({"text": "text"}, classification=False).fit(rows, value)
    assert np.corrcoef(encode.transform(new)[:, -1], later)[0, 1] > 0.9


@pytest.mark.parametrize("time_ordered", [False, True])
def test_training_texts_are_scored_by_other_rows(time_ordered):
    rows, chance = make_texts(600, 1)[0], np.random.default_rng(0).random(600)
    encode = FeatureEncoder({"text": "text"}, classification=False, time_ordered=time_ordered)
    made = encode.fit_transform(rows, chance)
    assert abs(np.corrcoef(made[:, -1], chance)[0, 1]) < 0.15
    assert np.corrcoef(encode.transform(rows)[:, -1], chance)[0, 1] > 0.6  # As if the training rows were new

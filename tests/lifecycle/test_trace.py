"""Traces: from a prediction to all that it comes from, and from a row of the source to the predictions it has led to."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import orders, stored_rows
from projects import add_cell
from recorded_predictions import record_predictions

import mlcycle as mc
from mlcycle.errors import ParameterError
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.lifecycle import similar_rows
from mlcycle.lifecycle.lineage_events import LINEAGE_FILE
from mlcycle.lifecycle.similar_rows import find_similar_rows, leaf_function, model_members
from mlcycle.lifecycle.source_row_trace import trace_source_rows, write_affected_predictions
from mlcycle.lifecycle.trace import trace_prediction
from mlcycle.ml.meta_estimators import CalibratedClassifier
from mlcycle.modelling.candidates import CANDIDATES
from mlcycle.outcomes import STAGES
from mlcycle.service.personal_columns import PersonalColumns
from mlcycle.service.service_settings import DEFAULT_SETTINGS
from mlcycle.stores.event_log import open_event_log
from mlcycle.stores.events import add_events, define_event_tables
from mlcycle.stores.tables.holdout import holdout_access_file

TREES = ("lightgbm", "xgboost", "catboost", "forest", "extra trees")


@pytest.fixture
def run(project):
    "A run whose release has predicted rows of its training table."
    found = mc.open("last", project)
    record_predictions(found, stored_rows(found, "train").head(6))
    return found


def test_a_request_is_traced_to_its_sources_and_computed_again(run):
    facts = trace_prediction(run.workspace, "request-1")
    assert (facts["prediction"]["row_id"], [each["row_id"] for each in facts["others"]]) == ("row-1", ["row-4"])
    assert [each["actual"] for each in facts["actual_values"]] == [run.problem.classes[0]]
    assert facts["repeated"]["equal"]
    assert facts["repeated"]["score"] == pytest.approx(facts["prediction"]["score"], abs=1e-6)
    origin, train = facts["origin"], run.dataset.tables["train"]
    assert (origin["run"], origin["version"]) == (run.id, run.release.model.version)
    assert (train.version, train.sha256) in [(each["version"], each["sha256"]) for each in origin["tables"]]
    assert [each["source"] for each in origin["sources"]] == ["orders.csv"]
    assert facts["release"]["is_registered"]
    assert facts["release"]["signer"]
    assert facts["notes"] == []
    assert json.loads(json.dumps(facts)) == facts


def test_each_stage_has_its_notebook_cells_code_and_parameters(run, project):
    stages = trace_prediction(run.workspace, "row-0", count=0)["stages"]
    assert [each["stage"] for each in stages] == list(STAGES)
    assert all(each["cells"] and each["code"] and not each["changed_cells"] for each in stages)
    assert next(each for each in stages if each["stage"] == "problem")["parameters"]["target"] == "late"
    add_cell(project, "features", "print('a new cell')")
    stages = trace_prediction(run.workspace, "row-0", count=0)["stages"]
    assert {each["stage"]: each["changed_cells"] for each in stages if each["changed_cells"]} == {"features": ["added"]}


def test_the_most_similar_training_row_of_a_training_row_is_itself(run):
    similar = trace_prediction(run.workspace, "row-2", count=3)["similar_rows"]
    train = stored_rows(run, "train")
    assert similar["rows"][0]["row_id"] == int(train.index[2])
    assert similar["rows"][0]["differs"] == {}
    assert [each["target"] for each in similar["rows"]] == train.late[[each["row_id"] for each in similar["rows"]]].tolist()
    assert len(similar["rows"]) == 3
    assert similar["n_compared"] == len(train)


def change(run: mc.Run, **values: object) -> None:
    "Change the recorded prediction of `row-0`."
    table, engine = define_event_tables()["predictions"], open_event_log(run.workspace.events_url)
    with engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.row_id == "row-0").values(**values))


def test_what_was_altered_or_is_missing_is_told(run):
    change(run, probability=0.123)
    assert not trace_prediction(run.workspace, "row-0")["repeated"]["equal"]
    change(run, features={"price": 0.5, "town__hmac": "af01"})
    facts = trace_prediction(run.workspace, "row-0")
    assert facts["repeated"] == facts["similar_rows"] == {}
    assert "(town only as hashes)" in facts["notes"][0]
    release = run.workspace.root / run.release.bundle
    (release / "bundle.json").write_text((release / "bundle.json").read_text() + " ")
    facts = trace_prediction(run.workspace, "row-1")
    assert facts["origin"]["run"] == run.id
    assert "not computed again" in facts["notes"][0]
    shutil.rmtree(release)
    shutil.rmtree(run.folder)
    shutil.rmtree(run.workspace.tables / "train")
    notes = " ".join(trace_prediction(run.workspace, "row-1")["notes"])
    assert "its notebooks are not known" in notes
    assert "not in this workspace" in notes
    change(run, model_version=None)
    assert "no version" in trace_prediction(run.workspace, "row-0")["notes"][0]


def test_what_is_damaged_is_a_note_and_the_rest_is_used(run):
    with (run.folder / LINEAGE_FILE).open("a") as file:
        file.write('{"eventType": "COMPL')
    engine = open_event_log(run.workspace.events_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE predictions SET features = '{"price": 0.' WHERE row_id = 'row-0'""")
    facts = trace_prediction(run.workspace, "row-0")
    line, values = facts["notes"]
    number = len((run.folder / LINEAGE_FILE).read_text().splitlines())
    assert line == f"Line {number} of {run.folder / LINEAGE_FILE} is no lineage event and is left out: it was cut off or damaged."
    assert "damaged values of this prediction (features)" in values
    assert facts["repeated"] == facts["similar_rows"] == {}
    assert all(each["cells"] for each in facts["stages"])
    assert trace_prediction(run.workspace, "row-1")["repeated"]["equal"]


def test_of_several_predictions_of_a_row_the_newest_returned_one_counts(run):
    events = record_predictions(run, stored_rows(run, "train").head(1), request_id="later", role="shadow")
    facts = trace_prediction(run.workspace, "row-0", count=0)
    assert facts["prediction"]["role"] == "champion"
    assert [each["role"] for each in facts["others"]] == ["shadow"]
    assert trace_prediction(run.workspace, "later", count=0)["prediction"]["role"] == "shadow"
    assert events[0]["request_id"] == "later"


def test_a_row_whose_id_is_hashed_is_found_by_its_id(run, project, monkeypatch):
    monkeypatch.setenv("MLCYCLE_LOG_HASH_KEY", "a key of the tests, long enough")
    settings = project / "settings.ini"
    settings.write_text(settings.read_text() + "\n[prediction_log]\nhash_columns = row_id, town\n")
    hashed = PersonalColumns(replace(DEFAULT_SETTINGS, log_hash_columns="row_id")).row_id("row-0")
    change(run, row_id=hashed)
    assert trace_prediction(run.workspace, "row-0", count=0)["prediction"]["row_id"] == hashed


def test_an_unknown_id_names_the_nearest(run):
    with pytest.raises(ParameterError, match="Did you mean 'request-1'"):
        trace_prediction(run.workspace, "requets-1")
    with pytest.raises(ParameterError, match="of the model 'other'"):
        trace_prediction(run.workspace, "row-1", model="other")


@pytest.mark.parametrize("name", CANDIDATES)
def test_similar_rows_of_every_candidate(name, monkeypatch):
    "A row is most similar to itself; in trees, it shares all leaves with itself, also with a calibration around them."
    table = orders().head(300)
    rows, target = table[["town", "spend", "paid", "vip"]], np.where(table.late == "No", "no", "yes")
    types = {"town": "category", "spend": "number", "paid": "number", "vip": "category"}
    candidate = CANDIDATES[name]
    if why := candidate.reason_excluded("binary", len(rows)):
        pytest.skip(why)
    pipeline = build_preprocessor(types, encoding=candidate.encodings[0])
    pipeline.steps.append(("model", candidate.make_estimator("binary", 0, {})))
    fitted = CalibratedClassifier(pipeline, 1.5).fit(rows, target)
    found = find_similar_rows(fitted, rows, rows.iloc[[11]], 300)
    (member,) = model_members(fitted)
    assert (leaf_function(member.estimator) is not None) == (name in TREES)
    assert found.measure == ("shared leaves" if name in TREES else "distance")
    assert found.values[11] == (1.0 if name in TREES else 0.0)
    assert found.values.is_monotonic_decreasing if name in TREES else found.values.is_monotonic_increasing
    monkeypatch.setattr(similar_rows, "PRESELECTED_ROWS", 20)
    few = find_similar_rows(fitted, rows, rows.iloc[[11]], 5)
    assert (few.values[11], few.n_compared, "first trees" in few.meaning) == (found.values[11], 300, name in TREES)
    assert ("does not predict from single rows" in found.meaning) == (name not in (*TREES, "neighbours"))


def test_a_training_row_is_traced_to_versions_and_predictions(run, tmp_path):
    train, model = stored_rows(run, "train"), run.release.model
    facts = trace_source_rows(run.workspace, row_id=str(train.index[3]))
    assert [(each["table"], each["rows"], each["found_by"]) for each in facts["tables"]] == [("train@0", 1, "row id")]
    (use,) = facts["models"]
    assert (use["model"], use["version"], use["role"], use["run"]) == (model.name, model.version, "trained", run.id)
    assert (use["predictions"]["rows"], use["predictions"]["labelled"], facts["n_predictions"]) == (6, 1, 6)
    assert facts["rows"][0]["price"] == train.price.iloc[3]
    assert write_affected_predictions(run.workspace, facts, tmp_path / "affected.csv") == 6
    written = pd.read_csv(tmp_path / "affected.csv")
    assert sorted(written.row_id) == [f"row-{number}" for number in range(6)]
    assert json.loads(json.dumps(facts)) == facts


def test_a_row_of_the_holdout_is_traced_without_an_access_to_it(run):
    accesses = holdout_access_file(run.workspace)
    holdout = stored_rows(run, "holdout")
    before = accesses.read_bytes()
    facts = trace_source_rows(run.workspace, row_id=str(holdout.index[0]))
    assert (facts["rows"], [each["role"] for each in facts["models"]]) == ([], ["evaluated"])
    assert facts["n_predictions"] == 0
    assert "not shown" in facts["notes"][0]
    day = holdout.placed.iloc[0]
    with pytest.raises(ParameterError, match="The holdout was not searched"):
        trace_source_rows(run.workspace, values={"placed": f"{day:%Y-%m-%d}"})
    assert accesses.read_bytes() == before


def test_rows_are_traced_by_values(run):
    train = stored_rows(run, "train")
    facts = trace_source_rows(run.workspace, values={"town": "Ulm", "late": "yes"}, address="train")
    expected = int(((train.town == "Ulm") & (train.late == "yes")).sum())
    assert facts["tables"][0]["rows"] == facts["models"][0]["rows"] == expected
    for values, text in (({"twon": "Ulm"}, "Did you mean 'town'"), ({"price": "cheap"}, "is no value of the column 'price'")):
        with pytest.raises(ParameterError, match=text):
            trace_source_rows(run.workspace, values=values)
    with pytest.raises(ParameterError, match="Row ids go from 0 to 239"):
        trace_source_rows(run.workspace, row_id="9999")


def test_a_log_of_two_models_with_one_row_id(run):
    engine = open_event_log(run.workspace.events_url)
    table = define_event_tables()["predictions"]
    with engine.connect() as connection:
        event = dict(connection.execute(sa.select(table).where(table.c.row_id == "row-0")).one()._mapping)
    other = {name: value for name, value in event.items() if name not in ("number", "event_id")} | {"model": "other"}
    add_events(engine, "predictions", [other])
    assert trace_prediction(run.workspace, "row-0", model="other")["notes"]
    named = trace_prediction(run.workspace, "row-0", model=run.release.model.name, count=0)
    assert named["prediction"]["model"] == run.release.model.name

"""Rows that the model of a run predicts, as a service records them."""

from datetime import datetime, timedelta

import pandas as pd

import mlcycle as mc
from mlcycle.lifecycle.choice import StageChoice
from mlcycle.lifecycle.merged_rows import MergedSource, describe_model_of_run
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.runner import run_plan
from mlcycle.service.rows import predict_prepared, prepare_rows, to_json_rows
from mlcycle.stores.events import add_events, open_event_database
from mlcycle.stores.models.registry import load_registered_model, open_experiment

START = datetime(2026, 1, 1)


def log_rows(run: mc.Run, rows: pd.DataFrame, start: datetime = START, role: str = "champion") -> None:
    "Record predictions of rows, one an hour, and the actual values that are known; the index has the row ids."
    bundle, target = describe_model_of_run(run), run.problem.target
    prepared = prepare_rows(rows.drop(columns=target), bundle)
    open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
    predictions = predict_prepared(bundle, load_registered_model(run.candidate.model, run.workspace), prepared)
    scores = [None] * len(rows) if predictions.scores is None else predictions.scores.tolist()
    common = {"run": run.id, "model": bundle.model.name, "model_version": str(bundle.model.version), "role": role}
    events, actuals = [], []
    values = zip(map(str, rows.index), to_json_rows(prepared.columns), predictions.labels.tolist(), scores, rows[target].tolist(),
                 strict=True)  # fmt: skip
    for number, (row_id, features, label, score, actual) in enumerate(values):
        when = start + timedelta(hours=number)
        events.append(
            common
            | {"row_id": row_id, "features": features, "prediction": label, "score": score, "latency_ms": 1.0, "received": when}
        )
        if actual == actual and actual is not None:
            actuals.append(common | {"row_id": row_id, "actual": actual, "received": when + timedelta(minutes=30)})
    engine = open_event_database(run.workspace.events_url)
    add_events(engine, "predictions", events)
    add_events(engine, "actuals", actuals)
    engine.dispose()


def retrain(run: mc.Run, merged: MergedSource, until: str = "validation", **changed) -> mc.Run:
    "A run with the parameters of the champion's run and those of merged rows."
    given = run.info["parameters"] | merged.parameters | changed
    plan = make_plan_from_parameters(given, run.workspace.project, origin="program")
    return run_plan(plan, StageChoice(until=until))

"""Predictions of a run's release in the prediction log of its project, without a service."""

from datetime import datetime, timedelta

import pandas as pd

import mlcycle as mc
from mlcycle.ml.predictions import predict
from mlcycle.service.bundle import open_release
from mlcycle.service.rows import to_json_rows
from mlcycle.stores.events import add_events, open_event_database

FIRST = datetime(2026, 5, 1, 12)


def record_predictions(run: mc.Run, rows: pd.DataFrame, **more: object) -> list[dict]:
    "Record predictions of rows as three requests; the row ids are `row-0`, `row-1` …, the request ids `request-0` …."
    bundle, model = open_release(run.workspace.root / run.release.bundle)
    rows = rows[list(bundle.columns)]
    made = predict(model, rows, bundle.problem, bundle.threshold)
    common = {"run": run.id, "model": bundle.model.name, "model_version": str(bundle.model.version), "role": "champion"}
    common |= {"latency_ms": 1.0, "outlier_p": 0.5} | more
    events = [
        {
            "row_id": f"row-{number}",
            "request_id": f"request-{number % 3}",
            "received": FIRST + timedelta(seconds=number % 3),
            "features": features,
            "prediction": made.labels[number : number + 1].tolist()[0],
            "score": None if made.scores is None else made.scores[number].tolist(),
        }
        | common
        for number, features in enumerate(to_json_rows(rows))
    ]
    engine = open_event_database(run.workspace.events_url)
    add_events(engine, "predictions", events)
    actual = {"row_id": "row-1", "actual": run.problem.classes[0], "received": FIRST + timedelta(days=1)}
    add_events(engine, "actuals", [actual | {"run": run.id, "model": bundle.model.name}])
    engine.dispose()
    return events

"""The plain way to serve a pipeline: FastAPI, a frame a request, the pipeline's own predict. `serving_fastapi.py BUNDLE PORT`."""

import sys

import pandas as pd
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from mlcycle.ml.predictions import predict
from mlcycle.service.bundle import open_release

bundle, model = open_release(sys.argv[1])
types = {name: kind for name, kind in bundle.columns.items() if kind != "bool"}
app = FastAPI()


class Body(BaseModel):
    """Rows by column."""

    rows: list[dict]


@app.post("/predict")
def predict_rows(body: Body) -> dict:
    """Predictions of some rows."""
    frame = pd.DataFrame(body.rows, columns=list(bundle.columns)).astype(types)
    predictions = predict(model, frame, bundle.problem, bundle.threshold)
    return {
        "predictions": predictions.labels.tolist(),
        "scores": None if predictions.scores is None else predictions.scores.tolist(),
    }


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")

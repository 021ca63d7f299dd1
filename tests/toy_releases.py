"""Releases of toy models, for tests of the service that need no run."""

from pathlib import Path

import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from sklearn.linear_model import LinearRegression

from mlcycle.core.files import hash_file
from mlcycle.deployment.monitoring_documents import monitoring_documents
from mlcycle.ml.cleaning_plan import CleaningPlan
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service.bundle import Bundle, build_bundle
from mlcycle.stores.models.library_versions import add_versions_to_skops
from mlcycle.stores.models.model_files import model_to_skops_bytes

COLUMNS = [f"x{number}" for number in range(8)]


def toy_rows(n_rows: int = 400, seed: int = 0) -> pd.DataFrame:
    "Rows of random numbers."
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(n_rows, len(COLUMNS))), columns=COLUMNS)


def toy_release(
    folder: Path,
    version: int,
    *,
    trees: bool = True,
    columns: dict[str, str] | None = None,
    cleaning: CleaningPlan | None = None,
    documents: dict[str, bytes] | None = None,
    monitored: bool = False,
) -> Path:
    "A release whose predictions are near its version number; with what its traffic is compared with if it is monitored."
    rows = toy_rows()
    if columns:
        rows = rows.rename(columns=dict(zip(COLUMNS, columns, strict=False)))[list(columns)]
    model = LGBMRegressor(n_estimators=5, verbose=-1, n_jobs=1) if trees else LinearRegression()
    target = version + rows.iloc[:, 0] * 0.01 + rows.iloc[:, -1] * 0.001
    model.fit(rows, target)
    texts = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    problem = Problem(**texts, target="y", task="regression", metric="r2", metrics=["r2"], criteria=[], rows=len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"model-{version}.skops"
    file.write_bytes(add_versions_to_skops(model_to_skops_bytes(model)))  # As it is registered
    ref = ModelRef(name="toy", version=version, run_id="-", sha256=hash_file(file))
    bundle = Bundle(
        problem=problem,
        columns=dict.fromkeys(rows, "float64"),
        threshold=None,
        model=ref,
        cleaning=cleaning or CleaningPlan(),
        examples=[dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.5)],
    )
    if monitored:
        documents = (documents or {}) | monitoring_documents(bundle, model, rows, rows.assign(y=target))
    return build_bundle(folder / "releases", bundle, file, documents=documents)

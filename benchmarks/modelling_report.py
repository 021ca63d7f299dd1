"""The measured lines of the modelling benchmark as a page of tables."""

import re
from dataclasses import dataclass
from statistics import mean, stdev

import pandas as pd

from mlcycle.ml.folds import mean_difference

TITLES = {
    "mlcycle": "mlcycle",
    "lightgbm": "LightGBM, default",
    "flaml": "FLAML",
    "autogluon_medium": "AutoGluon, medium",
    "autogluon_best": "AutoGluon, best",
}
METRICS = {"roc_auc": "ROC-AUC, higher is better", "log_loss": "log loss, lower is better", "rmse": "RMSE, lower is better"}
LOSSES = ("log_loss", "rmse")
DIGITS = 4
VARIANT = re.compile(r"(_r\d+)?(_BAG)?(_L\d+)?(_FULL)?$")  # What AutoGluon adds to the name of a learner


@dataclass(frozen=True)
class Results:
    """What was measured: lines by table, competitor and fold."""

    tables: list[dict]  # What is asked of each
    lines: list[dict]
    folds: int

    def of(self, table: str, competitor: str) -> list[dict]:
        """The lines of one competitor on one table, by fold."""
        found = [line for line in self.lines if (line["table"], line["competitor"]) == (table, competitor)]
        return sorted(found, key=lambda line: line["fold"])

    def scores(self, table: str, competitor: str) -> list[float]:
        """A score for each fold; nothing unless all folds have one."""
        scores = [line["score"] for line in self.of(table, competitor) if "score" in line]
        return scores if len(scores) == self.folds else []

    @property
    def competitors(self) -> list[str]:
        """Who was measured anywhere."""
        seen = {line["competitor"] for line in self.lines}
        return [name for name in TITLES if name in seen]

    def whole(self) -> list[dict]:
        """The tables on which every fold of every competitor was tried."""
        tried = {(line["table"], line["competitor"], line["fold"]) for line in self.lines}
        needed = [(name, fold) for name in self.competitors for fold in range(self.folds)]
        return [table for table in self.tables if all((table["name"], *one) in tried for one in needed)]

    def ranks(self) -> pd.DataFrame:
        """Tables by competitors, 1 the best; equal ones share, and who failed on a fold comes last."""
        rows = {}
        for table in self.whole():
            sign = -1 if table["metric"] in LOSSES else 1
            found = {name: self.scores(table["name"], name) for name in self.competitors}
            better = {name: sign * mean(scores) if scores else float("-inf") for name, scores in found.items()}
            rows[table["name"]] = pd.Series(better).rank(ascending=False)
        return pd.DataFrame(rows).T


def markdown(head: list[str], rows: list[list]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def score_table(results: Results) -> str:
    """Means with standard deviations over folds; the best of a row is bold."""
    ranks, rows = results.ranks(), []
    for table in results.whole():
        cells = []
        for name in results.competitors:
            scores = results.scores(table["name"], name)
            said = f"{mean(scores):.{DIGITS}f} ± {stdev(scores):.{DIGITS}f}" if scores else "failed"
            rank = ranks.loc[table["name"], name]
            cells.append(f"**{said}** ({rank:g})" if rank == ranks.loc[table["name"]].min() else f"{said} ({rank:g})")
        rows.append([table["name"], METRICS[table["metric"]].split(",")[0], *cells])
    rows.append(["**mean rank**", "", *(f"**{ranks[name].mean():.2f}**" for name in results.competitors)])
    return markdown(["table", "metric", *(TITLES[name] for name in results.competitors)], rows)


def difference_table(results: Results) -> str:
    """By how much mlcycle is better than each peer, with the corrected interval over folds."""
    peers, rows = [name for name in results.competitors if name != "mlcycle"], []
    for table in results.whole():
        ours, cells = results.scores(table["name"], "mlcycle"), []
        for peer in peers:
            theirs = results.scores(table["name"], peer)
            if not (ours and theirs):
                cells.append("failed")
                continue
            sizes = [(range(line["rows_learnt"]), range(line["rows_asked"])) for line in results.of(table["name"], "mlcycle")]
            by = mean_difference(table["metric"], ours, theirs, sizes)
            won = sum(one < other if table["metric"] in LOSSES else one > other for one, other in zip(ours, theirs, strict=True))
            cells.append(f"{by.value:+.4f} [{by.low:+.4f}, {by.high:+.4f}], {won} of {results.folds}")
        rows.append([table["name"], *cells])
    return markdown(["table", *(TITLES[name] for name in peers)], rows)


def about_table(results: Results) -> str:
    """What each table asks."""
    rows = [[one["name"], one["rows"], one["columns"], one["task"], one["about"]] for one in results.whole()]
    return markdown(["table", "rows", "columns", "task", "the question, and what is left out"], rows)


def effort_table(results: Results) -> str:
    """Seconds and share of a core that fits had."""
    rows, names = [], {table["name"] for table in results.whole()}
    for name in results.competitors:
        lines = [line for line in results.lines if line["competitor"] == name and line["table"] in names and "score" in line]
        fits = [line["fit_seconds"] for line in lines]
        long = [line["fit_cpu_seconds"] / line["fit_seconds"] for line in lines if line["fit_seconds"] >= 10]
        share = f"{min(long):.0%}" if long else "-"
        asked = mean(1000 * line["predict_seconds"] for line in lines)
        failed = sum("score" not in line for line in results.lines if line["competitor"] == name and line["table"] in names)
        rows.append([TITLES[name], f"{mean(fits):.1f}", f"{max(fits):.1f}", share, f"{asked:.0f}", failed])
    head = ["competitor", "mean seconds to fit", "longest", "least share of a core", "mean ms to answer a fold", "failed folds"]
    return markdown(head, rows)


def learner_list(results: Results) -> str:
    """Which versions were at work, and which learners were active anywhere."""
    said = []
    for name in results.competitors:
        lines = [line for line in results.lines if line["competitor"] == name and "score" in line]
        versions = {f"{package} {its}" for line in lines for package, its in line["versions"].items()}
        learners = {VARIANT.sub("", one) for line in lines for one in line["learners"] if ": " not in one}
        said.append(f"- {TITLES[name]}: {', '.join(sorted(versions))}. Learners: {', '.join(sorted(learners))}.")
    return "\n".join(said)


def page(results: Results) -> str:
    """The whole page."""
    if not results.whole():
        raise SystemExit("There is no table yet on which every fold of every competitor was tried.")
    dates = sorted(line["date"][:10] for line in results.lines)
    seconds = sorted({f"{line['seconds']:g}" for line in results.lines})
    machines, seeds = ({line[what] for line in results.lines} for what in ("machine", "seed"))
    parts = [
        "# Modelling, beside peers",
        f"{results.folds} folds, the same for all; one thread and {' or '.join(seconds)} seconds of wall time to fit a fold; "
        f"seed {', '.join(map(str, sorted(seeds)))}. Mean ± standard deviation over folds, and the rank in brackets.",
        score_table(results),
    ]
    if "mlcycle" in results.competitors:
        parts += [
            "## By how much mlcycle is better",
            "In units of the metric, above zero where mlcycle is better; the 95 % interval over folds is corrected for rows "
            "that folds share, and is wide with so few of them. Then: on how many folds mlcycle was better.",
            difference_table(results),
        ]
    parts += ["## Tables", about_table(results), "## What it took", effort_table(results), learner_list(results)]
    parts += [
        "LightGBM is given text as categories and dates as seconds. FLAML and AutoGluon are given the table as it is, and are "
        "left at their defaults but for the budget, the metric, one thread and, for FLAML, the order of time. AutoGluon has "
        "neither torch nor ray. A process serves one fold; importing and reading are not counted.",
        f"Measured {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} on: {'; '.join(sorted(machines))}. To measure anew:",
        "```sh\npython benchmarks/modelling.py setup\npython benchmarks/modelling.py measure\n"
        "python benchmarks/modelling.py report\n```",
    ]
    return "\n\n".join(parts) + "\n"

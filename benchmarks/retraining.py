"""Monitoring, retraining and promotion together, in simulated years; written to a section of `results/retraining.md`."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from results_pages import markdown_table, write_section

from mlcycle.lifecycle.retraining_policy import RetrainingPolicy
from mlcycle.lifecycle.retraining_simulation import AUTOMATIC, RetrainingWorld, simulate_retraining, summarise_years

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".bench" / "retraining_simulation.json"
app = typer.Typer(add_completion=False, help=__doc__)
ONLY_KNOWN = False

STILL = RetrainingWorld()
LARGE = RetrainingWorld(change=120, similarity=0.3)
WITHOUT_CHANGE = {
    "only after an alarm": (STILL, AUTOMATIC),
    "every 90 days": (STILL, replace(AUTOMATIC, schedule=timedelta(days=90))),
    "every 30 days": (STILL, replace(AUTOMATIC, schedule=timedelta(days=30))),
}
CHANGES = {
    "sudden, cosine 0.3": LARGE,
    "sudden, cosine 0.7": replace(LARGE, similarity=0.7),
    "sudden, cosine 0.9": replace(LARGE, similarity=0.9),
    "sudden, cosine 0.9, 500 rows a day": replace(LARGE, similarity=0.9, day_rows=500),
    "within 90 days, cosine 0.3": replace(LARGE, span=90),
    "sudden, cosine 0.3, 20 rows a day": replace(LARGE, day_rows=20),
    "sudden, cosine 0.3, actual values after 30 days": replace(LARGE, label_delay=30),
}
SMALL = "sudden, cosine 0.9"
POLICIES = {
    "auto": AUTOMATIC,
    "since alarm": replace(AUTOMATIC, rows="since alarm"),
    "all": replace(AUTOMATIC, rows="all"),
    "auto, every 90 days": replace(AUTOMATIC, schedule=timedelta(days=90)),
}
MAIN_CHANGES = ("sudden, cosine 0.3", "sudden, cosine 0.7", "within 90 days, cosine 0.3")  # By `auto` in all years


@app.callback()
def measure() -> None:
    """Monitoring, retraining and promotion together, in simulated years."""


def simulated(name: str, world: RetrainingWorld, policy: RetrainingPolicy, years: int, jobs: int) -> dict | None:
    """The summary of many years, of an earlier call or of this one; None if only known ones are reported, and it is not."""
    known = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    key = f"{name} {years} {world} {policy}"
    if key not in known and ONLY_KNOWN:
        return None
    if key not in known:
        with ProcessPoolExecutor(jobs) as pool:
            made = list(pool.map(partial(simulate_retraining, world, policy), range(years), chunksize=5))
        known[key] = summarise_years(world, made)
        CACHE.parent.mkdir(exist_ok=True)
        CACHE.write_text(json.dumps(known, indent=1))
        print(name, known[key], flush=True)
    return known[key]


def in_words(values: Sequence[float], unit: str = "") -> str:
    """A median with two quantiles."""
    if values[0] != values[0]:
        return "–"
    form = "{:.0%}" if unit == "%" else "{:,.0f}"
    return f"{form.format(values[0])} ({form.format(values[1])} to {form.format(values[2])})"


def table_without_change(years: int, jobs: int) -> str:
    """Worlds without a change: what should not happen."""
    rows = []
    for name, (world, policy) in WITHOUT_CHANGE.items():
        if (found := simulated(name, world, policy, years, jobs)) is None:
            continue
        figures = [f"{found[each]:.2f}" for each in ("by_alarm", "retrainings", "false_promotion")]
        rows.append([name, str(found["years"]), *figures])
    header = ["retraining", "years", "years with a retraining by alarm", "retrainings a year", "years with a false promotion"]
    return markdown_table(header, rows)


def table_with_change(years: int, fewer: int, jobs: int) -> str:
    """Worlds with a change on day 120: how soon, on which rows, and how much is won back."""
    rows = []
    for change, world in CHANGES.items():
        for rule, policy in POLICIES.items():
            if rule in ("all", "since alarm") and change != MAIN_CHANGES[0] or "every" in rule and change != SMALL:
                continue
            count = years if rule == "auto" and change in MAIN_CHANGES else fewer
            if (found := simulated(f"{change}, {rule}", world, policy, count, jobs)) is None:
                continue
            figures = [in_words(found[each]) for each in ("alarm_delay", "since_error", "champion_delay", "champion_rows")]
            shares = [f"{found[each]:.2f}" for each in ("early", "better", "false_promotion")]
            rows.append([change, rule, str(found["years"]), *figures, *shares, in_words(found["recovered"], "%")])
    header = ["change", "rows", "years", "days to the retraining", "since minus change, days", "days to the last champion"]
    header += ["labelled rows it used", "alarm before the change", "better champion", "false promotion", "won back"]
    return markdown_table(header, rows)


HEAD = (
    "Simulated years of 365 days with 100 rows a day, eight columns, and actual values after 7 days, unless stated "
    "otherwise; the first champion has 7,000 rows. The section `[retraining]` has its defaults but for `policy = automatic`. A "
    "promotion is false if the expected area under the ROC curve of the challenger is not higher than that of the champion. "
    "Without a change:"
)
MIDDLE = (
    "The coefficients turn on day 120, or within 90 days from then on, by an angle whose cosine is given. Medians, with the "
    "10 % and the 90 % quantile; `won back` is the share of the area that the first champion has lost to the best possible "
    "model on the last day:"
)


@app.command()
def simulation(
    years: Annotated[int, typer.Option(help="Of the main settings.")] = 100,
    fewer: Annotated[int, typer.Option(help="Of the others.")] = 50,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    known: Annotated[bool, typer.Option("--known", help="Only report what earlier calls have computed.")] = False,
) -> None:
    """Simulated years with and without a change, by the rules of monitoring, policy and stage 5."""
    global ONLY_KNOWN
    ONLY_KNOWN = known
    changes = table_with_change(years, fewer, jobs)
    parts = [HEAD, table_without_change(years, jobs), MIDDLE, changes]
    write_section("retraining", "Simulated years", "\n\n".join(parts))
    print("\n\n".join(parts))


if __name__ == "__main__":
    app()

"""Monitoring, measured: a command for each part, in modules beside this one; results are in `benchmarks/results/monitoring.md`.

`python benchmarks/monitoring.py profile` counts a million rows in the bins of a reference profile, beside Evidently.
`python benchmarks/monitoring.py stream` simulates years of drift alarms (an hour), and follows the flights of 2013 with and
without seasons. It goes on where it was interrupted.
`python benchmarks/monitoring.py estimation` and `loss` compare estimated scores with the truth, and simulate alarms about scores.
`python benchmarks/monitoring.py outliers` compares outlier scores with an isolation forest and the local outlier factor.
`python benchmarks/monitoring.py log PROJECT` measures what the prediction log costs a service.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent))
import monitoring_log  # noqa: E402 - needs the path
import monitoring_profile  # noqa: E402
import monitoring_scores  # noqa: E402

app = typer.Typer(add_completion=False, help=__doc__)
for part in (monitoring_profile, monitoring_scores, monitoring_log):
    app.registered_commands += part.app.registered_commands


@app.command()
def stream(
    years: Annotated[int, typer.Option(help="Simulated years of each setting.")] = 300,
    hourly_years: Annotated[int, typer.Option(help="The same, of hourly windows.")] = 300,
    joint_years: Annotated[int, typer.Option(help="The same, of the joint test.")] = 60,
    only_known: Annotated[bool, typer.Option(help="Report what earlier calls have simulated.")] = False,
    flights: Annotated[bool, typer.Option(help="Whether to follow the flights too.")] = True,
) -> None:
    """The chance of false drift alarms in a year, and how soon drift is found."""
    import monitoring_stream
    from monitoring_stream import follow_flights, simulate

    monitoring_stream.ONLY_KNOWN = only_known
    simulate(years, hourly_years, joint_years)
    if flights:
        follow_flights()


@app.command()
def outliers(years: Annotated[int, typer.Option(help="Simulated years of each setting.")] = 300) -> None:
    """Outliers: what is found, calibration, time, false alarms."""
    from monitoring_outliers import measure_outliers

    measure_outliers(years)


if __name__ == "__main__":
    app()

"""Monitoring: false alarms and delays of drift over a stream.

`python benchmarks/monitoring.py stream` simulates 300 years of each setting (an hour), and follows the flights of 2013 with
and without seasons. It goes on where it was interrupted, and writes to `benchmarks/results/monitoring.md`.
"""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help=__doc__)


@app.callback()
def parts() -> None:
    """One command for each part."""


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


if __name__ == "__main__":
    app()

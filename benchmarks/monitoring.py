"""Monitoring, measured: a subcommand for each part, whose results are in `benchmarks/results/monitoring.md`.

`python benchmarks/monitoring.py outliers` compares outlier scores with an isolation forest and the local outlier factor, and
measures calibration, time, and false alarms about shares in simulated years (a few minutes).
"""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help=__doc__)


@app.callback()
def parts() -> None:
    """One command for each part."""


@app.command()
def outliers(years: Annotated[int, typer.Option(help="Simulated years of each setting.")] = 300) -> None:
    """Outliers: what is found, calibration, time, false alarms."""
    from monitoring_outliers import measure_outliers

    measure_outliers(years)


if __name__ == "__main__":
    app()

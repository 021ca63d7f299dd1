"""Rows of a released run for the load on its service."""

from pathlib import Path

from mlcycle.core.runs import Run, get_run
from mlcycle.service.rows import to_json_rows
from mlcycle.stores.tables.holdout import read_holdout


def released_run(project: Path) -> Run:
    """The last run of a project; it must have released a model."""
    run = get_run("last", project)
    if not run.release.released:
        raise SystemExit(f"The last run of {project} released no model.")
    return run


def request_rows(run: Run, count: int) -> list[dict]:
    """Holdout rows as JSON."""
    holdout = read_holdout(run.workspace, run.dataset.tables["holdout"], reason="a benchmark of the service")
    return to_json_rows(holdout[run.plan.input_columns].sample(count, random_state=0, replace=True))

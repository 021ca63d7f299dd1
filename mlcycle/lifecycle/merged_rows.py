"""The source of a retraining: the rows that the champion's run had, and the rows of the prediction log whose actual values are known."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mlcycle.core.runs import Run
from mlcycle.core.workspace import Workspace

RowsSetting = Literal["auto", "since alarm", "all"] # Which rows a challenger is trained on

@dataclass(frozen=True)
class MergedSource:
    "A Parquet file with the rows of a retraining, and the parameters of the run that reads it."

    path: Path # Named as the source of the champion, so that the registered model has the same name
    sha256: str # Of the bytes of the file
    n_source: int # Rows that the champion's run had
    n_logged: int # Rows of the prediction log with actual values
    n_since: int # Those of them since the alarm began; all of them without an alarm
    n_holdout: int # The last rows in time, on none of which the champion was trained
    rows: Literal["since alarm", "all"] # Which rows were taken
    parameters: dict[str, Any] = field(default_factory=dict) # Of stages 1 and 2, by name; they override those of the champion's run
    notes: list[str] = field(default_factory=list) # What was decided about columns, contract and rows, in sentences

def write_merged_source(
    workspace: Workspace, # Has tables, prediction log and access log of the holdout
    run: Run, # That trained the champion
    folder: Path, # Of the retraining: receives the file
    *,
    since: datetime | None = None, # Start of the alarm, UTC; None: no alarm
    until: datetime | None = None, # Later predictions are left out, UTC, so that a repetition writes the same file; None: none are
    rows: RowsSetting = "auto", # auto: those since the alarm if there are enough of them, else all
    min_rows: int = 1000, # Labelled rows since the alarm that `auto` needs to leave out older ones
    reason: str = "", # Of the retraining, for the record of the access to the holdout
) -> MergedSource:
    """Write the rows of a retraining to a file, atomically; the same inputs give the same bytes.

    Raises InputError if there are no rows with actual values, or too few for a holdout with each class.
    """
    raise NotImplementedError

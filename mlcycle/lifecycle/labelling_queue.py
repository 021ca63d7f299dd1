"""Rows without an actual value that are worth a label, for the decision to relabel."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlcycle.core.workspace import Workspace

@dataclass(frozen=True)
class LabellingQueue:
    "A file with rows to label, and how many of them are new."

    path: Path # JSON Lines
    n_added: int # Rows that this call has added
    n_rows: int # Rows without an actual value in the file

def write_labelling_queue(
    workspace: Workspace, # Has registry, releases and prediction log
    model: str, # NAME, NAME@alias or NAME@VERSION
    *,
    max_rows: int = 200, # New rows at most
    since: datetime | None = None, # First time, UTC; None: all
    seed: int = 0, # Of the random share
) -> LabellingQueue:
    "Append rows worth a label to `labelling/MODEL.jsonl` of the workspace; rows that have a label by now are removed from it."
    raise NotImplementedError

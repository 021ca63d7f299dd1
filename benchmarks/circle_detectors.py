"""How soon a change of the loss is found, and how often one is found that is none, beside the detectors of river.

`python benchmarks/circle_detectors.py` makes streams with known drift (`river.datasets.synth`) in an environment of its own
(`benchmarks/environments/river.txt`), fits a model to the first rows, and gives the losses of the following ones to ADWIN, KSWIN
and Page-Hinkley with their default settings, row by row, and to the sequential test of stage 7 in windows of 500 rows, with the
same level as in production. A delay is counted from the first row of the change to the row, or to the end of the window, with
the first alarm. River's detectors have no reference: they compare the stream with its own past.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from circle_streams_layout import CHANGE
from judges import python_of
from tqdm import tqdm

from mlcycle.monitoring.loss_monitor import monitor_mean
from mlcycle.monitoring.quality_over_time import YEARLY_LEVELS

HERE = Path(__file__).parent
WINDOW = 500  # Rows; a day
OURS = "mlcycle"
app = typer.Typer(add_completion=False)


def loss_alarms(holdout: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """The rows at which the test of stage 7 goes into alarm: ends of windows."""
    windows = [stream[start : start + WINDOW] for start in range(0, len(stream), WINDOW)]
    years = np.full(len(windows), 1 / 365)
    found = monitor_mean(windows, years, holdout, level=YEARLY_LEVELS["quality"]).alarms
    starts = np.flatnonzero(found & ~np.append(False, found[:-1]))
    return (starts + 1) * WINDOW - 1


def read_alarms(folder: Path, seeds: int) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Stream, kind (changed or unchanged), detector and rows of its alarms, for each seed."""
    for seed in range(seeds):
        with np.load(folder / f"{seed}.npz") as arrays:
            for key in arrays.files:
                stream, kind, what = key.split("|")
                if what == "stream":
                    yield stream, kind, OURS, loss_alarms(arrays[f"{stream}|{kind}|holdout"], arrays[key])
                elif what != "holdout":
                    yield stream, kind, what, arrays[key]


def print_tables(found: list[tuple[str, str, str, np.ndarray]]) -> None:
    """Detection of the changes, and alarms without change."""
    detectors = [OURS, *dict.fromkeys(name for _, _, name, _ in found if name != OURS)]
    print("\n| stream | detector | found | median delay, rows | false alarm before the change |\n| --- | --- | --- | --- | --- |")
    for stream in dict.fromkeys(name for name, kind, _, _ in found if kind == "changed"):
        for detector in detectors:
            alarms = [rows for name, kind, who, rows in found if (name, kind, who) == (stream, "changed", detector)]
            delays = [rows[rows >= CHANGE][0] - CHANGE + 1 for rows in alarms if (rows >= CHANGE).any()]
            early = np.mean([(rows < CHANGE).any() for rows in alarms])
            delay = f"{np.median(delays):,.0f}" if delays else "-"
            print(f"| {stream} | {detector} | {len(delays) / len(alarms):.2f} | {delay} | {early:.2f} |")
    print("\n| unchanged stream | detector | any alarm | alarms a stream |\n| --- | --- | --- | --- |")
    for stream in dict.fromkeys(name for name, kind, _, _ in found if kind == "unchanged"):
        for detector in detectors:
            counts = [len(rows) for name, kind, who, rows in found if (name, kind, who) == (stream, "unchanged", detector)]
            print(f"| {stream} | {detector} | {np.mean(np.array(counts) > 0):.2f} | {np.mean(counts):.2f} |")


@app.command()
def detectors(seeds: Annotated[int, typer.Option(help="Streams of each kind.")] = 20) -> None:
    """Delay of detection and false alarms, beside ADWIN, KSWIN and Page-Hinkley."""
    folder = HERE.parent / ".bench" / "drift_streams"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in range(seeds) if not (folder / f"{seed}.npz").exists()]
    for seed in tqdm(missing, desc="streams"):
        command = [python_of("river"), HERE / "circle_streams.py", folder, str(seed), str(seed + 1)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print_tables(list(read_alarms(folder, seeds)))


if __name__ == "__main__":
    app()

"""How soon a change of the loss is found, and how often one is found that is none, beside the detectors of river.

`python benchmarks/retraining_detectors.py` makes streams with known drift (`river.datasets.synth`) in an environment of its own
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
from judges import python_of
from results_pages import markdown_table, write_section
from retraining_streams_layout import CHANGE, HOLDOUT, ROWS, TRAIN
from tqdm import tqdm

from mlcycle.monitoring.loss_monitor import monitor_mean
from mlcycle.monitoring.quality_over_time import YEARLY_LEVELS

HERE = Path(__file__).parent
WINDOW = 500  # Rows; a day
OURS = "mlcycle"
HEAD = (
    "`python benchmarks/retraining_detectors.py`, {seeds} streams of each kind: "
    f"{ROWS:,} losses of a boosting model that was fitted to {TRAIN:,} rows before; where the stream changes, it does so after "
    f"{CHANGE:,} of them. ADWIN, KSWIN and Page-Hinkley of river, with their defaults, see each loss; the test of stage 7 sees "
    f"windows of {WINDOW}, and has a reference of {HOLDOUT:,} rows: it finds a change at the end of a window at the earliest, "
    "and the chance of a false alarm in a year is bounded, which the others do not state."
)
Found = tuple[str, str, str, np.ndarray]  # Stream, kind, detector, rows of its alarms
app = typer.Typer(add_completion=False)


def loss_alarms(holdout: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """The rows at which the test of stage 7 goes into alarm: ends of windows."""
    windows = [stream[start : start + WINDOW] for start in range(0, len(stream), WINDOW)]
    years = np.full(len(windows), 1 / 365)
    found = monitor_mean(windows, years, holdout, level=YEARLY_LEVELS["quality"]).alarms
    starts = np.flatnonzero(found & ~np.append(False, found[:-1]))
    return (starts + 1) * WINDOW - 1


def read_alarms(folder: Path, seeds: int) -> Iterator[Found]:
    """Stream, kind (changed or unchanged), detector and rows of its alarms, for each seed."""
    for seed in range(seeds):
        with np.load(folder / f"{seed}.npz") as arrays:
            for key in arrays.files:
                stream, kind, what = key.split("|")
                if what == "stream":
                    yield stream, kind, OURS, loss_alarms(arrays[f"{stream}|{kind}|holdout"], arrays[key])
                elif what != "holdout":
                    yield stream, kind, what, arrays[key]


def detection_table(found: list[Found]) -> str:
    """How soon changes were found, and alarms before them."""
    rows = []
    for stream, detector, alarms in of_kind(found, "changed"):
        delays = [each[each >= CHANGE][0] - CHANGE + 1 for each in alarms if (each >= CHANGE).any()]
        early = np.mean([(each < CHANGE).any() for each in alarms])
        delay = f"{np.median(delays):,.0f}" if delays else "–"
        rows.append([stream, detector, f"{len(delays) / len(alarms):.2f}", delay, f"{early:.2f}"])
    return markdown_table(["stream", "detector", "found", "median delay, rows", "with an alarm before the change"], rows)


def false_alarm_table(found: list[Found]) -> str:
    """Alarms in streams that do not change."""
    rows = []
    for stream, detector, alarms in of_kind(found, "unchanged"):
        counts = np.array([len(each) for each in alarms])
        rows.append([stream.partition(",")[0], detector, f"{np.mean(counts > 0):.2f}", f"{counts.mean():.1f}"])
    return markdown_table(["unchanged stream", "detector", "with an alarm", "alarms a stream"], rows)


def of_kind(found: list[Found], kind: str) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """Stream, detector and the alarms of all seeds."""
    detectors = [OURS, *dict.fromkeys(name for _, _, name, _ in found if name != OURS)]
    for stream in dict.fromkeys(name for name, what, _, _ in found if what == kind):
        for detector in detectors:
            yield stream, detector, [rows for name, what, who, rows in found if (name, what, who) == (stream, kind, detector)]


@app.command()
def detectors(seeds: Annotated[int, typer.Option(help="Streams of each kind.")] = 20) -> None:
    """Delay of detection and false alarms, beside ADWIN, KSWIN and Page-Hinkley."""
    folder = HERE.parent / ".bench" / "drift_streams"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in range(seeds) if not (folder / f"{seed}.npz").exists()]
    for seed in tqdm(missing, desc="streams"):
        command = [python_of("river"), HERE / "retraining_streams.py", folder, str(seed), str(seed + 1)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = list(read_alarms(folder, seeds))
    text = "\n\n".join([HEAD.format(seeds=seeds), detection_table(found), false_alarm_table(found)])
    write_section("retraining", "Streams with known drift", text)
    print(text)


if __name__ == "__main__":
    app()

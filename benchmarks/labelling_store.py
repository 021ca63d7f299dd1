"""What it takes to save a label, and to export and import labels, with 50,000 items and as many labels.

`measure_label_store()` writes the section "Label store" of `results/labelling.md`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from results_pages import markdown_table, write_section

from mlcycle.data.labelling.label_csv import import_label_table, write_label_table
from mlcycle.data.labelling.label_studio import import_label_studio, write_label_studio
from mlcycle.data.labelling.readable_rows import fields_of_rows
from mlcycle.data.labelling.session import LabellingQueue, LabellingSession, QueuedItem
from mlcycle.stores.labels.label_items import item_ids
from mlcycle.stores.labels.label_store import (
    Annotation,
    LabelSet,
    LabelStore,
    add_annotations,
    ensure_label_set,
    read_annotations,
)

N_ITEMS, N_SAVED = 50_000, 500


def order_rows() -> pd.DataFrame:
    """Rows with a number, a category, a date and a text, indexed by item."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "spend": rng.lognormal(3, 1, N_ITEMS).round(2),
            "channel": rng.choice(["web", "shop", "phone"], N_ITEMS),
            "ordered": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 10**7, N_ITEMS), unit="s"),
            "remark": [
                f"Customer {number} would like to have it before the weekend." for number in rng.integers(0, 10**9, N_ITEMS)
            ],
        }
    )
    rows.index = pd.Index(item_ids(rows, "late"))
    return rows


def seconds_of(function: Callable, *words: object) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    function(*words)
    return time.perf_counter() - start


def save_labels(store: LabelStore, queue: LabellingQueue, annotator: str) -> tuple[float, np.ndarray]:
    """Seconds to open a session, and milliseconds for each of `N_SAVED` labels, the next item included."""
    start = time.perf_counter()
    session = LabellingSession(store, queue, annotator)
    state = session.state()
    opened, times = time.perf_counter() - start, []
    for number in range(N_SAVED):
        action = {"kind": "label", "item": state["item"]["id"], "label": "Yes", "seconds": 1.5, "comment": f"{number}"}
        start = time.perf_counter()
        state = session.act(action)
        times.append(time.perf_counter() - start)
        assert not state["error"], state["error"]
    return opened, np.array(times) * 1000


def measure_label_store() -> None:
    """Measure saving, export and import on disk, and write the section."""
    rows = order_rows()
    row_ids = {item: str(number) for number, item in enumerate(rows.index)}
    label_set = LabelSet(
        name="orders-late", source="-", target="late", task="binary", classes=["No", "Yes"], columns=list(rows.columns)
    )
    with TemporaryDirectory(dir=Path.home()) as folder:
        home = Path(folder)
        store, other = LabelStore(f"sqlite:///{home}/labels.db"), LabelStore(f"sqlite:///{home}/other.db")
        for each in (store, other):
            ensure_label_set(each, label_set)
        people = ["anna", "ben"]
        given = [
            Annotation(item=item, annotator=people[n % 2], label="No", seconds=2.0, reason="most uncertain")
            for n, item in enumerate(rows.index)
        ]
        add_annotations(store, label_set, given)
        queue = LabellingQueue(label_set, [QueuedItem(item) for item in rows.index], fields_of_rows(rows, "late"), overlap=2)
        opened, saved = save_labels(store, queue, "anna")
        history = read_annotations(store, "orders-late")
        export_json = seconds_of(write_label_studio, home / "l.json", label_set, history, queue.reader, row_ids)
        export_csv = seconds_of(write_label_table, home / "l.csv", label_set, history, row_ids)
        import_json = seconds_of(import_label_studio, other, home / "l.json", label_set, row_ids)
        write_label_studio(home / "again.json", label_set, read_annotations(other, "orders-late"), queue.reader, row_ids)
        assert (home / "again.json").read_bytes() == (home / "l.json").read_bytes()
        import_csv = seconds_of(import_label_table, other, home / "l.csv", label_set, row_ids)
        megabytes = (home / "l.json").stat().st_size / 1e6
        for each in (store, other):
            each.close()
    p50, p95 = np.percentile(saved, [50, 95])
    lines = [
        ["save a label and show the next item, p50", f"{p50:.1f} ms", ""],
        ["save a label and show the next item, p95", f"{p95:.1f} ms", "50 ms"],
        [f"the slowest of {N_SAVED}", f"{saved.max():.1f} ms", ""],
        ["open a session", f"{opened:.2f} s", ""],
        [f"export to Label Studio's JSON ({megabytes:.0f} MB)", f"{export_json:.2f} s", "5 s"],
        ["export to CSV", f"{export_csv:.2f} s", "5 s"],
        ["import of the JSON", f"{import_json:.2f} s", ""],
        ["import of the CSV, all of whose labels are there", f"{import_csv:.2f} s", ""],
    ]
    write_section(
        "labelling",
        "Label store",
        f"A queue of {N_ITEMS:,} items, a SQLite file with {N_ITEMS:,} labels of two persons, one process. The export of the "
        "imported JSON is the same file, byte by byte.\n\n" + markdown_table(["what", "measured", "bound"], lines),
    )
    assert p95 < 50 and max(export_json, export_csv) < 5, lines


if __name__ == "__main__":
    measure_label_store()

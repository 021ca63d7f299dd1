"""Labelling sessions for tests of the front-end: those of mlcycle, and one that fails on demand and shows any fields."""

import json
from pathlib import Path

import pandas as pd

from mlcycle.data.labelling.readable_rows import fields_of_rows
from mlcycle.data.labelling.session import LabellingQueue, LabellingSession, QueuedItem
from mlcycle.errors import InputError
from mlcycle.stores.labels.label_store import LabelSet, LabelStore, current_annotations, ensure_label_set, read_annotations

YES_NO = {
    "kind": "classes",
    "classes": [{"value": "Yes", "name": "Yes", "key": "1"}, {"value": "No", "name": "No", "key": "2"}],
}
KEYS = "123456789abdefgh"
MANY = {
    "kind": "classes",
    "classes": [{"value": n, "name": f"Class {n}", "key": KEYS[n]} for n in range(12)],
}
NUMBER = {"kind": "number", "min": 0.0, "max": 100.0}


def text_field(name: str, text: object, kind: str = "text", url: str | None = None) -> dict:
    return {"name": name, "kind": kind, "text": str(text), "url": url}


def order_fields(n: int) -> list[dict]:
    return [text_field("town", ("Lima", "Oslo", "Rome")[n % 3]), text_field("spend", f"{40 + n:,}.00", "number")]


class FileSession:
    "Rows that are shown in order, until each has a line."

    pairs = 12

    def __init__(self, file: Path, rows: int = 30, choices: dict = YES_NO, fields=order_fields, annotator: str = "anna"):
        self.file, self.rows, self.choices, self.fields, self.annotator = file, rows, choices, fields, annotator
        self.error: Exception | None = None  # Raised by the next action

    def lines(self) -> list[dict]:
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        return [each for each in lines if each["annotator"] == self.annotator]

    def write(self, **line) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line | {"annotator": self.annotator}) + "\n")

    def current(self) -> list[dict]:
        "The lines that are not undone."
        kept: list[dict] = []
        for line in self.lines():
            if line["kind"] == "undo":
                kept.pop()
            elif line["kind"] == "comment":
                kept = [each | ({"comment": line["comment"]} if each["item"] == line["item"] else {}) for each in kept]
            else:
                kept.append(line)
        return kept

    def state(self) -> dict:
        kept = self.current()
        count = {kind: sum(each["kind"] == kind for each in kept) for kind in ("label", "skip", "unsure")}
        progress = {"done": count["label"], "total": self.rows, "skipped": count["skip"], "unsure": count["unsure"],
                    "left": self.rows - len(kept), "agreement": 0.83, "pairs": self.pairs, "seconds_median": 4.2}  # fmt: skip
        item, n = None, len(kept)
        if n < self.rows:
            note = "labelled No by the source; the model predicts Yes with .97" if n % 2 else ""
            item = {"id": f"item-{n}", "row_id": str(100 + n), "reason": "The model is least sure about this row.", "note": note}
            item["fields"] = self.fields(n)
        last = None
        if kept:
            last = {"item": kept[-1]["item"], "action": kept[-1]["kind"], "label": kept[-1].get("label")}
            last["comment"] = kept[-1].get("comment", "")
        return {"title": "orders-late", "question": "Is the order late?", "annotator": self.annotator, "item": item,
                "choices": self.choices, "progress": progress, "last": last, "can_undo": bool(kept), "message": "",
                "error": ""}  # fmt: skip

    def act(self, action: dict) -> dict:
        if self.error:
            error, self.error = self.error, None
            raise error
        if action["kind"] == "undo" and not self.current():
            raise InputError("There is nothing to undo.")
        known = [each["value"] for each in self.choices.get("classes", [])]
        if action["kind"] == "label" and self.choices["kind"] == "classes" and action["label"] not in known:
            raise InputError(f"There is no class {action['label']}.")
        if action["kind"] == "label" and self.choices["kind"] == "number" and not 0 <= action["label"] <= 100:
            raise InputError(f"{action['label']} is not between 0 and 100.")
        if action["kind"] != "next":
            self.write(**action)
        return self.state()


class OrderLabels:
    "Thirty orders and their labels in a store."

    def __init__(self, folder: Path):
        self.url = f"sqlite:///{folder}/labels.db"
        self.rows = pd.DataFrame({"town": ["Lima", "Oslo", "Rome"] * 10, "spend": range(30)}, [f"item-{n}" for n in range(30)])

    def create(self, annotator: str) -> LabellingSession:
        "A session that has only what is in the store."
        wanted = LabelSet(name="orders-late", source="-", target="late", task="binary", classes=["Yes", "No"])
        store = LabelStore(self.url)
        items, numbers = [QueuedItem(item) for item in self.rows.index], {f"item-{n}": str(100 + n) for n in range(30)}
        queue = LabellingQueue(
            ensure_label_set(store, wanted), items, fields_of_rows(self.rows, "late"), "Is it late?", row_ids=numbers
        )
        return LabellingSession(store, queue, annotator)

    def history(self) -> pd.DataFrame:
        return read_annotations(LabelStore(self.url), "orders-late")

    def current(self) -> list[tuple]:
        "Item, action, label and comment of the lines that hold now."
        lines = current_annotations(self.history())
        return list(zip(lines["item"], lines.action, lines.label, lines.comment, strict=True))

"""Labels as Label Studio's JSON and as CSV: what is exported comes back exactly, and a file with an error changes nothing."""

import itertools
import json
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlcycle.data.labelling.label_csv import import_label_table, write_label_table
from mlcycle.data.labelling.label_studio import choice_names, import_label_studio, label_studio_tasks, write_label_studio
from mlcycle.data.labelling.readable_rows import fields_of_rows
from mlcycle.errors import InputError
from mlcycle.stores.labels.label_store import (
    Annotation,
    LabelSet,
    LabelStore,
    add_annotations,
    current_annotations,
    ensure_label_set,
    read_annotations,
)

ITEMS = {"a1": "1", "b2": "2", "c3": "3", "d4": "4"}
ROWS = pd.DataFrame(
    {"spend": [61, None, 2.5, 1e300], "row_id": ["a & b", "<b>", None, "ü\n\"'"], "new": [True, False, True, True]},
    index=list(ITEMS),
)
TOY = LabelSet(name="toy", source="-", target="late", task="binary", classes=["No", "Yes"], columns=list(ROWS.columns))
LINES = [
    Annotation(item="a1", annotator="anna", label="No", seconds=2.5, comment="paid late"),
    Annotation(item="b2", annotator="anna", label="Yes", reason="most uncertain"),
    Annotation(item="c3", annotator="ben", action="skip"),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CLASSES = st.one_of(
    st.lists(TEXT, min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-(10**20), 10**20), min_size=2, max_size=4, unique=True),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=4, unique=True),
    st.just([False, True]),
    st.just(["1", 1, '"1"']),
    st.just([]),  # A regression
)


@contextmanager
def label_store(label_set: LabelSet, lines=()):
    "A store with a label set, and its folder."
    with TemporaryDirectory() as folder:
        store = LabelStore("sqlite://")  # In memory
        ensure_label_set(store, label_set)
        add_annotations(store, label_set, lines)
        try:
            yield store, Path(folder)
        finally:
            store.close()


@st.composite
def histories(draw):
    "A label set, and its lines in order: labels, changes of mind, rows that are skipped, labels that are taken back."
    classes = draw(CLASSES)
    task = "regression" if not classes else "binary" if len(classes) == 2 else "multiclass"
    label_set = LabelSet(name="toy", source="-", target="late", task=task, classes=classes, columns=list(ROWS.columns))
    labels = st.sampled_from(classes) if classes else st.floats(allow_nan=False, allow_infinity=False)
    people, lines = draw(st.lists(TEXT.filter(str.strip), min_size=1, max_size=3, unique=True)), []
    for _ in range(draw(st.integers(0, 12))):
        action = draw(st.sampled_from(["label", "label", "label", "skip", "unsure", "undo"]))
        common = {
            "annotator": draw(st.sampled_from(people)),
            "when": draw(st.datetimes(datetime(1990, 1, 1))),
            "comment": draw(TEXT),
            "reason": draw(TEXT),
            "seconds": draw(st.none() | st.floats(0, 3600)),
            "origin": draw(st.sampled_from(["person", "rule", "source", "correction"])),
        }
        earlier = [line for line in lines if line.annotator == common["annotator"] and line.action != "undo"]
        if action == "undo" and earlier:
            back = draw(st.sampled_from(earlier))
            lines.append(Annotation(item=back.item, action="undo", undoes=back.annotation_id, **common))
        elif action != "undo":
            item, label = draw(st.sampled_from([*ITEMS, "gone"])), draw(labels) if action == "label" else None
            lines.append(Annotation(item=item, action=action, label=label, **common))
    return label_set, lines


def export(store, folder, name, label_set):
    "The JSON file of a store, as bytes."
    write_label_studio(folder / name, label_set, read_annotations(store, "toy"), fields_of_rows(ROWS, "late"), ITEMS)
    return (folder / name).read_bytes()


LARGE = LabelSet(**TOY.model_dump() | {"classes": [0, 2**63 + 1]})


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories())
@example((LARGE, [Annotation(item="a1", annotator="anna", label=2**63 + 1)]))
def test_export_import_export_is_the_same_file(history):
    label_set, lines = history
    with label_store(label_set, lines) as (store, folder), label_store(label_set) as (empty, _):
        exported = export(store, folder, "first.json", label_set)
        assert import_label_studio(empty, folder / "first.json", label_set, ITEMS) == len(lines)
        assert import_label_studio(empty, folder / "first.json", label_set, ITEMS) == 0
        assert export(empty, folder, "second.json", label_set) == exported
        before, after = read_annotations(store, "toy"), read_annotations(empty, "toy")
        pd.testing.assert_frame_equal(before, after)
        kinds = [[type(label) for label in frame.label] for frame in (before, after)]
        assert kinds[0] == kinds[1]
        annotations = [each for task in json.loads(exported) for each in task["annotations"]]
        assert len(annotations) == len(current_annotations(before))
        assert len({each["id"] for each in annotations}) == len({each["unique_id"] for each in annotations}) == len(annotations)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories())
def test_a_csv_file_has_the_labels_that_hold(history):
    label_set, lines = history
    lines = [line.model_copy(update={"annotator": line.annotator.strip()}) for line in lines if line.item in ITEMS]
    with label_store(label_set, lines) as (store, folder), label_store(label_set) as (empty, _):
        write_label_table(folder / "first.csv", label_set, read_annotations(store, "toy"), ITEMS)
        holding = current_annotations(read_annotations(store, "toy"))
        assert import_label_table(empty, folder / "first.csv", label_set, ITEMS) == len(holding)
        assert import_label_table(empty, folder / "first.csv", label_set, ITEMS) == 0
        pd.testing.assert_frame_equal(current_annotations(read_annotations(empty, "toy")), holding)
        write_label_table(folder / "second.csv", label_set, read_annotations(empty, "toy"), ITEMS)
        assert (folder / "second.csv").read_bytes() == (folder / "first.csv").read_bytes()


@given(CLASSES)
def test_each_class_has_a_name_of_its_own_that_xml_can_hold(classes):
    names = choice_names(classes)
    assert list(names.values()) == classes and len(names) == len(classes)
    assert all(name.isprintable() and name and name == name.strip() and not name.startswith("$") for name in names)


def change(tasks, path, value):
    "Tasks in which one value is another one; a path such as `0.data.item`."
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = tasks
    for part in way:
        place = place[part]
    place[last] = value
    return json.dumps(tasks)


CHOICE = "1.annotations.0.result.0.value.choices"
SPOILT = {
    "an unknown choice": (CHOICE, ["Perhaps"], "task 2: the label 'Perhaps' is no class of 'late'. Classes are: No, Yes."),
    "two choices": (CHOICE, ["No", "Yes"], r"task 2: the choices are \['No', 'Yes'\]"),
    "no choice": (CHOICE, 3, "task 2: the choices are 3"),
    "an unknown label in the history": ("0.meta.mlcycle.lines.0.label", "Nope", "task 1: the label 'Nope' is no class of 'late'"),
    "an unknown action": ("0.meta.mlcycle.lines.0.action", "erase", "task 1: the line .*erase.* cannot be read"),
    "an item that does not exist": ("2.data.item", "z9", "task 3: the item 'z9' does not exist in the rows of 'toy'"),
    "another label set": ("0.meta.mlcycle.label_set", "tea", "task 1: the label set of the file is 'tea', not 'toy'"),
    "another target": ("0.meta.mlcycle.target", "paid", "task 1: the target of the file is 'paid', not 'late'"),
    "another task": ("3.meta.mlcycle.task", "regression", "task 4: the task type of the file is 'regression', not 'binary'"),
    "other columns": ("1.meta.mlcycle.columns", "0123", "task 2: the labels belong to rows with other columns"),
    "no data": ("1.data", None, "task 2: data is 'None'"),
    "no result": ("1.annotations.0.result", "Yes", "task 2: annotations.0.result is 'Yes'"),
    "an annotator without a name": ("0.meta.mlcycle.lines.0.annotator", " ", "task 1: the annotator ' ' cannot be used"),
    "a line that is there twice": (
        "0.meta.mlcycle.lines.0.annotation_id",
        LINES[1].annotation_id,
        "task 2: the line .* occurs twice",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_nothing_is_imported_from_a_file_with_an_error(case):
    path, value, message = SPOILT[case]
    with label_store(TOY, LINES) as (store, folder), label_store(TOY) as (empty, _):
        tasks = json.loads(export(store, folder, "toy.json", TOY))
        (folder / "toy.json").write_text(change(tasks, path, value))
        with pytest.raises(InputError, match=f"^toy.json, {message}"):
            import_label_studio(empty, folder / "toy.json", TOY, ITEMS)
        assert read_annotations(empty, "toy").empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": 1', "toy.json is no JSON: .* line 1 column 9"),
        (b'{"id": 1}', "toy.json holds no list"),
        (b"\xff\xfe", "toy.json cannot be read"),
        (b"[3]", "toy.json, the task in place 1: it is '3'"),
        (b'[{"id": 5, "item": "a1", "label": "Yes"}]', "toy.json, task 5: data is"),
        (b'[{"id": 5, "data": {"text": "x"}}]', "toy.json, task 5: the data have neither 'item' nor 'row_id'"),
    ],
)
def test_a_file_that_is_none_of_label_studio(content, message):
    with label_store(TOY) as (store, folder):
        (folder / "toy.json").write_bytes(content)
        with pytest.raises(InputError, match=message):
            import_label_studio(store, folder / "toy.json", TOY, ITEMS)
        with pytest.raises(InputError, match="missing.json cannot be read"):
            import_label_studio(store, folder / "missing.json", TOY, ITEMS)


def through_label_studio(tasks, user=1):
    "What Label Studio exports after an import: ids and users of its own, times of the import; results and `meta` as they were."
    numbers = itertools.count(900)
    for task in tasks:
        task |= {"id": next(numbers), "project": 3, "created_at": "2026-04-01T10:00:00Z", "drafts": [], "predictions": []}
        task["annotations"] = [
            {
                "id": next(numbers),
                "completed_by": user,
                "result": each["result"],
                "was_cancelled": each["was_cancelled"],
                "created_at": "2026-04-01T10:00:00.25Z",
                "updated_at": "2026-04-01T10:00:00.25Z",
                "lead_time": each["lead_time"],
                "import_id": each["id"],
                "unique_id": f"0000-{next(numbers)}",
            }
            for each in task["annotations"]
        ]
    return tasks


def test_labels_return_from_label_studio():
    "Those that mlcycle has exported are recognised; a changed one and those of others are new lines, added once."
    with label_store(TOY, LINES) as (store, folder):
        path = folder / "back.json"
        tasks = through_label_studio(json.loads(export(store, folder, "toy.json", TOY)))
        path.write_text(json.dumps(tasks))
        assert import_label_studio(store, path, TOY, ITEMS) == 0
        changed = tasks[0]["annotations"][0] | {"updated_at": "2026-04-02T10:00:00Z"}
        changed["result"] = [changed["result"][0] | {"value": {"choices": ["Yes"]}}, *changed["result"][1:]]
        cleo = changed | {"id": 77, "import_id": None, "completed_by": 7, "unique_id": "x"}
        cleo["result"] = [
            {"id": "k3", "from_name": "unsure", "to_name": "row_id", "type": "choices", "value": {"choices": ["Unsure"]}}
        ]
        tasks[0]["annotations"] = [changed, cleo]
        path.write_text(json.dumps(tasks))
        assert import_label_studio(store, path, TOY, ITEMS, {"cleo": 7}) == 2
        assert import_label_studio(store, path, TOY, ITEMS, {"cleo": 7}) == 0
        current = current_annotations(read_annotations(store, "toy"))
        held = {(line.annotator, line.action, line.label) for line in current[current["item"] == "a1"].itertuples()}
        assert held == {("anna", "label", "Yes"), ("cleo", "unsure", None)}


def test_each_user_of_label_studio_has_a_name():
    users = [3, {"id": 4, "email": "d@e.org"}, {"id": 5, "first_name": "Eve", "last_name": "Ng"}, "fay", None, 7]
    result = [{"from_name": "sentiment", "to_name": "text", "type": "choices", "value": {"choices": ["Yes"]}}]
    annotations = [{"id": n, "completed_by": user, "result": result} for n, user in enumerate(users)]
    with label_store(TOY) as (store, folder):
        (folder / "toy.json").write_text(json.dumps([{"id": 1, "data": {"row_id": 2}, "annotations": annotations}]))
        assert import_label_studio(store, folder / "toy.json", TOY, ITEMS, {"cleo": 7}) == 6
        names = read_annotations(store, "toy").annotator.tolist()
    assert sorted(names) == ["Eve Ng", "cleo", "d@e.org", "fay", "user 3", "user unknown"]


def test_users_of_label_studio_get_their_numbers():
    with label_store(TOY, LINES) as (store, _):
        tasks = list(label_studio_tasks(TOY, read_annotations(store, "toy"), fields_of_rows(ROWS, "late"), users={"ben": 1}))
    assert [each["completed_by"] for task in tasks for each in task["annotations"]] == [2, 2, 1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("item,label\na1,No\nb2,Maybe\n", "toy.csv, line 3: the label 'Maybe' is no class of 'late'. Classes are: No, Yes.$"),
        ('item,comment,label\na1,"two\nlines",No\nz9,,No\n', "toy.csv, line 4: the item 'z9' does not exist"),
        ("row_id,label\n7,No\n", "toy.csv, line 2: the row '7' does not exist"),
        ("item,name\na1,No\n", "toy.csv has the columns item, name. Needed are 'label', and 'item' or 'row_id'."),
        ("", "toy.csv has the columns \\(none\\)"),
        ("item,label,label\na1,No,No\n", "toy.csv has the column 'label' twice"),
        ("item,label\na1\n", "toy.csv, line 2: there are 1 values. The header has 2."),
        ("item,label,action\na1,No,undo\n", "toy.csv, line 2: the action 'undo' is unknown"),
        ("item,label,when\na1,No,today\n", "toy.csv, line 2: 'when' is 'today'"),
        ("item,label,seconds\na1,No,-1\n", "toy.csv, line 2: seconds '-1'"),
        ("item,label,annotator\na1,No,\n", "toy.csv, line 2: nobody is named who gave the label.*--annotator NAME"),
        (f"item,label,annotator\na1,No,{'x' * 201}\n", "toy.csv, line 2: the annotator 'xxx.* cannot be used"),
        (
            "row_id,label,annotator\n1,No,ben\n1,No,anna\n1,Yes,ben\n",
            "toy.csv, line 4: 'ben' gives row 1 the label Yes, and No in line 2",
        ),
        ('item,label\na1,"No\n', "toy.csv cannot be read"),
    ],
)
def test_nothing_is_imported_from_a_table_with_an_error(table, message):
    with label_store(TOY) as (store, folder):
        (folder / "toy.csv").write_text(table)
        with pytest.raises(InputError, match=message):
            import_label_table(store, folder / "toy.csv", TOY, ITEMS, "" if "annotator" in table else "anna")
        assert read_annotations(store, "toy").empty


@pytest.mark.parametrize("classes", [[3, 4], ["3", "4"]])
def test_a_class_is_found_as_pandas_writes_whole_numbers_beside_a_missing_one(classes):
    label_set = TOY.model_copy(update={"classes": classes})
    with label_store(label_set) as (store, folder):
        pd.DataFrame({"row_id": [1, 2, None], "label": [4, None, None]}).to_csv(folder / "toy.csv", index=False)
        assert "1.0,4.0" in (folder / "toy.csv").read_text()
        assert import_label_table(store, folder / "toy.csv", label_set, ITEMS, "anna") == 1
        assert read_annotations(store, "toy").label.tolist() == [classes[1]]


def test_a_label_that_is_edited_in_a_table_is_a_new_line():
    with label_store(TOY, LINES) as (store, folder):
        write_label_table(folder / "toy.csv", TOY, read_annotations(store, "toy"), ITEMS)
        text = (folder / "toy.csv").read_text()
        (folder / "toy.csv").write_text(text.replace("a1,1,anna,No", "a1,1,anna,Yes"))
        assert [import_label_table(store, folder / "toy.csv", TOY, ITEMS) for _ in range(2)] == [1, 0]
        history = read_annotations(store, "toy")
        assert history[history["item"] == "a1"].label.tolist() == ["No", "Yes"]
        (folder / "toy.csv").write_text(text)
        assert import_label_table(store, folder / "toy.csv", TOY, ITEMS) == 0  # Its line is there, and is not repeated

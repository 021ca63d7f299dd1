"""A labelling session: who sees which item, what is saved, and what holds after any sequence of actions."""

from contextlib import contextmanager

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcycle.data.labelling import session as session_module
from mlcycle.data.labelling.annotation_index import AnnotationIndex
from mlcycle.data.labelling.readable_rows import fields_of_rows
from mlcycle.data.labelling.session import LabellingQueue, LabellingSession, QueuedItem
from mlcycle.errors import InputError
from mlcycle.stores.labels.label_store import LabelSet, LabelStore, current_annotations, ensure_label_set, read_annotations

TOY = LabelSet(name="toy", source="-", target="late", task="binary", classes=["No", "Yes"])
ITEMS = ["a1", "b2", "c3", "d4"]
ROWS = pd.DataFrame({"spend": [61, 12, 40, 7]}, index=ITEMS)


@contextmanager
def sessions(*people: str, overlap: int = 1, items=ITEMS, shared: bool = True):
    "A store, and a session for each person; with an index that they share, as in one server, or each with its own."
    store = LabelStore("sqlite://")  # In memory
    queue = LabellingQueue(
        ensure_label_set(store, TOY), [QueuedItem(each) for each in items], fields_of_rows(ROWS, "late"), overlap=overlap
    )
    index = AnnotationIndex(store, TOY, items) if shared else None
    try:
        yield store, *(LabellingSession(store, queue, person, index) for person in people)
    finally:
        store.close()


def shown(session: LabellingSession) -> str:
    "The item that a person sees; empty: none."
    item = session.state()["item"]
    return item["id"] if item else ""


def label(session: LabellingSession, item: str, value: str = "Yes", **more) -> dict:
    "The state after a label."
    return session.act({"kind": "label", "item": item, "label": value, **more})


def history_of(store: LabelStore) -> list[tuple]:
    "Item, person, action and label of all lines."
    return [(line.item, line.annotator, line.action, line.label) for line in read_annotations(store, "toy").itertuples()]


def test_each_item_is_shown_to_as_many_persons_as_the_overlap():
    for overlap in (1, 2, 3):
        with sessions("anna", "ben", "cleo", overlap=overlap) as (store, *people):
            for _ in range(10):
                for person in people:
                    if item := shown(person):
                        label(person, item)
            labels = current_annotations(read_annotations(store, "toy"))
            assert labels.groupby("item")["annotator"].nunique().tolist() == [overlap] * 4
            assert not labels.duplicated(["item", "annotator"]).any()
            assert all(shown(person) == "" and person.state()["progress"]["left"] == 0 for person in people)


def test_labels_of_others_are_not_shown():
    with sessions("anna", "ben", overlap=2) as (_, anna, ben):
        before = ben.state()["item"]
        label(anna, "a1", "Yes", comment="paid late")
        after = ben.state()
        assert after["item"] == before and after["last"] is None and not after["can_undo"]
        assert "paid late" not in repr(after) and after["progress"]["done"] == 0


def test_an_item_before_the_eyes_of_another_person_is_held_back_for_a_while(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now)
    with sessions("anna", "ben", "cleo", items=["a1", "b2"]) as (_, anna, ben, cleo):
        assert (shown(anna), shown(ben)) == ("a1", "b2")
        assert shown(cleo) == "a1", "all are held back: better shown twice than nobody works"
    with sessions("anna", "ben") as (_, anna, ben):
        assert (shown(anna), shown(ben)) == ("a1", "b2")
        label(ben, "b2")
        assert shown(ben) == "c3"
        now += session_module.OFFER_SECONDS + 1
        label(ben, "c3")
        assert shown(ben) == "a1"
    with sessions("anna", "ben", overlap=2) as (_, anna, ben):
        assert shown(anna) == shown(ben) == "a1", "two labels are wanted"


def test_undo_revives_the_earlier_label():
    with sessions("anna") as (store, anna):
        label(anna, "a1", "No")
        label(anna, "a1", "Yes")
        state = anna.act({"kind": "undo"})
        assert state["message"] == "Taken back: Yes." and state["last"]["label"] == "No" and state["progress"]["done"] == 1
        assert current_annotations(read_annotations(store, "toy")).label.tolist() == ["No"]
        state = anna.act({"kind": "undo"})
        assert state["item"]["id"] == "a1" and not state["can_undo"] and state["progress"]["done"] == 0
        assert "nothing" in anna.act({"kind": "undo"})["error"]
        assert [action for *_, action, _ in history_of(store)] == ["label", "label", "undo", "undo"]


def test_what_is_sent_again_is_saved_once():
    with sessions("anna", "ben", overlap=2) as (store, anna, ben):
        for _ in range(3):
            label(anna, "a1", "Yes", seconds=3.0, comment="x")
        label(ben, "a1", "Yes", comment="x")
        for _ in range(2):
            anna.act({"kind": "skip", "item": "b2"})
        assert history_of(store) == [
            ("a1", "anna", "label", "Yes"),
            ("a1", "ben", "label", "Yes"),
            ("b2", "anna", "skip", None),
        ]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"kind": "label", "item": "a1", "label": "Perhaps"}, "The label 'Perhaps' is no class of 'late'"),
        ({"kind": "label", "item": "a1"}, "The label None is no class"),
        ({"kind": "label", "item": "z9", "label": "Yes"}, "The item 'z9' is not in the queue of 'toy'"),
        ({"kind": "label", "item": ["a1"], "label": "Yes"}, "is not in the queue"),
        ({"kind": "erase", "item": "a1"}, "The action 'erase' is unknown"),
        ({"kind": "comment", "item": "a1", "comment": "x"}, "The item 'a1' has no label yet"),
        ({}, "The action None is unknown"),
    ],
)
def test_an_action_with_an_error_saves_nothing(action, message):
    with sessions("anna") as (store, anna):
        state = anna.act(action)
        assert message in state["error"] and state["item"]["id"] == "a1" and history_of(store) == []


@pytest.mark.parametrize("name", ["", "  ", "x" * 201])
def test_an_annotator_has_a_name(name):
    with sessions() as (store,), pytest.raises(InputError, match="of the annotator cannot be used"):
        LabellingSession(store, LabellingQueue(TOY, [], fields_of_rows(ROWS, "late")), name)


@pytest.mark.parametrize("seconds", [None, -1, 1e9, float("nan"), True, "3"])
def test_a_time_that_cannot_be_is_left_out(seconds):
    with sessions("anna") as (store, anna):
        assert label(anna, "a1", seconds=seconds)["progress"]["seconds_median"] is None
        assert read_annotations(store, "toy").seconds.isna().all()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["anna", "ben"]),
        st.sampled_from(["label", "label", "skip", "unsure", "undo", "comment", "restart"]),
        st.sampled_from(ITEMS[:3]),
        st.sampled_from(["No", "Yes"]),
        st.sampled_from([None, 1.0, 2.0, 4.0]),
    ),
    max_size=25,
)


def model_of(actions) -> dict[str, list[tuple]]:
    "What holds: for each person a list of item, action, label, seconds and comment, from which an undo takes the last one."
    kept: dict[str, list[tuple]] = {"anna": [], "ben": []}
    for number, (person, kind, item, value, seconds) in enumerate(actions):
        lines = kept[person]
        before = next((line for line in reversed(lines) if line[0] == item), None)
        if kind == "undo":
            del lines[-1:]
        elif kind == "comment" and before is not None:
            lines.append((item, before[1], before[2], seconds, str(number)))
        elif kind in ("label", "skip", "unsure"):
            line = (item, kind, value if kind == "label" else None, seconds, "")
            if before is None or (before[1:3], before[4]) != (line[1:3], ""):
                lines.append(line)
    return kept


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS, st.booleans())
def test_any_sequence_of_actions_leaves_what_a_simple_model_has(actions, shared):
    with sessions("anna", "ben", overlap=2, shared=shared) as (store, anna, ben):
        people = {"anna": anna, "ben": ben}
        for number, (person, kind, item, value, seconds) in enumerate(actions):
            if kind == "restart":
                people[person] = LabellingSession(store, people[person].queue, person)
                continue
            comment = {"comment": str(number)} if kind == "comment" else {}
            people[person].act({"kind": kind, "item": item, "label": value, "seconds": seconds, **comment})
        kept = model_of(actions)
        expected = {(line[0], person): line[1:] for person, lines in kept.items() for line in lines}
        current = current_annotations(read_annotations(store, "toy")).astype(object)
        current = current.where(current.notna(), None)
        assert {
            (line.item, line.annotator): (line.action, line.label, line.seconds, line.comment) for line in current.itertuples()
        } == expected
        both = [item for item in ITEMS if all(expected.get((item, person), ("",))[0] == "label" for person in people)]
        equal = [expected[item, "anna"][1] == expected[item, "ben"][1] for item in both]
        for person, session in people.items():
            own = [line for (_, name), line in expected.items() if name == person]
            progress, seconds = session.state()["progress"], pd.Series([line[2] for line in own], dtype=float)
            assert [progress["done"], progress["skipped"], progress["unsure"]] == [
                sum(line[0] == kind for line in own) for kind in ("label", "skip", "unsure")
            ]
            assert progress["pairs"] == len(both) and progress["agreement"] == (sum(equal) / len(both) if both else None)
            assert progress["seconds_median"] == (seconds.median() if seconds.notna().any() else None)

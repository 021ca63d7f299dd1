"""`mlcycle label` and `mlcycle labels`: a page over HTTP, what is listed, exported and imported, and errors."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mlcycle.cli.app import app
from mlcycle.cli.base import console
from mlcycle.cli.label import opened_store, print_labelling_end, rows_of_label_set
from mlcycle.core.workspace import Workspace
from mlcycle.data.labelling.queue_file import queue_path
from mlcycle.lifecycle import labelling
from mlcycle.lifecycle.actual_value_import import ImportedActuals
from mlcycle.lifecycle.labelling import LabellingOptions, open_labelling
from mlcycle.problem.document import load_project_problem
from mlcycle.problem.stage import define_problem


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with orders of which the last ones have no label."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 200)  # A worker of pytest has imported it with another
    (tmp_path / "settings.ini").write_text("[stores]\n")
    spend = np.random.default_rng(0).normal(50, 12, 60).round(2)
    late = pd.Series(np.where(spend > 50, "Yes", "No"), dtype=object)
    late[50:] = None
    pd.DataFrame({"spend": spend, "late": late}).to_csv("orders.csv", index=False)
    return tmp_path


def call(*words):
    "What a command prints."
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.stderr
    return " ".join(done.stdout.split())


def refused(*words):
    "The message of a command that is refused."
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 2, (done.output, done.exception)
    return " ".join(done.stderr.split())


def label_all(project: Path, who: str, labels: list[str], overlap: int = 1) -> list[str]:
    "Give labels to the first rows of the queue; returns the items."
    opened = open_labelling("orders.csv", Workspace.from_project(project), LabellingOptions(target="late", overlap=overlap))
    session, items = opened.session(who), []
    for label in labels:
        item = session.state()["item"]["id"]
        assert not session.act({"kind": "label", "item": item, "label": label, "seconds": 2.0})["error"]
        items.append(item)
    opened.store.close()
    return items


def test_rows_are_labelled_over_http_until_the_page_is_stopped(project):
    command = [str(Path(sys.executable).parent / "mlcycle"), "label", "orders.csv", "--target", "late", "--port", "0"]
    command += ["--question", "Is the order late?", "--strategy", "random"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"COLUMNS": "200"})  # fmt: skip
    try:
        printed = []
        while not (printed and printed[-1].startswith("http")):
            printed.append(process.stdout.readline().strip())
            assert printed[-1], process.stderr.read()
        assert printed[0] == "10 rows are in the labelling queue of orders-late."
        with httpx.Client(base_url=printed[-1], params={"annotator": "anna"}, headers={"Origin": printed[-1]}) as client:
            state = client.get("/api/state").raise_for_status().json()
            assert (state["question"], state["progress"]["left"]) == ("Is the order late?", 10)
            for label in ("Yes", "No", "Yes"):
                action = {"kind": "label", "item": state["item"]["id"], "label": label, "seconds": 1.5, "comment": ""}
                state = client.post("/api/act", json=action).raise_for_status().json()
                assert state["message"] == f"Saved: {label}." and not state["error"]
            assert state["progress"]["done"] == 3
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0 and stderr == "Reading orders.csv and choosing rows …\n"
    assert "3 of 10 rows of the queue are labelled." in stdout and "mlcycle run uses these labels from now on." in stdout
    assert re.search(r"orders-late late binary 3 1 0", call("labels", "show"))


def number_of(project: Path, item: str) -> str:
    "The number of an item in the source."
    workspace = Workspace.from_project(project)
    with opened_store(workspace) as store:
        return rows_of_label_set(store.read_label_set("orders-late"), workspace)[1][item]


def test_the_end_counts_rows_that_have_all_their_labels(project, capsys):
    label_all(project, "anna", ["Yes", "Yes", "No"], overlap=2)
    opened = open_labelling("orders.csv", Workspace.from_project(project), LabellingOptions(target="late", overlap=2))
    session = opened.session("ben")
    for label in ("Yes", "No"):
        session.act({"kind": "label", "item": session.state()["item"]["id"], "label": label})
    print_labelling_end(opened)
    assert "2 of 10 rows have all their labels, 1 waits for another person." in capsys.readouterr().out


def test_rows_of_the_prediction_log_come_before_those_of_the_source(project, capsys, monkeypatch):
    label_all(project, "anna", [])
    workspace = Workspace.from_project(project)
    with queue_path(workspace, "orders-late").open("a") as file:
        file.write('{"row_id": "order-17", "actual": null, "reason": "drawn at random", "features": {"town": "Oslo"}}\n')
    imported = []
    monkeypatch.setattr(labelling, "import_labels_as_actuals", lambda *args: imported.append(args) or ImportedActuals(n_added=1))
    for n_more in (0, 1):
        opened = open_labelling("orders-late", workspace)
        session = opened.session("anna")
        for _ in range(1 + n_more):
            item = session.state()["item"]
            if not n_more:
                assert item["row_id"] == "order-17" and [each["name"] for each in item["fields"]] == ["town"]
            session.act({"kind": "label", "item": item["id"], "label": "Yes"})
        print_labelling_end(opened)
        printed = capsys.readouterr().out
        assert "1 label is a new actual value in the prediction log, for monitoring and retraining." in printed
        assert ("mlcycle run uses the labels of rows of the source from now on." in printed) == bool(n_more)
    assert len(imported) == 2


def test_a_figure_that_is_not_known_is_a_dash(project):
    opened = open_labelling("orders.csv", Workspace.from_project(project), LabellingOptions(target="late"))
    session = opened.session("anna")
    session.act({"kind": "label", "item": session.state()["item"]["id"], "label": "Yes"})
    opened.store.close()
    assert "anna 1 – 0.0% 0.0% – – too few labels in common" in call("labels", "show", "orders-late")
    assert " Yes – " in call("labels", "history", "orders-late")


def test_show_and_history(project):
    items = label_all(project, "anna", ["Yes", "Yes", "No", "No"], overlap=2)
    label_all(project, "ben", ["Yes", "Yes", "No", "Yes"], overlap=2)
    assert re.search(r"orders-late late binary 8 2 0", call("labels", "show"))
    shown = call("labels", "show", "orders-late")
    assert re.search(r"anna 4 2\.0 0\.0% 0\.0%", shown) and re.search(r"ben 4 2\.0 0\.0% 0\.0%", shown)
    rows = [number_of(project, item) for item in items]
    assert f"Look again at row {rows[3]} ({items[3]})" in shown
    assert "percent agreement: 0.750 (too few items for an interval)" in shown and "too few labels in common" in shown
    assert "nan" not in shown
    history = call("labels", "history", "orders-late")
    assert all(history.count(f"{row} {item}") == 2 for row, item in zip(rows, items, strict=True))
    (project / "orders.csv").rename(project / "moved.csv")
    assert f"Look again at {items[3]}" in call("labels", "show", "orders-late"), "the source cannot be read"
    assert call("labels", "history", "orders-late").count(f"– {items[0]}") == 2
    (project / "moved.csv").rename(project / "orders.csv")
    assert call("labels", "history", "orders-late", items[0]).count("label Yes") == 2


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_exported_labels_can_be_imported_elsewhere(project, tmp_path_factory, monkeypatch, suffix):
    items = label_all(project, "anna", ["Yes", "No", "Yes"])
    file = project / f"labels{suffix}"
    assert "3 rows" in call("labels", "export", "orders-late", str(file))
    assert "0 labels are new" in call("labels", "import", "orders-late", str(file)), "they are there already"
    other = tmp_path_factory.mktemp("other")
    (other / "settings.ini").write_text("[stores]\n")
    (other / "orders.csv").write_bytes((project / "orders.csv").read_bytes())
    monkeypatch.chdir(other)
    label_all(other, "ben", ["Yes"])
    added = int(re.search(r"(\d+) labels are new in orders-late", call("labels", "import", "orders-late", str(file)))[1])
    assert added == 3
    again = other / f"again{suffix}"
    call("labels", "export", "orders-late", str(again))
    if suffix == ".csv":
        read = {(line["item"], line["annotator"]): line["label"] for line in csv.DictReader(again.open())}
        assert [read[item, "anna"] for item in items] == ["Yes", "No", "Yes"] and len(read) == 4
    else:
        assert {task["data"].get("item", "") for task in json.loads(again.read_text())} >= set(items)


def test_a_csv_by_hand_names_rows_by_their_number(project):
    label_all(project, "anna", ["Yes"])
    (project / "hand.csv").write_text("row_id,label\n50,Yes\n59,No\n")
    message = refused("labels", "import", "orders-late", "hand.csv")
    assert "nobody is named who gave the label" in message and "--annotator NAME" in message
    assert "the number of the row in the source, from 0" in call("labels", "import", "--help")
    assert "2 labels are new in orders-late" in call("labels", "import", "orders-late", "hand.csv", "--annotator", "carl")


def test_what_cannot_be_used_is_a_clear_error(project):
    for words in (["show"], ["history", "orders-late"], ["export", "orders-late", "a.csv"], ["import", "orders-late", "a.csv"]):
        message = refused("labels", *words)
        assert "There are no labels yet" in message and "mlcycle label" in message
    assert not list(project.rglob("labels.db")), "no command that reads makes a store"
    label = ["label", "orders.csv", "--target", "late", "--port", "0"]
    assert "There is only one class: yes" in refused(*label, "--classes", "yes")
    assert "overlap = 0 is too small" in refused(*label, "--overlap", "0")
    assert "Invalid value" in refused(*label, "--rows", "0") and "Invalid value" in refused(*label, "--strategy", "best")
    assert "No target is named" in refused("label", "orders.csv", "--port", "0")
    assert "The classes of 'paid' are not known" in refused("label", "orders.csv", "--target", "paid", "--port", "0")
    assert "no source, no label set and no released model" in refused("label", "nothing", "--port", "0")
    label_all(project, "anna", ["Yes"])
    message = refused("label", "nothing", "--port", "0")
    assert "Label sets are: orders-late." in message and "Known are" not in message
    for words in (
        ["show", "orders-lat"],
        ["history", "orders-lat"],
        ["export", "orders-lat", "a.csv"],
        ["import", "orders-lat", "a.csv"],
    ):
        assert "There is no label set 'orders-lat'" in refused("labels", *words)
    (project / "hand.csv").write_text("row_id,label,annotator\n50,Yes,carl\n51,Perhaps,carl\n")
    message = refused("labels", "import", "orders-late", "hand.csv")
    assert "hand.csv, line 3: the label 'Perhaps' is no class of 'late'" in message
    assert "orders-late late binary 1 1 0" in call("labels", "show"), "all or none"
    (project / "hand.csv").write_text("row_id,label,annotator\n600,Yes,carl\n")
    assert "the row '600' does not exist" in refused("labels", "import", "orders-late", "hand.csv")
    for command in ("export", "import"):
        assert "The format of labels.xlsx is not known" in refused("labels", command, "orders-late", "labels.xlsx")
    assert f"The folder {project / 'none'} does not exist" in refused("labels", "export", "x", str(project / "none" / "a.csv"))
    assert not (project / "none").exists()
    assert "none.csv cannot be read" in refused("labels", "import", "orders-late", "none.csv")


def test_rows_are_read_as_problem_yaml_tells(project):
    rows = pd.read_csv("orders.csv").assign(town=["-", "Oslo"] * 30)
    rows.to_csv("orders.csv", index=False)
    (project / "problem.yaml").write_text("source: orders.csv\ntarget: late\nna_values: ['-']\n")
    workspace = Workspace.from_project(project)
    opened = open_labelling("orders.csv", workspace)  # The target is that of problem.yaml
    session = opened.session("anna")
    session.act({"kind": "label", "item": session.state()["item"]["id"], "label": "Yes"})
    opened.store.close()
    problem = define_problem(document=load_project_problem(project), workspace=workspace, probe_seconds=0)
    assert "51 labelled rows" in problem.decision
    call("labels", "export", "orders-late", "labels.csv")
    labelled = pd.read_csv("labels.csv").row_id.item()
    assert 50 <= labelled < 60
    (project / "hand.csv").write_text(f"row_id,label,annotator\n{58 if labelled == 59 else 59},No,carl\n")
    assert "1 labels are new" in call("labels", "import", "orders-late", "hand.csv")
    problem = define_problem(document=load_project_problem(project), workspace=workspace, probe_seconds=0)
    assert "52 labelled rows" in problem.decision
    (project / "problem.yaml").write_text("source: others.csv\ntarget: worth\n")
    assert "No target is named" in refused("label", "orders.csv", "--port", "0"), "it is about another source"

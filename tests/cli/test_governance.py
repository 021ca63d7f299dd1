"""Decisions of persons: approve, reject, roll back, and what the audit says about them."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import mlflow
import pytest
from projects import computed, edit, run
from typer.testing import CliRunner

import mlcycle as mc
from mlcycle.cli.app import app
from mlcycle.core.runs import list_runs
from mlcycle.core.workspace import Workspace
from mlcycle.outcomes import Gate
from mlcycle.stores.models.audit_log import LOG_FILE, readable_entries
from mlcycle.stores.models.decisions import is_released_by_person, promotion_hindrance
from mlcycle.stores.models.registry import get_alias_version
from mlcycle.stores.models.registry_queries import open_registry_read_only
from mlcycle.validation.card_formats import CARD_FILES
from mlcycle.validation.promotion import Promotion
from mlcycle.validation.stage import promote_candidate

NAME = "orders-late"


@pytest.fixture(scope="module")
def undecided(base, tmp_path_factory):
    "A project whose second version passes all gates and needs a person; to be copied, not changed."
    folder = tmp_path_factory.mktemp("undecided") / "project"
    shutil.copytree(base, folder)
    edit(folder / "settings.ini", "[problem]", "[governance]\napproval = manual\n[problem]")
    run(folder, "-p", "modelling.seed=1")
    return folder


@pytest.fixture
def manual(undecided, tmp_path):
    "A copy of it."
    return Path(shutil.copytree(undecided, tmp_path / "manual"))


def typed(project: Path, *words: str, user: str = "ann"):
    "Run `mlcycle …` in this process, as a user."
    return CliRunner().invoke(app, [*words, "--project", str(project)], env={"COLUMNS": "200", "LOGNAME": user, "USER": user})


def champion(project: Path) -> int | None:
    "The version that is champion."
    with open_registry_read_only(Workspace.from_project(project)):
        return get_alias_version(NAME)


def trained_by(project: Path, version: str) -> str:
    "The user who trained a version."
    with open_registry_read_only(Workspace.from_project(project)) as client:
        return client.get_run(client.get_model_version(NAME, version).run_id).data.tags["mlflow.user"]


def test_a_model_that_passes_all_gates_needs_a_person(undecided):
    made = mc.open("last", undecided)
    assert made.verdict.decision.startswith(f"Needs a person: {NAME} version 2 passes")
    assert (made.verdict.approved, made.verdict.needs_approval) == (False, True)
    assert all(gate.passed for gate in made.verdict.gates)
    assert champion(undecided) == 1
    assert made.release.decision.startswith("No model is released. Needs a person")
    entry = next(each for each in json.loads((undecided / "reports" / "index.json").read_text()) if each["id"] == made.id)
    assert entry["verdict"] == "needs a person"


def summary_page(project: Path, run: mc.Run) -> str:
    "The text of the summary page of a run."
    html = (project / "reports" / run.id / "index.html").read_text()
    html = re.sub("</?code>", "", html)
    return unescape(" ".join(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL).split()))


def stored_card(project: Path, version: int) -> dict:
    "The model card that is attached to a version."
    with open_registry_read_only(Workspace.from_project(project)) as client:
        folder = Path(client.get_model_version_download_uri(NAME, str(version)).removeprefix("file://"))
    path = Path(project, ".mlcycle", "artifacts", *folder.parts[-3:], "model_card")
    assert sorted(each.name for each in path.iterdir()) == sorted(CARD_FILES.values()), "no file with a temporary name is left"
    return json.loads((path / CARD_FILES["json"]).read_text())


def listed(project: Path, run: mc.Run) -> dict:
    "The entry of a run in the index."
    return next(each for each in json.loads((project / "reports" / "index.json").read_text()) if each["id"] == run.id)


def test_where_a_person_must_approve_the_page_gives_the_command(undecided):
    page = summary_page(undecided, mc.open("last", undecided))
    command = f"A person must decide: mlcycle approve {NAME} 2 --reason TEXT, or mlcycle reject {NAME} 2 --reason TEXT"
    assert command in page
    assert "Decision of a person" not in page
    assert "Serve the release" not in page
    assert "Model card" in page
    assert "The alias does not move: a person must approve it." in mc.open("last", undecided).verdict.promotion_reason
    card = stored_card(undecided, 2)
    assert card["decision"].startswith("Needs a person")
    assert any("mlcycle approve" in each["item"] for each in card["open"])


def test_after_an_approval_page_index_and_stored_card_say_who_when_and_why(manual):
    made = mc.open("last", manual)
    assert typed(manual, "approve", "2", "--reason", "Checked with the <warehouse>.").exit_code == 0
    entry = next(each for each in readable_entries(made.workspace) if each.action == "approve")
    text = f"Approved: {NAME} version 2, by ann on {entry.time[:16].replace('T', ' ')} UTC: Checked with the <warehouse>."
    page = summary_page(manual, made)
    assert page.count(text) == 1
    assert "mlcycle approve" not in page
    assert "The version is approved: release it with mlcycle run." in page
    assert (listed(manual, made)["verdict"], listed(manual, made)["decision"]) == ("approved", text)
    pages = manual / "reports" / made.id
    for card in (stored_card(manual, 2), *(json.loads((at / CARD_FILES["json"]).read_text()) for at in (pages, made.folder))):
        assert (card["decision"], card["approved"]) == (text, True)
        facts = card["sections"]["approval"]["facts"]
        assert facts["approved by"] == f"ann on {entry.time[:10]}: Checked with the <warehouse>."
        assert facts["champion when the card was written"] == 2
        assert not any("mlcycle approve" in each["item"] for each in card["open"])
    assert unescape((pages / CARD_FILES["html"]).read_text()).count("Checked with the <warehouse>.") >= 2


def test_after_a_rejection_page_and_stored_card_say_so(manual):
    made = mc.open("last", manual)
    assert typed(manual, "reject", "2", "--reason", "Unfair.").exit_code == 0
    page = summary_page(manual, made)
    assert page.count(f"Rejected: {NAME} version 2, by ann on ") == 1
    assert "The version was withdrawn" in page
    assert "mlcycle approve" not in page
    assert listed(manual, made)["verdict"] == "rejected"
    card = stored_card(manual, 2)
    assert card["decision"].startswith(f"Rejected: {NAME} version 2, by ann on ")
    assert card["sections"]["approval"]["facts"]["rejected by"].endswith("Unfair.")


def test_a_rollback_renews_the_cards_of_both_versions(manual):
    second, first = list_runs(Workspace.from_project(manual))
    assert typed(manual, "approve", "2", "--reason", "Better.").exit_code == 0
    assert typed(manual, "rollback", "--reason", "Too slow.").exit_code == 0
    for made, version in ((first, 1), (second, 2)):
        assert f"Rolled back: {NAME} from version 2 to 1, by ann on " in summary_page(manual, made)
        facts = stored_card(manual, version)["sections"]["approval"]["facts"]
        assert facts["rolled back"][0].endswith("UTC: Too slow.")
        assert facts["champion when the card was written"] == 1
    assert "Decisions of a person" in summary_page(manual, second)
    assert "The version was withdrawn" in summary_page(manual, second)
    assert "The version was withdrawn" not in summary_page(manual, first)


def test_a_card_that_cannot_be_written_leaves_the_decision_and_the_old_card(manual, monkeypatch):
    before, copy = stored_card(manual, 2), shutil.copyfile

    def half_copy(source, target, **options):
        if "artifacts" not in Path(target).parts:
            return copy(source, target, **options)
        Path(target).write_text("half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("mlcycle.core.files.shutil.copyfile", half_copy)
    done = typed(manual, "approve", "2", "--reason", "Better.")
    monkeypatch.undo()
    assert done.exit_code == 0, done.output
    assert "The decision is recorded, but not all pages and model cards could be written again" in done.output
    assert stored_card(manual, 2) == before
    assert champion(manual) == 2


def test_an_approved_model_is_released_by_the_next_run(manual):
    done = typed(manual, "approve", NAME, "2", "--reason", "Checked with the warehouse.")
    assert done.exit_code == 0, done.output
    assert "Release it: mlcycle run" in done.output
    assert champion(manual) == 2
    entry = readable_entries(Workspace.from_project(manual))[-2]
    assert (entry.action, entry.user, entry.version_before, entry.version_after) == ("approve", "ann", 1, 2)
    assert entry.reason == "Checked with the warehouse."
    assert typed(manual, "audit").exit_code == 0
    run(manual, "-p", "modelling.seed=1")
    made = mc.open("last", manual)
    assert computed(made)[0] == "deployment", "the verdict stays as it was"
    assert made.release.released
    assert "ann approved it" in made.release.decision
    card = json.loads(typed(manual, "card", "2", "--format", "json").output)
    assert card["sections"]["approval"]["facts"]["approved by"].startswith("ann on ")
    again = typed(manual, "approve", "2", "--reason", "Checked again.")
    assert again.exit_code == 0, again.output
    assert "A run has released it already." in again.output
    assert "Release it" not in again.output


def test_four_eyes_means_another_person(manual):
    edit(manual / "settings.ini", "approval = manual", "four_eyes = true")
    same = typed(manual, "approve", "2", "--reason", "Mine.", user=trained_by(manual, "2"))
    assert same.exit_code == 2
    assert "must not approve it" in same.output
    run(manual, "-p", "modelling.seed=1", "--until", "validation")
    assert "another person than the one who trained it must run" in mc.open("last", manual).verdict.decision
    assert champion(manual) == 1
    assert typed(manual, "approve", "2", "--reason", "Not mine.", user="somebody-else").exit_code == 0
    assert champion(manual) == 2


def test_a_rejected_version_is_never_promoted(manual):
    done = typed(manual, "reject", f"{NAME}@2", "--reason", "It uses the price of competitors.")
    assert done.exit_code == 0, done.output
    edit(manual / "settings.ini", "approval = manual", "approval = automatic")
    made = mc.open("last", manual)
    passed = Gate(criterion="beats baseline", value=1, low=1, high=1, bound=0, passed=True)
    better = Promotion(True, "It is better.")
    assert promote_candidate(made.candidate, [passed], better, made.workspace) == (1, 1)
    assert "It uses the price of competitors." in promotion_hindrance(made.workspace, made.candidate.model)
    run(manual, "-p", "modelling.seed=1")
    again = mc.open("last", manual)
    assert again.verdict.decision.startswith(f"Rejected: {NAME} version 2 passes 1 of 1 gates, but ann rejected it")
    assert not again.release.released
    assert "ann rejected it" in again.verdict.promotion_reason
    assert champion(manual) == 1
    assert typed(manual, "audit").exit_code == 0


def test_a_rejection_in_another_workspace_is_known_by_the_tag(manual):
    assert typed(manual, "reject", "2", "--reason", "No.").exit_code == 0
    workspace = Workspace.from_project(manual)
    (workspace.root / LOG_FILE).unlink()
    with open_registry_read_only(workspace) as client:
        assert "ann rejected it" in promotion_hindrance(workspace, mc.open("last", manual).candidate.model, client)


def test_rollback_returns_to_earlier_champions_one_by_one(manual):
    assert typed(manual, "approve", "2", "--reason", "Better.").exit_code == 0
    done = typed(manual, "rollback", "--reason", "Too slow.")
    assert done.exit_code == 0, done.output
    assert f"{NAME} version 2 to 1" in done.output
    assert champion(manual) == 1
    none_left = typed(manual, "rollback", NAME, "--reason", "Again.")
    assert none_left.exit_code == 2
    assert "cannot be rolled back" in none_left.output
    assert typed(manual, "approve", "2", "--reason", "Fixed.").exit_code == 0
    assert typed(manual, "rollback", NAME, "--to", "9", "--reason", "What?").exit_code == 2
    assert typed(manual, "rollback", NAME, "--to", "1", "--reason", "Back.").exit_code == 0
    actions = [each.action for each in readable_entries(Workspace.from_project(manual)) if each.alias == "champion"]
    assert actions == ["promote", "approve", "roll back", "approve", "roll back"]
    assert typed(manual, "audit").exit_code == 0


def test_rollback_of_an_alias_that_was_moved_outside_returns_to_the_last_champion_of_the_log(manual):
    assert typed(manual, "approve", "2", "--reason", "Better.").exit_code == 0
    with open_registry_read_only(Workspace.from_project(manual)):
        mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    assert typed(manual, "rollback", "--reason", "Moved by hand.").exit_code == 0
    assert champion(manual) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["approve", "2"], "No reason is given"),
        (["approve", NAME, "7", "--reason", "x"], "has no version '7'"),
        (["approve", "orders-lat", "2", "--reason", "x"], f"Did you mean '{NAME}'"),
        (["reject", "1", "--reason", "x"], "is champion and cannot be rejected"),
        (["approve", "a", "b", "c", "--reason", "x"], "does not name a version"),
        (["history", "orders"], "The audit log has no model 'orders'"),
        (["card", "--format", "pdf"], "The format 'pdf' is not known"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_errors_say_what_is_wrong(undecided, words, message):
    done = typed(undecided, *words)
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())


def test_a_version_that_fails_a_gate_is_approved_by_force_only(manual):
    made = mc.open("last", manual)
    verdict = json.loads((made.folder / "validation.json").read_text())
    verdict["gates"][0] |= {"passed": False, "result": "fail"}
    (made.folder / "validation.json").write_text(json.dumps(verdict))
    refused = typed(manual, "approve", "2", "--reason", "Urgent.")
    assert refused.exit_code == 1
    assert "does not pass beats baseline" in " ".join(refused.output.split())
    assert typed(manual, "approve", "2", "--reason", "Urgent.", "--force").exit_code == 0
    entry = next(each for each in readable_entries(made.workspace) if each.action == "approve")
    assert entry.reason == "Urgent. Approved although it does not pass beats baseline."
    failed = made.verdict.model_copy(update={"approved": False, "needs_approval": False})
    assert is_released_by_person(failed, made.candidate.model, made.workspace)[0]


def test_audit_lists_findings_and_fails(manual):
    with open_registry_read_only(Workspace.from_project(manual)):
        mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "2")
    done = typed(manual, "audit")
    assert done.exit_code == 1
    assert "alias 'champion' is version 2, the log says version 1" in done.output
    facts = json.loads(typed(manual, "audit", "--json").output)
    assert [each["kind"] for each in facts["findings"]] == ["alias"]
    assert not facts["intact"]
    assert typed(manual, "audit", "--accept").exit_code == 2, "a reason is needed"
    assert typed(manual, "audit", "--accept", "--reason", "Moved by hand during the outage.").exit_code == 0


def test_audit_shows_the_way_back(undecided):
    facts = json.loads(typed(undecided, "audit", NAME, "2", "--json").output)
    way = facts["way_back"]
    made = mc.open("last", undecided)
    assert (way["model"], way["version"], way["run"]) == (NAME, 2, made.id)
    assert {each["name"]: each["sha256"] for each in way["tables"]} == {
        name: table.sha256 for name, table in made.dataset.tables.items()
    }
    assert way["sources"][0]["source"] == "orders.csv"
    assert way["sources"][0]["sha256"] == made.problem.source_sha256
    assert way["settings"]["seed"] == 1
    assert way["code"]["notebook"] == "04_modelling.ipynb"
    assert way["trained_by"] == trained_by(undecided, "2")
    shown = typed(undecided, "audit", "2").output
    assert "orders.csv" in shown
    assert "train@0" in shown


def test_history_is_a_table_and_json(undecided):
    shown = typed(undecided, "history").output
    assert "promote" in shown
    assert f"{NAME}@1" in shown
    entries = json.loads(typed(undecided, "history", NAME, "--json").output)
    assert [each["number"] for each in entries] == [*range(1, len(entries) + 1)]


@pytest.mark.parametrize("command", ["approve", "reject", "rollback", "history", "audit", "card", "dossier"])
def test_help_fits_eighty_columns(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > 80] == []
    assert "…" not in shown.output

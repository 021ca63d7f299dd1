"""The audit log: every way to change it afterwards is detected, and so are aliases that move behind its back."""

import json
import os
import shutil
import stat
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sklearn.dummy import DummyClassifier

from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.signing import KEY_VARIABLE, load_signing_key, public_key_text
from mlcycle.core.workspace import Workspace
from mlcycle.errors import ParameterError
from mlcycle.outcomes import LeaderboardEntry, ModelRef, Score
from mlcycle.stores.models.audit_log import (
    ID_FILE,
    LOG_FILE,
    AuditEntry,
    accept_findings,
    append_audit_entry,
    chain_findings,
    earlier_champions,
    head_file,
    read_audit_log,
    readable_entries,
    verify_audit_log,
)
from mlcycle.stores.models.registration import register_model
from mlcycle.stores.models.registry import open_experiment, remove_alias, set_alias
from mlcycle.stores.models.registry_queries import delete_version, open_registry_read_only, tag_version

ROWS = pd.DataFrame({"size": np.arange(20.0)})


def register(workspace: Workspace, name: str, constant: int) -> ModelRef:
    "Register a model that predicts a constant."
    model = DummyClassifier(strategy="constant", constant=constant).fit(ROWS, ROWS["size"].astype(int))
    entry = LeaderboardEntry(
        model=f"constant {constant}", score=Score(metric="accuracy", value=0.5), fold_scores=[0.5], fit_seconds=0, parameters={}
    )
    open_experiment(workspace.tracking_uri, workspace.artifacts, name)
    outputs = pd.Series(model.predict(ROWS))
    return register_model(name, model, ROWS.head(2), outputs.head(2), [entry], {"run": "r1"}, workspace=workspace)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    "A workspace with two versions of a model, the second one champion after the first; to be copied, not changed."
    folder = tmp_path_factory.mktemp("registered")
    workspace = Workspace(folder, dict(STORE_DEFAULTS))
    for constant in (1, 2):
        set_alias(
            register(workspace, "late", constant), reason=f"Constant {constant} is good.", workspace=workspace, action="promote"
        )
    return folder


@pytest.fixture
def workspace(registered, tmp_path):
    "A copy of the workspace; its head is only in MLflow until something is appended."
    shutil.copytree(registered, tmp_path / "copy")
    made = Workspace(tmp_path / "copy", dict(STORE_DEFAULTS))
    with open_registry_read_only(made):
        return made


@pytest.fixture
def plain(tmp_path):
    "A workspace with five entries and no registry."
    made = Workspace(tmp_path, dict(STORE_DEFAULTS))
    for number in range(1, 6):
        promote(made, number)
    return made


def promote(workspace: Workspace, number: int) -> AuditEntry:
    "Append an entry."
    before = number - 1 or None
    facts = {"alias": "champion", "version": number, "version_before": before, "version_after": number}
    return append_audit_entry(workspace, "promote", "late", reason=f"Version {number} is better.", **facts)


def verified(workspace: Workspace) -> list[tuple[str, int | None]]:
    "Kind and entry of each finding that is not accepted, with the registry."
    with open_registry_read_only(workspace) as client:
        return [(each.kind, each.entry) for each in verify_audit_log(workspace, client) if not each.accepted]


def lines(workspace: Workspace) -> list[str]:
    "The lines of the log."
    return (workspace.root / LOG_FILE).read_text().splitlines(keepends=True)


def put(workspace: Workspace, texts: list[str]) -> None:
    "Write the log anew."
    (workspace.root / LOG_FILE).write_text("".join(texts))


def hashed_anew(texts: list[str], **changes) -> list[str]:
    "A log with a changed first entry whose hashes are all valid."
    previous, made = "0" * 64, []
    for number, text in enumerate(texts, 1):
        entry = AuditEntry.model_validate_json(text).model_copy(update={"previous_hash": previous, "number": number})
        entry = entry.model_copy(update=changes if number == 1 else {})
        entry = entry.model_copy(update={"hash": entry.expected_hash()})
        previous = entry.hash
        made.append(entry.model_dump_json() + "\n")
    return made


def test_an_untouched_log_has_no_finding_and_every_line_is_one_entry(plain):
    assert verify_audit_log(plain) == []
    assert [json.loads(line)["number"] for line in lines(plain)] == [1, 2, 3, 4, 5]
    assert earlier_champions(readable_entries(plain), "late") == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("field", ["user", "reason", "version_after", "time"])
def test_an_edit_names_the_entry(plain, number, field):
    texts = lines(plain)
    entry = json.loads(texts[number - 1])
    entry[field] = 9 if field == "version_after" else "mallory"
    texts[number - 1] = json.dumps(entry) + "\n"
    put(plain, texts)
    assert ("edit", number) in [(each.kind, each.entry) for each in verify_audit_log(plain)]


@pytest.mark.parametrize("number", [1, 3])
def test_an_edit_whose_own_hash_is_computed_anew_breaks_the_link(plain, number):
    texts = lines(plain)
    entry = AuditEntry.model_validate_json(texts[number - 1]).model_copy(update={"reason": "Other."})
    texts[number - 1] = entry.model_copy(update={"hash": entry.expected_hash()}).model_dump_json() + "\n"
    put(plain, texts)
    assert [(each.kind, each.entry) for each in verify_audit_log(plain)] == [("edit", number)]


def test_a_line_that_is_no_entry_is_an_edit(plain):
    texts = lines(plain)
    put(plain, [texts[0], "{half\n", *texts[2:]])
    assert [each.kind for each in verify_audit_log(plain)] == ["edit"]
    assert "Line 2" in verify_audit_log(plain)[0].message


@pytest.mark.parametrize("gone", [[1], [3], [2, 4]])
def test_a_deletion_names_the_entries(plain, gone):
    put(plain, [text for number, text in enumerate(lines(plain), 1) if number not in gone])
    assert [(each.kind, each.entry) for each in verify_audit_log(plain)] == [("deletion", number) for number in gone]


def test_reordering_names_the_entry(plain):
    one, two, three, four, five = lines(plain)
    put(plain, [one, three, two, four, five])
    assert [(each.kind, each.entry) for each in verify_audit_log(plain)] == [("reordering", 2)]


@pytest.mark.parametrize("kept", [4, 1, 0])
def test_truncation_is_detected_by_the_head_outside(plain, kept):
    put(plain, lines(plain)[:kept])
    assert chain_findings(read_audit_log(plain)) == [], "the chain alone does not reveal it"
    assert [(each.kind, each.entry) for each in verify_audit_log(plain)] == [("truncation", 5)]


def test_a_removed_log_is_detected_and_writing_on_does_not_hide_it(plain):
    (plain.root / LOG_FILE).unlink()
    (plain.root / ID_FILE).unlink()
    assert [each.kind for each in verify_audit_log(plain)] == ["truncation"]
    promote(plain, 1)
    assert [each.kind for each in verify_audit_log(plain)] == ["rewrite"]
    promote(plain, 2)
    assert [each.kind for each in verify_audit_log(plain)] == ["rewrite"]


def test_a_log_written_anew_with_valid_hashes_is_detected(plain):
    put(plain, hashed_anew(lines(plain), reason="Nobody approved it."))
    assert chain_findings(read_audit_log(plain)) == [], "the chain alone does not reveal it"
    assert [(each.kind, each.entry) for each in verify_audit_log(plain)] == [("rewrite", 5)]


def test_a_new_head_for_a_rewritten_log_needs_the_key(plain):
    put(plain, hashed_anew(lines(plain), reason="Nobody approved it."))
    kept = json.loads(head_file(plain).read_text())
    kept["head"]["hash"] = json.loads(lines(plain)[-1])["hash"]
    head_file(plain).write_text(json.dumps(kept))
    assert [each.kind for each in verify_audit_log(plain)] == ["signature"]
    head_file(plain).write_text("{")
    assert [each.kind for each in verify_audit_log(plain)] == ["signature"]


def test_a_head_of_another_key_is_accepted_only_if_the_settings_trust_it(plain, monkeypatch):
    own = public_key_text(load_signing_key())
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    monkeypatch.setenv(KEY_VARIABLE, pem)
    assert [each.kind for each in verify_audit_log(plain)] == ["signature"]
    (plain.project / "settings.ini").write_text(f"[governance]\ntrusted_keys = {own}\n")
    assert verify_audit_log(plain) == []


def test_without_a_head_a_missing_tail_cannot_be_detected_and_that_is_a_finding(plain):
    head_file(plain).unlink()
    assert [each.kind for each in verify_audit_log(plain)] == ["head"]


def test_two_workspaces_and_their_copies_do_not_mix(plain, tmp_path_factory):
    other = Workspace(tmp_path_factory.mktemp("other"), dict(STORE_DEFAULTS))
    promote(other, 1)
    copy = Workspace(shutil.copytree(plain.project, tmp_path_factory.mktemp("copies") / "copy"), dict(STORE_DEFAULTS))
    promote(copy, 6)
    assert [verify_audit_log(each) for each in (plain, other, copy)] == [[], [], []]
    assert len(read_audit_log(copy)) == 6


def test_a_moved_workspace_keeps_its_head(plain, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "here"
    shutil.move(plain.root, moved / ".mlcycle")
    there = Workspace(moved, dict(STORE_DEFAULTS))
    assert verify_audit_log(there) == []
    put(there, lines(there)[:3])
    assert [each.kind for each in verify_audit_log(there)] == ["truncation"]


def test_the_settings_name_another_folder_for_the_head(plain, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("drive")
    monkeypatch.setenv("AUDIT_DRIVE", str(folder))
    (plain.project / "settings.ini").write_text("[governance]\naudit_head = $AUDIT_DRIVE/heads\n")
    promote(plain, 6)
    assert head_file(plain).parent == folder / "heads"
    assert verify_audit_log(plain) == []


def test_the_key_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first, second = load_signing_key(), load_signing_key()
    assert public_key_text(first) == public_key_text(second)
    assert stat.S_IMODE((tmp_path / "mlcycle" / "audit_key.pem").stat().st_mode) == 0o600


def test_a_key_that_cannot_be_used_is_refused_without_its_content(tmp_path, monkeypatch):
    for value in ("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----", str(tmp_path / "missing.pem")):
        monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(ParameterError, match="cannot be used") as error:
            load_signing_key()
        assert "secret" not in str(error.value)


def test_a_home_folder_that_cannot_be_written_does_not_stop_a_run(plain, tmp_path_factory, monkeypatch, caplog):
    locked = tmp_path_factory.mktemp("locked") / "a file"
    locked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(locked))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(locked))
    promote(plain, 6)
    assert "audit_head" in caplog.text
    assert [each.kind for each in verify_audit_log(plain)] == ["head"]


def test_accepted_findings_stay_listed_and_later_ones_count(plain):
    put(plain, lines(plain)[:3])
    promote(plain, 4)
    accept_findings(plain, "Restored from a backup.")
    promote(plain, 5)
    assert [each for each in verify_audit_log(plain) if not each.accepted] == []
    put(plain, lines(plain)[:-1])
    assert [each.kind for each in verify_audit_log(plain) if not each.accepted] == ["truncation"]


def test_every_change_of_an_alias_is_in_the_log(workspace):
    made = [(each.action, each.alias, each.version_before, each.version_after) for each in readable_entries(workspace)]
    assert made == [
        ("register", "challenger", None, 1),
        ("promote", "champion", None, 1),
        ("remove alias", "challenger", 1, None),
        ("register", "challenger", None, 2),
        ("promote", "champion", 1, 2),
        ("remove alias", "challenger", 2, None),
    ]
    assert {each.run for each in readable_entries(workspace)} == {"r1"}
    assert verified(workspace) == []


def test_tags_and_deletions_are_in_the_log(workspace):
    register(workspace, "late", 3)
    tag_version(workspace, "late@3", {"team": "logistics"})
    delete_version(workspace, "late@3")
    made = readable_entries(workspace)[6:]
    assert [each.action for each in made] == ["register", "tag", "remove alias", "delete"]
    assert made[1].details == {"set": {"team": "logistics"}, "removed": []}
    assert verified(workspace) == []


def test_an_alias_moved_in_mlflow_is_named(workspace):
    mlflow.MlflowClient().set_registered_model_alias("late", "champion", "1")
    with open_registry_read_only(workspace) as client:
        found = verify_audit_log(workspace, client)
    assert [each.message for each in found] == ["late: alias 'champion' is version 1, the log says version 2."]


def test_an_alias_moved_in_mlflow_stays_named_after_the_next_move(workspace):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("late", "champion", "1")
    second = client.get_model_version("late", "2")
    ref = ModelRef(name="late", version=2, run_id=second.run_id, sha256=second.tags["sha256"])
    set_alias(ref, workspace=workspace, action="promote")
    assert verified(workspace) == [("alias", 7)]
    with open_registry_read_only(workspace) as client:
        accept_findings(workspace, "It was a test of the interface.", client)
    assert verified(workspace) == []


def test_an_alias_removed_or_added_in_mlflow_is_named(workspace):
    client = mlflow.MlflowClient()
    client.delete_registered_model_alias("late", "champion")
    client.set_registered_model_alias("late", "staging", "1")
    with open_registry_read_only(workspace) as client:
        messages = [each.message for each in verify_audit_log(workspace, client)]
    assert messages == [
        "late: alias 'champion' is not set, the log says version 2.",
        "late: alias 'staging' is version 1, the log says not set.",
    ]


def test_the_tag_in_mlflow_reveals_a_truncated_copy(workspace):
    assert not head_file(workspace).is_file(), "the copy has a path of its own"
    put(workspace, lines(workspace)[:3])
    assert ("truncation", 6) in verified(workspace)


def test_a_move_that_fails_is_in_the_log_and_no_finding(workspace, monkeypatch):
    def fail(*_):
        raise ConnectionError("The server is gone.")

    first = mlflow.MlflowClient().get_model_version("late", "1")
    ref = ModelRef(name="late", version=1, run_id=first.run_id, sha256=first.tags["sha256"])
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", fail)
        set_alias(ref, workspace=workspace, action="roll back")
    assert [each.action for each in readable_entries(workspace)[6:]] == ["roll back", "failed"]
    assert verified(workspace) == []


def test_aliases_from_before_the_log_are_adopted(workspace):
    for name in (LOG_FILE, ID_FILE):
        (workspace.root / name).unlink()
    head_file(workspace).unlink(missing_ok=True)
    remove_alias("late", "champion", 2, "No longer needed.", workspace=workspace)
    assert [(each.action, each.version_after) for each in readable_entries(workspace)] == [("adopt", 2), ("remove alias", None)]
    assert verified(workspace) == []


def test_the_key_is_nowhere_in_the_workspace(workspace, monkeypatch):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    monkeypatch.setenv(KEY_VARIABLE, pem)
    register(workspace, "late", 4)
    body = pem.splitlines()[1].encode()
    files = [path for path in Path(workspace.root).rglob("*") if path.is_file()]
    assert not [path for path in files if body in path.read_bytes()]
    assert os.environ[KEY_VARIABLE] == pem

"""Releases: what is in them, and that nothing is loaded that was altered, is not signed, or brings code."""

import base64
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import stored_rows
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft202012Validator
from packaging.utils import canonicalize_name
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mlcycle.core.release_keys import (
    RELEASE_KEY_VARIABLE,
    TRUSTED_KEYS_VARIABLE,
    load_release_key,
    private_key_pem,
    release_key_text,
)
from mlcycle.core.versions import DISTRIBUTION
from mlcycle.errors import ArtifactError, ParameterError
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service.bundle import FILE_CONTENTS, Bundle, build_bundle, hash_bundle_files, open_release, verify_release
from mlcycle.service.input_schema import example_rows, row_schema
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.monitoring_references import read_references
from mlcycle.service.release_files import unpack_archive, write_archive, write_manifest
from mlcycle.service.rows import prepare_rows
from mlcycle.service.sbom import runtime_packages
from mlcycle.stores.models.model_files import (
    MAX_EXPANSION,
    check_model_archive,
    load_model,
    model_to_skops_bytes,
    save_model,
)

RNG = np.random.default_rng(0)
ROWS = pd.DataFrame(
    {
        "x": RNG.normal(size=80),
        "n": RNG.integers(0, 5, 80),
        "when": pd.date_range("2024-01-01", periods=80),
    }
)
TARGET = np.where(ROWS.x > 0, "yes", "no")


@pytest.fixture(autouse=True)
def keys(tmp_path, monkeypatch):
    "A configuration folder of its own, without keys."
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(RELEASE_KEY_VARIABLE, raising=False)
    monkeypatch.delenv(TRUSTED_KEYS_VARIABLE, raising=False)


def describe(sha256: str) -> Bundle:
    "The description of a toy release."
    fields = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    task = {"task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": "roc_auc", "metrics": ["roc_auc"]}
    problem = Problem(**fields, **task, target="y", criteria=[], rows=80)
    columns = ROWS[["x", "n"]]
    return Bundle(
        problem=problem,
        columns={name: str(values.dtype) for name, values in columns.items()},
        threshold=0.5,
        model=ModelRef(name="toy", version=1, run_id="-", sha256=sha256),
        training_values={name: describe_training_values(values) for name, values in columns.items()},
        examples=example_rows(columns),
    )


@pytest.fixture
def release(tmp_path) -> Path:
    "A signed toy release."
    sha256 = save_model(make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS[["x", "n"]], TARGET), tmp_path / "m.skops")
    return build_bundle(tmp_path / "releases", describe(sha256), tmp_path / "m.skops", documents={"contract.yaml": b"a: 1\n"})


def verify_as_peer(folder: Path) -> subprocess.CompletedProcess:
    "Verify a release with the command of model-signing, which knows nothing of mlcycle."
    words = [
        "verify",
        "key",
        str(folder),
        "--signature",
        str(folder / "model.sig"),
        "--public_key",
        str(folder / "signing_key.pem"),
    ]
    return subprocess.run([sys.executable, "-m", "model_signing", *words], capture_output=True, text=True)


def write_release(folder: Path, files: dict[str, bytes]) -> None:
    "Change files of a release and make its manifest fit."
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").unlink()
    signature = (folder / "model.sig").read_bytes()
    (folder / "model.sig").unlink()
    write_manifest(folder, folder.name)
    (folder / "model.sig").write_bytes(signature)


def test_model_signing_agrees_on_an_intact_release_and_on_altered_ones(release):
    verified = verify_release(release)
    assert verified.signer == release_key_text(load_release_key().public_key())
    assert verified.trusted
    assert verify_as_peer(release).returncode == 0
    for name in ("model.skops", "manifest.json", "sbom.cdx.json"):
        content = (release / name).read_bytes()
        (release / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert verify_as_peer(release).returncode != 0, name
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            verify_release(release)
        (release / name).write_bytes(content)
    signature = json.loads((release / "model.sig").read_text())
    payload = base64.b64decode(signature["dsseEnvelope"]["payload"])
    signature["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"bundle.json", b"bundle.jsom")).decode()
    (release / "model.sig").write_text(json.dumps(signature))
    assert verify_as_peer(release).returncode != 0
    with pytest.raises(ArtifactError, match=r"model\.sig"):
        verify_release(release)


def test_folder_and_archive_are_the_same_release(release):
    archive = release.with_name(f"{release.name}.tar.gz")
    packed = archive.read_bytes()
    bundle, model = open_release(archive)
    assert bundle == open_release(release)[0]
    assert (model.predict(ROWS[["x", "n"]]) == TARGET).mean() > 0.9
    os.utime(release / "bundle.json", (1, 1))
    assert write_archive(release).read_bytes() == packed
    assert set(hash_bundle_files(release)) >= {
        "contract.yaml",
        "input_schema.json",
        "sbom.cdx.json",
        "manifest.json",
        "model.sig",
    }
    assert {name for name in hash_bundle_files(release) if not name.endswith(".whl")} <= set(FILE_CONTENTS)


def test_building_again_signs_again_only_if_something_has_changed(release, tmp_path):
    before = hash_bundle_files(release)
    bundle = open_release(release)[0]
    again = build_bundle(release.parent, bundle, tmp_path / "m.skops", documents={"contract.yaml": b"a: 1\n"})
    assert again == release
    assert hash_bundle_files(again) == before
    other = build_bundle(release.parent, bundle, tmp_path / "m.skops", documents={"contract.yaml": b"a: 2\n"})
    assert other != release
    (release / "model.sig").write_text("{}")
    release.with_name(f"{release.name}.tar.gz").unlink()
    assert build_bundle(release.parent, bundle, tmp_path / "m.skops", documents={"contract.yaml": b"a: 1\n"}) == release
    for each in (release, other, release.with_name(f"{release.name}.tar.gz")):
        open_release(each)


@pytest.mark.parametrize("name", ["model.skops", "bundle.json", "requirements.txt", "signing_key.pem", "contract.yaml"])
@pytest.mark.parametrize("change", ["altered", "missing", "link"])
def test_the_file_that_differs_is_named(release, name, change, tmp_path):
    if change == "altered":
        with open(release / name, "ab") as file:
            file.write(b" ")
    else:
        (release / name).rename(tmp_path / "aside")
    if change == "link":
        (release / name).symlink_to(tmp_path / "aside")
    with pytest.raises(ArtifactError) as caught:
        open_release(release)
    assert f"The file {name} " in caught.value.found
    assert {"altered": "altered", "missing": "missing", "link": "no plain file"}[change] in caught.value.found


def test_a_file_that_was_added_is_named_and_not_executed(release, tmp_path):
    (release / "functions.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ArtifactError, match=r"functions\.py .* was added"):
        open_release(release)
    (release / "functions.py").unlink()
    (release / "sub").mkdir()
    with pytest.raises(ArtifactError, match="sub .* was added"):
        open_release(release)
    assert not (tmp_path / "ran").exists()


def test_a_manifest_that_was_edited_with_the_file_does_not_fit_the_signature(release):
    write_release(release, {"bundle.json": (release / "bundle.json").read_bytes().replace(b"0.5", b"0.1")})
    with pytest.raises(ArtifactError, match="is not the one that was signed"):
        open_release(release)


def test_another_key_is_not_trusted(release, monkeypatch, tmp_path):
    ours = release_key_text(load_release_key().public_key())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    with pytest.warns(UserWarning, match="no keys are trusted here"):
        open_release(release)
    load_release_key()  # Another user, with a key
    with pytest.raises(ArtifactError, match="unknown key") as caught:
        open_release(release)
    assert "release_keys" in caught.value.remedy
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, ours)
    open_release(release)
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, str(release / "signing_key.pem"))
    open_release(release)
    with pytest.raises(ArtifactError, match="unknown key"):
        open_release(release, trusted_keys=[release_key_text(ec.generate_private_key(ec.SECP256R1()).public_key())])
    with pytest.raises(ParameterError, match="cannot be read"):
        open_release(release, trusted_keys=["no key"])


def test_a_release_without_a_signature_is_opened_only_where_no_key_is_trusted(release):
    (release / "model.sig").unlink()
    with pytest.raises(ArtifactError, match="is not signed"):
        open_release(release)
    with pytest.warns(UserWarning, match="not signed"):
        open_release(release, trusted_keys=[])


def test_a_signature_of_another_release_does_not_fit(release, tmp_path):
    sha256 = save_model(make_pipeline(LogisticRegression()).fit(ROWS[["x", "n"]], TARGET), tmp_path / "o.skops")
    other = build_bundle(tmp_path / "others", describe(sha256), tmp_path / "o.skops")
    shutil.copy(other / "model.sig", release / "model.sig")
    with pytest.raises(ArtifactError, match="is not the one that was signed"):
        open_release(release)


def test_the_key_may_come_from_the_environment(tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    for given in (private_key_pem(key).decode(), str(tmp_path / "key.pem")):
        (tmp_path / "key.pem").write_bytes(private_key_pem(key))
        monkeypatch.setenv(RELEASE_KEY_VARIABLE, given)
        assert private_key_pem(load_release_key()) == private_key_pem(key)
    wrong = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for given in (wrong.decode(), str(tmp_path / "none.pem")):
        monkeypatch.setenv(RELEASE_KEY_VARIABLE, given)
        with pytest.raises(ParameterError) as caught:
            load_release_key()
        assert "PRIVATE" not in str(caught.value)


def packed_tar(path: Path, *entries: tuple[str, bytes | None, str]) -> Path:
    "An archive with entries: name, content, and target of a link."
    with tarfile.open(path, "w:gz") as archive:
        for name, content, link in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content or b"")
            if link:
                entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry, io.BytesIO(content or b""))
    return path


@pytest.mark.parametrize(
    "entries",
    [
        [("../out.txt", b"x", "")],
        [("a/../../out.txt", b"x", "")],
        [("/tmp/out.txt", b"x", "")],
        [("a/b/out.txt", b"x", "")],
        [("a/model.skops", None, "/etc/passwd")],
        [("a/x", b"1", ""), ("b/y", b"1", "")],
        [("a/.hidden", b"1", "")],
        [],
    ],
    ids=["parent", "hidden parent", "absolute", "deep", "link", "two folders", "dot", "empty"],
)
def test_an_archive_with_other_than_plain_files_in_one_folder_is_refused(entries, tmp_path):
    (tmp_path / "inside").mkdir()
    with pytest.raises(ArtifactError):
        unpack_archive(packed_tar(tmp_path / "a.tar.gz", *entries), tmp_path / "inside")
    assert not (tmp_path / "out.txt").exists()
    with pytest.raises(ArtifactError):
        open_release(tmp_path / "a.tar.gz")


def test_an_archive_that_is_too_large_or_broken_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    bomb = packed_tar(tmp_path / "a.tar.gz", ("a/zeros", bytes(5_000_000), ""))
    with pytest.raises(ArtifactError, match="bytes"):
        unpack_archive(bomb, tmp_path / "inside", max_bytes=1_000_000)
    assert not [path for path in (tmp_path / "inside").rglob("*") if path.is_file()]
    for content in (b"not an archive", bomb.read_bytes()[:-200], b""):
        bomb.write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read|empty"):
            unpack_archive(bomb, tmp_path / "inside")


class Harmful:
    "Runs a command when it is unpickled."

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.skops", "model.pkl", "model.joblib"])
def test_a_pickle_is_refused_whatever_its_name(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    with pytest.raises(ArtifactError, match="pickle file"):
        load_model(tmp_path / name)
    import joblib

    joblib.dump(Harmful(tmp_path / "ran"), tmp_path / "z.skops", compress=3)
    with pytest.raises(ArtifactError, match="no skops file"):
        load_model(tmp_path / "z.skops")
    assert not (tmp_path / "ran").exists()


def crafted(path: Path, change=lambda schema: schema, extra: dict[str, bytes] | None = None) -> Path:
    "A skops file with another schema, and further entries."
    with zipfile.ZipFile(io.BytesIO(model_to_skops_bytes(FunctionTransformer()))) as file, zipfile.ZipFile(path, "w") as made:
        made.writestr("schema.json", json.dumps(change(json.loads(file.read("schema.json")))))
        for name, content in (extra or {}).items():
            made.writestr(name, content)
    return path


def test_crafted_model_files_are_refused_with_the_names_of_their_types(tmp_path):
    path = tmp_path / "m.skops"
    save_model(FunctionTransformer(os.system, kw_args={"command": f"mkdir {tmp_path / 'ran'}"}), path)
    with pytest.raises(ArtifactError, match=r"posix\.system|os\.system"):
        load_model(path)
    reduce = {"__module__": "os", "__class__": "system", "__loader__": "ReduceNode", "__id__": 1}
    reduce |= {"__reduce__": {"args": {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode", "content": []}}}
    popen = {"__module__": "subprocess", "__class__": "Popen"}
    files = {"__module__": "sklearn.datasets._base", "__class__": "load_files"}
    memmap = {"__module__": "sklearn.utils._testing", "__class__": "TempMemmap"}
    for reason, more in (
        (r"not trusted.*subprocess\.Popen", popen),
        (r"not trusted.*subprocess\.Popen", popen | {"trusted": ["subprocess.Popen"]}),
        (r"not trusted.*sklearn\.datasets\._base\.load_files", files),
        (r"not trusted.*sklearn\.utils\._testing\.TempMemmap", memmap),
        ("Can't find loader ReduceNode", reduce),
    ):
        with pytest.raises(ArtifactError, match=reason):
            load_model(crafted(path, lambda schema, more=more: schema | more))
    with pytest.raises(ArtifactError, match=r"subprocess\.Popen"):
        trusted = {"trusted_types.json": b'["subprocess.Popen"]'}
        load_model(crafted(path, lambda schema: schema | {"__module__": "subprocess", "__class__": "Popen"}, trusted))
    assert not (tmp_path / "ran").exists()


def test_zip_entries_with_paths_pickles_and_bombs_are_refused(tmp_path):
    for name in ("../out.npy", "/tmp/out.npy", "a/b.npy"):
        with pytest.raises(ArtifactError, match="entry with the name"):
            load_model(crafted(tmp_path / "m.skops", extra={name: b"x"}))
    with pytest.raises(ArtifactError, match="contains the pickle"):
        load_model(crafted(tmp_path / "m.skops", extra={"a.pkl": pickle.dumps(1)}))
    with zipfile.ZipFile(tmp_path / "bomb.skops", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("1.npy", bytes(50_000_000))
    with pytest.raises(ArtifactError, match="when it is unpacked"):
        load_model(tmp_path / "bomb.skops")
    assert MAX_EXPANSION * (tmp_path / "bomb.skops").stat().st_size < 50_000_000
    check_model_archive(crafted(tmp_path / "m.skops"))


def test_the_sbom_is_strictly_valid_and_complete(release):
    text = (release / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["name"]: part for part in json.loads(text)["components"]}
    hashes = parts["toy"]["hashes"]
    assert hashes == [{"alg": "SHA-256", "content": hash_bundle_files(release)["model.skops"]}]
    pinned = dict(line.split("==") for line in (release / "requirements.txt").read_text().splitlines() if "==" in line)
    assert {name: parts[name]["version"] for name in pinned} == pinned
    assert {"starlette", "scipy", "threadpoolctl"} <= set(parts), "dependencies of dependencies"
    libraries = [part for part in parts.values() if part["type"] == "library" and part["name"] != DISTRIBUTION]
    assert [part["name"] for part in libraries if not part.get("licenses")] == []
    assert all(part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}" for part in libraries)


HEAVY = ("mlflow", "seaborn", "matplotlib", "IPython", "jupyter_client", "optuna", "pandera", "duckdb", "skrub", "scipy.stats")
HEAVY += ("papermill", "nbformat", "deltalake", "model_signing", "cyclonedx", "sigstore_models", "httpx")


def test_opening_a_release_imports_only_what_its_requirements_install(release):
    code = (
        "import json, sys; from mlcycle.service.app import create_app; create_app(sys.argv[1]); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(release)]
    modules = set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    assert [name for name in HEAVY if name in modules] == []
    roots = [line.split("==")[0] for line in (release / "requirements.txt").read_text().splitlines() if "==" in line]
    allowed = {*runtime_packages(roots), canonicalize_name(DISTRIBUTION)}
    homes = packages_distributions()
    imported = {name: {canonicalize_name(home) for home in homes[name]} for name in modules if name in homes}
    # Packages that another one imports only if they are there
    optional = {"pyarrow", "email-validator", "dnspython", "psutil", "charset-normalizer", "rich", "pygments", "setuptools"}
    assert {name: sorted(found) for name, found in imported.items() if not found & (allowed | optional)} == {}


def test_the_wheel_of_a_release_requires_nothing_by_itself(release):
    [wheel] = release.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        [metadata] = [file.read(name).decode() for name in file.namelist() if name.endswith("METADATA")]
    assert "Requires-Dist" not in metadata
    assert f"Name: {DISTRIBUTION}" in metadata


def test_the_schema_fits_the_examples_and_the_service_accepts_them(release):
    bundle, _ = open_release(release)
    schema = json.loads((release / "input_schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert schema == json.loads(json.dumps(row_schema(bundle)))
    assert schema["examples"] == bundle.examples
    for row in bundle.examples:
        Draft202012Validator(schema).validate(row)
    prepared = prepare_rows(bundle.examples, bundle)
    assert (prepared.changes, prepared.warnings) == ([], [])
    rows = ROWS[["x", "n"]].to_dict("records")
    assert not [row for row in bundle.examples if row in rows]


def test_no_rare_value_is_an_example():
    names = pd.Series([f"Person {i}" for i in range(50)])
    incomes = pd.Series(RNG.normal(50_000, 9_000, 50).round(2))
    ids = pd.Series(range(7_000_000, 7_000_050))
    for row in example_rows(pd.DataFrame({"name": names, "income": incomes, "id": ids})):
        assert row["name"] is None
        assert row["income"] not in set(incomes)
        assert row["id"] == 7_000_000 or row["id"] not in set(ids)


def test_verify_names_what_to_verify_in_other_forms(tmp_path):
    whole, archive = tmp_path / "dist" / "toy-1-image" / "release", tmp_path / "toy-1-0a-on-premises.tar.gz"
    whole.mkdir(parents=True)
    for path in (whole / "manifest.json", whole / "bundle.json", archive, tmp_path / "toy-1-py3-none-any.whl"):
        path.write_text("{}")
    (descriptors := tmp_path / "toy-1-vertex").mkdir()
    for name in ("README.md", "model.json"):
        (descriptors / name).write_text("{}")
    for path, remedy in ((whole.parent, f"mlcycle verify {whole}"), (archive, "install.sh --key KEY verifies"),
                         (descriptors, "mlcycle verify RELEASE"),
                         (tmp_path / "toy-1-py3-none-any.whl", "mlcycle verify RELEASE")):  # fmt: skip
        done = cli("verify", path, cwd=tmp_path)
        assert (done.returncode, remedy in done.stderr) == (1, True), done.stderr


def test_the_command_verifies_and_names_the_file(release, tmp_path):
    done = cli("verify", release, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert release_key_text(load_release_key().public_key()) in done.stdout
    archived = cli("verify", release.with_name(f"{release.name}.tar.gz"), cwd=tmp_path)
    assert archived.returncode == 0, archived.stderr
    with open(release / "input_schema.json", "ab") as file:
        file.write(b" ")
    done = cli("verify", release, cwd=tmp_path)
    assert done.returncode == 1
    assert "input_schema.json" in done.stderr
    assert cli("verify", tmp_path / "nowhere", cwd=tmp_path).returncode == 1


def test_the_release_of_a_run_is_complete(table_run, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path(os.environ["MLCYCLE_TEST_HOME"]) / "config"))
    run = table_run("penguins")
    folder = run.workspace.root / run.release.bundle
    verified = verify_release(run.workspace.root / run.release.archive)
    assert run.release.signed_by == verified.signer
    assert run.release.files == hash_bundle_files(folder)
    of_a_time_column = {"reference_seasons.json", "reference_days.npz", "reference_prediction_days.npz"}
    optional = {"functions.py", "requirements-accelerator.txt"} | of_a_time_column  # Penguins have none
    assert set(FILE_CONTENTS) - optional < set(run.release.files)
    assert of_a_time_column < set(FILE_CONTENTS) and not of_a_time_column & set(run.release.files)
    assert (folder / "contract.yaml").read_bytes() == (run.workspace.root / run.dataset.contract.path).read_bytes()
    assert (folder / "model_card.md").read_text().startswith("# ")
    profile = json.loads((folder / "reference_profile.json").read_text())
    train = stored_rows(run, "train")
    assert list(profile["columns"]) == run.plan.input_columns
    for name, about in profile["columns"].items():
        assert about["rows"] == len(train)
        assert about["missing"] / about["rows"] == pytest.approx(train[name].isna().mean(), abs=1e-6)
    assert set(profile["predictions"]["names"]) <= {str(each) for each in run.problem.classes}
    references = read_references(folder)
    assert len(references.rows) == len(train)
    assert references.score_profile is not None
    assert references.score_profile.rows == run.dataset.tables["holdout"].rows
    bundle, _ = open_release(folder)
    assert prepare_rows(bundle.examples, bundle).warnings == []
    shown = train[run.plan.input_columns].astype("str").to_dict("records")
    assert not [row for row in bundle.examples if {name: str(value) for name, value in row.items()} in shown]
    predicted = run.predict(bundle.examples)
    assert len(predicted) == len(bundle.examples)


def test_no_text_of_a_private_key_is_printed(release, tmp_path):
    private = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    (tmp_path / "k.pem").write_text(private)
    for key in (str(tmp_path / "k.pem"), private, "".join(private.splitlines()[1:-1])):
        done = cli("verify", release, "--key", key, cwd=tmp_path)
        assert done.returncode == 2
        assert not any(line in done.stderr + done.stdout for line in private.splitlines()), key
    assert "it is a private key" in cli("verify", release, "--key", str(tmp_path / "k.pem"), cwd=tmp_path).stderr
    done = cli("verify", release, cwd=tmp_path, MLCYCLE_RELEASE_KEY="MHcCAQEEIPart")
    assert "MLCYCLE_RELEASE_KEY" in done.stderr
    assert "MHcC" not in done.stderr + done.stdout


def test_the_command_warns_on_one_line_if_no_keys_are_trusted(release, tmp_path):
    done = cli("verify", release, cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "another user"))
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("Warning: The release ")
    assert "no keys are trusted here" in line

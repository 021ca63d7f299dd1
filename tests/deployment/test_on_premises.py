"""An installation from an archive, in a real virtual environment and without a network: install, upgrade, rollback, remove."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from load import Load, wait_until
from toy_releases import toy_release, toy_rows

from mlcycle.core.files import hash_file
from mlcycle.core.workspace import Workspace
from mlcycle.deployment.on_premises import predict_by_installation, unpack_on_premises, write_on_premises
from mlcycle.deployment.parity import predict_by_pipeline
from mlcycle.errors import ArtifactError, ParameterError
from mlcycle.lifecycle.deployments import add_deployment, roll_back_deployment, update_deployment
from mlcycle.service import bundle as bundle_module
from mlcycle.service.bundle import open_release, verify_release
from mlcycle.stores.models.audit_log import readable_entries

ROWS = toy_rows(40, seed=1)
HERE = Path(__file__).parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SYSTEM_PYTHON = Path(f"/usr/bin/python{VERSION}")  # Other users can execute it
PYTHON = str(SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable)
TOOLS = {name: shutil.which(name) for name in ("systemd-analyze", "systemd-socket-activate")}


def needs(tool: str) -> None:
    "Skip a test where a tool is missing; fail in continuous integration."
    if not TOOLS[tool] and not os.environ.get("CI"):
        pytest.skip(f"{tool} is not installed: apt-get install systemd util-linux")


@pytest.fixture(scope="module")
def packed(wheelhouse, tmp_path_factory):
    "Three releases, the last of which needs another environment, and the archive of the first, unpacked."
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCYCLE_WHEELHOUSE", str(wheelhouse))
        releases = [toy_release(folder, version, trees=False) for version in (1, 2)]
        plain = bundle_module.service_requirements
        patch.setattr(bundle_module, "service_requirements", lambda path: f"{plain(path)}wcwidth\n")
        releases.append(toy_release(folder, 3, trees=False))
        unpack_on_premises(write_on_premises(releases[0], folder / "dist"), folder)
    return releases, folder / f"{releases[0].name}-on-premises"


@pytest.fixture(scope="module")
def light(packed, wheelhouse, tmp_path_factory):
    "An unpacked archive with few wheels, for what is refused before anything is installed: each refusal hashes all files."
    folder = tmp_path_factory.mktemp("light")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCYCLE_WHEELHOUSE", str(wheelhouse))
        own = [line for line in bundle_module.service_requirements(packed[0][0] / "model.skops").splitlines() if "==" not in line]
        patch.setattr(bundle_module, "service_requirements", lambda path: "\n".join([*own, "click", ""]))
        release = toy_release(folder, 1, trees=False)
        return unpack_on_premises(write_on_premises(release, folder / "dist"), folder).parent


@pytest.fixture(scope="module")
def prefix():
    "A folder that other users can read."
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def key(packed):
    "The public key of the maker."
    return verify_release(packed[0][0]).signer


def script(folder: Path, *words: str, path: str = "", command: tuple[str, ...] = (), **variables: str):
    "Run the installer of a folder."
    environment = {"PATH": path or os.environ["PATH"], "HOME": "/nonexistent", **variables}
    line = [*command, str(folder / "install.sh"), *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


def install(folder: Path, prefix: Path, key: str, *words: str, **more):
    "Install without systemd."
    words = ("install", "--no-systemd", "--prefix", prefix, "--key", key, "--python", PYTHON, *words)
    return script(folder, *words, **more)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


def test_an_archive_is_reproducible_and_refuses_an_altered_release(packed, wheelhouse, tmp_path, monkeypatch):
    releases, unpacked = packed
    monkeypatch.setenv("MLCYCLE_WHEELHOUSE", str(wheelhouse))
    first = unpacked.parent / "dist" / f"{unpacked.name}.tar.gz"
    assert hash_file(write_on_premises(releases[0], tmp_path / "dist")) == hash_file(first)
    altered = shutil.copytree(releases[0], tmp_path / releases[0].name)
    (altered / "bundle.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has been altered"):
        write_on_premises(altered, tmp_path / "none")
    assert not (tmp_path / "none").exists()


RESTART = """if [ -e {pid} ]; then kill -HUP $(cat {pid}); else
{python} {holder} {port} {serve} > {log} 2>&1 < /dev/null & echo $! > {pid}
fi"""


def test_install_update_upgrade_and_rollback_lose_no_request(packed, prefix, key, wheelhouse, tmp_path, monkeypatch):
    releases, unpacked = packed
    monkeypatch.setenv("MLCYCLE_WHEELHOUSE", str(wheelhouse))
    port, home, pid = free_port(), prefix / "toy", tmp_path / "pid"
    names = {"python": sys.executable, "holder": HERE / "held_socket.py", "port": port, "serve": home / "serve"}
    restart = RESTART.format(**names, log=tmp_path / "log", pid=pid)
    try:
        done = install(unpacked, prefix, key, "--port", port, "--restart", restart)
        assert done.returncode == 0, done.stderr
        assert (home / "service.env").stat().st_mode & 0o777 == 0o600
        url, rows, workspace = f"http://127.0.0.1:{port}", ROWS.to_dict("records"), Workspace(tmp_path / "project")
        deployment = add_deployment(workspace, "toy", url, home)
        assert deployment.kind == "on-premises"
        with Load(url, rows) as load:
            load.wait_for(1)
            process = services(home)
            deployment = update_deployment(workspace, deployment, str(releases[1])).deployment
            load.wait_for(2)
            assert services(home) == process  # The same process
            deployment = update_deployment(workspace, deployment, str(releases[2]), reason="another environment").deployment
            load.wait_for(3)
            assert services(home) != process
            assert len(list((prefix / ".environments").iterdir())) == 2
            status = script(home / "current", "status")
            assert status.returncode == 0, status.stderr
            assert releases[2].name in status.stdout
            for version in (2, 1):
                deployment = roll_back_deployment(workspace, deployment).deployment
                before = load.versions[version]
                wait_until(lambda version=version, before=before: load.versions[version] > before + 20)
        assert not load.failed
    finally:
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
            wait_until(lambda: not services(home))
    assert [line.split("\t")[2] for line in (home / "history").read_text().splitlines()] == ["install", "upgrade", "rollback"]
    changes = [(each.details["change"], each.details["after"]["champion"]) for each in readable_entries(workspace)]
    assert changes == [("update", "toy@2"), ("update", "toy@3"), ("rollback", "toy@2"), ("rollback", "toy@1")]
    assert (home / "state" / "predictions.db").is_file()
    assert script(home / "current", "status").returncode == 3  # Installed, not running


def services(home: Path) -> set[str]:
    "The processes of an installation."
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{home}/revisions".encode() in path.read_bytes():
                found.add(path.parent.name)
        except OSError:  # It has just ended
            continue
    return found


def test_an_installation_predicts_as_the_pipeline(packed, prefix, tmp_path):
    releases, _ = packed
    bundle, model = open_release(releases[0])
    rows = ROWS.to_dict("records")
    served = predict_by_installation(prefix, rows, bundle)
    assert np.array_equal(served.labels, predict_by_pipeline(model, bundle, rows).labels)
    with pytest.raises(ParameterError, match="no installation"):
        predict_by_installation(tmp_path, rows, bundle)


def test_a_release_that_does_not_start_changes_nothing(packed, prefix, key, tmp_path):
    _, unpacked = packed
    home = prefix / "toy"
    before = sorted(path.relative_to(prefix) for path in home.rglob("*") if "state" not in path.parts)
    folder = shutil.copytree(unpacked, tmp_path / "copy", symlinks=True)
    (folder / "on_premises_serve.sh").write_text("#!/bin/sh\necho 'It does not start.' >&2; exit 1\n")
    sums = (folder / "SHA256SUMS").read_text()
    old = hash_file(unpacked / "on_premises_serve.sh")
    (folder / "SHA256SUMS").write_text(sums.replace(old, hash_file(folder / "on_premises_serve.sh")))
    done = script(folder, "upgrade", "--prefix", prefix, "--python", PYTHON)
    assert done.returncode == 65
    assert "not signed with the given key" in done.stderr
    trusted = (home / "trusted_keys").rename(tmp_path / "trusted_keys")
    done = script(folder, "upgrade", "--prefix", prefix, "--python", PYTHON, "--unsigned", "--timeout", "5")
    assert done.returncode == 1
    assert "It does not start." in done.stderr
    trusted.rename(home / "trusted_keys")
    assert sorted(path.relative_to(prefix) for path in home.rglob("*") if "state" not in path.parts) == before


def test_the_units_are_valid_and_hardened(packed, prefix, tmp_path):
    needs("systemd-analyze")
    _, unpacked = packed
    for words in ([], ["--allow", "10.0.0.7"]):
        done = script(unpacked, "units", "--prefix", prefix, "--output", tmp_path, *words)
        assert done.returncode == 0, done.stderr
        units = [str(tmp_path / f"mlcycle-toy.{kind}") for kind in ("service", "socket")]
        checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert not checked.stderr
        rated = subprocess.run(["systemd-analyze", "security", "--offline=true", units[0]], capture_output=True, text=True)
        exposure = float(re.search(r"exposure level for .*: ([\d.]+)", rated.stdout)[1])
        assert exposure < 2.0, rated.stdout
        text = Path(units[0]).read_text()
        assert ("PrivateNetwork=true" in text) != bool(words)
        if not words:
            done = script(prefix / "toy" / "current", "units", "--output", tmp_path / "again")
            assert done.returncode == 0, done.stderr
            again = (tmp_path / "again" / "mlcycle-toy.service").read_text()
            assert again == text
        assert "MLCYCLE_EVENTS_URL" not in text  # Secrets are read from the file of the environment


def test_systemd_starts_the_installed_service_at_the_first_connection(packed, prefix):
    needs("systemd-socket-activate")
    import httpx

    port = free_port()
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", str(prefix / "toy" / "serve"), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as service:
        try:
            wait_until(lambda: listens(port))
            body = {"rows": ROWS.head(1).to_dict("records")}
            response = httpx.post(f"http://127.0.0.1:{port}/predict", json=body, timeout=60)
            assert response.json()["version"] == 1
        finally:
            service.terminate()
            service.wait(40)


def listens(port: int) -> bool:
    "Whether a port has a listening socket, without a connection to it."
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
               for line in Path("/proc/net/tcp").read_text().splitlines()[1:])  # fmt: skip


FAKE_SYSTEMCTL = """#!/bin/sh
echo "$@" >> {log}
case "$*" in "restart mlcycle-toy2.service")
    [ ! -e {failing} ] || exit 1
    [ ! -e {pid} ] || kill $(cat {pid})
    systemd-socket-activate -l 127.0.0.1:{port} setpriv --reuid nobody --clear-groups {serve} > /dev/null 2>&1 &
    echo $! > {pid} ;;
esac
"""


def test_an_installation_as_a_service_of_systemd(packed, prefix, key, tmp_path):
    "The manager is replaced by a script; the rest is real, the user of the service too."
    needs("systemd-socket-activate")
    if os.getuid() or not SYSTEM_PYTHON.exists():
        pytest.skip("Only root installs units, with a Python that other users can execute.")
    releases, unpacked = packed
    (tmp_path / "bin").mkdir()
    (tmp_path / "units").mkdir()
    port, home, pid, log, failing = free_port(), prefix / "toy2", tmp_path / "pid", tmp_path / "log", tmp_path / "failing"
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(FAKE_SYSTEMCTL.format(log=log, failing=failing, pid=pid, port=port, serve=home / "serve"))
    systemctl.chmod(0o755)
    where = {"path": f"{tmp_path}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MLCYCLE_UNIT_FOLDER": str(tmp_path / "units")}
    words = ["--prefix", prefix, "--name", "toy2", "--key", key, "--user", "nobody", "--port", port]
    failing.touch()
    done = script(unpacked, "install", *words, **where)
    assert done.returncode == 1
    assert "Nothing is installed" in done.stderr
    assert not list((tmp_path / "units").iterdir())
    assert not home.exists()
    failing.unlink()
    log.unlink()
    (tmp_path / "keys").write_text("# None\n")
    try:
        done = script(unpacked, "install", *words, "--api-keys", tmp_path / "keys", **where)
        assert done.returncode == 0, done.stderr
        units = ["mlcycle-toy2.socket", "mlcycle-toy2.service"]
        calls = [f"enable --quiet {' '.join(units)}", f"stop {units[1]}", *(f"restart {each}" for each in units)]
        assert log.read_text().splitlines()[-4:] == calls
        assert f"LoadCredential=api_keys:{home}/api_keys" in (tmp_path / "units" / units[1]).read_text()
        assert [(home / name).stat().st_mode & 0o777 for name in ("api_keys", "service.env")] == [0o600, 0o600]
        failing.touch()
        done = script(unpacked, "upgrade", *words, **where)
        assert done.returncode == 1
        assert f"{releases[0].name} serves again" in done.stderr
        assert os.readlink(home / "current") == "revisions/1"
    finally:
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
    done = script(home / "current", "uninstall", **where)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "units").iterdir())
    assert {path.name for path in home.iterdir()} == {"service.env", "api_keys"}
    assert len(list((prefix / ".environments").iterdir())) == 2  # Those of the other installation


def shims(folder: Path, **scripts: str) -> str:
    "A search path with commands of one's own first."
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"


def test_what_cannot_be_installed_is_one_line_and_leaves_nothing(light, key, tmp_path):
    folder, target = light, tmp_path / "opt"
    damaged = shutil.copytree(folder, tmp_path / "damaged", symlinks=True)
    wheel = next((damaged / "wheelhouse").glob("click-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    added, linked, changed = (shutil.copytree(folder, tmp_path / name, symlinks=True) for name in ("added", "linked", "changed"))
    (added / "wheelhouse" / "numpy-99-py3-none-any.whl").touch()
    (linked / "sitecustomize.py").symlink_to("README.md")
    with open(changed / "package.env", "a") as facts:
        facts.write(f"touch {tmp_path}/executed\nMODEL=$(touch {tmp_path}/executed)\n")
    other = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEVPWkBlN6Iw5h+gIlJAB2L3ScqQZxyAWVzRpyvHQ7HNnvb3jHGmbxQYOoYxJz5k3Hzpo8+LzxbmLwXw=="
    old = "print() { echo; }; case $* in *version_info*) echo 3.9 ;; *) exit 1 ;; esac"
    python = dict.fromkeys((f"python{VERSION}", "python3", "python"), old)
    common = ("--no-systemd", "--prefix", target)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (script(damaged, *common, "--key", key), f"archive is damaged: wheelhouse/{wheel.name}"),
            (script(added, *common, "--key", key), "numpy-99-py3-none-any.whl was added"),
            (script(linked, *common, "--key", key), "sitecustomize.py was added"),
            (script(changed, *common, "--key", key), "archive is damaged: package.env"),
            (script(changed, "status", *common), "no installation toy"),
            (script(changed, "units", "--output", target), "archive is damaged: package.env"),
            (script(folder, "units", "--output", folder / "units"), "outside of the archive"),
            (script(folder, *common, "--key", key, "--python", "/does/not/exist"), "There is no /does/not/exist"),
            (script(folder, *common), "No key is trusted. The release is signed with"),
            (script(folder, *common, "--key", other), "not signed with the given key"),
            (script(folder, *common, "--key", key, path=shims(tmp_path / "a", uname="echo riscv64")), "this machine has riscv64"),
            (script(folder, *common, "--key", key, path=shims(tmp_path / "b", **python)), f"Python {VERSION} is needed"),
            (script(folder, *common, "--key", key, "--port", port), f"127.0.0.1:{port} cannot be used"),
            (script(folder, *common, "--key", key, "--port", "70000"), "port 70000 does not exist"),
            (script(folder, *common, "--key", key, "--nmae", "x"), "--nmae is not known"),
            (script(folder, "rollback", *common), "no installation toy"),
            (script(folder, "upgrade", *common, "--key", key), "no installation toy"),
            (script(folder, "install", "--no-systemd", "--prefix", "/proc/opt", "--key", key), "cannot be written"),
        ]
    for done, named in cases:
        assert done.returncode not in (0, 127), done.stdout
        assert named in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not target.exists()
    assert not (tmp_path / "executed").exists()


def test_the_readme_has_the_commands_to_verify_the_archive(light, key, tmp_path):
    folder = shutil.copytree(light, tmp_path / "copy", symlinks=True)
    lines = [line.strip() for line in (folder / "README.md").read_text().splitlines() if "SUMS" in line or "maker.pem" in line]
    commands = [line.replace(" KEY ", f" '{key}' ") for line in lines if line.startswith(("printf", "openssl", "sha256sum"))]
    assert len(commands) == 3

    def verify() -> list[int]:
        return [subprocess.run(line, shell=True, cwd=folder, capture_output=True).returncode for line in commands]

    assert verify() == [0, 0, 0]
    with open(folder / "install.sh", "a") as altered:
        altered.write("#")
    assert verify()[2]
    with open(folder / "SHA256SUMS", "a") as altered:
        altered.write("#")
    assert verify()[1]


class OldService(BaseHTTPRequestHandler):
    "Responds as a process that was not restarted."

    def do_GET(self):  # noqa: N802
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"release": {"name": "toy-0-00"}}')

    def log_message(self, *words):
        pass


def test_a_rollback_serves_the_release_of_its_revision_and_status_names_what_is_served(packed, prefix, key):
    releases, unpacked = packed
    home = prefix / "toy3"
    with ThreadingHTTPServer(("127.0.0.1", 0), OldService) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ("--name", "toy3", "--port", str(server.server_port))
        try:
            assert "127.0.0.1" in install(unpacked, prefix, key, *words).stderr
            done = install(unpacked, prefix, key, "--name", "toy3", "--port", free_port())
            assert done.returncode == 0, done.stderr
            (home / "current" / "traffic.json").write_text('{"champion": "releases/toy-2-00"}')
            done = script(unpacked, "upgrade", "--prefix", prefix, *words, "--python", PYTHON)
            assert "until it is restarted" in done.stdout
            done = script(home / "current", "rollback")
            assert "until it is restarted" in done.stdout
            plan = (home / "current" / "traffic.json").read_text()
            assert json.loads(plan)["champion"] == f"releases/{releases[0].name}"
            done = script(unpacked, "status", "--prefix", prefix, "--name", "toy3")
            assert "Served: toy-0-00" in done.stdout
            assert f"Restart needed: the running process serves toy-0-00, installed is {releases[0].name}" in done.stdout
            with open(prefix / ".lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                (prefix / ".lock").write_text("4711\n")
                assert "(process 4711)" in script(home / "current", "rollback").stderr
        finally:
            server.shutdown()
    assert script(home / "current", "uninstall", "--purge").returncode == 0

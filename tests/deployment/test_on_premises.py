"""An installation from an archive, in a real virtual environment and without a network: install, upgrade, back, remove."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from load import Load, wait_until
from toy_releases import toy_release, toy_rows

from mlcycle.core.files import hash_file
from mlcycle.deployment.on_premises import predict_by_installation, write_on_premises
from mlcycle.deployment.parity import predict_by_pipeline
from mlcycle.errors import ArtifactError, ParameterError
from mlcycle.service import bundle as bundle_module
from mlcycle.service.bundle import open_release, verify_release

ROWS = toy_rows(40, seed=1)
HERE = Path(__file__).parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SYSTEM_PYTHON = Path(f"/usr/bin/python{VERSION}")  # Other users can execute it
PYTHON = str(SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable)
TOOLS = {name: shutil.which(name) for name in ("systemd-analyze", "systemd-socket-activate", "runuser")}


def needs(tool: str) -> None:
    "Skip a test where a tool is missing; fail in continuous integration."
    if not TOOLS[tool] and not os.environ.get("CI"):
        pytest.skip(f"{tool} is not installed: apt-get install systemd util-linux")


@pytest.fixture(scope="module")
def packed(wheelhouse, tmp_path_factory):
    "Three archives, unpacked: a release, the next version, and one that needs another runtime."
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCYCLE_WHEELHOUSE", str(wheelhouse))
        releases = [toy_release(folder, version, trees=False) for version in (1, 2)]
        plain = bundle_module.service_requirements
        patch.setattr(bundle_module, "service_requirements", lambda path: plain(path) + "# Another runtime\n")
        releases.append(toy_release(folder, 3, trees=False))
        unpacked = []
        for release in releases:
            with tarfile.open(write_on_premises(release, folder / "dist")) as archive:
                archive.extractall(folder, filter="data")
            unpacked.append(folder / f"{release.name}-on-premises")
    return releases, unpacked


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
    first = unpacked[0].parent / "dist" / f"{unpacked[0].name}.tar.gz"
    assert hash_file(write_on_premises(releases[0], tmp_path / "dist")) == hash_file(first)
    altered = shutil.copytree(releases[0], tmp_path / releases[0].name)
    (altered / "bundle.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has been altered"):
        write_on_premises(altered, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_install_upgrade_and_rollback_lose_no_request(packed, prefix, key, tmp_path):
    releases, unpacked = packed
    port, home = free_port(), prefix / "toy"
    done = install(unpacked[0], prefix, key, "--port", port)
    assert done.returncode == 0, done.stderr
    bundle, model = open_release(releases[0])
    rows = ROWS.to_dict("records")
    served = predict_by_installation(prefix, rows, bundle)
    assert np.array_equal(served.labels, predict_by_pipeline(model, bundle, rows).labels)
    with pytest.raises(ParameterError, match="no installation"):
        predict_by_installation(tmp_path, rows, bundle)
    assert (home / "service.env").stat().st_mode & 0o777 == 0o600
    holder = subprocess.Popen([sys.executable, HERE / "held_socket.py", str(port), home / "serve"])
    try:
        wait_until(lambda: listens(port))
        with Load(f"http://127.0.0.1:{port}", rows) as load:
            load.wait_for(1)
            restart = f"kill -HUP {holder.pid}"
            for number in (1, 2):  # The same runtime, and another one
                done = script(unpacked[number], "upgrade", "--prefix", prefix, "--python", PYTHON, "--restart", restart)
                assert done.returncode == 0, done.stderr
                load.wait_for(number + 1)
            done = script(home / "current", "rollback")
            assert done.returncode == 0, done.stderr
            assert f"from {releases[2].name} to {releases[1].name}" in done.stdout
            before = load.versions[2]
            wait_until(lambda: load.versions[2] > before + 20)
            status = script(home / "current", "status")
            assert status.returncode == 0, status.stderr
            assert releases[1].name in status.stdout
        assert not load.failed
    finally:
        holder.send_signal(signal.SIGTERM)
        holder.wait(60)
    assert len(list((prefix / ".runtimes").iterdir())) == 2
    assert len(list((home / "installations").iterdir())) == 2  # The present and the former one
    assert [line.split("\t")[2] for line in (home / "history").read_text().splitlines()] == [
        "install", "upgrade", "upgrade", "rollback"]  # fmt: skip
    assert (home / "state" / "predictions.db").is_file()
    assert script(home / "current", "status").returncode == 3  # Installed, not running


def test_a_release_that_does_not_start_changes_nothing(packed, prefix, key, tmp_path):
    _, unpacked = packed
    home = prefix / "toy"
    before = sorted(path.relative_to(prefix) for path in home.rglob("*") if "state" not in path.parts)
    folder = shutil.copytree(unpacked[0], tmp_path / "copy", symlinks=True)
    (folder / "on_premises_serve.sh").write_text("#!/bin/sh\necho 'It does not start.' >&2; exit 1\n")
    sums = (folder / "SHA256SUMS").read_text()
    old = hash_file(unpacked[0] / "on_premises_serve.sh")
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
        done = script(unpacked[0], "units", "--prefix", prefix, "--output", tmp_path, *words)
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
            assert response.json()["version"] == 2
        finally:
            service.terminate()
            service.wait(40)


def listens(port: int) -> bool:
    "Whether a port has a listening socket, without a connection to it."
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
               for line in Path("/proc/net/tcp").read_text().splitlines()[1:])  # fmt: skip


FAKE_SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in "restart mlcycle-toy2.service") [ ! -e "{fail}" ] ;; esac
"""


def test_an_installation_as_a_service_of_systemd(packed, prefix, key, tmp_path):
    needs("runuser")
    if os.getuid() or not SYSTEM_PYTHON.exists():
        pytest.skip("Only root installs units, with a Python that other users can execute.")
    releases, unpacked = packed
    (tmp_path / "bin").mkdir()
    (tmp_path / "units").mkdir()
    systemctl, log, failing = tmp_path / "bin" / "systemctl", tmp_path / "log", tmp_path / "failing"
    systemctl.write_text(FAKE_SYSTEMCTL.format(log=log, fail=failing))
    systemctl.chmod(0o755)
    where = {"path": f"{tmp_path}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MLCYCLE_UNIT_FOLDER": str(tmp_path / "units")}
    port = free_port()
    words = ["--prefix", prefix, "--name", "toy2", "--key", key, "--user", "nobody", "--port", port]
    failing.touch()
    done = script(unpacked[0], "install", *words, **where)
    assert done.returncode == 1
    assert "Nothing is installed" in done.stderr
    assert not list((tmp_path / "units").iterdir())
    assert not (prefix / "toy2").exists()
    failing.unlink()
    log.unlink()
    (tmp_path / "keys").write_text("# None\n")
    with HealthResponses(port):  # The fake manager starts nothing
        done = script(unpacked[0], "install", *words, "--api-keys", tmp_path / "keys", **where)
        assert done.returncode == 0, done.stderr
        assert log.read_text().splitlines()[-3:] == [
            "enable --quiet mlcycle-toy2.socket mlcycle-toy2.service", "restart mlcycle-toy2.socket",
            "restart mlcycle-toy2.service"]  # fmt: skip
        unit = (tmp_path / "units" / "mlcycle-toy2.service").read_text()
        assert f"LoadCredential=api_keys:{prefix}/toy2/api_keys" in unit
        assert (prefix / "toy2" / "api_keys").stat().st_mode & 0o777 == 0o600
        failing.touch()
        done = script(unpacked[1], "upgrade", *words, **where)
        assert done.returncode == 1
        assert f"{releases[0].name} serves again" in done.stderr
    assert os.readlink(prefix / "toy2" / "current") == "installations/1"


class HealthResponses:
    "Context manager: a server that is always ready, in place of the service that the fake manager does not start."

    def __init__(self, port: int):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words):
                pass

        self.port, self.handler = port, Handler

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def shims(folder: Path, **scripts: str) -> str:
    "A search path with commands of one's own first."
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"


def test_what_cannot_be_installed_is_one_line_and_leaves_nothing(packed, key, tmp_path):
    _, unpacked = packed
    folder, target = unpacked[0], tmp_path / "opt"
    damaged = shutil.copytree(folder, tmp_path / "damaged", symlinks=True)
    wheel = next((damaged / "wheelhouse").glob("click-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    added = shutil.copytree(folder, tmp_path / "added", symlinks=True)
    (added / "wheelhouse" / "numpy-99-py3-none-any.whl").touch()
    other = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEVPWkBlN6Iw5h+gIlJAB2L3ScqQZxyAWVzRpyvHQ7HNnvb3jHGmbxQYOoYxJz5k3Hzpo8+LzxbmLwXw=="
    old = "print() { echo; }; case $* in *version_info*) echo 3.9 ;; *) exit 1 ;; esac"
    python = dict.fromkeys((f"python{VERSION}", "python3", "python"), old)
    common = ("--no-systemd", "--prefix", target)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (script(damaged, *common, "--key", key), f"archive is damaged: wheelhouse/{wheel.name}"),
            (script(added, *common, "--key", key), "numpy-99-py3-none-any.whl was added"),
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

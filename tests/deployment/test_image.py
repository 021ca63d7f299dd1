"""Container image: its build context, tools that fail, and an image that is really built and run."""

import http.server
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import httpx
import pytest
from commands import cli
from filelock import FileLock
from toy_releases import toy_release

from mlcycle.deployment.image import (
    FUNCTIONS_IN_IMAGE,
    REVIEW_NOTE,
    ReleaseFacts,
    render_image_files,
    required_python,
    write_image_context,
)
from mlcycle.deployment.image_build import BUILD_STEP, ImageBuild, build_image, explain_build_error, sample_parity_rows
from mlcycle.deployment.parity import compare_predictions, predict_by_pipeline, predict_by_rows
from mlcycle.errors import ArtifactError, InputError, ParameterError, StageError
from mlcycle.service.bundle import build_bundle, open_release, verify_release
from mlcycle.service.local import ServiceClient
from mlcycle.service.platforms import DEFAULT_PORT, PORT_VARIABLES
from mlcycle.service.server import read_arguments
from mlcycle.stores.models.audit_log import readable_entries
from mlcycle.stores.tables.holdout import read_holdout_accesses

HADOLINT = Path(sys.executable).parent / "hadolint"
TOY_ROWS = [{f"x{number}": number / 3 for number in range(8)}]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    "Two releases of different predictions."
    folder = tmp_path_factory.mktemp("image")
    return [toy_release(folder, version, trees=False) for version in (1, 2)]


def free_port() -> int:
    "A port that nobody uses."
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# The build context


def test_the_context_has_the_release_unchanged_and_readable_by_all(releases, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "some-1-py3-none-any.whl").write_bytes(b"-")
    before = os.umask(0o077)
    try:
        context = write_image_context(releases[0].with_name(f"{releases[0].name}.tar.gz"), tmp_path / "dist", wheels)
    finally:
        os.umask(before)
    assert verify_release(context / "release").files == verify_release(releases[0]).files
    assert {path.relative_to(context).as_posix() for path in context.rglob("*") if path.parent.name != "release"} == {
        ".dockerignore", "Dockerfile", "README.md", "healthcheck.py", "release", "wheelhouse", "wheelhouse/README.txt",
        "wheelhouse/some-1-py3-none-any.whl",
    }  # fmt: skip
    assert all(path.stat().st_mode & 0o7777 == (0o755 if path.is_dir() else 0o644) for path in context.rglob("*"))
    assert verify_release(releases[0]).signer in (context / "Dockerfile").read_text()


def test_what_cannot_be_packed_leaves_nothing_behind(releases, tmp_path):
    altered = shutil.copytree(releases[0], tmp_path / "altered")
    with open(altered / "input_schema.json", "a") as file:
        file.write(" ")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="input_schema.json .* has been altered"):
        write_image_context(altered, tmp_path / "dist")
    with pytest.raises(ParameterError, match="has no wheels"):
        write_image_context(releases[0], tmp_path / "dist", tmp_path / "empty")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("user_functions", [False, True])
def test_hadolint_has_no_complaint(tmp_path, user_functions):
    files = render_image_files(ReleaseFacts("toy-1-0a", "toy", 1, "0" * 64, "KEY=", "3.11", user_functions))
    (tmp_path / "Dockerfile").write_text(files["Dockerfile"])
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert (REVIEW_NOTE in files["README.md"]) == ("ARG FUNCTIONS" in files["Dockerfile"]) == user_functions
    (tmp_path / "Dockerfile").write_text(files["Dockerfile"].replace('CMD ["serve"]', "CMD serve"))
    assert "DL3025" in subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True).stdout


# The health check


@contextmanager
def health_server(status: int) -> Generator[int]:
    "A server that responds to every request with a status; its port."

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_health_check_looks_at_the_port_of_the_platform(tmp_path):
    files = render_image_files(ReleaseFacts("toy-1-0a", "toy", 1, "0" * 64, "", "3.11", False))
    (tmp_path / "healthcheck.py").write_text(files["healthcheck.py"])
    assert f"PORTS = {json.dumps(PORT_VARIABLES).replace('[', '(').replace(']', ')')}" in files["healthcheck.py"]
    assert f'"{DEFAULT_PORT}"' in files["healthcheck.py"]

    def check(**environment: str) -> int:
        command = [sys.executable, "-S", tmp_path / "healthcheck.py"]
        return subprocess.run(command, env=environment, capture_output=True).returncode

    with health_server(200) as good, health_server(503) as bad:
        assert check(AIP_HTTP_PORT=str(good), PORT=str(bad)) == 0
        assert check(PORT=str(good)) == 0
        assert check(PORT=str(bad)) == 1
    assert check(PORT=str(free_port())) == check(PORT="http") == 1


# Tools that fail


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("Error: creating build container: initializing source docker://x:1: name unknown", "base image x:1 cannot be pulled"),
        ("ERROR: failed to solve: x:1: failed to resolve source metadata for x:1: not found", "base image x:1 cannot be pulled"),
        ("#7 0.2 The base image has Python 3.12; the release needs Python 3.11.", "^The base image has Python 3.12; "),
        ("/bin/sh: 1: python3: not found", "x:1 lacks Python"),
        ("#9 5.1 ERROR: No matching distribution found for numpy==0.0.1", "packages .* numpy==0.0.1"),
        ("write /blob: No space left on device", "disk .* is full"),
        ("Error: something else", "something else .*--verbose"),
    ],
)
def test_failed_builds_say_why_in_one_line(output, message):
    error = explain_build_error(["STEP 1/2: FROM x:1", output, "subprocess exited with status 1"], "x:1", "3.11")
    with pytest.raises(type(error), match=message):
        raise error
    assert "\n" not in str(error)


def test_steps_of_all_tools_are_counted():
    for line in ("[1/2] STEP 3/7: RUN true", "STEP 3/7: RUN true", "#9 [build 3/7] RUN true", "#9 [stage-1 3/7] RUN true"):
        assert (found := BUILD_STEP.match(line)) and "RUN true" in found.groups()
    assert not BUILD_STEP.match("#9 0.532 Collecting numpy")


@pytest.fixture
def fake_docker(tmp_path, monkeypatch, releases):
    "A `docker` that records its commands, and whose `run` starts a service; nothing else of that name is found."
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f"""#!{sys.executable}
import os, sys, time
open({str(tmp_path / "log")!r}, "a").write(" ".join(sys.argv[1:]) + chr(10))
if sys.argv[1] == os.environ.get("FAKE_FAILS"):
    sys.exit("Cannot connect to the Docker daemon")
if sys.argv[1] == os.environ.get("FAKE_SLEEPS"):
    time.sleep(60)
if sys.argv[1] == "run":
    port = sys.argv[sys.argv.index("--publish") + 1].split(":")[1]
    code = "from mlcycle.service.server import main; main()"
    os.execv(sys.executable, [sys.executable, "-c", code, os.environ["FAKE_RELEASE"], "--port", port])
"""
    (folder / "docker").write_text(script)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("FAKE_RELEASE", str(releases[0]))
    return lambda: (tmp_path / "log").read_text()


def toy_parity_rows(bundle) -> tuple[list[dict], int]:
    "Rows without missing values, which a linear model does not take."
    return TOY_ROWS, 0


def test_an_image_gets_its_name_once_its_predictions_are_equal(releases, fake_docker):
    proof = build_image(releases[0], ImageBuild("docker", "x:1"), rows=toy_parity_rows)
    assert proof.image == "toy:1" and proof.parity.passed and proof.parity.rows == 1
    build, run, _, tag, remove, inspect = map(str.split, fake_docker().splitlines())
    draft = build[build.index("--tag") + 1]
    assert "BASE_IMAGE=x:1" in build and tag == ["tag", draft, "toy:1"] and remove == ["rmi", draft] and "toy:1" in inspect
    assert {"--rm", "--read-only", "no-new-privileges"} <= {*run} and run[-1] == draft


def test_an_image_whose_predictions_differ_gets_no_name(releases, fake_docker, monkeypatch):
    monkeypatch.setenv("FAKE_RELEASE", str(releases[1]))
    with pytest.raises(StageError, match="1 of 1 predictions of the form 'container image' differ"):
        build_image(releases[0], ImageBuild("docker", "x:1"), rows=toy_parity_rows)
    assert [line.split()[0] for line in fake_docker().splitlines()] == ["build", "run", "rm", "rmi"]


@pytest.mark.parametrize("fails", ["build", "run"])
def test_a_tool_that_fails_leaves_neither_image_nor_container(releases, fake_docker, monkeypatch, fails):
    monkeypatch.setenv("FAKE_FAILS", fails)
    with pytest.raises((InputError, StageError), match="Cannot connect"):
        build_image(releases[0], ImageBuild("docker", "x:1"), rows=toy_parity_rows)
    calls = [line.split()[0] for line in fake_docker().splitlines()]
    assert calls[-1] == "rmi" and "tag" not in calls and ("rm" in calls) == (fails == "run")


def test_user_functions_are_executed_only_if_they_are_trusted(releases, fake_docker, tmp_path, monkeypatch):
    (tmp_path / "functions.py").write_text("# No function, which is enough to need a review\n")
    bundle, _ = open_release(releases[0])
    release = build_bundle(tmp_path / "releases", bundle, releases[0] / "model.skops", tmp_path / "functions.py")
    with pytest.raises(ArtifactError, match="calls user functions, .* Review functions.py"):
        build_image(release, ImageBuild("docker", "x:1"), rows=toy_parity_rows)
    assert not (tmp_path / "log").exists()
    proof = build_image(release, ImageBuild("docker", "x:1", functions=True), rows=toy_parity_rows)
    assert proof.parity.passed and f"--build-arg FUNCTIONS={FUNCTIONS_IN_IMAGE}" in fake_docker().splitlines()[0]
    monkeypatch.setenv("MLCYCLE_FUNCTIONS", FUNCTIONS_IN_IMAGE)  # As the image sets it
    assert read_arguments(["serve"])[0].functions == FUNCTIONS_IN_IMAGE


def test_bad_words_of_the_command_are_one_clear_message(releases, fake_docker, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cases = {
            "The tool 'kaniko' is not known": ["--tool", "kaniko"],
            "The image name 'Bad Tag!' is not valid": ["--tag", "Bad Tag!"],
            "podman is not installed": ["--tool", "podman"],
            f"127.0.0.1:{port} cannot be used": ["--port", str(port)],
            "does not exist": ["--output", "nowhere/image.tar"],
        }
        for message, words in cases.items():
            done = cli("image", "build", str(releases[0]), *words, cwd=tmp_path, PATH=os.environ["PATH"])
            assert done.returncode and message in done.stderr and "Traceback" not in done.stderr, done
    done = cli("image", "build", str(releases[0]), cwd=tmp_path, PATH=os.environ["PATH"], FAKE_FAILS="version")
    assert done.returncode == 2 and "Cannot connect to the Docker daemon" in done.stderr
    assert "build" not in fake_docker()


def test_sigterm_ends_a_build_as_ctrl_c_does(releases, fake_docker, tmp_path):
    (temporary := tmp_path / "temporary").mkdir()
    words = [str(Path(sys.executable).parent / "mlcycle"), "image", "build", str(releases[0])]
    environment = os.environ | {"FAKE_SLEEPS": "build", "TMPDIR": str(temporary)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not ((tmp_path / "log").exists() and "build" in fake_docker()):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            assert [*temporary.glob("mlcycle-image-*")]
            process.send_signal(signal.SIGTERM)
            _, printed = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Nothing is left of the build." in printed
    assert not [*temporary.glob("mlcycle-image-*")] and fake_docker().splitlines()[-1].startswith("rmi ")


# A real image


def need(*tools: str) -> None:
    "Skip a test where system tools are missing, but not in continuous integration; also without the rights that it needs."
    missing = [tool for tool in tools if not shutil.which(tool)]
    reason = f"{', '.join(missing)} missing: as root on Debian, make system installs them"
    if missing and os.environ.get("CI"):
        pytest.fail(reason)
    if missing or os.geteuid():
        pytest.skip(reason if missing else "It needs root, to make and mount root file systems.")


def roomy_folder(cache: Path) -> TemporaryDirectory:
    "A temporary folder for images: in memory if the others have enough of it, else beside the cache."
    return TemporaryDirectory(dir=None if shutil.disk_usage(gettempdir()).free > 6 * 2**30 else cache)


def debian_base() -> Path:
    "A root file system with this system's Python as an archive, from its package sources; made once for a user."
    system = platform.freedesktop_os_release()["VERSION_CODENAME"]
    version = subprocess.run(["apt-cache", "policy", "python3"], capture_output=True, text=True, check=True).stdout
    if f"Candidate: {required_python('')}." not in version:
        pytest.skip(f"The packages of {system} have another version of Python than these tests.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlcycle-tests"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{system}-{platform.machine()}.tar"
    with FileLock(f"{archive}.lock"):
        if not archive.exists():
            with roomy_folder(cache) as folder:
                make_base(system, Path(folder) / "root", archive)
    return archive


def make_base(system: str, root: Path, archive: Path) -> None:
    "Install the packages of a base image into a folder, and pack it."
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    sources = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    mirror = next(line.split()[0] for line in sources if line.endswith(f" {system}"))
    options = ["--variant=minbase", "--include=python3,python3-venv", system, str(root), mirror]
    done = subprocess.run(["debootstrap", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    unwanted, draft = ["--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists"], archive.with_suffix(".draft")
    subprocess.run(["tar", "-C", str(root), *unwanted, "-cf", str(draft), "."], check=True)
    draft.replace(archive)


@pytest.fixture(scope="module")
def base_image():
    "The name of a base image in a storage of its own, to which the environment points."
    need("buildah", "debootstrap")
    archive = debian_base()
    with roomy_folder(archive.parent) as home, pytest.MonkeyPatch.context() as patch:
        storage = f'[storage]\ndriver = ""\ngraphroot = "{home}/store"\nrunroot = "{home}/run"\n'
        (Path(home) / "storage.conf").write_text(storage)
        (Path(home) / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        shutil.copyfile(archive, Path(home) / "base.tar")
        patch.setenv("CONTAINERS_STORAGE_CONF", f"{home}/storage.conf")
        buildah("build", "--isolation", "chroot", "--tag", "localhost/base:1", home)
        yield "localhost/base:1"
        buildah("rm", "--all")


def buildah(*words: str) -> str:
    "Run a command of Buildah; its output."
    done = subprocess.run(["buildah", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@contextmanager
def container_service(root: str, config: dict, user: int) -> Generator[tuple[ServiceClient, subprocess.Popen]]:
    """The service in the root file system of an image as a container runs it: read-only except /tmp, no capabilities, one user.

    There are no namespaces for processes and network, and no limits, which need a container runtime."""
    port = free_port()
    shell = f"""
        mount --bind {root} {root} && mount -o remount,ro,bind {root} && mount -t tmpfs tmpfs {root}/tmp &&
        mount --bind /dev {root}/dev && chmod 1777 {root}/tmp &&
        exec chroot {root} /usr/bin/setpriv --reuid {user} --regid 0 --clear-groups --no-new-privs --bounding-set=-all \
            --inh-caps=-all /usr/bin/env --ignore-environment --chdir={config["WorkingDir"]} "$@"
    """
    environment = [*config["Env"], f"PORT={port}"]
    words = ["unshare", "--mount", "sh", "-c", shell, "sh", *environment, *config["Entrypoint"], *config["Cmd"]]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    assert client.get("/ping").is_success
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield ServiceClient(str(client.base_url), 0.0, client, process.pid), process
        finally:
            process.kill()


def test_an_image_is_built_and_predicts_as_the_pipeline(base_image, wheelhouse, table_run, tmp_path):
    run = table_run("cancer")
    project, archive = run.workspace.project, tmp_path / "image.tar"
    options = ["--base-image", base_image, "--tool", "buildah", "--isolation", "chroot", "--output", str(archive)]
    done = cli("image", "build", run.id, *options, "--wheelhouse", str(wheelhouse), cwd=project, PIP_INDEX_URL="http://[::]:9")
    assert done.returncode == 0, done
    entry = readable_entries(run.workspace)[-1]
    parity = entry.details["parity"]
    assert (entry.action, entry.version, entry.run) == ("build image", run.release.model.version, run.id)
    assert parity["rows"] == parity["n_equal"] > entry.details["holdout_rows"] > 50
    assert f"{parity['n_equal']} of {parity['rows']} predictions are bitwise equal" in done.stdout
    accesses = read_holdout_accesses(run.workspace, run.dataset.tables["holdout"].sha256)
    assert [each.stage for each in accesses if each.run == run.id].count("deployment") == 1  # Once for a run
    assert archive.stat().st_size > 10**7
    image = entry.details["image"]
    assert [line for line in buildah("images", "--all", "--format", "{{.Name}}").split("\n") if "mlcycle-build" in line] == []
    assert buildah("containers", "--quiet") == ""
    check_running_image(image, run)


def check_running_image(image: str, run) -> None:
    "Run the service of an image for several users; compare predictions, labels, health check, and its end."
    release = run.workspace.root / run.release.bundle
    bundle, model = open_release(release)
    rows, _ = sample_parity_rows(bundle)
    expected = predict_by_pipeline(model, bundle, rows)
    config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    labels, key = config["Labels"], verify_release(release).signer
    assert (config["User"], config["StopSignal"], config["Cmd"]) == ("10001:0", "SIGTERM", ["serve"])
    assert (labels["mlcycle.release.name"], labels["mlcycle.release.signer"]) == (release.name, key)
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    root = buildah("mount", buildah("from", image))
    for gone in ("usr/bin/gcc", "usr/bin/pip", "opt/mlcycle/venv/bin/pip", "usr/share/python-wheels"):
        assert not (Path(root) / gone).exists(), gone
    gomp = "import ctypes; ctypes.CDLL('libgomp.so.1')"  # LightGBM needs it
    subprocess.run(["chroot", root, "env", *config["Env"], "python", "-c", gomp], check=True)
    for user in (10001, 0, 1_000_650_000):  # That of the image, root, and one that OpenShift chooses
        with container_service(root, config, user) as (service, process):
            served = predict_by_rows(service, bundle, rows)
            assert compare_predictions(f"image, as user {user}", expected, served).n_equal == len(rows)
            described = service.client.get("/model").json()["release"]
            assert (described["name"], described["sha256"]) == (release.name, labels["mlcycle.release.sha256"])
            port = f"PORT={service.client.base_url.port}"
            check = config["Healthcheck"]["Test"]
            subprocess.run(["chroot", root, "env", *config["Env"], port, *check[1:]], check=True)
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert f"Uid:\t{user}\t" in status and "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
            assert process.returncode == 0 and "not verified" not in log and "Traceback" not in log, log

"""`mlcycle …` as a person types it: in a fork of a server that has imported it, or in a process of its own."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from mlcycle.engine.forkserver import hidden_main, import_statements, reuse_forkserver_for_multiprocessing, start_fork_server
from mlcycle.engine.warmup import LATE_IMPORTS, warmup_statements
from mlcycle.lifecycle.batch_workers import WORKER_IMPORTS
from mlcycle.nb.fingerprints import code_cells
from mlcycle.nb.notebook import stage_notebooks

WIDTH = "200"  # Of the terminal, so that no line is broken
TESTS = str(Path(__file__).parent)


def cli(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    "Run `mlcycle …` with environment variables; in a process of its own where they say what is imported."
    if "PYTHONPATH" in environment:
        return cli_process(*words, cwd=cwd, **environment)
    with TemporaryDirectory() as folder:
        logs = [Path(folder) / "stdout", Path(folder) / "stderr"]
        process = fork_cli(cwd, *words, stdout=logs[0], stderr=logs[1], **environment)
        process.join(300)
        if process.exitcode is None:
            threads = show_threads(process)
            process.kill()
            raise TimeoutError(
                f"mlcycle {' '.join(map(str, words))} has not ended after five minutes.\n{logs[1].read_text()}{threads}"
            )
        return subprocess.CompletedProcess(["mlcycle", *words], process.exitcode, *(log.read_text() for log in logs))


def show_threads(process: BaseProcess) -> str:
    "Let a command write what its threads do to its standard error; return what they and its children wait for."
    os.kill(process.pid, signal.SIGUSR1)
    time.sleep(1)
    children = psutil.Process(process.pid).children(recursive=True)
    found = [f"{each.pid} {each.status()} {each.cmdline()}" for each in children]
    return "\n".join(["children:", *found])


def cli_process(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    "Run `mlcycle …` in a process of its own."
    command = [str(Path(sys.executable).parent / "mlcycle"), *map(str, words)]
    variables = os.environ | {"COLUMNS": WIDTH} | environment
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)


def fork_cli(
    cwd: Path, *words: str, stdout: Path, stderr: Path, prepare: Callable[[], None] | None = None, **environment: str
) -> BaseProcess:
    "Start `mlcycle …` in a fork of the server, from which its notebooks are forked too; `prepare` is called first there."
    start_warm_server()
    variables = os.environ | {"COLUMNS": WIDTH} | environment
    arguments = (str(cwd), [*map(str, words)], variables, [str(stdout), str(stderr)], prepare)
    process = get_context("forkserver").Process(target=_run_command, args=arguments)
    with hidden_main():
        process.start()
    return process


def start_warm_server() -> None:
    "Start the server in the background; do nothing if it is running. It must not be started by anything that imports less."
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH  # The console is as wide as it was when it was imported
    try:
        start_fork_server(_imports())
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


@cache
def _imports() -> list[str]:
    "What the server imports: all that the command line, the stages and the pages use."
    cells = [source for path in stage_notebooks(Path("/nowhere")).values() for source in code_cells(path).values()]
    packages = {"pandas", "seaborn", "mlflow", *(name.split(".")[0] for name in LATE_IMPORTS)}
    own = ["import mlcycle.cli.app", f"import mlcycle; import sys; sys.path.append({TESTS!r}); import preloaded"]
    return [*import_statements(cells), *warmup_statements(packages), *WORKER_IMPORTS, *own]


def _run_command(cwd: str, words: list[str], variables: dict[str, str], logs: list[str], prepare: Callable | None) -> None:
    "Be the process of a command."
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:] = [path for path in sys.path if path != TESTS]  # Tests may need a module of the same name in the project
    sys.argv = ["mlcycle", *words]
    for number, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    faulthandler.register(signal.SIGUSR1)
    reuse_forkserver_for_multiprocessing()
    if prepare:
        prepare()
    from mlcycle.cli.app import app

    app(words, prog_name="mlcycle")

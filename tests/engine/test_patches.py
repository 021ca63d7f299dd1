"""What the engine patches in other libraries: each test fails when a library changes so that the patch would break."""

import asyncio
import atexit
import inspect
import json
import multiprocessing.spawn
import os
import re
import subprocess
import sys
from importlib import import_module
from multiprocessing import forkserver, get_context
from pathlib import Path

import pytest
import scipy
from packaging.version import Version

from mlcycle.engine import client, kernel
from mlcycle.engine import forkserver as forks
from mlcycle.engine.patches import PATCHES, Patch, find_attribute, missing_patch_parameters


def named(patch: Patch) -> str:
    "How a patch is called in the output of pytest."
    return patch.attribute


def printed(code: str, **environment: str) -> str:
    "What code prints in a process of its own."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TABLES_IN_DOCSTRINGS = "scipy._lib._array_api:FunctionDoc"


@pytest.mark.parametrize("patch", PATCHES, ids=named)
def test_the_attribute_is_there_and_takes_what_it_is_given(patch):
    if patch.attribute == TABLES_IN_DOCSTRINGS and Version(scipy.__version__) < Version("1.17"):
        pytest.skip("SciPy adds tables to docstrings since 1.17")
    assert find_attribute(patch) is not None or patch.how == "set"
    assert missing_patch_parameters(patch) == []
    assert patch.why.endswith(".")


OVERRIDDEN = [patch for patch in PATCHES if patch.how == "overridden" and not patch.attribute.endswith("_async_start_kernel")]


@pytest.mark.parametrize("patch", OVERRIDDEN, ids=named)
def test_what_is_overridden_takes_what_the_library_gives_it(patch):
    owner, _, name = patch.attribute.rpartition(".")
    base = find_attribute(Patch("", owner, "", ""))
    ours = [
        kind
        for module in (client, kernel)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and name in vars(kind)
    ]
    assert ours, f"nothing of ours overrides {patch.attribute}"
    theirs, mine = getattr(base, name), getattr(ours[0], name)
    if callable(theirs) and not isinstance(theirs, type):
        parameters = [one for one in inspect.signature(theirs).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
        required = [one.name for one in parameters if one.default is one.empty]
        optional = {one.name: one.default for one in parameters if one.default is not one.empty}
        inspect.signature(mine).bind(*required, **optional)  # Raises if ours takes less


def test_every_private_name_that_the_engine_uses_is_in_the_table():
    "`_name` of another library's object, in the source of the engine."
    table = {patch.attribute.rpartition(".")[2].rpartition(":")[2] for patch in PATCHES}
    allowed = {
        "_buffer_lock",
        "_buffers",
        "_fid",
        "_forked",
        "_forkserver",
        "_async_start_kernel",
        "_exit",
        "_lib",
        "_is_debugpy_available",
        "_stderr",
        "_stdout",
    }
    for path in Path(client.__file__).parent.glob("*.py"):
        if path.name != "patches.py":
            found = set(re.findall(r"\w\.(_[a-z]\w+)", path.read_text()))
            assert found <= table | allowed, path.name


def test_a_fork_asks_the_server_that_made_it():
    assert "ensure_running" in inspect.getsource(forkserver.ForkServer.connect_to_new_process)
    assert forks.call_in_fork(asks_its_own_server, os.getpid())


def asks_its_own_server(asker: int) -> bool:
    "In a fork: another fork has the same parent as this one, which is not the process that asked."
    forks.reuse_forkserver_for_multiprocessing()
    context = get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=send_parent, args=(there,))
    with forks.hidden_main():
        process.start()
    parent = here.recv()
    process.join()
    return parent == os.getppid() != asker


def send_parent(pipe) -> None:
    "Tell the id of the parent process."
    pipe.send(os.getppid())


def test_the_main_module_is_hidden_while_a_process_starts():
    with forks.hidden_main():
        data = multiprocessing.spawn.get_preparation_data("x")
    assert not {"init_main_from_name", "init_main_from_path"} & data.keys()
    assert sys.modules["__main__"].__name__ == "__main__"


def test_functions_for_the_end_of_a_process_are_called():
    code = "import atexit, os; atexit.register(print, 'called', flush=True); atexit._run_exitfuncs(); os._exit(0)"
    assert printed(code) == "called"
    assert callable(atexit._run_exitfuncs)


def test_jsonschema_does_without_the_grammar():
    hide = "import sys; sys.modules['rfc3987_syntax'] = None; import nbformat; "
    assert printed(hide + "nbformat.validate(nbformat.v4.new_notebook()); print('valid')") == "valid"


def test_docstrings_that_are_computed_at_import_are_left_out_by_the_server_alone():
    show = (
        "from scipy.stats import ttest_ind; from matplotlib.lines import Line2D; from scipy.signal import detrend; "
        "print(*(word in text for text, word in ((ttest_ind.__doc__, 'T-test'), (ttest_ind.__doc__, 'Array API'), "
        "(Line2D.set.__doc__, 'linewidth'), (detrend.__doc__, 'Array API'))))"
    )
    if Version(scipy.__version__) < Version("1.17"):
        pytest.skip("SciPy adds tables to docstrings since 1.17")
    assert printed(show) == "True True True True", "what the libraries add has another name now"
    preloaded = "from mlcycle.engine.preload import preload; preload(['import scipy.stats', 'import matplotlib.pyplot']); "
    assert printed(preloaded + show) == "True False False True", "a module that is imported later is complete"
    later = "from matplotlib.artist import Artist; print('Properties:' in type('Mark', (Artist,), {}).set.__doc__)"
    assert printed(preloaded + later) == "True", "classes of the notebook have their list"
    unused = "import sys; from mlcycle.engine.preload import preload; before = [*sys.meta_path]; preload(['import json']); "
    shown = "print({'scipy', 'matplotlib'} & sys.modules.keys(), sys.meta_path == before)"
    assert printed(unused + shown) == "set() True", "nothing is imported for it, and no finder stays"


def test_no_debugger_is_imported():
    code = "import sys, mlcycle.engine.kernel, ipykernel.debugger as module; "
    assert printed(code + "print(module._is_debugpy_available, 'debugpy' in sys.modules)") == "False False"
    for module in ("ipykernel.ipkernel", "ipykernel.kernelbase"):
        names = re.findall(r"from \.debugger import (.+)", inspect.getsource(import_module(module)))
        assert set(names) == {"_is_debugpy_available"}, "nothing else is asked of the empty module"


def test_papermill_saves_through_the_method_that_is_slowed_down():
    from papermill.engines import NotebookExecutionManager

    for method in ("cell_start", "cell_complete", "notebook_complete"):
        assert "self.save()" in inspect.getsource(getattr(NotebookExecutionManager, method)), method


def test_keys_of_mappings_stay_what_they_are():
    from papermill.translators import PythonTranslator

    assert PythonTranslator.translate({1: 2}) != client.KeyPreservingTranslator.translate({1: 2}) == "{1: 2}"
    assert "translate_dict" in inspect.getsource(PythonTranslator.translate)


def test_nbclient_asks_for_answer_and_outputs_through_the_methods_that_are_overridden():
    from nbclient.client import NotebookClient

    source = inspect.getsource(NotebookClient.async_execute_cell)
    for name in ("_async_poll_for_reply", "_async_poll_output_msg"):
        assert name in source, name
    assert asyncio.iscoroutinefunction(NotebookClient._async_poll_for_reply)


def test_messages_are_whole_after_a_pipe():
    from jupyter_client.session import Session

    sent = []
    session = kernel.PipeSession(key=b"pipe")
    session.pipe = type("Pipe", (), {"send": lambda self, message: sent.append(message)})()
    session.lock, session.owner = __import__("threading").Lock(), os.getpid()
    session.send(None, "stream", {"name": "stdout", "text": "ü"}, buffers=[b"x"])
    ((packed, buffers),) = sent
    message = Session(key=b"pipe").unpack(packed)
    assert (message["content"], buffers) == ({"name": "stdout", "text": "ü"}, [b"x"])
    assert {"header", "parent_header", "msg_type", "metadata"} <= message.keys()


def test_what_is_printed_reaches_the_output_and_the_log(tmp_path):
    "The stream of ipykernel that reads the file descriptors, with our decoder and log."
    cells = [
        {
            "cell_type": "code",
            "id": "a",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": "import os\nprint('ü')\nos.write(1, 'é\\n'.encode())\nos.system('echo ø');",
        }
    ]
    kernelspec = {"name": "python3", "language": "python", "display_name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    words = f"{str(tmp_path / 'a.ipynb')!r}, {str(tmp_path / 'b.ipynb')!r}, engine_name='warm'"
    printed(f"import papermill; papermill.execute_notebook({words})")
    outputs = json.loads((tmp_path / "b.ipynb").read_text())["cells"][-1]["outputs"]
    text = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert sorted(text.split()) == ["é", "ø", "ü"]


def _started_server() -> int | None:
    "The process id of a server that a fork has started which shares that of its parent, if any."
    forks.reuse_forkserver_for_multiprocessing()
    forks.start_fork_server([])
    return forkserver._forkserver._forkserver_pid


def test_a_fork_starts_no_server_of_its_own():
    assert forks.call_in_fork(_started_server) is None
    assert forkserver._forkserver._forkserver_pid, "outside a fork, one is started"

"""The kernel of the engine `warm` beside that of papermill's own engine: the same notebooks leave the same outputs."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
import pytest
from test_engine import PAPERMILL, normal, printed, read, run, wait_until, write

THEMES = {
    "magics": [
        "x = 1\ndef f(a):\n    'What f does.'\n    return a",
        "%alias hello echo hi %s", "%hello you", "%alias_magic t time", "%autoawait", "%autosave 10", "%bookmark -l",
        "%cat nofile", "%pushd /", "%dirs", "%popd", "%cd nowhere", "%colors nocolor", "1 / 0", "%colors linux", "%config",
        "%config InteractiveShell.ast_node_interactivity = 'all'\n1", "1\n2",
        "%config InteractiveShell.ast_node_interactivity = 'last_expr'", "%config IPKernelApp.pylab",
        "%doctest_mode", "1 / 0", "%doctest_mode", "%env FOO=1", "%set_env FOO 2", "!echo $FOO", "%history -n 1-3",
        "%history -g alias", "%history -t -l 2", "%rerun 1", "%recall 1", "%load nofile", "%load_ext autoreload",
        "%autoreload 2", "%load_ext nonsense", "%lsmagic", "%macro again 1", "again", "%page x", "%pdef f", "%pdoc f",
        "%pfile f", "f??", "%precision 3", "3.14159", "%pprint", "list(range(30))", "%psearch f*",
        "%reset_selective -f zzz", "%save kept.py 1", "%sx echo 1",
        "%system echo 2", "%store", "kept = [1]\n%store kept", "%store", "%reset -f", "%store -r\nkept", "%store -d kept",
        "%store kept >> kept.txt", "%tb", "1 / 0", "%tb Plain", "%time 1", "%who", "%xmode Verbose",
        "def g(z):\n    return z / 0\ng(3)", "%xmode Minimal", "1 / 0", "%xmode Context",
        "%%bash --out out\necho 1", "out", "%%capture c\nprint(1)", "c.show()", "%%html --isolated\na", "%%javascript\n1",
        "%%latex\n$x$", "%%markdown\n*a*", "%%python\nimport sys; print(sys.argv)", "%%script sh -s a b\necho $1",
        "%%sh\nexit 3", "%%script nonsense\n1", "%%time\n1", "%%writefile -a w.py\nprint('from', __name__, __file__)",
        "%run w.py a b", "%run -n w.py", "%run nofile.py", "%%nonsense\n1", "get_ipython().run_line_magic('pwd', '')[:1]",
        "get_ipython().run_cell_magic('bash', '', 'echo 1')", "ls /dev/null", "?", "%time?", "*int*?",
    ],
    "matplotlib": [
        "%matplotlib inline", "import matplotlib.pyplot as plt\nplt.plot([1, 2]);", "plt.get_backend(), plt.isinteractive()",
        "%config InlineBackend.figure_formats = ['png', 'jpeg']\nplt.plot([1, 2]);",
        "%config InlineBackend.figure_format = 'png'", "%matplotlib", "%matplotlib --list", "%matplotlib agg",
        "plt.get_backend()", "plt.plot([1]); plt.show()", "%matplotlib inline", "plt.plot([1, 2]); plt.show(); print('after')",
        "%matplotlib nonsense", "%pylab inline", "plot([1, 2]); array([1])", "%pylab --no-import-all inline",
        "%matplotlib notebook", "%matplotlib qt", "%matplotlib inline", "%gui", "%gui inline", "%gui asyncio", "%gui nonsense",
        "%gui qt", "%gui tk", "%gui", "fig, ax = plt.subplots(); ax.plot([1, 2]); display(fig); plt.close(fig)",
        "%config InlineBackend.close_figures = False\nplt.plot([1])", "plt.gcf()",
        "import numpy as np\nimport pandas as pd\npd.DataFrame(np.zeros((3, 30)))", "pd.Series([1, 2]).plot()",
    ],
    "input": [
        "input()", "input('name? ')", "import getpass; getpass.getpass('p')", "import sys; sys.stdin.readline()",
        "1 / 0", "%debug", "breakpoint()", "import pdb; pdb.set_trace()", "%pdb on", "1 / 0", "%pdb off",
        "import code; code.interact()", "get_ipython().ask_yes_no('sure?')", "%reset", "get_ipython().kernel.raw_input('x')",
        "import time; time.sleep(0.5)",
    ],
    "processes": [
        "import asyncio, multiprocessing, os, subprocess, sys, time",
        "async def three():\n    await asyncio.sleep(0.01)\n    return 3\nawait three()",
        "asyncio.get_event_loop().run_until_complete(three())", "await asyncio.gather(three(), three())",
        "process = await asyncio.create_subprocess_exec('echo', '1', stdout=asyncio.subprocess.PIPE)\n"
        "await process.communicate()",
        "await asyncio.wait_for(asyncio.sleep(9), 0.01)", "await asyncio.to_thread(print, 'from a thread')",
        "asyncio.get_event_loop().call_later(0.01, print, 'later')\nawait asyncio.sleep(0.1)",
        "async def boom():\n    raise ValueError(1)\nawait boom()", "%autoawait False", "await three()", "%autoawait True",
        "from tornado.ioloop import IOLoop\nIOLoop.current().add_callback(print, 'by tornado')\nawait asyncio.sleep(0.1)",
        "type(get_ipython().kernel.io_loop), get_ipython().kernel.io_loop.asyncio_loop is asyncio.get_event_loop()",
        "async def shown():\n    for i in range(2):\n        display(i)\n        await asyncio.sleep(0)\n"
        "await asyncio.gather(shown(), shown())",
        "subprocess.run('echo out; echo err >&2', shell=True)\ntime.sleep(0.2)",
        "subprocess.run([sys.executable, '-c', 'print(input())'], input=b'x')\ntime.sleep(0.2)",
        "subprocess.run(['cat'])", "print(subprocess.check_output(['echo', '1']))",
        "multiprocessing.current_process(), multiprocessing.parent_process(), multiprocessing.get_start_method(True)",
        "with multiprocessing.get_context('forkserver').Pool(1) as pool:\n    print(pool.map(abs, [-1]))",
        "import joblib\njoblib.Parallel(2)(joblib.delayed(abs)(-i) for i in range(3))",
    ],
    "kernel": [
        "import os, sys, warnings", "[os.path.basename(sys.argv[0]), sys.argv[1], *sys.argv[3:]]",
        "sys.path[sys.path.index('')-1:]", "'JPY_PARENT_PID' in os.environ, os.environ['MPLBACKEND'], os.environ['PAGER']",
        "ip = get_ipython()\ntype(ip), ip.kernel.shell is ip, ip.history_manager.hist_file, ip.config['IPKernelApp'].keys()",
        "from ipykernel.kernelapp import IPKernelApp\nIPKernelApp.initialized(), IPKernelApp.instance().kernel is ip.kernel",
        "import ipykernel\nos.path.exists(ipykernel.get_connection_file())", "ip.kernel.get_parent()['content']",
        "import __main__\nsorted(name for name in vars(__main__) if name.startswith('__'))",
        "import logging\nlogging.getLogger().handlers, logging.getLogger('tornado').handlers",
        "logging.basicConfig(level=20, force=True)\nlogging.info('hello')", "1 / 0", "warnings.warn('careful')",
        "import pandas as pd\npd.options.display.max_columns",
        "handle = display('first', display_id='here')", "handle.update('second')", "update_display('third', display_id='here')",
        "sys.stdout.write('x\\r10 %\\r100 %')", "from IPython.display import *\nProgressBar(3)",
        "for i in range(3):\n    clear_output(wait=True)\n    print(i)",
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    "A home with start-up files and configuration, in which both engines run."
    profile = tmp_path / "home" / ".ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup" / "00.py").write_text("from_startup = 'a start-up file'\nimport os as from_os")
    (profile / "startup" / "01.ipy").write_text("%alias greet echo greetings")
    (profile / "ipython_config.py").write_text("c.InteractiveShellApp.exec_lines = ['from_line = 3']\nc.InlineBackend.rc = {}")
    (profile / "ipython_kernel_config.py").write_text("c.InteractiveShell.separate_in = 'y'\nc.StoreMagics.autorestore = True")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("IPYTHONDIR", raising=False)


def on_both(tmp_path: Path, monkeypatch, cells: list[str]) -> tuple[list, list]:
    "The executed cells of a notebook on papermill's own engine and on `warm`, each in an empty folder of the same name."
    done = []
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # Where it is set, ipykernel does not look at file descriptors
    for engine in ("nbclient", "warm"):
        folder = tmp_path / engine / "work"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        path = write("in.ipynb", *cells, tags=("raises-exception",))
        with suppress(papermill.PapermillExecutionError):
            run(path, engine, request_save_on_cell_execute=False, execution_timeout=60)
        done.append(read(path).cells)
    return done[0], done[1]


def compared(cell) -> str:
    "The outputs of a cell without what differs from run to run."
    text = json.dumps(normal(cell))
    for pattern in (
        r"/[\w/.-]*/(nbclient|warm)/work",
        r"mlcycle-\w+\.json|tmp\w+\.json",
        r"ipython_edit_\w+",
        r"at [0-9a-f]{12}",
    ):
        text = re.sub(pattern, "…", text)
    return text.replace("mlcycle.engine.kernel.WakingLoop", "tornado.platform.asyncio.AsyncIOMainLoop")


@pytest.mark.parametrize("theme", THEMES)
def test_outputs_are_those_of_a_usual_kernel(theme, tmp_path, monkeypatch):
    own, warm = on_both(tmp_path, monkeypatch, THEMES[theme])
    different = [
        (mine.source, compared(mine), compared(his))
        for his, mine in zip(own, warm, strict=True)
        if compared(mine) != compared(his)
    ]
    assert different == []
    assert [cell.execution_count for cell in warm] == [cell.execution_count for cell in own]


def test_configuration_and_start_up_files_are_read(tmp_path, monkeypatch):
    cells = ["from_startup, from_line, from_os.name", "%greet", "get_ipython().separate_in", "%config StoreMagics", "%who"]
    own, warm = on_both(tmp_path, monkeypatch, cells)
    assert warm[0].outputs[0].data["text/plain"] == "('a start-up file', 3, 'posix')"
    assert printed(warm[1]).strip() == "greetings"
    assert list(map(compared, warm)) == list(map(compared, own))


def test_a_module_beside_the_notebook_comes_before_an_installed_one(tmp_path, monkeypatch):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import wrapt, mlcycle.engine.client, test_engine; "
    code += "print(test_engine.printed(test_engine.run('in.ipynb').cells[0]))"
    (tmp_path / "script.py").write_text(code)
    (tmp_path / "helper.py").write_text("name = 'of the script'")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("wrapt.py").write_text("name = 'mine'")
    Path("helper.py").write_text("name = 'of the notebook'")
    write("in.ipynb", "import helper, wrapt\nprint(wrapt.name, helper.name)")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mine of the notebook"


def statuses(path: str) -> list[str]:
    "What papermill has noted about each cell in the file."
    with suppress(nbformat.reader.NotJSONError, FileNotFoundError):  # It is just being written
        return [cell.metadata.get("papermill", {}).get("status") for cell in nbformat.read(path, 4).cells]
    return []


def test_finished_cells_are_saved_while_a_long_one_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("in.ipynb", "1", "2", "print(3)", "import time\nprint('begun')\ntime.sleep(60)")
    command = [PAPERMILL, "in.ipynb", "out.ipynb", "--engine", "warm", "--autosave-cell-every", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert wait_until(lambda: statuses("out.ipynb") == ["completed"] * 3 + ["running"], 40)
        assert wait_until(lambda: printed(read("out.ipynb").cells[3]) == "begun\n", 10)
        process.kill()
    cells = read("out.ipynb").cells
    assert [cell.outputs[0].get("text", cell.outputs[0].get("data")) for cell in cells] == [
        {"text/plain": "1"}, {"text/plain": "2"}, "3\n", "begun\n"]  # fmt: skip


def test_an_interruption_does_not_cut_a_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "import os, signal, threading\nfrom IPython.display import display\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "while True:\n    display('x' * 100_000)"
    )
    path = write("in.ipynb", code, "print('still alive')", tags=("raises-exception",))
    with pytest.raises(papermill.PapermillExecutionError):
        run(path, execution_timeout=60)
    cells = read(path).cells
    assert cells[0].outputs[-1].ename == "KeyboardInterrupt"
    assert printed(cells[1]) == "still alive\n"

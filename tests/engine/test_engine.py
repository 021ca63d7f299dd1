"""The engine `warm`: outputs equal to those of papermill's own, and whatever goes wrong ends well."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver, get_context
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from mlcycle.engine.forkserver import hidden_main, start_fork_server
from mlcycle.errors import StageError
from mlcycle.lifecycle.execute import execute_notebook

PAPERMILL = Path(sys.executable).with_name("papermill")
KERNEL = {"name": "python3", "language": "python", "display_name": "python3"}
LIMITS = {"name": "warm", "cell_timeout": "60", "notebook_timeout": "60"}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def write(path: str, *sources: str, tags: tuple[str, ...] = ()) -> Path:
    "A notebook with a cell for each source."
    cells = [new_code_cell(source, metadata={"tags": list(tags)}) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return Path(path)


def run(path: Path | str, engine: str = "warm", **options):
    "Execute a notebook in place."
    return papermill.execute_notebook(str(path), str(path), engine_name=engine, progress_bar=False, **options)


def read(path: Path | str):
    "An executed notebook, without the marks that papermill leaves around an error."
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return notebook


def printed(cell) -> str:
    "All that a cell printed."
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def alive(process: str | int) -> bool:
    "Whether a process lives; one that waits to be buried does not."
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 20) -> bool:
    "Wait for something to become true."
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


CELLS = {
    "print": "import sys\nfor name in 'abc':\n    print(name)\n    print(name.upper(), file=sys.stderr)",
    "no newline": "print('left', end=''); sys.stderr.write('e'); sys.stdout.write('right')",
    "carriage return": "print('10 %\\r100 %')",
    "colour": "print('\\x1b[31mröd\\x1b[0m 🎉')",
    "frame": "import numpy as np\nimport pandas as pd\nframe = pd.DataFrame({'x': [1, 2], 'y': ['<a>', 'ü']})\nframe",
    "styler": "frame.style.format(precision=2)",
    "series": "frame.x",
    "estimator": "from sklearn.linear_model import LogisticRegression\nLogisticRegression()",
    "plot": "import matplotlib.pyplot as plt\nplt.plot([1, 2])",
    "two figures": "plt.plot([1, 2])\nplt.figure()\nplt.plot([2, 1]);",
    "figure as value": "figure, axes = plt.subplots()\nfigure",
    "seaborn": "import seaborn as sns\nsns.histplot([1, 2, 3])",
    "display": "from IPython.display import HTML, JSON, SVG, Latex, Markdown, clear_output, display\n"
    "display(HTML('<b>x</b>'), Markdown('# x'), Latex('$x$'), JSON({'a': 1}))\n"
    "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))",
    "display id": "handle = display('first', display_id='here')",
    "update display": "handle.update('second')\nprint('updated')",
    "clear": "print('gone')\nclear_output()\nprint('stays')",
    "clear and wait": "print('gone')\nclear_output(wait=True)\nprint('stays')",
    "clear and wait in vain": "print('stays')\nclear_output(wait=True)",
    "progress": "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), mininterval=100): pass",
    "output widget": "import ipywidgets as widgets\nout = widgets.Output()\nwith out:\n    print('caught')\n"
    "    display(HTML('<i>x</i>'))\nout",
    "output widget knows": "out.outputs",
    "error in a widget": "with out:\n    1 / 0",
    "output widget cleared": "out.clear_output()\nwith out:\n    print('again')",
    "slider": "widgets.IntSlider(3)",
    "buffers": "widgets.Image(value=b'\\x89PNG')",
    "interact": "widgets.interact(lambda x: x, x=(0, 3));",
    "warning": "import warnings\nwarnings.warn('careful')",
    "log": "import logging\nlogging.warning('heard')\nlogging.info('not heard')",
    "shell": "!echo heard; echo complaint >&2; exit 3",
    "shell's exit code": "_exit_code",
    "shell's lines": "lines = !echo heard\nlines",
    "capture": "%%capture captured\nprint('caught')\ndisplay(1)",
    "captured": "captured.stdout, len(captured.outputs)",
    "bash": "%%bash\necho heard",
    "html": "%%html\n<b>x</b>",
    "magics": "%who_ls function",
    "timing": "%time 1 + 1",
    "pager": "print?",
    "no such magic": "%no_such_magic",
    "file descriptors": "import os\nimport subprocess\nimport time\nos.write(1, b'written\\n')\n"
    "subprocess.run(['echo', 'ünder'])\nos.system('echo system')\ntime.sleep(0.3)",
    "await": "import asyncio\nawait asyncio.sleep(0.01)\nprint('awaited')",
    "task": "done = []\nasync def later():\n    await asyncio.sleep(0.01)\n    done.append(1)\n"
    "task = asyncio.create_task(later())",
    "while a task waits": "import time\ntime.sleep(0.1)",
    "task is done": "done, task.done()",
    "loop runs": "coroutine = later()\ntry:\n    asyncio.run(coroutine)\nfinally:\n    coroutine.close()",
    "class": "class Thing:\n    def __repr__(self):\n        return 'thing'",
    "pickle": "import pickle\npickle.loads(pickle.dumps(Thing())), Thing.__module__, __name__",
    "thread": "import threading\nthread = threading.Thread(target=print, args=('from a thread',))\nthread.start()\nthread.join()",
    "late thread": "def late():\n    time.sleep(0.2)\n    print('late')\nthreading.Thread(target=late).start()",
    "meanwhile": "time.sleep(0.6)\nprint('now')",
    "process": "import multiprocessing\nmultiprocessing.current_process().name, multiprocessing.get_start_method()",
    "shell's name": "get_ipython().__class__.__name__, sys.stdout.isatty(), sys.stdout.encoding, plt.get_backend()",
    "rich": "import rich\nrich.print('[bold]x[/]')",
    "history": "_, In[2], len(Out)",
    "value and semicolon": "1;",
    "nothing": "None",
    "empty": "",
    "unicode": "'ünïcödé 🎉 \\u2028', b'\\xff'",
    "input": "input('name? ')",
    "password": "import getpass\ngetpass.getpass()",
    "syntax": "def broken(:",
    "name": "no_such_name",
    "module": "import no_such_module",
    "chain": "def inner():\n    raise ValueError('inner')\ntry:\n    inner()\nexcept ValueError as error:\n"
    "    raise RuntimeError('outer') from error",
    "group": "raise ExceptionGroup('both', [ValueError(1), KeyError('a')])",
    "error while shown": "class Bad:\n    def _repr_html_(self):\n        1 / 0\nBad()",
    "memory": "np.zeros(10**14)",
    "exit": "sys.exit(3)",
    "exit with words": "raise SystemExit('words')",
    "interrupted": "raise KeyboardInterrupt",
    "base": "raise BaseException('base')",
    "after errors": "print('alive')",
    "many prints": "for i in range(30_000): print(i)",
    "large": "print('x' * 5_000_000)",
}


def normal(cell) -> list:
    "What must be equal in a cell's outputs, joined as a reader sees them."
    joined = []
    for output in cell.outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            joined.append(json.loads(json.dumps(output)))
    return json.loads(anonymous(joined))


def anonymous(content) -> str:
    "As JSON, without addresses, names made at random and times."
    text = json.dumps(content, sort_keys=True)
    times = (r"\d[\d.:e+]* ?(\\u03bc|n|m)?(s|it/s)\b", r"\d+:\d+<\d+:\d+")
    for pattern in (
        r"0x[0-9a-f]{6,}",
        re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py",
        r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])",
        r"T_[0-9a-f]{5}",
        *times,
    ):
        text = re.sub(pattern, "…", text)
    return text


def test_outputs_are_those_of_papermills_own_engine(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # Where it is set, ipykernel does not look at file descriptors
    done = {}
    for engine in ("nbclient", "warm"):
        path = write(f"{engine}.ipynb", *CELLS.values(), tags=("raises-exception",))
        notebook = nbformat.read(path, 4)
        notebook.cells.append(new_code_cell("print('never')", metadata={"tags": ["skip-execution"]}))
        nbformat.write(notebook, path)
        with pytest.raises(papermill.PapermillExecutionError):  # It looks for errors whatever the tags say
            run(path, engine, request_save_on_cell_execute=False, execution_timeout=60)
        done[engine] = read(path)
    own, warm = done["nbclient"], done["warm"]
    for name, mine, his in zip([*CELLS, "skipped"], warm.cells, own.cells, strict=True):
        assert normal(mine) == normal(his), name
        assert mine.execution_count == his.execution_count, name
    assert warm.metadata.language_info == own.metadata.language_info
    mine, his = (n.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values() for n in (warm, own))
    assert sorted(map(anonymous, mine)) == sorted(map(anonymous, his))


def test_an_error_stops_both_engines_in_the_same_cell():
    stopped = {}
    for engine in ("nbclient", "warm"):
        path = write(f"{engine}.ipynb", "print('before')", "1 / 0", "print('never')")
        with pytest.raises(papermill.PapermillExecutionError) as caught:
            run(path, engine)
        cells = read(path).cells
        marks = [(cell.execution_count, cell.metadata.papermill.status, cell.metadata.papermill.exception) for cell in cells]
        stopped[engine] = (caught.value.cell_index, caught.value.ename, marks, [normal(cell) for cell in cells])
    assert stopped["warm"] == stopped["nbclient"]


ENDS = {
    "exit": ("import os; os._exit(3)", "exited with code 3"),
    "kill": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "quit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "memory": ("import numpy; numpy.zeros(10**14)", "Unable to allocate"),
}
START_SLEEP = "import subprocess; sleep = subprocess.Popen(['sleep', '600']); print('pid', sleep.pid)"


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ends_a_notebook_is_one_clear_error(end):
    code, words = ENDS[end]
    path = write("stage.ipynb", START_SLEEP, "print('half-way')", f"print('last words', flush=False)\n{code}", "print('never')")
    with pytest.raises(StageError) as caught:
        execute_notebook(path, {}, LIMITS)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "stage.ipynb" in message
    assert re.search(r"[Cc]ell 2", message), message
    assert words in message
    cells = read(path).cells
    assert printed(cells[1]) == "half-way\n"
    assert not cells[3].outputs
    assert cells[2].metadata.papermill.status == "failed"
    assert wait_until(lambda: not alive(printed(cells[0]).split()[1]))
    if end in ("exit", "kill", "segfault"):
        assert message.index("Its last output:") < message.index("last words"), "although there was no time to send them"
    if end == "segfault":
        assert "Fatal Python error: Segmentation fault" in message
        assert "ctypes" in message


def test_a_kernel_that_dies_in_silence_says_what_was_printed_before():
    path = write("silent.ipynb", "print('from the first cell')", "import os; os.abort()")
    with pytest.raises(DeadKernelError, match=r"(?s)Cell 1 of silent.ipynb .*SIGABRT.*from the first cell"):
        run(path)
    path = write("silent.ipynb", "import os; os._exit(0)")
    with pytest.raises(DeadKernelError, match="Cell 0 of silent.ipynb did not end. The process exited with code 0.$"):
        run(path)


LEAVER = "if False:\n    import leaver  # It would end whoever imports it, even the server\nprint('fine')"


@pytest.mark.parametrize(("code", "exit_code"), [(LEAVER, 0), ("1 / 0", 1), ("import os; os._exit(0)", 138)])
def test_papermills_command_line(tmp_path, code, exit_code):
    write("in.ipynb", START_SLEEP, "print('half-way')", code)
    (tmp_path / "elsewhere").mkdir()
    Path("leaver.py").write_text("raise SystemExit(4)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    words = [PAPERMILL, "../in.ipynb", "../out.ipynb", "--engine", "warm"]
    done = subprocess.run(words, cwd="elsewhere", env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code, done.stderr
    cells = read("out.ipynb").cells
    assert printed(cells[1]) == "half-way\n"
    assert wait_until(lambda: not alive(printed(cells[0]).split()[1])), "what a notebook starts ends with it"
    if exit_code == 0:
        assert printed(cells[2]) == "fine\n"
    if exit_code == 138:
        assert "Cell 2 of in.ipynb did not end" in done.stderr


def test_what_a_notebook_starts_ends_with_it():
    path = write("in.ipynb", START_SLEEP, "!sleep 600 & echo pid $!", "import os; os._exit(1)")
    with pytest.raises(DeadKernelError):
        run(path)
    started = [printed(cell).split()[1] for cell in read(path).cells[:2]]
    assert wait_until(lambda: not any(map(alive, started)))


def test_what_a_notebook_starts_ends_with_it_under_nohup_too():
    path = write("in.ipynb", "!sleep 600 & echo pid $!", "import os; os._exit(1)")
    code = "import papermill, sys; papermill.execute_notebook(*sys.argv[1:] * 2, engine_name='warm', progress_bar=False)"
    done = subprocess.run(["nohup", sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "DeadKernelError" in done.stderr
    started = printed(read(path).cells[0]).split()[1]
    assert wait_until(lambda: not alive(started))


HEEDS = "import time\nprint('begun')\ntry:\n    {}\nfinally:\n    open('finally', 'w').close()"
DEAF = "while True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        print('no')"


@pytest.mark.parametrize("wait", ["time.sleep(60)", "import asyncio; await asyncio.sleep(60)"])
def test_a_cell_that_takes_too_long_may_clean_up(wait):
    path, start = write("slow.ipynb", HEEDS.format(wait), "print('never')"), time.monotonic()
    with pytest.raises(CellTimeoutError, match=r"(?s)Cell 0 of slow.ipynb .* 1 seconds.*begun"):
        run(path, execution_timeout=1)
    assert Path("finally").exists()
    cells = read(path).cells
    assert printed(cells[0]).startswith("begun\n")
    assert cells[0].outputs[-1].ename in ("KeyboardInterrupt", "CancelledError")
    assert not cells[1].outputs
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", ["import time\n" + DEAF, "sum(range(10**12))"], ids=["deaf", "busy in C"])
def test_a_cell_that_does_not_heed_an_interruption_is_ended(code):
    path = write("deaf.ipynb", "import os; print(os.getpid())", f"print('begun')\n{code}")
    with pytest.raises(StageError, match=r"(?s)deaf.ipynb.*Cell 1 .* 1 seconds.*begun"):
        execute_notebook(path, {}, LIMITS | {"cell_timeout": "1"})
    cells = read(path).cells
    assert wait_until(lambda: not alive(printed(cells[0])))


def test_the_whole_notebook_has_a_limit_too():
    path = write("long.ipynb", *["import time; time.sleep(0.6); print('done')"] * 9)
    with pytest.raises(StageError, match="long.ipynb.*exceeded the time limit of the notebook"):
        execute_notebook(path, {}, LIMITS | {"notebook_timeout": "2"})
    cells = read(path).cells
    assert printed(cells[0]) == "done\n"
    assert not cells[-1].outputs


NOTES = "import os; open('pids', 'w').write(f'{os.getpid()} {sleep.pid}'); os.rename('pids', 'started')"


def start_papermill(cell: str) -> tuple[subprocess.Popen, list[str]]:
    "A papermill at work, and the ids of its kernel and of what that started."
    write("in.ipynb", START_SLEEP, "print('half-way')", f"print('begun')\n{cell}", "print('never')")
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell has its children ignore it
    process = subprocess.Popen([PAPERMILL, "in.ipynb", "out.ipynb", "--engine", "warm"], stderr=subprocess.PIPE, preexec_fn=heed)
    if not wait_until(lambda: Path("started").exists(), 60):
        process.kill()
        raise AssertionError(process.communicate()[1])
    return process, Path("started").read_text().split()


def test_ctrl_c_ends_the_child_and_keeps_what_was_done():
    process, children = start_papermill(HEEDS.format(f"{NOTES}; time.sleep(60)"))
    with process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
    assert not any(map(alive, children))
    assert Path("finally").exists()
    cells = read("out.ipynb").cells
    assert printed(cells[1]) == "half-way\n"
    assert printed(cells[2]) == "begun\nbegun\n"
    assert cells[2].outputs[-1].ename == "KeyboardInterrupt"
    assert not cells[3].outputs


def test_a_killed_parent_leaves_nobody_behind():
    process, children = start_papermill(f"{NOTES}; sum(range(10**12))  # No thread of the kernel could notice")
    with process:
        process.kill()
    assert wait_until(lambda: not any(map(alive, children)))


def test_outputs_arrive_while_a_cell_runs():
    path = write("slow.ipynb", "import time\nfor i in range(40):\n    print('tick', i)\n    time.sleep(0.1)")
    thread = threading.Thread(target=run, args=(path,), kwargs={"autosave_cell_every": 0.2})
    thread.start()
    seen = set()
    while thread.is_alive():
        with suppress(nbformat.reader.NotJSONError):  # papermill is just writing
            seen.add(printed(read(path).cells[0]).count("tick"))
        time.sleep(0.1)
    assert len(seen) > 2, f"more than none and all: {seen}"
    assert printed(read(path).cells[0]).count("tick") == 40


def test_a_notebook_may_fork():
    fork = "child = multiprocessing.Process(target=print, args=('from a fork',))\nchild.start()\nchild.join(9)\nchild.exitcode"
    pool = "def double(x):\n    return 2 * x\nwith multiprocessing.Pool(2) as pool:\n    print(pool.map(double, range(5)))"
    cells = run(write("in.ipynb", "import multiprocessing", fork, pool)).cells
    assert printed(cells[1]) == "from a fork\n"
    assert cells[1].outputs[-1].data["text/plain"] == "0"
    assert printed(cells[2]) == "[0, 2, 4, 6, 8]\n"


def test_nothing_is_lost_of_what_is_written_past_python():
    code = "import os, subprocess\nsubprocess.run('seq 20000', shell=True)\nos.write(1, 'ü🎉'.encode() * 20_000);"
    cells = run(write("in.ipynb", code, *["subprocess.run(['echo', 'one']);"] * 20)).cells
    assert printed(cells[0]) == "".join(f"{number}\n" for number in range(1, 20_001)) + "ü🎉" * 20_000
    assert [printed(cell) for cell in cells[1:]] == ["one\n"] * 20, "each in its own cell"


def test_environment_folder_and_local_modules_are_those_of_the_call(monkeypatch, tmp_path):
    code = "import os, helper\nprint(os.environ.get('COLOUR'), os.path.basename(os.getcwd()), helper.name)"
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("COLOUR", name)
        Path("helper.py").write_text(f"name = 'helper of {name}'")
        assert printed(run(write("in.ipynb", code)).cells[0]) == f"{name} {name} helper of {name}\n"
    monkeypatch.delenv("COLOUR")
    assert printed(run("in.ipynb").cells[0]).startswith("None blue")
    assert printed(run("in.ipynb", cwd=str(tmp_path / "red")).cells[0]) == "None red helper of red\n"


def test_notebooks_do_not_see_each_other():
    code = "import sys, numpy\nprint(numpy.random.rand())\nprint('mine' in globals(), hasattr(sys, 'mine'))\nmine = sys.mine = 1"
    with ThreadPoolExecutor(2) as pool:
        told = [printed(done.cells[0]).splitlines() for done in pool.map(run, [write(f"{i}.ipynb", code) for i in range(4)])]
    assert {seen for _, seen in told} == {"False False"}
    assert len({number for number, _ in told}) == 4, "each draws its own numbers"


def test_what_cannot_run_says_so():
    notebook = new_notebook(
        cells=[new_code_cell("1")], metadata={"kernelspec": {"name": "ir", "language": "R", "display_name": "R"}}
    )
    nbformat.write(notebook, "r.ipynb")
    with pytest.raises(ValueError, match="executes Python notebooks"):
        run("r.ipynb")
    with pytest.raises(DeadKernelError, match="did not start within 0 seconds"):
        run(write("in.ipynb", "1"), start_timeout=0)


def test_a_request_that_breaks_off_ends_neither_the_server_nor_its_other_processes():
    "A process that is killed between its connection to the server and the request leaves such a connection."
    start_fork_server([])
    sleeping, following = (get_context("forkserver").Process(target=time.sleep, args=(seconds,)) for seconds in (60, 0))
    with hidden_main():
        sleeping.start()
    server = vars(forkserver._forkserver)
    before = server["_forkserver_pid"]
    with socket.socket(socket.AF_UNIX) as broken_off:
        broken_off.connect(server["_forkserver_address"])
    with hidden_main():
        following.start()
    following.join(60)
    assert following.exitcode == 0
    assert server["_forkserver_pid"] == before
    assert sleeping.is_alive()
    sleeping.kill()
    sleeping.join(60)
    assert sleeping.exitcode == -signal.SIGKILL

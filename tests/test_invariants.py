"""What must hold for every notebook and module, whatever they do."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from mlcycle.nb.notebook import (
    is_parameters_cell,
    read_executable_part,
    read_notebook,
    read_parameters,
    stage_notebooks,
)
from mlcycle.outcomes import STAGES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/\.", str(path.relative_to(ROOT))))
MODULES = sorted(path for path in (ROOT / "mlcycle").rglob("*.py") if path.name not in ("__init__.py", "_modidx.py"))


def named(paths):
    "Parameters for pytest with readable ids."
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def exported_cells(path: Path) -> list[str]:
    "Sources of the cells that nbdev exports."
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [source for source in sources if source.startswith("#| export")]


# Lowest first. A package imports only from floors below its own, late imports and module paths in strings included;
# packages that share a floor do not import each other.
FLOORS = [
    ["errors", "score_format"],
    ["outcomes"],
    ["core"],
    ["nb", "ml"],
    ["stores"],
    ["engine"],
    ["service"],
    ["scoring"],
    ["reports"],
    ["leakage"],
    [*STAGES],
    ["lifecycle"],
    ["api"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def dotted(path: Path) -> str:
    "A module's name without `mlcycle.`."
    return ".".join(path.relative_to(ROOT / "mlcycle").with_suffix("").parts)


def named_paths(path: Path) -> set[str]:
    "All dotted paths below `mlcycle` that a module names: imports anywhere in it, and paths in strings, such as code or classes."
    package, found = ["mlcycle", *dotted(path).split(".")[:-1]], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            found |= {full, *(f"{full}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\bmlcycle(?:\.\w+)+", node.value))
    return {name.removeprefix("mlcycle.") for name in found if name.startswith("mlcycle.")}


def module_graph() -> dict[str, set[str]]:
    "The modules that each module imports or names."
    modules = {dotted(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        prefixes = {".".join(name.split(".")[:n]) for name in named_paths(path) for n in range(1, name.count(".") + 2)}
        graph[dotted(path)] = (prefixes & modules) - {dotted(path)}
    return graph


GRAPH = module_graph()


def test_every_package_has_a_floor_and_says_what_belongs_in_it():
    assert {name.split(".")[0] for name in GRAPH} == set(LEVEL)
    for path in (ROOT / "mlcycle").rglob("__init__.py"):
        lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        assert len(lines) == 1, f"{path.relative_to(ROOT)} needs one line that says what belongs in the package"


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_go_down(module):
    room = module.split(".")[0]
    above = {other for other in GRAPH[module] if other.split(".")[0] != room and LEVEL[other.split(".")[0]] >= LEVEL[room]}
    assert not above, f"{module} imports {sorted(above)}, which is not on a floor below"


def test_no_circle_of_imports():
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_circles_and_paths_in_strings_are_noticed():
    "The two tests above see late imports, and class paths and code in strings."
    module = ROOT / "mlcycle" / "core" / "imaginary.py"
    source = (
        "def f():\n    from ..stores.events import x\nA = 'mlcycle.ml.folds.B'\nC = 'from mlcycle.api import run_lifecycle'\n"
    )
    text = Path.read_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, *a, **k: source if self == module else text(self, *a, **k))
        assert {"stores.events", "ml.folds.B", "api"} <= named_paths(module)


def test_notebooks_modules_and_tests_lie_in_the_same_folders():
    packages = {path.parent.relative_to(ROOT / "mlcycle") for path in MODULES}
    notebooks = {path.parent.relative_to(ROOT / "nbs") for path in NOTEBOOKS}
    assert packages == notebooks | {Path(stage) for stage in STAGES}, "a stage's own notebook lies on top"
    tests = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert tests - {Path(), Path("end_to_end")} <= packages


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebook_has_no_outputs_and_a_full_kernelspec(path):
    notebook = json.loads(path.read_text())
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    assert notebook["metadata"]["kernelspec"] == {"display_name": "python3", "language": "python", "name": "python3"}
    assert notebook["cells"][0]["source"][0].startswith("# ")
    assert "\n> " in "".join(notebook["cells"][0]["source"]), "the line `> …` becomes the module's docstring"


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_exported_cells_fit_a_screen_and_hold_no_magic(path):
    for source in exported_cells(path):
        assert len(source.splitlines()) < 40, source
        assert not re.search(r"^\s*[%!]", source, re.MULTILINE), source
        assert "import *" not in source, source


@pytest.mark.parametrize("stage", STAGES)
def test_stage_notebook_has_one_parameters_cell_and_imports_from_the_package(stage):
    path = stage_notebooks(ROOT)[stage]
    assert sum(is_parameters_cell(cell) for cell in read_notebook(path)["cells"]) == 1
    parameters = read_parameters(path)
    assert parameters[0].name == "run_dir"
    assert all(parameter.help for parameter in parameters), "every parameter says what it is"
    ran = "\n".join(cell["source"] for cell in read_executable_part(path)["cells"] if cell["cell_type"] == "code")
    assert f"from mlcycle.{stage}.stage import" in ran
    assert not re.search(r"^(def|class) ", ran, re.MULTILINE), "what runs is what ships"


@pytest.mark.parametrize("path", named(MODULES))
def test_public_names_differ_in_more_than_case(path):
    "Places on the published pages are found by names, whatever their case."
    names = [
        node.name.lower()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_a_public_name_means_one_thing():
    "No two modules define the same public name; functions of the command line are named as their commands are."
    homes = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name] += [dotted(path)]
    twice = {name: rooms for name, rooms in homes.items() if len({room for room in rooms if room.split(".")[0] != "cli"}) > 1}
    assert not twice


@pytest.mark.parametrize("path", named(MODULES))
def test_every_public_name_is_documented(path):
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert module.__doc__, "the notebook's line `> …`"
    for name in module.__all__:
        thing = getattr(module, name)
        if not inspect.isfunction(thing) and not inspect.isclass(thing):
            continue
        assert thing.__doc__, f"{name} has no docstring"
        if inspect.isfunction(thing):
            source = inspect.getsource(thing)
            parameters = inspect.signature(thing).parameters.values()
            bare = [p.name for p in parameters if not _helped(p.annotation) and not _documented(p.name, source)]
            assert not bare, f"{name} does not say what {bare} are"


def _helped(annotation) -> bool:
    "Whether a parameter of the command line has a help text."
    return any(getattr(each, "help", "") for each in getattr(annotation, "__metadata__", ()))


def _documented(parameter: str, source: str) -> bool:
    "Whether a parameter has a comment, or a help text for the command line."
    line = re.search(rf"^\s*\**{parameter}\b.*$", source, re.MULTILINE)
    return bool(line and ("# " in line.group() or "help=" in line.group()))


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mlcycle", ["pandas", "numpy", "sklearn", "mlflow", "pydantic"]),
        ("mlcycle.cli.app", ["pandas", "sklearn", "mlflow", "matplotlib"]),
        ("mlcycle.service.app", ["mlflow", "seaborn", "matplotlib", "IPython", "optuna", "papermill", "duckdb", "scipy.stats"]),
    ],
)
def test_imports_stay_light(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_nothing_names_this_machine_and_the_lock_names_no_host():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        text = (ROOT / name).read_text(errors="ignore")
        assert str(ROOT) not in text, name
        assert f"{Path.home()}/" not in text, name
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_lock_pins_everything_with_hashes():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if re.match(r"[a-z0-9]", line)]
    assert len(pins) > 100
    assert all("==" in line for line in pins)
    assert sum("--hash=sha256:" in line for line in lines) >= len(pins)


def test_slow_tests_exist():
    "A renamed test would silently become a fast one."
    for line in (ROOT / "tests" / "slow.txt").read_text().split():
        path, name = line.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), line

"""What must hold for every notebook and module, whatever they do."""

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mlcycle.nb.notebook import is_hinge, read_notebook, read_parameters, run_half, stage_notebooks
from mlcycle.outcomes import STAGES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/\.", str(path.relative_to(ROOT))))
MODULES = sorted(path for path in (ROOT / "mlcycle").rglob("*.py") if path.name not in ("__init__.py", "_modidx.py"))
GROUND = {
    "errors",
    "outcomes",
    "metrics",
    "criteria",
    "cleaning",
    "outliers",
    "missing",
    "folds",
    "latency",
    "blends",
    "stores",
    "lifecycle",
}


def named(paths):
    "Parameters for pytest with readable ids."
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def exported_cells(path: Path) -> list[str]:
    "Sources of the cells that nbdev exports."
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [source for source in sources if source.startswith("#| export")]


def imports(path: Path) -> set[str]:
    "Modules of ours that a module imports, anywhere in it, as absolute names without `mlcycle.`."
    package = ["mlcycle", *path.relative_to(ROOT / "mlcycle").parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            found |= {full, *(f"{full}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("mlcycle.") for name in found if name.startswith("mlcycle.")}


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
def test_stage_notebook_has_one_hinge_and_imports_from_the_package(stage):
    path = stage_notebooks(ROOT)[stage]
    assert sum(is_hinge(cell) for cell in read_notebook(path)["cells"]) == 1
    parameters = read_parameters(path)
    assert parameters[0].name == "run_dir"
    assert all(parameter.help for parameter in parameters), "every parameter says what it is"
    ran = "\n".join(cell["source"] for cell in run_half(path)["cells"] if cell["cell_type"] == "code")
    assert f"from mlcycle.{stage}.stage import" in ran
    assert not re.search(r"^(def|class) ", ran, re.MULTILINE), "what runs is what ships"


@pytest.mark.parametrize("path", named(MODULES))
def test_floors(path):
    "No stage imports another; the ground imports no stage, but for the command line, and there inside functions."
    room = path.relative_to(ROOT / "mlcycle").with_suffix("").parts
    allowed = GROUND | ({room[0]} if room[0] not in GROUND else set())
    if room == ("outcomes",) or room == ("errors",):
        allowed = set()
    if room[0] == "lifecycle" and room[-1].endswith(("cli", "commands")):
        top = {name for node in ast.parse(path.read_text()).body for name in _imported(node)}
        assert not top & set(STAGES), "the command line reaches up late"
        allowed = GROUND | set(STAGES)
    rooms = {name.split(".")[0] for name in imports(path)} - {"__version__"}
    assert rooms <= allowed, f"{'.'.join(room)} imports {rooms - allowed}"


@pytest.mark.parametrize("path", named(MODULES))
def test_public_names_differ_in_more_than_case(path):
    "Places on the published pages are found by names, whatever their case."
    names = [
        node.name.lower()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def _imported(node) -> set[str]:
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


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
        ("mlcycle.service.app", ["mlflow", "seaborn", "matplotlib", "IPython", "optuna", "papermill", "duckdb"]),
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

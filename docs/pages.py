"""A notebook becomes a page: exported cells turn into reference, and their source folds away."""

import ast
import re
import tempfile
from pathlib import Path

from fastcore.nbio import NbCell, mk_cell, read_nb, write_nb
from nbdev.process import NBProcessor
from reference import DEFINITIONS, describe, public

IMPORTS = (ast.Import, ast.ImportFrom)
MACHINE_PATH = re.compile(rf"({re.escape(str(Path(__file__).resolve().parents[1]))}|{re.escape(tempfile.gettempdir())}/\w+)/")


def module_of(cells: list[NbCell]) -> str:
    """The module that a notebook exports to."""
    return "mlcycle." + next(cell.directives_["default_exp"] for cell in cells if "default_exp" in cell.directives_)


def exported_names(notebook: Path) -> dict[str, str]:
    """The label of each public name of a notebook."""
    cells = NBProcessor(notebook).nb.cells
    return {node.name: f"{module_of(cells)}.{node.name}" for cell in cells for node in public(cell)}


def fold(cell: NbCell) -> NbCell:
    """A cell whose source is shown on demand."""
    names = [node.name for node in cell.parsed_() if isinstance(node, DEFINITIONS)]
    prompt = f"Source of {', '.join(names)}" if names else "Imports"
    cell.metadata = {"tags": ["hide-input"], "mystnb": {"code_prompt_show": prompt, "code_prompt_hide": prompt}}
    return cell


def link(text: str, labels: dict[str, str]) -> str:
    """Prose in which names of ours lead to their reference; a plain word such as `run` may mean something else."""

    def target(found: re.Match) -> str:
        name = found[1]
        ours = name in labels and ("_" in name or not name.islower())
        return f"[`{name}`](#{labels[name]})" if ours else found[0]

    return re.sub(r"(?<!`)`(\w+)`(?!`)", target, text)


def clean(cell: NbCell) -> NbCell:
    """A cell whose outputs say what a reader wants to know: no machine paths, no return values of plots."""
    drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
    cell.outputs = [out for out in cell.outputs if not (drawn and list(out.get("data", {})) == ["text/plain"])]
    for output in cell.outputs:
        texts = output.get("data", output)
        for kind in ("text", "text/plain", "text/html", "text/markdown"):
            if kind in texts:
                texts[kind] = MACHINE_PATH.sub("", "".join(texts[kind]))
    return cell


def run_first(cells: list[NbCell]) -> list[NbCell]:
    """The cells of a stage: title, run half, and below a heading of its own the library half; of a part: as they are."""
    start = next((number for number, cell in enumerate(cells) if re.match(r"## Run\b", cell.source)), None)
    if start is None:
        return cells
    library = cells[1:start]
    for cell in library:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^(#{2,3}) ", r"#\1 ", cell.source, flags=re.MULTILINE)
    heading = mk_cell("## Library\n\nThe functions that the run calls, with examples on small tables.", "markdown")
    return [cells[0], *cells[start:], heading, *library]


def write_page(notebook: Path, page: Path, labels: dict[str, str]) -> None:
    """Turn an executed notebook into the page that Sphinx reads."""
    nb, cells, level = NBProcessor(notebook).nb, [], 1
    module = module_of(nb.cells)
    for cell in run_first(nb.cells):
        nodes = cell.parsed_() or []
        if cell.cell_type == "markdown":
            for marks in re.findall(r"^(#+) ", cell.source, re.MULTILINE):
                level = min(len(marks) + 1, 4)  # A function stands below the heading before it
            cell.source = link(cell.source, labels)
            cells += [cell]
        elif "export" not in cell.directives_:
            cells += [fold(cell) if all(isinstance(node, IMPORTS) for node in nodes) else clean(cell)] if nodes else []
        elif any(isinstance(node, DEFINITIONS) for node in nodes):
            cells += [describe(node, cell.source, f"{module}.{node.name}", level) for node in public(cell)]
            cells += [fold(cell)]
        elif any(isinstance(node, ast.Assign | ast.AnnAssign) for node in nodes):
            cells += [cell]  # A constant speaks for itself; imports are left out
    cells[0].source += f"\n\nModule `{module}`."
    nb.cells = cells
    page.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, page)


def write_contents(path: Path, intro: str, groups: dict[str, list[Path]]) -> None:
    """A page that lists others, and so places them in the navigation."""
    parts = [f"# {path.stem.title()}", intro]
    for group, pages in groups.items():
        rows, entries = ["| Notebook | About |", "|---|---|"], []
        for page in pages:
            lines = read_nb(page).cells[0].source.splitlines()
            title, about = (next(line for line in lines if line.startswith(mark))[2:] for mark in ("# ", "> "))
            title = f"{page.stem[1]} {title}" if page.stem[:2].isdigit() else title
            name = page.relative_to(path.parent).with_suffix("").as_posix()
            rows += [f"| [{title}](/{name}.ipynb) | {about} |"]
            entries += [f"{title} </{name}>"]
        tree = ["```{toctree}", ":hidden:", f":caption: {group.capitalize()}", "", *entries, "```"]
        parts += [f"## {group.capitalize()}", "\n".join(rows), "\n".join(tree)]
    path.write_text("\n\n".join(parts))

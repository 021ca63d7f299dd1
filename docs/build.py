"""Build the site: run the notebooks, turn them into pages, let Sphinx render them."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb, write_nb
from pages import exported_names, write_contents, write_page
from rich.progress import Progress
from sphinx.cmd.build import build_main

from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.run_folders import start_run
from mlcycle.nb.notebook import is_parameters_cell
from mlcycle.outcomes import STAGES
from mlcycle.validation import run_checks  # noqa: F401 - Adds the checks
from mlcycle.validation.checks import CHECKS

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_docs"  # Ignored by git
PROJECT, NOTEBOOKS, SOURCE, HTML = BUILD / "project", BUILD / "nbs", BUILD / "source", BUILD / "html"

# As `nbdev-test` does it, in a process of its own: what one notebook sets, another does not see.
RUN = "import sys; from nbdev.test import test_nb; sys.exit(not test_nb(sys.argv[1], save=True)[0])"


def find_notebooks(folder: Path) -> dict[str, list[Path]]:
    """The notebooks that become pages: `stages` in order, and the others by folder."""
    groups = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*.ipynb") if not re.search(r"/\.", str(path.relative_to(folder)))):
        root = "stages" if path.stem[:2].isdigit() else "vocabulary"
        groups[root if path.parent == folder else path.parent.relative_to(folder).as_posix()].append(path)
    return groups


def copy_notebooks() -> None:
    """Fresh copies to be executed; those of the stages belong to one run on the bundled sample."""
    for folder in (NOTEBOOKS, PROJECT):
        shutil.rmtree(folder, ignore_errors=True)
    PROJECT.mkdir(parents=True)
    (PROJECT / "settings.ini").touch()  # A project of its own: what you set for yours changes nothing here
    for notebook in (notebook for group in find_notebooks(ROOT / "nbs").values() for notebook in group):
        copy = NOTEBOOKS / notebook.relative_to(ROOT / "nbs")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, copy)
    plan = make_plan_from_parameters({"source": "sample"}, PROJECT)
    run = start_run(plan, plan.workspace.root / "runs" / "sample", "sample")
    for notebook in find_notebooks(NOTEBOOKS)["stages"]:
        nb = read_nb(notebook)
        hinge = next(number for number, cell in enumerate(nb.cells) if is_parameters_cell(cell))
        for cell in nb.cells:  # The card lies beside the page of a run, not beside this one
            cell.source = cell.source.replace("[model card](model_card.html)", "model card")
        nb.cells.insert(hinge + 1, mk_cell(f"run_dir = {str(run.folder)!r}", metadata={"tags": ["remove-cell"]}))
        write_nb(nb, notebook)


def run_notebooks() -> None:
    """Run all, the stages beside the parts; exit if one fails."""
    groups = find_notebooks(NOTEBOOKS)
    stages = groups.pop("stages")
    parts = [notebook for notebooks in groups.values() for notebook in notebooks]
    with Progress() as progress, ThreadPoolExecutor(2) as pool:
        bar = progress.add_task("Running notebooks", total=len(stages) + len(parts))

        def fails(notebook: Path) -> bool:
            start, command = time.perf_counter(), [sys.executable, "-c", RUN, str(notebook)]
            done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            how = f"failed\n{done.stderr}" if done.returncode else f"{time.perf_counter() - start:.0f} s"
            line = f"{notebook.relative_to(NOTEBOOKS)}: {how}"
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)
            return done.returncode != 0

        failed = sum(pool.map(lambda row: sum(map(fails, row)), (stages, parts)))
    if failed:
        sys.exit(f"The site is not built: {failed} of {len(stages) + len(parts)} notebooks failed.")


def describe_checks() -> str:
    """The page of the checks: a section for each code."""
    intro = "Stage 5 runs these checks and shows what they find; `mlcycle checks` lists them. An error means that scores "
    intro += "cannot be trusted, a warning needs a decision before the model is used; info is advice for reading the results."
    sections = [
        f"(check-{each.code.lower()})=\n## {each.code} {each.title}\n\nSeverity: {each.severity}. Stage: {each.stage}.\n\n"
        f"Finding: {each.meaning}\n\nWhat to do: {each.remedy}"
        for _, each in sorted(CHECKS.items())
    ]
    return "\n\n".join(["# Checks", intro, *sections]) + "\n"


def write_source() -> None:
    """Everything that Sphinx reads."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    groups = find_notebooks(NOTEBOOKS)
    notebooks = [notebook for group in groups.values() for notebook in group]
    labels = {name: label for notebook in notebooks for name, label in exported_names(notebook).items()}
    for notebook in notebooks:
        write_page(notebook, SOURCE / notebook.relative_to(NOTEBOOKS), labels)
    for page in ("index.md", "guide.md", "scale.md", "scheduling.md", "glossary.md"):
        shutil.copy(ROOT / "docs" / page, SOURCE)
    (SOURCE / "checks.md").write_text(describe_checks())
    pages = {name: [SOURCE / path.relative_to(NOTEBOOKS) for path in group] for name, group in groups.items()}
    of_stages = [name for stage in STAGES for name in pages if name.split("/")[0] == stage]
    stages, parts = {"In order": pages.pop("stages")}, {name: pages.pop(name) for name in of_stages}
    write_contents(SOURCE / "stages.md", "One notebook each, here with one run on the bundled sample.", stages)
    write_contents(SOURCE / "parts.md", "What each stage is made of: data in, data out.", parts)
    write_contents(
        SOURCE / "foundations.md", "What all stages use: records, metrics, stores, the engine, the service, runs.", pages
    )


def main() -> None:
    """Run, write, render."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-run", action="store_true", help="use the outputs of the last build")
    if not parser.parse_args().no_run:
        copy_notebooks()
        run_notebooks()
    write_source()
    shutil.rmtree(HTML, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs"), "-d", str(BUILD / "doctrees")]
    if build_main([*options, str(SOURCE), str(HTML)]):
        sys.exit("The site is not built: Sphinx found what is listed above.")
    print(f"The site is in {HTML.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()

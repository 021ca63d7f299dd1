"""Cleaning and exporting the notebooks must change nothing: run both on a copy and compare."""

import shutil
import subprocess
import sys
from filecmp import cmp
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent


def files(root: Path) -> dict[str, Path]:
    "What cleaning and exporting may change, by name."
    found = [*root.glob("nbs/**/*.ipynb"), *root.glob("mlcycle/**/*.py")]
    return {str(path.relative_to(root)): path for path in found if ".ipynb_checkpoints" not in path.parts}


def differences(root: Path = ROOT) -> list[str]:
    "Names of files that `nbdev-clean` and `nbdev-export` would change, add or leave without a notebook."
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(root / "pyproject.toml", copy)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for init in root.glob("mlcycle/**/__init__.py"):  # Written by hand; all else must come from a notebook
            (copy / init.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(init, copy / init.relative_to(root))
        for command in ("clean", "export"):
            subprocess.run([Path(sys.executable).parent / f"nbdev-{command}"], cwd=copy, check=True)
        ours, made = files(root), files(copy)
        return sorted(
            name
            for name in ours.keys() | made.keys()
            if name not in ours or name not in made or not cmp(ours[name], made[name], shallow=False)
        )


if __name__ == "__main__":
    if changed := differences():
        sys.exit("Not clean or not exported; run make format:\n  " + "\n  ".join(changed))

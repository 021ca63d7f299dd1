"""Patterns of missing values: counted as they are, whatever the number of columns."""

import numpy as np
import pandas as pd

from mlcycle.ml.missing import NOTHING_MISSING, find_missing_patterns


def test_patterns_of_many_columns_are_counted_one_by_one():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((5000, 30))).rename(columns=str)
    table = table.mask(rng.random(table.shape) < 0.03)
    found = find_missing_patterns(table, max_patterns=5000).set_index("columns").rows
    told = table.isna().apply(lambda row: ", ".join(table.columns[row]) or NOTHING_MISSING, axis=1).value_counts()
    assert found.to_dict() == told.to_dict()


def test_nothing_missing_and_no_rows():
    table = pd.DataFrame({"a": [1, 2]})
    assert find_missing_patterns(table).to_dict("list") == {"columns": [NOTHING_MISSING], "rows": [2], "share": [1.0]}
    assert find_missing_patterns(table.head(0)).empty
    assert find_missing_patterns(pd.DataFrame({"a": [None, 1.0]})).columns.tolist() == ["columns", "rows", "share"]

"""Label errors: how many labels are marked where none is wrong, and what is found where some are changed."""

import sys
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parent))
from labelling_tables import (  # noqa: E402 - needs the path
    CLASSES,
    NEW_CLASSES,
    NEW_NUMBERS,
    NUMBERS,
    corrupt_numbers,
    flip_labels,
    labelling_problem,
)
from results_pages import markdown_table, write_section  # noqa: E402

from mlcycle.data.labelling.label_errors import LabelErrors, find_label_errors  # noqa: E402
from mlcycle.data.labelling.quick_probabilities import encode_labelling_rows  # noqa: E402


def suspicion(found: LabelErrors, rows) -> np.ndarray:
    """How suspect each row is, by its position in the ranking; rows that were not judged are last."""
    places = found.suspects["item"].reset_index().set_index("item")["index"]
    return -places.reindex(rows.index).fillna(len(rows)).to_numpy()


def judged(found: LabelErrors, rows, changed: np.ndarray) -> list[str]:
    """Area under the ROC curve of the ranking, precision and recall of the marked labels."""
    marked = rows.index.isin(found.suspects.loc[found.suspects["marked"], "item"])
    precision = f"{changed[marked].mean():.2f}" if marked.any() else "-"
    return [f"{roc_auc_score(changed, suspicion(found, rows)):.3f}", precision, f"{marked[changed].mean():.2f}"]


def clean_counts(tables: dict) -> list[list[str]]:
    """Marked labels of tables as they are."""
    lines = []
    for name, make in tables.items():
        rows, target = make()
        problem = labelling_problem(rows, target)
        found = find_label_errors(rows, rows[target], problem)
        n = found.n_labels
        by_cleanlab = found.suspects["confident_learning"].mean() if n else np.nan
        lines.append([name, f"{n:,}", f"{by_cleanlab:.1%}", f"{found.n_marked / max(n, 1):.1%}",
                      f"{found.error_share:.1%}", f"{found.low:.1%} to {found.high:.1%}"])  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def flipped_counts(tables: dict, shares: tuple = (0.02, 0.1), seeds: int = 1) -> list[list[str]]:
    """What is found where a share of the labels was changed at random, and where a fifth of one class was."""
    lines = []
    for name, make in tables.items():
        rows, target = make()
        problem = labelling_problem(rows, target)
        features = encode_labelling_rows(rows, problem)
        for share, only in [*((share, None) for share in shares), (0.2, problem.classes[-1])]:
            labels, changed = flip_labels(rows[target], problem.classes, share, seed=1, only=only)
            found = find_label_errors(rows, labels, problem, features=features)
            what = f"{share:.0%} of all" if only is None else "20 % of one class"
            lines.append([name, what, f"{changed.mean():.1%}", f"{found.error_share:.1%}",
                          f"{found.low:.1%} to {found.high:.1%}", *judged(found, rows, changed)])  # fmt: skip
            print(lines[-1], flush=True)
    return lines


def number_counts(tables: dict) -> list[list[str]]:
    """Marked numbers of tables as they are, and where 5 % were changed."""
    lines = []
    for name, make in tables.items():
        rows, target = make()
        problem = labelling_problem(rows, target, regression=True)
        features = encode_labelling_rows(rows, problem)
        clean = find_label_errors(rows, rows[target], problem, features=features)
        for kind in ("ten times", "other row", "a third"):
            labels, changed = corrupt_numbers(rows[target], 0.05, 1, kind)
            found = find_label_errors(rows, labels, problem, features=features)
            lines.append(
                [name, f"{clean.n_labels:,}", f"{clean.n_marked / clean.n_labels:.1%}", kind, *judged(found, rows, changed)]
            )
            print(lines[-1], flush=True)
    return lines


def holdout_error(features: np.ndarray, labels, actual, holdout: np.ndarray, model: str) -> float:
    """Error on the holdout of a model with scikit-learn's default settings, fitted on given labels of the other rows."""
    made = LogisticRegression(max_iter=500) if model == "logistic regression" else HistGradientBoostingClassifier(random_state=0)
    made.fit(features[~holdout], labels[~holdout].astype(int))
    return float((made.predict(features[holdout]) != actual[holdout]).mean())


def corrected_digits(seeds: int = 5) -> list[list[str]]:
    """Digits with 10 % of the labels changed: ranking, and error on a holdout before and after correcting the top 10 %."""
    rows, target = CLASSES["digits"]()
    problem, lines = labelling_problem(rows, target), []
    features = encode_labelling_rows(rows, problem)
    for seed in range(seeds):
        holdout = np.random.default_rng(seed).permutation(len(rows)) < 0.3 * len(rows)
        labels, changed = flip_labels(rows[target], problem.classes, 0.1, seed)
        train = labels.where(~holdout)
        found = find_label_errors(rows, train, problem, features=features, seed=seed)
        top = found.suspects["item"].head(round(0.1 * found.n_labels))
        corrected = train.copy()
        corrected.loc[top] = rows.loc[top, target]
        errors = [holdout_error(features, given, rows[target], holdout, model)
                  for model in ("logistic regression", "boosting") for given in (train, corrected, rows[target])]  # fmt: skip
        auroc, precision, recall = judged(found, rows[~holdout], changed[~holdout])
        lines.append([str(seed), auroc, precision, recall, f"{found.error_share:.1%}", *(f"{each:.3f}" for each in errors)])
        print(lines[-1], flush=True)
    return lines


def write_label_errors() -> None:
    """Measure all, and write the section "Label errors" of the results."""
    clean = ["table", "labels", "marked by confident learning alone", "marked", "estimated share", "95 % interval"]
    flipped = ["table", "changed", "changed share", "estimated share", "95 % interval", "AUROC of ranking", "precision", "recall"]
    numbers = ["table", "labels", "marked as they are", "5 % changed to", "AUROC of ranking", "precision", "recall"]
    steps = [f"{model}: {what}" for model in ("logistic regression", "boosting") for what in ("error", "corrected", "all right")]
    digits = ["seed", "AUROC of ranking", "precision", "recall", "estimated share", *steps]
    text = f"""`python benchmarks/labelling.py errors`, default settings. Precision and recall are those of the marked labels.

### Tables as they are

Labels of simulated tables and of flights are right by construction; others may contain a few errors. Tables in the second
part were not used while the defaults were chosen.

{markdown_table(clean, clean_counts(CLASSES) + clean_counts(NEW_CLASSES))}

### Labels changed at random

The model of the errors assumes that each class is as likely to be wrong; "20 % of one class" breaks this assumption.

{markdown_table(flipped, flipped_counts(CLASSES) + flipped_counts(NEW_CLASSES))}

### Digits with 10 % of the labels changed

Error on a holdout of 30 % of the rows, of models with scikit-learn's default settings: fitted on the changed labels, after
the 10 % most suspect labels were corrected, and with all labels right.

{markdown_table(digits, corrected_digits())}

### Numbers

{markdown_table(numbers, number_counts(NUMBERS) + number_counts(NEW_NUMBERS))}
"""
    write_section("labelling", "Label errors", text)


if __name__ == "__main__":
    write_label_errors()

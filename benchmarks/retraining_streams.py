"""Streams with known drift, the losses of a model on them, and when river's detectors raise an alarm.

Run by `retraining_detectors.py` in an environment of its own, with river, scikit-learn and numpy only.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
from retraining_streams_layout import CHANGE, HOLDOUT, ROWS, SUDDEN, TRAIN, WIDTH
from river import drift
from river.datasets import synth
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

DETECTORS = {
    "ADWIN": drift.ADWIN,
    "KSWIN": lambda: drift.KSWIN(seed=0),
    "Page-Hinkley": lambda: drift.PageHinkley(mode="up"),
}


def switch(before, after, seed: int, width: int):
    """A stream that changes from one concept to another one within some rows."""
    return synth.ConceptDriftStream(before, after, seed=seed, position=TRAIN + HOLDOUT + CHANGE + width // 2, width=width)


def streams(seed: int) -> dict:
    """By name: a stream that changes, and the same one without change."""
    sea = [synth.SEA(variant=variant, noise=0.1, seed=seed) for variant in (0, 0, 0, 3, 3)]
    agrawal = [synth.Agrawal(classification_function=function, perturbation=0.05, seed=seed) for function in (2, 2, 4)]
    mixed = [synth.Mixed(classification_function=0, seed=seed), synth.Mixed(classification_function=1, seed=seed + 1)]
    start = TRAIN + HOLDOUT + CHANGE
    friedman = synth.FriedmanDrift(drift_type="lea", position=(start, start + 1, start + 2), seed=seed)
    return {
        "SEA, sudden": (switch(sea[1], sea[3], seed, SUDDEN), sea[0]),
        "SEA, gradual": (switch(sea[2], sea[4], seed, WIDTH), None),
        "Agrawal, sudden": (switch(agrawal[1], agrawal[2], seed, SUDDEN), agrawal[0]),
        "Mixed, sudden": (switch(mixed[0], mixed[1], seed, SUDDEN), synth.Mixed(classification_function=0, seed=seed)),
        "Friedman, sudden": (friedman, synth.Friedman(seed=seed)),
    }


def losses(stream) -> tuple[np.ndarray, np.ndarray]:
    """The losses of a boosting model, fitted to the first rows, on the next ones and on the stream; in [0, 1]."""
    rows = list(itertools.islice(iter(stream), TRAIN + HOLDOUT + ROWS))
    x, y = np.array([list(map(float, row.values())) for row, _ in rows]), np.array([target for _, target in rows])
    if y.dtype == float:
        errors = np.abs(HistGradientBoostingRegressor(random_state=0).fit(x[:TRAIN], y[:TRAIN]).predict(x[TRAIN:]) - y[TRAIN:])
        found = np.minimum(errors / np.quantile(errors[:HOLDOUT], 0.99), 1)
    else:
        found = HistGradientBoostingClassifier(random_state=0).fit(x[:TRAIN], y[:TRAIN]).predict(x[TRAIN:]) != y[TRAIN:]
    return found[:HOLDOUT].astype(float), found[HOLDOUT:].astype(float)


def alarms(name: str, values: np.ndarray) -> list[int]:
    """The rows at which a detector with its default settings reports drift; of ADWIN those at which the mean rises."""
    detector, found = DETECTORS[name](), []
    for place, value in enumerate(values):
        before = detector.estimation if name == "ADWIN" else 0
        detector.update(value)
        if detector.drift_detected and (name != "ADWIN" or detector.estimation > before):
            found.append(place)
    return found


def main(folder: Path, seeds: range) -> None:
    """Write a file for each seed, with the losses and the alarms."""
    for seed in seeds:
        arrays = {}
        for name, pair in streams(seed).items():
            for kind, stream in zip(("changed", "unchanged"), pair, strict=True):
                if stream is not None:
                    key = f"{name}|{kind}"
                    arrays[f"{key}|holdout"], arrays[f"{key}|stream"] = holdout, values = losses(stream)
                    for detector in DETECTORS:
                        arrays[f"{key}|{detector}"] = np.array(alarms(detector, values), dtype=int)
        draft = folder / f"draft-{seed}.npz"
        np.savez_compressed(draft, **arrays)
        draft.rename(folder / f"{seed}.npz")
        print(seed, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))

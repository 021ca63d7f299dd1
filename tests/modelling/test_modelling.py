"""Stage 4: candidates, the search, what is left when it is stopped, and which model is chosen."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import TABLES
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from mlcycle.errors import ParameterError, StageError, TargetError
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.ml.folds import make_folds
from mlcycle.ml.latency import measure_latency
from mlcycle.ml.meta_estimators import CalibratedClassifier, apply_temperature_scaling
from mlcycle.ml.predictions import Predictions, predict, predictions_from_values
from mlcycle.modelling import (
    boosters,
    calibration,
    candidates,
    cross_validation,
    ensemble,
    final_model,
    model_selection,
    stage,
    trials,
)
from mlcycle.modelling.candidates import CANDIDATES, candidate_model, check_candidate_types
from mlcycle.modelling.choice import build_pipeline, order_by_selection_rule
from mlcycle.modelling.cross_validation import CrossValidation, _load_encoded_fold, early_stopping_split
from mlcycle.modelling.ensemble import drop_clearly_worse
from mlcycle.modelling.final_model import (
    fit_final_model,
    fit_first_acceptable_model,
    make_unfitted_final_model,
    measure_learning_curve,
)
from mlcycle.modelling.model_selection import ModelSelection, compare_models
from mlcycle.modelling.search import SearchBudget, search_models_and_hyperparameters
from mlcycle.modelling.settings import ModellingSettings
from mlcycle.modelling.stage import check_columns_vary, prepare_cross_validation_data
from mlcycle.modelling.studies import open_study
from mlcycle.modelling.trials import Trial, run_trial, shutdown_workers_on_exit
from mlcycle.modelling.weights import sample_weights
from mlcycle.outcomes import Problem
from mlcycle.stores.models.model_files import TRUSTED_TYPES, load_model, save_model

KINDS = {"a": "number", "b": "number", "word": "category"}
CLASSES = {"binary": ["no", "yes"], "multiclass": ["high", "low", "middle"], "regression": []}
METRIC = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}


def make_problem(task="binary", **more) -> Problem:
    "A question about the column `y`."
    facts = {"decision": "-", "question": "-", "owner": "-", "source": "-", "source_sha256": "-", "target": "y", "task": task}
    facts |= {"classes": CLASSES[task], "positive": "yes" if task == "binary" else None, "rows": 100, "criteria": []}
    return Problem(**facts | {"metric": METRIC[task], "metrics": [METRIC[task]]} | more)


def make_table(task="binary", rows=240, seed=0) -> pd.DataFrame:
    "Numbers with gaps, words, and a target that depends on both."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "word": rng.choice(["u", "v", "w"], rows)})
    value = table.a + (table.word == "u") - 0.5 * table.b**2 + 0.5 * rng.normal(size=rows)
    table.loc[rng.random(rows) < 0.1, "b"] = np.nan
    cuts = {"binary": [0], "multiclass": [-0.5, 0.5]}.get(task)
    order = ["no", "yes"] if task == "binary" else ["low", "middle", "high"]
    table["y"] = value if cuts is None else np.array(order)[np.digitize(value, cuts)]
    return table


def cv_of(folder, problem=None, table=None, folds=3, **given_settings) -> CrossValidation:
    "A cross-validation with the preprocessor of stage 3."
    problem = problem or make_problem()
    table = make_table(problem.task) if table is None else table
    preprocessor = build_preprocessor(KINDS, classification=problem.task != "regression")
    _load_encoded_fold.cache_clear()  # pytest may use the folder of an earlier test again
    Path(folder).mkdir(parents=True, exist_ok=True)
    return prepare_cross_validation_data(
        problem, preprocessor, list(KINDS), table, ModellingSettings(**{"folds": folds, "jobs": 1} | given_settings), Path(folder)
    )


def hold(tmp_path, rows=None, problem=None, **given_settings) -> ModelSelection:
    "A small selection."
    cv = cv_of(tmp_path / "folds", problem, rows, given_settings.pop("folds", 3), **given_settings)
    quick = {"models": ["linear"], "trials": 1, "repeats": 1, "jobs": 1, "folds": len(cv.folds)} | given_settings
    rows = make_table(cv.problem.task) if rows is None else rows
    return compare_models(cv, ModellingSettings(**quick), tmp_path / "study", rows, len(rows))


@pytest.fixture
def own():
    "What a test registers is forgotten."
    before = dict(CANDIDATES)
    yield
    CANDIDATES.clear()
    CANDIDATES.update(before)


@pytest.fixture
def counted(monkeypatch):
    "The name and the settings of each candidate, each time that it is fitted to a fold."
    fitted, fit = [], trials.fit_and_score_fold

    def count(model, parameters, *more):
        fitted.append((model.name, str(parameters)))
        return fit(model, parameters, *more)

    monkeypatch.setattr(trials, "fit_and_score_fold", count)
    return fitted


def planted(cv: CrossValidation, *scores: list[float], models=("linear", "forest", "lightgbm")) -> list[Trial]:
    "Trials with given scores that said nothing."
    return [Trial(0, model, "trees", {}, list(each)) for model, each in zip(models, scores, strict=False)]


# Candidates of one's own


def test_a_candidate_of_ones_own_competes_wins_is_saved_and_loaded(tmp_path, own):
    @candidate_model(
        "own forest", search_space=lambda trial: {"max_depth": trial.suggest_int("own forest_depth", 3, 6)}, complexity=1
    )
    def make(task, seed, max_depth=5):
        return RandomForestClassifier(30, max_depth=max_depth, random_state=seed)

    table = make_table()
    table["y"] = np.where(table.a.abs() > 0.7, "yes", "no")  # A straight line cannot say this
    selection = hold(tmp_path, table, models=["own forest", "linear"], trials=2)
    assert selection.ranking[0].model == "own forest"
    assert {trial.model for trial in selection.search.trials} <= {"own forest", "linear"}
    model, taken = fit_first_acceptable_model(selection, table[[*KINDS, "y"]], None)
    again = load_model(tmp_path / "model.skops", save_model(model, tmp_path / "model.skops"))
    assert (again.predict(table[list(KINDS)]) == model.predict(table[list(KINDS)])).all()
    assert taken["p50"] > 0


class Odd(ClassifierMixin, BaseEstimator):
    "A classifier that answers in an odd way."

    def __init__(self, way="NaN"):
        self.way = way

    def fit(self, X, y):
        "Learn which classes there are, or fail."
        if self.way == "raises":
            raise RuntimeError("the moon is full")
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        "Nonsense."
        said = np.full((len(X), 2), 0.5)
        return {"NaN": said * np.nan, "too few": said[:-1], "too narrow": said[:, :1]}[self.way]


@pytest.fixture
def reviewed(monkeypatch):
    "The estimators of this module may be saved."
    monkeypatch.setattr(
        "mlcycle.stores.models.model_files.TRUSTED_TYPES",
        [*TRUSTED_TYPES, *(f"test_modelling.{each.__name__}" for each in (Odd, Slow))],
    )


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("raises", "RuntimeError: the moon is full"),
        ("NaN", "80 of 80 predictions are not numbers"),
        ("too few", "shape (79,) for 80 rows"),
        ("too narrow", "IndexError"),
    ],
)
def test_an_odd_candidate_is_out_with_its_reason_and_stops_nobody(way, reason, tmp_path, own, reviewed):
    candidate_model("odd")(lambda task, seed: Odd(way))
    selection = hold(tmp_path, models=["odd", "linear"])
    assert selection.ranking[0].model == "linear"
    assert reason in selection.excluded["odd"]
    assert all(line.model_type != "odd" for line in selection.leaderboard())


def test_if_all_fail_each_reason_is_told(tmp_path, own, reviewed):
    candidate_model("one")(lambda task, seed: Odd("raises"))
    candidate_model("two")(lambda task, seed: Odd("NaN"))
    with pytest.raises(StageError, match=r"one: RuntimeError: the moon is full; two: ValueError: 80 of 80") as told:
        hold(tmp_path, models=["one", "two"])
    assert told.value.found == "No candidate could be fitted and scored."
    assert not list(tmp_path.glob("study/*one*")), "what failed is tried again"


def test_a_regressor_that_answers_in_columns_is_out(tmp_path, own, monkeypatch):
    class Column(RegressorMixin, BaseEstimator):
        def fit(self, X, y):
            return self

        def predict(self, X):
            return np.zeros((len(X), 1))

    monkeypatch.setattr(candidates, "untrusted_types", lambda model: [])
    candidate_model("column")(lambda task, seed: Column())
    selection = hold(tmp_path, problem=make_problem("regression"), models=["column", "linear"])
    assert "shape (80, 1) for 80 rows" in selection.excluded["column"]


def test_a_type_that_was_not_reviewed_is_told_before_the_search(tmp_path, own, counted):
    candidate_model("odd")(lambda task, seed: Pipeline([("model", Odd())]))
    with pytest.raises(ParameterError, match=r"'odd' contains types that are not trusted: test_modelling.Odd"):
        hold(tmp_path, models=["linear", "odd"])
    assert not counted
    check_candidate_types([CANDIDATES[name] for name in ("linear", "lightgbm", "network")], "regression")


def test_whoever_could_not_be_loaded_gives_way(tmp_path, monkeypatch):
    selection = hold(tmp_path, models=["linear", "neighbours"], ensemble=False)
    selection.ranking.sort(key=lambda trial: trial.model == "neighbours")
    monkeypatch.setattr(final_model, "untrusted_types", lambda model: [] if "KNeigh" in repr(model) else ["a.Type"])
    table = make_table()
    fit_first_acceptable_model(selection, table[[*KINDS, "y"]], None)
    assert selection.chosen.model == "neighbours"
    assert selection.leaderboard()[0].model_type == "neighbours"
    assert any("a.Type" in why for why in selection.excluded.values())


def test_a_name_that_cannot_be(own):
    for name in ("../up", "", "ensemble", "dummy"):
        with pytest.raises(ParameterError, match="cannot be called"):
            candidate_model(name)
    with pytest.raises(ParameterError, match="'forests' is not an encoding"):
        candidate_model("mine", encoding="forests")


def test_a_changed_candidate_is_another_study(own):
    codes = []
    for depth in (1, 2):
        space = {1: lambda trial: {"max_depth": 1}, 2: lambda trial: {"max_depth": 2}}[depth]
        candidate_model("mine", search_space=space)(lambda task, seed, **more: DecisionTreeClassifier(**more))
        codes.append(CANDIDATES["mine"].user_code)
    assert codes[0] != codes[1]


# Bad input


def test_a_fold_without_a_class(tmp_path):
    table = make_table()
    table.loc[5:, "y"] = "no"
    table.loc[:5, "y"] = "yes"
    with pytest.raises(TargetError, match=r"Fold 1 of 3 has no validation row of class 'yes'"):
        cv_of(tmp_path, make_problem(time="day"), table)


def test_constant_features():
    with pytest.raises(StageError, match="All 2 columns are constant"):
        check_columns_vary(pd.DataFrame({"a": [1, 1], "b": [None, None]}), ["a", "b"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trials": 0}, "trials = 0"),
        ({"search_seconds": 0}, "search_seconds = 0"),
        ({"search_seconds": float("nan")}, "search_seconds = nan"),
        ({"folds": 1}, "folds = 1"),
        ({"repeats": 0}, "repeats = 0"),
        ({"jobs": 0}, "jobs = 0"),
        ({"search_rows": -5}, "search_rows = -5"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    with pytest.raises(ParameterError, match=said):
        ModellingSettings(**wrong)


def test_candidates_that_cannot_be():
    for names, said in (
        (["lihgtgbm"], "no candidate 'lihgtgbm'.*Did you mean 'lightgbm'"),
        (["dummy"], "cannot be the only candidate"),
        (["network"], "its limit is 30,000"),
    ):
        with pytest.raises(ParameterError, match=said):
            candidates.choose_candidates("binary", 50_000, names)


def test_a_candidate_that_is_not_for_the_task(own):
    candidate_model("mine", tasks=["regression"])(lambda task, seed: Ridge())
    with pytest.raises(ParameterError, match="mine: does not support a binary task"):
        candidates.choose_candidates("binary", 100, ["mine"])
    assert candidates.choose_candidates("binary", 100)[1]["mine"] == "does not support a binary task"


def test_the_command_line_says_what_is_wrong(tmp_path):
    TABLES["wine"][0]().to_csv(tmp_path / "wine.csv", index=False)
    for word, said in (("trials=0", "trials = 0"), ('models=["lihgtgbm"]', "Did you mean 'lightgbm'")):
        words = ["--source", "wine.csv", "--target", "target", "--until", "modelling", "-p", word]
        done = cli("run", "-q", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert said in done.stderr
        assert done.stderr.count("Error:") == 1
        assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / ".mlcycle/studies").exists()
    assert not (tmp_path / ".mlcycle/artifacts/models").exists()


# The same each time


def facts_of(selection) -> list:
    "What must not differ."
    return [(line.model, line.fold_scores, line.parameters) for line in selection.leaderboard()]


def test_one_process_or_four_and_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MIN_ROWS_PARALLEL", 0)
    answers, boards, table = [], [], make_table(rows=150)
    for place, jobs in enumerate((1, 4, 1)):
        with shutdown_workers_on_exit(jobs):
            names = ["linear", "lightgbm"]
            selection = hold(tmp_path / str(place), table, models=names, trials=2, jobs=jobs, repeats=2, search_seconds=600)
            assert selection.cv.jobs == jobs
            model, _ = fit_first_acceptable_model(selection, table[[*KINDS, "y"]], None)
        boards.append(facts_of(selection))
        answers.append(model.predict_proba(table[list(KINDS)]))
    assert boards[0] == boards[1] == boards[2]
    assert (answers[0] == answers[1]).all()
    assert (answers[0] == answers[2]).all()


# A search that was stopped goes on

SEARCH = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import test_modelling as t
from mlcycle.modelling import trials

fit = trials.fit_and_score_fold
def slow(model, *more):
    with open(sys.argv[2] + ".log", "a") as log:
        log.write(model.name + "\\n")
    time.sleep(0.2)
    return fit(model, *more)
trials.fit_and_score_fold = slow
cv = t.cv_of(sys.argv[2] + ".folds")
t.search_models_and_hyperparameters(cv, t.pair(), t.SearchBudget(6, 600), Path(sys.argv[2]))
"""


def pair() -> list:
    "Two candidates that have settings."
    return [CANDIDATES[name] for name in ("dummy", "linear", "lightgbm")]


def outcome_of(found) -> list:
    "What a search came to."
    return [(one.name, one.parameters, one.scores, one.status) for one in [*found.baseline_trials, *found.trials]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A search of six trials that nobody stopped."
    folder = tmp_path_factory.mktemp("whole")
    cv = cv_of(folder / "folds")
    return cv, search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), folder / "study")


def test_a_killed_search_goes_on(tmp_path, whole, counted):
    cv, expected = whole
    study = tmp_path / "study"
    process = subprocess.Popen([sys.executable, "-c", SEARCH, str(Path(__file__).parent), str(study)])
    late = time.monotonic() + 200
    while not list(study.glob("search*/trial 2.npz")):
        assert process.poll() is None and time.monotonic() < late
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(study.glob("search*/trial *.npz")))
    assert 2 <= kept < 6
    found = search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), study)
    assert kept - 1 <= found.resumed_trials <= kept, "it may have been killed between the file and the journal"
    assert outcome_of(found) == outcome_of(expected)
    assert len(counted) == sum(len(trial.scores) for trial in found.trials[found.resumed_trials :]), "nothing is fitted twice"


def test_an_interrupted_search_goes_on(tmp_path, whole, counted, monkeypatch):
    cv, expected = whole
    fit = trials.fit_and_score_fold

    def interrupt(*asked):
        if len(counted) == 14:
            raise KeyboardInterrupt
        return fit(*asked)

    with monkeypatch.context() as patched:
        patched.setattr(trials, "fit_and_score_fold", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path)
    found = search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path)
    assert found.resumed_trials == 1
    assert outcome_of(found) == outcome_of(expected)


def test_more_trials_go_on_with_the_same_study(tmp_path, whole, counted):
    cv, expected = whole
    search_models_and_hyperparameters(cv, pair(), SearchBudget(3, 600), tmp_path)
    counted.clear()
    found = search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path)
    assert found.resumed_trials == 3
    assert outcome_of(found) == outcome_of(expected)
    assert len(counted) == sum(len(trial.scores) for trial in found.trials[3:])


@pytest.mark.parametrize("damage", ["trial", "baseline", "journal's end", "journal's middle", "journal"])
def test_what_is_damaged_is_done_again(damage, tmp_path, whole):
    cv, expected = whole
    search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path)
    folder = next(tmp_path.glob("search*"))
    path = {"trial": folder / "trial 2.npz", "baseline": tmp_path / "baseline linear.npz"}.get(damage, folder / "journal.log")
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "journal's end": content[:-20],
            "journal's middle": content[:middle] + b"\0\0\xff\n" + content[middle:],
            "journal": b"",
        }.get(damage, content[:middle])
    )
    found = search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path)
    assert outcome_of(found) == outcome_of(expected)
    assert found.resumed_trials == {"trial": 5, "baseline": 6, "journal's end": 5, "journal": 0}.get(damage, found.resumed_trials)
    assert search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path).resumed_trials == 6


def test_when_time_is_up_it_is_said_and_the_rest_can_follow(tmp_path, whole):
    cv, expected = whole
    started = time.monotonic()
    found = search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 1, started - 10), tmp_path)
    assert found.timed_out and not found.trials
    more = [*pair(), CANDIDATES["neighbours"]]
    found = search_models_and_hyperparameters(cv, more, SearchBudget(6, 1, started - 10), tmp_path / "more")
    assert found.timed_out and found.baseline_trials[-1].reason == "time limit reached"
    found = search_models_and_hyperparameters(cv, pair(), SearchBudget(6, 600), tmp_path)
    assert not found.timed_out
    assert outcome_of(found) == outcome_of(expected)


def test_where_no_further_round_fits_the_search_takes_its_time(tmp_path, own, monkeypatch):
    asked, fitted = [], []

    @candidate_model("broken")
    def make(task, seed):
        fitted.append(task)
        raise ValueError("no such thing")

    def listen(cv, models, budget, *rest):
        found = search_models_and_hyperparameters(cv, models, budget, *rest)
        asked.append((budget.timeout, found, len(fitted)))
        return found

    monkeypatch.setattr(model_selection, "search_models_and_hyperparameters", listen)
    monkeypatch.setattr(model_selection, "repeat_cross_validation", lambda cv, finalists, *rest: (cv, finalists, True))
    selection = hold(tmp_path, models=["linear", "broken"], trials=10_000, search_seconds=6, repeats=2)
    (part, before, once), (whole, after, still) = asked
    assert (part, whole) == (4, 6) and once == still > 0
    assert len(after.trials) > len(before.trials) > 0
    assert [trial.scores for trial in after.trials[: len(before.trials)]] == [trial.scores for trial in before.trials]
    assert [trial.status for trial in after.baseline_trials] == [trial.status for trial in before.baseline_trials]
    assert selection.search.timed_out and selection.search.resumed_trials == 0
    assert "no such thing" in selection.excluded["broken"]


def test_other_candidates_in_the_comparison_are_another_search(tmp_path, own):
    cv = cv_of(tmp_path / "folds", folds=2)
    search_models_and_hyperparameters(cv, pair()[:2], SearchBudget(1, 600), tmp_path / "study")
    assert search_models_and_hyperparameters(
        cv, pair(), SearchBudget(1, 600), tmp_path / "study"
    ).tuned_models  # Optuna would not change its choices


def test_two_folds_are_asked_once(tmp_path):
    trial = run_trial(cv_of(tmp_path, folds=2), CANDIDATES["linear"], {}, prune=lambda scores: "never reached")
    assert trial.status == "complete" and len(trial.scores) == 2 and trial.fit_seconds > 0


class Killed(Executor):
    "Processes of which the first ones are killed."

    def __init__(self, kills: int):
        self.kills = kills

    def submit(self, function, *arguments):
        self.kills -= 1
        done = Future()
        done.set_exception(BrokenExecutor("killed")) if self.kills >= 0 else done.set_result(function(*arguments))
        return done


def test_a_killed_process_is_replaced_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "worker_processes", lambda jobs, model: processes)
    processes = Killed(1)
    assert run_trial(cv_of(tmp_path / "one", folds=2), CANDIDATES["linear"], {}).status == "complete"
    processes = Killed(10_000)
    again = run_trial(cv_of(tmp_path / "all", folds=2), CANDIDATES["linear"], {})
    assert again.status == "failed" and "BrokenExecutor: killed" in again.reason


def test_finalists_that_are_clearly_worse_are_not_repeated(tmp_path):
    cv, finalists = cv_of(tmp_path), [CANDIDATES[name] for name in ("linear", "lightgbm", "neighbours", "dummy")]
    tried = [run_trial(cv, model, {}) for model in finalists]
    kept = drop_clearly_worse(cv, sorted(tried, key=lambda trial: -np.mean(trial.scores)))
    assert [trial.model for trial in kept].count("dummy") == 0 and len(kept) == 3
    assert len(drop_clearly_worse(cv, [tried[0], *[tried[0]] * 4])) == 5, "equally good"


def test_a_poor_trial_is_pruned_and_stays_off_the_leaderboard(tmp_path, own):
    depths = iter([4, 4, 4, 4, 4, 1])

    @candidate_model(
        "tree", search_space=lambda trial: {"max_depth": next(depths), "min_samples_leaf": trial.suggest_int("tree_leaf", 2, 3)}
    )
    def make(task, seed, max_depth=4, min_samples_leaf=2):
        # A tree of depth 1 sees nothing: it must leave all rows in one leaf
        fewest = 0.5 if max_depth == 1 else min_samples_leaf
        return DecisionTreeClassifier(max_depth=max_depth, min_samples_leaf=fewest, random_state=seed)

    selection = hold(tmp_path, folds=5, models=["tree"], trials=6)
    last = selection.search.trials[-1]
    assert (last.status, len(last.scores)) == ("pruned", trials.FOLDS_BEFORE_PRUNING)
    assert last.name not in {line.model for line in selection.leaderboard()}
    assert "worse than the median" in selection.excluded[last.name]
    study = open_study(selection.search.folder, "roc_auc")
    assert study.trials[-1].state.name == "PRUNED"
    again = hold(tmp_path, folds=5, models=["tree"], trials=6)
    assert again.search.trials[-1].status == "pruned"


# Time and entities


class Watch(TransformerMixin, BaseEstimator):
    "Notes which rows teach, and which are asked about."

    seen: list = []  # noqa: RUF012 - of all copies

    def fit(self, X, y=None):
        "Note the rows that teach."
        Watch.seen.append(("learn", X["b"].to_numpy()))
        return self

    def transform(self, X):
        "Note the rows."
        Watch.seen.append(("ask", X["b"].to_numpy()))
        return X


def rounds_seen() -> list[tuple[np.ndarray, np.ndarray]]:
    "Which rows taught and which were asked about, plan by plan."
    found = []
    for what, rows in Watch.seen:
        if what == "learn":
            found.append((rows, []))
        elif not np.array_equal(rows, found[-1][0]):  # The plan also transforms what it learns from
            found[-1][1].append(rows)
    return found


def watched(monkeypatch, tmp_path, problem, table) -> ModelSelection:
    "A selection with early stopping, and its curve; the column `b` is the number of a row."
    for module in (cross_validation, boosters):
        monkeypatch.setattr(module, "MIN_ROWS_EARLY_STOPPING", 40)
    monkeypatch.setattr(boosters, "MAX_TREES", 40)
    Watch.seen.clear()
    inner = []
    monkeypatch.setattr(
        cross_validation,
        "early_stopping_split",
        lambda *asked: inner.append((asked, early_stopping_split(*asked))) or inner[-1][1],
    )
    cv = cv_of(tmp_path / "folds", problem, table)
    cv = replace(cv, preprocessor=Pipeline([("watch", Watch()), *cv.preprocessor.steps]))
    chosen = ModellingSettings(models=["linear", "lightgbm"], repeats=2, trials=2, search_seconds=600, jobs=1)
    selection = compare_models(cv, chosen, tmp_path / "study", table, len(table))
    measure_learning_curve(selection, table, list(KINDS))
    inner = [each for each in inner if each[1]]  # A tenth of the rows is too few for early stopping
    assert len(inner) > 6
    assert len(rounds_seen()) > 6
    for (target, *_), (grow, stop) in inner:
        assert len(stop) and not set(grow) & set(stop) and len(grow) + len(stop) == len(target)
    selection.inner = inner
    return selection


def test_time_is_never_turned_round(tmp_path, monkeypatch):
    table, taught = make_table(), []
    table["b"] = np.arange(len(table), dtype=float)
    choose, learn = ensemble.ensemble_selection_weights, calibration.fit_temperature_scaling
    monkeypatch.setattr(
        ensemble, "ensemble_selection_weights", lambda *asked: taught.append(("ensemble", list(asked[3]))) or choose(*asked)
    )
    monkeypatch.setattr(
        calibration, "fit_temperature_scaling", lambda *asked: taught.append(("calibration", len(asked[1]))) or learn(*asked)
    )
    selection = watched(monkeypatch, tmp_path, make_problem(time="day"), table)
    assert all(learnt.max() < asked.min() for learnt, each in rounds_seen() for asked in each)
    assert all(grow.max() < stop.min() for _, (grow, stop) in selection.inner)
    assert len(selection.cv.folds) == 3, "one round"
    assert [folds for what, folds in taught if what == "ensemble"] == [[0], [0, 1], [0, 1, 2]], "the last is for the model"
    make_unfitted_final_model(selection)
    assert [rows for what, rows in taught if what == "calibration"] == [60, 120, 180]


def test_an_entity_is_never_on_both_sides(tmp_path, monkeypatch):
    table = make_table().assign(who=lambda rows: [f"p{number // 4}" for number in range(len(rows))])
    table["b"] = np.arange(len(table), dtype=float)
    selection = watched(monkeypatch, tmp_path, make_problem(entity="who"), table)
    for learnt, each in rounds_seen():
        assert not any(set(learnt // 4) & set(asked // 4) for asked in each)
    for (_, _, _, entities), (grow, stop) in selection.inner:
        assert not set(entities[grow]) & set(entities[stop])
    assert len(selection.cv.folds) == 6, "two rounds"


def test_a_class_that_only_the_last_rows_know_teaches(tmp_path):
    target = np.array(["a", "b"] * 1500 + ["c"] * 10)
    grow, stop = early_stopping_split(target, make_problem("multiclass", classes=["a", "b", "c"], time="day"))
    assert set(target[grow]) == {"a", "b", "c"}
    assert set(target[stop]) == {"a", "b"}


@pytest.mark.parametrize("name", ["lightgbm", "boosting"])
def test_early_stopping_by_inner_rows_and_the_mean_of_trees(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_validation, "MIN_ROWS_EARLY_STOPPING", 40)
    grown, grow = [], trials._fit_early_stopping

    def watch(model, estimator, fold):
        assert max(*fold.early_stopping[0], *fold.early_stopping[1]) < len(fold.X_train) == len(fold.y_train)
        grown.append(grow(model, estimator, fold))
        return grown[-1]

    monkeypatch.setattr(trials, "_fit_early_stopping", watch)
    cv, model = cv_of(tmp_path), CANDIDATES[name]
    trial = run_trial(cv, model, {"learning_rate": 0.3, model.iterations_parameter: 400})
    assert trial.best_iterations == grown
    assert all(1 <= trees < 400 for trees in grown)
    assert build_pipeline(cv, trial).steps[-1][1].get_params()[model.iterations_parameter] == round(np.mean(grown))


# Together, and who wins


def heard(cv: CrossValidation, noise: float, seed: int) -> Trial:
    "A trial of a regression that is wrong by some noise."
    rng, truths = np.random.default_rng(seed), [cv.actual(fold).to_numpy() for fold in range(len(cv.folds))]
    said = [Predictions(truth + noise * rng.standard_normal(len(truth))) for truth in truths]
    scores = [float(np.sqrt(np.mean((one.labels - truth) ** 2))) for one, truth in zip(said, truths, strict=True)]
    return Trial(seed, "lightgbm", "trees", {}, scores, said)


def test_an_ensemble_of_those_that_err_elsewhere_is_kept_and_one_of_copies_is_not(tmp_path):
    cv = cv_of(tmp_path, make_problem("regression"), folds=5)
    rivals = [heard(cv, 0.5, seed) for seed in (1, 2, 3)]
    together = ensemble.build_ensemble_trial(cv, rivals)
    assert sum(together.parameters.values()) == pytest.approx(1)
    assert order_by_selection_rule(cv, [*rivals, together])[0] is together
    copies = [replace(rivals[0], number=number) for number in (4, 5)]
    together = ensemble.build_ensemble_trial(cv, copies)
    assert order_by_selection_rule(cv, [*copies, together])[0] is copies[0]


def test_folds_of_another_round_do_not_choose_the_weights_by_which_they_are_judged(tmp_path, monkeypatch):
    cv = cv_of(tmp_path, make_problem("regression"))
    cv = replace(cv, folds=[*cv.folds, *make_folds(cv.problem, cv.rows, 3, seed=1)])
    chosen, choose = [], ensemble.ensemble_selection_weights
    monkeypatch.setattr(ensemble, "ensemble_selection_weights", lambda *asked: chosen.append(list(asked[3])) or choose(*asked))
    ensemble.build_ensemble_trial(cv, [heard(cv, 0.5, 1), heard(cv, 0.5, 2)])
    assert chosen == [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [*range(6)]]


class Slow(DecisionTreeClassifier):
    "A tree that takes its time."

    def predict_proba(self, X):
        "Asleep first."
        time.sleep(0.5)
        return super().predict_proba(X)


def test_the_latency_budget_refuses_who_is_slow(tmp_path, own, reviewed, monkeypatch):
    monkeypatch.setattr(final_model, "measure_latency", lambda *asked: measure_latency(*asked, max_rows=2))
    candidate_model("slow", complexity=0)(lambda task, seed: Slow(max_depth=4, random_state=seed))
    table = make_table()
    table["y"] = np.where(table.a.abs() > 0.7, "yes", "no")
    selection = hold(tmp_path, table, make_problem(latency_budget_ms=490.0), models=["slow", "linear"], ensemble=False)
    assert selection.ranking[0].model == "slow"
    before = selection.candidate_fields()["score"]
    fit_first_acceptable_model(selection, table[[*KINDS, "y"]], None)
    assert selection.chosen.model.startswith("linear")
    assert selection.leaderboard()[0].model_type == "linear"
    assert selection.candidate_fields()["score"].value < before.value - 0.1, "the score is that of the models that remain"
    assert "the budget is 490 ms" in selection.excluded["slow"]
    only = replace(selection, ranking=[trial for trial in selection.ranking if trial.model == "slow"])
    with pytest.raises(StageError, match=r"within the latency budget of 490 ms. slow takes \d+"):
        fit_first_acceptable_model(only, table[[*KINDS, "y"]], None)


def test_within_one_standard_error_the_simpler_one_wins(tmp_path):
    cv = cv_of(tmp_path, folds=5)
    near = planted(cv, [0.80, 0.84, 0.79, 0.86, 0.81], [0.81, 0.83, 0.80, 0.86, 0.82], [0.90, 0.70, 0.85, 0.75, 0.80])
    assert [trial.model for trial in order_by_selection_rule(cv, near)][0] == "linear"
    assert [trial.model for trial in order_by_selection_rule(cv, near, "best")] == ["forest", "linear", "lightgbm"]
    far = planted(cv, [0.80, 0.84, 0.79, 0.86, 0.81], [0.85, 0.89, 0.84, 0.91, 0.87])
    assert [trial.model for trial in order_by_selection_rule(cv, far)] == ["forest", "linear"]


@pytest.mark.parametrize("metric", ["log_loss", "rmse"])
def test_lower_is_better_where_it_is(metric, tmp_path):
    task = "regression" if metric == "rmse" else "binary"
    cv = cv_of(tmp_path, make_problem(task, metric=metric, metrics=[metric]), folds=5)
    far = planted(cv, [0.50, 0.52, 0.51, 0.49, 0.50], [0.40, 0.42, 0.41, 0.40, 0.41])
    assert [trial.model for trial in order_by_selection_rule(cv, far)] == ["forest", "linear"]
    selection = hold(tmp_path / "held", problem=cv.problem, models=["linear", "lightgbm"], trials=2)
    lines = selection.leaderboard()
    assert lines[-1].model_type == "dummy" or lines[-1].score.value >= lines[0].score.value
    assert lines[0].score.value < next(line for line in lines if line.model_type == "dummy").score.value
    assert all(line.difference_to_best.value <= 0 for line in lines if line.difference_to_best and line.model_type != "ensemble")


# Probabilities, thresholds, weights


def said_of(chance: np.ndarray, cv: CrossValidation) -> Trial:
    "A trial that gives these probabilities."
    said = [predictions_from_values(chance[ask], cv.problem) for _, ask in cv.folds]
    return Trial(0, "linear", "linear", {}, [0.7] * len(said), said)


def chances(tmp_path, **more) -> tuple[CrossValidation, np.ndarray]:
    "Rows whose probability of `yes` is known."
    rng = np.random.default_rng(0)
    chance, problem = rng.random(1500), make_problem(**more)
    table = make_table(rows=1500).assign(y=np.where(rng.random(1500) < chance, "yes", "no"))
    return cv_of(tmp_path, problem, table, folds=5), chance


def test_calibration_is_kept_where_it_helps_only(tmp_path):
    cv, chance = chances(tmp_path)
    right, same = calibration.calibrate_trial(cv, said_of(chance, cv))
    assert not right.applied and same.predictions[0].scores is not None and right.improvement.low <= 0
    bold = apply_temperature_scaling(np.column_stack([1 - chance, chance]), 3.0)[:, 1]
    wrong, mended = calibration.calibrate_trial(cv, said_of(bold, cv))
    assert (
        wrong.applied
        and wrong.log_loss_after < wrong.log_loss_before
        and wrong.inverse_temperature == pytest.approx(1 / 3, abs=0.08)
    )
    assert all(
        (np.argsort(a.scores) == np.argsort(b.scores)).mean() > 0.99
        for a, b in zip(mended.predictions, said_of(bold, cv).predictions, strict=True)
    )


@pytest.mark.parametrize(
    ("more", "low", "high"),
    [
        ({"metric": "f1", "metrics": ["f1"]}, 0.2, 0.45),
        ({"metric": "accuracy", "metrics": ["accuracy"]}, 0.4, 0.6),
        ({"metrics": ["roc_auc", "accuracy"]}, 0.2, 0.45),
        ({"metric": "recall", "metrics": ["recall"]}, 0.0, 0.05),
        ({"costs": {"yes": {"no": 9.0}, "no": {"yes": 1.0}}}, 0.02, 0.2),
        ({"costs": {"yes": {"no": 1.0}, "no": {"yes": 9.0}}}, 0.8, 0.98),
    ],
)
def test_the_threshold_suits_what_is_asked(more, low, high, tmp_path):
    cv, chance = chances(tmp_path, **more)
    assert low <= calibration.tune_threshold(cv, said_of(chance, cv)) <= high


def test_weights_reach_the_model_and_change_what_it_learns(tmp_path):
    table = make_table().assign(sure=lambda rows: np.where(rows.a > 0, 1.0, 0.01))
    table.loc[table.index[60:], "y"] = "no"
    problem = make_problem(costs={"yes": {"no": 9.0}, "no": {"yes": 1.0}})
    shares = {}
    for how in ("", "balanced", "cost", "sure"):
        cv = cv_of(tmp_path / (how or "alike"), problem, table, weights=how)
        trial = run_trial(cv, CANDIDATES["linear"], {})
        shares[how] = np.mean(np.concatenate([said.scores for said in trial.predictions]))
        model = fit_final_model(build_pipeline(cv, trial), problem, table[[*KINDS, "y"]], cv.sample_weight, 0.5)
        assert predict(model, table[list(KINDS)], problem).scores.mean() == pytest.approx(shares[how], abs=0.05)
    assert shares[""] < shares["balanced"]
    assert shares[""] < shares["cost"]
    assert abs(shares["sure"] - shares[""]) > 0.005


def test_weights_that_cannot_be(tmp_path):
    table = make_table().assign(sure=-1.0, word=1.0)
    for how, said in (
        ("sure", "240 of 240 values are missing, negative or no numbers"),
        ("suer", "Did you mean 'sure'"),
        ("cost", "needs costs"),
    ):
        with pytest.raises(ParameterError, match=said):
            sample_weights(make_problem(), table, how)
    with pytest.raises(ParameterError, match="needs classes"):
        sample_weights(make_problem("regression"), make_table("regression"), "balanced")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=8),
    st.floats(0.05, 20),
    st.lists(st.floats(-10, 10), min_size=3, max_size=3),
)
def test_calibrated_probabilities_sum_to_one_and_keep_their_order(given_rows, slope, shifts):
    three = np.array(given_rows) + 1e-9
    three /= three.sum(axis=1, keepdims=True)
    right = apply_temperature_scaling(three, slope, shifts)
    assert np.allclose(right.sum(axis=1), 1)
    assert ((right >= 0) & (right <= 1)).all()
    two = np.column_stack([1 - three[:, 0], three[:, 0]])
    right = apply_temperature_scaling(two, slope, shifts[:2])[:, 1]
    order = np.argsort(two[:, 1], kind="stable")
    assert (np.diff(right[order]) >= -1e-12).all()


# Files

LOAD = """
import sys, json
from pathlib import Path
import numpy as np, pandas as pd
from mlcycle.stores.models.model_files import load_model
assert "lightgbm" not in sys.modules and "mlcycle.modelling" not in sys.modules
rows = pd.read_parquet(Path(sys.argv[1], "rows.parquet"))
for path in sorted(Path(sys.argv[1]).glob("*.skops")):
    model = load_model(path)
    said = model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows)
    np.save(path.with_suffix(".again.npy"), said)
"""


def test_whatever_can_win_is_saved_and_answers_alike_in_another_process(tmp_path):
    rows = make_table(rows=150)[list(KINDS)]
    rows.to_parquet(tmp_path / "rows.parquet")
    expected = {}
    for task in CLASSES:
        table, problem, singles = make_table(task, 150), make_problem(task), []
        cv = cv_of(tmp_path / task, problem, table)
        for model in [*candidates.choose_candidates(task, 150)[0], CANDIDATES["boosting"]]:
            few = model.iterations_parameter or "n_estimators" * model.name.endswith(("forest", "trees"))
            parameters = {few: 5} if few else {}
            for encoding in model.encodings:
                singles.append(Trial(len(singles) + 1, model.name, encoding, parameters))
        both = Trial(0, "ensemble", "", {one.name: 0.25 for one in singles[-4:]})
        for trial in [*singles, both]:
            model = build_pipeline(cv, trial, singles)
            if task != "regression":
                model = CalibratedClassifier(model, 0.8, [0.0, 0.1, 0.2][: len(problem.classes)])
            weights = np.linspace(0.5, 1.5, len(table)) if trial.number % 2 else None
            model = fit_final_model(model, problem, table, weights, 0.4 if task == "binary" else None)
            name = f"{task} {trial.name}"
            save_model(model, tmp_path / f"{name}.skops")
            expected[name] = model.predict(rows) if task == "regression" else model.predict_proba(rows)
    subprocess.run([sys.executable, "-c", LOAD, tmp_path], check=True, cwd=tmp_path)
    assert len(expected) > 30
    for name, said in expected.items():
        assert (np.load(tmp_path / f"{name}.again.npy") == said).all(), name


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", ["xgboost", "catboost"])
def test_boosters_compete_where_they_are_installed(name, task, tmp_path, monkeypatch):
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed: pip install 'mlcycle-notebooks[boosters]'")
    for module in (cross_validation, boosters):
        monkeypatch.setattr(module, "MIN_ROWS_EARLY_STOPPING", 40)
    monkeypatch.setattr(boosters, "MAX_TREES", 60)
    selection = hold(tmp_path, problem=make_problem(task), models=[name], trials=3)
    assert selection.ranking[0].model == name, selection.excluded
    assert selection.search.trials[-1].status == "complete", selection.excluded
    assert selection.search.trials[-1].best_iterations
    assert all(isinstance(line.score.value, float) for line in selection.leaderboard())
    rows = make_table(task)
    weights = np.ones(len(rows))
    model, _ = fit_first_acceptable_model(selection, rows[[*KINDS, "y"]], weights)
    again = load_model(tmp_path / "model.skops", save_model(model, tmp_path / "model.skops"))
    assert (again.predict(rows[list(KINDS)]) == model.predict(rows[list(KINDS)])).all()

"""Each check finds its mistake on inputs made for it, and nothing on clean ones."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from commands import cli
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlcycle.errors import ParameterError
from mlcycle.outcomes import Feature, LeaderboardEntry, LeakageKind, LeakageSuspect, RuleFailure, Score, SingleColumn
from mlcycle.validation import run_checks as all_checks
from mlcycle.validation.checks import CHECKS, CheckInputs, check, load_check_modules, run_check, run_checks

RNG = np.random.default_rng(0)
DAYS = pd.date_range("2026-01-01", periods=1500, freq="h")


def score(value: float, half: float = 0.02, metric: str = "roc_auc") -> Score:
    return Score(metric=metric, value=value, low=value - half, high=value + half)


def entry(name: str, folds: list[float], **more) -> LeaderboardEntry:
    given = {"model": name, "model_type": name, "score": score(float(np.mean(folds))), "fold_scores": folds}
    return LeaderboardEntry(**given | {"fit_seconds": 0.1, "predict_seconds": 0.01, "parameters": {}} | more)


def rows(n: int) -> pd.DataFrame:
    table = pd.DataFrame({"a": RNG.normal(size=n).round(1), "b": RNG.normal(size=n).round(1), "day": DAYS[:n]})
    return table.assign(y=np.where(table["a"] + RNG.normal(size=n) > 0, "yes", "no"))


def feature(name: str, low: float, frequency: float) -> Feature:
    importance = Score(metric="roc_auc", value=low + 0.02, low=low, high=low + 0.04)
    return Feature(name=name, source_columns=[name], column_type="number", importance=importance, selection_frequency=frequency)


def clean_inputs() -> CheckInputs:
    "Outcomes of a run without any mistake."
    whole = rows(1500)
    train, holdout = whole[:1000], whole[1000:]
    problem = {"task": "binary", "target": "y", "time": "day", "sign_off": "agreed", "owner": "-", "metric": "roc_auc"}
    problem |= {"excluded": {"c": "-"}}
    dataset = {"rows_in": 1500, "rows_set_aside": 0, "rows_unlabelled": 0, "rows_quarantined": 0}
    dataset |= {"rule_failures": [], "split_overlap": []}
    plan = {"input_columns": ["a", "b"], "leakage_suspects": [], "features": [feature("a", 0.1, 1.0), feature("b", 0.01, 0.6)]}
    plan |= {"dropped_columns": {"c": "-"}}
    folds = [0.75, 0.76, 0.74, 0.755, 0.745]
    board = [entry("lightgbm", folds, parameters={"learning_rate": 0.05}), entry("linear", [0.7] * 5), entry("dummy", [0.5] * 5)]
    candidate = {"winner": "lightgbm", "leaderboard": board, "fold_sizes": [[800, 200]] * 5, "n_trials": 6, "timed_out": False}
    ranges = {"learning_rate": [0.02, 0.2], "min_samples_leaf": [1, 30], "max_features": [0.1, 1.0]}
    candidate |= {"search_ranges": ranges, "tuned_models": ["lightgbm"]}
    gap = {"train": score(0.78), "validation": score(0.75), "holdout": score(0.74)}
    verdict = {"generalization_gap": gap, "holdout_rows": 500, "holdout_positives": 250, "holdout_accesses": 1}
    verdict |= {"scores": [score(0.74)], "baseline_scores": [score(0.5, 0)]}
    verdict |= {"generalization": SimpleNamespace(single_columns=[SingleColumn(column="a", score=0.7, share=0.83)])}
    model = make_pipeline(LogisticRegression().fit(train[["a"]], train["y"]))
    model.steps[-1] = ("forest", RandomForestClassifier(2).fit(train[["a"]], train["y"]))
    return CheckInputs(
        problem=SimpleNamespace(**problem),
        dataset=SimpleNamespace(**dataset, tables={"train": SimpleNamespace(rows=1000)}),
        plan=SimpleNamespace(**plan),
        candidate=SimpleNamespace(**candidate),
        verdict=SimpleNamespace(**verdict),
        train=train,
        holdout=holdout,
        model=model,
        time_ranges=all_checks.find_time_ranges(train, holdout),
    )


CLEAN = clean_inputs()
BROKEN_RULE = RuleFailure(column="a", rule="greater_than(0)", severity="error", rows=7, examples=[], over_limit=True)
RARE = CLEAN.train.assign(y=["yes"] * 950 + ["no"] * 50)
BOARD = CLEAN.candidate.leaderboard


def winner(**more) -> dict:
    "Changes of the selected line of the leaderboard."
    return {"candidate.leaderboard": [BOARD[0].model_copy(update=more), *BOARD[1:]]}


def alone(finding: str) -> dict:
    "A column that alone is as good as the model on the holdout."
    column = SingleColumn(column="a", score=0.74, share=1.0, finding=finding)
    return {"verdict.generalization": SimpleNamespace(single_columns=[column])}


def suspect(kind: str) -> dict:
    "A column that stage 3 excluded."
    return {"plan.leakage_suspects": [LeakageSuspect(column="z", reason="It leaks.", kinds=[kind])]}


MISTAKES = {
    "MLC201": {"dataset.rule_failures": [BROKEN_RULE]},
    "MLC202": {"dataset.split_overlap": ["12 rows of the holdout are in the training rows"]},
    "MLC203": {"dataset.rows_set_aside": 100},
    "MLC204": {"train": RARE},
    "MLC205": {"train": RARE.assign(y=["yes"] * 990 + ["no"] * 10)},
    "MLC206": {"time_ranges": {"day": (DAYS[0], DAYS[900], DAYS[800], DAYS[999])}},
    "MLC207": {"train": CLEAN.train.assign(b=CLEAN.train["b"].where(CLEAN.train["b"] > 1))},
    "MLC208": {"holdout": CLEAN.holdout.assign(b=np.nan)},
    "MLC209": {"problem.time": ""},
    "MLC301": alone("copy of the target"),
    "MLC302": alone("strong feature"),
    "MLC303": {"plan.features": [feature("a", -0.01, 0.0)]},
    "MLC304": {"train": CLEAN.train.assign(b=CLEAN.train["a"] * 3 + 1)},
    "MLC305": {"plan.leakage_suspects": [LeakageSuspect(column="a", reason="predicts alone", excluded=False)]},
    "MLC306": {"train": CLEAN.train.assign(a=[f"id{k}" for k in range(1000)])},
    "MLC307": suspect("copy of the target"),
    "MLC308": suspect("present for one class"),
    "MLC309": suspect("row counter"),
    "MLC310": suspect("future date"),
    "MLC311": suspect("target encoding"),
    "MLC312": suspect("column pair"),
    "MLC313": suspect("dominant column"),
    "MLC314": {"plan.dropped_columns": {"id": "identifier: nearly every value occurs once"}},
    "MLC315": {"plan.dropped_columns": {"unit": "always kg"}},
    "MLC401": winner(fold_scores=[0.5, 0.51, 0.49, 0.52, 0.48], score=score(0.5)),
    "MLC402": winner(fold_scores=[0.75, 0.76, 0.74, 0.75, 0.4]),
    "MLC403": {"candidate.winner": "linear"},
    "MLC404": winner(fold_scores=[0.7, 0.71, 0.69, 0.7, 0.7], fit_seconds=20.0),
    "MLC405": winner(parameters={"learning_rate": 0.0201}),
    "MLC406": {"candidate.search_ranges": {"max_features": [0.1, 1.0]}},
    "MLC407": winner(parameters={}),
    "MLC408": {"model": LogisticRegression().fit(CLEAN.train[["a"]], CLEAN.train["y"])},
    "MLC409": {"train": CLEAN.train.assign(a=RNG.normal(size=1000))},
    "MLC410": {"candidate.timed_out": True},
    "MLC501": {"verdict.generalization_gap": CLEAN.verdict.generalization_gap | {"train": score(0.99)}},
    "MLC502": {"verdict.generalization_gap": CLEAN.verdict.generalization_gap | {"holdout": score(0.6)}},
    "MLC503": {"verdict.baseline_scores": [score(0.8)]},
    "MLC504": {"verdict.holdout_positives": 12},
    "MLC505": {"verdict.holdout_accesses": 11},
    "MLC506": {"problem.sign_off": ""},
}


def changed(inputs: CheckInputs, changes: dict) -> CheckInputs:
    "Inputs with other values, of fields such as `candidate.winner`."
    for path, value in changes.items():
        part, _, name = path.partition(".")
        inputs = replace(inputs, **{part: SimpleNamespace(**vars(getattr(inputs, part)) | {name: value}) if name else value})
    return inputs


def test_clean_inputs_have_no_finding():
    found = [result for result in run_checks(CLEAN) if result.status == "found"]
    assert not found, found


def test_every_check_has_a_mistake_that_it_finds():
    assert set(MISTAKES) <= set(CHECKS) and {code for code in CHECKS if code.startswith("MLC")} - set(MISTAKES) == set()


@pytest.mark.parametrize("code", MISTAKES)
def test_a_mistake_is_found_in_words_with_a_remedy(code):
    result = run_check(CHECKS[code], changed(CLEAN, MISTAKES[code]))
    assert result.status == "found" and result.message and result.remedy and "failed:" not in result.message, result


def codes_with_findings(changes: dict) -> set[str]:
    "Codes of the checks that find something."
    return {result.code for result in run_checks(changed(CLEAN, changes)) if result.status == "found"}


@pytest.mark.parametrize("kind", get_args(LeakageKind))
def test_each_kind_of_leakage_has_one_code_and_none_once_it_is_trusted(kind):
    assert len(codes_with_findings(suspect(kind))) == 1
    trusted = {"plan.leakage_suspects": [LeakageSuspect(column="a", reason="-", kinds=[kind], excluded=False)]}
    assert codes_with_findings(trusted) == {"MLC301" if kind == "copy of the target" else "MLC305"}


def test_an_excluded_suspect_is_not_reported_as_dropped_and_rows_in_both_parts_have_a_code_of_their_own():
    both = suspect("row counter") | {"plan.dropped_columns": {"z": "may leak the target: It leaks."}}
    assert codes_with_findings(both) == {"MLC309"}
    passed_on = LeakageSuspect(column="", reason="3 rows are in both.", excluded=False)
    assert codes_with_findings({"plan.leakage_suspects": [passed_on]}) == set()
    assert codes_with_findings({"dataset.split_overlap": ["3 rows are in both."]}) == {"MLC202"}


def test_a_strong_feature_is_a_warning_and_a_copy_an_error_and_without_the_section_neither_is_tested():
    assert codes_with_findings(alone("strong feature")) == {"MLC302"} and CHECKS["MLC302"].severity == "warning"
    assert codes_with_findings(alone("copy of the target")) == {"MLC301"} and CHECKS["MLC301"].severity == "error"
    off = {result.code: result.status for result in run_checks(changed(CLEAN, {"verdict.generalization": None}))}
    assert off["MLC301"] == off["MLC302"] == "not applicable"
    copy = LeakageSuspect(column="a", reason="-", kinds=["copy of the target"], excluded=False)
    assert "MLC301" in codes_with_findings({"verdict.generalization": None, "plan.leakage_suspects": [copy]})


def test_a_check_of_the_user_is_loaded_from_the_project_and_can_be_muted(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").touch()
    (tmp_path / "team_checks_a.py").write_text(
        "from mlcycle.validation.checks import check\n\n\n@check('TEAM1', 'Odd', remedy='None.')\n"
        "def odd(inputs):\n    'Something odd.'\n    return 'odd'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_check_modules(["team_checks_a"]) == [tmp_path / "team_checks_a.py"]
    try:
        assert {result.code: result.status for result in run_checks(CLEAN)}["TEAM1"] == "found"
        muted = {result.code: result for result in run_checks(CLEAN, {"TEAM1": "known"})}["TEAM1"]
        assert muted.status == "muted" and muted.message == "known"
        with pytest.raises(ParameterError, match="used by two checks"):
            check("TEAM1", "Another")(lambda inputs: "")
    finally:
        del CHECKS["TEAM1"]
    with pytest.raises(ParameterError, match="cannot be imported"):
        load_check_modules(["no_such_module"])


def test_commands_list_checks_and_show_the_results_of_a_run(table_run):
    run = table_run("wine")
    project = run.workspace.project
    listed = cli("checks", cwd=project).stdout
    assert all(code in listed for code in MISTAKES)
    assert "What to do" in cli("checks", "MLC304", cwd=project).stdout
    shown = cli("checks", "--run", run.id, cwd=project).stdout
    assert "not applicable" in shown and "MLC506" in shown
    failed = cli("checks", "MLC30", cwd=project)
    assert failed.returncode and "MLC30" in failed.stderr + failed.stdout
    saved = json.loads((run.folder / "validation.json").read_text())["checks"]
    assert len(saved) >= len(MISTAKES) and all(result["status"] != "found" or result["message"] for result in saved)

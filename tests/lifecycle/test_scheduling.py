"""The page about schedules: its manifest, DAG and units are what their programs expect."""

import ast
import configparser
import re

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

PAGE = (ROOT / "docs" / "scheduling.md").read_text()


def blocks(language: str) -> list[str]:
    "The blocks of a language."
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_cron_job_has_the_form_that_kubernetes_expects():
    (text,) = blocks("yaml")
    job = yaml.safe_load(text)
    kubernetes_validate.validate(job, "1.37", strict=True)
    assert job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"][:2] == ["mlcycle", "monitor"]
    job["spec"]["concurrency"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.37", strict=True)


def test_the_dag_is_python_and_calls_a_pass():
    (text,) = blocks("python")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    words = {each.arg: each.value for call in calls for each in call.keywords}
    assert words["bash_command"].value.endswith("mlcycle monitor orders-late") and words["max_active_runs"].value == 1


def test_the_units_have_the_sections_of_systemd():
    units = [configparser.ConfigParser(interpolation=None) for _ in blocks("ini")]
    for unit, text in zip(units, blocks("ini"), strict=True):
        unit.read_string(text)
    assert [each.sections() for each in units] == [["retraining"], ["Unit", "Service"], ["Unit", "Timer", "Install"]]
    assert units[2]["Timer"]["Persistent"] == "true"

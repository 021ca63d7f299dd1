"""What commands print: a bug report without secrets, parameters and help in 80 columns, progress in a log file."""

import re

import pytest
from commands import cli, cli_process
from conftest import WORDS
from typer.testing import CliRunner

from mlcycle.cli.app import app


def test_doctor_prints_what_a_bug_report_needs_and_no_secret(tmp_path):
    url = "postgresql+psycopg://ann:$SHOP_PASSWORD@127.0.0.1:1/log?connect_timeout=1"
    (tmp_path / "settings.ini").write_text(f"[stores]\nevents_url = {url}\n")
    done = cli("doctor", cwd=tmp_path, SHOP_PASSWORD="hunter2")
    assert done.returncode == 1, "the prediction log cannot be reached"
    assert re.search(r"prediction log: error: postgresql", done.stdout)
    assert "scikit-learn" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["settings.ini"], "nothing is created"


@pytest.mark.parametrize("words", [["--help"], ["params"], ["params", "modelling"], ["run", "--help"]], ids=" ".join)
def test_eighty_columns_are_enough(words):
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "80", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 and " = " not in line] == []
    assert "…" not in shown.stdout
    assert words != ["--help"] or len(lines) <= 45


def test_a_log_file_gets_lines_instead_of_bars(tmp_path):
    (tmp_path / "numbers.csv").write_text("a,b\n" + "".join(f"{i},{i % 4}\n" for i in range(60)))
    done = cli("run", "--source", "numbers.csv", "--target", "b", "--until", "problem", *WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("1 problem:")]
    assert lines[0] == "1 problem: started"
    assert re.fullmatch(r"1 problem: cell (\d+) of \1, \d+ s", lines[-1])
    assert "\x1b" not in done.stdout
    assert cli_process("--version", cwd=tmp_path).stdout.startswith("mlcycle ")

"""The dashboard for Grafana: its queries are valid PromQL over metrics that exist."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from mlcycle.monitoring.grafana import grafana_dashboard, write_grafana_dashboard
from mlcycle.service.service_metrics import ServiceMetrics

GAUGES = {  # Written for the textfile collector, with their labels
    "mlcycle_alert_active": {"model", "rule", "severity", "state", "subject"},
    "mlcycle_monitoring_timestamp_seconds": {"model"},
    "mlcycle_monitoring_rows": {"model"},
    "mlcycle_monitoring_labelled_ratio": {"model"},
    "mlcycle_monitoring_drifted_columns": {"model"},
    "mlcycle_monitoring_score": {"model", "metric"},
}
SCRAPED = {"instance", "job"}  # Labels that Prometheus adds


def service_metrics() -> dict[str, set[str]]:
    "Labels of each metric of the service, by the name of its series."
    found, metrics = {}, ServiceMetrics()
    for group in (metrics.request, metrics.prediction):
        for metric in vars(group).values():
            name, labels = metric._name, set(metric._labelnames)
            series = {"counter": [f"{name}_total"], "gauge": [name]}.get(metric._type, [f"{name}_sum", f"{name}_count"])
            found |= dict.fromkeys(series, labels)
            if metric._type == "histogram":
                found[f"{name}_bucket"] = labels | {"le"}
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in grafana_dashboard("flights")["panels"] for target in panel.get("targets", [])]


def test_promtool_accepts_every_query(tmp_path):
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: make system installs it")
        pytest.skip("promtool is missing. As root on Debian, make system installs it.")
    filled = [re.sub(r"\$\w+", "x", each.replace("$__rate_interval", "5m")) for each in queries()]
    rules = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(filled)]

    def check(rules):
        path = tmp_path / "rules.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
        return subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)

    done = check(rules)
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout
    assert check([{"record": "query:1", "expr": filled[0].replace("sum", "sun")}]).returncode != 0


def test_every_query_names_metrics_and_labels_that_exist():
    known, used = service_metrics() | GAUGES, set()
    for query in queries():
        for name, matchers in re.findall(r"(mlcycle_\w+)\{([^}]*)\}", query):
            assert name in known, query
            assert {each.split("=")[0] for each in matchers.split(",")} <= known[name] | SCRAPED, query
            used.add(name)
        assert not set(re.findall(r"mlcycle_\w+", query)) - used, query
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert all(set(labels.split(", ")) <= known[name] | SCRAPED for name in re.findall(r"mlcycle_\w+", query)), query
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in known}
    shown = {re.sub("_(total|bucket|sum|count)$", "", name) for name in used}
    assert families - shown == {"mlcycle_model_info", "mlcycle_build_info"}, "each metric has a panel"


def test_variables_are_defined_and_legends_name_labels_that_are_kept():
    dashboard = grafana_dashboard("flights")
    defined = {each["name"] for each in dashboard["templating"]["list"]} | {"__rate_interval"}
    text = json.dumps(dashboard)
    assert set(re.findall(r"\$(\w+)", text.replace("$__all", ""))) | {"datasource"} == defined
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            if kept:
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept - {"le"}, target


def test_the_file_is_replaced_and_selects_the_model(tmp_path):
    path = tmp_path / "dashboard.json"
    path.write_text("{}")
    assert write_grafana_dashboard(path, "flights") == path
    written = json.loads(path.read_text())
    assert written == grafana_dashboard("flights")
    assert next(each for each in written["templating"]["list"] if each["name"] == "model")["current"]["value"] == "flights"

"""The model card in all formats, the texts of the owner, and the dossier."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from commands import cli
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from projects import add_cell

import mlcycle as mc
from mlcycle.errors import ArtifactError, ParameterError
from mlcycle.stores.models.registry_queries import open_registry_read_only
from mlcycle.validation.card_formats import CARD_FILES, card_to_cyclonedx, card_to_html, card_to_markdown, save_model_card
from mlcycle.validation.dossier import ANNEX_IV, NIST_AI_RMF, dossier_to_html, make_dossier
from mlcycle.validation.model_card import model_card
from mlcycle.validation.owner_texts import OWNER_FILE, OwnerTexts, read_owner_texts

STRICT = JsonStrictValidator(SchemaVersion.V1_6)
SECTIONS = {"purpose", "use", "data", "development", "performance", "fairness", "robustness", "limits", "oversight", "approval"}


@pytest.fixture(scope="module")
def finished(base):
    "The run of the shared project."
    return mc.open("last", base)


@pytest.fixture(scope="module")
def card(finished):
    "Its card."
    return model_card(finished)


def write_texts(project: Path, **texts: str) -> None:
    "Write texts of the owner."
    (project / OWNER_FILE).write_text("".join(f"{name}: |\n  {text}\n" for name, text in texts.items()))


def test_the_card_has_what_the_stages_recorded(card, finished):
    sections = card["sections"]
    assert sections.keys() >= SECTIONS
    assert card["model"]["sha256"] == finished.candidate.model.sha256
    scores = sections["performance"]["tables"]["Scores on the holdout, with 95 % intervals"]
    assert [(each["metric"], each["low"], each["high"]) for each in scores] == [
        (score.metric, score.low, score.high) for score in finished.verdict.scores
    ]
    tables = {each["table"]: each["SHA-256"] for each in sections["data"]["tables"]["Table versions"]}
    assert tables == {name: table.sha256 for name, table in finished.dataset.tables.items()}
    assert sections["data"]["tables"]["Sources"][0]["source"] == "orders.csv"
    assert sections["approval"]["tables"]["Audit log of this version"][1]["action"] == "promote"
    assert sections["approval"]["facts"]["trained by"] == finished.info["user"]
    assert all(section["provision"] for section in sections.values())


def test_what_nobody_supplied_is_open_and_not_filled_in(card):
    missing = {each["item"].split(":")[0] for each in card["open"]}
    assert set(OwnerTexts.model_fields) <= missing
    assert {"owner", "sign-off", "protected groups"} <= missing
    assert card["sections"]["use"]["facts"] == {}


def test_texts_of_the_owner_are_on_the_card_as_they_were_written(project):
    write_texts(project, intended_use="Warn <b>customers</b> | of a delay.", excluded_use="Wages.", limits="New towns.")
    made = model_card(mc.open("last", project))
    assert made["sections"]["use"]["facts"]["intended use"] == "Warn <b>customers</b> | of a delay."
    assert "intended_use" not in {each["item"].split(":")[0] for each in made["open"]}
    assert "Warn &lt;b&gt;customers&lt;/b&gt; | of a delay." in card_to_html(made)
    assert r"Warn \<b\>customers\</b\> \| of a delay." in card_to_markdown(made)
    bom = card_to_cyclonedx(made, {})
    considerations = bom["metadata"]["component"]["modelCard"]["considerations"]
    assert considerations["useCases"] == ["Warn <b>customers</b> | of a delay.", "Excluded: Wages."]
    assert considerations["technicalLimitations"][0] == "New towns."
    assert STRICT.validate_str(json.dumps(bom)) is None


def test_an_unknown_text_is_refused_with_the_line(project):
    (project / OWNER_FILE).write_text("limits: x\nintended_uses: y\n")
    with pytest.raises(ParameterError, match="Line 2 of .*intended_uses") as error:
        read_owner_texts(project)
    assert "intended_use" in str(error.value)


def test_the_template_can_be_filled_in(project):
    printed = cli("card", "--template", cwd=project).stdout
    (project / OWNER_FILE).write_text(re.sub(r"^#(\w+: \|)\n#  …", r"\1\n  A text.", printed, flags=re.MULTILINE))
    assert set(read_owner_texts(project).model_dump().values()) == {"A text."}
    open_items = {each["item"].split(":")[0] for each in model_card(mc.open("last", project))["open"]}
    assert open_items == {"owner", "sign-off", "protected groups", "robustness", "weak slices"} & open_items


def test_the_bill_of_materials_is_valid_and_names_model_data_and_libraries(card, finished):
    bom = card_to_cyclonedx(card, finished.info["versions"])
    assert STRICT.validate_str(json.dumps(bom)) is None
    component = bom["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": finished.candidate.model.sha256}]
    metric = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    score = finished.verdict.scores[0]
    assert (metric["type"], float(metric["value"])) == (score.metric, score.value)
    assert float(metric["confidenceInterval"]["lowerBound"]) == score.low
    hashes = {each["name"]: each["hashes"][0]["content"] for each in bom["components"] if each["type"] == "data"}
    assert hashes == {name: finished.dataset.tables[name].sha256 for name in ("train", "holdout", "future")}
    assert "scikit-learn" in {each["name"] for each in bom["components"] if each["type"] == "library"}


def test_the_strict_validator_refuses_what_is_wrong(card):
    bom = card_to_cyclonedx(card, {})
    bom["metadata"]["component"]["modelCard"]["opinion"] = "good"
    assert STRICT.validate_str(json.dumps(bom)) is not None


def test_files_are_in_the_run_beside_the_pages_and_at_the_version(base, finished):
    pages = base / "reports" / finished.id
    with open_registry_read_only(finished.workspace) as client:
        stored = Path(client.get_model_version_download_uri(finished.candidate.model.name, "1").removeprefix("file://"))
        model_id = client.get_model_version(finished.candidate.model.name, "1").source.rpartition("/")[2]
        listed = [each.path for each in client.list_logged_model_artifacts(model_id, "model_card")]
    assert sorted(listed) == sorted(f"model_card/{name}" for name in CARD_FILES.values())
    for folder in (finished.folder, pages, stored / "model_card"):
        assert STRICT.validate_str((folder / CARD_FILES["cyclonedx"]).read_text()) is None
        assert json.loads((folder / CARD_FILES["json"]).read_text())["run"] == finished.id
    assert 'href="model_card.html"' in (pages / "05_validation.html").read_text()


def test_a_restored_stage_has_a_card_too(project):
    edited = project / "settings.ini"
    edited.write_text(edited.read_text().replace("parity_rows = 10", "parity_rows = 11"))
    assert cli("run", "-q", cwd=project).returncode == 0
    made = mc.open("last", project)
    assert made.info["stages"]["validation"].get("reused")
    assert json.loads((project / "reports" / made.id / "model_card.json").read_text())["run"] == made.id


def test_a_moved_project_keeps_its_card_with_the_version(project):
    made = mc.open("last", project)
    write_texts(project, limits="Moved.")
    save_model_card(made)
    stored = [*(made.workspace.root / "artifacts" / "models").glob("*/artifacts/model_card/model_card.md")]
    assert len(stored) == 1
    assert "Moved." in stored[0].read_text()


def test_a_run_without_verdict_has_no_card(toy):
    made = mc.open("last", toy)
    (made.folder / "validation.json").unlink()
    with pytest.raises(ArtifactError, match="evaluated no model"):
        model_card(made)


class _Links(HTMLParser):
    "Addresses and ids of a page."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.ids |= {found["id"]} if "id" in found else set()


def broken_links(page: Path) -> list[str]:
    "Links of a page that lead nowhere."
    found = _Links(page.read_text())
    broken = []
    for link in found.links:
        path, _, place = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = page.parent / unquote(path) if path else page
        if not target.is_file() or (place and place not in _Links(target.read_text()).ids):
            broken.append(link)
    return broken


def test_the_card_and_the_dossier_link_to_what_exists(project, tmp_path):
    write_texts(project, intended_use="Warn customers.", cybersecurity="A private network.")
    done = cli("dossier", cwd=project)
    assert done.returncode == 0, done.stderr
    pages = project / "reports" / mc.open("last", project).id
    assert broken_links(pages / "model_card.html") == []
    assert broken_links(pages / "dossier.html") == []
    assert cli("dossier", "1", "--output", tmp_path / "elsewhere" / "d.html", cwd=project).returncode == 0
    elsewhere = _Links((tmp_path / "elsewhere" / "d.html").read_text())
    assert any(link.endswith("model_card.html#use") for link in elsewhere.links)
    broken = broken_links(tmp_path / "elsewhere" / "d.html")
    assert [link for link in broken if "glossary" not in link] == []


def test_the_dossier_has_nine_sections_four_functions_and_the_dates(finished, tmp_path):
    made = make_dossier(finished, tmp_path / "dossier.html", {"entries": 3, "findings": []})
    annex, article, nist = made["parts"].values()
    assert [title[:2] for title in annex] == [f"{number}." for number in range(1, 10)]
    assert annex.keys() == ANNEX_IV.keys()
    assert [*nist] == ["Govern", "Map", "Measure", "Manage"] == [*NIST_AI_RMF]
    items = [item for part in (annex, article, nist) for section in part.values() for item in section]
    assert all(item["evidence"] or item["missing"] for item in items)
    assert all(missing.startswith("not supplied: ") for item in items for missing in item["missing"])
    assert annex["7. Standards"][0]["missing"] == ["not supplied: a person must write it (standards in model_card.yaml)"]
    html = dossier_to_html(made)
    for date in ("2 February 2025", "2 August 2025", "2 August 2026", "2 August 2027"):
        assert date in html
    assert "Article 113" in html
    assert "eur-lex.europa.eu/eli/reg/2024/1689/oj" in html
    assert "3 entries, no findings" in html


def test_evidence_that_is_missing_is_not_linked(project):
    made = mc.open("last", project)
    pages = project / "reports" / made.id
    (pages / "07_monitoring.html").unlink()
    shutil.rmtree(pages / "images", ignore_errors=True)
    annex = make_dossier(made, pages / "dossier.html")["parts"]["Annex IV of Regulation (EU) 2024/1689"]
    monitoring = annex["9. Post-market monitoring"][0]
    assert monitoring["evidence"] == []
    assert "not supplied: stage 7, Monitoring, has not run" in monitoring["missing"]


def test_a_failed_stage_5_leaves_no_card(project):
    add_cell(project, "validation", 'raise ValueError("no")')
    assert cli("run", "-q", cwd=project).returncode == 1
    made = mc.open("last", project)
    assert not (made.folder / CARD_FILES["json"]).exists()
    assert not (project / "reports" / made.id / CARD_FILES["html"]).exists()

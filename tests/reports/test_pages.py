"""The pages of runs in a real browser: they show, lead on, fold, filter and compare; they load nothing from elsewhere."""

import json
import shutil
import subprocess
import sys
from itertools import product

import nbformat
import pytest
from browsing import DESK, PHONE
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mlcycle.core.runs import Run, update_run_info
from mlcycle.core.workspace import Workspace
from mlcycle.reports.pages import TITLES, page_name, rewrite_run_pages, write_comparison, write_index, write_page
from mlcycle.reports.run_facts import diff_runs
from mlcycle.validation.card_formats import write_model_card
from mlcycle.validation.dossier import dossier_to_html, make_dossier

pytestmark = pytest.mark.browser


def copied(run: Run, workspace: Workspace, name: str, **facts) -> Run:
    "A copy of a run, with its pages, in another workspace."
    home = workspace.root / "runs" / name
    shutil.copytree(run.folder, home)
    shutil.copytree(run.workspace.reports / run.id, workspace.reports / name)
    about = json.loads((home / "run.json").read_text())
    (home / "run.json").write_text(json.dumps(about | {"id": name, "project": str(workspace.project)}))
    copy = Run(home)
    update_run_info(copy, **facts)
    return copy


def rescored(run: Run, change: float) -> None:
    "Let a run have met other scores."
    path = run.folder / "validation.json"
    verdict = json.loads(path.read_text())
    for score in verdict["scores"]:
        score["value"] -= change
    path.write_text(json.dumps(verdict | {"approved": False, "decision": "Rejected: it does not show what was asked."}))


def fail(run: Run) -> None:
    "Let the modelling stage of a run have failed, under a second heading."
    stages = {stage: run.info["stages"][stage] for stage in ("problem", "data", "features")}
    said = "04_modelling.ipynb failed in cell 5: RuntimeError: the moon is full"
    update_run_info(
        run, status="failed", error=said, stages=stages | {"modelling": {"seconds": 1.0, "decision": said, "failed": True}}
    )
    pages = run.workspace.reports / run.id
    for stage in list(TITLES)[3:]:
        for path in (run.folder / f"{stage}.json", run.folder / f"{stage}.body.html", *pages.glob(f"*_{stage}.*")):
            path.unlink(missing_ok=True)
    raised = new_output("error", ename="RuntimeError", evalue="the moon is full", traceback=["-----", "\x1b[31mline 1\x1b[0m"])
    cells = [
        new_markdown_cell("# Modelling\n\n> One sentence.\n\n## Sky"),
        new_code_cell("look()", execution_count=1, outputs=[new_output("stream", name="stdout", text="Looking up.\n")]),
        new_markdown_cell("## Moon"),
        new_code_cell("raise RuntimeError('the moon is full')", execution_count=2, outputs=[raised]),
        new_markdown_cell("## Never reached"),
    ]
    nbformat.write(new_notebook(cells=cells), pages / "04_modelling.ipynb")


@pytest.fixture(scope="module")
def runs(table_run, tmp_path_factory) -> list[Run]:
    "Three runs in one workspace: one that was approved, a rejected one with another seed, and a failed one."
    first, workspace = table_run("cancer"), Workspace(tmp_path_factory.mktemp("runs"))
    seeded = {stage: {"seed": 7} for stage in ("data", "features", "modelling", "validation")}
    changed = {stage: seeded.get(stage, {}) | first.info["parameters"].get(stage, {}) for stage in TITLES}
    good = copied(first, workspace, "20260101-000000-good")
    rejected = copied(first, workspace, "20260102-000000-poor", parameters=changed, batch="grid-1")
    rescored(rejected, 0.125)
    stages = rejected.info["stages"]
    update_run_info(rejected, stages=stages | {"problem": stages["problem"] | {"reused": good.id}})
    failed = copied(first, workspace, "20260103-000000-lost")
    fail(failed)
    for run in (good, rejected, failed):
        rewrite_run_pages(run)
    write_model_card(good, workspace.reports / good.id)
    dossier = workspace.reports / good.id / "dossier.html"
    dossier.write_text(dossier_to_html(make_dossier(good, dossier, {"entries": 3, "findings": []})))
    write_index(workspace)
    return [good, rejected, failed]


def address(run: Run, stage: str) -> str:
    "Of a stage's page."
    return (run.workspace.reports / run.id / page_name(stage)).as_uri()


def summary(run: Run) -> str:
    "Of a run's summary page."
    return (run.workspace.reports / run.id / "index.html").as_uri()


def index(runs: list[Run], asked: str = "") -> str:
    "Of the index."
    return (runs[0].workspace.reports / "index.html").as_uri() + asked


def test_from_the_index_through_the_seven_stages(open_page, runs):
    page = open_page(index(runs))
    page.get_by_role("link", name=runs[0].id).click()
    assert page.url == summary(runs[0])
    page.locator(".stages a").first.click()
    for number, (stage, title) in enumerate(TITLES.items(), 1):
        assert page.url.endswith(page_name(stage))
        assert page.locator("h1").all_inner_texts() == [title]
        assert page.locator("main .above").inner_text() == f"Stage {number} of 7"
        assert page.locator("#decision").inner_text() == runs[0].outcome(stage).decision
        assert page.locator(".stages [aria-current]").inner_text().split() == [str(number), title]
        if number < 7:
            page.locator(".neighbours [rel=next]").click()
    page.get_by_role("link", name="All runs").click()
    assert page.locator("h1").inner_text() == "Runs"


@pytest.mark.parametrize("stage", TITLES)
def test_a_page_shows_results_and_folds_code(open_page, runs, stage):
    run = runs[0]
    page = open_page(address(run, stage))
    text = page.locator("main").inner_text()
    assert not [word for word in ("import pandas", "<Axes", "Text(", "Warning") if word in text]
    assert page.locator("main table, main img, main pre").count() > 0
    for image in page.locator("img").all():
        assert image.evaluate("picture => picture.complete && picture.naturalWidth > 100")
        assert image.get_attribute("alt").startswith("Plot")
    page.get_by_role("button", name="Show code").click()
    assert "import pandas" in page.locator("main").inner_text()
    assert page.locator("details.code:visible").count() == page.locator("details.code[open]").count() > 3
    page.get_by_role("button", name="Show code").click()
    assert page.locator("details.code:visible").count() == 0


def test_facts_and_contents(open_page, runs):
    page = open_page(address(runs[1], "modelling"))
    facts = page.locator(".facts").inner_text()
    for words in ("cancer.csv", "569 rows", "seed = 7", "trials = 2", "scikit-learn", "batch grid-1", runs[1].info["started"]):
        assert words in facts
    page.get_by_role("link", name="Leaderboard").click()
    assert page.url.endswith("#leaderboard")
    titles = page.locator("main h2").all_inner_texts()
    assert page.locator(".contents a").all_inner_texts() == titles
    for link in page.locator(".files a").all():
        assert (runs[1].workspace.reports / runs[1].id / link.get_attribute("href")).is_file()


def test_a_stage_taken_from_another_run_says_so(open_page, runs):
    page = open_page(address(runs[1], "problem"))
    assert f"restored from run {runs[0].id}" in page.locator(".facts").inner_text()
    page.get_by_role("link", name=runs[0].id).click()
    assert page.url == address(runs[0], "problem")


def test_a_failed_stage_names_its_cell(open_page, runs):
    page = open_page(address(runs[2], "modelling"))
    banner = page.locator("#decision")
    assert "This stage failed. RuntimeError: the moon is full" in banner.inner_text()
    assert "under “Moon”" in banner.inner_text()
    banner.get_by_role("link", name="In [2]").click()
    assert page.evaluate("document.activeElement.id") == "failed-cell"
    assert page.locator("#failed-cell .traceback").inner_text().strip() == "line 1"
    assert page.locator("#failed-cell .code").is_visible()
    assert "Looking up." in page.locator("main").inner_text()
    assert "Never reached" not in page.content()
    assert page.locator(".stages li.absent").count() == 3
    assert page.locator(".stages a").count() == 4


def test_the_theme_follows_the_system_and_is_remembered(open_page, runs):
    colour = "getComputedStyle(document.body).backgroundColor"
    page = open_page(address(runs[0], "data"), color_scheme="dark")
    dark, button = page.evaluate(colour), page.get_by_role("button", name="Dark theme")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("getComputedStyle(document.querySelector('.plot')).backgroundColor") == "rgb(255, 255, 255)"
    button.click()
    light = page.evaluate(colour)
    assert light == "rgb(255, 255, 255)" != dark
    page.get_by_role("link", name="All runs").click()
    assert page.evaluate(colour) == light
    page.get_by_role("button", name="Dark theme").click()
    page.reload()
    assert page.evaluate(colour) == dark


def test_the_first_tab_leads_to_the_content(open_page, runs):
    for where in (index(runs), address(runs[0], "data")):
        page = open_page(where)
        page.keyboard.press("Tab")
        skip = page.locator(".skip:focus")
        assert skip.bounding_box()["y"] >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_everything_is_there_without_javascript(open_page, runs):
    page = open_page(address(runs[0], "data"), java_script_enabled=False)
    assert page.locator("button:visible").count() == 0
    for place in range(4):
        page.locator("details.code > summary").nth(place).click()
    assert "import pandas" in page.locator("main").inner_text()
    page = open_page(index(runs), java_script_enabled=False)
    assert page.locator("tbody tr").count() == 3
    assert page.locator("input:visible, button:visible").count() == 0


def test_on_paper_there_is_no_code_and_no_navigation(open_page, runs):
    page = open_page(address(runs[0], "validation"))
    page.get_by_role("button", name="Show code").click()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav:visible, button:visible, details.code:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".plot").first.evaluate("plot => getComputedStyle(plot).breakInside") == "avoid"


def everything(runs: list[Run]) -> dict[str, str]:
    "The pages that the whole look is checked on."
    good, rejected, failed = runs
    many = write_comparison(runs * 2, good.workspace.reports / "many.html", "Six runs")
    stages = {stage: address(good, stage) for stage in TITLES}
    compared = f"#compare={good.id},{rejected.id}"
    others = {"index": index(runs), "comparison": index(runs, compared), "many": many.as_uri()}
    pages = good.workspace.reports
    others |= {name: (pages / good.id / f"{name}.html").as_uri() for name in ("model_card", "dossier")}
    others |= {f"summary {run.id[-4:]}": summary(run) for run in runs}
    return stages | others | {"failed": address(failed, "modelling"), "rejected": address(rejected, "validation")}


PAGES = [*TITLES, "index", "comparison", "many", "failed", "rejected", "model_card", "dossier"]
PAGES += ["summary good", "summary poor", "summary lost"]
RULES_OF_THE_LOOK = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]  # Others see no size


@pytest.mark.parametrize("name", PAGES)
def test_accessible_and_as_wide_as_the_screen(open_page, runs, name):
    from axe_playwright_python.sync_playwright import Axe

    page, options = open_page(everything(runs)[name], viewport=DESK, color_scheme="light"), None
    for size, scheme in product((DESK, PHONE), ("light", "dark")):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        found = Axe().run(page, options=options).response["violations"]
        grave = [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
        assert not grave, (size, scheme)
        options = {"runOnly": {"type": "rule", "values": RULES_OF_THE_LOOK}}


def test_the_list_is_filtered_and_sorted(open_page, runs):
    page = open_page(index(runs))
    shown = lambda: [row.get_attribute("data-id")[-4:] for row in page.locator("tbody tr:visible").all()]  # noqa: E731
    assert shown() == ["lost", "poor", "good"], "newest first"
    page.get_by_label("Filter").fill("SEED=7 rejected")
    assert shown() == ["poor"]
    assert page.locator("#count").inner_text() == "1 of 3 runs"
    page.get_by_label("Filter").fill("no such run")
    assert page.get_by_text("No run matches the filter.").is_visible()
    page.get_by_label("Filter").fill("")
    for status, left in (
        ("failed", ["lost"]),
        ("done", ["poor", "good"]),
        ("approved", ["good"]),
        ("", ["lost", "poor", "good"]),
    ):
        page.get_by_label("Status").select_option(status)
        assert shown() == left
    page.get_by_role("button", name="Score").click()
    assert shown() == ["poor", "good", "lost"]
    page.get_by_role("button", name="Score").click()
    assert shown() == ["good", "poor", "lost"], "what has no score comes last"
    assert page.locator("[aria-sort]").all_inner_texts() == ["Score"]
    page.get_by_text("4 stages").click()
    page.get_by_role("link", name="Modelling").click()
    assert page.url == address(runs[2], "modelling")


def test_runs_are_chosen_and_compared(open_page, runs):
    page = open_page(index(runs))
    compare = page.locator("#compare")
    assert compare.is_disabled()
    for run in runs[:2]:
        page.get_by_label(f"Select run {run.id}").check()
    assert compare.inner_text() == "Compare 2 runs"
    compare.click()
    assert page.url.endswith(f"#compare={runs[1].id},{runs[0].id}")
    assert page.locator("h1:visible").all_inner_texts() == ["Comparison of 2 runs"]
    seed = page.locator("tr.differs", has_text="seed (data, features, modelling, validation)")
    assert seed.inner_text().split()[:2] == ["≠", "differs:"]
    assert seed.locator("td").all_inner_texts() == ["7", "default"]
    assert page.locator("tr", has_text="roc_auc").locator("td", has_text="best").count() == 1
    assert page.get_by_text("scikit-learn").is_visible()
    page.get_by_label("Show only differences").check()
    assert not page.get_by_text("scikit-learn").is_visible()
    assert page.locator("tr.differs").first.is_visible()
    page.go_back()
    assert page.locator("h1:visible").inner_text() == "Runs"
    assert compare.is_enabled()


def test_a_comparison_can_be_linked(open_page, runs):
    page = open_page(index(runs, f"#compare={runs[0].id},{runs[2].id},gone"))
    assert page.locator("h1:visible").inner_text() == "Comparison of 2 runs"
    assert "1 of the selected runs" in page.locator("#comparison").inner_text()
    page.get_by_role("link", name="← All runs").click()
    page.get_by_role("heading", name="Runs", exact=True).wait_for()  # The address changes first, then the page
    assert page.locator("h1:visible").inner_text() == "Runs"


def test_browser_and_python_compare_alike(open_page, runs):
    page = open_page(index(runs))
    ids = [run.id for run in runs]
    found = page.evaluate("ids => compareFacts(ids.map(id => runs.find(run => run.id === id)))", ids)
    lines = diff_runs(runs)
    assert [(line.group, line.name, line.differs, line.best) for line in lines] == [
        (line["group"], line["name"], line["differs"], line["best"]) for line in found
    ]
    texts = page.evaluate("lines => lines.map(line => line.values.map(value => value === null ? null : show(value)))", found)
    for line, shown in zip(lines, texts, strict=True):
        assert [text for text in shown if text is not None] == [
            text for text, value in zip(line.shown, line.values, strict=True) if value is not None
        ]


def test_many_runs_are_lines_best_first(open_page, runs, tmp_path):
    page = open_page(write_comparison([*runs, *runs], tmp_path / "elsewhere" / "batch.html", "A batch").as_uri())
    assert page.locator("h1").inner_text() == "A batch"
    order = [text[-4:] for text in page.locator("tbody th a").all_inner_texts()]
    assert order == ["good", "good", "poor", "poor", "lost", "lost"]
    assert page.locator("tbody td", has_text="★").count() >= 2
    page.get_by_text("Equal in all runs").click()
    assert page.get_by_text("scikit-learn").is_visible()
    page.locator("tbody th a").first.click()
    assert page.url == summary(runs[0])


def test_the_list_for_machines(runs):
    listed = json.loads((runs[0].workspace.reports / "index.json").read_text())
    assert [run["id"] for run in listed] == [run.id for run in reversed(runs)]
    assert [run["status"] for run in listed] == ["failed", "done", "done"]
    assert listed[2]["facts"]["scores"]["roc_auc"]["value"] == runs[0].verdict.scores[0].value
    assert all((runs[0].workspace.reports / run["page"]).is_file() for run in listed)


def test_what_hides_in_the_data_neither_runs_nor_loads(browser, runs):
    evil = "<script>document.title = 'owned'</script><img src='https://example.invalid/a.png' onerror='document.title = 1'>"
    run, path = runs[0], runs[0].workspace.reports / runs[0].id / "evil.ipynb"
    cells = [new_markdown_cell("# Data"), new_code_cell("1", outputs=[new_output("display_data", {"text/html": evil})])]
    nbformat.write(new_notebook(cells=cells), path)
    kept = run.folder / "data.body.html"
    before = kept.read_text()
    page, left = browser.new_page(), []
    page.on("response", lambda response: left.append(response.url) if not response.url.startswith(("file:", "data:")) else None)
    page.on("requestfinished", lambda request: left.append(request.url) if "example" in request.url else None)
    blocked = []
    page.on("console", lambda message: blocked.append(message.text))
    page.goto(write_page(run, "data", path).as_uri())
    kept.write_text(before)
    assert page.title() == f"Data · {run.id}"
    assert left == []
    assert any("Content Security Policy" in text for text in blocked)
    page.close()


def test_pages_are_framed_again_without_nbconvert(runs):
    code = (
        "import sys, time; from pathlib import Path; from mlcycle.reports.pages import write_index, rewrite_run_pages; "
        "from mlcycle.core.runs import Run; run = Run(Path(sys.argv[1])); start = time.process_time(); "
        "assert len(rewrite_run_pages(run)) == 7; write_index(run.workspace); "
        "print(time.process_time() - start, [name for name in ('nbconvert', 'nbformat', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, runs[0].folder], capture_output=True, text=True, check=True)
    seconds, imported = done.stdout.strip().split(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 0.3

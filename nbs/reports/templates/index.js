// The list of runs: filter, sort, select, compare. `#compare=ID,ID` in the address links to a comparison.
const runs = JSON.parse(document.getElementById("runs").textContent);
const [list, comparison, compareButton] = ["list", "comparison", "compare"].map((id) => document.getElementById(id));

function startList() {
  const table = document.getElementById("table");
  const rows = [...table.tBodies[0].rows];
  const boxes = rows.map((row) => row.querySelector("input"));
  const [words, status, count] = ["words", "status", "count"].map((id) => document.getElementById(id));
  const texts = new Map(runs.map((run) => [run.id, [run.id, run.started, run.batch, run.source, run.target, run.task, run.metric, run.status, run.verdict, run.decision, run.action, ...Object.entries(run.facts.parameters).map(([name, value]) => `${name}=${show(value)}`)].join(" ").toLowerCase()]));

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const fits = wanted.every((word) => texts.get(row.dataset.id).includes(word));
      row.hidden = !fits || (status.value !== "" && !row.dataset.status.split(" ").includes(status.value));
    }
    const seen = rows.filter((row) => !row.hidden).length;
    count.textContent = seen === rows.length ? `${seen} run${seen === 1 ? "" : "s"}` : `${seen} of ${rows.length} runs`;
    document.getElementById("none").hidden = seen > 0;
    table.hidden = seen === 0;
  }

  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.closest("tr").dataset.id);
  function choose() {
    compareButton.disabled = chosen().length < 2;
    compareButton.textContent = chosen().length ? `Compare ${chosen().length} run${chosen().length === 1 ? "" : "s"}` : "Compare";
  }

  makeSortable(table);
  document.getElementById("filters").hidden = false;
  for (const box of boxes) {
    box.hidden = false;
    box.addEventListener("change", choose);
  }
  for (const field of [words, status]) field.addEventListener("input", filter);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  compareButton.addEventListener("click", () => { location.hash = `compare=${chosen().join(",")}`; });
  filter();
  choose();
}

// The address determines what is shown, so that the browser's Back button works.
function follow(focus) {
  const ids = location.hash.startsWith("#compare=") ? decodeURIComponent(location.hash.slice(9)).split(",") : [];
  const found = ids.map((id) => runs.find((run) => run.id === id)).filter(Boolean);
  const comparing = found.length > 1;
  list.hidden = comparing;
  comparison.hidden = !comparing;
  if (comparing) {
    showComparison(found, comparison, `Comparison of ${found.length} runs`);
    const missing = ids.length - found.length;
    comparison.prepend(make("p", {}, make("a", { href: "#" }, "← All runs"), missing ? ` ${missing} of the selected runs do not exist.` : ""));
    scrollTo(0, 0);
    if (focus) document.getElementById("comparison-title").focus();
  } else if (focus && compareButton) compareButton.focus();
}

if (runs.length) startList();
addEventListener("hashchange", () => { if (location.hash !== "#main") follow(true); });
follow(false);

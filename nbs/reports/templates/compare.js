// Comparison of runs: one column per run, or one row per run if there are many. The facts are those of reports/run_facts.
const GROUPS = ["parameters", "scores", "outcomes", "versions"];

function make(tag, properties, ...children) {
  const { data, ...others } = properties;
  const node = Object.assign(document.createElement(tag), others);
  Object.assign(node.dataset, data);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// As `interval_decimals` and `format_score` of Python: half the width of the interval with two significant digits
function decimalsOf(low, high) {
  if (low === null || high === null || !(high - low > 1e-9 * Math.abs(high))) return null;
  return Math.min(6, Math.max(0, 1 - Math.floor(Math.log10((high - low) / 2))));
}

function formatScore(value, decimals) {
  const size = Math.abs(value);
  const digits = decimals ?? (size < 10 ? 4 : Math.max(0, 3 - Math.floor(Math.log10(size))));
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function show(value) {
  if (value && value.better) {
    const decimals = decimalsOf(value.low, value.high);
    const [low, high] = [value.low, value.high].map((end) => (end === null ? "" : formatScore(end, decimals)));
    return formatScore(value.value, decimals) + (value.low === null ? "" : ` [${low}, ${high}]`);
  }
  if (Array.isArray(value)) return value.map(show).join("; ");
  if (value && typeof value === "object") return Object.entries(value).map(([key, inner]) => `${key}: ${show(inner)}`).join("; ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number" && !Number.isInteger(value)) {
    return Math.abs(value) < 1000 ? String(Number(value.toPrecision(4))) : value.toFixed(1);
  }
  return String(value);
}

// As diff_facts in Python: a parameter that several stages have gets one row if its values are equal in all of them.
function compareFacts(runs) {
  const lines = [];
  for (const group of GROUPS) {
    const rows = new Map();
    for (const name of new Set(runs.flatMap((run) => Object.keys(run.facts[group])))) {
      const values = runs.map((run) => run.facts[group][name] ?? null);
      if (values.every((value) => value === null)) continue;
      const dot = group === "parameters" ? name.lastIndexOf(".") : -1;
      const key = JSON.stringify([name.slice(dot + 1), values]);
      const row = rows.get(key) ?? rows.set(key, { name: name.slice(dot + 1), values, stages: [] }).get(key);
      if (dot > 0) row.stages.push(name.slice(0, dot));
    }
    for (const { name, values, stages } of rows.values()) {
      const texts = new Set(values.map((value) => JSON.stringify(value)));
      lines.push({
        group, values, differs: texts.size > 1,
        best: group === "scores" && !differingRows(runs, name) ? findBest(values) : [],
        name: stages.length ? `${name} (${stages.join(", ")})` : name,
      });
    }
  }
  return lines;
}

// Whether scores were computed on different rows, so that the best of them may only be the luckiest.
function differingRows(runs, name) {
  const table = name.endsWith(", cross-validated") ? "train" : "holdout";
  const hashes = runs.map((run) => run.rows_of?.[table] ?? "").filter(Boolean);
  return new Set(hashes).size > 1 ? table : "";
}

function findBest(scores) {
  const numbers = scores.filter(Boolean).map((score) => score.value);
  if (new Set(numbers).size < 2) return [];
  const best = (scores.find(Boolean).better === "lower" ? Math.min : Math.max)(...numbers);
  return scores.flatMap((score, place) => (score && score.value === best ? [place] : []));
}

// A value; for a score also a bar: its interval on the range of all runs.
function valueOf(line, place) {
  const value = line.values[place];
  if (value === null) return [make("span", { className: "soft" }, line.group === "parameters" ? "default" : "–")];
  if (!value.better) return [show(value)];
  const best = line.best.includes(place);
  const nodes = [make("span", { className: "nowrap" }, make(best ? "b" : "span", {}, formatScore(value.value, decimalsOf(value.low, value.high))), best ? " ★ best" : "")];
  if (value.low === null) return nodes;
  nodes.push(make("small", { className: "nowrap" }, [value.low, value.high].map((end) => formatScore(end, decimalsOf(value.low, value.high))).join(" to ")));
  const known = line.values.filter(Boolean);
  const low = Math.min(...known.map((score) => score.low ?? score.value));
  const high = Math.max(...known.map((score) => score.high ?? score.value));
  if (known.length < 2 || high === low) return nodes;
  const at = (number) => `${(100 * (number - low)) / (high - low)}%`;
  const bar = make("span", { className: "interval", ariaHidden: "true" }, make("i", {}), make("b", {}));
  bar.firstChild.style.left = at(value.low);
  bar.firstChild.style.right = `calc(100% - ${at(value.high)})`;
  bar.lastChild.style.left = at(value.value);
  return [...nodes, bar];
}

function runHead(run) {
  const facts = [run.status, run.verdict].filter(Boolean).join(", ");
  return [make("a", { href: run.page }, run.id), make("small", {}, run.started), make("small", {}, facts)];
}

function sideBySide(runs, lines) {
  const table = make("table", { className: "compared" }, make("caption", { className: "hear" }, "Values that differ are marked"));
  const heads = runs.map((run) => make("th", { scope: "col" }, ...runHead(run)));
  table.append(make("thead", {}, make("tr", {}, make("td", {}), ...heads)));
  for (const group of GROUPS) {
    const mine = lines.filter((line) => line.group === group);
    if (!mine.length) continue;
    const differ = mine.some((line) => line.differs);
    const title = make("th", { scope: "rowgroup", colSpan: runs.length + 1 }, group[0].toUpperCase() + group.slice(1));
    const body = make("tbody", { className: differ ? "" : "same" }, make("tr", { className: "group" }, title));
    for (const line of mine) {
      const mark = line.differs ? make("span", { className: "mark" }, make("span", { ariaHidden: "true" }, "≠ "), make("span", { className: "hear" }, "differs: ")) : null;
      const cells = runs.map((_, place) => make("td", {}, ...valueOf(line, place)));
      body.append(make("tr", { className: line.differs ? "differs" : "same" }, make("th", { scope: "row" }, mark, line.name), ...cells));
    }
    table.append(body);
  }
  return [make("div", { className: "wide", data: { label: "Comparison, scrolls horizontally" } }, table)];
}

// Many runs: one row per run, one column per fact that differs; facts that are equal are listed once.
function lineByLine(runs, lines) {
  const columns = lines.filter((line) => line.differs && !line.name.endsWith(" decision"));
  const table = make("table", { className: "compared many" }, make("caption", { className: "hear" }, "One row per run, one column per fact that differs"));
  const heads = columns.map((line) => make("th", { scope: "col", data: { sort: line.name } }, line.name));
  table.append(make("thead", {}, make("tr", {}, make("th", { scope: "col", data: { sort: "run" } }, "Run"), ...heads)));
  const body = make("tbody", {});
  runs.forEach((run, place) => {
    const cells = columns.map((line) => {
      const value = line.values[place];
      return make("td", { data: { value: value?.better ? value.value : value === null ? "" : show(value) } }, ...valueOf(line, place));
    });
    body.append(make("tr", {}, make("th", { scope: "row", data: { value: run.id } }, ...runHead(run)), ...cells));
  });
  table.append(body);
  const first = columns.findIndex((line) => line.group === "scores");
  makeSortable(table);
  if (first >= 0 && !differingRows(runs, columns[first].name)) sortBy(table, first + 1, columns[first].values.find(Boolean).better === "lower" ? 1 : -1);
  const same = lines.filter((line) => !line.differs);
  const items = same.flatMap((line) => [make("dt", {}, line.name), make("dd", {}, ...valueOf(line, 0))]);
  return [
    make("div", { className: "wide", data: { label: "Comparison, scrolls horizontally" } }, table),
    make("details", { className: "same" }, make("summary", {}, `Equal in all runs (${same.length})`), make("dl", { className: "alike" }, ...items)),
  ];
}

function showComparison(runs, place, title) {
  const lines = compareFacts(runs);
  const count = lines.filter((line) => line.differs).length;
  const only = make("input", { type: "checkbox", id: "only" });
  only.addEventListener("change", () => place.classList.toggle("only-differing", only.checked));
  place.classList.remove("only-differing");
  place.replaceChildren(
    make("h1", { id: "comparison-title", tabIndex: -1 }, title),
    make("p", { className: "soft" }, `${count} of ${lines.length} facts differ. ★ marks the best score on the same rows.`),
    differingRows(runs, "") ? make("p", { className: "warning" }, make("strong", {}, "The runs have different holdouts."), " Their holdout scores cannot be compared, and none is marked as the best: a high one may be due to easy rows.") : "",
    make("p", { className: "choice" }, only, make("label", { htmlFor: "only" }, "Show only differences")),
    ...(runs.length > 4 ? lineByLine(runs, lines) : sideBySide(runs, lines)),
  );
  nameBoxes();
}

// Headers become buttons; a second click reverses the order.
function makeSortable(table) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    if (!head.dataset.sort) continue;
    const button = make("button", { type: "button", className: "sort" }, ...head.childNodes, make("span", { className: "arrow", ariaHidden: "true" }));
    button.addEventListener("click", () => sortBy(table, column, head.ariaSort === "ascending" ? -1 : 1));
    head.replaceChildren(button);
  }
}

function sortBy(table, column, direction) {
  const value = (row) => row.cells[column].dataset.value ?? "";
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
  const order = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
  rows.sort((one, two) => {
    const [a, b] = [value(one), value(two)];
    return a === "" || b === "" ? (a === "") - (b === "") : direction * order(a, b); // Missing values come last
  });
  table.tBodies[0].append(...rows);
  for (const [place, head] of [...table.tHead.rows[0].cells].entries()) {
    head.ariaSort = place === column ? (direction > 0 ? "ascending" : "descending") : null;
  }
}

"use strict";
// The live page: reads the panels of a range as JSON, draws what has changed, and reads them again after some seconds.
// Every text comes from the prediction log, so it is set as text; no markup is ever parsed.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const find = (id) => document.getElementById(id);
  const links = [...document.querySelectorAll("[data-range]")];
  const names = links.map((link) => link.dataset.range);
  const drawn = new Map(); // JSON by panel
  const charts = new Map(); // Chart and its parts, by figure
  let range = "";
  let timer = 0;
  let request = 0;
  let lastStatus = "";
  let awaySince = "";
  let cursor = -1;

  // Elements
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== "" && value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const shape = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  // Numbers and times
  const number = (value, decimals) => value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  function shown(value, chart) {
    if (value === null || value === undefined) return "–";
    if (chart.log && (value >= 1e5 || value < 0.01)) return value.toExponential(0);
    return number(value, chart.log && value >= 100 ? 0 : chart.decimals) + (chart.unit === "%" ? " %" : "");
  }
  const clock = (form, iso) => {
    const when = new Date(iso);
    return Number.isNaN(when.getTime()) ? iso : new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...form }).format(when);
  };
  const minutes = (iso) => (Number.isNaN(new Date(iso).getTime()) ? iso : iso.slice(0, 16).replace("T", " "));
  const span = (chart, i) => {
    const sameDay = chart.times[i].slice(0, 10) === chart.ends[i].slice(0, 10);
    return `${minutes(chart.times[i])} – ${sameDay ? minutes(chart.ends[i]).slice(11) : minutes(chart.ends[i])}`;
  };
  // Ticks at whole minutes, hours, days or weeks (from Monday), at equal distances, at most so many
  const HOUR = 36e5;
  const STEPS = [1 / 60, 1 / 12, 1 / 6, 1 / 4, 1 / 2, 1, 2, 3, 6, 12, 24, 48, 24 * 7, 24 * 14, 24 * 28, 24 * 56, 24 * 84, 24 * 168].map((hours) => hours * HOUR);
  function timeTicks(begin, end, most) {
    const step = STEPS.find((each) => (end - begin) / each <= most) || STEPS.at(-1);
    const monday = step >= 24 * 7 * HOUR ? 24 * 4 * HOUR : 0; // The first one after 1970-01-01
    const ticks = [];
    for (let each = Math.ceil((begin - monday) / step) * step + monday; each <= end; each += step) ticks.push(each);
    const form = step < 24 * HOUR ? { hour: "2-digit", minute: "2-digit" } :
      end - begin <= 24 * 8 * HOUR ? { weekday: "short", day: "numeric" } : { day: "numeric", month: "short" };
    return ticks.map((each) => [each, clock(form, new Date(each).toISOString())]);
  }

  // Scales
  function niceStep(rough) {
    const power = 10 ** Math.floor(Math.log10(rough));
    return power * ([1, 2, 5].find((each) => each * power >= rough * 0.999) || 10);
  }
  const isBars = (chart) => chart.series.some((each) => each.style === "bars");
  function extent(chart) {
    const numbers = [...chart.marks.map((each) => each.value), ...chart.bands.flatMap((each) => [each.low, each.high])];
    if (isBars(chart)) chart.times.forEach((_, i) => numbers.push(chart.series.reduce((sum, each) => sum + (each.values[i] || 0), 0)));
    else for (const each of chart.series) numbers.push(...each.values, ...each.low, ...each.high);
    const known = numbers.filter((value) => value !== null && (!chart.log || value > 0));
    return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
  }
  function verticalScale(chart, top, bottom) {
    let [low, high] = extent(chart);
    if (chart.log) {
      [low, high] = [Math.floor(Math.log10(Math.max(low, 0.01))), Math.ceil(Math.log10(Math.max(high, 10)))];
      const step = Math.ceil((high - low) / 4) || 1;
      const ticks = [];
      for (let each = low; each <= high; each += step) ticks.push(10 ** each);
      const at = (value) => bottom - ((Math.max(Math.log10(value), low) - low) / (high - low)) * (bottom - top);
      return { ticks, at, label: (value) => (value >= 1e5 || value < 0.01 ? value.toExponential(0) : String(value)) };
    }
    if (chart.zero) low = Math.min(0, low);
    if (high <= low) high = low + (Math.abs(low) || 1);
    const step = niceStep((high - low) / 3.5);
    low = Math.floor(low / step + 1e-9) * step;
    high = Math.ceil(high / step - 1e-9) * step;
    const ticks = [];
    for (let each = low; each <= high + step / 2; each += step) ticks.push(each);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return { ticks, at: (value) => bottom - ((value - low) / (high - low)) * (bottom - top), label: (value) => number(value, decimals) };
  }

  // Drawing
  const colour = (series, index) => `s${series.colour || (index % 6) + 1}`;
  function lineParts(series, index, x, y) {
    const kind = `${colour(series, index)} ${series.style}`;
    const parts = [];
    const runs = [];
    series.values.forEach((value, i) => {
      if (value === null) return;
      if (i === 0 || series.values[i - 1] === null) runs.push([]);
      runs.at(-1).push(i);
    });
    for (const run of runs) {
      const edge = (ends) => run.map((i) => `${x(i).toFixed(1)},${y(ends[i] ?? series.values[i]).toFixed(1)}`);
      if (series.low.length && run.length > 1) {
        parts.push(shape("polygon", { class: `ribbon fill ${kind}`, points: [...edge(series.low), ...edge(series.high).reverse()].join(" ") }));
      } else if (series.low.length && series.low[run[0]] !== null) {
        parts.push(shape("path", { class: `thin ${kind}`, d: `M${edge(series.low)[0]}L${edge(series.high)[0]}` }));
      }
      if (run.length > 1) parts.push(shape("path", { class: kind, d: `M${edge(series.values).join("L")}` }));
      else parts.push(shape("circle", { class: `fill ${kind}`, cx: x(run[0]), cy: y(series.values[run[0]]), r: 3 }));
    }
    return parts;
  }
  function barParts(chart, x, y, width) {
    const parts = [];
    chart.times.forEach((_, i) => {
      let base = 0;
      chart.series.forEach((series, index) => {
        const value = series.values[i] || 0;
        if (!value) return;
        const [upper, lower] = [y(base + value), y(base)];
        const options = { class: `fill ${colour(series, index)}`, x: (x(i) - width / 2).toFixed(1), width: width.toFixed(1) };
        parts.push(shape("rect", { ...options, y: upper.toFixed(1), height: Math.max(0.8, lower - upper).toFixed(1) }));
        base += value;
      });
    });
    return parts;
  }
  function axisParts(chart, scale, left, right, bottom) {
    const parts = scale.ticks.flatMap((value) => [
      shape("line", { class: "axis", x1: left, x2: right, y1: scale.at(value), y2: scale.at(value) }),
      shape("text", { x: left - 8, y: scale.at(value) + 4, "text-anchor": "end" }, scale.label(value))]);
    const [begin, end] = [new Date(chart.times[0]).getTime(), new Date(chart.ends.at(-1)).getTime()];
    if (!(end > begin)) return parts;
    for (const [time, text] of timeTicks(begin, end, Math.max(2, Math.floor((right - left) / 75)))) {
      const at = left + ((time - begin) / (end - begin)) * (right - left);
      if (at - left > 12) parts.push(shape("text", { class: "tick", x: at.toFixed(1), y: bottom + 18, "text-anchor": at > right - 20 ? "end" : "middle" }, text));
    }
    return parts;
  }
  function noteParts(chart, scale, left, right) {
    const parts = [];
    for (const each of chart.bands) {
      const [upper, lower] = [scale.at(each.high), scale.at(each.low)];
      parts.push(shape("rect", { class: "band", x: left, width: right - left, y: upper, height: Math.max(1, lower - upper) }));
    }
    for (const each of chart.marks) {
      const height = scale.at(each.value);
      parts.push(shape("line", { class: `mark ${chart.bands.length ? "good" : ""}`, x1: left, x2: right, y1: height, y2: height }));
    }
    return parts;
  }
  function draw(figure) {
    const entry = charts.get(figure);
    const { chart } = entry;
    const width = figure.clientWidth;
    if (!width || !chart.times.length) return;
    const [left, right, top, bottom] = [52, width - 4, 12, entry.height - 26];
    const scale = verticalScale(chart, top, bottom);
    const slot = (right - left) / chart.times.length;
    const x = (i) => left + slot * (i + 0.5);
    const body = isBars(chart) ? barParts(chart, x, scale.at, Math.min(26, Math.max(1, slot * 0.72))) :
      chart.series.flatMap((series, index) => lineParts(series, index, x, scale.at));
    entry.line = shape("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    entry.x = x;
    entry.index = (place) => Math.min(chart.times.length - 1, Math.max(0, Math.floor((place - left) / slot)));
    entry.svg.setAttribute("viewBox", `0 0 ${width} ${entry.height}`);
    entry.svg.setAttribute("height", entry.height);
    entry.svg.replaceChildren(...axisParts(chart, scale, left, right, bottom), ...noteParts(chart, scale, left, right), ...body, entry.line);
    readOut(entry);
  }
  function readOut(entry) {
    const { chart, line } = entry;
    const known = cursor >= 0 && cursor < chart.times.length;
    if (line) {
      line.setAttribute("visibility", known ? "visible" : "hidden");
      if (known) for (const end of ["x1", "x2"]) line.setAttribute(end, entry.x(cursor));
    }
    chart.series.forEach((series, index) => {
      entry.values[index].textContent = known ? shown(series.values[cursor], chart) : "";
    });
    entry.time.textContent = known ? span(chart, cursor) : chart.unit;
  }
  function moveCursor(to) {
    if (to === cursor) return;
    cursor = to;
    for (const entry of charts.values()) readOut(entry);
  }

  // Parts of the page
  function keySwatch(kind) {
    const mark = kind.endsWith("bars") ? shape("rect", { class: `fill ${kind}`, x: 4, y: 0, width: 10, height: 10, rx: 2 }) :
      shape("path", { class: kind, d: "M1,5L17,5" });
    return shape("svg", { viewBox: "0 0 18 10", "aria-hidden": "true" }, mark);
  }
  function chartOf(chart, key, height, title) {
    const values = chart.series.map(() => make("b"));
    const time = make("li", { class: "time" });
    const legend = make("ul", { class: "key" }, ...chart.series.map((series, index) => make("li", {}, keySwatch(`${colour(series, index)} ${series.style}`),
      make("span", { class: "name", title: series.name }, series.name), values[index])),
    ...chart.marks.map((each) => make("li", {}, keySwatch(`mark ${chart.bands.length ? "good" : ""}`), each.label)), time);
    const last = chart.series.map((each) => `${each.name} ${shown(each.values.findLast((value) => value !== null), chart)}`).join(", ");
    const label = `${chart.title}, ${chart.times.length} windows; the last values: ${last}. A table follows.`;
    const svg = shape("svg", { role: "img", "aria-label": label });
    const figure = make("div", { class: "chart", tabindex: 0, role: "group", "data-key": key, "aria-label": `${chart.title}: arrow keys move through the windows` },
      make("h3", { class: chart.title === title ? "hear" : "" }, chart.title), legend, svg);
    charts.set(figure, { chart, svg, values, time, height });
    svg.addEventListener("pointermove", (event) => moveCursor(charts.get(figure).index(event.clientX - svg.getBoundingClientRect().left)));
    svg.addEventListener("pointerleave", () => moveCursor(-1));
    figure.addEventListener("blur", () => moveCursor(-1));
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const count = chart.times.length;
      moveCursor(cursor < 0 ? (step < 0 ? count - 1 : 0) : (cursor + step + count) % count);
    });
    watcher.observe(figure);
    return figure;
  }
  const watcher = new ResizeObserver((entries) => {
    for (const each of entries) if (charts.has(each.target)) draw(each.target);
  });
  function chartTable(chart) {
    const heads = ["From", ...chart.series.map((each) => each.name)];
    const rows = chart.times.map((time, i) => [minutes(time), ...chart.series.map((each) => {
      const ends = each.low[i] !== null && each.low[i] !== undefined ? ` [${shown(each.low[i], chart)}, ${shown(each.high[i], chart)}]` : "";
      return shown(each.values[i], chart) + ends;
    })]);
    return { caption: chart.title, heads, rows, numeric: heads.map((_, i) => i > 0) };
  }
  const TONES = { critical: "failed", warning: "advice", info: "running", firing: "failed", resolved: "approved" };
  function tableOf(table, quiet) {
    const isFold = (i) => Boolean(table.runbooks?.includes(i));
    const long = table.heads.map((_, i) => !isFold(i) && table.rows.some((row) => row[i].length > 30));
    const short = table.heads.map((_, i) => !isFold(i) && table.rows.every((row) => row[i].length <= 24));
    const kind = (i) => [table.numeric[i] ? "numeric" : "", long[i] ? "long" : "", short[i] ? "nowrap" : ""].join(" ").trim();
    const value = (text, i, row) => isFold(i) && text ? foldOf(`runbook-${row[1]}`, "Runbook", () => make("p", { class: "runbook" }, text)) :
      (table.badges?.includes(i) ? make("span", { class: `badge ${TONES[text.split(",")[0]] || ""}` }, text) : text);
    const head = make("tr", {}, ...table.heads.map((text, i) => make("th", { scope: "col", class: kind(i) }, text)));
    const rows = table.rows.map((row) => make("tr", {}, ...row.map((text, i) =>
      make(i === 0 && !table.badges ? "th" : "td", { scope: i === 0 && !table.badges ? "row" : "", class: kind(i) }, value(text, i, row)))));
    const caption = make("caption", { class: table.folded || quiet ? "hear" : "" }, table.caption);
    return make("div", { class: "wide", "data-label": table.caption }, make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
  }
  function foldOf(key, title, content) {
    const fold = make("details", { "data-key": key }, make("summary", {}, title));
    fold.addEventListener("toggle", () => {
      if (fold.open && fold.children.length === 1) fold.append(content());
      nameBoxes();
    });
    return fold;
  }
  const FULL = ["alerts", "drift", "versions", "notes"];
  function panelOf(panel) {
    const part = make("section", { class: `panel ${FULL.includes(panel.id) ? "full" : ""}`, id: panel.id, "aria-labelledby": `${panel.id}-title` },
      make("h2", { id: `${panel.id}-title` }, panel.title));
    if (panel.note) part.append(make("p", { class: "soft" }, panel.note));
    if (panel.empty) part.append(make("p", { class: "soft" }, panel.empty));
    panel.charts.forEach((chart, i) => part.append(chartOf(chart, `${panel.id}-chart-${i}`, i ? 110 : 200, panel.title),
      foldOf(`${panel.id}-values-${i}`, "Values", () => tableOf(chartTable(chart), true))));
    panel.tables.forEach((table, i) => part.append(table.folded ? foldOf(`${panel.id}-table-${i}`, table.caption, () => tableOf(table)) : tableOf(table, panel.tables.length === 1 && !panel.charts.length)));
    if (panel.lines.length) part.append(make("ul", { class: "lines" }, ...panel.lines.map((text) => make("li", {}, text))));
    return part;
  }

  // What has changed is drawn again; open folds and the focus stay.
  function replacePanel(old, panel) {
    const part = panelOf(panel);
    if (!old) return part;
    const open = [...old.querySelectorAll("details[open]")].map((each) => each.dataset.key);
    const focus = old.contains(document.activeElement) ? document.activeElement.closest("[data-key]")?.dataset.key : "";
    for (const figure of old.querySelectorAll(".chart")) {
      charts.delete(figure);
      watcher.unobserve(figure);
    }
    old.replaceWith(part);
    for (const each of part.querySelectorAll("[data-key]")) {
      if (open.includes(each.dataset.key)) each.open = true;
      if (focus && each.dataset.key === focus) (each.querySelector("summary") || each).focus({ preventScroll: true });
    }
    return part;
  }
  function showPanels(panels) {
    const home = find("panels");
    const wanted = panels.map((each) => each.id);
    for (const old of [...home.children]) if (!wanted.includes(old.id)) {
      drawn.delete(old.id);
      old.remove();
    }
    for (const panel of panels) {
      const json = JSON.stringify(panel);
      const old = find(panel.id);
      if (drawn.get(panel.id) === json && old) continue;
      drawn.set(panel.id, json);
      const part = replacePanel(old, panel);
      if (!old) home.append(part);
      for (const figure of part.querySelectorAll(".chart")) draw(figure);
    }
    if (panels.some((panel, i) => home.children[i]?.id !== panel.id)) home.append(...panels.map((panel) => find(panel.id)));
    nameBoxes();
  }
  function show(data) {
    const { headline } = data;
    const parts = [make("p", {}, make("strong", {}, headline.action), headline.stage ? ` · ${headline.stage}` : ""), make("p", {}, headline.reason)];
    if (data.replay) parts.push(make("p", {}, "This is a rehearsal: rows of the training table were replayed; no traffic is judged."));
    find("headline").className = `decision ${headline.tone}`;
    find("headline").replaceChildren(...parts);
    find("figures").replaceChildren(...data.figures.map((each) => make("div", {}, make("dt", {}, each.name),
      make("dd", {}, each.value, each.note ? make("small", {}, each.note) : ""))));
    find("figures").hidden = !data.figures.length;
    find("start").hidden = !data.empty;
    find("content").hidden = false; // Before the panels, which are as wide as it is
    showPanels(data.panels);
  }

  // Status
  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }
  function showStatus(text, warning) {
    setText(find("status"), text);
    setText(find("stale"), warning);
    find("stale").hidden = !warning;
    document.documentElement.classList.toggle("stale", Boolean(warning));
  }
  const nowText = () => `${clock({ hour: "2-digit", minute: "2-digit", second: "2-digit" }, new Date().toISOString())} UTC`;

  // Reading
  async function refresh() {
    clearTimeout(timer);
    const [own, ofRange] = [++request, range];
    let again = Number(find("refresh").value);
    try {
      const response = await fetch(`api/dashboard?range=${encodeURIComponent(range)}`, { signal: AbortSignal.timeout(8000), cache: "no-store" });
      if (!response.ok) throw new Error(`status ${response.status}`);
      const body = await response.json();
      if (own !== request || ofRange !== range) return;
      awaySince = "";
      lastStatus = body.status.text;
      showStatus(body.status.text, body.status.warning);
      if (body.data) show(body.data);
      else if (!body.status.warning) find("content").hidden = true;
      if (body.status.busy && again) again = 1;
    } catch {
      if (own !== request) return;
      awaySince ||= nowText();
      showStatus(lastStatus, `The server of this page has not responded since ${awaySince}. What is shown may be outdated.`);
    }
    if (again && !document.hidden) timer = setTimeout(refresh, again * 1000);
  }
  function remember(push) {
    const address = new URL(location.href);
    address.searchParams.set("range", range);
    address.searchParams.set("refresh", find("refresh").value);
    history[push ? "pushState" : "replaceState"](null, "", address);
  }
  function choose(name) {
    range = names.includes(name) ? name : "day";
    cursor = -1;
    for (const link of links) {
      if (link.dataset.range === range) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    refresh();
  }
  for (const link of links) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      choose(link.dataset.range);
      remember(true);
    });
  }
  const given = () => new URL(location.href).searchParams;
  const options = [...find("refresh").options].map((each) => each.value);
  if (options.includes(given().get("refresh"))) find("refresh").value = given().get("refresh");
  find("refresh").addEventListener("change", () => {
    remember(false);
    refresh();
  });
  find("now").addEventListener("click", refresh);
  addEventListener("popstate", () => choose(given().get("range")));
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && Number(find("refresh").value)) refresh();
  });
  choose(given().get("range"));
  remember(false);
})();

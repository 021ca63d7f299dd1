// The front-end of labelling, in a notebook (as an anywidget) and on a page: it draws the state of a session and sends actions.
// Python decides everything. Values come from rows, so each is set as text; no markup is ever parsed.
// A choice is kept until Python has confirmed it, and is sent again if the connection was lost.

const SETTLE_MS = 250; // A row takes no choice this soon after it appears: a key that is pressed twice must not label two rows
const PATIENCE_MS = 15_000; // An action without a response after this time counts as lost
const MAX_COMMENT = 2000; // Characters; a session keeps no more
const RETRY_SECONDS = [1, 2, 4, 8, 15];
const OTHERS = [["skip", "Skip", "s"], ["unsure", "Unsure", "u"], ["undo", "Undo", "z"]];
const RESERVED = new Set(["s", "u", "z", "c"]);
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

// Elements
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== "" && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

// Values of a row
function webAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:"].includes(url.protocol) ? url.href : "";
  } catch {
    return ""; // Not an address: it is shown as text
  }
}
const imageAddress = (text) => (/^data:image\/|^\/image\//.test(text || "") ? text : "");
const isLong = (field) => field.kind === "image" || field.text.length > 90 || field.text.includes("\n");

function drawImage(field) {
  const image = make("img", { src: field.url, alt: field.text || field.name, class: "lb-image" });
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth <= 96));
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "lb-missing" }, `The image cannot be shown: ${field.text}`)));
  return image;
}
function drawValue(field) {
  const address = field.kind === "link" ? webAddress(field.url || field.text) : "";
  if (field.kind === "missing") return make("span", { class: "lb-missing" }, field.text || "missing");
  if (field.kind === "image" && imageAddress(field.url)) return drawImage(field);
  if (field.kind === "image" && !field.text) return make("span", { class: "lb-missing" }, "The image cannot be shown.");
  if (!address) return field.text;
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, field.text, make("span", { class: "lb-hear" }, " (in a new tab)"));
}
const breakable = (name) => name.split(/(?<=_)/).flatMap((part, n) => (n ? [make("wbr"), part] : [part]));
function drawField(field) {
  const kinds = ["lb-field", field.kind, ...(isLong(field) ? ["long"] : [])];
  return make("div", { class: kinds.join(" ") }, make("dt", {}, ...breakable(field.name)), make("dd", {}, drawValue(field)));
}

// Texts
const share = (value) => value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
function progressText(progress) {
  const parts = [`${progress.done} of ${progress.total} labelled`];
  if (progress.skipped) parts.push(`${progress.skipped} skipped`);
  if (progress.unsure) parts.push(`${progress.unsure} unsure`);
  parts.push(`${progress.left} left`);
  return parts.join(" · ");
}
function finishedText({ progress, annotator, can_undo }) {
  if (progress.left) return "There is no row to label now.";
  const own = [`${progress.done} labelled`, `${progress.skipped} skipped`, `${progress.unsure} unsure`].join(", ");
  const back = can_undo ? "Undo goes back to the last one. " : "";
  return `No row is left for ${annotator || "you"}: ${own}. ${back}mlcycle label with the source chooses the next rows; mlcycle run uses the labels.`;
}
function qualityText(progress) {
  const parts = [];
  if (typeof progress.agreement === "number") parts.push(`agreement ${share(progress.agreement)} on ${progress.pairs} ${progress.pairs === 1 ? "row" : "rows"} labelled twice`);
  if (typeof progress.seconds_median === "number") parts.push(`${progress.seconds_median.toFixed(1)} s a row`);
  return parts.join(" · ");
}
function rangeText({ min, max }) {
  const known = (value) => typeof value === "number";
  if (known(min) && known(max)) return `A number from ${min} to ${max}`;
  return known(min) ? `A number of at least ${min}` : known(max) ? `A number of at most ${max}` : "A number";
}
function labelText(choices, label) {
  const found = (choices.classes || []).find((each) => same(each.value, label));
  return found ? found.name : typeof label === "string" ? label : JSON.stringify(label);
}
function actionText(choices, action) {
  if (action.kind === "label") return labelText(choices, action.label);
  return { skip: "Skip", unsure: "Unsure", undo: "Undo", comment: "Comment" }[action.kind] || action.kind;
}
function savedText(choices, action) {
  if (action.kind === "label") return `Saved: ${labelText(choices, action.label)}.`;
  return { skip: "Skipped.", unsure: "Saved as unsure.", undo: "The last action is undone.", comment: "The comment is saved." }[action.kind] || "";
}
function lastText(choices, last) {
  if (!last) return "";
  const kinds = { skip: "skipped", unsure: "unsure", undo: "undone" };
  return kinds[last.action] || labelText(choices, last.label);
}

// Time spent on a row; it stands still while the page is hidden
function stopwatch() {
  let spent = 0;
  let since = performance.now();
  return {
    restart: () => ([spent, since] = [0, document.hidden ? null : performance.now()]),
    pause: (hidden) => {
      if (!hidden) since ??= performance.now();
      else if (since !== null) [spent, since] = [spent + performance.now() - since, null];
    },
    seconds: () => Math.round(spent + (since === null ? 0 : performance.now() - since)) / 1000,
  };
}

// Text that is not sent yet survives a reload
function draftStore(state) {
  const key = (item) => `mlcycle-labelling/${state().title}/${state().annotator}/${item}`;
  const attempt = (act) => {
    try {
      return act();
    } catch {
      return null; // A browser may deny storage: the text does not survive a reload
    }
  };
  return {
    read: (item) => attempt(() => JSON.parse(sessionStorage.getItem(key(item)))) || {},
    write: (item, draft) => attempt(() => sessionStorage.setItem(key(item), JSON.stringify(draft))),
    drop: (item) => attempt(() => sessionStorage.removeItem(key(item))),
  };
}

// The fixed parts of the page; `onPage`: nothing else is on it
function buildParts(onPage) {
  const parts = {};
  const part = (name, tag, attributes, ...children) => (parts[name] = make(tag, { ...attributes, class: `lb-${name}` }, ...children));
  const button = (name, text, key) => part(name, "button", { type: "button", "aria-keyshortcuts": key }, ...(key ? [make("kbd", { "aria-hidden": "true" }, key.toUpperCase())] : []), make("span", {}, text));
  const id = `lb-${newId()}`;
  part("head", "header", {},
    make("div", {}, part("title", "p", {}), part("question", onPage ? "h1" : "h2", { id: `${id}-question` })),
    make("div", { class: "lb-figures" }, part("progress", "progress", { "aria-label": "Labelled rows", max: 1 }), part("counts", "p", {}), part("quality", "p", {})));
  part("row", "section", { "aria-label": "Row", tabindex: onPage ? null : "0" },
    part("rowid", "p", {}), part("reason", "p", {}), part("note", "p", {}), part("fields", "dl", {}), part("finished", "p", {}));
  part("failure", "div", {}, part("failed", "p", {}), make("p", { class: "lb-line" }, button("retry", "Try again", ""), button("discard", "Discard the choice", "")));
  part("choices", "div", { role: "group", "aria-labelledby": `${id}-question` });
  part("others", "div", { role: "group", "aria-label": "Other actions" }, ...OTHERS.map((each) => button(...each)));
  part("comment", "textarea", { id: `${id}-comment`, rows: 2, maxlength: MAX_COMMENT, "aria-keyshortcuts": "c", "aria-describedby": `${id}-hint` });
  part("remark", "div", {}, make("label", { for: `${id}-comment` }, "Comment ", make("kbd", { "aria-hidden": "true" }, "C")), parts.comment,
    make("p", { id: `${id}-hint`, class: "lb-hint" }, "Saved with the choice. Enter: back to the keys; Shift+Enter: new line."));
  part("last", "div", {}, part("lasttext", "p", {}), button("edit", "Comment on it", ""),
    part("lateform", "form", {}, make("label", { for: `${id}-late` }, "Comment on the last row"), part("late", "input", { id: `${id}-late`, type: "text", maxlength: MAX_COMMENT }), make("button", { type: "submit" }, "Save comment")));
  part("status", "p", { role: "status", "aria-live": "polite" });
  part("keys", "button", { type: "button", "aria-pressed": "true" }, make("span", {}, "Key shortcuts"));
  part("away", "p", { "aria-hidden": "true" }, "Click here, or Tab into this area, to label by key.");
  part("panel", "section", { "aria-label": "Choice" }, parts.failure, parts.choices, parts.others, parts.status, parts.remark, parts.last, make("p", { class: "lb-line lb-settings" }, parts.keys), parts.away);
  part("body", "div", {}, parts.row, parts.panel);
  return parts;
}

function render({ model, el, keys = null }) {
  const parts = buildParts(keys !== null);
  const root = make("section", { class: `labelling${keys ? " page" : ""}`, tabindex: "-1", "aria-label": "Labelling" }, parts.head, parts.body);
  const watch = stopwatch();
  let state = null;
  let phase = "ready"; // Or saving, settling, failed
  let pending = null; // The action that Python has not confirmed
  let failures = 0;
  let number = null; // Input of a regression target
  let timer = 0;
  let settled = 0;
  let slow = 0;
  const drafts = draftStore(() => state);
  const silence = keys ? "There is no response." : "The kernel does not respond: it is busy, or was restarted. After a restart, execute the cell again.";
  const cleanups = [];
  function listen(target, event, act, options) {
    target.addEventListener(event, act, options);
    cleanups.push(() => target.removeEventListener(event, act, options));
  }

  function setPhase(name) {
    phase = name;
    root.dataset.phase = name;
    parts.panel.setAttribute("aria-busy", name === "saving");
    parts.failure.hidden = name !== "failed";
    for (const each of parts.panel.querySelectorAll(".lb-choices button, .lb-others button")) {
      const idle = each.classList.contains("lb-undo") ? !state?.can_undo : !state?.item;
      each.setAttribute("aria-disabled", idle || name === "failed" || name === "saving");
    }
    clearTimeout(slow);
    if (name === "saving") slow = setTimeout(() => setText(parts.status, "Saving …"), 300);
  }

  // Actions
  const draft = () => ({ comment: parts.comment.value, number: number ? number.value : "" });
  function start(action, button) {
    if (phase !== "ready") return;
    pending = { action: { ...action, request: newId() }, last: state.last, check: "" };
    for (const each of root.querySelectorAll(".chosen")) each.classList.remove("chosen");
    if (button) button.classList.add("chosen");
    setPhase("saving");
    dispatch(pending.action);
  }
  function choose(kind, button, extra = {}) {
    if (!state?.item) return;
    start({ kind, item: state.item.id, ...extra, seconds: watch.seconds(), comment: parts.comment.value.trim() }, button);
  }
  function undo() {
    if (state?.can_undo) start({ kind: "undo" }, parts.undo);
  }
  function dispatch(action) {
    clearTimeout(timer);
    timer = setTimeout(() => fail(silence, action.request), PATIENCE_MS);
    new Promise((done) => done(model.send(action))).catch((error) => fail(error.message, action.request));
  }
  function fail(reason, request) {
    if (!pending || ![pending.action.request, pending.check].includes(request)) return;
    clearTimeout(timer);
    const wait = RETRY_SECONDS[Math.min(failures, RETRY_SECONDS.length - 1)];
    failures += 1;
    const row = pending.action.item && pending.action.item === state.item?.id && state.item.row_id ? ` for row ${state.item.row_id}` : "";
    const lost = pending.action.kind === "next" ? "The next row is not loaded." : `Not saved yet: “${actionText(state.choices, pending.action)}”${row}.`;
    setText(parts.failed, `${lost} ${reason} It is tried again every few seconds.`);
    parts.discard.hidden = pending.action.kind === "next";
    const first = phase !== "failed";
    setPhase("failed");
    setText(parts.status, first ? parts.failed.textContent : parts.status.textContent);
    if (first && (keys || root.contains(document.activeElement))) parts.retry.focus();
    timer = setTimeout(retry, wait * 1000);
  }
  // The response may have been lost, not the action: the state shows whether it has been saved
  function retry() {
    if (phase !== "failed") return;
    pending.check = newId();
    dispatch({ kind: "next", request: pending.check });
  }
  function wasSaved(next) {
    const { action, last } = pending;
    if (action.kind === "next") return true;
    if (action.kind === "undo") return !same(next.last, last);
    if (action.kind === "comment") return next.last?.comment === action.comment;
    const done = next.last?.item === action.item && next.last.action === action.kind && next.item?.id !== action.item;
    return done && (action.kind !== "label" || same(next.last.label, action.label));
  }
  function discard() {
    pending = null;
    failures = 0;
    clearTimeout(timer);
    setPhase("ready");
    focusChoices(true);
    start({ kind: "next" });
  }
  function receive() {
    const next = model.get("state");
    if (!next || !next.progress) return;
    if (!pending) return draw(next);
    if (next.request === pending.action.request || (next.request === pending.check && wasSaved(next))) return finish(next);
    if (next.request === pending.check) dispatch(pending.action); // All others are responses to another view
  }
  function finish(next) {
    const { action } = pending;
    const failed = phase === "failed";
    clearTimeout(timer);
    pending = null;
    failures = 0;
    if (!next.error && action.item) drafts.drop(action.item);
    if (!next.error && action.kind === "comment") parts.lateform.hidden = true;
    const undone = action.kind === "undo" && !next.error && next.item?.id === state.last?.item ? state.last : null;
    if (undone) drafts.write(undone.item, { comment: undone.comment || "", number: typeof undone.label === "number" ? String(undone.label) : "" });
    const focused = root.contains(document.activeElement) || failed;
    const from = state.choices;
    setPhase("settling");
    const text = next.error || next.message || savedText(from, action);
    draw(next, text);
    clearTimeout(settled);
    settled = setTimeout(() => setPhase("ready"), SETTLE_MS);
    if (focused || keys) focusChoices(failed || action.kind === "comment");
  }

  // Focus stays on a button that was used; a number field takes it for the next number
  function focusChoices(moved) {
    const lost = !root.contains(document.activeElement);
    if (number && state.item && (lost || moved || [root, parts.others, parts.choices].some((each) => each === document.activeElement || (each !== root && each.contains(document.activeElement))))) number.focus();
    else if (lost || moved) root.focus({ preventScroll: true });
  }

  // Drawing
  function drawClasses(choices) {
    number = null;
    return choices.classes.map((each) => {
      const key = RESERVED.has(String(each.key).toLowerCase()) ? "" : String(each.key || "");
      const button = make("button", { type: "button", "aria-keyshortcuts": key, "data-key": key.toLowerCase() }, ...(key ? [make("kbd", { "aria-hidden": "true" }, key)] : []), make("span", {}, each.name));
      button.addEventListener("click", (event) => event.detail < 2 && choose("label", button, { label: each.value }));
      return button;
    });
  }
  function drawNumber(choices) {
    const id = `lb-${newId()}`;
    number = make("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", "aria-describedby": `${id}-hint` });
    const save = make("button", { type: "submit", class: "main" }, make("kbd", { "aria-hidden": "true" }, "Enter"), make("span", {}, "Save"));
    const form = make("form", { class: "lb-number", novalidate: true }, make("label", { for: id }, "Value"), make("div", {}, number, save), make("p", { id: `${id}-hint`, class: "lb-hint" }, rangeText(choices)));
    number.addEventListener("input", keepDraft);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = number.value.trim();
      const bad = !NUMBER.test(text) || !Number.isFinite(Number(text));
      number.setAttribute("aria-invalid", bad);
      if (bad) complain(text ? `“${text}” is not a number such as 3.5. Nothing is saved.` : "Enter a number such as 3.5.");
      else choose("label", save, { label: Number(text) });
    });
    return [form];
  }
  function keepDraft() {
    if (state?.item) drafts.write(state.item.id, draft());
  }
  function announce(text) {
    setText(parts.status, text && parts.status.textContent === text ? `${text}\u00a0` : text); // The same text would not be read out again
  }
  function complain(text) {
    announce(text);
    parts.status.classList.add("bad");
  }
  function drawChoices(choices) {
    if (state && parts.choices.childElementCount && same(choices, state.choices)) return;
    parts.choices.replaceChildren(...(choices.kind === "number" ? drawNumber(choices) : drawClasses(choices)));
    parts.choices.classList.toggle("many", (choices.classes || []).length > 6);
  }
  function drawRow(item) {
    if (state && same(item, state.item) && (parts.fields.childElementCount || !item)) return;
    const moved = item?.id !== state?.item?.id;
    setText(parts.rowid, item?.row_id ? `Row ${item.row_id}` : "");
    setText(parts.reason, item ? item.reason : "");
    setText(parts.note, item ? item.note : "");
    parts.fields.replaceChildren(...(item ? item.fields.map(drawField) : []));
    parts.fields.classList.toggle("many", (item?.fields.length || 0) > 12);
    parts.fields.hidden = !item;
    parts.row.setAttribute("aria-label", item ? `Row ${item.row_id}`.trim() : "Row");
    if (moved) parts.row.scrollTop = 0;
  }
  function drawLast(next) {
    setText(parts.lasttext, next.last ? `Last: ${lastText(next.choices, next.last)}${next.last.comment ? ` – “${next.last.comment}”` : ""}` : "");
    parts.last.hidden = !next.last || next.last.action === "undo";
    if (!same(next.last, state?.last)) parts.lateform.hidden = true;
  }
  function drawProgress(progress) {
    parts.progress.max = Math.max(progress.total, 1);
    parts.progress.value = progress.total - progress.left;
    setText(parts.counts, progressText(progress));
    setText(parts.quality, qualityText(progress));
  }
  function draw(next, text = next.error || next.message) {
    const moved = next.item?.id !== state?.item?.id;
    setText(parts.title, [next.title, next.annotator].filter(Boolean).join(" · "));
    setText(parts.question, next.question);
    drawChoices(next.choices);
    drawRow(next.item);
    drawProgress(next.progress);
    drawLast(next);
    setText(parts.finished, next.item ? "" : finishedText(next));
    state = next;
    if (moved) {
      const kept = next.item ? drafts.read(next.item.id) : {};
      parts.comment.value = kept.comment || "";
      if (number) number.value = kept.number || "";
      watch.restart();
    }
    if (number) number.removeAttribute("aria-invalid");
    for (const name of ["remark", "choices", "skip", "unsure"]) parts[name].hidden = !next.item;
    const row = moved && next.item ? ` Next is ${next.item.row_id ? `row ${next.item.row_id}` : "another row"}.` : "";
    announce(text ? text + row : "");
    parts.status.classList.toggle("bad", Boolean(next.error));
    setPhase(phase);
  }

  // Keys: those with Ctrl, Alt or Meta belong to the browser and to JupyterLab; Tab and Escape lead out
  const classButton = (key) => (key ? [...parts.choices.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key) : null);
  const keysOn = () => parts.keys.getAttribute("aria-pressed") === "true";
  function pressed(key, event) {
    const typing = event.target === number;
    const button = typing ? null : classButton(key) || (RESERVED.has(key) ? null : classButton(/^Digit(\d)$/.exec(event.code)?.[1])); // Some keyboards have digits on Shift
    if (button) choose("label", button, { label: state.choices.classes[[...parts.choices.children].indexOf(button)].value });
    else if (key === "s") choose("skip", parts.skip);
    else if (key === "u") choose("unsure", parts.unsure);
    else if (key === "z" || (key === "backspace" && !typing)) undo();
    else if (key === "c" && state?.item) parts.comment.focus();
    else if (number && state?.item && !typing && /^[\d.+-]$/.test(key)) {
      number.focus();
      return; // The key is typed into the field
    } else return;
    event.preventDefault();
  }
  function onKey(event) {
    if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = root.contains(event.target);
    const writing = [parts.comment, parts.late].includes(event.target);
    if (inside && event.key !== "Tab" && (event.key !== "Escape" || writing)) event.stopPropagation();
    if (event.target === parts.comment && (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey))) {
      event.preventDefault();
      return focusChoices(true);
    }
    if (event.target === parts.late && event.key === "Escape") {
      parts.lateform.hidden = true;
      return focusChoices(true);
    }
    if (event.repeat && inside && !writing && event.target !== number) return event.preventDefault(); // Enter on a button too
    const elsewhere = !inside && event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.repeat || writing || elsewhere || !keysOn()) return;
    pressed(event.key.toLowerCase(), event);
  }

  // Listeners
  listen(keys || root, "keydown", onKey);
  for (const kind of ["keyup", "keypress"]) listen(root, kind, (event) => event.stopPropagation());
  for (const kind of ["skip", "unsure"]) listen(parts[kind], "click", (event) => event.detail < 2 && choose(kind, parts[kind]));
  listen(parts.undo, "click", (event) => event.detail < 2 && undo());
  listen(parts.retry, "click", retry);
  listen(parts.discard, "click", discard);
  listen(parts.comment, "input", keepDraft);
  listen(parts.edit, "click", () => {
    parts.lateform.hidden = !parts.lateform.hidden;
    parts.late.value = state.last.comment || "";
    if (!parts.lateform.hidden) parts.late.focus();
  });
  listen(parts.lateform, "submit", (event) => {
    event.preventDefault();
    start({ kind: "comment", item: state.last.item, comment: parts.late.value.trim() });
  });
  listen(parts.keys, "click", () => parts.keys.setAttribute("aria-pressed", !keysOn()));
  listen(root, "pointerdown", (event) => {
    if (!event.target.closest("a, button, input, textarea, label, [tabindex='0']")) setTimeout(() => root.contains(document.activeElement) || root.focus({ preventScroll: true }));
  });
  listen(document, "visibilitychange", () => watch.pause(document.hidden));
  listen(window, "beforeunload", (event) => pending && pending.action.kind !== "next" && event.preventDefault());
  listen(window, "online", retry);
  const onMessage = (message) => message?.kind === "failed" && fail(message.error, message.request);
  model.on("change:state", receive);
  model.on("msg:custom", onMessage);

  parts.lateform.hidden = true;
  setPhase("ready");
  watch.pause(document.hidden);
  el.append(root);
  receive();
  if (keys) focusChoices(true);
  return () => {
    model.off("change:state", receive);
    model.off("msg:custom", onMessage);
    for (const each of cleanups) each();
    for (const each of [timer, settled, slow]) clearTimeout(each);
    root.remove();
  };
}

export default { render };

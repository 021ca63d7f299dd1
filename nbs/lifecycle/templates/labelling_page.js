// The page of labelling: gives the front-end a model whose state and actions go through the server of the page.
import labelling from "./labelling.js";

const place = document.getElementById("labelling");
const loading = document.getElementById("loading");
const query = `?annotator=${encodeURIComponent(place.dataset.annotator)}`;
const listeners = new Map(); // By event
let state = null;
let sent = 0;

async function ask(path, options) {
  const response = await fetch(`api/${path}${query}`, { ...options, signal: AbortSignal.timeout(12_000) }).catch(() => null);
  if (!response) throw new Error("The server of this page does not respond.");
  const body = await response.json().catch(() => null);
  if (!response.ok || !body) throw new Error(body?.detail || `The server responded with status ${response.status}.`);
  return body;
}
function receive(next) {
  state = next;
  for (const each of listeners.get("change:state") || []) each();
}
const model = {
  get: (name) => (name === "state" ? state : undefined),
  on: (event, act) => listeners.set(event, (listeners.get(event) || new Set()).add(act)),
  off: (event, act) => listeners.get(event)?.delete(act),
  async send(action) {
    sent += 1;
    receive(await ask("act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(action) }));
  },
};

async function refresh() {
  const before = sent;
  const next = await ask("state");
  if (before === sent) receive(next); // Otherwise it is older than the response to an action
}
async function begin() {
  try {
    await refresh();
  } catch (error) {
    loading.textContent = `${error.message} Trying again …`;
    setTimeout(begin, 2000);
    return;
  }
  loading.remove();
  labelling.render({ model, el: place, keys: document });
}
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && state) refresh().catch(() => {}); // The person sees it when the next choice is sent
});
begin();

// Requests to the service. Where it asks for a key, so does the page; the key is kept for this tab only.

const KEPT = "surematch-key";
let held = null; // the key where the browser lets the page keep nothing: until the page is left
const CHOSEN = new URLSearchParams(location.search).get("collection"); // of several, named in the page's address

/** What no key holds, and no header can: invisible characters that were copied with it. */
const NO_KEY = /[^\x21-\x7e]/g;

function keptKey() {
  try { return sessionStorage.getItem(KEPT); } catch { return held; }
}

function keepKey(key) {
  held = key;
  try {
    if (key) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
  } catch { /* held alone */ }
}

/** The title and detail of a problem that nobody told. */
export const SILENCE = ["The service did not answer", "Is it still running? Try again in a moment."];

/** The address of `path` for the collection this page is about. */
const of = (path) => CHOSEN === null || path === "/v1/collections" || !path.startsWith("/v1/") ? path
  : `/v1/collections/${encodeURIComponent(CHOSEN)}${path.slice(3)}`;

/** Where a service has several collections, fills `select` with their names; choosing one loads the page for it. */
export async function offerCollections(select) {
  const served = await read("/v1/collections");
  if (!served || served.collections.length < 2) return;
  for (const { name } of served.collections) select.append(new Option(name, name));
  select.value = CHOSEN ?? served.default;
  select.hidden = false;
  select.addEventListener("change", () => { location.search = new URLSearchParams({ collection: select.value }); });
  for (const link of document.querySelectorAll("a.same")) link.search = location.search;
}

/** As fetch; asks for a key when the service does, and tries again with it. */
export async function call(path, options = {}) {
  for (;;) {
    const key = keptKey();
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const reply = await fetch(of(path), { ...options, headers });
    if (reply.status !== 401) return reply;
    // refused may be a key that another request has had replaced by now
    if (keptKey() === key && !(await askForKey(key !== null))) return reply;
  }
}

/** The JSON of a GET, null when there is none: `refused` is then given the problem's title and detail. */
export async function read(path, refused = () => {}) {
  const reply = await call(path).catch(() => null);
  if (reply?.ok) return reply.json();
  const problem = await reply?.json().catch(() => null);
  refused(problem?.title ?? SILENCE[0], problem?.detail ?? SILENCE[1]);
  return null;
}

let asking = null;

/** Resolves to whether a key was given; several requests at once ask once. */
function askForKey(again) {
  asking ??= new Promise((done) => {
    const dialog = document.createElement("dialog");
    const form = Object.assign(document.createElement("form"), { method: "dialog" });
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "password", id: "key", autocomplete: "off" });
    const send = Object.assign(document.createElement("button"), { textContent: "Continue", type: "submit" });
    label.append(again ? "This key is not valid here. Another one:" : "This service asks for a key:", input);
    form.append(label, send);
    dialog.className = "key";
    dialog.append(form);
    form.addEventListener("submit", (event) => { event.preventDefault(); dialog.close(input.value.replace(NO_KEY, "")); });
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue;
      dialog.remove();
      asking = null;
      keepKey(given || null);
      done(Boolean(given));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

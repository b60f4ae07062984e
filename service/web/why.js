// "Why?" below an answer: asked for when it is opened, the evidence and the items behind each probability.

import { call } from "/web/api.js";

const SHOWN = 5;
const ITEMS = 4;
const WORDS = {
  best: "closest item", pooled_8: "its items together", pooled_32: "its close items together",
  centroid: "the middle of its items", cohesion: "how close its items are to each other",
  intercept: "on its own", background: "how close other labels are",
};

let asking = new AbortController(); // for the answer that is shown: what comes late about another one is dropped

/** Makes the disclosure `place` ask `body` again, with reasons, when it is opened. Everything is set as text. */
export function offerReasons(place, into, body) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  place.open = false;
  into.replaceChildren();
  place.ontoggle = async () => {
    if (!place.open || into.childNodes.length) return;
    into.textContent = "…";
    const why = await reasons(body, signal).catch(() => null);
    if (signal.aborted) return;
    if (why) into.replaceChildren(...told(why));
    else into.textContent = "The service did not say. Ask again.";
  };
}

/** The explanation of the answer to `body`, null where the service refuses. */
async function reasons(body, signal) {
  const reply = await call("/v1/search", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, explain: true }), signal,
  });
  return reply.ok ? (await reply.json()).results[0].explanation : null;
}

function told(why) {
  const none = {
    name: "no match", probability: null, logit: why.no_match_logit, terms: why.no_match_terms,
    evidence: { background: why.background }, items: [],
  };
  const labels = why.labels.slice(0, SHOWN).map((entry) => ({ ...entry, name: entry.label ?? entry.id ?? "not shown" }));
  const rest = why.labels.length - labels.length;
  return [
    text("p", "Each outcome gets a score from how close its items are; the higher the score, the likelier. "
      + `Scores are divided by ${why.temperature.toFixed(2)} before they become probabilities. Values are cosines; of `
      + "several items together they add up, and may exceed 1."),
    ...[...labels, none].sort((a, b) => (b.logit ?? -Infinity) - (a.logit ?? -Infinity)).map(outcome),
    ...(rest > 0 ? [text("p", `${rest} more labels were considered.`)] : []),
  ];
}

function outcome(entry) {
  const section = document.createElement("section");
  const score = entry.logit === null ? "no score" : `score ${entry.logit.toFixed(2)}`;
  const title = text("h3", "");
  title.append(isolated(entry.name), `: ${score}`);
  section.append(title);
  if (entry.answerable === false) section.append(text("p", "None of its items may be shown: it counts as no match."));
  section.append(table(entry.evidence, entry.terms));
  if (entry.items.length) {
    const shown = entry.items.slice(0, ITEMS).flatMap((item, at) => [
      at ? ", " : "", isolated(item.id), ` (cosine ${item.score.toFixed(3)}, ${Math.round(100 * item.share_32)} %)`,
    ]);
    const more = entry.items.length - ITEMS;
    const items = text("p", "Items: ");
    items.append(...shown, more > 0 ? `, and ${more} more` : "");
    section.append(items);
  }
  return section;
}

/** A name in its own direction of writing: what stands beside it keeps its order. */
const isolated = (name) => text("bdi", name);

function table(evidence, terms) {
  const made = document.createElement("table");
  const head = made.createTHead().insertRow();
  for (const name of ["evidence", "value", ...(terms ? ["adds"] : [])]) head.append(text("th", name));
  const body = made.createTBody();
  for (const name of new Set([...Object.keys(terms ?? {}), ...Object.keys(evidence)])) {
    const row = body.insertRow();
    row.append(text("th", WORDS[name] ?? name), text("td", name in evidence ? evidence[name].toFixed(3) : ""));
    if (terms) row.append(text("td", (terms[name] ?? 0).toFixed(2)));
  }
  return made;
}

function text(tag, content) {
  return Object.assign(document.createElement(tag), { textContent: content });
}

// What is served: counts, model, snapshot and engine, labels by size, and how far the questions have drifted.

import { offerCollections, read } from "/web/api.js";

const $ = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");

const VERDICTS = {
  unknown: "Too few questions have been asked to say.",
  none: "Yes: they look like those the probabilities were calibrated on.",
  some: "Somewhat different from those the probabilities were calibrated on: have a look.",
  much: "No: they have changed since the calibration, so its promise is about other questions. Collect feedback and recalibrate.",
};

const ITEMS_CHANGED = "No: the questions or the items have changed since the calibration, so its promise is about others. "
  + "Compact the collection first (POST /v1/admin/snapshot), which calibrates it for the items as they are.";

const UNCALIBRATED = "Without calibrated probabilities there are no questions to compare them with.";

function facts(place, pairs) {
  place.replaceChildren(...pairs.filter(([, value]) => value !== null && value !== undefined).flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
}

function size({ label, items }, most) {
  const name = Object.assign(document.createElement("div"), { className: "name" });
  name.append(
    Object.assign(document.createElement("b"), { textContent: label }),
    Object.assign(document.createElement("span"), { className: "value", textContent: number(items) }),
  );
  const fill = document.createElement("span");
  fill.style.width = `${(100 * items) / most}%`;
  const track = Object.assign(document.createElement("div"), { className: "track" });
  track.setAttribute("aria-hidden", "true");
  track.append(fill);
  const row = document.createElement("li");
  row.append(name, track);
  return row;
}

async function show() {
  let problem = [];
  const served = await read("/v1/collection", (...said) => { problem = said; });
  const told = served ? [served.reason, ...served.warnings].filter(Boolean) : [problem.join(". ")];
  $("banner").textContent = told.join(" ");
  $("banner").hidden = !told.length;
  if (!served) return;
  $("served").textContent = `${served.name} · ${number(served.items)} items`;
  $("summary").textContent = `${number(served.items)} items of ${number(served.labels)} ${served.labels === 1 ? "label" : "labels"}, `
    + `${served.calibrated ? "with calibrated probabilities" : "without probabilities"}.`;
  const recall = served.search?.recall_at_10;
  facts($("facts"), [
    ["Items", number(served.items)],
    ["Labels", number(served.labels)],
    ["Encoder", served.encoder.name],
    ["Model", served.model],
    ["Dimensions", number(served.dimension)],
    ["Engine", served.engine],
    ["Its recall@10", served.search?.exact ? "1 (exact)" : typeof recall === "number" ? recall.toFixed(4) : "not measured"],
    ["Snapshot", served.snapshot],
    ["Last write", number(served.sequence)],
    ["Changes since then", number(served.pending)],
    ["Calibration", served.calibration_id],
  ]);
  const { drift } = served;
  $("drift").textContent = !served.calibrated ? UNCALIBRATED : drift.verdict === "much" && served.pending ? ITEMS_CHANGED : VERDICTS[drift.verdict];
  facts($("measures"), [
    ["Questions watched", number(drift.queries)],
    ...[["best_cosine", "Closest item"], ["background", "Background"]].filter(([name]) => drift[name]).flatMap(([name, said]) => [
      [`${said}: PSI (above 0.1: look)`, drift[name].psi.toFixed(3)],
      [`${said}: KS (chance reaches ${drift[name].ks_limit.toFixed(3)})`, drift[name].ks.toFixed(3)],
    ]),
  ]);
  const sizes = served.labels_by_size;
  $("sizes").replaceChildren(...sizes.map((entry) => size(entry, sizes[0].items)));
  const rest = served.labels - sizes.length;
  $("rest").textContent = rest > 0 ? `and ${number(rest)} more` : sizes.length ? "" : "No item has a label.";
  $("about").hidden = false;
}

offerCollections($("collection"));
show();

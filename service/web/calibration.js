// How far the probabilities can be trusted: the figures of /v1/calibration and their reliability diagram.

import { offerCollections, read } from "/web/api.js";

const $ = (id) => document.getElementById(id);
const SIZE = 320;
const EDGE = 40;

const percent = (p) => `${(100 * p).toFixed(p > 0.005 && p < 0.995 ? 1 : 2)} %`;

function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

const side = SIZE - EDGE - 10;
const x = (p) => EDGE + p * side;
const y = (p) => 10 + (1 - p) * side;

/** Axes in percent with their names; up to `most` on the vertical one. */
function axes(title, across, up, most = 1) {
  const drawing = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-labelledby": title, class: "diagram" });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(
      svg("line", { x1: x(tick), x2: x(tick), y1: y(0), y2: y(1), class: "grid" }),
      svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: x(tick), y: y(0) + 16, "text-anchor": "middle" }, `${100 * tick}`),
      svg("text", { x: x(0) - 6, y: y(tick) + 4, "text-anchor": "end" }, `${+(100 * tick * most).toFixed(2)}`),
    );
  }
  drawing.append(
    svg("text", { x: x(0.5), y: SIZE - 6, "text-anchor": "middle" }, across),
    svg("text", { x: 10, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 10 ${y(0.5)})` }, up),
  );
  return drawing;
}

/** The share of wrong answers among the surest; the vertical axis ends at a round number above the highest. */
function curve(points) {
  const highest = Math.max(...points.map((point) => point.risk));
  const most = [0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 1].find((limit) => highest <= limit) ?? 1;
  const drawing = axes("risk-title", "acted on, %", "wrong, %", most);
  drawing.append(svg("polyline", { points: points.map((point) => `${x(point.coverage)},${y(point.risk / most)}`).join(" "), class: "path" }));
  return drawing;
}

/** Predicted probability against observed frequency; a point's area grows with its share of the answers. */
function diagram(bins) {
  const drawing = axes("diagram-title", "said, %", "was right, %");
  drawing.append(
    svg("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "ideal" }),
    svg("polyline", { points: bins.map((bin) => `${x(bin.probability)},${y(bin.frequency)}`).join(" "), class: "path" }),
    ...bins.map((bin) => svg("circle", { cx: x(bin.probability), cy: y(bin.frequency), r: 2 + 12 * Math.sqrt(bin.share) })),
  );
  return drawing;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => Object.assign(document.createElement("td"), { textContent: cell })));
  return made;
}

function numbers(report) {
  const known = report.queries;
  const shown = [
    ["Expected calibration error", report.ece, percent],
    ["… a perfectly calibrated one would show", report.ece_floor, percent],
    ["The top item's label is right", report.recall_at_1, percent],
    ["Known told from unknown (AUROC)", report.auroc_known_unknown, (value) => value.toFixed(3)],
    ["Right told from wrong (AUROC)", report.auroc_right_wrong, (value) => value.toFixed(3)],
    ["Area under the risk-coverage curve", report.aurc, (value) => value.toFixed(4)],
    ["Negative log-likelihood", report.nll, (value) => value.toFixed(4)],
    ["Largest coverage a set can promise", report.max_coverage, percent],
    ["Known queries", known?.known, String],
    ["Unknown queries", known?.unknown, String],
    ["Unknown share expected in use", known?.unknown_share, percent],
  ];
  return shown.filter(([, value]) => typeof value === "number").flatMap(([name, value, show]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: show(value) }),
  ]);
}

async function show() {
  let problem = [];
  const refused = (...said) => { problem = said; };
  const [served, report] = await Promise.all([read("/v1/collection"), read("/v1/calibration", refused)]);
  if (served) $("served").textContent = `${served.name} · ${served.items.toLocaleString("en")} items`;
  const told = [report?.reason, ...(report?.warnings ?? [])].filter(Boolean);
  $("banner").textContent = report ? told.join(" ") : problem.join(". ");
  $("banner").hidden = report !== null && !told.length;
  if (!report?.reliability) return;
  const off = Math.max(report.ece, 0);
  const { source, unknowns } = report.queries ?? {};
  const asked = [source ?? "held-out queries", unknowns].filter(Boolean).join(" and ");
  $("summary").textContent = `On ${asked}, probabilities were off by ${percent(off)} on `
    + `average; a perfectly calibrated service measured on as many would show ${percent(report.ece_floor)}.`;
  $("numbers").replaceChildren(...numbers(report));
  $("diagram").replaceChildren(diagram(report.reliability));
  $("rows").replaceChildren(...report.reliability.map((bin) => row(percent(bin.probability), percent(bin.frequency), percent(bin.share))));
  $("risk").hidden = !report.risk_coverage;
  if (report.risk_coverage) {
    $("curve").replaceChildren(curve(report.risk_coverage));
    const half = report.risk_coverage.findLast((point) => point.coverage <= 0.5);
    if (half) $("half").textContent = `Of the surest half ${percent(half.risk)} are wrong.`;
  }
  $("calibration").hidden = false;
}

offerCollections($("collection"));
show();

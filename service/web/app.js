// The search page. Everything from the service is set as text, never as markup.

import { SILENCE, call, offerCollections, read } from "/web/api.js";
import { offerFeedback } from "/web/feedback.js";
import { offerReasons } from "/web/why.js";

const $ = (id) => document.getElementById(id);
const SHOWN_LABELS = 6;
const LINKED = 2000; // characters of a question that its address holds; longer ones have no link

/** An element with a class, properties and children; strings become text nodes. */
function el(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A probability in words of a percent; what is not certain never reads as 0 % or 100 %. */
function percent(p) {
  if (p === 0) return "0 %";
  if (p < 0.001) return "< 0.1 %";
  if (p > 0.999 && p < 1) return "> 99.9 %";
  const digits = p < 0.1 || p > 0.99 ? 1 : 0;
  return `${(p * 100).toFixed(digits)} %`;
}

function bar(p, className = "") {
  const fill = el("span", className);
  fill.style.width = `${p * 100}%`;
  const track = el("div", "track", fill);
  track.setAttribute("aria-hidden", "true");
  return track;
}

const nameOf = (entry) => entry.label ?? entry.id ?? "no match";

// ---- asking

let running = null;
let picture = null; // of a collection of pictures: the last one asked about, in base64
let reading = null; // the file that will be asked about
let asked = null; // the query of the answer on the page

/** The query that stands in the form, null where nothing does. */
function entered() {
  const text = $("text").value.trim();
  if (picture) return { image: picture };
  return text ? { text } : null;
}

async function search(query = entered()) {
  if (!query) return;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  asked = query;
  const body = { queries: [query], k: Number($("k").value), map: $("map").value };
  if ($("coverage").value) body.coverage = Number($("coverage").value);
  if (query.text) history.replaceState(null, "", linkTo(query.text));
  $("results").setAttribute("aria-busy", "true");
  try {
    const reply = await call("/v1/search", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    const content = await reply.json();
    if (reply.ok) showAnswer(content, body);
    else showProblem(content.title ?? SILENCE[0], content.detail ?? SILENCE[1]); // a proxy's JSON tells neither
  } catch (error) {
    if (error.name === "AbortError") return;
    showProblem(...SILENCE);
  }
  if (!signal.aborted) $("results").setAttribute("aria-busy", "false");
}

/** The address of the answer to `text`; of the page alone where an address cannot hold it. */
function linkTo(text) {
  return text.length <= LINKED ? `#${new URLSearchParams({ q: text })}` : location.pathname + location.search;
}

/** Shows a picture file and asks about it, and not about the one before, however long that takes to read or to answer.
 * It goes to this service alone, which does not keep it. */
function askPicture(file) {
  if (!file) return;
  running?.abort();
  reading?.abort();
  const refuse = (title) => {
    picture = asked = null;
    $("shown")?.remove();
    showProblem(title, "Choose the file of one picture; a folder is none.");
    $("results").setAttribute("aria-busy", "false");
  };
  if (!file.size) return refuse("The file is empty");
  const reader = reading = new FileReader();
  reader.addEventListener("load", () => {
    picture = reader.result.slice(reader.result.indexOf(",") + 1);
    const shown = el("img");
    shown.id = "shown";
    shown.alt = `The picture asked about: ${file.name}`;
    shown.addEventListener("error", () => shown.remove()); // no picture; the service says what is wrong with it
    shown.src = reader.result;
    $("shown")?.remove();
    $("drop").prepend(shown);
    search();
  });
  reader.addEventListener("error", () => refuse("The file cannot be read"));
  reader.readAsDataURL(file);
}

function takePictures() {
  const drop = $("drop");
  $("ask-text").hidden = true;
  drop.hidden = false;
  $("file").addEventListener("change", () => { askPicture($("file").files[0]); $("file").value = ""; });
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    askPicture(event.dataTransfer.files[0]);
  });
}

// ---- answering

function showProblem(title, detail) {
  $("problem").replaceChildren(el("strong", "", title), detail);
  $("problem").hidden = false;
  announce(""); // the problem is an alert; the answer before it is none any longer, nor is what was said about it
  $("welcome").hidden = $("answer").hidden = $("banner").hidden = true;
  $("footer").replaceChildren();
}

function showAnswer(reply, body) {
  const [answer] = reply.results;
  $("welcome").hidden = $("problem").hidden = true;
  $("answer").hidden = false;
  showBanner(answer);
  showVerdict(answer);
  offerFeedback($("feedback"), reply.query_ids?.[0], answer);
  showLabels(answer);
  showSet(answer);
  offerReasons($("why"), $("reasons"), body);
  showHits(answer);
  const { timings } = reply;
  $("footer").replaceChildren(
    el("span", "", `${timings.total_ms.toFixed(1)} ms (encoding ${timings.encode_ms.toFixed(1)}, search ${timings.search_ms.toFixed(1)})`),
    el("span", "", answer.certified ? "proven exact over the whole gallery" : "from the nearest items"),
    el("span", "", "model ", el("code", "", reply.model)),
    el("span", "", "snapshot ", el("code", "", reply.snapshot)),
  );
}

function showBanner(answer) {
  offerMaps(answer.calibrated);
  const lines = answer.calibrated ? answer.warnings : [answer.reason ?? "", ...answer.warnings];
  const title = answer.calibrated ? "Good to know" : "This collection is not calibrated: no probabilities";
  $("banner").replaceChildren(el("strong", "", title), lines.join(" "));
  $("banner").hidden = answer.calibrated && lines.length === 0;
}

function showVerdict(answer) {
  const verdict = $("verdict");
  if (!answer.calibrated) {
    verdict.className = "verdict unknown";
    const best = answer.hits[0];
    verdict.replaceChildren(
      el("p", "kind", "Nearest item, no statement how sure"),
      titled(best ? best.label ?? best.text ?? best.id : "Nothing found"),
      el("p", "why", "Scores are cosines: they order the items, and say nothing about the chance of being right."),
    );
    return announce("Not calibrated.");
  }
  const { decision, labels, no_match: none } = answer;
  const matched = decision.label !== null || decision.id !== null;
  const sure = percent(decision.probability);
  verdict.className = matched ? "verdict" : "verdict none";
  const likely = decision.probability >= 0.5;
  const nothing = decision.probability >= 0.8 ? "Nothing here matches" : "Probably nothing here";
  const best = labels.length ? labels[0].probability : 0;
  const rest = labels.slice(1).reduce((sum, entry) => sum + entry.probability, 0); // exactly 0 where the JSON says so
  const kind = likely ? "Match" : "Best guess";
  verdict.replaceChildren(
    el("p", "kind", matched ? kind : "No match"),
    el("div", "line", titled(matched ? nameOf(decision) : nothing), el("span", "percent", sure)),
    el("p", "why", promise(decision.probability, matched)),
    strip([["best", best], ["rest", rest], ["no", none]]),
    el("p", "key", el("span", "", `best label ${percent(best)}`), el("span", "", `other labels ${percent(rest)}`), el("span", "", `no match ${percent(none)}`)),
  );
  announce(matched ? `${kind}: ${nameOf(decision)}, ${sure}.` : `No match, ${sure}.`);
}

/** What the probability promises, in plain words; only softmax's distribution is fitted to keep the promise. */
function promise(p, matched) {
  const only = "only softmax is fitted to be right as often as it says";
  if ($("map").value === "taylor") return `Another distribution than softmax gives, and ${only}.`;
  if ($("map").value !== "softmax") return `A shorter list than softmax gives, and ${only}: a zero is not a certainty.`;
  const hundred = Math.round(p * 100);
  const share = `about ${Math.min(hundred, 99)}`; // no calibration sample shows that 100 in 100 are right
  return `Of ${matched ? "matches" : "“no match” answers"} this sure, ${share} in 100 are right.`;
}

function titled(text) {
  const title = el("h1", "", text);
  title.id = "verdict-title";
  return title;
}

function strip(shares) {
  const parts = shares.filter(([, share]) => share > 0.0005).map(([name, share]) => {
    const part = el("span", name);
    part.style.flexGrow = share;
    return part;
  });
  const all = el("div", "strip", ...parts);
  all.setAttribute("aria-hidden", "true");
  return all;
}

function announce(text) {
  $("status").textContent = text;
}

function showLabels(answer) {
  $("distribution").hidden = !answer.labels;
  if (!answer.labels) return;
  const row = (name, p, className = "", fill = "") =>
    el("li", className, el("div", "name", el("b", "", name), el("span", "value", percent(p))), bar(p, fill));
  const worth = answer.labels.filter((entry) => entry.probability >= 0.001).slice(0, SHOWN_LABELS);
  const shown = worth.map((entry) => [entry.probability, row(nameOf(entry), entry.probability)]);
  shown.push([answer.no_match, row("no match", answer.no_match, "no", "stripes")]);
  shown.sort(([p], [q]) => q - p);
  const rest = answer.labels.slice(worth.length);
  const left = rest.reduce((sum, entry) => sum + entry.probability, 0);
  const more = rest.length ? [row(`${rest.length} ${worth.length ? "more " : ""}label${rest.length === 1 ? "" : "s"}`, left, "more")] : [];
  $("labels").replaceChildren(...shown.map(([, item]) => item), ...more);
}

function showSet(answer) {
  const members = answer.prediction_set;
  $("set").hidden = !members;
  if (!members) return;
  const tags = members.map((entry) => el("li", "tag", nameOf(entry)));
  if (answer.set_has_no_match) tags.push(el("li", "tag no", "no match"));
  const sentence = `The truth is among these for at least ${percent(answer.coverage)} of questions like those it was calibrated on:`;
  $("set").replaceChildren(sentence, el("ul", "", ...tags));
}

function showHits(answer) {
  if (!answer.hits.length) {
    $("hits").replaceChildren(el("li", "", "The gallery is empty."));
    return;
  }
  $("hits").replaceChildren(...answer.hits.map((hit) => {
    const sure = hit.probability === null ? null
      : el("div", "row", bar(hit.probability), el("output", "", percent(hit.probability)));
    const cosine = el("span", "cosine", `cosine ${hit.score.toFixed(3)}`);
    cosine.title = "Similarity of the vectors, from -1 to 1. It orders the items; it is not a probability.";
    const label = hit.label === null ? el("span", "tag no", "no label") : el("span", "tag", hit.label);
    return el("li", "", el("div", "text", hit.text ?? hit.id), sure, el("div", "meta", label, cosine));
  }));
}

// ---- the page itself

async function showCollection() {
  const [served, calibration] = await Promise.all([read("/v1/collection", showProblem), read("/v1/calibration")]);
  if (!served) return;
  if (served.encoder?.modality === "image") takePictures();
  limitCoverage(calibration?.max_coverage ?? 0);
  offerMaps(calibration?.calibrated ?? true);
  if (calibration?.calibrated === false) {
    $("welcome").querySelector("p").textContent = `This collection is not calibrated: answers come without probabilities. ${calibration.reason ?? ""}`;
  }
  $("served").textContent = `${served.name} · ${served.items.toLocaleString("en")} items`;
  document.title = `${served.name} · surematch`;
  for (const text of served.examples) {
    const chip = el("button", "", text);
    chip.type = "button";
    chip.addEventListener("click", () => { $("text").value = text; search(); });
    $("examples").append(chip);
  }
  $("examples").hidden = served.examples.length === 0;
}

/** Without probabilities there is no map to choose. */
function offerMaps(calibrated) {
  const chosen = $("map").selectedOptions[0];
  chosen.dataset.name ??= chosen.textContent;
  chosen.textContent = calibrated ? chosen.dataset.name : "not calibrated";
  $("map").disabled = !calibrated;
}

/** Only what the calibration can promise may be chosen; few calibration queries support no high coverage. */
function limitCoverage(most) {
  const options = [...$("coverage").options];
  for (const option of options) option.disabled = Number(option.value) > most;
  if ($("coverage").selectedOptions[0].disabled) $("coverage").value = options.findLast((option) => !option.disabled).value;
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
// an emptied field leaves the answer on the page, and what is chosen holds for that
for (const id of ["map", "coverage", "k"]) $(id).addEventListener("change", () => search(entered() ?? asked));
// the link's own address would take the place of the question's
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("results").focus(); });
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").focus(); $("text").select(); }
});

function fromAddress() {
  if ($("ask-text").hidden) return; // pictures: the question was asked of another collection, chosen before this one
  const asked = new URLSearchParams(location.hash.slice(1)).get("q");
  if (asked) { $("text").value = asked; search(); }
}
addEventListener("hashchange", fromAddress);
offerCollections($("collection"));
showCollection().finally(fromAddress);

// "Was this right?" below an answer. Shown only where the service takes writes, which answers with query ids.

import { call, read } from "/web/api.js";

let rated = null; // the query that `place` asks about: what comes late about another one is not said there

/** Fills `place` for the answer to `queryId`, or hides it. Everything is set as text. */
export function offerFeedback(place, queryId, answer) {
  rated = queryId;
  place.hidden = !queryId || !answer.decision;
  if (place.hidden) return;
  const decided = answer.decision.label;
  const alone = decided === null && answer.decision.id !== null; // an item without a label: there is no label to name
  const say = async (label) => {
    for (const control of place.querySelectorAll("button, input")) control.disabled = true; // said once
    const reply = await call("/v1/feedback", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ query_id: queryId, label }),
    }).catch(() => null);
    const problem = reply?.ok ? null : await reply?.json().catch(() => null);
    if (rated !== queryId) return;
    const outcome = document.createElement("span");
    outcome.textContent = reply?.ok ? "Thank you. It is kept for the next calibration." : problem?.detail ?? "It could not be kept.";
    outcome.tabIndex = -1;
    place.replaceChildren(outcome, ...(mayWork(reply) ? [button("Try again", () => say(label))] : []));
    // the control that was used is gone; its place in the order is the outcome's, which is so read aloud
    if (document.activeElement === document.body) outcome.focus();
  };
  const ask = () => {
    const right = button("Yes", () => say(decided));
    place.replaceChildren("Was this right? ", ...(alone ? [] : [right]), button("No", choose));
  };
  const choose = () => {
    const { input, known, isKnown } = labelInput();
    const send = button("Send", () => say(input.value));
    const nothing = button("Nothing here matches", () => say(null));
    send.disabled = true; // nobody is asked to guess: what is not chosen is not sent
    let soon = 0; // no request for each key
    input.addEventListener("input", () => {
      send.disabled = true;
      clearTimeout(soon);
      soon = setTimeout(async () => {
        const typed = input.value;
        const found = await isKnown();
        if (input.value === typed && !input.disabled) send.disabled = !found; // else late, or sent
      }, 200);
    });
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") send.click(); });
    place.replaceChildren("Right would be ", input, known, send, ...(decided !== null || alone ? [nothing] : []), button("I don't know", ask));
    input.focus();
  };
  ask();
}

/** Whether the same, sent again, may be taken: there was no answer, or one about the service and not about what was sent. */
const mayWork = (reply) => !reply || reply.status === 429 || reply.status >= 500;

/** A field that offers the collection's labels, of many those that contain what is typed; `isKnown` says whether that is one. */
function labelInput() {
  const input = Object.assign(document.createElement("input"), { placeholder: "choose a label…", autocomplete: "off" });
  const known = Object.assign(document.createElement("datalist"), { id: "known-labels" });
  input.setAttribute("aria-label", "What is right");
  input.setAttribute("list", known.id);
  const isKnown = async () => {
    const typed = input.value;
    const found = await read(`/v1/labels?${new URLSearchParams({ contains: typed })}`);
    if (!found || input.value !== typed) return false; // what comes late is about another text
    known.replaceChildren(...found.labels.map((label) => new Option(label, label)));
    return found.labels.includes(typed);
  };
  isKnown();
  return { input, known, isKnown };
}

function button(text, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", act);
  return made;
}

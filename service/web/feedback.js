// "Was this right?" below an answer. Shown only where the service takes writes, which answers with query ids.

import { call } from "/web/api.js";

const NOTHING = "nothing here matches";

let rated = null; // the query that `place` asks about: what comes late about another one is not said there

/** Fills `place` for the answer to `queryId`, or hides it. Everything is set as text. */
export function offerFeedback(place, queryId, answer) {
  rated = queryId;
  place.hidden = !queryId || !answer.decision;
  if (place.hidden) return;
  const decided = answer.decision.label;
  const alone = decided === null && answer.decision.id !== null; // an item without a label: there is no label to name
  const say = async (label) => {
    for (const control of place.querySelectorAll("button, select")) control.disabled = true; // said once
    const reply = await call("/v1/feedback", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ query_id: queryId, label }),
    }).catch(() => null);
    const problem = reply?.ok ? null : await reply?.json().catch(() => null);
    if (rated !== queryId) return;
    place.replaceChildren(reply?.ok ? "Thank you. It is kept for the next calibration." : problem?.detail ?? "It could not be kept.");
  };
  const right = button("Yes", () => say(decided));
  const wrong = button("No", () => choose());
  const choose = () => {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "What is right");
    const names = (answer.labels ?? []).map((entry) => entry.label).filter((name) => name !== null && name !== decided);
    for (const name of names) select.append(new Option(name, name));
    if (decided !== null || alone) select.prepend(new Option(NOTHING, ""));
    if (!select.options.length) return say(null);
    const send = button("Send", () => say(select.value === "" ? null : select.value));
    place.replaceChildren("Right would be ", select, send);
    return select.focus();
  };
  place.replaceChildren("Was this right? ", ...(alone ? [] : [right]), wrong);
}

function button(text, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", act);
  return made;
}

// Decoding, step by step: what was written, what else was likely, how sure the model was.

import { make, percent } from "./dom.js";
import { formula, number, piece, prose, said, Section } from "./parts.js";

function alternative([, text, logprob], chosen, most) {
  const share = Math.exp(logprob);
  const bar = make("span", { class: "bar-of" });
  bar.style.setProperty("--share", share / most);
  return make(
    "li",
    { class: chosen ? "chosen" : "" },
    make("span", { class: "word" }, piece(text)),
    bar,
    make("span", { class: "number", "data-value": share }, percent(share)),
  );
}

function card(step, place) {
  const most = Math.exp(step.alternatives[0][2]);
  const list = step.alternatives.map((each) => alternative(each, each[0] === step.id, most));
  return make(
    "li",
    { class: "card" },
    make("h3", { "aria-label": `Step ${place + 1}: ${said(step.text)}` }, make("small", {}, `${place + 1} `), make("span", { class: "word" }, piece(step.text))),
    make("ol", {}, ...list),
    make("p", { class: "note" }, "entropy ", number(step.entropy, 2)),
  );
}

/** The section; null where nothing is written. */
export function mount(element, look) {
  const { steps } = look.payload;
  if (!steps?.length) return null;
  const words = [
    formula("argmax, again and again"),
    prose("The model predicts one token; it is put at the end of the text; and the whole is read again. Here the likeliest is taken each time: greedy decoding."),
    prose("Where the entropy is high, the model hardly had a preference, and another draw would have gone another way."),
  ];
  const cards = make("ol", { class: "cards", tabindex: "0", "aria-label": "The steps" }, ...steps.map(card));
  const section = new Section("steps", "Step by step", words, cards);
  element.append(section.element);
  return section;
}

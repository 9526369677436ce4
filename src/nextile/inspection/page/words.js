// Word vectors: the neighbours of each word, and a map.

import { make } from "./dom.js";
import { formula, note, number, piece, prose, Section } from "./parts.js";

function neighbour([word, cosine]) {
  const bar = make("span", { class: "bar-of" });
  bar.style.setProperty("--share", Math.max(0, cosine));
  return make("li", {}, make("span", { class: "word" }, piece(word)), bar, number(cosine));
}

/** The neighbours of a list of pieces; null where there are none. */
export function mount(element, look) {
  const seen = new Set();
  const found = (look.payload.neighbours ?? []).filter(({ text, near }) => near.length && !seen.has(text) && seen.add(text));
  if (!found.length) return null;
  const cards = found.map(({ text, near }) =>
    make("li", { class: "card" }, make("h3", {}, make("span", { class: "word" }, piece(text))), make("ol", {}, ...near.map(neighbour))),
  );
  const words = [
    formula("cos(*a*, *b*) = *a*\u00b7*b* / |*a*| |*b*|"),
    prose("The table of vectors is learned, and words that are used alike end up with vectors that point alike. Here are the nearest of each piece, by the angle between the vectors."),
    found.some(({ text, near }) => [text, ...near.map(([word]) => word)].some((each) => each.startsWith("##"))) ? note("## goes on within a word.") : null,
  ];
  const section = new Section("neighbours", "Neighbours", words, make("ol", { class: "cards", tabindex: "0", "aria-label": "Neighbours of each piece" }, ...cards));
  element.append(section.element);
  return section;
}

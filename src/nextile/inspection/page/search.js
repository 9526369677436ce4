// Beam search: the tree of the beginnings that were looked at.

import { formula, prose, Section } from "./parts.js";
import { ranking, Tree } from "./tree.js";

/** The section; null where nothing is written. */
export function mount(element, look) {
  const { beam } = look.payload;
  if (!beam?.rounds.length) return null;
  const tree = new Tree();
  const words = [
    formula("log *p* = \u03a3 log *p*(token)"),
    prose("The likeliest token now may lead to an unlikely text. Beam search keeps several beginnings, looks one token further from each, and keeps the best again."),
    prose("Thick is the path of the best text; pale are beginnings that were looked at and dropped."),
  ];
  const section = new Section("beam", "Beam search", words, tree.element, ranking(beam.texts, "The best texts"));
  element.append(section.element);
  tree.show(beam);
  return section;
}

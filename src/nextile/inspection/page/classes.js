// The classes with their probabilities.

import { Bars } from "./bars.js";
import { formula, prose, Section } from "./parts.js";

const MOST = 12;

/** The section; null where there are none. */
export function mount(element, look) {
  const { classes } = look.payload;
  if (!classes?.length) return null;
  const bars = new Bars("Classes");
  bars.draw(classes.slice(0, MOST).map(({ text, probability }, place) => ({ text, after: probability, chosen: place === 0 })));
  const words = [
    formula(`*p* = softmax(*W* *x*)`, `${classes.length.toLocaleString("en")} classes`),
    prose("What the last layer made of all positions is summed up in one vector, and one matrix gives each class a number; the softmax makes probabilities of them."),
  ];
  const section = new Section("classes", "What it is", words, bars.element);
  element.append(section.element);
  return section;
}

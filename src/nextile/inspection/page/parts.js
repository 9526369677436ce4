// What views are made of: sections, formulas, numbers, pieces of text.

import { label, make, spoken } from "./dom.js";

// --- words --------------------------------------------------------------------------------------------------------------

const MARKS = { "*": "i", "^": "sup", _: "sub", "`": "code", "+": "b" };

/** Text of ours with *variables*, ^above^, _below_, `code` and +strong+; never used for what a model wrote. */
export function rich(text) {
  return text.split(/([*^_`+][^*^_`+\s][^*^_`+]*[*^_`+])/).map((part) => {
    const tag = part.length > 2 && part[0] === part.at(-1) ? MARKS[part[0]] : null;
    return tag ? make(tag, {}, part.slice(1, -1)) : part;
  });
}

/** A formula of ours, and under it how large it is here. */
export function formula(text, size = "") {
  return make("p", { class: "formula" }, make("span", {}, ...rich(text)), size ? make("span", { class: "size" }, size) : null);
}

export const prose = (text) => make("p", {}, ...rich(text));
export const note = (text) => make("p", { class: "note" }, ...rich(text));

/** "T × D": what the axes of a matrix are. */
export const shape = (...sizes) => sizes.map((each) => each.toLocaleString("en")).join(" \u00d7 ");

// --- numbers ------------------------------------------------------------------------------------------------------------

/** A number as it is read, with a true minus sign. */
export function shown(value, digits = 3) {
  if (!Number.isFinite(value)) return value < 0 ? "\u2212\u221e" : "\u221e";
  const size = Math.abs(value);
  const text = size >= 1e5 || (size > 0 && size < 0.5 * 10 ** -digits) ? size.toExponential(1) : size.toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}

/** A number that keeps all of its digits for whoever asks. */
export function number(value, digits = 3) {
  return make("span", { class: "number", "data-value": value }, shown(value, digits));
}

/** A round number that is not below any of them, for the end of a scale. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return Number((Math.ceil((value / power) * 2) / 2 * power).toPrecision(2));
}

/** Almost the largest, in size: few numbers may be beyond the end of a scale, so that all others are seen. */
export function nearlyLargest(numbers) {
  const sorted = Float32Array.from(numbers, Math.abs).sort();
  return sorted[Math.max(0, Math.ceil(0.995 * sorted.length) - 1)] ?? 0;
}

export const largest = (numbers) => numbers.reduce((most, each) => Math.max(most, Math.abs(each)), 0);

// --- pieces of text -----------------------------------------------------------------------------------------------------

const EMPTY = "\u25cc";

/** A piece as text that shows its spaces. */
export const piece = (text) => label(text) || EMPTY;

export const quoted = (text) => `\u201c${piece(text)}\u201d`;

export const said = (text) => spoken(text);

/** A piece in the type of the text. */
export const word = (text) => make("span", { class: "word" }, piece(text));

// --- sections -----------------------------------------------------------------------------------------------------------

/** A step of the way: what it is on the left, what it is here on the right. */
export class Section {
  constructor(id, title, lines, ...figure) {
    this.id = id;
    this.title = title;
    this.words = make("div", { class: "words" }, make("h2", {}, title), ...lines);
    this.figure = make("div", { class: "figure" }, ...figure);
    this.element = make("section", { id, class: "step", "aria-label": title }, this.words, this.figure);
  }
}

/** A figure under a name, with its shape. */
export function panel(name, size, ...children) {
  const caption = make("figcaption", {}, ...rich(name), size ? make("span", { class: "shape" }, size) : null);
  return make("figure", { class: "panel" }, caption, ...children);
}

/** A row of numbers, and what it is called. */
export function table(caption, heads, rows) {
  return make(
    "table",
    {},
    make("caption", { class: "unseen" }, caption),
    make("thead", {}, make("tr", {}, ...heads.map((each) => make("th", { scope: "col" }, ...rich(each))))),
    make("tbody", {}, ...rows),
  );
}

// The distribution of what comes next, under temperature, top-k, top-p and min-p; all of the vocabulary counts.

import { Bars } from "./bars.js";
import { KS, range, Slider } from "./controls.js";
import { count, make } from "./dom.js";
import { prediction } from "./lens.js";
import { unpack } from "./pack.js";
import { formula, number, piece, prose, Section } from "./parts.js";

const ROWS = 12;
const off = (value) => (value === null || value === 1 || value === 0 ? "off" : String(value));

/** All logits, highest first, each with how many tokens have about it: the first by name, the others in groups. */
export function opened({ logits, others, size, count: all }) {
  const first = unpack(logits).data;
  const rest = unpack(others).data;
  const left = all - first.length;
  const counts = Array.from(rest, (_, group) => Math.min(size, left - group * size));
  return { logits: [...first, ...rest], counts: [...Array(first.length).fill(1), ...counts] };
}

const ZERO = (place) => (place === 0 ? 1 : 0);

/** Probabilities of logits after temperature, then top-k, top-p and min-p, as `generate` cuts them; by token. */
export function shaped({ logits, counts }, { temperature = 1, k = null, p = 1, least = 0 }) {
  if (temperature === 0) return logits.map((_, place) => ZERO(place));
  let weights = logits.map((each) => Math.exp((each - logits[0]) / temperature));
  if (k !== null) weights = atMost(weights, counts, k);
  if (p < 1) weights = nucleus(weights, counts, p);
  weights = weights.map((each) => (each >= least * weights[0] ? each : 0));
  const sum = weights.reduce((total, each, place) => total + each * counts[place], 0);
  return weights.map((each) => each / sum);
}

function atMost(weights, counts, k) {
  let before = 0;
  let last = 0;
  return weights.map((each, place) => {
    const kept = before < k || each === last; // what is as good as the last one stays
    if (kept) last = each;
    before += counts[place];
    return kept ? each : 0;
  });
}

function nucleus(weights, counts, p) {
  const sum = weights.reduce((total, each, place) => total + each * counts[place], 0);
  let before = 0;
  return weights.map((each, place) => {
    const kept = place === 0 || before < p * sum;
    before += each * counts[place];
    return kept ? each : 0;
  });
}

class Distribution {
  constructor(look, found) {
    Object.assign(this, { look, found, all: opened(found) });
    this.before = shaped(this.all, {});
    const change = () => this.update();
    this.temperature = new Slider("Temperature", range(0, 2, 0.05), 1, { change, show: (value) => (value === 0 ? "0, the likeliest" : value.toFixed(2)) });
    this.k = new Slider("Top-k", KS, null, { change, show: off });
    this.p = new Slider("Top-p", range(0.05, 1, 0.05), 1, { change, show: off });
    this.least = new Slider("Min-p", range(0, 0.5, 0.01), 0, { change, show: off });
    this.bars = new Bars("The likeliest");
    this.told = make("p", { class: "note", role: "status" });
    const sliders = [this.temperature, this.k, this.p, this.least].map((each) => each.element);
    this.element = make("div", { class: "distribution" }, make("div", {}, this.bars.element, this.told), make("div", { class: "sliders" }, ...sliders));
    this.update();
  }

  get setting() {
    return { temperature: this.temperature.value, k: this.k.value, p: this.p.value, least: this.least.value };
  }

  update() {
    const after = shaped(this.all, this.setting);
    const { words, kind } = this.look.payload;
    const { ids, count: all } = this.found;
    const rows = ids.slice(0, ROWS).map((id, place) => ({ text: words[id], before: this.before[place], after: after[place] }));
    const others = rows.length < all;
    const sum = (shares) => Math.max(0, 1 - shares.slice(0, rows.length).reduce((total, each) => total + each, 0));
    if (others) rows.push({ text: `${(all - rows.length).toLocaleString("en")} others`, before: sum(this.before), after: sum(after), plain: true });
    this.bars.draw(rows);
    if (kind === "paint") this.paint(ids);
    this.tell(after);
  }

  /** Of a painter the names are colours. */
  paint(ids) {
    ids.slice(0, ROWS).forEach((id, place) => {
      this.bars.element.children[place].firstChild.firstChild.replaceChildren(prediction(this.look.payload.words[id], "paint"));
    });
  }

  tell(after) {
    const { counts } = this.all;
    const left = after.reduce((sum, each, place) => sum + (each > 0 ? counts[place] : 0), 0);
    const entropy = after.reduce((sum, each, place) => sum - (each > 0 ? counts[place] * each * Math.log(each) : 0), 0);
    this.told.replaceChildren(`${count(left, "token")} can be drawn; entropy `, number(entropy), " nats, as much as of ", number(Math.exp(entropy), 1), " equally likely ones.");
  }
}

const WHERE = {
  lm: "after the whole text",
  translate: "after all that is written",
  denoise: "after all that is written",
};

/** The section; null where no tokens are predicted. */
export function mount(element, look) {
  const all = (look.payload.distributions ?? []).map((found) => new Distribution(look, found));
  if (!all.length) return null;
  const names = all.map(({ found }) => make("h3", {}, WHERE[look.payload.kind] ?? "at ", ...(WHERE[look.payload.kind] ? [] : [make("span", { class: "word" }, piece(look.names(look.payload.stacks[look.own].queries)[found.position].text)), ` (position ${found.position})`])));
  const words = [
    formula(`*p* = softmax(*W* *x* / temperature)`, `${all[0].found.count.toLocaleString("en")} tokens`),
    prose("The head gives every token of the vocabulary a number, and the softmax makes probabilities of them. A low +temperature+ sharpens them, a high one flattens them."),
    prose("+Top-k+ keeps the *k* likeliest, +top-p+ the fewest that have the share *p* together, +min-p+ those that are not too far below the best. What is left is drawn from."),
    prose(`Pale is what the model says, dark what the sliders leave.`),
  ];
  const section = new Section("next", look.payload.kind === "masked" ? "What fills the gap" : "What comes next", words, ...all.flatMap((each, place) => [names[place], each.element]));
  element.append(section.element);
  return section;
}

// The residual stream: how long each vector is after each layer, and what attention and feed-forward added.

import { draw, make } from "./dom.js";
import { unpack } from "./pack.js";
import { formula, number, piece, prose, Section, shape, shown, table } from "./parts.js";

const [WIDE, HIGH, LEFT, FOOT] = [640, 230, 44, 30];
const CLASSES = { "self-attention": "mixes", "cross-attention": "crosses", "feed-forward": "thinks" };
const NAMES = { "self-attention": "attention", "cross-attention": "cross-attention", "feed-forward": "feed-forward" };

const BEFORE = "*x* \u2190 *x* + attention(*x*), *x* \u2190 *x* + mlp(*x*)";
const AFTER = "*x* \u2190 norm(*x* + attention(*x*)), *x* \u2190 norm(*x* + mlp(*x*))";
const FLOWS = "gradients flow back along it undimmed.";
const NORMED = "here each sum is normed before it goes on, as in 2017, and the lengths are those after the norm.";

class Stream {
  constructor(look, which, found) {
    Object.assign(this, { look, which, parts: found.parts });
    this.lengths = unpack(found.lengths); // (layer, position)
    this.added = unpack(found.added); // (layer, part, position)
    this.like = unpack(found.like);
    this.tokens = look.names(look.payload.stacks[which].queries);
    this.title = make("p", { class: "readout" });
    this.svg = draw("svg", { class: "chart", viewBox: `0 0 ${WIDE} ${HIGH}`, "aria-hidden": "true" });
    this.numbers = make("div", { class: "scroller plain", tabindex: "0", role: "region", "aria-label": `Lengths, layer by layer: ${which}` });
    const keys = [["length", "length of the sum"], ...this.parts.map((part) => [CLASSES[part], NAMES[part]])];
    const key = make("p", { class: "keys" }, ...keys.map(([name, text]) => make("span", { class: `key ${name}` }, text)));
    this.element = make("div", { class: "stream" }, this.title, key, this.svg, this.numbers);
  }

  follow() {
    const position = this.look.position(this.which) ?? this.tokens.length - 1;
    if (position === this.position || position >= this.tokens.length) return;
    this.position = position;
    this.title.replaceChildren("The vector of ", make("b", { class: "word" }, piece(this.tokens[position].text)), " on its way");
    this.chart(position);
    this.list(position);
  }

  chart(position) {
    const depth = this.lengths.shape[0] - 1;
    const lengths = Array.from({ length: depth + 1 }, (_, layer) => this.lengths.value(layer, position));
    const parts = Array.from({ length: depth }, (_, layer) => this.parts.map((_, part) => this.added.value(layer, part, position)));
    const most = Math.max(...lengths, ...parts.flat()) * 1.05 || 1;
    const step = (WIDE - LEFT) / (depth + 1);
    const x = (layer) => LEFT + (layer + 0.5) * step;
    const y = (value) => HIGH - FOOT - ((HIGH - FOOT - 12) * value) / most;
    const bar = Math.min(26, (step * 0.6) / this.parts.length);
    const rect = (layer, part) => {
      const value = parts[layer][part];
      const left = x(layer) + step / 2 + (part - this.parts.length / 2) * bar;
      return draw("rect", { class: CLASSES[this.parts[part]], x: left + 1, y: y(value), width: bar - 2, height: HIGH - FOOT - y(value), rx: 1.5 });
    };
    const ticks = [0, 0.5, 1].map((share) => (share * most) / 1.05);
    this.svg.replaceChildren(
      ...ticks.flatMap((tick) => [
        draw("line", { class: "grid-line", x1: LEFT, x2: WIDE, y1: y(tick), y2: y(tick) }),
        draw("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, shown(tick, 1)),
      ]),
      ...parts.flatMap((each, layer) => each.map((_, part) => rect(layer, part))),
      draw("polyline", { class: "stream", points: lengths.map((each, layer) => `${x(layer)},${y(each)}`).join(" ") }),
      ...lengths.map((each, layer) => draw("circle", { class: "stream", cx: x(layer), cy: y(each), r: 3.5 })),
      ...lengths.map((_, layer) => draw("text", { x: x(layer), y: HIGH - 8, "text-anchor": "middle" }, layer ? `after ${layer - 1}` : "in")),
    );
  }

  list(position) {
    const heads = ["place", "length", ...this.parts.map((part) => `plus ${NAMES[part]}`), "cosine to the end"];
    const rows = Array.from({ length: this.lengths.shape[0] }, (_, layer) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, layer ? `after layer ${layer - 1}` : "comes in"),
        make("td", {}, number(this.lengths.value(layer, position))),
        ...this.parts.map((_, part) => make("td", {}, layer ? number(this.added.value(layer - 1, part, position)) : "")),
        make("td", {}, number(this.like.value(layer, position))),
      ),
    );
    this.numbers.replaceChildren(table("Lengths of the vector, layer by layer", heads, rows));
  }
}

/** The section; null where there are no layers. */
export function mount(element, look) {
  const all = Object.entries(look.payload.stream ?? {}).map(([which, found]) => new Stream(look, which, found));
  if (!all.length) return null;
  const names = { self: "What is written", encoder: "What is read" };
  const figures = all.flatMap((each) => [all.length > 1 ? make("h3", {}, names[each.which]) : null, each.element]);
  const [layers, positions] = all[0].lengths.shape;
  const after = Object.values(look.payload.stream)[0].norm === "after";
  const words = [
    formula(after ? AFTER : BEFORE, `${shape(layers, positions)} vectors`),
    prose(`No layer replaces a vector: each adds to it. The sum that runs through all layers is the residual stream, the skip connection\u2019s other name; ${after ? NORMED : FLOWS}`),
    prose("The bars say how much each part added, the line how long the sum is by then. The cosine says how far the direction already is that of the end."),
  ];
  const section = new Section("stream", "The residual stream", words, ...figures.filter(Boolean));
  element.append(section.element);
  look.on(() => all.forEach((each) => each.follow()));
  return section;
}

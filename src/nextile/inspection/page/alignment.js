// Cross-attention: which words of the source each written word looked at, as lines between two texts.

import { css, ofWeight, onTheme, tint, weightLegend } from "./colours.js";
import { draw, make, percent } from "./dom.js";
import { Matrix } from "./matrix.js";
import { Grid } from "./pack.js";
import { formula, panel, piece, prose, said, Section, shape } from "./parts.js";

const LEAST = 0.08; // a weight that has a line
const ROW = 26;

/** The mean of the heads that are chosen: one, or all of a layer. */
function weightsOf(look, layer, head) {
  const stack = look.payload.stacks.cross;
  const heads = head === null ? Array.from({ length: stack.heads }, (_, each) => each) : [head];
  const found = heads.map((each) => look.weights({ which: "cross", layer, head: each })).filter(Boolean);
  if (found.length < heads.length) return null;
  const data = Float32Array.from(found[0].data, (_, place) => found.reduce((sum, each) => sum + each.data[place], 0) / found.length);
  return new Grid(found[0].shape, data);
}

class Alignment {
  constructor(look) {
    this.look = look;
    this.mean = make("input", { type: "checkbox", id: "mean-of-heads", onchange: () => this.update() });
    this.what = make("p", { class: "readout" });
    this.lines = draw("g", {});
    this.left = make("ol", { class: "side" });
    this.right = make("ol", { class: "side" });
    this.svg = draw("svg", { class: "threads", "aria-hidden": "true", preserveAspectRatio: "none" }, this.lines);
    this.texts = make("div", { class: "aligned" }, this.left, this.svg, this.right);
    this.matrix = new Matrix("Alignment, a row a written token", {
      say: (row, column) => this.said(row, column),
      point: (row) => this.point(row),
      take: (row) => look.choose({ which: "cross", query: row }),
    });
    this.element = make("div", { class: "alignment" });
    this.build();
    onTheme(this.element, () => this.update());
  }

  build() {
    const { pieces, target } = this.look.payload;
    const line = (each, place, side) =>
      make("li", side === "right" ? { onpointerenter: () => this.point(place), onpointerleave: () => this.point(null) } : {}, make("span", { class: "word" }, piece(each.text)));
    this.left.replaceChildren(...pieces.map((each, place) => line(each, place, "left")));
    this.right.replaceChildren(...target.map((each, place) => line(each, place, "right")));
    const height = ROW * Math.max(pieces.length, target.length);
    this.svg.setAttribute("viewBox", `0 0 100 ${height}`);
    this.svg.style.height = `${height}px`;
    const pick = make("label", { class: "check", for: "mean-of-heads" }, this.mean, " mean of the layer\u2019s heads");
    this.square = panel("*A* cross-attention", shape(target.length, pieces.length), this.matrix.element);
    this.element.append(make("div", { class: "actions" }, this.what, pick), this.texts, this.square);
  }

  point(row) {
    this.at = row;
    if (this.look.stack.queries === "target") this.look.point(row);
    else this.follow();
  }

  said(row, column) {
    const { pieces, target } = this.look.payload;
    return `from ${said(target[row].text)} to ${said(pieces[column].text)}: ${percent(this.weights.value(row, column))}`;
  }

  update() {
    const { layer, head } = this.look.chosen;
    const stack = this.look.payload.stacks.cross;
    const place = [Math.min(layer, stack.depth - 1), this.mean.checked ? null : Math.min(head, stack.heads - 1)];
    this.weights = weightsOf(this.look, ...place);
    this.what.textContent = `Layer ${place[0]}, ${place[1] === null ? "all heads" : `head ${place[1]}`}`;
    this.texts.hidden = this.square.hidden = !this.weights;
    if (!this.weights) return void this.what.append("; its weights were left out");
    this.matrix.show(...this.weights.shape, (row, column) => ofWeight(this.weights.value(row, column)));
    this.thread();
    this.follow();
  }

  /** A line for each weight that is worth one. */
  thread() {
    const [rows, columns] = this.weights.shape;
    const lines = [];
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) {
        const weight = this.weights.value(row, column);
        if (weight < LEAST) continue;
        const [from, to] = [(column + 0.5) * ROW, (row + 0.5) * ROW];
        const line = draw("path", { d: `M0 ${from}C40 ${from} 60 ${to} 100 ${to}`, "stroke-width": 0.5 + 5 * weight, "data-row": row });
        line.style.stroke = css(ofWeight(weight));
        lines.push(line);
      }
    this.lines.replaceChildren(...lines);
  }

  follow() {
    const row = this.look.stack.queries === "target" ? this.look.query : (this.at ?? null);
    this.matrix.mark(row);
    for (const line of this.lines.children) line.classList.toggle("off", row !== null && Number(line.dataset.row) !== row);
    const weights = row === null ? null : this.weights?.row(row);
    [...this.left.children].forEach((each, place) => tint(each.firstChild, weights?.[place]));
    [...this.right.children].forEach((each, place) => each.classList.toggle("here", place === row));
  }
}

/** The section; null where no text is written from another. */
export function mount(element, look) {
  if (!look.payload.stacks.cross || !look.payload.target) return null;
  const view = new Alignment(look);
  const words = [
    formula("*Q* from what is written, *K* and *V* from what is read"),
    prose("A decoder asks the encoder\u2019s result for what it needs. Read by row, the weights say which words of the source were looked at when a word was to be written: an alignment that nobody taught."),
    prose("The row of a token is what was looked at with it as the last one, so it tells about the +next+ token."),
  ];
  const section = new Section("alignment", "Alignment", words, view.element, weightLegend());
  element.append(section.element);
  look.on(() => view.update());
  return section;
}

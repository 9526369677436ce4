// Rollout: through all layers at once, how much of each token is in each result.

import { ofWeight, weightLegend } from "./colours.js";
import { make, percent } from "./dom.js";
import { Matrix } from "./matrix.js";
import { unpack } from "./pack.js";
import { formula, note, number, panel, piece, prose, said, Section, shape } from "./parts.js";
import { Sight } from "./sight.js";

const MOST = 8; // keys that are named

class Flow {
  constructor(look, which, grid) {
    Object.assign(this, { look, which, grid });
    this.tokens = look.names(look.payload.stacks[which].queries);
    this.list = make("ol", { class: "shares" });
    this.title = make("p", { class: "readout" });
    this.matrix = new Matrix("Rollout, a row a token", {
      say: (row, column) => `in ${said(this.tokens[row].text)} of ${said(this.tokens[column].text)}: ${percent(grid.value(row, column))}`,
      point: (row) => look.position(which) !== null && look.point(row),
      take: (row) => look.position(which) !== null && look.choose({ query: row }),
    });
    this.matrix.show(...grid.shape, (row, column) => (grid.value(row, column) > 0 ? ofWeight(grid.value(row, column)) : null));
    this.sight = look.payload.picture ? new Sight(look, "Rollout over the picture") : null;
  }

  get element() {
    const square = panel("rollout", shape(...this.grid.shape), this.matrix.element);
    const right = make("div", { class: "panel" }, this.title, this.list);
    return make("div", { class: "two" }, square, this.sight ? make("div", {}, this.sight.element, right) : right);
  }

  follow() {
    const query = this.look.position(this.which) ?? this.tokens.length - 1;
    this.matrix.mark(query);
    const row = this.grid.row(query);
    this.sight?.show(row, query);
    const best = Array.from(row, (share, key) => [share, key]).sort((a, b) => b[0] - a[0]).slice(0, MOST);
    this.title.replaceChildren("What is in ", make("b", { class: "word" }, piece(this.tokens[query].text)), ":");
    const lines = best.filter(([share]) => share > 0).map(([share, key]) =>
      make("li", {}, number(share, 4), " ", make("span", { class: "word" }, piece(this.tokens[key].text)), make("small", {}, ` ${key}`)),
    );
    this.list.replaceChildren(...lines);
  }
}

/** The section; null where there is none. */
export function mount(element, look) {
  const all = Object.entries(look.payload.rollout ?? {}).map(([which, packed]) => new Flow(look, which, unpack(packed)));
  if (!all.length) return null;
  const names = { self: "What is written", encoder: "What is read" };
  const figures = all.flatMap((flow) => [all.length > 1 ? make("h3", {}, names[flow.which]) : null, flow.element]);
  const words = [
    formula("*R* = \u220f (\u00bd *A*_layer_ + \u00bd *I*)"),
    prose("A token that is looked at in the third layer has looked at others in the second. Rollout multiplies the layers\u2019 weights, averaged over heads; half of each step is the skip connection, which passes a token on as it is."),
    note("Abnar and Zuidema 2020. It knows nothing of what values and feed-forward nets do: take it for a sketch."),
  ];
  const section = new Section("rollout", "Rollout", words, ...figures.filter(Boolean), weightLegend("share"));
  element.append(section.element);
  look.on(() => all.forEach((flow) => flow.follow()));
  return section;
}

// One head, step by step: Q, K and V, their products, the mask, the softmax, and the average; all reckoned here.

import { css, ofSigned, ofWeight, signedLegend, weightLegend } from "./colours.js";
import { make, percent } from "./dom.js";
import { Matrix } from "./matrix.js";
import { plain, Sight } from "./sight.js";
import { formula, largest, number, panel, piece, prose, quoted, rich, roundUp, said, Section, shape, shown } from "./parts.js";

const AVERAGED = 5; // vectors that are drawn of the average
const MANY = 20; // keys, beyond which the heaviest come first

// --- matrices -----------------------------------------------------------------------------------------------------------

/** Q, K and V, one under the name of the other. */
class Matrices {
  constructor(view) {
    this.view = view;
    this.names = ["queries", "keys", "values"];
    this.titles = { queries: "*Q* queries", keys: "*K* keys", values: "*V* values" };
    this.legend = make("div");
    this.matrices = this.names.map((name) => this.matrix(name));
    this.element = make("div", { class: "three" });
  }

  matrix(name) {
    return new Matrix(name, {
      say: (row, column) => `${said(this.tokens(name)[row].text)}, number ${column}: ${this.view.head[name].value(row, column)}`,
      point: (row) => this.view.pointAt(name === "queries" ? row : null, name === "queries" ? null : row),
      take: (row) => (name === "queries" ? this.view.look.choose({ query: row }) : this.view.take(row)),
    });
  }

  tokens(name) {
    return name === "queries" ? this.view.look.queries : this.view.look.keys;
  }

  /** Another head's. */
  show() {
    const { head } = this.view;
    const most = roundUp(Math.max(...this.names.map((name) => largest(head[name].data))));
    this.names.forEach((name, place) => {
      const grid = head[name];
      const colour = (row, column) => ofSigned(grid.value(row, column), most);
      this.matrices[place].show(...grid.shape, colour, `${name}, a row a token`);
    });
    const panels = this.names.map((name, place) => panel(this.titles[name], shape(...head[name].shape), this.matrices[place].element));
    this.element.replaceChildren(...panels);
    this.legend.replaceChildren(signedLegend("value", most));
  }

  follow() {
    const { look, key } = this.view;
    this.matrices[0].mark(look.query);
    this.matrices[1].mark(key);
    this.matrices[2].mark(key);
  }
}

/** Scores and weights, a row a query. */
class Squares {
  constructor(view) {
    this.view = view;
    this.matrices = ["scores", "weights"].map((name) => this.matrix(name));
    this.legends = make("div", { class: "legends" });
    this.element = make("div", { class: "two" });
  }

  matrix(name) {
    const { view } = this;
    return new Matrix(name, {
      say: (row, column) => this.said(row, column),
      point: (row, column) => view.pointAt(row, column),
      take: (row, column) => {
        view.look.choose({ query: row });
        view.take(column);
      },
    });
  }

  said(row, column) {
    const { look, head } = this.view;
    const words = `from ${said(look.queries[row].text)} to ${said(look.keys[column].text)}`;
    if (head.hides(row, column)) return `${words}: hidden by the mask`;
    const { scores, weights } = head.row(row);
    return `${words}: score ${shown(scores[column])}, weight ${percent(weights[column])}`;
  }

  show() {
    const { head } = this.view;
    const [scores, weights] = [head.all("scores"), head.all("weights")];
    const seen = scores.data.filter((_, place) => !head.hides(Math.floor(place / head.seen), place % head.seen));
    const most = roundUp(largest(seen));
    const unless = (paint) => (row, column) => (head.hides(row, column) ? null : paint(row, column));
    const [left, right] = this.matrices;
    left.show(head.time, head.seen, unless((r, c) => ofSigned(scores.value(r, c), most)), "Scores, a row a query");
    right.show(head.time, head.seen, unless((r, c) => ofWeight(weights.value(r, c))), "Weights, a row a query");
    const size = shape(head.time, head.seen);
    this.element.replaceChildren(
      panel("scores *QK*^\u22a4^, scaled and masked", size, left.element),
      panel("weights softmax(scores)", size, right.element),
    );
    this.legends.replaceChildren(signedLegend("score", most), weightLegend());
  }

  follow() {
    for (const matrix of this.matrices) matrix.mark(this.view.look.query);
  }
}

// --- the row of one query -----------------------------------------------------------------------------------------------

/** A key a line: product, scaled, masked, power, weight. */
class Row {
  constructor(view) {
    this.view = view;
    this.body = make("tbody");
    this.foot = make("tfoot");
    this.head = make("thead");
    this.caption = make("caption");
    this.element = make("div", { class: "ledger", tabindex: "0", role: "region", "aria-label": "The row of the query" });
    this.table = make("table", { class: "steps-of" }, this.caption, this.head, this.body, this.foot);
    this.sorted = make("input", { type: "checkbox", id: "heaviest-first", onchange: () => this.follow() });
    this.element.append(this.table);
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Another head: the columns that it needs, a line a key. */
  show() {
    const { part } = this.view.head;
    const more = [part.cap ? "capped" : null, part.bias ? "+ bias" : null];
    const names = ["key", "*q*\u00b7*k*", `\u00d7\u2009${shown(part.scale, 4)}`, ...more, "*e*^score\u2212max^", "weight"];
    const heads = names.filter(Boolean).map((each) => make("th", { scope: "col" }, ...rich(each)));
    this.head.replaceChildren(make("tr", {}, ...heads));
    this.lines = this.view.look.keys.map((each, key) => this.line(each, key));
    this.sorted.checked = this.lines.length > MANY;
    this.order = null;
  }

  /** Put the lines in order: of the keys, or of their weights. */
  arrange(weights) {
    const keys = this.lines.map((_, key) => key);
    if (this.sorted.checked) keys.sort((a, b) => weights[b] - weights[a] || a - b);
    const order = keys.join();
    if (order === this.order) return;
    this.order = order;
    this.keys = keys;
    this.body.replaceChildren(...keys.map((key) => this.lines[key]));
  }

  /** Scroll the table, and nothing else, to where a key is. */
  bring(key) {
    const frame = this.element.getBoundingClientRect();
    const line = this.lines[key].getBoundingClientRect();
    const above = frame.top + this.head.offsetHeight - line.top;
    const below = line.bottom + this.foot.offsetHeight - frame.bottom;
    if (above > 0) this.element.scrollTop -= above;
    else if (below > 0) this.element.scrollTop += below;
  }

  line(each, key) {
    const point = () => this.view.pointAt(null, key);
    return make(
      "tr",
      { onpointerenter: point, onpointerleave: () => this.view.pointAt(null, null), onclick: () => this.view.take(key) },
      make("th", { scope: "row" }, make("span", { class: "word" }, piece(each.text)), make("small", {}, ` ${key}`)),
    );
  }

  key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const place = Math.min(this.lines.length - 1, Math.max(0, this.keys.indexOf(this.view.key) + by));
    this.view.take(this.keys[place]);
    this.bring(this.keys[place]);
  }

  follow() {
    const { head, look, key } = this.view;
    const found = head.row(look.query);
    this.arrange(found.weights);
    this.lines.forEach((line, place) => {
      line.classList.toggle("here", place === key);
      line.replaceChildren(line.firstChild, ...this.cells(found, place));
    });
    const columns = this.head.firstChild.children.length;
    this.foot.replaceChildren(
      make(
        "tr",
        {},
        make("th", { scope: "row", colspan: columns - 2 }, "sum"),
        make("td", {}, number(found.sum, 4)),
        make("td", {}, number(found.weights.reduce((sum, each) => sum + each, 0), 4)),
      ),
    );
    if (this.view.pointed === null && look.pointed === null) look.soon("ledger", () => this.bring(this.view.key));
    const asked = quoted(look.queries[look.query].text);
    this.caption.replaceChildren("How ", make("b", { class: "word" }, asked), ` (position ${look.query}) weighs the others`);
  }

  cells(found, key) {
    const { head, look } = this.view;
    const { part } = head;
    const cell = (...children) => make("td", {}, ...children);
    const steps = ["scaled", part.cap ? "capped" : null, part.bias ? "scores" : null].filter(Boolean);
    const hidden = head.hides(look.query, key);
    const values = ["products", ...steps].map((name) => cell(number(found[name][key])));
    if (hidden) {
      values.splice(-1, 1, make("td", { class: "masked" }, make("span", { title: shown(found.scores[key]) }, "\u2212\u221e")));
      return [...values, cell(number(0, 4)), this.weight(0)];
    }
    return [...values, cell(number(found.powers[key], 4)), this.weight(found.weights[key])];
  }

  weight(value) {
    const bar = make("span", { class: "bar-of" });
    bar.style.setProperty("--share", value);
    bar.style.setProperty("--tint", css(ofWeight(value)));
    return make("td", { class: "weight" }, bar, number(value, 4));
  }
}

/** A vector as a strip of cells. */
class Strip {
  constructor(name) {
    this.matrix = new Matrix(name);
    this.label = make("span", { class: "label" });
    this.value = make("span", { class: "sum-of" });
    this.element = make("div", { class: "strip-of" }, this.label, this.matrix.element, this.value);
  }

  show(label, vector, most, value = []) {
    this.label.replaceChildren(...label);
    this.value.replaceChildren(...value);
    this.matrix.show(1, vector.length, (_, column) => ofSigned(vector[column], most));
  }
}

/** The product of a query and a key, number by number. */
class Product {
  constructor(view) {
    this.view = view;
    this.strips = ["query", "key", "products"].map((name) => new Strip(name));
    this.element = make("div", { class: "product" }, ...this.strips.map((each) => each.element));
  }

  follow() {
    const { head, look, key } = this.view;
    const [q, k] = [head.queries.row(look.query), head.keys.row(key)];
    const each = q.map((value, place) => value * k[place]);
    const most = Math.max(largest(q), largest(k));
    const total = number(head.row(look.query).products[key], 4);
    this.strips[0].show(["*q* ", "of "].flatMap(rich).concat(word(look.queries[look.query])), q, most);
    this.strips[1].show(["*k* ", "of "].flatMap(rich).concat(word(look.keys[key])), k, most);
    this.strips[2].show(rich("*q* \u00d7 *k*"), each, largest(each), ["\u03a3 = ", total]);
  }
}

const word = (each) => make("span", { class: "word" }, piece(each.text));

/** The average of the values: those with the largest weights, and the sum of all. */
class Average {
  constructor(view) {
    this.view = view;
    this.strips = Array.from({ length: AVERAGED }, (_, place) => new Strip(`value ${place}`));
    this.rest = make("p", { class: "note" });
    this.total = new Strip("result");
    this.element = make("div", { class: "average" }, ...this.strips.map((each) => each.element), this.rest, this.total.element);
  }

  follow() {
    const { head, look } = this.view;
    const { weights, result } = head.row(look.query);
    const best = Array.from(weights, (weight, key) => [weight, key]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, AVERAGED);
    const kept = best.filter(([weight]) => weight > 0);
    const parts = kept.map(([weight, key]) => head.values.row(key).map((each) => weight * each));
    const most = Math.max(largest(result), ...parts.map(largest));
    this.strips.forEach((strip, place) => {
      strip.element.hidden = !kept[place];
      if (!kept[place]) return;
      const [weight, key] = kept[place];
      strip.show([number(weight, 4), ...rich(" \u00d7 *v* of "), word(look.keys[key])], parts[place], most);
    });
    const others = Array.from(weights).filter((weight) => weight > 0).length - kept.length;
    const share = 1 - kept.reduce((sum, [weight]) => sum + weight, 0);
    this.rest.hidden = others <= 0;
    this.rest.textContent = `and ${others} more with ${percent(Math.max(0, share))} together`;
    this.total.show(rich("= *z*, the result"), result, most);
  }
}

// --- the section --------------------------------------------------------------------------------------------------------

class View {
  constructor(look) {
    Object.assign(this, { look, head: null, taken: null, pointed: null, asked: null });
    this.missing = make("p", { class: "missing" });
    this.whole = make("div", { class: "figure" });
    this.agreement = make("p", { class: "note", role: "status" });
    this.parts = { matrices: new Matrices(this), squares: new Squares(this), row: new Row(this), product: new Product(this), average: new Average(this) };
    const { matrices, squares, row, product, average } = this.parts;
    this.sight = look.payload.picture && new Sight(look, "The picture: where the query looks");
    const step = (title, ...children) => make("div", { class: "part" }, make("h3", {}, ...rich(title)), ...children);
    this.productTitle = make("h3");
    if (this.sight) this.whole.append(make("div", { class: "part" }, make("h3", {}, "Where it looks"), make("div", { class: "two" }, plain(look), this.sight.element)));
    this.whole.append(
      step("1. Three matrices", matrices.element, matrices.legend),
      step("2. Scores, mask, softmax", squares.element, squares.legends),
      step("3. One row of it, number by number", row.element, make("label", { class: "check", for: "heaviest-first" }, row.sorted, " heaviest first")),
      make("div", { class: "part" }, this.productTitle, product.element),
      step("5. The weighted average", average.element),
      this.agreement,
    );
    this.productTitle.append(...rich("4. One product *q*\u00b7*k*"));
  }

  /** The key that is looked at: pointed at, chosen, or the one with the largest weight. */
  get key() {
    if (this.pointed !== null) return this.pointed;
    if (this.taken !== null && this.taken < this.head.seen) return this.taken;
    const { weights } = this.head.row(this.look.query);
    return weights.indexOf(Math.max(...weights));
  }

  pointAt(query, key) {
    this.pointed = key;
    this.look.point(query);
    this.follow();
  }

  take(key) {
    this.taken = key;
    this.follow();
  }

  /** Of another head everything, of another query its row. */
  update() {
    const head = this.look.head();
    this.whole.hidden = !head;
    this.missing.hidden = Boolean(head);
    if (!head) return this.lack();
    this.asked = null;
    if (head !== this.head) {
      this.head = head;
      Object.assign(this, { taken: null, pointed: null });
      for (const part of ["matrices", "squares", "row"]) this.parts[part].show();
      this.compare();
    }
    this.follow();
  }

  lack() {
    const { which, layer, head } = this.look.chosen;
    const flags = `--layer ${layer} --head ${head}${this.look.payload.which.length > 1 ? ` --which ${which}` : ""}`;
    if (this.look.ask) {
      if (this.asked === flags) return; // it is on its way, or was refused
      this.asked = flags;
      this.missing.textContent = "Asking the server for this head \u2026";
      this.look.fetch().catch((error) => {
        if (this.asked === flags) this.missing.textContent = `The server did not give this head: ${error.message}`;
      });
      return;
    }
    this.missing.replaceChildren(
      `The Q, K and V of this head were left out so that the page stays small${this.look.weights() ? "; its weights are in \u201cAll heads\u201d" : ""}. `,
      make("code", {}, flags),
      " writes a page that has them.",
    );
  }

  follow() {
    if (!this.head || this.look.query >= this.head.time) return;
    for (const part of Object.values(this.parts)) part.follow();
    this.sight?.show(Float32Array.from(this.head.row(this.look.query).weights), this.look.query);
  }

  /** Say how far what was reckoned here is from what the model made. */
  compare() {
    const own = this.look.weights();
    const here = this.head.all("weights").data;
    const far = here.reduce((most, each, place) => Math.max(most, Math.abs(each - own.data[place])), 0);
    this.agreement.replaceChildren(
      "Your browser reckoned all of this from Q, K and V just now; its weights differ from the model\u2019s own by at most ",
      number(far, 6),
      ".",
    );
  }
}

function lines(look) {
  const { part, width } = look.head(look.payload.chosen);
  const usual = Math.abs(part.scale * Math.sqrt(width) - 1) < 1e-6;
  return [
    formula(`*Z* = softmax(*QK*^\u22a4^ ${usual ? "/ \u221a*d*" : `\u00d7 ${shown(part.scale, 4)}`} + *M*) *V*`),
    prose("Every token makes three vectors of its own: a +query+, what it looks for; a +key+, what it can be found by; and a +value+, what it has to give."),
    prose(`The product of a query and a key says how well they fit. ${usual ? `It is divided by \u221a*d* (here *d* = ${width}) so that it does not grow with the width` : `This model multiplies it by ${shown(part.scale, 4)}, and not by 1/\u221a*d* as most do`}; where a token must not look, it is masked.`),
    prose("The softmax makes of a row of scores weights that sum to 1, and the result is the average of the values by these weights: attention is a weighted average, no more."),
    part.cap ? prose(`This model holds its scores within \u00b1${part.cap} by a tanh.`) : null,
    part.bias ? prose("This model adds a bias to the scores that depends on how far apart two tokens are.") : null,
    part.rotated ? prose("Queries and keys are shown as they are multiplied, already turned by their positions.") : null,
  ].filter(Boolean);
}

/** The section; null where there is no attention. */
export function mount(element, look) {
  if (!look.payload.heads?.length) return null;
  const view = new View(look);
  const section = new Section("head", "One head", lines(look), view.missing, view.whole);
  element.append(section.element);
  look.on(() => view.update());
  return section;
}

// The logit lens: what each layer would have said, if it were the last.

import { onTheme, tint, weightLegend } from "./colours.js";
import { make, percent } from "./dom.js";
import { unpack } from "./pack.js";
import { formula, note, number, piece, prose, said, Section, shape } from "./parts.js";

const NAMES = 64; // pixels of the column that stays

/** A prediction as it is shown: a colour as a patch of it. */
export function prediction(text, kind) {
  if (kind === "paint" && /^#[0-9a-f]{6}$/.test(text)) {
    const patch = make("span", { class: "patch", title: text });
    patch.style.background = text;
    return patch;
  }
  return make("span", { class: "word" }, piece(text));
}

class Lens {
  constructor(look) {
    this.look = look;
    const { lens, words, kind } = look.payload;
    Object.assign(this, { words, kind, ids: unpack(lens.ids), shares: unpack(lens.probabilities), rank: unpack(lens.rank) });
    [this.layers, this.positions] = this.ids.shape;
    this.classes = kind.startsWith("classify"); // they have one prediction, whatever the positions
    this.tokens = look.names(look.payload.stacks[look.own].queries);
    this.detail = make("div", { class: "detail" });
    this.table = make("div", { class: "scroller lens", tabindex: "0", role: "region", "aria-label": "The likeliest token by layer and position" });
    const tabled = !this.classes && kind !== "paint";
    this.element = make("div", {}, tabled ? this.table : "", this.detail);
    if (tabled) this.build();
    onTheme(this.element, () => this.tint());
  }

  layer(number_) {
    return number_ ? `after ${number_ - 1}` : "in";
  }

  build() {
    const columns = Array.from({ length: this.positions }, (_, position) => position);
    const head = make("tr", {}, make("td", {}), ...columns.map((position) => this.head(position)));
    const layers = Array.from({ length: this.layers }, (_, each) => this.layers - 1 - each);
    this.cells = [];
    const rows = layers.map((layer) =>
      make("tr", {}, make("th", { scope: "row" }, this.layer(layer)), ...columns.map((position) => this.cell(layer, position))),
    );
    this.table.append(
      make("table", {}, make("caption", { class: "unseen" }, "The likeliest token by layer, last layer on top, and position"), make("tbody", {}, ...rows), make("tfoot", {}, head)),
    );
    this.tint();
  }

  head(position) {
    const at = make("th", { scope: "col", "data-position": position }, make("span", { class: "word" }, piece(this.tokens[position].text)));
    at.addEventListener("click", () => this.choose(position));
    return at;
  }

  cell(layer, position) {
    const text = this.words[this.ids.value(layer, position, 0)];
    const share = this.shares.value(layer, position, 0);
    const right = this.rank.value(layer, position) === 0;
    const at = make("td", { "data-position": position, title: `${said(text)}, ${percent(share)}` }, prediction(text, this.kind));
    at.classList.toggle("right", right);
    at.addEventListener("pointerenter", () => this.point(position));
    at.addEventListener("pointerleave", () => this.point(null));
    at.addEventListener("click", () => this.choose(position));
    this.cells.push([at, share]);
    return at;
  }

  tint() {
    for (const [cell, share] of this.cells ?? []) {
      tint(cell, share);
    }
  }

  get follows() {
    return !this.classes && this.look.position(this.look.own) !== null;
  }

  point(position) {
    if (this.follows) this.look.point(position);
  }

  choose(position) {
    if (this.follows) this.look.choose({ query: position });
    else this.show(position);
  }

  update() {
    this.show(this.classes ? 0 : (this.look.position(this.look.own) ?? this.position ?? this.positions - 1));
  }

  show(position) {
    if (position === this.position) return;
    this.position = position;
    for (const each of this.table.querySelectorAll("[data-position]")) each.classList.toggle("here", Number(each.dataset.position) === position);
    if (this.look.pointed === null) this.look.soon("lens", () => this.bring(this.position));
    const rows = Array.from({ length: this.layers }, (_, layer) => this.line(layer, position));
    const title = this.classes
      ? make("p", { class: "readout" }, "Each layer\u2019s likeliest classes:")
      : make("p", { class: "readout" }, this.kind === "masked" ? "At " : "After ", make("b", { class: "word" }, piece(this.tokens[position].text)), ", each layer\u2019s likeliest:");
    this.detail.replaceChildren(title, make("ol", { class: "ranks" }, ...rows));
  }

  /** Scroll the table, and nothing else, to where a position is. */
  bring(position) {
    const column = this.table.querySelector(`tfoot [data-position="${position}"]`);
    if (!column) return;
    const [frame, at] = [this.table.getBoundingClientRect(), column.getBoundingClientRect()];
    const [before, after] = [frame.left + NAMES - at.left, at.right - frame.right];
    if (before > 0) this.table.scrollLeft -= before;
    else if (after > 0) this.table.scrollLeft += after;
  }

  line(layer, position) {
    const ranks = Array.from({ length: this.ids.shape[2] }, (_, rank) => rank);
    const rank = this.rank.value(layer, position);
    const all = ranks.map((place) => {
      const text = this.words[this.ids.value(layer, position, place)];
      const at = make("span", { class: "guess" }, prediction(text, this.kind), " ", number(this.shares.value(layer, position, place), 3));
      at.classList.toggle("right", place === rank);
      return at;
    });
    const came = rank < 0 ? null : make("small", {}, `what came is number ${rank + 1}`);
    return make("li", {}, make("b", {}, this.layer(layer)), make("div", {}, ...all, came));
  }
}

/** The section; null where nothing is predicted. */
export function mount(element, look) {
  if (!look.payload.lens) return null;
  const view = new Lens(look);
  const { classes, kind } = view;
  const words = [
    formula(`softmax(head(norm(*x*_layer_)))`, `${shape(...view.ids.shape.slice(0, 2))} predictions`),
    prose("The last layer\u2019s vector is turned into a prediction by one norm and one matrix. Nothing keeps us from asking an earlier layer the same."),
    prose(classes ? "So we see a class emerge, layer by layer." : kind === "masked" ? "So we see a thought emerge: from this token by itself to what fits all that stands around it. Underlined is what is really there." : "So we see a thought emerge: from what usually follows this token to what follows this text. Underlined is what really came."),
    note("The logit lens (nostalgebraist 2020). An earlier layer was never trained to be asked: what it says is a hint."),
  ];
  const section = new Section("lens", "What each layer would say", words, view.element, ...(classes || kind === "paint" ? [] : [weightLegend("probability")]));
  element.append(section.element);
  look.on(() => view.update());
  return section;
}

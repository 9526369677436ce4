// All heads at a glance: a picture of each one's weights, and what it mostly looks at.

import { ofWeight, onTheme, weightLegend } from "./colours.js";
import { make, percent } from "./dom.js";
import { formula, note, prose, Section, shape } from "./parts.js";

const OFTEN = 0.35; // of the weight, and a head has a name

/** The mean over queries of what they give to the key that `of` names. */
function mean(weights, of) {
  const [queries, keys] = weights.shape;
  const found = [];
  for (let query = 0; query < queries; query++) {
    const key = of(query);
    if (key >= 0 && key < keys) found.push(weights.value(query, key));
  }
  return found.length ? found.reduce((sum, each) => sum + each, 0) / found.length : 0;
}

/** Over how many keys a query spreads its weight: e to the entropy. */
function breadth(weights) {
  const [queries, keys] = weights.shape;
  let sum = 0;
  for (const weight of weights.data) if (weight > 0) sum -= weight * Math.log(weight);
  return Math.min(keys, Math.exp(sum / queries));
}

/** What a head mostly looks at, in words: [name, share], or [name] where it is spread. */
export function habit(weights, square, picture) {
  const names = square && !picture
    ? [["itself", (q) => q], ["the one before", (q) => q - 1], ["the one after", (q) => q + 1], ["the first", () => 0]]
    : [];
  const best = names.map(([name, of]) => [name, mean(weights, of)]).sort((a, b) => b[1] - a[1])[0];
  if (best && best[1] >= OFTEN) return best;
  return [`about ${breadth(weights).toFixed(1)} of ${weights.shape[1]}`];
}

class Thumb {
  constructor(look, which, layer, head) {
    Object.assign(this, { look, which, layer, head });
    const place = { which, layer, head };
    this.weights = look.weights(place);
    this.shown = this.weights ?? look.glance(place);
    this.canvas = make("canvas", { "aria-hidden": "true" });
    const { queries, keys } = look.payload.stacks[which];
    const { picture } = look.payload;
    const [name, share] = this.weights || picture ? habit(this.shown, queries === keys && which !== "cross", picture) : ["at a glance"];
    const words = share === undefined ? name : `${name} ${percent(share)}`;
    this.element = make(
      "button",
      {
        type: "button",
        class: "thumb",
        tabindex: "-1",
        "data-place": `${layer}.${head}`,
        "aria-label": `Layer ${layer}, head ${head}: ${words}`,
        onclick: () => look.choose({ which, layer, head }),
        onkeydown: (event) => this.key(event),
      },
      this.canvas,
      make("small", {}, words),
    );
  }

  /** Arrow keys go over heads and layers, and choose as they go. */
  key(event) {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [];
    if (down === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const there = this.element.closest(".thumbs").querySelector(`[data-place="${this.layer + down}.${this.head + right}"]`);
    event.preventDefault();
    there?.focus();
    there?.click();
  }

  /** The whole square; of a picture, what the query looks at, as it lies in the picture. */
  paint(query) {
    if (!this.shown) return;
    const { picture } = this.look.payload;
    const [rows, columns] = picture ? picture.grid : this.shown.shape;
    const row = () => this.shown.row(this.weights ? query : 0).subarray(picture.summaries);
    const numbers = picture ? row() : this.shown.data;
    const most = picture ? numbers.reduce((best, each) => Math.max(best, each), 1e-9) : 1;
    [this.canvas.width, this.canvas.height] = [columns, rows];
    const pen = this.canvas.getContext("2d");
    const image = pen.createImageData(columns, rows);
    numbers.forEach((weight, place) => image.data.set([...ofWeight(weight / most), 255], 4 * place));
    pen.putImageData(image, 0, 0);
  }

  mark(chosen) {
    const here = chosen.which === this.which && chosen.layer === this.layer && chosen.head === this.head;
    this.element.setAttribute("aria-pressed", String(here));
    this.element.tabIndex = here ? 0 : -1;
  }
}

class Heads {
  constructor(look) {
    this.look = look;
    this.element = make("div", { class: "thumbs", role: "group", "aria-label": "All heads: arrow keys go over layers and heads" });
    this.scroller = make("div", { class: "scroller plain" }, this.element);
    onTheme(this.element, () => this.paint());
  }

  update() {
    const { which, layer, head } = this.look.chosen;
    if (which !== this.which) this.build(which);
    for (const thumb of this.thumbs) thumb.mark({ which, layer, head });
    if (this.look.payload.picture && this.query !== this.look.query) this.paint();
    this.query = this.look.query;
  }

  build(which) {
    this.which = which;
    const { depth, heads } = this.look.payload.stacks[which];
    this.element.style.setProperty("--heads", heads);
    this.thumbs = [];
    const rows = Array.from({ length: depth }, (_, layer) => {
      const thumbs = Array.from({ length: heads }, (_, head) => new Thumb(this.look, which, layer, head));
      this.thumbs.push(...thumbs);
      return [make("span", { class: "row-name", "aria-hidden": "true" }, `layer ${layer}`), ...thumbs.map((each) => each.element)];
    });
    this.element.replaceChildren(...rows.flat());
    this.paint();
  }

  paint() {
    for (const thumb of this.thumbs ?? []) thumb.paint(this.look.query);
  }
}

/** The section; null where there is no attention. */
export function mount(element, look) {
  const { weights, picture, stacks, chosen } = look.payload;
  if (!Object.keys(weights ?? {}).length) return null;
  const { depth, heads } = stacks[chosen.which];
  const view = new Heads(look);
  const words = [
    formula(`${shape(depth, heads)} heads of attention`),
    prose("Every layer has several heads, each with its own *Q*, *K* and *V*, and each may look at something else: the token before, the first one, the subject of the sentence. Their results are joined and mixed by one more matrix."),
    prose(picture ? "Each picture shows where the chosen place looks; the scale goes to each one\u2019s largest weight." : "Rows are queries, columns keys. Choose one and all of the page follows."),
    note("Under each head: what it gives most of its weight to, on average; or over how many keys it spreads."),
    picture && look.glances.size ? note(`Layers whose weights were left out show where position ${chosen.query} looks, whichever is chosen.`) : null,
  ];
  const section = new Section("heads", "All heads", words, view.scroller, weightLegend(picture ? "of the largest" : "weight"));
  element.append(section.element);
  look.on(() => view.update());
  return section;
}

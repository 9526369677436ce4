// The strip that stays in sight: the text, tinted by what the chosen query looks at; stack, layer and head.

import { onTheme, tint } from "./colours.js";
import { make, percent, rove } from "./dom.js";
import { piece, said } from "./parts.js";
import { Sight, summaries } from "./sight.js";

const ARROWS = { Home: -Infinity, End: Infinity, ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 };

/** A number that goes up and down, by buttons and by arrow keys. */
class Stepper {
  constructor(name, change) {
    this.output = make("span", { class: "value" });
    this.less = this.button(`${name} before`, "\u2039", () => change(-1));
    this.more = this.button(`${name} after`, "\u203a", () => change(1));
    this.element = make("div", { class: "stepper", role: "group", "aria-label": name }, this.less, this.output, this.more);
    this.name = name;
    this.element.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      change(ARROWS[event.key]);
    });
  }

  button(name, sign, onclick) {
    return make("button", { type: "button", class: "quiet", "aria-label": name, onclick }, sign);
  }

  show(value, count) {
    this.output.replaceChildren(`${this.name} `, make("b", {}, String(value)), ` of 0\u2026${count - 1}`);
    this.less.setAttribute("aria-disabled", String(value === 0));
    this.more.setAttribute("aria-disabled", String(value === count - 1));
  }
}

const NAMES = { self: "self-attention", encoder: "encoder", cross: "cross-attention" };

/** Which attention is looked at, where there are several. */
function chooser(look) {
  const { which } = look.payload;
  const names = which.length > 1 ? { ...NAMES, self: "decoder" } : NAMES;
  const buttons = which.map((each) =>
    make(
      "button",
      { type: "button", class: "quiet", "data-which": each, onclick: () => look.choose({ which: each }) },
      names[each],
    ),
  );
  const element = make("div", { class: "chooser", role: "group", "aria-label": "Attention of" }, ...buttons);
  look.on(() => {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.which === look.chosen.which));
  });
  return which.length > 1 ? element : null;
}

/** The pieces of one side, as one line of text. */
class Line {
  constructor(look, side, name) {
    this.look = look;
    this.side = side;
    this.marks = look.names(side).map((each, place) => this.mark(each, place));
    this.element = make("div", { class: "line", role: "group", "aria-label": name }, ...this.marks);
    rove(this.element, "button", { ArrowRight: 1, ArrowLeft: -1 });
    if (this.marks[0]) this.marks[0].tabIndex = 0;
  }

  get asks() {
    return this.look.stack.queries === this.side;
  }

  /** Scroll the line, and nothing else, to where a piece is. */
  bring(place) {
    const [frame, at] = [this.element.getBoundingClientRect(), this.marks[place].getBoundingClientRect()];
    if (at.left < frame.left || at.right > frame.right) this.element.scrollLeft += at.left - frame.left - frame.width / 2;
    if (at.top < frame.top || at.bottom > frame.bottom) this.element.scrollTop += at.top - frame.top;
  }

  mark(each, place) {
    return make(
      "button",
      {
        type: "button",
        class: "piece",
        tabindex: "-1",
        onclick: () => this.asks && this.look.choose({ query: place }),
        onfocus: () => this.asks && this.look.point(place),
        onpointerenter: (event) => this.asks && event.pointerType === "mouse" && this.look.point(place),
        onpointerleave: () => this.asks && this.look.point(null),
        onblur: () => this.asks && this.look.point(null),
      },
      piece(each.text),
    );
  }

  /** Tint by the weights of the query, where these are its keys; mark the query. */
  show() {
    const { look } = this;
    if (this.asks && look.pointed === null) look.soon(`line ${this.side}`, () => this.bring(look.query));
    const weights = look.stack.keys === this.side ? look.weights()?.row(look.query) : null;
    this.marks.forEach((mark, place) => {
      const weight = weights?.[place];
      const query = this.asks && place === look.query;
      tint(mark, weight);
      mark.classList.toggle("query", query);
      if (this.asks) mark.setAttribute("aria-pressed", String(place === look.chosen.query));
      else mark.removeAttribute("aria-pressed");
      const share = weight === undefined ? "" : `, ${percent(weight)}`;
      mark.setAttribute("aria-label", `${place}: ${said(look.names(this.side)[place].text)}${share}`);
    });
  }
}

const SIDES = { pieces: "The text read", target: "The text written" };

/** The strip; views below follow what is chosen in it. */
export function mount(element, look) {
  const { payload } = look;
  const step = (name, count) => (by) =>
    look.choose({ [name]: Math.min(count() - 1, Math.max(0, look.chosen[name] + by)) });
  const layer = new Stepper("Layer", step("layer", () => look.stack.depth));
  const head = new Stepper("Head", step("head", () => look.stack.heads));
  const lines = payload.picture
    ? []
    : [new Line(look, "pieces", SIDES.pieces), payload.target ? new Line(look, "target", SIDES.target) : null];
  const said = make("p", { class: "asks" });
  const sight = payload.picture && new Sight(look, "The picture: where the query looks");
  const more = payload.picture ? summaries(look) : [];
  if (sight) element.append(sight.element);
  element.append(make("div", { class: "knobs" }, chooser(look), layer.element, head.element, ...more, said));
  element.append(...lines.filter(Boolean).map((each) => each.element));
  onTheme(element, () => lines.forEach((line) => line?.show()));
  look.on(() => {
    layer.show(look.chosen.layer, look.stack.depth);
    head.show(look.chosen.head, look.stack.heads);
    said.replaceChildren(...asks(look));
    for (const line of lines) line?.show();
    const even = () => new Float32Array(look.keys.length).fill(1); // the picture as it is: the weights were left out
    if (sight) sight.show(look.weights()?.row(look.query) ?? even(), look.query);
  });
}

function asks(look) {
  const asked = look.queries[look.query];
  return ["looking from ", make("b", {}, piece(asked.text)), ` (position ${look.query})`];
}

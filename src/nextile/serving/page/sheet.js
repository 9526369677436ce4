// The sheet: a text that is typed and, in the same lines, what the model goes on with, token by token.

import { make, percent, rove, spoken, visible } from "./dom.js";
import { Bars } from "./bars.js";

/** 0 where a token was certain, 1 where it was a surprise: nats, cut at 6. */
const surprise = (logprob) => Math.min(1, -logprob / 6);

/** A token of a stream and its alternatives, best first, itself among them. */
function rowsOf(token) {
  return Object.entries(token.top)
    .sort((a, b) => b[1] - a[1])
    .map(([text, logprob]) => ({ text, after: Math.exp(logprob), chosen: text === token.token }));
}

const ENDINGS = { one: "st", two: "nd", few: "rd", other: "th" };
const ordinal = (number) => `${number}${ENDINGS[new Intl.PluralRules("en", { type: "ordinal" }).select(number)]}`;

/** The alternatives of a token, beside it. */
class Alternatives {
  constructor(sheet, choose) {
    this.sheet = sheet;
    this.place = null; // of the token
    this.title = make("p", { class: "title" });
    this.bars = new Bars("Instead of it", (row) => choose(this.place, row.text));
    this.element = make(
      "div",
      { class: "pop", hidden: true, role: "group", "aria-label": "Alternatives" },
      this.title,
      this.bars.element,
    );
  }

  show(place, token, span) {
    if (this.place !== place || this.element.hidden) {
      this.place = place;
      const rows = rowsOf(token);
      const rank = rows.findIndex((row) => row.chosen) + 1;
      const which = rank === 1 ? "The likeliest" : `The ${ordinal(rank)}`;
      this.title.textContent = `${which} was taken; choose another to go on from it`;
      this.bars.draw(rows);
    }
    this.element.hidden = false;
    this.settle(span);
  }

  /** Below the token's last line, inside the sheet. */
  settle(span) {
    const within = this.sheet.getBoundingClientRect();
    const at = [...span.getClientRects()].at(-1);
    if (!at) return;
    const most = within.width - this.element.offsetWidth;
    this.element.style.left = `${Math.max(0, Math.min(at.left - within.left - 8, most))}px`;
    this.element.style.top = `${at.bottom - within.top + 2}px`;
  }

  hide() {
    this.element.hidden = true;
    this.place = null;
  }
}

export class Sheet {
  /** changed(): the text did; typing(given, tokens): what was before; branch(tokens, text): go on after both. */
  constructor({ placeholder, changed, typing, branch }) {
    this.changed = changed;
    this.typing = typing;
    this.branch = branch;
    this.tokens = []; // {token, text, logprob, top}
    this.input = make("textarea", {
      class: "given",
      rows: 1,
      "aria-label": "Your text",
      placeholder,
      spellcheck: "false",
      oninput: () => this.typed(),
    });
    this.underlay = make("span", { class: "underlay", "aria-hidden": "true" });
    this.flow = make("span", {
      class: "tokens",
      role: "group",
      "aria-label": "What the model wrote; arrow keys go along it and down to alternatives",
    });
    this.layer = make("div", { class: "layer" }, this.underlay, this.flow, "\u200b");
    this.element = make("div", { class: "sheet" }, this.input, this.layer);
    this.alternatives = new Alternatives(this.element, (place, text) => this.branch(this.tokens.slice(0, place), text));
    this.element.append(this.alternatives.element);
    this.listen();
  }

  listen() {
    rove(this.flow, ".token", { ArrowRight: 1, ArrowLeft: -1 });
    this.flow.addEventListener("focusin", (event) => this.point(event.target));
    this.flow.addEventListener("pointerover", (event) => this.point(event.target));
    this.flow.addEventListener("keydown", (event) => this.enter(event));
    this.element.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.leave());
    addEventListener("pointerdown", (event) => event.target.closest?.(".token, .pop") || this.alternatives.hide());
    this.element.addEventListener(
      "focusout",
      (event) => this.element.contains(event.relatedTarget) || this.alternatives.hide(),
    );
    this.alternatives.element.addEventListener("keydown", (event) => this.back(event));
    this.input.addEventListener("focus", () => this.alternatives.hide());
    addEventListener("resize", () => this.alternatives.hide());
  }

  // --- what is where ----------------------------------------------------------------------------------------------

  get given() {
    return this.input.value;
  }

  get written() {
    return this.tokens.map((token) => token.text).join("");
  }

  get text() {
    return this.given + this.written;
  }

  span(place) {
    return this.flow.children[place];
  }

  // --- what changes it --------------------------------------------------------------------------------------------

  /** Typing ends what the model wrote. */
  typed() {
    this.typing(this.underlay.textContent, this.tokens);
    if (this.tokens.length) {
      this.put(this.given, []);
    } else {
      this.underlay.textContent = this.given;
      this.changed();
    }
  }

  /** Another text, and tokens after it. */
  put(given, tokens) {
    this.alternatives.hide();
    this.input.value = given;
    this.underlay.textContent = given;
    this.tokens = [];
    this.flow.replaceChildren();
    for (const token of tokens) this.add(token);
    this.changed();
  }

  add(token) {
    this.tokens.push(token);
    const span = make("span", { class: "token", role: "button", tabindex: this.tokens.length === 1 ? 0 : -1 });
    this.flow.append(span);
    this.refresh(this.tokens.length - 1);
  }

  /** Draw a token again, whose text has grown. */
  refresh(place) {
    const token = this.tokens[place];
    const span = this.span(place);
    span.textContent = visible(token.text);
    span.classList.toggle("empty", token.text === "");
    span.classList.toggle("breaks", token.text.startsWith("\n"));
    span.style.setProperty("--surprise", surprise(token.logprob).toFixed(3));
    const name = token.text || (token.token.startsWith("bytes:") ? "" : token.token); // a mark has a name, but no text
    span.setAttribute("aria-label", `${spoken(name)}, ${percent(Math.exp(token.logprob))}`);
  }

  // --- alternatives -----------------------------------------------------------------------------------------------

  point(target) {
    const span = target.closest(".token");
    if (!span || this.busyWithin()) return;
    const place = [...this.flow.children].indexOf(span);
    this.flow.querySelector(".pointed")?.classList.remove("pointed");
    span.classList.add("pointed");
    if (this.tokens[place].top) this.alternatives.show(place, this.tokens[place], span);
  }

  /** Whether somebody chooses among alternatives by keyboard: the mouse does not take them away. */
  busyWithin() {
    return this.alternatives.element.contains(document.activeElement);
  }

  leave() {
    if (this.busyWithin() || this.flow.contains(document.activeElement)) return;
    this.flow.querySelector(".pointed")?.classList.remove("pointed");
    this.alternatives.hide();
  }

  /** From a token into its alternatives. */
  enter(event) {
    if (event.key === "Escape") return this.alternatives.hide();
    if (!["ArrowDown", "Enter", " "].includes(event.key) || event.ctrlKey || event.metaKey) return undefined;
    event.preventDefault();
    const within = this.alternatives.element;
    return (within.querySelector("[aria-current]") ?? within.querySelector("button"))?.focus();
  }

  /** From the alternatives back to their token. */
  back(event) {
    if (event.key !== "Escape" && event.key !== "ArrowLeft") return;
    event.preventDefault();
    event.stopPropagation();
    this.span(this.alternatives.place)?.focus();
  }
}

// Pieces: how the text is cut, and the merges that made each piece.

import { count, make, rove } from "./dom.js";
import { formula, note, piece, prose, said, Section } from "./parts.js";

/** How a piece grew, a line a merge. */
function growth(merges) {
  return make(
    "ol",
    { class: "merges" },
    ...merges.map((symbols) => make("li", {}, ...symbols.map((each) => make("span", { class: "symbol" }, piece(each))))),
  );
}

class Cut {
  constructor(pieces, name) {
    this.pieces = pieces;
    this.detail = make("div", { class: "detail", role: "status" });
    this.chips = pieces.map((each, place) => this.chip(each, place));
    this.list = make("div", { class: "chips", role: "group", "aria-label": name }, ...this.chips);
    rove(this.list, "button", { ArrowRight: 1, ArrowLeft: -1 });
    this.element = make("div", { class: "cut" }, this.list, this.detail);
    this.show(this.most);
  }

  chip(each, place) {
    const show = () => this.show(place);
    return make(
      "button",
      {
        type: "button",
        class: "chip",
        tabindex: "-1",
        "aria-label": `${said(each.text)}, token ${each.id}`,
        onclick: show,
        onfocus: show,
        onpointerenter: show,
      },
      make("span", { class: "word" }, piece(each.text)),
      make("small", {}, String(each.id)),
    );
  }

  /** The piece that took the most merges. */
  get most() {
    const counts = this.pieces.map((each) => each.merges.length);
    return Math.max(0, counts.indexOf(Math.max(...counts)));
  }

  show(place) {
    const each = this.pieces[place];
    this.chips.forEach((chip, at) => {
      chip.tabIndex = at === place ? 0 : -1;
      chip.setAttribute("aria-pressed", String(at === place));
    });
    const count = Math.max(0, each.merges.length - 1);
    const words = count === 0 ? "a token of the alphabet, made of no others" : `made in ${count} merge${count > 1 ? "s" : ""}`;
    const head = make("p", {}, make("b", { class: "word" }, piece(each.text)), ` is token ${each.id}`);
    if (each.merges.length) head.append(`, ${words}:`);
    this.detail.replaceChildren(head, ...(count > 0 ? [growth(each.merges)] : []));
  }
}

const CUT =
  "A model reads no letters. Its tokenizer cuts the text into pieces that were frequent where it was trained, and each " +
  "piece has a number: its row in the table of vectors.";
const MERGED =
  "Byte-pair encoding begins with single bytes and joins the pair that it learned first, again and again, until no pair " +
  "of its list is left. Point at a piece to see its merges.";

/** The section; null for a model of pictures. */
export function mount(element, look) {
  const { pieces, target, picture } = look.payload;
  if (picture) return null;
  const merged = [...pieces, ...(target ?? [])].some((each) => each.merges.length > 1);
  const cuts = [make("h3", {}, target ? "What is read" : "The text"), new Cut(pieces, "Pieces of the text").element];
  if (target) cuts.push(make("h3", {}, "What is written"), new Cut(target, "Pieces of what is written").element);
  const lines = [
    formula("text \u2192 tokens", count(pieces.length, "token")),
    prose(CUT),
    merged ? prose(MERGED) : null,
    note("\u2423 is a space, \u21b5 a new line."),
  ];
  const section = new Section("pieces", "Pieces", lines.filter(Boolean), ...cuts);
  element.append(section.element);
  return section;
}

// "Fill": a text with gaps in, whole texts out; of a masked model what else each gap may have.

import { Bars } from "./bars.js";
import { make, visible } from "./dom.js";
import { ask } from "./server.js";
import { ranking } from "./tree.js";
import { Work } from "./work.js";

const MASK = "[MASK]";
const TOP = 8;
const BEST = 4; // texts of a denoiser

/** A text and a token after it: some carry the space before them, those of WordPiece say that there is none. */
function joined(before, token) {
  if (/^##[^#\s]/.test(token)) return before.trimEnd() + token.slice(2);
  return (token.startsWith(" ") && before.endsWith(" ") ? before.slice(0, -1) : before) + token;
}

export class Fill {
  constructor(model) {
    this.masked = model.nextile.task === "masked";
    this.title = "Fill";
    this.work = new Work("Fill", () => this.start());
    this.input = make("textarea", {
      class: "box prose",
      rows: 3,
      "aria-label": "Text with gaps",
      placeholder: `It was a ${MASK} night \u2026`,
    });
    const gap = make("button", { type: "button", class: "quiet", onclick: () => this.put() }, "Insert a gap");
    this.output = make("div", { class: "box prose answer", role: "group", "aria-label": "Filled" });
    this.gaps = make("div", { class: "gaps" });
    this.element = make(
      "div",
      { class: "desk" },
      this.input,
      make("div", { class: "actions" }, this.work.button, gap, this.work.status),
      this.work.trouble,
      this.output,
      this.gaps,
      this.work.curl,
    );
  }

  /** A gap where the cursor is. */
  put() {
    this.input.setRangeText(MASK, this.input.selectionStart, this.input.selectionEnd, "end");
    this.input.focus();
  }

  start() {
    const input = this.input.value;
    if (!input.includes(MASK)) return this.work.say(`Write ${MASK} where something is missing.`);
    return this.work.run((signal) => this.fill(input, signal));
  }

  async fill(input, signal) {
    const body = this.masked ? { input, top: TOP } : { input, n: BEST };
    this.work.asked("v1/fill", body);
    this.work.say("Filling \u2026");
    const { texts, gaps } = (await ask("v1/fill", body, signal)).data[0];
    this.output.textContent = visible(texts[0].text);
    if (this.masked) this.gaps.replaceChildren(...gaps.map((shares, place) => this.gap(input, place, shares, texts[0].fills[place])));
    else this.gaps.replaceChildren(ranking(texts, "The best by score"));
    this.work.say("Filled.");
  }

  /** What else a gap may have; a token that is chosen is put into the text, and the other gaps are filled again. */
  gap(input, place, shares, chosen) {
    const bars = new Bars(`Gap ${place + 1}`, (row) => this.choose(input, place, row.text));
    bars.draw(shares.map(({ text, probability }) => ({ text, after: probability, chosen: text === chosen })));
    return make("section", { "aria-label": `Gap ${place + 1}` }, make("h2", {}, `Gap ${place + 1}`), bars.element);
  }

  choose(input, place, text) {
    if (text.startsWith("bytes:")) return; // part of a character
    const parts = input.split(MASK);
    this.input.value = joined(parts.slice(0, place + 1).join(MASK), text) + parts.slice(place + 1).join(MASK);
    if (parts.length > 2) this.start();
    else this.output.textContent = visible(this.input.value);
  }

  stop() {
    this.work.stop();
  }
}

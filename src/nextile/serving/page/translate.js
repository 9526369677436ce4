// "Translate": a text and its translations side by side, and the beams that found them.

import { range, Slider } from "./controls.js";
import { make, visible } from "./dom.js";
import { ask } from "./server.js";
import { ranking, Tree } from "./tree.js";
import { Work } from "./work.js";

export class Translate {
  constructor(model) {
    this.most = Math.min(48, model.nextile.context - 1); // tokens of the tree
    this.title = "Translate";
    this.work = new Work("Translate", () => this.start());
    this.input = make("textarea", {
      class: "box prose",
      rows: 6,
      "aria-label": "Text to translate",
      placeholder: "A sentence \u2026",
    });
    this.output = make("div", { class: "box prose answer", role: "group", "aria-label": "Translation" });
    this.beams = new Slider("Beams", range(1, 12, 1), 5);
    this.penalty = new Slider("Length penalty", range(0, 2, 0.1), 1, { show: (value) => value.toFixed(1) });
    this.tree = new Tree(null);
    this.others = make("div", { class: "found" });
    this.element = make(
      "div",
      { class: "desk" },
      make("div", { class: "halves" }, this.input, this.output),
      make(
        "div",
        { class: "actions" },
        this.work.button,
        make("div", { class: "beside" }, this.beams.element, this.penalty.element),
        this.work.status,
      ),
      this.work.trouble,
      this.others,
      this.tree.element,
      this.work.curl,
    );
  }

  start() {
    return this.work.run(async (signal) => {
      const beams = this.beams.value;
      const input = this.input.value;
      const body = { input, beams, n: Math.min(beams, 4), length_penalty: this.penalty.value };
      this.work.asked("v1/translate", body);
      this.work.say("Translating \u2026");
      const { translations } = (await ask("v1/translate", body, signal)).data[0];
      this.output.textContent = visible(translations[0].text);
      this.others.replaceChildren(make("h2", {}, "The best by score"), ranking(translations, "The best by score"));
      this.work.say("Translated.");
      this.tree.show(await ask("v1/beams", { input, beams, n: 1, max_tokens: this.most }, signal));
    });
  }

  stop() {
    this.work.stop();
  }
}

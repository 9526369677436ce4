// "Classify": which class a picture or a text has, as bars.

import { Bars } from "./bars.js";
import { later, make, percent, visible } from "./dom.js";
import { Picture } from "./picture.js";
import { ask, Refusal } from "./server.js";
import { Work } from "./work.js";

const TOP = 10;

export class Classify {
  constructor(model) {
    this.title = "Classify";
    this.work = new Work("Classify", () => this.start());
    this.work.status.classList.add("unseen"); // who looks sees the verdict
    this.bars = new Bars("Classes");
    this.verdict = make("p", { class: "verdict" });
    const pictures = model.nextile.task === "classify";
    if (pictures)
      this.picture = new Picture(
        "Choose a picture",
        () => this.start(),
        (words) => this.work.fail(new Refusal(words, 415)),
      );
    else this.makeInput();
    this.element = make(
      "div",
      { class: "columns wide" },
      make(
        "div",
        { class: "desk" },
        pictures ? this.picture.element : this.input,
        make("div", { class: "actions" }, this.work.button, this.work.status),
        this.work.trouble,
        this.work.curl,
      ),
      make("section", { class: "desk", "aria-label": "Classes" }, this.verdict, this.bars.element),
    );
  }

  makeInput() {
    const soon = later(400, () => this.input.value.trim() && this.start());
    this.input = make("textarea", {
      class: "box prose",
      rows: 7,
      "aria-label": "Text to classify",
      placeholder: "A text \u2026",
      oninput: soon,
    });
  }

  start() {
    const input = this.picture ? this.picture.url : this.input.value;
    if (!input) return this.work.say(this.picture ? "Choose a picture first." : "Write a text first.");
    return this.work.run((signal) => this.classify(input, signal));
  }

  async classify(input, signal) {
    const body = { input, top: TOP };
    this.work.asked("v1/classify", body);
    const { classes } = (await ask("v1/classify", body, signal)).data[0];
    this.bars.draw(
      classes.map(({ label, probability }, place) => ({
        text: visible(label),
        plain: true,
        after: probability,
        chosen: place === 0,
      })),
    );
    this.verdict.replaceChildren(make("b", {}, visible(classes[0].label)), ` ${percent(classes[0].probability)}`);
    this.work.say(`${visible(classes[0].label)}, ${percent(classes[0].probability)}`);
  }

  stop() {
    this.work.stop();
  }
}

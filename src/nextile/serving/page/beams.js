// "Beams": what a search for the likeliest text looks at, round by round.

import { range, Slider } from "./controls.js";
import { count, make } from "./dom.js";
import { ask } from "./server.js";
import { ranking, Tree } from "./tree.js";
import { Work } from "./work.js";

export class Beams {
  /** text(): what is begun elsewhere; takeTo(text): go on elsewhere with a text. */
  constructor(text, takeTo) {
    this.title = "Beams";
    this.elsewhere = text;
    this.work = new Work("Look ahead", () => this.start());
    this.input = make("textarea", {
      class: "box prose",
      rows: 2,
      "aria-label": "Text to go on from",
      spellcheck: "false",
      placeholder: "A text to go on from \u2026",
    });
    this.width = new Slider("Beams", range(1, 12, 1), 4);
    this.length = new Slider("Tokens", range(1, 32, 1), 12, { show: (value) => `at most ${value}` });
    this.tree = new Tree((path) => takeTo(this.asked + path));
    this.texts = make("div", { class: "found" });
    this.element = make(
      "div",
      { class: "desk" },
      this.input,
      make(
        "div",
        { class: "actions" },
        this.work.button,
        make("div", { class: "beside" }, this.width.element, this.length.element),
        this.work.status,
      ),
      this.work.trouble,
      this.tree.element,
      this.texts,
      this.work.curl,
    );
  }

  /** When the view is shown: begin with what was written. */
  entered() {
    if (this.input.value === "") this.input.value = this.elsewhere();
  }

  start() {
    return this.work.run(async (signal) => {
      const beams = this.width.value;
      const body = { input: this.input.value, beams, max_tokens: this.length.value, n: Math.min(beams, 4) };
      this.work.asked("v1/beams", body);
      this.work.say("Looking ahead \u2026");
      const found = await ask("v1/beams", body, signal);
      this.asked = body.input;
      this.tree.show(found);
      this.texts.replaceChildren(make("h2", {}, "The best texts"), ranking(found.texts, "The best texts"));
      const looked = found.rounds.reduce((sum, round) => sum + round.length, 0);
      this.work.say(`${count(looked, "beginning")} looked at in ${count(found.rounds.length, "round")}.`);
    });
  }

  stop() {
    this.work.stop();
  }
}

// "Look inside": what the model makes of a text or a picture, number by number; the views are those of `nextile inspect`.

import { make } from "./dom.js";
import { mount } from "./inspect.js";
import { Picture } from "./picture.js";
import { ask, Refusal } from "./server.js";
import { Work } from "./work.js";

const PLACEHOLDERS = {
  masked: "A text with a [MASK] \u2026",
  denoise: "A text with a [MASK] \u2026",
  words: "Some words \u2026",
};
const PAIRS = { translate: "A translation, or nothing for the model\u2019s own", denoise: "A target, or nothing for the model\u2019s own" };

/** What asks for a head that the payload lacks; the same one is asked for once at a time. */
function heads(body) {
  const coming = new Map();
  return (_, place) => {
    const key = JSON.stringify(place);
    if (!coming.has(key)) {
      const answer = ask("v1/inspect/head", { ...body, ...place }).finally(() => coming.delete(key));
      coming.set(key, answer);
    }
    return coming.get(key);
  };
}

export class Inside {
  /** elsewhere(): a text that was begun in another view, or a picture's data URL. */
  constructor(model, elsewhere = () => null) {
    const { task } = model.nextile;
    this.title = "Look inside";
    this.elsewhere = elsewhere;
    this.work = new Work("Look inside", () => this.start());
    this.way = make("div", { class: "looked" });
    if (task === "classify" || task === "paint") this.makePicture();
    else this.makeFields(task);
    this.element = make(
      "div",
      { class: "desk" },
      this.given,
      make("div", { class: "actions" }, this.work.button, this.work.status),
      this.work.trouble,
      this.work.curl,
      this.way,
    );
  }

  makePicture() {
    this.picture = new Picture(
      "Choose a picture to look at",
      () => this.start(),
      (words) => this.work.fail(new Refusal(words, 415)),
    );
    this.given = this.picture.element;
  }

  makeFields(task) {
    const field = (name, placeholder) =>
      make("textarea", { class: "box prose", rows: 2, "aria-label": name, spellcheck: "false", placeholder });
    this.input = field("What to look at", PLACEHOLDERS[task] ?? "A text \u2026");
    if (PAIRS[task]) this.target = field("Target", PAIRS[task]);
    this.given = this.target ? make("div", { class: "halves" }, this.input, this.target) : this.input;
  }

  /** When the view is shown: begin with what was written. */
  entered() {
    const begun = this.elsewhere();
    if (!begun) return;
    if (this.picture) this.picture.show(begun);
    else if (this.input.value === "") this.input.value = begun;
  }

  /** Look at another text. */
  async look(text) {
    await this.stop();
    this.input.value = text;
    this.start();
  }

  start() {
    const input = this.picture ? this.picture.url : this.input.value;
    if (!input) return this.work.say(this.picture ? "Choose a picture first." : "Write a text first.");
    return this.work.run((signal) => this.show({ input, ...(this.target?.value ? { target: this.target.value } : {}) }, signal));
  }

  async show(body, signal) {
    this.work.asked("v1/inspect", body);
    this.work.say("Looking \u2026");
    const payload = await ask("v1/inspect", body, signal);
    signal.throwIfAborted();
    const way = make("div"); // a fresh one: what was there before is gone with all that it listened to
    this.way.replaceChildren(way);
    mount(way, payload, heads(body));
    this.work.say("");
  }

  stop() {
    return this.work.stop();
  }
}

// Sliders and fields of how tokens are drawn.

import { make } from "./dom.js";

let made = 0;

/** A slider over given values. */
export class Slider {
  constructor(name, values, value, { show = String, change = () => {} } = {}) {
    const id = `control-${++made}`;
    this.values = values;
    this.show = show;
    this.output = make("span", { class: "value", "aria-hidden": "true" }); // the slider itself says it
    this.input = make("input", {
      type: "range",
      id,
      min: 0,
      max: values.length - 1,
      step: 1,
      value: values.indexOf(value),
      oninput: () => {
        this.say();
        change();
      },
    });
    this.element = make("div", { class: "slider" }, make("label", { for: id }, name), this.output, this.input);
    this.input.value = values.indexOf(value);
    this.say();
  }

  get value() {
    return this.values[Number(this.input.value)];
  }

  say() {
    this.output.textContent = this.show(this.value);
    this.input.setAttribute("aria-valuetext", this.show(this.value));
    this.input.style.setProperty("--filled", Number(this.input.value) / (this.values.length - 1));
  }
}

/** A labelled field. */
export function field(name, properties) {
  const id = `control-${++made}`;
  const input = make("input", { id, autocomplete: "off", spellcheck: "false", ...properties });
  return { input, element: make("div", { class: "field" }, make("label", { for: id }, name), input) };
}

export const range = (from, to, step) =>
  Array.from({ length: Math.round((to - from) / step) + 1 }, (_, place) => Number((from + place * step).toFixed(6)));

export const KS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100, 200, null];
const LENGTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];
const off = (value) => (value === null || value === 1 ? "off" : String(value));
const unescaped = (text) => text.replace(/\\n/g, "\n").replace(/\\t/g, "\t");

/** Temperature, top-k, top-p, length, seed and stop string. change: called when the first three move. */
export class Sampling {
  constructor({ change = () => {}, length = 64, stop = true } = {}) {
    this.temperature = new Slider("Temperature", range(0, 2, 0.05), 0.8, {
      change,
      show: (value) => (value === 0 ? "0, the likeliest" : value.toFixed(2)),
    });
    this.topP = new Slider("Top-p", range(0.05, 1, 0.05), 1, { change, show: off });
    this.topK = new Slider("Top-k", KS, null, { change, show: off });
    this.length = length && new Slider("Tokens", LENGTHS, length, { show: (value) => `at most ${value}` });
    this.seed = field("Seed", { type: "text", inputmode: "numeric", pattern: "[0-9]*", placeholder: "any" });
    this.stop = stop && field("Stop at", { type: "text", placeholder: "\\n, END" });
    this.sliders = make(
      "div",
      { class: "sliders" },
      ...[this.temperature, this.topP, this.topK, this.length].filter(Boolean).map((each) => each.element),
    );
    this.fields = make("div", { class: "fields" }, this.seed.element, this.stop ? this.stop.element : null);
  }

  /** What changes the next token's probabilities. */
  get shape() {
    return { temperature: this.temperature.value, top_k: this.topK.value, top_p: this.topP.value };
  }

  /** The part of a request that says all of it. */
  get body() {
    const body = { temperature: this.temperature.value };
    if (this.topK.value !== null) body.top_k = this.topK.value;
    if (this.topP.value < 1) body.top_p = this.topP.value;
    if (this.length) body.max_tokens = this.length.value;
    if (/^\d+$/.test(this.seed.input.value)) body.seed = Number(this.seed.input.value);
    if (this.stop && this.stop.input.value) body.stop = [unescaped(this.stop.input.value)];
    return body;
  }
}

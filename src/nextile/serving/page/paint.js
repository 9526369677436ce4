// "Paint": pictures pixel by pixel, from nothing or from the upper half of another.

import { Sampling, Slider } from "./controls.js";
import { count, make } from "./dom.js";
import { Picture } from "./picture.js";
import { events, Refusal } from "./server.js";
import { Work } from "./work.js";

const COUNTS = [1, 2, 4, 6, 9, 12, 16];

export class Paint {
  constructor() {
    this.title = "Paint";
    this.work = new Work("Paint", () => this.start());
    this.many = new Slider("Pictures", COUNTS, 9);
    this.sampling = new Sampling({ length: null, stop: false });
    this.picture = new Picture(
      "Complete a picture\u2019s upper half",
      () => this.given(),
      (words) => this.work.fail(new Refusal(words, 415)),
    );
    this.none = make(
      "button",
      { type: "button", class: "quiet", hidden: true, onclick: () => this.forget() },
      "From nothing",
    );
    this.grid = make("ul", { class: "grid", "aria-label": "Pictures" });
    this.progress = make("progress", { "aria-label": "Pixels painted", max: 1, value: 0, hidden: true });
    this.element = make(
      "div",
      { class: "columns" },
      make(
        "div",
        { class: "desk" },
        this.grid,
        this.progress,
        make("div", { class: "actions" }, this.work.button, this.work.status),
        this.work.trouble,
        this.work.curl,
      ),
      make(
        "aside",
        { "aria-label": "Sampling" },
        this.picture.element,
        this.none,
        this.many.element,
        this.sampling.sliders,
        this.sampling.fields,
      ),
    );
    this.lay(this.many.value);
  }

  given() {
    this.none.hidden = false;
    this.start();
  }

  forget() {
    this.picture.clear();
    this.none.hidden = true;
    this.work.button.focus();
  }

  /** Places for so many pictures. */
  lay(many) {
    this.grid.style.setProperty("--across", Math.ceil(Math.sqrt(many)));
    this.grid.replaceChildren(
      ...Array.from({ length: many }, (_, place) => {
        const image = make("img", { alt: `Painted picture ${place + 1}`, hidden: true });
        return make(
          "li",
          {},
          make("a", { download: `picture-${place + 1}.png` }, image, make("span", { "aria-hidden": "true" }, "\u2193")),
        );
      }),
    );
  }

  start() {
    return this.work.run((signal) =>
      this.paint(signal).finally(() => {
        this.progress.hidden = true;
      }),
    );
  }

  async paint(signal) {
    const body = { n: this.many.value, ...this.sampling.body };
    if (this.picture.url) body.image = this.picture.url;
    this.work.asked("v1/paint", body);
    this.work.say("Painting \u2026");
    this.lay(body.n);
    this.progress.hidden = false;
    this.progress.value = 0;
    const began = performance.now();
    let pixels = 0;
    for await (const { done, of, data } of events("v1/paint", body, signal)) {
      this.progress.value = done / of;
      this.progress.max = 1;
      data.forEach(({ b64_json }, place) => this.put(place, `data:image/png;base64,${b64_json}`, done === of));
      pixels = of;
    }
    const seconds = (performance.now() - began) / 1000;
    this.work.say(`${count(pixels, "pixel")}, ${Math.round(pixels / seconds).toLocaleString("en")} a second.`);
  }

  put(place, url, whole) {
    const link = this.grid.children[place].firstChild;
    const [image] = link.children;
    image.src = url;
    image.hidden = false;
    if (!whole) return;
    link.href = url;
    link.setAttribute("aria-label", `Download picture ${place + 1}`);
  }

  stop() {
    this.work.stop();
  }
}

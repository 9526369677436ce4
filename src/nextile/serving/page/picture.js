// A picture from whoever looks at the page: chosen, dropped or pasted; as a data URL.

import { make } from "./dom.js";

const LARGEST = 1024; // pixels of the longer side: models here look at less

const read = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

/** A file as a data URL, scaled down where it is large. Errors: what is no picture. */
async function dataUrl(file) {
  const url = await read(file);
  const image = make("img", { src: url });
  await image.decode();
  const scale = LARGEST / Math.max(image.naturalWidth, image.naturalHeight);
  if (scale >= 1 && /^data:image\/(png|jpeg|webp|gif|bmp);/.test(url)) return url;
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(image.naturalWidth * Math.min(scale, 1))),
    height: Math.max(1, Math.round(image.naturalHeight * Math.min(scale, 1))),
  });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

export class Picture {
  /** changed(url): there is another picture; failed(words): there is none. */
  constructor(words, changed, failed) {
    this.changed = changed;
    this.failed = failed;
    this.url = null;
    this.input = make("input", {
      type: "file",
      accept: "image/*",
      class: "file",
      "aria-label": words,
      onchange: () => this.take(this.input.files[0]),
    });
    this.shown = make("img", { alt: "Your picture", hidden: true });
    this.words = make("span", {}, words, make("small", {}, "or drop or paste one"));
    this.element = make("label", { class: "drop" }, this.input, this.shown, this.words);
    this.listen();
  }

  listen() {
    const over = (on) => (event) => {
      event.preventDefault();
      this.element.classList.toggle("over", on);
    };
    this.element.addEventListener("dragover", over(true));
    this.element.addEventListener("dragleave", over(false));
    this.element.addEventListener("drop", (event) => {
      over(false)(event);
      this.take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (file && this.element.offsetParent) this.take(file);
    });
    // A picture beside its place: the browser would leave the page for it.
    for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  }

  async take(file) {
    if (!file) return;
    try {
      this.url = await dataUrl(file);
    } catch {
      this.failed(`${file.name || "This"} is no picture that the browser can read.`);
      return;
    }
    this.show(this.url);
    this.changed(this.url);
  }

  /** Another picture, from elsewhere on the page. */
  show(url) {
    this.url = url;
    this.shown.src = url;
    this.shown.hidden = false;
    this.shown.classList.toggle("tiny", this.shown.naturalWidth > 0 && this.shown.naturalWidth <= 64);
    this.element.classList.add("full");
  }

  clear() {
    this.url = this.input.value = null;
    this.shown.hidden = true;
    this.shown.removeAttribute("src");
    this.element.classList.remove("full");
  }
}

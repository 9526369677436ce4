// A matrix as a picture, one pixel a number, that can be walked in by mouse and by keyboard.

import { onTheme } from "./colours.js";
import { make } from "./dom.js";

function box(name) {
  return make("div", { class: name, hidden: true, "aria-hidden": "true" });
}

function put(element, top, left, height, width) {
  element.hidden = false;
  Object.assign(element.style, { top: `${top}%`, left: `${left}%`, height: `${height}%`, width: `${width}%` });
}

export class Matrix {
  /**
   * name: what it shows; say(row, column): what stands there, in words; point(row, column): told where somebody is,
   * null when they leave; take(row, column): what was pressed.
   */
  constructor(name, { say = null, point = null, take = null } = {}) {
    Object.assign(this, { name, say, point, take, rows: 0, columns: 0, here: [0, 0] });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.rowMark = box("row-mark");
    this.cellMark = box("cell-mark");
    this.element = make("div", { class: "matrix" }, this.canvas, this.rowMark, this.cellMark);
    if (say) this.listen();
    else this.label(name);
    onTheme(this.element, () => this.paint());
  }

  label(text) {
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", text);
  }

  listen() {
    const { element } = this;
    this.said = make("span", { class: "unseen", role: "status" });
    element.append(this.said);
    element.tabIndex = 0;
    element.setAttribute("role", "group");
    element.addEventListener("pointermove", (event) => this.go(...this.under(event)));
    element.addEventListener("pointerleave", () => this.leave());
    element.addEventListener("blur", () => this.leave());
    element.addEventListener("focus", () => element.matches(":focus-visible") && this.go(...this.here, true));
    element.addEventListener("click", (event) => this.take?.(...this.under(event)));
    element.addEventListener("keydown", (event) => this.key(event));
  }

  under(event) {
    const frame = this.canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - frame.top) / frame.height) * this.rows);
    const column = Math.floor(((event.clientX - frame.left) / frame.width) * this.columns);
    return [this.within(row, this.rows), this.within(column, this.columns)];
  }

  within(place, count) {
    return Math.min(count - 1, Math.max(0, place));
  }

  key(event) {
    const [down, right] =
      { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (down !== undefined) this.go(this.here[0] + down, this.here[1] + right, true);
    else if (event.key === "Enter" || event.key === " ") this.take?.(...this.here);
    else return;
    event.preventDefault();
  }

  /** Stand at a place. */
  go(row, column, aloud = false) {
    this.here = [this.within(row, this.rows), this.within(column, this.columns)];
    const [height, width] = [100 / this.rows, 100 / this.columns];
    put(this.cellMark, this.here[0] * height, this.here[1] * width, height, width);
    if (aloud) this.said.textContent = this.say(...this.here);
    this.point?.(...this.here);
  }

  leave() {
    this.cellMark.hidden = true;
    this.point?.(null, null);
  }

  /** Mark a row; null: none. */
  mark(row) {
    if (row === null) this.rowMark.hidden = true;
    else put(this.rowMark, (100 * row) / this.rows, 0, 100 / this.rows, 100);
  }

  /** Mark one cell in the way of a row. */
  markCell(row, column) {
    put(this.rowMark, (100 * row) / this.rows, (100 * column) / this.columns, 100 / this.rows, 100 / this.columns);
  }

  /** Show so many rows and columns; colour(row, column) is three numbers, or four with how opaque it is, or null for what is hidden. */
  show(rows, columns, colour, name = this.name) {
    Object.assign(this, { rows, columns, colour });
    this.element.setAttribute("aria-label", name);
    this.element.style.setProperty("--rows", rows);
    this.element.style.setProperty("--columns", columns);
    [this.canvas.width, this.canvas.height] = [columns, rows];
    this.paint();
  }

  paint() {
    if (!this.colour) return;
    const pen = this.canvas.getContext("2d");
    const image = pen.createImageData(this.columns, this.rows);
    for (let row = 0; row < this.rows; row++)
      for (let column = 0; column < this.columns; column++) {
        const found = this.colour(row, column);
        if (!found) continue;
        const at = 4 * (row * this.columns + column);
        image.data.set(found, at);
        if (found.length === 3) image.data[at + 3] = 255;
      }
    pen.putImageData(image, 0, 0);
  }
}

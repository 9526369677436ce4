// The picture, in the light of what is looked at: a place is seen as far as it has weight.

import { onTheme, resolved } from "./colours.js";
import { make } from "./dom.js";
import { Matrix } from "./matrix.js";
import { piece, said } from "./parts.js";

/** The picture as the model sees it. */
function pixels({ width, height, data }) {
  const canvas = make("canvas", { width, height, class: "seen", "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, height);
  const raw = atob(data);
  for (let place = 0; place < width * height; place++) {
    for (let channel = 0; channel < 3; channel++)
      image.data[4 * place + channel] = raw.charCodeAt(3 * place + channel);
    image.data[4 * place + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

export class Sight {
  /** A picture whose places are queries: pointing at one looks from there. */
  constructor(look, name) {
    this.look = look;
    const { picture, pieces } = look.payload;
    this.picture = picture;
    const [, columns] = picture.grid;
    const place = (row, column) => picture.summaries + row * columns + column;
    const known = (row, column) => place(row, column) < pieces.length;
    this.matrix = new Matrix(name, {
      say: (row, column) => (known(row, column) ? said(pieces[place(row, column)].text) : "not read"),
      point: (row, column) => look.point(row !== null && known(row, column) ? place(row, column) : null),
      take: (row, column) => known(row, column) && look.choose({ query: place(row, column) }),
    });
    this.image = pixels(picture);
    this.matrix.element.prepend(this.image);
    this.matrix.element.classList.add("over");
    this.element = make("div", { class: "sight" }, this.matrix.element);
    onTheme(this.element, () => this.row && this.show(this.row, this.query));
  }

  /** Dim what has little of the weights (position,), against the largest; mark the query. */
  show(row, query) {
    Object.assign(this, { row, query });
    const { grid, summaries } = this.picture;
    const shares = row.subarray(summaries);
    const most = shares.reduce((best, each) => Math.max(best, each), 1e-9);
    const ground = resolved("--sheet");
    this.matrix.show(grid[0], grid[1], (r, c) => {
      const share = shares[r * grid[1] + c] ?? 0;
      return [...ground, share > 0 ? Math.round(238 * (1 - Math.sqrt(share / most))) : 255];
    });
    const place = query - summaries;
    if (place < 0) this.matrix.rowMark.hidden = true;
    else this.matrix.markCell(Math.floor(place / grid[1]), place % grid[1]);
  }
}

/** The picture as it is. */
export function plain(look) {
  const element = make("div", { class: "matrix over", role: "img", "aria-label": "The picture as the model sees it" }, pixels(look.payload.picture));
  return make("div", { class: "sight" }, element);
}

/** Buttons for the tokens that are no place of the picture. */
export function summaries(look) {
  const { picture, pieces } = look.payload;
  return Array.from({ length: picture.summaries }, (_, place) =>
    make("button", { type: "button", class: "quiet", onclick: () => look.choose({ query: place }) }, piece(pieces[place].text)),
  );
}

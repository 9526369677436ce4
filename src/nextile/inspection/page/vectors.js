// Vectors: a row for each token, a row for each position, and their sum, which is what the first layer reads.

import { ofSigned, signedLegend } from "./colours.js";
import { make } from "./dom.js";
import { Matrix } from "./matrix.js";
import { unpack } from "./pack.js";
import { formula, largest, nearlyLargest, number, panel, prose, quoted, roundUp, said, Section, shape } from "./parts.js";

const LOOKED =
  "Each token\u2019s number picks a row of a table of vectors, learned with all the rest. Multiplying the table by a one-hot " +
  "vector would give the same row.";
const ADDED =
  "Attention by itself sees a set, not a sequence. So each position has a vector too, and the sum says what stands where.";
const TURNED =
  "No vector of the position is added here: this model *turns* its queries and keys by an angle that grows with the " +
  "position (rotary embedding), so that products tell how far apart two tokens are.";
const NONE = "No vector of the position is added here; the order comes in by a bias, by the mask, or not at all.";
const NORMED = "Before the first block the sum is normed, which gives every row the same spread.";
const PIXELS =
  "Each pixel has one of a few colours, and so a number; that picks a row of a table of vectors. From here on a picture is " +
  "a sequence like any text.";
const WORDS =
  "Each word is a row of a table of vectors. Nobody wrote the numbers: they were learned, so that a word\u2019s vector tells " +
  "the words around it.";
const PATCHED = "Each patch of the picture becomes one vector; from here on a picture is a sequence like any text.";

/** The ends of the scales: one for all, or each its own where the positions would hardly be seen. */
function scales(parts) {
  const ends = parts.map(([, grid]) => nearlyLargest(grid.data));
  const most = Math.max(...ends);
  return ends.map((each) => roundUp(each < 0.25 * most ? each : most));
}

class Vectors {
  constructor(look, which, found) {
    Object.assign(this, { look, which, found });
    this.names = look.names(look.payload.stacks[which]?.queries ?? "pieces");
    this.parts = Object.entries(found.arrays).filter(([, grid]) => grid);
    this.ends = scales(this.parts);
    this.readout = make("p", { class: "readout", role: "status" });
    this.matrices = this.parts.map(([name, grid], place) => this.matrix(name, grid, this.ends[place]));
  }

  matrix(name, grid, most) {
    const matrix = new Matrix(`${TITLES[name]}, a row a token`, {
      say: (row, column) => `${said(this.names[row].text)}, number ${column}: ${grid.value(row, column)}`,
      point: (row, column) => this.point(row, column),
      take: (row) => this.position !== null && this.look.choose({ query: row }),
    });
    matrix.show(grid.shape[0], grid.shape[1], (row, column) => ofSigned(grid.value(row, column), most));
    return matrix;
  }

  /** That of the query; null where the query is of another stack, or there are none. */
  get position() {
    return this.look.payload.stacks[this.which] ? this.look.position(this.which) : null;
  }

  get figure() {
    const size = (grid) => shape(grid.shape[0], this.found.of);
    const panels = this.parts.map(([name, grid], place) => panel(TITLES[name], size(grid), this.matrices[place].element, this.legend(place)));
    const signs = panels.flatMap((each, place) => (SIGNS[this.parts[place][0]] ? [sign(this.parts[place][0]), each] : [each]));
    return make("div", { class: "sum" }, ...signs);
  }

  legend(place) {
    return signedLegend("", this.ends[place], largest(this.parts[place][1].data) > this.ends[place]);
  }

  point(row, column) {
    if (this.position !== null) this.look.point(row);
    this.at = row === null ? null : [row, column];
    this.follow();
  }

  /** Mark the row of the query, and say the numbers of one place of it. */
  follow() {
    const row = this.at?.[0] ?? this.position;
    for (const matrix of this.matrices) matrix.mark(row);
    const column = this.at?.[1] ?? 0;
    if (row === null) return this.readout.replaceChildren();
    const numbers = this.parts.flatMap(([name, grid]) => [
      SIGNS[name] ?? "",
      number(grid.value(row, column), 4),
      make("small", {}, ` ${SHORT[name]} `),
    ]);
    this.readout.replaceChildren(quoted(this.names[row].text), `, number ${column}:  `, ...numbers);
  }
}

const TITLES = { tokens: "Tokens", positions: "Positions", sum: "Sum", entered: "Normed" };
const SHORT = { tokens: "token", positions: "position", sum: "sum", entered: "normed" };
const SIGNS = { positions: "+", sum: "=", entered: "\u2192" };
const sign = (name) => make("span", { class: "sign", "aria-hidden": "true" }, SIGNS[name]);

function opened(embedding) {
  const arrays = Object.fromEntries(["tokens", "positions"].map((name) => [name, unpack(embedding[name])]));
  const { tokens, positions } = arrays;
  if (positions) arrays.sum = { ...tokens, value: (r, c) => tokens.value(r, c) + positions.value(r, c), data: tokens.data.map((each, place) => each + positions.data[place]) };
  return { of: embedding.of, shown: embedding.shown, arrays: { ...arrays, entered: unpack(embedding.entered) } };
}

function lines(look, found) {
  const { arrays, of, shown } = found;
  const [time] = arrays.tokens.shape;
  const { picture, kind } = look.payload;
  const turned = [...look.heads.values()].some(({ part }) => part.rotated);
  return [
    formula(`*x* = *E*[token]${arrays.positions ? " + *P*[position]" : ""}`, `${shape(time, of)}`),
    prose(kind === "paint" ? PIXELS : picture ? PATCHED : kind === "words" ? WORDS : LOOKED),
    kind === "words" ? null : prose(arrays.positions ? ADDED : turned ? TURNED : NONE),
    arrays.entered ? prose(NORMED) : null,
    shown < of ? make("p", { class: "note" }, `The first ${shown} of ${of} numbers of each vector are shown.`) : null,
  ];
}

/** The section. */
export function mount(element, look) {
  const all = Object.entries(look.payload.embedding ?? {});
  if (!all.length) return null;
  const found = all.map(([which, embedding]) => [which, opened(embedding)]);
  const views = found.map(([which, each]) => new Vectors(look, which, each));
  const names = { self: "What is written", encoder: "What is read" };
  const figures = views.flatMap((view) => [
    views.length > 1 ? make("h3", {}, names[view.which]) : null,
    view.figure,
    view.readout,
  ]);
  const section = new Section("vectors", "Vectors", lines(look, found[0][1]).filter(Boolean), ...figures.filter(Boolean));
  element.append(section.element);
  look.on(() => views.forEach((view) => view.follow()));
  return section;
}

// A map of words: those with like vectors lie close together.

import { draw, make } from "./dom.js";
import { unpack } from "./pack.js";
import { note, piece, prose, said, Section } from "./parts.js";

const [WIDE, HIGH, EDGE] = [860, 620, 60];
const SIZE = 13;

class WordMap {
  constructor(map) {
    Object.assign(this, map);
    this.at = unpack(map.places);
    this.caption = make("p", { class: "readout", role: "status" });
    this.dots = this.words.map((word, index) => this.dot(word, index));
    const svg = draw("svg", { class: "map", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "group", "aria-label": "A map of words; arrow keys go from neighbour to neighbour" });
    svg.append(...[...this.dots].reverse());
    this.place();
    this.element = make("div", {}, make("div", { class: "scroller" }, svg), this.caption);
    this.show(0);
  }

  where(index) {
    const [x, y] = this.at.row(index);
    return [WIDE / 2 + x * (WIDE / 2 - EDGE), HIGH / 2 - y * (HIGH / 2 - 20)];
  }

  dot(word, index) {
    const [x, y] = this.where(index);
    return draw(
      "g",
      {
        class: `spot cluster-${this.clusters[index] % 10}${index < this.asked ? " asked" : ""}`,
        tabindex: index === 0 ? "0" : "-1",
        role: "img",
        "aria-label": `${said(word)}, near ${this.beside[index].map((each) => said(this.words[each])).join(", ")}`,
        onfocus: () => this.show(index),
        onpointerenter: () => this.show(index),
        onkeydown: (event) => this.key(event, index),
      },
      draw("circle", { cx: x, cy: y, r: index < this.asked ? 5 : 3 }),
    );
  }

  /** Names where there is room, the first words first. */
  place() {
    const taken = this.words.map((_, index) => {
      const [x, y] = this.where(index);
      return [x - 3, y - 3, x + 3, y + 3];
    });
    this.words.forEach((word, index) => {
      const [x, y] = this.where(index);
      const width = Math.max(8, piece(word).length * SIZE * (index < this.asked ? 0.72 : 0.55));
      const corners = [[x + 6, y - 8], [x - 6 - width, y - 8], [x - width / 2, y - 21], [x - width / 2, y + 5]];
      const free = ([left, top]) =>
        left > 0 && left + width < WIDE && taken.every((box, other) => other === index || box[0] > left + width || box[2] < left || box[1] > top + 16 || box[3] < top);
      const corner = corners.find(free) ?? (index < this.asked ? corners[0] : null);
      if (!corner) return;
      taken.push([corner[0], corner[1], corner[0] + width, corner[1] + 16]);
      this.dots[index].append(draw("text", { x: corner[0], y: corner[1] + 12 }, piece(word)));
    });
  }

  show(index) {
    const near = new Set(this.beside[index]);
    this.dots.forEach((dot, each) => {
      dot.classList.toggle("here", each === index);
      dot.classList.toggle("near", near.has(each));
      dot.setAttribute("tabindex", each === index ? "0" : "-1");
    });
    this.caption.replaceChildren(make("b", { class: "word" }, piece(this.words[index])), " is most like ", this.beside[index].map((each) => piece(this.words[each])).join(", "));
  }

  key(event, index) {
    const side = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!side || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [x, y] = this.where(index);
    const ahead = this.words
      .map((_, other) => [other, this.where(other)])
      .map(([other, [a, b]]) => [other, (a - x) * side[0] + (b - y) * side[1], Math.abs((a - x) * side[1]) + Math.abs((b - y) * side[0])])
      .filter(([other, along, aside]) => other !== index && along > 0 && aside <= along * 1.5)
      .sort((one, two) => one[1] + one[2] - two[1] - two[2]);
    if (ahead.length) this.dots[ahead[0][0]].focus();
  }
}

/** The section; null where there is none. */
export function mount(element, look) {
  const { map } = look.payload;
  if (!map) return null;
  const words = [
    prose("The vectors have many numbers; the map has two. It keeps neighbours together (t-SNE), so crowds of words are to be believed, distances between crowds are not."),
    note("van der Maaten and Hinton 2008. The words asked for, their nearest ones, and the most frequent of all."),
  ];
  const section = new Section("map", "A map of words", words, new WordMap(map).element);
  element.append(section.element);
  return section;
}

// The tree of beams as a drawing: a column a round, a row a rank; what went on, what was dropped, and the best path.

import { draw, label, make, percent, spoken } from "./dom.js";

const ROW = 30;
const TOP = 26;
const LONGEST = 150;

/** The nodes by number, each with its column and row; of the dropped ones no more than went on. */
function arranged(rounds) {
  const nodes = new Map();
  rounds.forEach((round, column) => {
    const ranked = [...round].sort((a, b) => b.kept - a.kept || b.logprob - a.logprob);
    const kept = ranked.filter((node) => node.kept).length;
    ranked.slice(0, 2 * kept).forEach((node, row) => nodes.set(node.id, { ...node, column, row, best: false }));
  });
  return nodes;
}

/** From the root to a node. */
export function pathTo(nodes, node) {
  const path = [];
  for (let at = node; at; at = nodes.get(at.parent)) path.unshift(at);
  return path;
}

/** Mark the path that has these tokens, so far as it is there. */
function markBest(rounds, nodes, ids) {
  let at = null;
  ids.forEach((token, column) => {
    const found = (rounds[column] ?? []).find(
      (node) => node.kept && node.token === token && node.parent === (at?.id ?? null),
    );
    at = found ? nodes.get(found.id) : undefined;
    if (at) at.best = true;
  });
  const goesOn = new Set(rounds.flat().map((node) => node.parent));
  const end =
    at && (rounds[ids.length] ?? []).find((node) => node.kept && node.parent === at.id && !goesOn.has(node.id));
  if (end) nodes.get(end.id).best = true; // the end token, which is no part of a text
}

/** Names of nodes as they are drawn, and their widths in pixels. */
function name(nodes, font) {
  const pen = make("canvas").getContext("2d");
  for (const node of nodes.values()) {
    pen.font = `${node.best ? "bold " : ""}15px ${font}`;
    const letters = [...(node.text === "" ? "\u25a0 end" : label(node.text))];
    const width = () => pen.measureText(letters.join("")).width;
    if (width() > LONGEST) letters.push("\u2026");
    while (width() > LONGEST) letters.splice(-2, 1);
    Object.assign(node, { name: letters.join(""), width: width() });
  }
}

/** Where columns begin, each as wide as its widest name; the last number is where all of them end. */
function columns(nodes, rounds) {
  const widths = rounds.map(() => 0);
  for (const node of nodes.values()) widths[node.column] = Math.max(widths[node.column], node.width);
  return widths.reduce((starts, width) => [...starts, starts.at(-1) + width + 44], [14]);
}

export class Tree {
  /** choose(text): go on from the path that has this text. */
  constructor(choose) {
    this.choose = choose;
    this.caption = make("figcaption", { class: "note" });
    this.scroller = make("div", { class: "scroller" });
    this.element = make("figure", { class: "tree", hidden: true }, this.scroller, this.caption);
  }

  show({ rounds, texts }) {
    this.nodes = arranged(rounds);
    if (texts[0]) markBest(rounds, this.nodes, texts[0].ids);
    name(this.nodes, getComputedStyle(document.documentElement).getPropertyValue("--text"));
    this.starts = columns(this.nodes, rounds);
    const rows = Math.max(...[...this.nodes.values()].map((node) => node.row)) + 1;
    const height = TOP + rows * ROW;
    const width = this.starts.at(-1);
    const order = [...this.nodes.values()].sort((a, b) => a.best - b.best || a.kept - b.kept);
    const svg = draw("svg", {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "group",
      "aria-label": "Tree of beams; arrow keys go along it",
    });
    this.lines = draw("g", { "aria-hidden": "true" }, ...order.map((node) => this.line(node)));
    this.marks = new Map([...this.nodes.values()].map((node) => [node.id, this.mark(node)]));
    svg.append(this.lines, ...this.marks.values());
    this.scroller.replaceChildren(svg);
    this.element.hidden = false;
    this.rest();
    const first = [...this.nodes.values()].find((node) => node.column === 0 && node.row === 0);
    if (first) this.marks.get(first.id).setAttribute("tabindex", "0");
  }

  x(node) {
    return this.starts[node.column];
  }

  y(node) {
    return TOP + node.row * ROW;
  }

  line(node) {
    const parent = this.nodes.get(node.parent);
    const [x, y] = [this.x(node) - 5, this.y(node)];
    const from = parent ? [this.x(parent) + parent.width + 5, this.y(parent)] : [x - 6, y];
    const middle = (from[0] + x) / 2;
    const d = `M${from[0]} ${from[1]}C${middle} ${from[1]} ${middle} ${y} ${x} ${y}`;
    return draw("path", { d, class: this.state(node), "data-id": node.id });
  }

  state(node) {
    return node.best ? "best" : node.kept ? "kept" : "dropped";
  }

  mark(node) {
    const said = node.best ? "on the best path" : node.kept ? "kept" : "dropped";
    const token = node.text === "" ? "end" : spoken(node.text);
    const text = draw("text", { x: this.x(node), y: this.y(node) + 4.5 }, node.name);
    return draw(
      "g",
      {
        class: `node ${this.state(node)}`,
        tabindex: "-1",
        role: "button",
        "data-id": node.id,
        "aria-label": `${token}, ${said}, path ${percent(Math.exp(node.logprob))}`,
        onfocus: () => this.point(node),
        onpointerenter: () => this.point(node),
        onpointerleave: () => this.rest(),
        onblur: () => this.rest(),
        onclick: () => this.take(node),
        onkeydown: (event) => this.move(event, node),
      },
      draw("rect", { x: this.x(node) - 5, y: this.y(node) - 12, width: node.width + 10, height: 24, rx: 4 }),
      text,
    );
  }

  // --- looking along it -------------------------------------------------------------------------------------------

  /** Show a node's path, and what it is worth. */
  point(node) {
    const path = pathTo(this.nodes, node);
    const ids = new Set(path.map((each) => each.id));
    for (const line of this.lines.children) line.classList.toggle("along", ids.has(Number(line.dataset.id)));
    for (const [id, mark] of this.marks) mark.setAttribute("tabindex", id === node.id ? "0" : "-1");
    this.caption.replaceChildren(
      make("span", { class: "quote" }, label(path.map((each) => each.text).join(""))),
      ` has the log-probability ${node.logprob.toFixed(2)}, that is ${percent(Math.exp(node.logprob))}; `,
      node.kept ? "kept" : "dropped",
    );
  }

  rest() {
    for (const line of this.lines.children) line.classList.remove("along");
    this.caption.textContent = "Each column is a round, best on top. Point at a token to see its path.";
  }

  take(node) {
    this.choose?.(
      pathTo(this.nodes, node)
        .map((each) => each.text)
        .join(""),
    );
  }

  move(event, node) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.take(node);
      return;
    }
    const all = [...this.nodes.values()];
    const there = {
      ArrowLeft: () => this.nodes.get(node.parent),
      ArrowRight: () => all.filter((each) => each.parent === node.id).sort((a, b) => a.row - b.row)[0],
      ArrowUp: () => all.find((each) => each.column === node.column && each.row === node.row - 1),
      ArrowDown: () => all.find((each) => each.column === node.column && each.row === node.row + 1),
    }[event.key]?.();
    if (!there) return;
    event.preventDefault();
    this.marks.get(there.id).focus();
  }
}

/** The best texts, best first, each with its score. */
export function ranking(texts, name) {
  return make(
    "ol",
    { class: "ranking", "aria-label": name },
    ...texts.map(({ text, score }) =>
      make(
        "li",
        {},
        make("span", { class: "score", title: "Score" }, score.toFixed(2)),
        make("span", { class: "quote" }, label(text)),
      ),
    ),
  );
}

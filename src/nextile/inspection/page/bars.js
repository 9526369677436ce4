// Probabilities as bars, drawn again in place so that they move.

import { label, make, percent, rove, spoken } from "./dom.js";

/** A list of bars. With `choose` each is a button that is told its row. */
export class Bars {
  constructor(name, choose = null) {
    this.choose = choose;
    this.rows = [];
    this.element = make("ul", { class: "bars", "aria-label": name });
    if (choose) rove(this.element, "button:not(:disabled)", { ArrowDown: 1, ArrowUp: -1 });
  }

  /** Show rows {text, before?, after, chosen?, plain?}: `before` is the pale bar behind, `plain` no token but words. */
  draw(rows) {
    this.rows = rows;
    const widest = Math.max(...rows.map((row) => Math.max(row.before ?? 0, row.after)), 1e-9);
    while (this.element.children.length < rows.length) this.element.append(this.line(this.element.children.length));
    while (this.element.children.length > rows.length) this.element.lastChild.remove();
    rows.forEach((row, place) => this.fill(this.element.children[place], row, widest));
    if (this.choose) this.settle();
  }

  line(place) {
    const parts = [
      make("span", { class: "name" }),
      make("span", { class: "track" }, make("span", { class: "before" }), make("span", { class: "after" })),
      make("span", { class: "share" }),
    ];
    if (!this.choose) return make("li", {}, make("div", { class: "bar" }, ...parts));
    const onclick = () => this.choose(this.rows[place]);
    return make("li", {}, make("button", { class: "bar", type: "button", onclick }, ...parts));
  }

  fill(line, row, widest) {
    const bar = line.firstChild;
    const [name, track, share] = bar.children;
    name.textContent = row.plain ? row.text : label(row.text) || "\u25cc";
    name.classList.toggle("plain", Boolean(row.plain));
    track.style.setProperty("--before", (row.before ?? 0) / widest);
    track.style.setProperty("--after", row.after / widest);
    share.textContent = percent(row.after);
    share.dataset.value = row.after;
    bar.classList.toggle("gone", row.after === 0);
    bar.classList.toggle("chosen", Boolean(row.chosen));
    if (!this.choose) return;
    bar.disabled = Boolean(row.plain);
    const was =
      row.before === undefined || percent(row.before) === percent(row.after) ? "" : `, before ${percent(row.before)}`;
    bar.setAttribute("aria-label", `${row.plain ? row.text : spoken(row.text)}, ${percent(row.after)}${was}`);
    if (row.chosen) bar.setAttribute("aria-current", "true");
    else bar.removeAttribute("aria-current");
  }

  /** One of them can be reached by Tab, always. */
  settle() {
    const buttons = [...this.element.querySelectorAll("button:not(:disabled)")];
    if (buttons.some((button) => button.tabIndex === 0 && button === document.activeElement)) return;
    buttons.forEach((button, place) => {
      button.tabIndex = place === 0 ? 0 : -1;
    });
  }
}

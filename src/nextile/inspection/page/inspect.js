// All views of an inspection, in the order in which the data goes through a model.

import * as alignment from "./alignment.js";
import * as classes from "./classes.js";
import * as decoding from "./decoding.js";
import * as distribution from "./distribution.js";
import { count, make, visible } from "./dom.js";
import * as heads from "./heads.js";
import * as lens from "./lens.js";
import { Look } from "./look.js";
import * as merges from "./merges.js";
import * as neurons from "./neurons.js";
import * as rollout from "./rollout.js";
import * as search from "./search.js";
import * as stream from "./stream.js";
import * as strip from "./strip.js";
import * as vectors from "./vectors.js";
import * as weigh from "./weigh.js";
import * as wordmap from "./wordmap.js";
import * as words from "./words.js";

const SETTLED = 500; // milliseconds, after which also what is not seen is laid out

const VIEWS = [merges, vectors, weigh, heads, alignment, rollout, stream, neurons, lens, classes, distribution, decoding, search, words, wordmap];

/** "qwen3 · 1,000 parameters · 4 layers of 4 heads". */
export function facts({ model, stacks, which }) {
  const layers = which.filter((each) => each !== "cross").map((each) => {
    const { depth, heads: several } = stacks[each];
    return `${each === "encoder" ? "encoder: " : which.length > 1 ? "decoder: " : ""}${count(depth, "layer")} of ${count(several, "head")}`;
  });
  return [model.family, count(model.parameters, "parameter"), ...layers].map(visible).join(" \u00b7 ");
}

function contents(sections) {
  const links = sections.map(({ id, title }) => make("li", {}, make("a", { href: `#${id}` }, title)));
  return make("nav", { class: "contents", "aria-label": "Steps" }, make("ol", {}, ...links));
}

function leftOut({ leftOut: lacking }) {
  if (!lacking.length) return null;
  return make("p", { class: "note" }, `Left out, so that the page stays small: ${lacking.map(visible).join("; ")}.`);
}

/**
 * Show a payload in an element. ask(what, {which, layer, head}) resolves to what the payload lacks: ask("head", ...) to
 * one head as `payload.head_part` makes it; without it the page says how to get that.
 */
export function mount(element, payload, ask = null) {
  const look = new Look(payload, ask);
  const bar = make("div", { class: "strip", role: "region", "aria-label": "What is looked at" });
  const body = make("div", { class: "way" });
  const top = make("div");
  element.classList.add("inspect");
  element.replaceChildren(top, ...(payload.chosen ? [bar] : []), body, leftOut(payload) ?? ""); // where all can be measured
  const sections = VIEWS.map((view) => view.mount(body, look)).filter(Boolean);
  if (payload.chosen) strip.mount(bar, look);
  top.replaceWith(contents(sections));
  setTimeout(() => element.classList.add("settled"), SETTLED);
  return look;
}

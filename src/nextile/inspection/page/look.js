// What is looked at: the arrays of the payload, and the stack, layer, head and query that all views share.

import { unpack } from "./pack.js";
import { Head } from "./reckon.js";

const key = (which, layer, head) => `${which}.${layer}.${head}`;

export class Look {
  /** ask(what, {which, layer, head}): what the payload lacks, from a server; none: it stays out. */
  constructor(payload, ask = null) {
    Object.assign(this, { payload, ask, listeners: [], pointed: null, waiting: false });
    this.chosen = { ...payload.chosen };
    this.heads = new Map((payload.heads ?? []).map((part) => [key(part.which, part.layer, part.head), new Head(part)]));
    this.layers = new Map();
    this.late = new Map();
    this.glances = new Map();
    for (const [which, { layers, values, glance }] of Object.entries(payload.weights ?? {})) {
      const all = unpack(values);
      if (glance) this.glances.set(which, unpack(glance));
      layers.forEach((layer, place) => this.layers.set(`${which}.${layer}`, all.at(place)));
    }
  }

  // --- what is chosen ---------------------------------------------------------------------------------------------

  /** Call it at once, and after each change. */
  on(listener) {
    this.listeners.push(listener);
    listener();
  }

  /** Choose another stack, layer, head or query. */
  choose(changes) {
    const was = this.chosen.which;
    Object.assign(this.chosen, changes);
    const { depth, heads, queries } = this.stack;
    this.chosen.layer = Math.min(this.chosen.layer, depth - 1);
    this.chosen.head = Math.min(this.chosen.head, heads - 1);
    if (was !== this.chosen.which) this.pointed = null;
    this.chosen.query = Math.min(this.chosen.query, this.names(queries).length - 1);
    this.tell();
  }

  /** Do it once all is drawn, and only the last that is asked for under a name: it measures, and that takes time. */
  soon(name, act) {
    if (!this.late.has(name)) requestAnimationFrame(() => setTimeout(() => this.run(name)));
    this.late.set(name, act);
  }

  run(name) {
    const act = this.late.get(name);
    this.late.delete(name);
    act();
  }

  /** Look at a query while somebody points at it; null: back to the chosen one. */
  point(query) {
    if (this.pointed === query) return;
    this.pointed = query;
    this.tell();
  }

  tell() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const listener of this.listeners) listener();
    });
  }

  get query() {
    return this.pointed ?? this.chosen.query;
  }

  get stack() {
    return this.payload.stacks[this.chosen.which];
  }

  /** The stack of a position of the decoder, or of the only stack there is. */
  get own() {
    return this.payload.stacks.self ? "self" : this.payload.which[0];
  }

  // --- what there is ----------------------------------------------------------------------------------------------

  /** The texts of the pieces of a side: "pieces" or "target". */
  names(side) {
    return side === "target" ? this.payload.target : this.payload.pieces;
  }

  get queries() {
    return this.names(this.stack.queries);
  }

  get keys() {
    return this.names(this.stack.keys);
  }

  /** The position of the chosen query, in a stack whose positions are those; null in another. */
  position(which) {
    const side = this.payload.stacks[which].queries;
    return side === this.stack.queries ? this.query : null;
  }

  /** A head's matrices; null where they were left out. */
  head({ which, layer, head } = this.chosen) {
    return this.heads.get(key(which, layer, head)) ?? null;
  }

  /** A head's weights (query, key); null where they were left out. */
  weights({ which, layer, head } = this.chosen) {
    return this.layers.get(`${which}.${layer}`)?.at(head) ?? this.heads.get(key(which, layer, head))?.own ?? null;
  }

  /** Less of a head's weights, of each head: the row of one query, or the largest of small squares; null: none. */
  glance({ which, layer, head }) {
    return this.glances.get(which)?.at(layer, head) ?? null;
  }

  /** Ask the server for the matrices of the chosen head, if there is one and they are not here. */
  async fetch() {
    const { which, layer, head } = this.chosen;
    if (!this.ask || this.head()) return;
    const part = await this.ask("head", { which, layer, head });
    this.heads.set(key(which, layer, head), new Head(part));
    this.tell();
  }
}

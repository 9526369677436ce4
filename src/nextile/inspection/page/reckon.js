// The arithmetic of attention, as the lecture writes it; in double precision, from the model's own Q, K and V.

import { Grid, unpack } from "./pack.js";

/** The sum of products of two vectors. */
export function dot(a, b) {
  let sum = 0;
  for (let place = 0; place < a.length; place++) sum += a[place] * b[place];
  return sum;
}

/** Scores, of which some are hidden, as weights that sum to 1: {highest, powers, sum, weights}. */
export function softmax(scores, hidden = () => false) {
  let highest = -Infinity;
  scores.forEach((score, key) => {
    if (!hidden(key) && score > highest) highest = score;
  });
  const powers = Float64Array.from(scores, (score, key) => (hidden(key) ? 0 : Math.exp(score - highest)));
  const sum = powers.reduce((total, each) => total + each, 0);
  return { highest, powers, sum, weights: powers.map((each) => each / sum) };
}

/** The vectors' sum, each by its weight. */
export function average(weights, values) {
  const found = new Float64Array(values.shape[1]);
  weights.forEach((weight, key) => {
    const vector = values.row(key);
    for (let place = 0; place < found.length; place++) found[place] += weight * vector[place];
  });
  return found;
}

/** One head: its matrices, and what it does with a query. */
export class Head {
  constructor(part) {
    this.part = part;
    this.queries = unpack(part.queries);
    this.keys = unpack(part.keys);
    this.values = unpack(part.values);
    this.bias = unpack(part.bias);
    this.own = unpack(part.weights); // the model's, to be compared with
    this.mask = part.hidden === "causal" ? null : unpack(part.hidden);
    this.rows = new Map();
    [this.time] = this.queries.shape;
    [this.seen, this.width] = this.keys.shape;
  }

  hides(query, key) {
    return this.mask ? this.mask.value(query, key) === 1 : key > query;
  }

  /** Step by step for one query: products, scaled, scores, highest, powers, sum, weights, result. */
  row(query) {
    if (!this.rows.has(query)) this.rows.set(query, this.reckon(query));
    return this.rows.get(query);
  }

  reckon(query) {
    const q = this.queries.row(query);
    const { scale, cap } = this.part;
    const products = Float64Array.from({ length: this.seen }, (_, key) => dot(q, this.keys.row(key)));
    const scaled = products.map((each) => each * scale);
    const capped = cap ? scaled.map((each) => cap * Math.tanh(each / cap)) : scaled;
    const scores = this.bias ? capped.map((each, key) => each + this.bias.value(query, key)) : capped;
    const soft = softmax(scores, (key) => this.hides(query, key));
    return { products, scaled, capped, scores, ...soft, result: average(soft.weights, this.values) };
  }

  /** Scores or weights of all queries, (query, key). */
  all(name) {
    const data = new Float32Array(this.time * this.seen);
    for (let query = 0; query < this.time; query++) data.set(this.row(query)[name], query * this.seen);
    return new Grid([this.time, this.seen], data);
  }
}

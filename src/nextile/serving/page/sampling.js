// What temperature, top-k and top-p make of the next token's probabilities, reckoned here as the server does.

/** The tokens that the model thinks of, best first, and how probable each of all others is on average. */
function spread(top, vocabulary) {
  const tokens = Object.entries(top).sort((a, b) => b[1] - a[1]);
  const mass = tokens.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0);
  const least = tokens.length ? tokens.at(-1)[1] : 0;
  const rest = Math.max(0, 1 - mass);
  const others = vocabulary === null ? Math.ceil(rest / Math.exp(least)) : Math.max(0, vocabulary - tokens.length);
  const each = others > 0 && rest > 1e-6 ? Math.min(Math.log(rest / others), least) : -Infinity;
  return { tokens, others: each === -Infinity ? 0 : others, each };
}

const warmed = (logprob, best, temperature) =>
  temperature > 0 ? Math.exp((logprob - best) / temperature) : Number(logprob === best);

/** How many of so many equally probable others a nucleus of mass p takes, after `mass` of better ones. */
function taken(others, each, mass, p) {
  return each > 0 ? Math.min(others, Math.max(0, Math.ceil((p - mass) / each - 1e-9))) : 0;
}

/**
 * Of {token: logprob} the best ones and a vocabulary's size (or null): rows {token, before, after}, best first, and
 * the others' {before, after} together. All others are taken as equally probable, so theirs is an estimate.
 */
export function shaped(top, vocabulary, { temperature = 1, top_k = null, top_p = 1 } = {}) {
  const { tokens, others, each } = spread(top, vocabulary);
  const best = tokens.length ? tokens[0][1] : 0;
  let weights = tokens.map(([, logprob]) => warmed(logprob, best, temperature));
  const other = others ? warmed(each, best, temperature) : 0;
  let left = other > 0 ? others : 0;
  if (top_k !== null) {
    const least = weights[Math.min(top_k, weights.length) - 1] ?? 0;
    weights = weights.map((weight) => (weight >= least ? weight : 0));
    left = Math.min(left, Math.max(0, top_k - weights.length));
  }
  const whole = weights.reduce((sum, weight) => sum + weight, 0) + left * other || 1;
  let mass = 0;
  weights = weights.map((weight, place) => {
    const kept = place === 0 || mass < top_p - 1e-9;
    mass += weight / whole;
    return kept ? weight : 0;
  });
  if (top_p < 1) left = taken(left, other / whole, mass, top_p);
  const total = weights.reduce((sum, weight) => sum + weight, 0) + left * other || 1;
  return {
    rows: tokens.map(([token, logprob], place) => ({
      token,
      before: Math.exp(logprob),
      after: weights[place] / total,
    })),
    others: { before: others * Math.exp(each) || 0, after: (left * other) / total },
  };
}

// The choice of the next token, by the rules of gpt_jax/inference/sampling.py.

/** Returns the id of the token after `ids`; a draw depends on the seed and their number only. */
export function chooseNext(logits, ids, sampling, drawnFrom) {
  const scores = adjust(logits, ids, sampling, drawnFrom);
  if (sampling.temperature === 0) return likeliest(scores);
  const weights = softmax(scores);
  let left = uniform(sampling.seed, ids.length);
  for (let id = 0; id < weights.length; id++) {
    left -= weights[id];
    if (left < 0) return id;
  }
  return likeliest(scores);
}

/** Applies penalties, temperature and filters; excluded tokens get -Infinity. Those of `ids` from `drawnFrom` on were drawn. */
export function adjust(logits, ids, sampling, drawnFrom) {
  const { temperature, repetition_penalty: penalty } = sampling, scores = Float32Array.from(logits);
  if (penalty !== 1) {
    for (const id of new Set(ids)) scores[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
  }
  const { presence_penalty: presence, frequency_penalty: frequency } = sampling;
  if (presence !== 0 || frequency !== 0) {
    const drawn = ids.slice(drawnFrom);
    for (const id of new Set(drawn)) scores[id] -= presence;
    for (const id of drawn) scores[id] -= frequency;
  }
  if (temperature === 0) return scores;
  for (let id = 0; id < scores.length; id++) scores[id] /= temperature;
  filter(scores, sampling);
  return scores;
}

/** Excludes tokens by top-k, top-p and min-p, in this order: their scores become -Infinity. */
function filter(scores, { top_k: topK, top_p: topP, min_p: minP }) {
  const size = scores.length, most = scores[likeliest(scores)];
  let least = most + Math.log(minP);
  if (topK > 0 || topP < 1) {
    const sorted = Float32Array.from(scores).sort();
    const kept = Math.min(topK || size, size);
    let bound = sorted[size - kept];
    if (topP < 1) bound = Math.max(bound, nucleus(sorted, bound, topP));
    least = Math.max(least, bound);
  }
  for (let id = 0; id < size; id++) if (scores[id] < least) scores[id] = -Infinity;
}

/** Returns the least score of which all greater ones have less than `topP` of the probability. */
function nucleus(sorted, bound, topP) {
  const most = sorted[sorted.length - 1];
  let total = 0;
  for (const score of sorted) if (score >= bound) total += Math.exp(score - most);
  let greater = 0, least = most;
  for (let i = sorted.length - 1; i >= 0 && sorted[i] >= bound;) {
    if (greater >= topP * total) break;
    least = sorted[i];
    for (; i >= 0 && sorted[i] === least; i--) greater += Math.exp(least - most);
  }
  return least;
}

export function likeliest(scores) {
  let best = 0;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  return best;
}

/** Returns the ids of the `count` greatest scores, the greatest first. */
export function best(scores, count) {
  const ids = [];
  for (let id = 0; id < scores.length; id++) {
    if (ids.length === count && scores[id] <= scores[ids[count - 1]]) continue;
    let at = ids.length;
    while (at > 0 && scores[ids[at - 1]] < scores[id]) at--;
    ids.splice(at, 0, id);
    if (ids.length > count) ids.pop();
  }
  return ids;
}

/** Returns probabilities. */
export function softmax(scores) {
  const weights = new Float64Array(scores.length), most = scores[likeliest(scores)];
  let total = 0;
  for (let id = 0; id < weights.length; id++) total += weights[id] = Math.exp(scores[id] - most);
  for (let id = 0; id < weights.length; id++) weights[id] /= total;
  return weights;
}

/** Returns a number in [0, 1) that depends on a seed and the number of the draw only. */
export function uniform(seed, number) {
  let bits = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(number + 1, 0xc2b2ae35);
  for (let round = 0; round < 2; round++) {
    bits = Math.imul(bits ^ (bits >>> 16), 0x7feb352d);
    bits = Math.imul(bits ^ (bits >>> 15), 0x846ca68b);
    bits ^= bits >>> 16;
  }
  return (bits >>> 0) / 2 ** 32;
}

// The network: embeddings, blocks with a cache of keys and values, logits.

import { Embedding } from './embedding.js';
import { ACTIVATIONS, makeNorm, rotate, soften } from './parts.js';
import { multiply } from './products.js';

export const CHUNK = 32; // tokens that go through the network together

export class Model {
  constructor(config, weights) {
    this.config = config;
    const norm = (kind, name) => makeNorm(kind, weights.vector(`${name}.scale`),
      weights.has(`${name}.bias`) ? weights.vector(`${name}.bias`) : null, config);
    this.embedding = new Embedding(config, weights);
    this.output = config.tied ? this.embedding.table : weights.matrix('output.table');
    this.finalNorm = config.finalNorm && norm(config.finalNorm, 'final_norm');
    this.layers = config.layers.map((layer, i) => new Layer(config, layer, weights, `layers.${i}`, norm));
    this.x = new Float32Array(CHUNK * config.width);
    this.last = new Float32Array(config.width);
    this.logits = new Float32Array(config.vocabSize);
    this.scratch = makeScratch(config);
  }

  /**
   * Runs up to CHUNK tokens that come after `start` cached ones, and caches them.
   *
   * `attend(layer, head, weights)`, if given, gets the attention of the last of them.
   */
  forward(ids, start, attend = null) {
    const { config: { width }, x } = this, count = ids.length;
    this.embedding.write(ids, start, x);
    for (const [i, layer] of this.layers.entries()) {
      layer.forward(x, count, start, this.scratch, attend && ((head, weights) => attend(i, head, weights)));
    }
    this.last.set(x.subarray((count - 1) * width, count * width));
  }

  /** Returns the logits after the last token; the next call overwrites them. */
  nextLogits() {
    const { config: { outputScale, outputCap, vocabSize }, last, logits } = this;
    if (this.finalNorm) this.finalNorm(last, 1, last);
    multiply(this.output, last, 1, logits);
    for (let i = 0; i < vocabSize; i++) logits[i] = soften(logits[i] * outputScale, outputCap);
    return logits;
  }
}

/** Returns the arrays that all layers use in turn. */
function makeScratch({ width, hidden, heads, keyHeads, headDim, context }) {
  const floats = (size) => new Float32Array(CHUNK * size);
  return {
    entered: floats(width), second: floats(width), branch: floats(width),
    query: floats(heads * headDim), key: floats(keyHeads * headDim), value: floats(keyHeads * headDim),
    mixed: floats(heads * headDim), up: floats(hidden), gate: floats(hidden),
    scores: new Float32Array(context + 1),
  };
}

class Layer {
  constructor(config, own, weights, name, norm) {
    const { context, keyHeads, headDim, slopes } = config;
    Object.assign(this, { config, own, slopes });
    const linear = (part) => weights.matrix(`${name}.${part}.kernel`, `${name}.${part}.bias`);
    const ownNorm = (part) => (weights.has(`${name}.${part}.scale`) ? norm(own.norm, `${name}.${part}`) : null);
    this.query = linear('attention.query');
    this.key = linear('attention.key');
    this.value = linear('attention.value');
    this.out = linear('attention.output');
    if (config.qkNorm !== 'none') {
      this.queryNorm = norm('rmsnorm', `${name}.attention.query_norm`);
      this.keyNorm = norm('rmsnorm', `${name}.attention.key_norm`);
      this.perHead = config.qkNorm === 'head';
    }
    if (own.mlp) {
      this.activation = ACTIVATIONS[own.mlp];
      this.up = linear('mlp.up');
      this.gate = this.activation.gated ? linear('mlp.gate') : null;
      this.down = linear('mlp.down');
    }
    this.attentionNorm = ownNorm('attention_norm');
    this.mlpNorm = ownNorm('mlp_norm');
    this.attentionPostNorm = ownNorm('attention_post_norm');
    this.mlpPostNorm = ownNorm('mlp_post_norm');
    // A row per token: the keys of all heads, as their products write them.
    this.keys = new Float32Array((context + 1) * keyHeads * headDim);
    this.values = new Float32Array((context + 1) * keyHeads * headDim);
  }

  forward(x, count, start, scratch, attend) {
    const { config: { parallelResidual } } = this, { entered, second, branch } = scratch;
    this.enter(this.attentionNorm, x, count, entered);
    if (this.activation && parallelResidual === 'two_norms') this.enter(this.mlpNorm, x, count, second);
    else if (parallelResidual !== 'off') second.set(entered);
    this.attention(entered, count, start, scratch, branch, attend);
    this.join(x, branch, count, this.attentionNorm, this.attentionPostNorm);
    if (!this.activation) return;
    if (parallelResidual === 'off') this.enter(this.mlpNorm, x, count, second);
    this.mlp(second, count, scratch, branch);
    this.join(x, branch, count, this.mlpNorm, this.mlpPostNorm);
  }

  /** Writes the input of a branch: normalized, if norms come first. */
  enter(norm, x, count, out) {
    const { normPlacement, width } = this.config;
    if (normPlacement === 'pre' || normPlacement === 'sandwich') norm(x, count, out);
    else out.set(x.subarray(0, count * width));
  }

  /** Adds a branch to the residual stream, with the norms that come after it. */
  join(x, branch, count, norm, postNorm) {
    const { normPlacement, width } = this.config, size = count * width;
    if (normPlacement === 'sandwich' || normPlacement === 'output') postNorm(branch, count, branch);
    for (let i = 0; i < size; i++) x[i] += branch[i];
    if (normPlacement === 'post') norm(x, count, x);
  }

  attention(x, count, start, scratch, out, attend) {
    const { config, own, keys, values } = this, { query, key, value, mixed } = scratch;
    const { heads, keyHeads, headDim, attentionFactor } = config, row = keyHeads * headDim;
    multiply(this.query, x, count, query);
    multiply(this.key, x, count, key);
    multiply(this.value, x, count, value);
    if (this.queryNorm) {
      this.queryNorm(query, this.perHead ? count * heads : count, query);
      this.keyNorm(key, this.perHead ? count * keyHeads : count, key);
    }
    if (own.frequencies) {
      rotate(query, count, heads, headDim, own.frequencies, attentionFactor, start);
      rotate(key, count, keyHeads, headDim, own.frequencies, attentionFactor, start);
    }
    keys.set(key.subarray(0, count * row), start * row);
    values.set(value.subarray(0, count * row), start * row);
    for (let t = 0; t < count; t++) {
      for (let head = 0; head < heads; head++) {
        this.attendOne(query, mixed, scratch.scores, t, head, start + t);
        if (attend && t === count - 1) attend(head, scratch.scores.slice(0, start + t + 1));
      }
    }
    multiply(this.out, mixed, count, out);
  }

  /** Attention of one head of the token at a position to those up to it. */
  attendOne(query, mixed, scores, t, head, position) {
    const { config: { heads, keyHeads, headDim, scoreCap }, own, keys, values, slopes } = this;
    const row = keyHeads * headDim, shared = Math.floor(head / (heads / keyHeads)) * headDim;
    const first = own.window ? Math.max(0, position - own.window + 1) : 0;
    const start = (t * heads + head) * headDim;
    let most = -Infinity, total = 0;
    scores.fill(0, 0, first);
    for (let s = first; s <= position; s++) {
      let sum = 0;
      for (let i = 0, at = s * row + shared; i < headDim; i++) sum += query[start + i] * keys[at + i];
      sum = soften(sum * own.scoreScale, scoreCap);
      if (slopes) sum -= slopes[head] * (position - s);
      scores[s] = sum;
      if (sum > most) most = sum;
    }
    for (let s = first; s <= position; s++) total += scores[s] = Math.exp(scores[s] - most);
    mixed.fill(0, start, start + headDim);
    for (let s = first; s <= position; s++) {
      const weight = scores[s] /= total;
      for (let i = 0, at = s * row + shared; i < headDim; i++) mixed[start + i] += weight * values[at + i];
    }
  }

  mlp(x, count, scratch, out) {
    const { activation } = this, { up, gate } = scratch, size = count * this.config.hidden;
    multiply(this.up, x, count, up);
    if (this.gate) {
      multiply(this.gate, x, count, gate);
      for (let i = 0; i < size; i++) up[i] *= activation.of(gate[i]);
    } else {
      for (let i = 0; i < size; i++) up[i] = activation.of(up[i]);
    }
    multiply(this.down, up, count, out);
  }
}

// The network on a GPU: the interface of model.js, with logits and attention as promises.
//
// The weights are on the GPU in the types of the file, the cache of keys and values is there, too.
// A pass over some tokens is one command buffer; only logits come back, and attention if it is asked for.

import { Embedding } from './embedding.js';
import { dispatch } from './gpu.js';
import { CHUNK } from './model.js';
import { ACTIVATIONS, soften } from './parts.js';
import * as shaders from './shaders.js';

/** Returns why a model cannot run on a GPU, or ''. */
export function obstacleOf({ width, hidden, headDim }) {
  return [width, hidden, headDim].every((each) => each % 4 === 0) ? '' : 'its widths are no multiples of 4';
}

export class GpuModel {
  constructor(gpu, config, weights) {
    Object.assign(this, { gpu, config, weights, encoder: null, uploaded: new Map() });
    const { width, hidden, heads, keyHeads, headDim, context, vocabSize, slopes } = config;
    const rows = (size) => gpu.floats(CHUNK * size);
    this.embedding = new Embedding(config, weights);
    this.embedded = new Float32Array(CHUNK * width);
    this.step = gpu.device.createBuffer({ size: 8, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
    this.buffers = {
      x: rows(width), entered: rows(width), second: rows(width), branch: rows(width), other: rows(width),
      query: rows(heads * headDim), mixed: rows(heads * headDim), up: rows(hidden), gate: rows(hidden),
      scores: rows(heads * (context + 1)), logits: gpu.floats(vocabSize),
      slopes: slopes && gpu.filled(Float32Array.from(slopes)),
    };
    this.caches = config.layers.map(() => [0, 1].map(() => gpu.floats((context + 1) * keyHeads * headDim)));
    this.waves = new Map(); // by frequencies: those of a layer, or of several
    for (const { frequencies } of config.layers) {
      if (frequencies) this.waves.set(String(frequencies), { frequencies, buffer: rows(2 * frequencies.length) });
    }
    // Single tokens read each weight for themselves, several share it.
    this.plans = new Map([1, shaders.TILE].map((tile) => [tile, config.layers.map((own, i) => this.planLayer(own, i, tile))]));
    this.output = this.planOutput();
    this.readable = gpu.readable(vocabSize);
    this.attentionSize = heads * (context + 1); // of one token in one layer
    this.attention = null;
    this.weights = null;
  }

  /**
   * Runs up to CHUNK tokens that come after `start` cached ones, and caches them.
   *
   * With `attend`, returns a promise that is kept when it has been called; see `Model.forward`.
   */
  forward(ids, start, attend = null) {
    const { gpu, config: { layers, width, attentionFactor } } = this, count = ids.length;
    this.count = count;
    this.submit(); // before its inputs are overwritten
    this.embedding.write(ids, start, this.embedded);
    gpu.write(this.buffers.x, this.embedded, count * width);
    gpu.write(this.step, Uint32Array.of(start, count));
    for (const { frequencies, buffer } of this.waves.values()) {
      gpu.write(buffer, wavesOf(frequencies, attentionFactor, start, count));
    }
    if (attend) this.attention ??= gpu.readable(layers.length * this.attentionSize);
    this.encoder = gpu.device.createCommandEncoder();
    let pass = this.encoder.beginComputePass();
    for (const [i, { attention, rest }] of this.plans.get(count === 1 ? 1 : shaders.TILE).entries()) {
      dispatch(pass, attention, count);
      if (attend) {
        pass.end();
        this.copyAttention(i, count);
        pass = this.encoder.beginComputePass();
      }
      dispatch(pass, rest, count);
    }
    pass.end();
    return attend ? this.readAttention(start + count, attend) : undefined;
  }

  copyAttention(layer, count) {
    const size = 4 * this.attentionSize;
    this.encoder.copyBufferToBuffer(this.buffers.scores, (count - 1) * size, this.attention, layer * size, size);
  }

  async readAttention(seen, attend) {
    const { gpu, config: { layers, heads, context } } = this;
    this.submit();
    const values = await gpu.read(this.attention, layers.length * this.attentionSize);
    for (let row = 0; row < layers.length * heads; row++) {
      const start = row * (context + 1);
      attend(Math.floor(row / heads), row % heads, values.subarray(start, start + seen));
    }
  }

  /** Returns a promise of the logits after the last token. */
  async nextLogits() {
    const { gpu, config: { outputScale, outputCap, vocabSize } } = this;
    this.encoder ??= gpu.device.createCommandEncoder();
    const pass = this.encoder.beginComputePass();
    dispatch(pass, this.output, this.count);
    pass.end();
    this.encoder.copyBufferToBuffer(this.buffers.logits, 0, this.readable, 0, 4 * vocabSize);
    this.submit();
    const logits = await gpu.read(this.readable, vocabSize);
    for (let i = 0; i < vocabSize; i++) logits[i] = soften(logits[i] * outputScale, outputCap);
    return logits;
  }

  submit() {
    if (this.encoder) this.gpu.device.queue.submit([this.encoder.finish()]);
    this.encoder = null;
  }

  /** Frees the memory of the GPU. */
  close() {
    this.gpu.device.destroy();
  }

  /** Returns the operations of a layer up to its attention, and the rest of them. */
  planLayer(own, layer, tile) {
    const { config, buffers, weights } = this, { x, branch, other } = buffers;
    const { heads, keyHeads, headDim, hidden, qkNorm, parallelResidual: parallel } = config;
    const name = (part) => `layers.${layer}.${part}`, [keys, values] = this.caches[layer];
    const norm = (part, from, to) => this.norm(own.norm, name(part), from, to);
    const product = (part, from, to, options) => this.product(name(part), from, to, { tile, ...options });
    const isFirst = config.normPlacement === 'pre' || config.normPlacement === 'sandwich';
    const attention = [], rest = [];
    /** Returns the input of a branch. */
    const enter = (operations, part, into) => {
      if (isFirst) operations.push(norm(part, x, into));
      return isFirst ? into : x;
    };
    const join = (part, from) => {
      if (weights.has(`${name(`${part}_post_norm`)}.scale`)) rest.push(norm(`${part}_post_norm`, from, from));
      rest.push(this.each(shaders.add({ size: config.width }), [x, from], config.width));
      if (config.normPlacement === 'post') rest.push(norm(`${part}_norm`, x, x));
    };

    const entered = enter(attention, 'attention_norm', buffers.entered);
    attention.push(product('attention.query', entered, buffers.query),
      product('attention.key', entered, keys, { inCache: true }), product('attention.value', entered, values, { inCache: true }));
    for (const [part, to, count, inCache] of [['query', buffers.query, heads, false], ['key', keys, keyHeads, true]]) {
      const perToken = qkNorm === 'head' ? count : 1;
      if (qkNorm !== 'none') attention.push(this.norm('rmsnorm', name(`attention.${part}_norm`), to, to, { perToken, inCache }));
      if (own.frequencies) attention.push(this.rotation(own.frequencies, to, count, inCache));
    }
    attention.push(this.attend(own, keys, values));
    rest.push(product('attention.output', buffers.mixed, branch));
    if (parallel === 'off' || !own.mlp) join('attention', branch);
    if (!own.mlp) return { attention, rest };

    const shared = parallel === 'off' || parallel === 'two_norms' ? null : entered;
    const second = shared ?? enter(rest, 'mlp_norm', buffers.second), isGated = ACTIVATIONS[own.mlp].gated;
    rest.push(product('mlp.up', second, buffers.up));
    if (isGated) rest.push(product('mlp.gate', second, buffers.gate));
    const used = isGated ? [buffers.up, buffers.gate] : [buffers.up];
    rest.push(this.each(shaders.activate({ name: own.mlp, size: hidden, isGated }), used, hidden));
    rest.push(product('mlp.down', buffers.up, other));
    if (parallel !== 'off') join('attention', branch); // after the MLP has read the same stream
    join('mlp', other);
    return { attention, rest };
  }

  planOutput() {
    const { config, buffers: { x, entered, logits } } = this, name = config.tied ? 'embedding.table' : 'output.table';
    const product = (from) => this.product(name, from, logits, { tile: 1, isLast: true });
    return config.finalNorm ? [this.norm(config.finalNorm, 'final_norm', x, entered), product(entered)] : [product(x)];
  }

  /** Returns the buffer of a tensor, which is uploaded once. */
  upload(name, read) {
    if (!this.uploaded.has(name)) this.uploaded.set(name, this.gpu.filled(read()));
    return this.uploaded.get(name);
  }

  product(part, from, to, { tile, inCache = false, isLast = false }) {
    const isTable = part.endsWith('.table'), name = isTable ? part : `${part}.kernel`, bias = `${part}.bias`;
    const { type, rows, columns, bytes, scales } = this.weights.stored(name), hasBias = !isTable && this.weights.has(bias);
    const used = [this.step, this.upload(name, () => bytes), from, to];
    if (scales) used.push(this.upload(`${name} scales`, () => scales));
    if (hasBias) used.push(this.upload(bias, () => this.weights.vector(bias)));
    const code = shaders.multiply({ type, rows, columns, hasScales: Boolean(scales), hasBias, tile, inCache, isLast });
    return this.gpu.operation(code, used, (count) => [Math.ceil(rows / shaders.ROWS), isLast ? 1 : Math.ceil(count / tile)]);
  }

  norm(kind, part, from, to, { perToken = 1, inCache = false } = {}) {
    const { weights, config: { epsilon, normZeroCentered } } = this, inPlace = from === to;
    const factors = () => Float32Array.from(weights.vector(`${part}.scale`), (each) => each + (normZeroCentered ? 1 : 0));
    const hasBias = weights.has(`${part}.bias`), size = weights.vector(`${part}.scale`).length;
    const used = [this.step, ...(inPlace ? [] : [from]), to, this.upload(`${part}.scale`, factors)];
    if (hasBias) used.push(this.upload(`${part}.bias`, () => weights.vector(`${part}.bias`)));
    const code = shaders.norm({ kind, size, epsilon, perToken, inPlace, inCache, hasBias });
    return this.gpu.operation(code, used, (count) => [count * perToken]);
  }

  rotation(frequencies, to, heads, inCache) {
    const half = frequencies.length, code = shaders.rotate({ heads, headDim: this.config.headDim, half, inCache });
    return this.each(code, [to, this.waves.get(String(frequencies)).buffer], half * heads);
  }

  attend(own, keys, values) {
    const { buffers: { query, scores, mixed, slopes }, config } = this;
    const code = shaders.attend({
      ...config, window: own.window, scale: own.scoreScale, cap: config.scoreCap, hasSlopes: Boolean(slopes),
    });
    const used = [this.step, query, keys, values, scores, mixed, ...(slopes ? [slopes] : [])];
    return this.gpu.operation(code, used, (count) => [config.heads, count]);
  }

  /** Returns an operation with a thread for each of `size` numbers per token. */
  each(code, buffers, size) {
    return this.gpu.operation(code, [this.step, ...buffers], (count) => [Math.ceil(count * size / shaders.THREADS)]);
  }
}

/** Returns the cosines and sines of the angles of some positions: shaders have none that are exact. */
function wavesOf(frequencies, factor, start, count) {
  const half = frequencies.length, waves = new Float32Array(2 * half * count);
  for (let t = 0, at = 0; t < count; t++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround((start + t) * frequencies[i]);
      waves[at++] = Math.cos(angle) * factor;
      waves[at++] = Math.sin(angle) * factor;
    }
  }
  return waves;
}

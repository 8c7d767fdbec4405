// A text on a model: what is cached of it, its next tokens, and where they look.

import { CHUNK } from './model.js';
import { best, chooseNext, softmax } from './sampling.js';
import { Tokenizer } from './tokenizer.js';

const ALTERNATIVES = 10;

export class Session {
  /** `model` is one of model.js, or of gpu_model.js. */
  constructor(description, model) {
    this.config = description.model;
    this.model = model;
    this.tokenizer = new Tokenizer(description.tokenizer);
    this.cached = { start: 0, ids: [] };
  }

  /**
   * Returns the first token that the model sees of a text of a length.
   *
   * As in Python: a text that outgrows the context goes on from its last half.
   */
  windowStart(length) {
    const { context } = this.config, half = Math.max(1, Math.floor(context / 2)), step = context + 1 - half;
    return length <= context ? 0 : step * Math.ceil((length - context) / step);
  }

  /**
   * Runs the model up to the last of the first `length` tokens of a text; yields what each chunk returns.
   *
   * What is cached of the text is not run again, but for the last token: its output is asked for.
   */
  *see(ids, length, attend = null) {
    const start = this.windowStart(length), wanted = ids.slice(start, length);
    if (this.cached.start !== start) this.cached = { start, ids: [] };
    const known = this.cached.ids;
    let at = 0;
    while (at < Math.min(known.length, wanted.length) && known[at] === wanted[at]) at++;
    if (at < Math.min(known.length, wanted.length)) known.length = at;
    at = Math.min(at, wanted.length - 1);
    while (at < wanted.length) {
      const chunk = wanted.slice(at, at + CHUNK), end = at + chunk.length;
      const done = this.model.forward(chunk, at, end === wanted.length ? attend : null);
      if (end > known.length) known.push(...wanted.slice(known.length, end));
      at = end;
      yield done;
    }
  }

  /** Yields each next token, and null where messages may come in. */
  async *generate(prompt, sampling) {
    const { tokenizer } = this, ids = [...prompt], ends = new Set(tokenizer.ends);
    const stream = tokenizer.stream();
    for (const id of ids) stream.push(id);
    let text = '', shown = 0;
    for (let drawn = 0; drawn < sampling.max_new_tokens; drawn++) {
      const began = performance.now();
      if (sampling.use_cache === false) this.cached = { start: 0, ids: [] };
      for (const _ of this.see(ids, ids.length)) yield null;
      const logits = await this.nextLogits();
      const id = chooseNext(logits, ids, sampling, prompt.length);
      const piece = { ...this.describe(id, logits), seconds: (performance.now() - began) / 1e3 };
      ids.push(id);
      if (ends.has(id)) return void (yield { ...piece, text: stream.flush(), ended: 'end_of_text' });
      text += stream.push(id);
      const stops = sampling.stop.some((each) => text.includes(each) || each === tokenizer.names.get(id));
      const ended = stops ? 'stop' : drawn + 1 === sampling.max_new_tokens ? 'length' : null;
      if (ended) text += stream.flush();
      yield { ...piece, text: text.slice(shown), ended };
      if (stops) return;
      shown = text.length;
    }
  }

  /** Yields each token of a text from `given` on as `describe` does, and null in between. */
  async *score(ids, given) {
    for (let at = given; at < ids.length; at++) {
      for (const _ of this.see(ids, at)) yield null;
      yield this.describe(ids[at], await this.nextLogits());
    }
  }

  async nextLogits() {
    return (await this.model.nextLogits()).subarray(0, this.tokenizer.size); // models have rows of padding
  }

  /** Returns a token with its probability and the likeliest ones in its place. */
  describe(id, logits) {
    const weights = softmax(logits);
    const token = (each) => ({ id: each, label: this.tokenizer.label(each), logprob: Math.log(weights[each]) });
    return { ...token(id), alternatives: best(logits, ALTERNATIVES).map(token) };
  }

  /** Returns how much the token at a position attends to those up to it: `[layers, heads, tokens]`. */
  async attention(ids, position) {
    const { heads, layers } = this.config, start = this.windowStart(position + 1), size = position + 1 - start;
    const weights = new Float32Array(layers.length * heads * size);
    const keep = (layer, head, row) => weights.set(row, (layer * heads + head) * size);
    for (const done of this.see(ids, position + 1, keep)) await done;
    return { start, layers: layers.length, heads, weights };
  }
}

// Writes text: from a prompt, on from its end, or on from another token within it.

import { number } from './dom.js';

export class Writer {
  constructor(backend, text, status) {
    Object.assign(this, { backend, text, status, aborter: null, onchange: () => {} });
  }

  get busy() {
    return this.aborter !== null;
  }

  stop() {
    this.aborter?.abort();
  }

  async write(prompt, sampling) {
    if (this.busy) return;
    this.text.set(await this.backend.tokenize(prompt));
    await this.more(sampling);
  }

  /** Goes on with another token in place of the one at a position. */
  async branch(position, alternative, sampling) {
    this.stop();
    await this.finished;
    const { tokens } = this.text, { alternatives } = tokens[position];
    this.text.set([...tokens.slice(0, position), { ...alternative, alternatives }]);
    await this.more(sampling);
  }

  more(sampling) {
    if (!this.busy) this.finished = this.run(sampling);
    return this.finished;
  }

  async run(sampling) {
    const { text, status, backend } = this, began = performance.now();
    const ids = text.tokens.map(({ id }) => id);
    this.aborter = new AbortController();
    this.onchange();
    let count = 0, first = 0;
    status.textContent = 'reading the prompt';
    try {
      for await (const piece of backend.generate({ ids, sampling, signal: this.aborter.signal })) {
        if (!count++) first = performance.now() - began;
        ids.push(piece.id);
        text.add(piece);
        const rate = count > 1 ? `, ${number((count - 1) / (performance.now() - began - first) * 1e3)} per second` : '';
        status.textContent = `${count} tokens${rate}; the first after ${number(Math.round(first))} ms`;
        if (piece.ended === 'end_of_text') status.textContent += '; end of text';
      }
      text.finish(await backend.decode(ids));
    } finally {
      this.aborter = null;
      this.onchange();
    }
  }
}

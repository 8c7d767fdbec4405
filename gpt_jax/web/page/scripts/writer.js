// Writes text: from a prompt, on from its end, or on from another token within it.

import { number } from './dom.js';

export class Writer {
  constructor(backend, text, status) {
    Object.assign(this, { backend, text, status, aborter: null, last: null, onchange: () => {}, onrun: () => {} });
  }

  get busy() {
    return this.aborter !== null;
  }

  stop() {
    this.aborter?.abort();
  }

  /** Writes a new text. */
  write(prompt, sampling) {
    return this.writeAfter(() => this.backend.tokenize(prompt), sampling);
  }

  /** Writes a new text after the tokens that a function returns. */
  writeAfter(read, sampling) {
    return this.extend(async () => this.text.set(await read()), sampling);
  }

  /** Goes on with another token in place of the one at a position. */
  async branch(position, alternative, sampling) {
    const before = this.text.tokens.slice(0, position), { alternatives } = this.text.tokens[position];
    this.stop();
    await this.finished;
    return this.extend(() => {
      this.text.set([...before, { ...alternative, alternatives }]);
      this.text.focus(position);
    }, sampling);
  }

  /** Goes on from the end. */
  more(sampling) {
    return this.extend(() => {}, sampling);
  }

  /** Writes what was written last once more, with other settings; nothing if the text is another by now. */
  again(settings) {
    const { last, text } = this, written = last && [...last.given, ...last.tokens];
    if (written?.length !== text.tokens.length || written.some((token, i) => token !== text.tokens[i])) return this.finished;
    const sampling = { ...last.sampling, ...settings };
    if (!last.tokens.at(-1).ended) sampling.max_new_tokens = last.tokens.length; // it was stopped
    return this.extend(() => text.set(text.tokens.slice(0, last.given.length)), sampling);
  }

  /** Shows a text that is known, of which the first `given` tokens were not drawn; `source` names it. */
  show(ids, given, source) {
    return this.run(async () => {
      this.status.textContent = `reading the text of ${source}`;
      this.text.set(await this.backend.score(ids, given));
      this.text.finish(await this.backend.decode(ids));
      this.status.textContent = `${counted(ids.length)} of ${source}`;
    });
  }

  /** Prepares the text, then adds tokens to it; nothing if this is being done. */
  extend(prepare, sampling) {
    return this.run((signal) => this.add(prepare, sampling, signal));
  }

  run(work) {
    if (this.busy) return this.finished;
    this.aborter = new AbortController();
    this.onchange();
    const done = work(this.aborter.signal).finally(() => {
      this.aborter = null;
      this.onchange();
    });
    this.finished = done.catch(() => {}); // the caller gets the error
    return done;
  }

  async add(prepare, sampling, signal) {
    const { text, status, backend } = this, began = performance.now();
    status.textContent = 'reading the prompt';
    await prepare();
    const ids = text.tokens.map(({ id }) => id), run = { given: text.tokens.slice(), tokens: [], sampling };
    let count = 0, first = 0;
    for await (const piece of backend.generate({ ids, sampling, signal })) {
      if (!count++) first = performance.now() - began;
      ids.push(piece.id);
      text.add(piece);
      run.tokens.push(piece);
      this.last = run;
      this.onrun(run);
      const rate = count > 1 ? `, ${number((count - 1) / (performance.now() - began - first) * 1e3)} per second` : '';
      status.textContent = `${counted(count)}${rate}; the first after ${number(Math.round(first))} ms`;
      if (piece.ended === 'end_of_text') status.textContent += '; end of text';
    }
    text.finish(await backend.decode(ids));
  }
}

const counted = (count) => `${count} ${count === 1 ? 'token' : 'tokens'}`;

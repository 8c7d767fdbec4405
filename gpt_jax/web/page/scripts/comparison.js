// Another model beside: the same prompt and settings, in a column of its own.

import { menu } from './controls.js';
import { h } from './dom.js';
import { TokenPanel } from './token_panel.js';
import { TokenText } from './token_text.js';
import { Writer } from './writer.js';

export class Comparison {
  /** `names` are of models that the backend also has; `start` runs an action and shows its error. */
  constructor(backend, names, { settings, start, onchange }) {
    Object.assign(this, { backend, names, settings, start, onchange, writer: null, text: null });
    this.menu = menu('Compare with', ['none', ...names], 0, (at) => this.pick(names[at - 1]));
    this.column = h('section', { class: 'panel result', 'aria-label': 'Text of the other model', hidden: true });
    this.side = h('div', { hidden: true });
    this.listeners = [];
  }

  get busy() {
    return Boolean(this.writer?.busy);
  }

  /** Calls a function with the chosen token of this column after each choice. */
  listen(listener) {
    this.listeners.push(listener);
  }

  pick(name) {
    this.stop();
    Object.assign(this, { writer: null, text: null });
    this.column.hidden = !name;
    this.side.hidden = true;
    if (name) this.fill(name);
    this.onchange();
  }

  close() {
    this.menu.querySelector('select').value = 0;
    this.pick(undefined);
  }

  fill(name) {
    const text = new TokenText(), status = h('p', { class: 'hint', role: 'status', 'aria-label': `Progress of ${name}` });
    const writer = new Writer(this.backend.of(name), text, status);
    writer.onchange = this.onchange;
    const pick = (position, alternative) => this.start(() => writer.branch(position, alternative, this.settings.read()));
    const panel = new TokenPanel(text, { pick });
    text.listen((chosen) => this.listeners.forEach((listener) => listener(chosen)));
    this.column.replaceChildren(h('h2', {}, name), text.element, status);
    this.side.replaceChildren(h('h3', {}, name), panel.element);
    Object.assign(this, { writer, text, status });
  }

  /** Writes a new text; an error is shown in the column. */
  write(prompt) {
    return this.run(() => this.writer.write(prompt, this.settings.read()));
  }

  /** Goes on from the end of the column's text. */
  more() {
    return this.run(() => this.text.tokens.length && this.writer.more(this.settings.read()));
  }

  async run(action) {
    const { status } = this;
    if (!this.writer) return;
    try {
      await action();
    } catch (error) {
      status.textContent = error.message;
    }
  }

  stop() {
    this.writer?.stop();
  }

  draw() {
    this.text?.draw();
  }
}

// A conversation: its messages, and the answer that is written to the last one.

import { h } from './dom.js';

export class Conversation {
  /** `again` is called when another answer is asked for. */
  constructor(backend, text, writer, { again }) {
    Object.assign(this, { backend, text, writer, messages: [], given: 0 });
    this.list = h('ol', { class: 'messages', 'aria-label': 'Messages', tabindex: 0 });
    this.regenerate = h('button', { type: 'button', title: 'another answer, with the next seed', onclick: again }, 'Regenerate');
    this.clear = h('button', { type: 'button', onclick: () => this.forget() }, 'New conversation');
    this.element = h('div', { hidden: true }, this.list, h('div', { class: 'row' }, this.regenerate, this.clear));
    this.draw();
  }

  get on() {
    return !this.element.hidden;
  }

  /** Adds a message of the reader and writes the answer; without an answer, takes it back. */
  async send(content, sampling) {
    const before = this.messages;
    this.messages = [...before, { role: 'user', content }];
    this.draw();
    try {
      await this.answer(sampling);
    } catch (error) {
      if (this.messages.at(-1).role === 'user') this.messages = before;
      this.draw();
      throw error;
    }
  }

  /** Writes another answer in place of the last. */
  async answerAgain(sampling) {
    if (this.messages.at(-1)?.role === 'assistant') this.messages = this.messages.slice(0, -1);
    this.draw();
    await this.answer(sampling);
  }

  async answer(sampling) {
    const asked = this.messages;
    await this.writer.writeAfter(async () => {
      const tokens = await this.backend.tokenizeChat(asked);
      this.given = tokens.length;
      return tokens;
    }, sampling);
    await this.take();
  }

  /** Takes the answer from the text, which another token or more of them may have changed. */
  async take() {
    const { messages, text } = this, drawn = text.tokens.slice(this.given);
    if (!messages.length) return;
    if (drawn.at(-1)?.ended === 'end_of_text') drawn.pop();
    const content = drawn.length ? await this.backend.decode(drawn.map(({ id }) => id)) : '';
    if (this.messages !== messages) return;
    const asked = messages.at(-1).role === 'assistant' ? messages.slice(0, -1) : messages;
    this.messages = [...asked, { role: 'assistant', content }];
    this.draw();
  }

  /** Goes on with messages, of which the last is an answer after `given` tokens. */
  resume(messages, given) {
    this.forget();
    Object.assign(this, { messages, given });
    this.draw();
  }

  forget() {
    this.messages = [];
    this.text.set([]);
    this.text.finish('');
    this.writer.onchange();
    this.draw();
  }

  draw() {
    const { messages, writer } = this;
    this.list.replaceChildren(...messages.map(({ role, content }) =>
      h('li', { class: role }, h('b', {}, { user: 'You', assistant: 'Model' }[role]), h('p', {}, content || '(nothing)'))));
    this.list.scrollTop = this.list.scrollHeight;
    this.regenerate.disabled = writer.busy || messages.at(-1)?.role !== 'assistant';
    this.clear.disabled = writer.busy || !messages.length;
  }
}

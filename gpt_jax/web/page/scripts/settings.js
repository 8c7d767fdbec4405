// The settings of sampling: a field each for those that are changed often, the others as given.

import { h } from './dom.js';

const FIELDS = [
  ['temperature', 'Temperature', { min: 0, max: 1e6, step: 'any' }, '0: always the likeliest token'],
  ['top_k', 'Top-k', { min: 0, step: 1 }, 'only the k likeliest tokens; 0: off'],
  ['top_p', 'Top-p', { min: 1e-9, max: 1, step: 'any' }, 'only the likeliest that reach this probability; 1: off'],
  ['max_new_tokens', 'Tokens', { min: 1, step: 1 }, 'at most as many as this after the prompt'],
  ['seed', 'Seed', { min: 0, max: 2 ** 32 - 1, step: 1 }, 'the same seed gives the same text'],
];
const DEFAULTS = {
  temperature: 0.8, top_k: 0, top_p: 1, max_new_tokens: 200, seed: 0, min_p: 0,
  repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, stop: [], use_cache: true,
};

export class Settings {
  constructor(given) {
    this.values = { ...DEFAULTS, ...given };
    this.inputs = new Map(FIELDS.map(([name, label, bounds, title]) => [name, h('input', {
      type: 'number', name, title, required: true, 'aria-label': label, value: this.values[name], ...bounds,
    })]));
    this.listeners = [];
    this.element = h('div', { class: 'settings', oninput: () => this.tell() }, FIELDS.map(([name, label, , title]) =>
      h('label', { title }, h('span', {}, label), this.inputs.get(name))));
  }

  /** Calls a function after each change of a field. */
  listen(listener) {
    this.listeners.push(listener);
  }

  tell() {
    for (const listener of this.listeners) listener();
  }

  /** Returns the fields by name, and as they are: out of bounds, too. */
  shown() {
    return Object.fromEntries([...this.inputs].map(([name, input]) => [name, input.value]));
  }

  /** Fills fields by name; other names have no effect. */
  fill(values) {
    for (const [name, input] of this.inputs) if (name in values) input.value = values[name];
    this.tell();
  }

  /** Returns the settings. Throws an error that names a field out of its bounds. */
  read() {
    for (const [name, input] of this.inputs) {
      if (!input.checkValidity()) throw new Error(`${input.getAttribute('aria-label')}: ${input.validationMessage}`);
      this.values[name] = input.valueAsNumber;
    }
    return { ...this.values };
  }
}

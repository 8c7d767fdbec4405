// The text as its tokens: each in the colour of its probability, or of the attention to it.

import { Scale } from './colours.js';
import { h, percent, visible } from './dom.js';

/** The tokens, and the choice among them: `pinned` by click or keyboard, `pointed` by the mouse. */
export class TokenText {
  constructor() {
    this.tokens = [];
    this.plain = '';
    this.pinned = null;
    this.pointed = null;
    this.weights = null; // of attention, by position; null: colours show probabilities
    this.listeners = [];
    this.list = h('div', {
      class: 'text', role: 'listbox', 'aria-label': 'Tokens of the text', onpointerleave: () => this.choose({ pointed: null }),
      onkeydown: (event) => this.move(event),
    });
    this.key = h('p', { class: 'hint key-line' });
    this.said = h('p', { class: 'unseen', 'aria-live': 'polite' });
    this.element = h('div', {}, this.list, this.key, this.said);
  }

  /** Returns the position of the token that is shown, or null. */
  get chosen() {
    return this.pointed ?? this.pinned;
  }

  listen(listener) {
    this.listeners.push(listener);
  }

  /** Replaces the tokens. */
  set(tokens) {
    this.tokens = [];
    this.list.replaceChildren();
    this.weights = null;
    this.keep({ pinned: null, pointed: null });
    tokens.forEach((token) => this.add(token));
    this.draw();
    this.tell();
  }

  add(token) {
    const position = this.tokens.length;
    token.element = h('span', {
      class: token.logprob === undefined ? 'piece given' : 'piece', role: 'option', 'aria-selected': 'false',
      tabindex: position === 0 ? 0 : -1,
      onpointerenter: (event) => event.pointerType === 'mouse' && this.choose({ pointed: position }),
      onclick: () => this.choose({ pinned: position, pointed: null }),
      onfocus: () => this.choose({ pinned: position, pointed: null }),
    }, shown(token.label));
    this.tokens.push(token);
    this.colour(token, position);
    this.list.append(token.element);
  }

  /** Chooses a token and moves the keyboard to it. */
  focus(position) {
    this.choose({ pinned: position, pointed: null });
    this.tokens[position].element.focus({ preventScroll: true });
  }

  /** Makes a text final: `plain` is what its tokens say. */
  finish(plain) {
    this.plain = plain;
    this.said.textContent = plain;
  }

  /** Shows attention to the tokens from `start` on, in place of probabilities; null: no more. */
  showWeights(weights) {
    this.weights = weights;
    this.draw();
  }

  draw() {
    this.tokens.forEach((token, position) => this.colour(token, position));
    const { weights } = this;
    this.key.replaceChildren(...(!this.tokens.length ? [] : weights
      ? [`Shade: how much the marked token reads each, in ${weights.name} `, this.scale().key('', percent)]
      : ['Shade: the probability of the token ', this.scale().key('', (value) => percent(1 - value))]));
  }

  scale() {
    return this.weights ? new Scale(0, Math.max(...this.weights.values)) : new Scale(0, 1, 'surprise');
  }

  colour({ element, logprob }, position) {
    const { weights } = this;
    const value = weights ? weights.values[position - weights.start] : logprob === undefined ? undefined : 1 - Math.exp(logprob);
    element.setAttribute('style', value === undefined ? '' : this.scale().style(value));
  }

  choose(changes) {
    const before = this.chosen;
    if (changes.pinned !== undefined && this.pinned !== changes.pinned) {
      const [old, now] = [this.tokens[this.pinned], this.tokens[changes.pinned]];
      (old ?? this.tokens[0])?.element.setAttribute('tabindex', -1);
      old?.element.setAttribute('aria-selected', 'false');
      now?.element.setAttribute('tabindex', 0);
      now?.element.setAttribute('aria-selected', 'true');
    }
    this.keep(changes);
    if (before === this.chosen) return;
    this.tokens[before]?.element.classList.remove('shown');
    this.tokens[this.chosen]?.element.classList.add('shown');
    this.tell();
  }

  keep(changes) {
    Object.assign(this, changes);
    this.list.classList.toggle('passing', this.pinned === null && this.pointed !== null);
  }

  tell() {
    for (const listener of this.listeners) listener(this.chosen);
  }

  move(event) {
    const last = this.tokens.length - 1, at = this.pinned ?? 0;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.tokens[Math.min(Math.max(to, 0), last)]?.element.focus();
  }
}

/** Returns the text of a token with its spaces and line ends, other invisible characters named. */
function shown(label) {
  if (label === '') return visible(label);
  return label.split(' ').map((part) => part && visible(part)).join(' ').replaceAll('↵', '↵\n');
}

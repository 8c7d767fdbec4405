// The chosen token: how it was predicted, and what else could have stood there.

import { h, nats, number, percent, visible } from './dom.js';
import { chosen, listen } from './state.js';

const EXPECTED = 4, WRITERS = 4, READ = 3;

export class TokenDetails {
  constructor(page) {
    this.page = page;
    const data = (name) => page.analyses.find((each) => each.name === name)?.data;
    this.losses = data('token_loss');
    this.parts = data('attribution');
    this.element = h('div', { class: 'details', 'aria-live': 'polite' });
    listen((changed) => (changed.has('pinned') || changed.has('pointed')) && this.draw());
  }

  draw() {
    const token = chosen(), { texts, tokens } = this.page;
    const name = h('p', {}, h('span', { class: 'token' }, visible(texts[token])),
      h('span', { class: 'hint' }, ` token ${token}, id ${tokens[token]}`));
    this.element.replaceChildren(...(this.losses ? this.prediction(token, name) : [name]));
  }

  prediction(token, name) {
    const { loss, probability, rank } = this.losses, before = token - 1;
    const own = token === 0 ? h('p', { class: 'hint' }, 'nothing predicts the first token')
      : h('p', {}, `probability ${percent(probability.at(before))}, rank ${number(rank.at(before))}, loss ${nats(loss.at(before))}`);
    const here = token === 0 ? h('div') : this.list('Expected here', before);
    return [h('div', {}, name, own), here, this.list('Expected next', token),
      ...(this.parts ? [this.writers(token)] : [])];
  }

  /** The heads and MLPs with the largest parts of the logit of the token, and what the heads read. */
  writers(token) {
    const title = (text) => h('span', { class: 'hint' }, text), written = title('Largest parts of its logit');
    if (token === 0) return h('div', { class: 'expected writers' }, written, '–');
    const heads = this.parts.next_heads.at(token - 1), mlps = this.parts.next_mlps.at(token - 1);
    const count = heads.shape[1];
    const parts = [...heads.values].map((value, i) => [`layer ${Math.floor(i / count)} head ${i % count}`, value])
      .concat([...mlps.values].map((value, layer) => [`layer ${layer} MLP`, value]));
    const sources = this.parts.next_sources;
    const read = sources ? [...sources.at(token - 1).values].slice(0, token)
      .map((value, i) => [h('span', { class: 'token' }, visible(this.page.texts[i]), ` (${i})`), value]) : [];
    return h('div', { class: 'expected writers' }, h('div', {}, written, largest(parts, WRITERS)),
      sources ? h('div', {}, title('Tokens that the heads read'), largest(read, READ)) : '');
  }

  list(title, position) {
    return h('div', { class: 'expected' }, h('span', { class: 'hint' }, title),
      alternatives(this.losses, position, EXPECTED, this.page.tokens[position + 1]));
  }
}

/** Returns a list of the parts that are largest in size, with their signs. */
function largest(parts, count) {
  const sorted = [...parts].sort(([, a], [, b]) => Math.abs(b) - Math.abs(a)).slice(0, count);
  return h('ol', { class: 'alternatives' }, sorted.map(([name, value]) =>
    h('li', {}, name, ' ', h('b', {}, (value > 0 ? '+' : '') + number(value)))));
}

/** Returns the most probable tokens after a position as bars; the one that comes is marked. */
export function alternatives({ choices, probabilities, vocabulary }, position, count, actual) {
  const ids = [...choices.at(position).values].slice(0, count);
  return h('ol', { class: 'alternatives' }, ids.map((id, index) => {
    const part = probabilities.at(position, index), bar = h('i', { 'aria-hidden': 'true' });
    bar.style.width = `${100 * part}%`;
    return h('li', { class: id === actual ? 'actual' : false, title: id === actual ? 'the token that comes' : false },
      h('span', { class: 'token' }, visible(vocabulary[id])), ` ${percent(part)}`, id === actual ? ' ✓' : '', bar);
  }));
}

// The chosen token: its probability, and what could have stood there, to go on from.

import { h, percent, visible } from './dom.js';

export class TokenPanel {
  /** `explain(position)` answers the button that asks for the reasons; null: there is no button. */
  constructor(text, { pick, explain = null }) {
    Object.assign(this, { text, pick, explain });
    this.element = h('div', {});
    text.listen(() => this.draw());
    this.draw();
  }

  draw() {
    const position = this.text.chosen, token = this.text.tokens[position];
    this.element.replaceChildren(...(token ? this.parts(token, position) : [
      h('p', { class: 'hint' }, 'Point at a token, or go to it by Tab and the arrow keys, to see its probability and ' +
        'what else could have stood there. Click it to keep it chosen.'),
    ]));
  }

  parts(token, position) {
    const name = h('p', {}, h('span', { class: 'token' }, visible(token.label)),
      h('span', { class: 'hint' }, ` token ${position}, id ${token.id}`));
    const why = this.explain && position > 0 ? [h('p', { class: 'why' },
      h('button', { type: 'button', onclick: () => this.explain(position) }, 'Explain this token'))] : [];
    if (token.logprob === undefined) return [name, h('p', { class: 'hint' }, 'of the prompt'), ...why];
    const { alternatives } = token, rank = alternatives.findIndex((each) => each.id === token.id) + 1;
    const place = rank ? `, rank ${rank}` : alternatives.length ? `, rank above ${alternatives.length}` : '';
    return [
      name,
      h('p', {}, `probability ${percent(Math.exp(token.logprob))}${place}`),
      ...(alternatives.length ? [h('h3', {}, 'Go on with')] : []),
      h('ol', { class: 'choices' }, alternatives.map((each) => this.alternative(each, each.id === token.id, position))),
      ...why,
    ];
  }

  alternative(each, isChosen, position) {
    const part = Math.exp(each.logprob), bar = h('i', { 'aria-hidden': 'true' });
    bar.style.width = `${100 * part}%`;
    return h('li', {}, h('button', {
      type: 'button', 'aria-current': isChosen, onclick: () => this.pick(position, each),
    }, h('span', { class: 'token' }, visible(each.label)), h('span', {}, percent(part)), bar));
  }
}

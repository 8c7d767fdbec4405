// The loss of every token, with what was expected in its place.

import { Scale } from './colours.js';
import { h, nats, number, percent } from './dom.js';
import { choose, chosen, state } from './state.js';
import { alternatives } from './token_details.js';
import { View } from './view.js';

export class TokensView extends View {
  constructor(analysis, page) {
    super(analysis, page);
    this.title = 'Tokens';
    const total = this.data.loss.values.reduce((sum, each) => sum + each, 0), count = page.texts.length - 1;
    this.summary = count < 1 ? '' : `Mean loss ${nats(total / count)} nats per token, perplexity ${number(Math.exp(total / count))}.`;
  }

  draw() {
    const { loss, probability, rank } = this.data;
    const scale = new Scale(0, loss.range()[1], 'surprise');
    this.rows = this.labels.map((label, position) => {
      const known = position > 0, before = position - 1;
      const values = known ? [nats(loss.at(before)), percent(probability.at(before)), number(rank.at(before))] : ['–', '–', '–'];
      return h('tr', { onclick: () => choose({ pinned: position, pointed: null }) },
        h('td', { class: 'number' }, String(position)),
        h('th', { scope: 'row' }, h('span', { class: 'token', style: known ? scale.style(loss.at(before)) : false }, label)),
        values.map((each) => h('td', { class: 'number' }, each)),
        h('td', {}, known ? alternatives(this.data, before, 5, this.page.tokens[position]) : 'nothing predicts the first token'));
    });
    const last = this.labels.length - 1;
    const next = h('tr', {}, h('td'), h('th', { scope: 'row' }, 'to come'), h('td'), h('td'), h('td'),
      h('td', {}, alternatives(this.data, last, 5)));
    const headings = ['', 'Token', 'Loss', 'Probability', 'Rank', 'Expected in its place'];
    this.element.replaceChildren(
      h('p', { class: 'value' }, this.summary),
      h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Loss of each token' },
        h('table', { class: 'losses' },
          h('thead', {}, h('tr', {}, headings.map((each, column) => h('th', { scope: 'col', class: column > 1 && column < 5 ? 'number' : false }, each)))),
          h('tbody', {}, this.rows, next))));
    this.update();
  }

  update() {
    this.rows.forEach((row, position) => {
      row.classList.toggle('pinned', position === state.pinned);
      row.classList.toggle('pointed', position === chosen());
    });
  }
}

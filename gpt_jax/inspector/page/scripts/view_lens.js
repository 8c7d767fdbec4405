// The logit lens: the prediction after each layer, at each position.

import { Scale } from './colours.js';
import { choice } from './controls.js';
import { cut, h, number, percent, visible } from './dom.js';
import { placeChart } from './place_chart.js';
import { choose, chosen } from './state.js';
import { tip } from './tip.js';
import { View } from './view.js';

const stageName = (stage) => (stage ? `layer ${stage - 1}` : 'embedding');

export class LensView extends View {
  constructor(analysis, page) {
    super(analysis, page);
    this.stages = this.data.choices.size('stage');
    this.readout = h('output', { class: 'readout', 'aria-live': 'polite' });
    this.place = h('div');
    this.lines = h('div', { class: 'columns' });
    this.shade = 'top';
    this.element.append(
      choice('Shade', [['top', 'probability of the prediction'], ['next', 'probability of the actual next token']],
        this.shade, (shade) => { this.shade = shade; this.draw(); }),
      this.place, this.lines);
  }

  describe(stage, position) {
    const { choices, probabilities, entropy, vocabulary, next_rank: rank } = this.data;
    const best = [...choices.at(stage, position).values].map(
      (id, index) => `${visible(vocabulary[id])} ${percent(probabilities.at(stage, position, index))}`);
    const actual = position + 1 < this.labels.length
      ? `; ${this.labels[position + 1]} comes, rank ${number(rank.at(stage, position))}` : '';
    return `${stageName(stage)}, after ${this.labels[position]} (${position}): ${best.join('  ')}; ` +
      `entropy ${number(entropy.at(stage, position))} bits${actual}`;
  }

  draw() {
    const { choices, probabilities, vocabulary, next_probability: next } = this.data;
    const scale = new Scale(0, 1), point = (text, event) => { this.readout.textContent = text; tip(text, event); };
    this.columns = this.labels.map(() => []);
    const rows = Array.from({ length: this.stages }, (_, stage) => {
      return h('tr', {}, h('th', { scope: 'row' }, stageName(stage)), this.labels.map((_, position) => {
        const id = choices.at(stage, position, 0);
        const value = this.shade === 'top' ? probabilities.at(stage, position, 0)
          : position + 1 < this.labels.length ? next.at(stage, position) : NaN;
        const cell = h('td', {
          style: Number.isFinite(value) ? scale.style(value) : false,
          class: id === this.page.tokens[position + 1] ? 'actual' : false,
          onpointermove: (event) => point(this.describe(stage, position), event),
          onpointerleave: () => point(''),
          onclick: () => choose({ pinned: position, pointed: null }),
        }, cut(visible(vocabulary[id]), 9));
        this.columns[position].push(cell);
        return cell;
      }));
    });
    const head = h('tr', {}, h('th', { scope: 'col' }, 'after'), this.labels.map((label, position) => {
      const cell = h('th', { scope: 'col' }, cut(label, 9));
      this.columns[position].push(cell);
      return cell;
    }));
    this.place.replaceChildren(
      h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Logit lens' },
        h('table', { class: 'lens' }, h('thead', {}, head), h('tbody', {}, rows))),
      h('p', { class: 'legend' }, scale.key('', percent), h('span', { class: 'hint' }, 'underlined: the token that does come next')),
      this.readout);
    this.update();
  }

  update() {
    const token = chosen(), { entropy, next_probability: next } = this.data;
    this.columns.forEach((cells, position) => cells.forEach((cell) => cell.classList.toggle('column', position === token)));
    if (!this.readout.textContent || !this.element.matches(':hover')) this.readout.textContent = this.describe(this.stages - 1, token);
    const names = Array.from({ length: this.stages }, (_, stage) => (stage ? String(stage - 1) : 'emb.'));
    const charts = [this.part(`Entropy after ${this.labels[token]} (${token}), bits`,
      placeChart('Entropy by layer', names, [['entropy', [...entropy.column(token)]]]))];
    if (token + 1 < this.labels.length) {
      charts.push(this.part(`Probability of ${this.labels[token + 1]}, which comes next`,
        placeChart('Probability of the next token by layer', names, [['probability', [...next.column(token)]]], percent)));
    }
    this.lines.replaceChildren(...charts);
  }
}

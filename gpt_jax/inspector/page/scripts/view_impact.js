// A number for each head and MLP: its part of a logit, or what its removal changes.

import { Scale } from './colours.js';
import { choice } from './controls.js';
import { h, number, table, visible } from './dom.js';
import { HeatMap } from './heat_map.js';
import { choose, chosen, state } from './state.js';
import { View } from './view.js';

/** A map of layers × (heads and whole branches), and the table; `branches` name its last columns. */
class ImpactView extends View {
  constructor(analysis, page, heads, branches) {
    super(analysis, page);
    [this.layers, this.heads] = heads.shape;
    this.columns = [...Array.from({ length: this.heads }, (_, head) => String(head)), ...branches];
    this.map = new HeatMap({
      label: this.title, columns: this.columns, cell: 40,
      rows: Array.from({ length: this.layers }, (_, layer) => `layer ${layer}`),
      describe: (layer, column, value) =>
        `layer ${layer}, ${column < this.heads ? 'head ' : ''}${this.columns[column]}: ${signed(value)}`,
      pick: (layer, head) => head < this.heads && choose({ layer, head }),
    });
    this.mapTitle = h('h3', { 'aria-live': 'polite' });
    this.left = h('div', {}, h('div', { class: 'part' }, this.mapTitle,
      h('p', { class: 'hint' }, 'layer × head. Click one to choose it in all views.'), this.map.element));
    this.element.append(
      h('div', { class: 'columns' }, this.left, this.part('The largest', table(analysis.rows, this.title))));
  }

  draw() {
    this.update();
  }

  /** Shows the heads' array and those of the branches, each of a number by layer. */
  show(heads, branches) {
    const values = Array.from({ length: this.layers }, (_, layer) =>
      [...heads.at(layer).values, ...branches.map((each) => each.at(layer))]).flat();
    this.map.show(values, both(values), { row: state.layer, column: state.head });
  }
}

/** The parts of a logit, and the tokens that the chosen head took its part from. */
export class AttributionView extends ImpactView {
  constructor(analysis, page) {
    super(analysis, page, analysis.data.heads, ['MLP']);
    const { token_text: token, against, against_text: other, position, logit, sources } = this.data;
    const less = against >= 0 ? ` less that of ${visible(other)}` : '';
    this.mapTitle.textContent =
      `Parts of the logit of ${visible(token)}${less} after ${this.labels[position]} (${position}): ${number(logit)} in all`;
    if (!sources) return;
    const rows = ['this head', 'all heads'];
    this.sources = new HeatMap({
      label: 'Parts by the token that was read', columns: this.labels, cell: 34, rows,
      describe: (row, column, value) => `${rows[row]} from ${this.labels[column]} (${column}): ${signed(value)}`,
      pick: (row, column) => choose({ pinned: column, pointed: null }),
    });
    this.sourcesTitle = h('h3', { 'aria-live': 'polite' });
    this.left.append(h('div', { class: 'part' }, this.sourcesTitle, this.sources.element));
  }

  update() {
    this.show(this.data.heads, [this.data.mlps]);
    if (!this.sources) return;
    const { layer, head } = state, { sources } = this.data, length = this.labels.length;
    const all = new Float32Array(length);
    sources.values.forEach((value, index) => { all[index % length] += value; });
    const values = [...sources.at(layer, head).values, ...all];
    this.sourcesTitle.textContent = `Read from, by layer ${layer}, head ${head}, and by all heads`;
    this.sources.show(values, both(values));
  }
}

/** What the removal of each part changes, over the text or at one token. */
export class AblationView extends ImpactView {
  constructor(analysis, page) {
    super(analysis, page, analysis.data.head_loss, ['attn.', 'MLP']);
    this.measure = 'loss';
    const token = visible(this.data.token_text);
    this.titles = {
      loss: () => `Change of the mean loss without it (${number(this.data.loss)} nats with all)`,
      loss_by_position: () => `Change of the loss of ${this.labels[this.token()]} (${this.token()}) without it, nats`,
      logit: () => `Change of the logit of ${token}, the prediction (${number(this.data.logit)} with all)`,
      probability: () => `Change of the probability of ${token}, the prediction (${number(this.data.probability)} with all)`,
    };
    const names = [['loss', 'mean loss'], ['loss_by_position', 'loss of the chosen token'],
      ['logit', 'logit'], ['probability', 'probability']];
    this.element.prepend(choice('Change of', names, this.measure, (measure) => {
      this.measure = measure;
      this.update();
    }));
  }

  /** The first token has no loss: the second is shown in its place. */
  token() {
    return Math.max(chosen(), 1);
  }

  update() {
    const arrays = ['head', 'attention', 'mlp'].map((part) => this.data[`${part}_${this.measure}`]);
    const [heads, ...branches] = this.measure === 'loss_by_position'
      ? arrays.map((each) => each.select(this.token() - 1)) : arrays;
    this.mapTitle.textContent = this.titles[this.measure]();
    this.show(heads, branches);
  }
}

function both(values) {
  const end = Math.max(...values.map(Math.abs).filter(Number.isFinite), 0);
  return new Scale(-end, end, 'diverging');
}

const signed = (value) => (value > 0 ? '+' : '') + number(value);

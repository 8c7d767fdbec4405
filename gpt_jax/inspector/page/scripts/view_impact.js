// A number for each head and MLP: its part of a logit, or what its removal does to the loss.

import { NamedArray } from './arrays.js';
import { Scale } from './colours.js';
import { h, number, table, visible } from './dom.js';
import { HeatMap } from './heat_map.js';
import { choose, state } from './state.js';
import { View } from './view.js';

/** A map of layers × (heads and the MLP), and the table. */
export class ImpactView extends View {
  constructor(analysis, page) {
    super(analysis, page);
    const { heads, mlps } = this.data;
    [this.layers, this.heads] = heads.shape;
    this.columns = Array.from({ length: this.heads }, (_, head) => String(head));
    if (mlps) this.columns.push('MLP');
    this.values = Array.from({ length: this.layers }, (_, layer) =>
      [...heads.at(layer).values, ...(mlps ? [mlps.at(layer)] : [])]).flat();
    this.map = new HeatMap({
      label: this.title, columns: this.columns, cell: 40,
      rows: Array.from({ length: this.layers }, (_, layer) => `layer ${layer}`),
      describe: (layer, column, value) => `${this.place(layer, column)}: ${signed(value)}`,
      pick: (layer, head) => head < this.heads && choose({ layer, head }),
    });
    this.element.append(h('div', { class: 'columns' },
      h('div', {},
        this.part(this.mapTitle(), h('p', { class: 'hint' }, 'layer × head. Click one to choose it in all views.'), this.map.element),
        ...this.more()),
      this.part('The largest', table(analysis.rows, this.title))));
  }

  place(layer, column) {
    return `layer ${layer}, ${column < this.heads ? `head ${column}` : 'MLP'}`;
  }

  mapTitle() {
    return 'Change of the loss without it, nats';
  }

  more() {
    return [];
  }

  draw() {
    const all = new NamedArray(this.values, ['cell'], [this.values.length]);
    const [low, high] = all.range(), end = Math.max(-low, high);
    this.scale = new Scale(-end, end, 'diverging');
    this.update();
  }

  update() {
    this.map.show(this.values, this.scale, { row: state.layer, column: state.head });
  }
}

/** The parts of a logit, and the tokens that the chosen head took its part from. */
export class AttributionView extends ImpactView {
  mapTitle() {
    const { token_text: token, against, against_text: other, position } = this.data;
    const less = against >= 0 ? ` less that of ${visible(other)}` : '';
    return `Parts of the logit of ${visible(token)}${less} after ${this.labels[position]} (${position}): ${number(this.data.logit)} in all`;
  }

  more() {
    if (!this.data.sources) return [];
    this.sourcesTitle = h('h3', { 'aria-live': 'polite' });
    this.sources = new HeatMap({
      label: 'Parts by the token that was read', columns: this.labels, cell: 34, rows: ['this head', 'all heads'],
      describe: (row, column, value) => `${['this head', 'all heads'][row]} from ${this.labels[column]} (${column}): ${signed(value)}`,
      pick: (row, column) => choose({ pinned: column, pointed: null }),
    });
    return [h('div', { class: 'part' }, this.sourcesTitle, this.sources.element)];
  }

  update() {
    super.update();
    if (!this.sources) return;
    const { layer, head } = state, { sources } = this.data, length = this.labels.length;
    const all = new Float32Array(length);
    sources.values.forEach((value, index) => { all[index % length] += value; });
    const values = [...sources.at(layer, head).values, ...all];
    const end = Math.max(...values.map(Math.abs));
    this.sourcesTitle.textContent = `Read from, by layer ${layer}, head ${head}, and by all heads`;
    this.sources.show(values, new Scale(-end, end, 'diverging'), {});
  }
}

const signed = (value) => (value > 0 ? '+' : '') + number(value);

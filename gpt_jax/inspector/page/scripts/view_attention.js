// The attention of all heads: to or from the chosen token, as small maps, and one enlarged.

import { Scale } from './colours.js';
import { choice, menu } from './controls.js';
import { h, percent } from './dom.js';
import { HeatMap } from './heat_map.js';
import { choose, chosen, state } from './state.js';
import { tip } from './tip.js';
import { View } from './view.js';

const LONG = 40; // tokens from which maps take the whole width
const KINDS = ['previous', 'duplicate', 'induction', 'first'], CLEAR = 0.4; // of the analysis of heads
const WHOLE = new Scale(0, 1);
const later = (row, column) => column > row; // tokens that a causal model cannot read

export class AttentionView extends View {
  constructor(analysis, page) {
    super(analysis, page);
    this.weights = this.data.weights;
    this.kind = this.weights.dims[1]; // 'head', or 'map' where heads have several
    [this.layers, this.heads, this.length] = this.weights.shape;
    this.direction = 'from';
    this.kinds = page.analyses.find((each) => each.name === 'heads')?.data;
    this.large = new HeatMap({
      label: 'Attention of one head', rows: this.labels, columns: this.labels, cell: 30, least: 11, hides: later,
      describe: (row, column, value) => `${this.labels[row]} (${row}) reads ${this.labels[column]} (${column}): ${percent(value)}`,
      format: percent, pick: (row) => choose({ pinned: row, pointed: null }),
    });
    const count = this.layers * this.heads;
    this.all = new HeatMap({
      label: 'Attention of all heads of the chosen token', columns: this.labels,
      rows: Array.from({ length: count }, (_, i) => `${Math.floor(i / this.heads)}.${i % this.heads}`),
      describe: (row, column, value) => this.describe(row, column, value), format: percent,
      pick: (row) => choose({ layer: Math.floor(row / this.heads), head: row % this.heads }),
      least: 8, height: count > 64 ? 7 : count > 24 ? 12 : 18,
    });
    this.largeTitle = h('h3', { 'aria-live': 'polite' });
    this.allTitle = h('h3', { 'aria-live': 'polite' });
    this.small = this.makeSmall();
    this.element.append(
      h('div', { class: this.length > LONG ? '' : 'columns' },
        h('div', { class: 'part' }, h('h3', {}, `Every ${this.kind}`),
          h('p', { class: 'hint' }, `A row is a layer and a column a ${this.kind}. Click one to enlarge it.`),
          this.grid()),
        h('div', { class: 'part large' }, this.largeTitle, this.large.element),
        h('div', { class: 'part' }, this.allTitle,
          choice('Show', [['from', 'what it reads'], ['to', 'what reads it']], this.direction,
            (direction) => { this.direction = direction; this.update(new Set(['pinned'])); }),
          this.all.element)));
  }

  describe(row, column, value) {
    const name = `layer ${Math.floor(row / this.heads)}, ${this.kind} ${row % this.heads}`;
    const here = this.labels[chosen()], there = this.labels[column];
    const [reader, read] = this.direction === 'from' ? [here, there] : [there, here];
    return `${name}: ${reader} reads ${read}: ${percent(value)}`;
  }

  /** Returns the kind of a head whose score is highest, if it is known and clear. */
  kindOf(layer, head) {
    const scores = KINDS.filter((kind) => this.kinds?.[kind]).map((kind) => [this.kinds[kind].at(layer, head), kind]);
    const [score, kind] = scores.sort(([a], [b]) => b - a)[0] ?? [0];
    return score >= CLEAR ? `, ${kind} token ${percent(score)}`.replace('induction token', 'induction') : '';
  }

  makeSmall() {
    return Array.from({ length: this.layers }, (_, layer) =>
      Array.from({ length: this.heads }, (_, head) => {
        const canvas = h('canvas', { width: this.length, height: this.length, 'aria-hidden': 'true' });
        const name = `layer ${layer}, ${this.kind} ${head}${this.kindOf(layer, head)}`;
        const button = h('button', {
          class: 'small', 'aria-label': name, 'aria-pressed': 'false',
          onclick: () => choose({ layer, head }),
          onpointermove: (event) => tip(name, event), onpointerleave: () => tip(''),
        }, canvas);
        return { button, canvas };
      }));
  }

  grid() {
    const grid = h('div', { class: 'grid' });
    grid.style.gridTemplateColumns = `1.4rem repeat(${this.heads}, minmax(1.2rem, 6rem))`;
    grid.append(h('span'), ...Array.from({ length: this.heads }, (_, head) => h('span', { class: 'axis' }, String(head))));
    this.small.forEach((row, layer) => {
      grid.append(h('span', { class: 'axis' }, String(layer)), ...row.map(({ button }) => button));
    });
    return h('div', { class: 'scroll' }, grid);
  }

  draw() {
    this.small.forEach((row, layer) => row.forEach(({ canvas }, head) => {
      const pen = canvas.getContext('2d'), image = pen.createImageData(this.length, this.length);
      this.weights.at(layer, head).values.forEach((value, i) => {
        const seen = i % this.length <= Math.floor(i / this.length);
        // The square root, so that weights of a few percent are seen at this size.
        image.data.set([...WHOLE.rgb(Math.sqrt(value)), seen ? 255 : 0], 4 * i);
      });
      pen.putImageData(image, 0, 0);
    }));
    this.update(new Set(['layer', 'pinned']));
  }

  update(changed) {
    const { layer, head } = state, token = chosen();
    if (changed.has('layer') || changed.has('head')) {
      this.small.forEach((row, i) => row.forEach(({ button }, j) =>
        button.setAttribute('aria-pressed', String(i === layer && j === head))));
      this.largeTitle.textContent = `Layer ${layer}, ${this.kind} ${head}${this.kindOf(layer, head)}`;
    }
    this.large.show(this.weights.at(layer, head).values, WHOLE, { row: token });
    const values = Array.from({ length: this.layers * this.heads }, (_, i) => {
      const map = this.weights.at(Math.floor(i / this.heads), i % this.heads);
      return [...(this.direction === 'from' ? map.at(token).values : map.column(token))];
    });
    const what = this.direction === 'from' ? 'reads' : 'is read by';
    this.allTitle.textContent = `What ${this.labels[token]} (${token}) ${what}, in every ${this.kind}`;
    this.all.show(values.flat(), WHOLE, { row: layer * this.heads + head, column: token });
  }
}

/** The rollout of the layers up to one. */
export class RolloutView extends View {
  constructor(analysis, page) {
    super(analysis, page);
    this.name = 'rollout';
    this.title = 'Rollout';
    this.layer = this.data.rollout.size('layer') - 1;
    this.map = new HeatMap({
      label: 'Attention rollout', rows: this.labels, columns: this.labels, cell: 30, hides: later, format: percent,
      describe: (row, column, value) => `${percent(value)} of ${this.labels[row]} (${row}) comes from ${this.labels[column]} (${column})`,
      pick: (row) => choose({ pinned: row, pointed: null }),
    });
    const layers = Array.from({ length: this.layer + 1 }, (_, layer) => `0 to ${layer}`);
    this.element.append(
      menu('Layers', layers, this.layer, (layer) => { this.layer = layer; this.update(); }), this.map.element);
  }

  draw() {
    this.update();
  }

  update() {
    const values = this.data.rollout.at(this.layer);
    this.map.show(values.values, new Scale(0, values.range()[1]), { row: chosen() });
  }
}

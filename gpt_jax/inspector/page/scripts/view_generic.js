// Any analysis, drawn by the dimensions of its data.

import { NamedArray } from './arrays.js';
import { Scale } from './colours.js';
import { menu } from './controls.js';
import { h, heading, number, table, visible } from './dom.js';
import { HeatMap } from './heat_map.js';
import { placeChart } from './place_chart.js';
import { choose, chosen, state } from './state.js';
import { View } from './view.js';

const TOKENS = ['position', 'source'];

/** A map of each matrix, with a menu for each dimension before; a line of each vector; its table. */
export class GenericView extends View {
  constructor(analysis, page) {
    super(analysis, page);
    this.maps = [];
    this.parts = h('div', { class: page.texts.length > 40 ? 'figures' : 'parts' });
    for (const [name, value] of this.arrays()) this.addArray(heading(name), value);
    this.element.append(this.parts);
    this.element.append(this.summary());
  }

  /** Returns what stands below the arrays: the table. */
  summary() {
    const { rows } = this.analysis;
    return rows.length > 1 ? this.part('In short', table(rows, this.title)) : '';
  }

  /** Returns the arrays to draw, with their names. */
  arrays() {
    return Object.entries(this.data).filter(([, value]) => value instanceof NamedArray && value.values.length);
  }

  /** Returns the labels of a dimension: tokens, the names that the data has for it, or numbers. */
  names(dim, count) {
    if (TOKENS.includes(dim) && count === this.labels.length) return this.labels;
    const named = this.data[`${dim}s`] ?? this.data[dim];
    if (Array.isArray(named) && named.length === count) {
      return named.map((each) => visible(String(each)).replaceAll('·', ' '));
    }
    if (dim === 'stage') return Array.from({ length: count }, (_, i) => (i ? `layer ${i - 1}` : 'embedding'));
    return Array.from({ length: count }, (_, index) => `${dim} ${index}`);
  }

  addArray(title, array) {
    const [low, high] = array.range();
    if (low === high) {
      this.parts.append(this.part(title, h('p', {}, `${number(low)}, the same everywhere`)));
    } else if (array.dims.length === 1) {
      const names = this.names(array.dims[0], array.shape[0]).map((each) => each.replace(/^layer /, ''));
      this.parts.append(this.part(title, placeChart(title, names, [[array.dims[0], [...array.values]]])));
    } else this.addMap(title, array);
  }

  addMap(title, array) {
    const leading = array.dims.slice(0, -2), at = leading.map(() => 0);
    const [rowDim, columnDim] = array.dims.slice(-2), [rows, columns] = array.shape.slice(-2);
    const token = (dim, index) => (TOKENS.includes(dim) ? ` (${index})` : '');
    const rowNames = this.names(rowDim, rows), columnNames = this.names(columnDim, columns);
    const short = columnNames.map((each) => each.replace(new RegExp(`^${columnDim} (?=\\d)`), ''));
    const heads = rowDim === 'layer' && columnDim === 'head';
    const map = new HeatMap({
      label: title, rows: rowNames, columns: short, cell: 34, longest: 14,
      describe: (row, column, value) =>
        `${rowNames[row]}${token(rowDim, row)}, ${columnNames[column]}${token(columnDim, column)}: ${number(value)}`,
      pick: (row, column) => {
        if (TOKENS.includes(columnDim)) choose({ pinned: column, pointed: null });
        else if (TOKENS.includes(rowDim)) choose({ pinned: row, pointed: null });
        else if (heads) choose({ layer: row, head: column });
      },
    });
    const [low, high] = array.range(), scale = new Scale(Math.min(0, low), Math.max(0, high));
    const show = () => map.show(array.at(...at).values, scale, heads ? { row: state.layer, column: state.head } : {
      row: rowDim === 'position' ? chosen() : null, column: columnDim === 'position' ? chosen() : null,
    });
    const menus = leading.map((dim, axis) => menu(heading(dim), this.names(dim, array.shape[axis]), 0, (index) => {
      at[axis] = index;
      show();
    }));
    this.maps.push(show);
    this.parts.append(this.part(title, h('p', { class: 'hint' }, `${rowDim} × ${columnDim}`), menus, map.element));
  }

  draw() {
    this.update();
  }

  update() {
    this.maps.forEach((show) => show());
  }
}

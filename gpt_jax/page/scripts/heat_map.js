// A matrix of colours with labels, a readout, and a cursor for the keyboard.

import { cut, h, number, table } from './dom.js';
import { tip } from './tip.js';

const LETTER = 7.4; // width of a letter of a label, in px
const TABLE_CELLS = 5000;

/**
 * A heat map.
 *
 * options: label (of the whole); rows, columns (labels); rowTitle, columnTitle; scale; describe(row,
 * column, value); pick(row, column); hides(row, column); cell (its largest size in px); unit.
 */
export class HeatMap {
  constructor(options) {
    this.options = { cell: 26, longest: 11, unit: '', describe: null, ...options };
    this.cursor = null;
    this.marked = {};
    this.canvas = h('canvas', {
      tabindex: 0, role: 'img', 'aria-label': `${options.label}; arrow keys move from cell to cell`,
      onpointermove: (event) => this.point(this.find(event), event),
      onpointerleave: () => this.point(null),
      onclick: (event) => this.pick(this.find(event)),
      onkeydown: (event) => this.press(event),
      onblur: () => this.point(null),
    });
    this.readout = h('output', { class: 'readout', 'aria-live': 'polite' });
    this.keyPlace = h('span');
    this.values = h('details', { class: 'values', ontoggle: () => this.fillTable() },
      h('summary', {}, 'Values as a table'));
    const cells = options.rows.length * options.columns.length;
    this.element = h('figure', { class: 'map' },
      h('div', { class: 'scroll' }, this.canvas),
      h('figcaption', {}, this.keyPlace, this.readout),
      cells > TABLE_CELLS || options.rows.length === 0 ? null : this.values);
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Shows a matrix of values, and marks a row or a column. */
  show(values, scale, marked = {}) {
    Object.assign(this, { data: values, scale, marked });
    this.draw();
    if (this.values.open) this.fillTable();
  }

  mark(marked) {
    this.marked = marked;
    this.draw();
  }

  value(row, column) {
    return this.data[row * this.options.columns.length + column];
  }

  draw() {
    const { rows, columns, longest, cell, hides } = this.options;
    const room = this.element.clientWidth;
    if (!this.data || !room) return;
    const width = (labels) => LETTER * Math.max(1, ...labels.map((each) => [...cut(each, longest)].length)) + 10;
    const left = Math.min(width(rows), 130);
    const size = Math.max(this.options.least ?? 14, Math.min(cell, Math.floor((room - left - 2) / columns.length)));
    const flat = columns.every((each) => LETTER * [...each].length + 4 <= size);
    const top = flat ? 20 : width(columns);
    const tall = this.options.height ?? size;
    Object.assign(this, { left, top, size, tall });
    const wide = left + size * columns.length + 2, high = top + tall * rows.length + 2;
    const ratio = window.devicePixelRatio || 1, canvas = this.canvas;
    [canvas.width, canvas.height] = [wide * ratio, high * ratio];
    [canvas.style.width, canvas.style.height] = [`${wide}px`, `${high}px`];
    const pen = canvas.getContext('2d'), style = getComputedStyle(this.element);
    const ink = style.getPropertyValue('--ink'), faint = style.getPropertyValue('--faint');
    pen.scale(ratio, ratio);
    const gap = size > 8 && tall > 6 ? 1 : 0;
    for (let row = 0; row < rows.length; row++) {
      for (let column = 0; column < columns.length; column++) {
        if (hides?.(row, column)) continue;
        const value = this.value(row, column);
        const [x, y] = [left + column * size, top + row * tall];
        if (Number.isFinite(value)) {
          pen.fillStyle = `rgb(${this.scale.rgb(value)})`;
          pen.fillRect(x, y, size - gap, tall - gap);
        } else {
          pen.strokeStyle = faint;
          pen.beginPath();
          pen.moveTo(x + 3, y + tall - 4);
          pen.lineTo(x + size - 4, y + 3);
          pen.stroke();
        }
      }
    }
    const { row: markedRow, column: markedColumn } = this.marked;
    pen.font = '12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace';
    pen.textBaseline = 'middle';
    const every = Math.ceil(13 / tall);
    rows.forEach((text, row) => {
      if (row % every && row !== markedRow) return;
      pen.fillStyle = row === markedRow ? ink : faint;
      pen.textAlign = 'right';
      pen.fillText(cut(text, longest), left - 6, top + (row + 0.5) * tall);
    });
    const skip = flat ? 1 : Math.ceil(12 / size);
    columns.forEach((text, column) => {
      if (column % skip && column !== markedColumn) return;
      pen.fillStyle = column === markedColumn ? ink : faint;
      pen.save();
      pen.translate(left + (column + 0.5) * size, top - 6);
      if (flat) pen.translate(0, -4);
      else pen.rotate(-Math.PI / 2);
      pen.textAlign = flat ? 'center' : 'left';
      pen.fillText(flat ? text : cut(text, longest), 0, 0);
      pen.restore();
    });
    pen.strokeStyle = ink;
    pen.lineWidth = 1.5;
    const all = [size * columns.length - gap, tall * rows.length - gap];
    if (markedRow != null) pen.strokeRect(left, top + markedRow * tall, all[0], tall - gap);
    if (markedColumn != null) pen.strokeRect(left + markedColumn * size, top, size - gap, all[1]);
    if (this.cursor) {
      pen.lineWidth = 2.5;
      pen.strokeRect(left + this.cursor[1] * size, top + this.cursor[0] * tall, size - gap, tall - gap);
    }
    this.keyPlace.replaceChildren(this.scale.key(this.options.unit, this.options.format));
  }

  find(event) {
    const { rows, columns, hides } = this.options;
    const column = Math.floor((event.offsetX - this.left) / this.size);
    const row = Math.floor((event.offsetY - this.top) / this.tall);
    const inside = row >= 0 && row < rows.length && column >= 0 && column < columns.length;
    return inside && !hides?.(row, column) ? [row, column] : null;
  }

  text([row, column]) {
    const value = this.value(row, column), { rows, columns, describe, format = number } = this.options;
    return describe ? describe(row, column, value) : `${rows[row]}, ${columns[column]}: ${format(value)}`;
  }

  /** Shows what is at a cell, beside the pointer and below the map. */
  point(cell, event) {
    const same = String(cell) === String(this.cursor);
    this.cursor = cell;
    tip(cell && event ? this.text(cell) : '', event);
    if (same) return;
    this.readout.textContent = cell ? this.text(cell) : '';
    this.draw();
  }

  pick(cell) {
    if (cell) this.options.pick?.(...cell);
  }

  press(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === 'Enter' || event.key === ' ') this.pick(this.cursor);
    else if (!step) return;
    else {
      const { rows, columns } = this.options, [row, column] = this.cursor ?? [0, 0];
      const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
      this.point(this.cursor
        ? [within(row + step[0], rows.length), within(column + step[1], columns.length)] : [0, 0]);
    }
    event.preventDefault();
    event.stopPropagation();
  }

  fillTable() {
    if (!this.values.open) return;
    const { rows, columns, label, format = number } = this.options;
    const body = rows.map((row, i) => [row, ...columns.map((_, j) => format(this.value(i, j)))]);
    this.values.replaceChildren(this.values.firstChild, table([['', ...columns], ...body], label));
  }
}

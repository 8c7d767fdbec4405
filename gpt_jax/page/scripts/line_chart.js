// A chart of curves: a band around each, a zoom that charts share, and values at a cursor.

import { precise, rangeOf, tickText } from './axis.js';
import { firstFrom, nearest } from './curves.js';
import { h } from './dom.js';
import { Plot, strokeClass, swatch } from './plot.js';
import { tip } from './tip.js';

const FEW = 40; // points of a curve up to which each is drawn
const LEAST_DRAG = 6, TIP_LINES = 14; // px; lines in the bubble
const ROOM = 0.04; // of the range of y, above and below
const END = 1 + 1e-12; // keeps the last point in its range in spite of rounding
const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
let chartCount = 0;

/**
 * A chart of lines: {name, colour, dash, x, y, low, high, raw, text}.
 *
 * `low` and `high` bound a band; `raw` is drawn faintly below y; `text(i)` adds to the value at a
 * point. Marks are {x, text}. `shown` is the XRange that the chart shares.
 */
export class LineChart extends Plot {
  constructor({ shown, ...options }) {
    super({ hint: 'Arrow keys read values; plus and minus zoom, 0 shows all.', ...options });
    Object.assign(this, { shown, lines: [], marks: [], axis: {}, id: `plot-${chartCount++}` });
    const { svg } = this;
    svg.addEventListener('pointermove', (event) => this.move(event));
    svg.addEventListener('pointerleave', () => this.leave());
    svg.addEventListener('pointerdown', (event) => this.press(event));
    svg.addEventListener('pointerup', (event) => this.release(event));
    svg.addEventListener('pointercancel', () => this.release(null));
    svg.addEventListener('dblclick', () => shown.set(null));
    svg.addEventListener('keydown', (event) => this.key(event));
    svg.addEventListener('blur', () => this.leave());
    shown.listen(() => this.draw());
  }

  /**
   * Shows lines; axis: xTitle, logX, formatX (of ticks), sayX (of the cursor),
   * formatY, sayY, and `whole`, the range of x that charts share.
   */
  show(lines, { marks = [], ...axis } = {}) {
    Object.assign(this, { lines, marks, axis: { formatY: tickText, sayX: tickText, ...axis } });
    const named = lines.length > 1 ? lines : [];
    this.legend.replaceChildren(...named.map((each) => swatch(each.name, each.colour, each.dash)));
    this.draw();
  }

  draw() {
    const { logX } = this.axis, range = this.shown.range;
    this.whole = this.axis.whole ?? rangeOf(this.lines.map((line) => line.x), logX);
    if (!this.whole || !this.lines.length) {
      this.svg.replaceChildren();
      return;
    }
    const xRange = range ?? this.whole;
    const marks = this.layOut(xRange, this.yRange(xRange), this.axis);
    if (!marks) return;
    const clip = `${this.id}-clip`;
    this.cursor = h('g', { class: 'cursor' });
    const { left, top } = this, [width, height] = [this.right - left, this.bottom - top];
    this.selection = h('rect', { class: 'selection', y: top, height, width: 0 });
    this.svg.replaceChildren(
      h('clipPath', { id: clip }, h('rect', { x: left, y: top - 4, width: width + 4, height: height + 8 })),
      ...marks,
      h('g', { 'clip-path': `url(#${clip})` },
        this.marks.map((each) => this.mark(each)), this.lines.map((line) => this.curve(line))),
      this.selection, this.cursor);
  }

  /** Returns the range of y within a range of x, with some room. */
  yRange(xRange) {
    const parts = this.lines.flatMap((line) => {
      const from = Math.max(firstFrom(line.x, xRange[0]) - 1, 0), to = firstFrom(line.x, END * xRange[1]) + 1;
      return [line.y, line.low, line.high, line.raw].flatMap((each) => (each ? [each.slice(from, to)] : []));
    });
    const [low, high] = rangeOf(parts, this.log) ?? [1, 10];
    if (this.log) return [low / (high / low) ** ROOM, high * (high / low) ** ROOM];
    const room = (high - low) * ROOM;
    return [low >= 0 && low < room ? 0 : low - room, high + room];
  }

  curve(line) {
    const points = line.x.length <= FEW ? line.x.map((x, i) => this.has(x, line.y[i]) && h('circle', {
      cx: this.x.place(x), cy: this.y.place(line.y[i]), r: 2.7,
    })).filter(Boolean) : [];
    return h('g', { class: strokeClass(line.colour, line.dash) },
      line.low && h('path', { class: 'band', d: this.band(line) }),
      line.raw && h('path', { class: 'raw', d: this.path(line.x, line.raw) }),
      h('path', { class: 'line', d: this.path(line.x, line.y) }), points);
  }

  mark({ x, text }) {
    if (x < this.x.low || x > this.x.high) return null;
    const place = this.x.place(x);
    return h('g', { class: 'mark' },
      h('line', { x1: place, x2: place, y1: this.top, y2: this.bottom }),
      h('path', { d: `M${place - 5} ${this.top}h10l-5 8z`, role: 'img', 'aria-label': text }));
  }

  has(x, y) {
    return Number.isFinite(y) && (!this.log || y > 0) && (!this.axis.logX || x > 0);
  }

  point(x, y) {
    return `${this.x.place(x).toFixed(1)} ${this.y.place(y).toFixed(1)}`;
  }

  path(xs, ys) {
    let text = '', drawing = false;
    xs.forEach((x, i) => {
      const known = this.has(x, ys[i]);
      if (known) text += `${drawing ? 'L' : 'M'}${this.point(x, ys[i])}`;
      drawing = known;
    });
    return text;
  }

  /** Returns the outline of the band, in a piece for each run of known values. */
  band({ x, low, high }) {
    let text = '', piece = [];
    const close = () => {
      const above = piece.map((i) => this.point(x[i], high[i]));
      const below = piece.map((i) => this.point(x[i], low[i])).reverse();
      if (piece.length) text += `M${[...above, ...below].join('L')}Z`;
      piece = [];
    };
    x.forEach((_, i) => (this.has(x[i], low[i]) && this.has(x[i], high[i]) ? piece.push(i) : close()));
    close();
    return text;
  }

  /** Shows the values of all lines near a place; returns whether there are any. */
  read(x, event) {
    let at = null;
    for (const line of this.lines) {
      if (!line.x.length) continue;
      const found = line.x[nearest(line.x, x)];
      if (at === null || Math.abs(found - x) < Math.abs(at - x)) at = found;
    }
    if (at === null || !this.x || at < this.x.low * (1 - 1e-9) || at > this.x.high * (1 + 1e-9)) return false;
    const { sayX, sayY = precise } = this.axis, rows = [], dots = [];
    for (const line of this.lines) {
      const i = nearest(line.x, at), value = line.y[i];
      const own = line.x.length > 1 ? (line.x.at(-1) - line.x[0]) / (line.x.length - 1) : 0;
      if (!line.x.length || Math.abs(line.x[i] - at) > own) continue;
      const elsewhere = line.x[i] === at ? '' : ` (${sayX(line.x[i])})`;
      rows.push([line, `${sayY(value)}${line.text?.(i) ?? ''}${elsewhere}`]);
      if (this.has(line.x[i], value)) {
        dots.push(h('circle', {
          class: strokeClass(line.colour, false), cx: this.x.place(line.x[i]), cy: this.y.place(value), r: 4,
        }));
      }
    }
    const place = this.x.place(at), near = this.marks.filter((mark) => Math.abs(this.x.place(mark.x) - place) < 8);
    this.cursor.replaceChildren(h('line', { x1: place, x2: place, y1: this.top, y2: this.bottom }), ...dots);
    this.at = at;
    const box = this.svg.getBoundingClientRect();
    const row = ([line, text]) => h('div', { class: 'tip-row' },
      swatch(line.name, line.colour, line.dash), h('b', {}, text));
    tip(h('div', {}, h('div', {}, sayX(at)),
      rows.slice(0, TIP_LINES).map(row),
      rows.length > TIP_LINES ? h('div', {}, `and ${rows.length - TIP_LINES} more`) : null,
      near.map((mark) => h('div', {}, `▼ ${mark.text}`))),
    event ?? { clientX: box.left + place, clientY: box.top + this.top });
    if (!event) {
      const values = rows.map(([line, text]) => `${line.name} ${text}`);
      this.readout.textContent = [sayX(at), ...values, ...near.map((mark) => mark.text)].join('; ');
    }
    return true;
  }

  move(event) {
    if (!this.x) return;
    if (this.dragged != null) {
      const [from, to] = [this.dragged, this.inside(event)].sort((a, b) => a - b);
      this.selection.setAttribute('x', from);
      this.selection.setAttribute('width', to - from);
    }
    if (!this.read(this.x.value(event.offsetX), event)) this.leave();
  }

  inside(event) {
    return Math.min(Math.max(event.offsetX, this.left), this.right);
  }

  leave() {
    tip('');
    this.cursor?.replaceChildren();
  }

  press(event) {
    if (event.button !== 0 || !this.x) return;
    this.dragged = this.inside(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  /** Ends a drag: shows the part that was dragged over. */
  release(event) {
    const from = this.dragged;
    this.dragged = null;
    this.selection?.setAttribute('width', 0);
    if (from == null || !event) return;
    const to = this.inside(event);
    if (Math.abs(to - from) < LEAST_DRAG) return;
    this.leave();
    this.shown.set([from, to].sort((a, b) => a - b).map((place) => this.x.value(place)));
  }

  key(event) {
    const longest = this.lines.reduce((most, line) => (line.x.length > most.length ? line.x : most), []);
    if (!longest.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key];
    const first = firstFrom(longest, this.x.low), last = firstFrom(longest, END * this.x.high) - 1;
    const center = this.at ?? (this.x.low + this.x.high) / 2;
    if (step !== undefined) {
      const from = this.at == null ? (step > 0 ? first - 1 : last + 1) : nearest(longest, this.at);
      this.read(longest[Math.min(Math.max(from + step, first), last)], null);
    } else if (event.key === '+' || event.key === '=') this.shown.scale(0.5, center, this.whole);
    else if (event.key === '-') this.shown.scale(2, center, this.whole);
    else if (event.key === '0' || event.key === 'Escape') this.shown.set(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

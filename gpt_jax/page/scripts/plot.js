// The common part of charts with two axes: a title, the axes, the colours, a readout.

import { Axis, tickText } from './axis.js';
import { h } from './dom.js';

const TEXT = 7.1, LETTER_HIGH = 12; // width of a letter of a tick, its height
const COLOURS = 8;

/** Returns the classes of a line or point: its colour, and a dash. */
export function strokeClass(colour, dash) {
  return `series-${colour % COLOURS}${dash || colour >= COLOURS ? ' dashed' : ''}`;
}

/** Returns an entry of a legend. */
export function swatch(name, colour, dash) {
  return h('span', { class: `swatch ${strokeClass(colour, dash)}` }, name);
}

/** The frame of a chart; `draw` of a subclass fills it when its width is known. */
export class Plot {
  /** options: title, unit, log (of y), tall (in px), hint (for the keyboard). */
  constructor(options) {
    this.options = { unit: '', log: false, tall: 220, hint: '', ...options };
    this.log = this.options.log;
    const { title, unit, tall, hint } = this.options;
    this.logButton = h('button', {
      class: 'quiet', 'aria-pressed': String(this.log), title: 'Logarithmic y axis',
      'aria-label': `Logarithmic y axis of ${title}`,
      onclick: () => {
        this.log = !this.log;
        this.logButton.setAttribute('aria-pressed', String(this.log));
        this.draw();
      },
    }, 'log');
    this.svg = h('svg', {
      class: 'canvas', height: tall, tabindex: 0, role: 'img',
      'aria-label': `${title}${unit && `, ${unit}`}. ${hint}`,
    });
    this.legend = h('figcaption', { class: 'legend' });
    this.readout = h('output', { class: 'unseen', 'aria-live': 'polite' });
    this.element = h('figure', { class: 'plot' },
      h('div', { class: 'plot-title' },
        h('h3', {}, title, unit && h('span', { class: 'unit' }, ` ${unit}`)), this.logButton),
      this.legend, this.svg, this.readout);
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Returns the x and y axis of ranges, and their drawing; null if there is no room yet. */
  layOut(xRange, yRange, { xTitle, logX = false, formatX = tickText, formatY = tickText }) {
    const wide = this.element.clientWidth, { tall } = this.options;
    if (!wide) return null;
    const top = 8, bottom = tall - 38;
    const ticks = new Axis(yRange, [bottom, top], this.log).ticks(Math.max(3, (bottom - top) / 30));
    const left = 12 + TEXT * Math.max(3, ...ticks.map((tick) => formatY(tick).length));
    const x = new Axis(xRange, [left, wide - 14], logX), y = new Axis(yRange, [bottom, top], this.log);
    const marks = [
      ticks.map((tick) => [
        h('line', { class: 'rule', x1: left, x2: wide - 14, y1: y.place(tick), y2: y.place(tick) }),
        h('text', { x: left - 7, y: y.place(tick) + LETTER_HIGH / 3, 'text-anchor': 'end' }, formatY(tick))]),
      x.ticks(Math.max(2, (wide - left) / 95)).map((tick) => [
        h('line', { class: 'rule', x1: x.place(tick), x2: x.place(tick), y1: bottom, y2: bottom + 4 }),
        h('text', { x: x.place(tick), y: bottom + 17, 'text-anchor': 'middle' }, formatX(tick))]),
      [[h('text', {
        class: 'axis-title', x: (left + wide - 14) / 2, y: tall - 4, 'text-anchor': 'middle',
      }, xTitle)]],
    ].flat(2);
    this.svg.setAttribute('width', wide);
    this.svg.setAttribute('viewBox', `0 0 ${wide} ${tall}`);
    Object.assign(this, { x, y, left, right: wide - 14, top, bottom });
    return marks;
  }
}

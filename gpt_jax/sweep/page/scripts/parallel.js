// Parallel coordinates: an axis for each knob and the metric, a line for each trial.

import { Axis, precise, rangeOf, tickText } from './axis.js';
import { Scale } from './colours.js';
import { cut, h } from './dom.js';
import { followTheme } from './theme.js';
import { tip } from './tip.js';
import { describe, lastValue } from './trials.js';

const TALL = 340, TOP = 34, BOTTOM = TALL - 14, LEAST_GAP = 110; // px
const FAINTEST = 0.3; // of the scale of colours: the worst trial must be seen

/** The chart; the better a trial, the stronger its colour. */
export class ParallelCoordinates {
  constructor({ knobs, metric, direction }) {
    Object.assign(this, { knobs, metric, sign: direction === 'maximize' ? -1 : 1, trials: [] });
    this.svg = h('svg', { class: 'canvas', height: TALL, role: 'img' });
    this.element = h('figure', { class: 'plot parallel' },
      h('div', { class: 'plot-title' }, h('h3', {}, 'Parallel coordinates',
        h('span', { class: 'unit' }, ' the better, the stronger the colour'))),
      h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Parallel coordinates' }, this.svg));
    new ResizeObserver(() => this.draw()).observe(this.element);
    followTheme(() => this.draw());
  }

  show(trials) {
    const known = trials.filter((trial) => Number.isFinite(lastValue(trial)));
    this.trials = known.sort((a, b) => this.sign * (lastValue(b) - lastValue(a))); // the best is drawn last
    this.svg.setAttribute('aria-label', `Parallel coordinates. ${this.trials.map(
      (trial) => `${describe(trial)}, ${this.metric} ${precise(lastValue(trial))}`).reverse().join('; ')}`);
    this.draw();
  }

  draw() {
    const columns = [
      ...this.knobs.map((knob) => ({ name: knob.name, of: (trial) => knob.place(trial), log: knob.log, knob })),
      { name: this.metric, of: lastValue, log: false },
    ];
    const wide = Math.max(this.element.clientWidth, LEAST_GAP * (columns.length - 1) + 120);
    if (!this.element.clientWidth || !this.trials.length) {
      this.svg.replaceChildren();
      return;
    }
    columns.forEach((column, index) => {
      column.x = 60 + (index / (columns.length - 1)) * (wide - 120);
      const range = column.knob?.choices ? [0, column.knob.choices.length - 1]
        : rangeOf([this.trials.map(column.of)], column.log);
      column.axis = range && new Axis(range, [BOTTOM, TOP], column.log);
    });
    const drawn = columns.filter(({ axis }) => axis);
    const scale = new Scale(0, 1, 'sequential'), last = Math.max(this.trials.length - 1, 1);
    const lines = this.trials.map((trial, index) => {
      const share = this.trials.length > 1 ? index / last : 1;
      return this.line(trial, drawn, `rgb(${scale.rgb(FAINTEST + (1 - FAINTEST) * share)})`);
    });
    this.svg.setAttribute('width', wide);
    this.svg.setAttribute('viewBox', `0 0 ${wide} ${TALL}`);
    this.svg.replaceChildren(...lines, ...drawn.flatMap((column) => this.axisOf(column)));
  }

  line(trial, columns, stroke) {
    let path = '', drawing = false;
    for (const { x, axis, of } of columns) {
      const value = of(trial), known = Number.isFinite(value);
      if (known) path += `${drawing ? 'L' : 'M'}${x.toFixed(1)} ${axis.place(value).toFixed(1)}`;
      drawing = known;
    }
    const seen = h('path', { d: path, stroke, class: trial.state === 'pruned' ? 'pruned' : false });
    const words = `${describe(trial)}\n${this.metric}: ${precise(lastValue(trial))}`;
    const hit = h('path', {
      d: path, class: 'hit',
      onpointermove: (event) => {
        seen.classList.add('chosen');
        tip(words, event);
      },
      onpointerleave: () => {
        seen.classList.remove('chosen');
        tip('');
      },
    });
    return h('g', {}, seen, hit);
  }

  axisOf({ name, x, axis, knob }) {
    const ticks = knob?.choices ? knob.choices.map((_, index) => index) : axis.ticks(6);
    const format = (value) => (knob ? knob.tick(value) : tickText(value));
    return [
      h('line', { class: 'rule', x1: x, x2: x, y1: TOP, y2: BOTTOM }),
      h('text', { class: 'name', x, y: 16, 'text-anchor': 'middle' }, cut(name, 18)),
      ...ticks.map((tick) => h('text', { x: x + 5, y: axis.place(tick) + 4 }, format(tick))),
    ];
  }
}

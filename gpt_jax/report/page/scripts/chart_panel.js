// The charts, and the controls that they share.

import { precise, rangeOf, tickText } from './axis.js';
import { choice } from './controls.js';
import { h } from './dom.js';
import { LineChart } from './line_chart.js';
import { strokeClass, swatch } from './plot.js';
import { lineOf, xAxes } from './series.js';
import { XRange } from './x_range.js';

const SMOOTHING = 0.6; // at first

const percents = {
  formatY: (value) => `${tickText(Number((100 * value).toPrecision(6)))}%`,
  sayY: (value) => `${precise(100 * value)}%`,
};

/** All charts of groups of runs; charts of several metrics are split where there are groups. */
export class ChartPanel {
  constructor({ groups, charts }) {
    this.groups = groups;
    this.runs = groups.flatMap((group) => group.runs);
    this.hidden = new Set();
    this.xAxes = xAxes(this.runs);
    Object.assign(this, { xAxis: this.xAxes[0], logX: false, weight: SMOOTHING, shown: new XRange() });
    const large = groups.length > 1 ? 2 : 1;
    this.plots = charts.flatMap((chart) => this.split(chart)).map((chart, index) => {
      const { title, unit, log } = chart, tall = index < large ? 320 : 220;
      return { chart, plot: new LineChart({ title, unit, log, tall, shown: this.shown }) };
    });
    const elements = this.plots.map(({ plot }) => plot.element);
    const seeds = groups.some((group) => group.runs.length > 1)
      ? ' Runs that differ by their seed only are one line, their mean, in a band from the lowest to the highest.'
      : '';
    this.element = h('div', {}, this.controls(),
      h('p', { class: 'hint' }, `Drag over a chart to zoom; double-click shows all.${seeds}`),
      h('div', { class: `plots ${large > 1 ? 'two' : 'one'}` }, elements.slice(0, large)),
      h('div', { class: 'plots' }, elements.slice(large)));
    this.update();
  }

  split(chart) {
    if (this.groups.length === 1) return [chart];
    return chart.lines.map((line) => ({
      ...chart, lines: [line], title: chart.lines.length > 1 ? `${chart.title}, ${line[1]}` : chart.title,
    }));
  }

  controls() {
    const value = h('output', {}, String(this.weight));
    const slider = h('input', {
      type: 'range', min: 0, max: 0.99, step: 0.01, value: this.weight, 'aria-label': 'Smoothing',
      oninput: () => {
        this.weight = Number(slider.value);
        value.textContent = slider.value;
        this.update();
      },
    });
    const reset = h('button', { onclick: () => this.shown.set(null), disabled: true }, 'Show all');
    this.shown.listen((range) => { reset.disabled = !range; });
    const toggle = (group, index) => h('button', {
      class: `toggle ${strokeClass(index, false)}`, 'aria-pressed': 'true', title: group.differs || false,
      onclick: (event) => {
        const on = this.hidden.delete(index);
        if (!on) this.hidden.add(index);
        event.currentTarget.setAttribute('aria-pressed', String(on));
        this.update();
      },
    }, swatch(group.name, index));
    return h('div', { class: 'controls', role: 'group', 'aria-label': 'Charts' },
      h('label', { class: 'slider' }, 'Smoothing ', slider, value),
      choice('Over', this.xAxes.map(({ key, name }) => [key, name]), this.xAxis.key, (key) => {
        this.xAxis = this.xAxes.find((each) => each.key === key);
        this.shown.set(null);
        this.update();
      }),
      choice('x axis', [['linear', 'linear'], ['log', 'log']], 'linear', (kind) => {
        this.logX = kind === 'log';
        this.update();
      }),
      reset,
      this.groups.length < 2 ? null : h('div', {
        class: 'toggles', role: 'group', 'aria-label': 'Runs that are shown',
      }, this.groups.map(toggle)));
  }

  update() {
    const { xAxis, logX, groups } = this, several = groups.length > 1;
    const drawn = this.plots.map(({ chart, plot }) => [chart, plot, groups.flatMap((group, index) =>
      (this.hidden.has(index) ? [] : chart.lines.map(([metric, name], line) => lineOf(group, metric, {
        xAxis, weight: chart.smooth ? this.weight : 0, dash: false,
        name: several ? group.name : name, colour: several ? index : line,
      })))).filter(Boolean)]);
    const whole = rangeOf(drawn.flatMap(([, , lines]) => lines.map((line) => line.x)), logX);
    for (const [chart, plot, lines] of drawn) {
      const isLoss = chart.lines.some(([metric]) => metric === 'train/loss');
      const marks = isLoss ? this.marks() : [];
      plot.show(lines, { ...xAxis.axis, logX, whole, marks, ...(chart.percent ? percents : {}) });
    }
  }

  /** Returns the warnings that have a step, as marks. */
  marks() {
    return this.groups.flatMap((group, index) => (this.hidden.has(index) ? [] : group.runs.flatMap((run) =>
      run.warnings.filter((each) => each.steps).map((each) => ({
        x: this.xAxis.of(run, each.steps)[0], text: `${this.runs.length > 1 ? `${run.name}: ` : ''}${each.text}`,
      })))));
  }
}

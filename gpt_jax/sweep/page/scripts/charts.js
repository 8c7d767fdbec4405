// The charts of a sweep: the metric against each knob, parallel coordinates, and curves.

import { precise } from './axis.js';
import { choice, menu } from './controls.js';
import { h } from './dom.js';
import { LineChart } from './line_chart.js';
import { ParallelCoordinates } from './parallel.js';
import { swatch } from './plot.js';
import { Scatter } from './scatter.js';
import { colourings, describe, lastValue } from './trials.js';
import { XRange } from './x_range.js';

/** The charts, with their controls. */
export class Charts {
  constructor({ results, knobs }) {
    const { metric, direction } = results;
    this.trials = results.trials.filter((trial) => Number.isFinite(lastValue(trial)));
    this.knobs = knobs;
    this.colourings = colourings(knobs);
    [this.colouring] = this.colourings;
    this.pruned = this.trials.every((trial) => trial.state !== 'complete');
    this.scatters = knobs.map((knob) => new Scatter({ title: metric, unit: `against ${knob.name}`, tall: 260 }));
    this.parallel = new ParallelCoordinates({ knobs, metric, direction });
    this.curves = new LineChart({ title: metric, unit: 'during the runs', tall: 320, shown: new XRange() });
    this.legend = h('div', { class: 'legend' });
    this.element = h('div', {}, this.controls(), this.legend,
      h('div', { class: 'plots' }, this.scatters.map((each) => each.element)),
      this.parallel.element, this.curves.element,
      h('p', { class: 'hint' }, 'Curves of pruned trials are dashed. Drag over a chart of curves to zoom.'));
    this.update();
  }

  controls() {
    return h('div', { class: 'controls', role: 'group', 'aria-label': 'Charts' },
      menu('Colour by', this.colourings.map(({ name }) => name), 0, (index) => {
        this.colouring = this.colourings[index];
        this.update();
      }),
      this.trials.some((trial) => trial.state !== 'complete') ? choice(
        'Other trials than complete ones', [['no', 'leave out'], ['yes', 'at their last value']],
        this.pruned ? 'yes' : 'no', (key) => {
          this.pruned = key === 'yes';
          this.update();
        }) : null);
  }

  update() {
    const { colouring } = this;
    const shown = this.trials.filter((trial) => this.pruned || trial.state === 'complete');
    this.legend.replaceChildren(...colouring.groups.map((name, index) => swatch(name, index)));
    this.knobs.forEach((knob, index) => {
      const points = shown.map((trial) => ({
        name: describe(trial), colour: colouring.of(trial), x: knob.place(trial), y: lastValue(trial),
      }));
      this.scatters[index].show(points, knob.axis);
    });
    this.parallel.show(shown);
    this.curves.show(this.trials.map((trial) => ({
      name: `trial ${trial.trial}`, colour: colouring.of(trial), dash: trial.state === 'pruned',
      x: Object.keys(trial.curve).map(Number), y: Object.values(trial.curve),
    })), { xTitle: 'step', sayX: (x) => `step ${x}`, sayY: precise });
    this.curves.legend.replaceChildren();
  }
}

// The results of runs in short, their warnings, and loss against time.

import { precise } from './axis.js';
import { h, table } from './dom.js';
import { swatch } from './plot.js';
import { Scatter } from './scatter.js';
import { tile } from './sections.js';
import { timeUnit } from './series.js';

const loss = (value) => (value == null ? '–' : value.toFixed(4));
const whole = (value) => (value == null ? '–' : Math.round(value).toLocaleString('en'));

/** Returns a time as '2 h 05 min', '3 min 20 s' or '12 s'. */
export function duration(seconds) {
  if (seconds == null) return '–';
  const pad = (value) => String(value).padStart(2, '0'), total = Math.round(seconds);
  if (total >= 3600) return `${Math.floor(total / 3600)} h ${pad(Math.floor((total % 3600) / 60))} min`;
  return total >= 60 ? `${Math.floor(total / 60)} min ${pad(total % 60)} s` : `${total} s`;
}

const steps = (run) => whole(run.steps) + (run.steps < run.planned ? ` of ${whole(run.planned)}` : '');

/** Returns the results of one run. */
export function tiles(run) {
  const { best } = run;
  return h('div', { class: 'tiles' },
    tile('Steps', whole(run.steps), run.steps < run.planned ? `of ${whole(run.planned)}: not complete` : 'complete'),
    tile('Tokens', whole(run.steps * run.tokens_per_step)),
    tile('Training loss', loss(run.train_loss), 'last row, nats per token'),
    tile('Validation loss', loss(run.eval_loss), best ? `lowest ${loss(best.loss)} at step ${whole(best.step)}` : ''),
    tile('Throughput', whole(run.speed), 'tokens per second'),
    tile('Time of the steps', duration(run.seconds), 'without compilation and evaluation'),
    tile('Warnings', whole(run.warnings.length)));
}

/** Returns a table of the results of several runs. */
export function runsTable(groups) {
  const rows = groups.flatMap((group, index) => group.runs.map((run) => [
    swatch(run.name, index), group.differs || '–', String(run.seed), steps(run),
    loss(run.train_loss), loss(run.eval_loss), loss(run.best?.loss), whole(run.best?.step),
    whole(run.speed), duration(run.seconds), String(run.warnings.length),
  ]));
  const head = ['Run', 'Differs in', 'Seed', 'Steps', 'Train loss', 'Eval loss', 'Lowest', 'at step',
    'Tokens/s', 'Time', 'Warnings'];
  return table([head, ...rows], 'Runs');
}

/** Returns the warnings about runs, and the rules. */
export function warningList(groups, rules) {
  const runs = groups.flatMap((group) => group.runs);
  const found = runs.flatMap((run) => run.warnings.map((each) => h('li', {},
    h('strong', {}, each.kind), runs.length > 1 ? ` ${run.name}` : '', `: ${each.text}`,
    each.replay && h('div', { class: 'hint' }, 'Its batch, token by token: ', h('code', {}, each.replay)))));
  return h('div', {},
    found.length ? h('ul', { class: 'warnings' }, found) : h('p', {}, 'None.'),
    h('details', { class: 'values' }, h('summary', {}, 'The rules'),
      h('dl', { class: 'rules' }, Object.entries(rules).map(([kind, text]) => [h('dt', {}, kind), h('dd', {}, text)]))));
}

/** Returns a chart of the lowest validation loss of each run over its time; null for too few. */
export function lossOverTime(groups) {
  const points = groups.flatMap((group, index) => group.runs.map((run) => ({
    name: `${run.name}${group.differs && ` (${group.differs})`}`, colour: index,
    x: run.seconds, y: run.best?.loss ?? NaN,
  }))).filter(({ x, y }) => x && Number.isFinite(y));
  if (points.length < 2) return null;
  const plot = new Scatter({ title: 'Lowest validation loss', unit: 'nats per token', tall: 260 });
  const [unit, seconds] = timeUnit(points.map(({ x }) => x));
  plot.show(points.map((each) => ({ ...each, x: each.x / seconds })), {
    xTitle: `time of the training steps, ${unit}`, sayX: (x) => `${precise(x)} ${unit}`, sayY: loss,
  });
  return plot.element;
}

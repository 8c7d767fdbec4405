// The page of a sweep: the best trial, charts, importance, all trials, environment.

import { precise } from './axis.js';
import { Charts } from './charts.js';
import { h, percent, table } from './dom.js';
import { section, showSections, tile } from './sections.js';
import { Knob } from './trials.js';

const results = JSON.parse(document.getElementById('data').textContent);
const { trials, metric } = results;
const knobs = Object.entries(results.knobs).map(([name, facts]) => new Knob(name, facts));
const best = trials.find((trial) => trial.trial === results.best);
const counts = [...new Set(trials.map((trial) => trial.state))].map(
  (state) => `${trials.filter((trial) => trial.state === state).length} ${state}`).join(', ');

const show = (value) => (value === undefined ? '–' : typeof value === 'number' ? precise(value) : String(value));
const steps = (trial) => Object.keys(trial.curve).at(-1) ?? '–';

const bestTrial = () => [
  h('div', { class: 'tiles' },
    tile(metric, precise(best.value), `trial ${best.trial}; to ${results.direction}`),
    knobs.map(({ name }) => tile(name, show(best.params[name])))),
  h('h3', {}, 'Its command'), h('pre', { class: 'command' }, best.command),
];

const importance = () => [
  h('div', { class: 'bars' }, Object.entries(results.importance).flatMap(([name, share]) => [
    h('span', {}, name), h('progress', { max: 1, value: share, 'aria-label': name }),
    h('span', { class: 'share' }, percent(share))])),
  h('p', { class: 'hint' }, 'How much each knob decides whether a trial is among the better ones (PED-ANOVA), ' +
    `from ${trials.filter((trial) => trial.state === 'complete').length} complete trials: rough below 20 or so.`),
];

const allTrials = () => {
  const sign = results.direction === 'maximize' ? -1 : 1;
  const rank = (trial) => (trial.value == null ? Infinity : sign * trial.value);
  const sorted = [...trials].sort((a, b) => rank(a) - rank(b) || a.trial - b.trial);
  return [table([
    ['Trial', 'State', metric, ...knobs.map(({ name }) => name), 'Last step', 'Seconds', 'Attempts', 'Machine', 'Reason'],
    ...sorted.map((trial) => [
      String(trial.trial), trial.state, trial.value == null ? '–' : trial.value.toFixed(4),
      ...knobs.map(({ name }) => show(trial.params[name])),
      steps(trial), trial.seconds.toFixed(1), String(trial.attempts), trial.machine, trial.reason])], 'Trials'),
  h('details', { class: 'values' }, h('summary', {}, 'Commands'),
    sorted.map((trial) => h('pre', { class: 'command' }, trial.command)))];
};

const environment = () => table([['', ''], ['config', results.config], ['date', results.date],
  ['commit', results.git_commit], ...Object.entries(results.versions)], 'Environment');

showSections(results.study, `Sweep of ${trials.length} trials: ${counts}.`, [
  best ? section('Best trial', ...bestTrial()) : null,
  section('Charts', new Charts({ results, knobs }).element),
  Object.keys(results.importance).length ? section('Importance', ...importance()) : null,
  section('Trials', ...allTrials()),
  section('Environment', environment()),
]);

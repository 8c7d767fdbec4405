// The report: results, warnings, charts, evaluations, samples, settings, environment.

import { ChartPanel } from './chart_panel.js';
import { h, table } from './dom.js';
import { samplesView } from './samples.js';
import { section, showSections } from './sections.js';
import { lossOverTime, runsTable, tiles, warningList } from './summary.js';

const page = JSON.parse(document.getElementById('data').textContent);
const { groups } = page, runs = groups.flatMap((group) => group.runs);
const several = groups.length > 1;

const names = groups.map((group) => group.name);

const settings = () => [
  several ? h('h3', {}, 'What differs between the configs') : null,
  several ? table([['Knob', 'Default', ...names], ...page.differ], 'Settings that differ') : null,
  several ? h('h3', {}, 'What they share, and is not the default') : null,
  page.same.length ? table([['Knob', 'Default', 'Value'], ...page.same], 'Settings that are not the default')
    : h('p', {}, 'Nothing.'),
];

const environment = () => {
  const { shared, own } = page.environment;
  return [own.length ? table(own, 'Environment of each run') : null,
    own.length ? h('h3', {}, 'The same for all runs') : null,
    shared.length ? table([['', ''], ...shared], 'Environment') : h('p', {}, 'Nothing.')];
};

showSections(page.title, 'Training report. Losses are in nats per token.', [
  section('Results', ...(runs.length > 1 ? [runsTable(groups), lossOverTime(groups)] : [tiles(runs[0])])),
  section('Warnings', warningList(groups, page.rules)),
  section('Charts', new ChartPanel(page).element),
  page.evaluations.length ? section('Evaluations',
    table([['Measured on', 'Metric', ...names], ...page.evaluations], 'Evaluations'),
    h('p', { class: 'hint' }, '± is the standard deviation over seeds, or else the standard error of a task.')) : null,
  page.samples.length ? section('Samples', samplesView(page.samples)) : null,
  section('Settings', ...settings()),
  section('Environment', ...environment()),
]);

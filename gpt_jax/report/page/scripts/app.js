// The report: results, warnings, charts, evaluations, samples, settings, environment.

import { ChartPanel } from './chart_panel.js';
import { h, table } from './dom.js';
import { samplesView } from './samples.js';
import { lossOverTime, runsTable, tiles, warningList } from './summary.js';
import { themeButton, toggleTheme } from './theme.js';

const page = JSON.parse(document.getElementById('data').textContent);
const { groups } = page, runs = groups.flatMap((group) => group.runs);
const several = groups.length > 1;

const section = (title, ...children) =>
  h('section', { class: 'panel', id: title.toLowerCase() }, h('h2', {}, title), ...children);
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

const sections = [
  section('Results', ...(runs.length > 1 ? [runsTable(groups), lossOverTime(groups)] : [tiles(runs[0])])),
  section('Warnings', warningList(groups, page.rules)),
  section('Charts', new ChartPanel(page).element),
  page.evaluations.length ? section('Evaluations',
    table([['Measured on', 'Metric', ...names], ...page.evaluations], 'Evaluations'),
    h('p', { class: 'hint' }, '± is the standard deviation over seeds, or else the standard error of a task.')) : null,
  page.samples.length ? section('Samples', samplesView(page.samples)) : null,
  section('Settings', ...settings()),
  section('Environment', ...environment()),
].filter(Boolean);

document.body.append(
  h('header', {},
    h('div', {}, h('h1', {}, page.title),
      h('p', { class: 'model' }, 'Training report. Losses are in nats per token.')),
    h('div', { class: 'buttons' }, themeButton())),
  h('nav', { class: 'contents', 'aria-label': 'Sections' },
    sections.map((each) => h('a', { href: `#${each.id}` }, each.querySelector('h2').textContent))),
  h('main', {}, sections));

document.addEventListener('keydown', (event) => {
  if (event.key !== 't' || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) toggleTheme();
});

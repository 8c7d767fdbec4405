// The page: tokens on top, the views of the analyses below, and the keyboard.

import { decode } from './arrays.js';
import { h } from './dom.js';
import { choose, listen, state } from './state.js';
import { followTheme, isPrinting, themeButton, toggleTheme } from './theme.js';
import { TokenDetails } from './token_details.js';
import { TokenStrip } from './token_strip.js';
import { makeViews } from './views.js';

const KEYS = [
  ['← →', 'the token before or after'], ['Home End', 'the first or last token'],
  ['1 … 9 0', 'a view'], ['[ ]', 'the view before or after'],
  ['Tab, then arrows', 'move over the cells of a map; Enter picks one'],
  ['t', 'light or dark'], ['?', 'this help'], ['Esc', 'close'],
];

const page = decode(JSON.parse(document.getElementById('data').textContent));
const losses = page.analyses.find((each) => each.name === 'token_loss')?.data.loss;
if (losses) page.loss = [NaN, ...losses.values]; // nothing predicts the first token

const strip = new TokenStrip(page), details = new TokenDetails(page);
const views = makeViews(page);
const tabs = views.map((view, index) => h('button', {
  role: 'tab', id: `tab-${view.name}`, 'aria-controls': `view-${view.name}`,
  onclick: () => choose({ view: view.name }),
}, index < 10 ? h('kbd', { 'aria-hidden': 'true' }, String((index + 1) % 10)) : null, view.title));
const panels = views.map((view) => h('section', {
  class: 'view', role: 'tabpanel', id: `view-${view.name}`, 'aria-labelledby': `tab-${view.name}`,
}, h('h2', {}, view.title), view.note(), view.element));

const help = h('dialog', { 'aria-label': 'Help' },
  h('h2', {}, 'Keys'),
  h('dl', {}, KEYS.map(([keys, what]) => [h('dt', {}, h('kbd', {}, keys)), h('dd', {}, what)])),
  h('p', {}, 'Point at a token to see how it was predicted; click it to keep it chosen. ' +
    'A view shows the chosen token.'),
  h('form', { method: 'dialog' }, h('button', {}, 'Close')));

document.title = page.title;
document.body.append(
  h('header', {},
    h('div', {}, h('h1', {}, page.title), h('p', { class: 'model' }, page.subtitle)),
    h('div', { class: 'buttons' },
      themeButton(),
      h('button', { onclick: () => help.showModal(), 'aria-label': 'Help', title: 'Keys (?)' }, '?'))),
  h('section', { class: 'tokens', 'aria-label': 'Tokens' }, strip.element, details.element),
  h('main', {},
    views.length > 1 ? h('nav', { role: 'tablist', 'aria-label': 'Views' }, tabs) : '',
    panels,
    page.skipped.length ? h('ul', { class: 'skipped' }, page.skipped.map((each) => h('li', {}, each))) : ''),
  help);

function showView() {
  views.forEach((view, index) => {
    const shown = view.name === state.view;
    panels[index].hidden = !shown && !isPrinting(); // all views are printed
    tabs[index].setAttribute('aria-selected', shown);
    tabs[index].tabIndex = shown ? 0 : -1;
    if (panels[index].hidden) return;
    view.draw();
  });
}

listen((changed) => {
  if (changed.has('view')) showView();
  else for (const view of views) if (view.name === state.view) view.update(changed);
});
followTheme(() => {
  strip.draw();
  details.draw();
  showView();
});

function moveView(step) {
  const at = views.findIndex((view) => view.name === state.view);
  const next = views[(at + step + views.length) % views.length];
  choose({ view: next.name });
  if (document.activeElement?.role === 'tab') document.getElementById(`tab-${next.name}`).focus();
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
  const last = page.texts.length - 1, onTab = event.target.role === 'tab';
  const go = (position) => choose({ pinned: Math.min(Math.max(position, 0), last), pointed: null });
  const view = /^\d$/.test(event.key) && views[(Number(event.key) + 9) % 10];
  if (event.key === 'ArrowRight') onTab ? moveView(1) : go(state.pinned + 1);
  else if (event.key === 'ArrowLeft') onTab ? moveView(-1) : go(state.pinned - 1);
  else if (event.key === 'Home') go(0);
  else if (event.key === 'End') go(last);
  else if (event.key === ']') moveView(1);
  else if (event.key === '[') moveView(-1);
  else if (event.key === 't') toggleTheme();
  else if (event.key === '?') help.showModal();
  else if (view) choose({ view: view.name });
  else return;
  event.preventDefault();
});

/** Returns the head that matters most, as far as the analyses say, to begin with. */
function firstHead() {
  const data = Object.fromEntries(page.analyses.map((each) => [each.name, each.data]));
  const heads = data.ablation?.head_loss ?? data.attribution?.heads;
  if (!heads) return {};
  const sizes = [...heads.values].map(Math.abs), most = sizes.indexOf(Math.max(...sizes));
  return { layer: Math.floor(most / heads.size('head')), head: most % heads.size('head') };
}

choose({ pinned: page.texts.length - 1, view: views[0]?.name, ...firstHead() });
strip.draw();
details.draw();

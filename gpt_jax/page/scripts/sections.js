// A page of titled sections, with links to them on top.

import { h } from './dom.js';
import { themeButton, toggleTheme } from './theme.js';

export const section = (title, ...children) =>
  h('section', { class: 'panel', id: title.toLowerCase().replaceAll(' ', '-') }, h('h2', {}, title), ...children);

/** Returns a number with its name above and what it is of below. */
export const tile = (name, value, more = '') => h('div', { class: 'tile' },
  h('div', { class: 'hint' }, name), h('strong', {}, value), h('div', { class: 'hint' }, more));

/** Fills the page: its title and a line about it, the links, and the sections that are not null. */
export function showSections(title, about, sections) {
  const shown = sections.filter(Boolean);
  document.body.append(
    h('header', {},
      h('div', {}, h('h1', {}, title), h('p', { class: 'model' }, about)),
      h('div', { class: 'buttons' }, themeButton())),
    h('nav', { class: 'contents', 'aria-label': 'Sections' },
      shown.map((each) => h('a', { href: `#${each.id}` }, each.querySelector('h2').textContent))),
    h('main', {}, shown));
  document.addEventListener('keydown', (event) => {
    if (event.key !== 't' || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) toggleTheme();
  });
}

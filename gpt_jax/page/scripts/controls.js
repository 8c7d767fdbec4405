// Buttons and menus.

import { h } from './dom.js';

/** Returns buttons of which one is chosen. */
export function choice(label, options, value, pick) {
  const buttons = options.map(([key, text]) => h('button', {
    type: 'button', 'aria-pressed': String(key === value),
    onclick: () => {
      buttons.forEach((each, index) => each.setAttribute('aria-pressed', String(options[index][0] === key)));
      pick(key);
    },
  }, text));
  return h('div', { class: 'choice', role: 'group', 'aria-label': label }, h('span', {}, label), buttons);
}

/** Returns a menu. */
export function menu(label, options, value, pick) {
  const select = h('select', { onchange: () => pick(Number(select.value)) },
    options.map((text, index) => h('option', { value: index, selected: index === value }, text)));
  return h('label', { class: 'menu' }, `${label} `, select);
}

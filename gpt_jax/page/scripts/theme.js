// Light and dark: as the system has it until the switch is used. Print is light.

import { readScales } from './colours.js';
import { h } from './dom.js';

const darkSystem = matchMedia('(prefers-color-scheme: dark)');
const print = matchMedia('print');
const followers = [];
let theme = 'auto', printing = false;

export const isPrinting = () => printing;

/** Calls a function after each change of the theme, and before and after printing. */
export function followTheme(follower) {
  followers.push(follower);
}

export function toggleTheme() {
  theme = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  applyTheme();
}

/** Returns the button that switches the theme. */
export function themeButton() {
  return h('button', { onclick: toggleTheme, 'aria-label': 'Light or dark', title: 'Light or dark (t)' }, '◐');
}

function applyTheme() {
  const dark = !printing && (theme === 'auto' ? darkSystem.matches : theme === 'dark');
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  readScales();
  followers.forEach((follower) => follower());
}

function setPrinting(on) {
  printing = on;
  applyTheme();
}

darkSystem.addEventListener('change', applyTheme);
print.addEventListener('change', () => setPrinting(print.matches));
addEventListener('beforeprint', () => setPrinting(true));
addEventListener('afterprint', () => setPrinting(false));
applyTheme();

// Lines over named places, such as layers.

import { h, number } from './dom.js';
import { tip } from './tip.js';

const [WIDE, HIGH, LEFT, BOTTOM, TOP] = [460, 190, 52, 22, 12];

/** Returns a chart of lines, each [name, values], over named places; each has a dash of its own. */
export function placeChart(label, places, lines, format = number) {
  const all = lines.flatMap(([, values]) => values).filter(Number.isFinite);
  const low = Math.min(0, ...all), high = Math.max(...all, low + 1e-9);
  const x = (index) => LEFT + (places.length > 1 ? (index / (places.length - 1)) * (WIDE - LEFT - 14) : 0);
  const y = (value) => HIGH - BOTTOM - ((value - low) / (high - low)) * (HIGH - BOTTOM - TOP);
  const every = Math.ceil(places.length / 13);
  const ticks = [low, (low + high) / 2, high].map((value) => h('g', {},
    h('line', { class: 'rule', x1: LEFT, x2: WIDE - 8, y1: y(value), y2: y(value) }),
    h('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, format(value))));
  const names = places.map((place, index) => index % every ? null
    : h('text', { x: x(index), y: HIGH - 5, 'text-anchor': 'middle' }, place));
  const drawn = lines.map(([name, values], index) => h('g', { class: `line line-${index}` },
    h('polyline', { points: values.map((value, i) => (Number.isFinite(value) ? `${x(i)},${y(value)}` : '')).filter(Boolean).join(' ') }),
    values.map((value, i) => Number.isFinite(value) && h('circle', {
      cx: x(i), cy: y(value), r: 3.5,
      onpointermove: (event) => tip(`${name}, ${places[i]}: ${format(value)}`, event), onpointerleave: () => tip(''),
    })).filter(Boolean)));
  const text = lines.map(([name, values]) => `${name}: ${values.map(format).join(', ')}`).join('; ');
  return h('figure', { class: 'chart' },
    h('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, role: 'img', 'aria-label': `${label}. ${text}` }, ticks, names, drawn),
    lines.length > 1 ? h('figcaption', {}, lines.map(([name], index) => h('span', { class: `swatch line-${index}` }, name))) : null);
}

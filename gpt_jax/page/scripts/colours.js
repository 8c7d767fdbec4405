// Colours of values: scales of one hue, and one of two hues for signed values, in both themes.

import { h, number } from './dom.js';

let tables = {};

/** Reads the scales of the theme from the style sheet: `--sequential: #fff, #00f`. */
export function readScales() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ['sequential', 'surprise', 'diverging']) {
    const stops = style.getPropertyValue(`--${name}`).split(',').map(
      (stop) => [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
    tables[name] = Array.from({ length: 256 }, (_, index) => {
      const place = (index / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(place), stops.length - 2);
      return stops[low].map((each, i) => Math.round(each + (place - low) * (stops[low + 1][i] - each)));
    });
  }
}

/** A scale from values to colours. */
export class Scale {
  constructor(low, high, name = low < 0 ? 'diverging' : 'sequential') {
    if (name === 'diverging') high = Math.max(Math.abs(low), Math.abs(high)), low = -high;
    Object.assign(this, { low, high: high > low ? high : low + 1, name });
  }

  /** Returns [red, green, blue]. */
  rgb(value) {
    const place = (value - this.low) / (this.high - this.low);
    return tables[this.name][Math.round(255 * Math.min(Math.max(place || 0, 0), 1))];
  }

  /** Returns the style of an element with this value's colour behind readable text. */
  style(value) {
    const [red, green, blue] = this.rgb(value);
    const text = luminance([red, green, blue]) > 0.25 ? '#101418' : '#ffffff';
    return `background-color: rgb(${red}, ${green}, ${blue}); color: ${text}`;
  }

  /** Returns the key of the scale: a bar between its ends. */
  key(unit = '', format = number) {
    const bar = h('span', { class: 'bar', 'aria-hidden': 'true' });
    const steps = Array.from({ length: 9 }, (_, i) => this.low + (i / 8) * (this.high - this.low));
    bar.style.backgroundImage =
      `linear-gradient(to right, ${steps.map((each) => `rgb(${this.rgb(each)})`).join(', ')})`;
    return h('span', { class: 'key' }, format(this.low), bar, `${format(this.high)}${unit && ` ${unit}`}`);
  }
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((each) =>
    each <= 10 ? each / 3294 : ((each / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

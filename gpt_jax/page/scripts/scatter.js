// A chart of points over two quantities.

import { precise, rangeOf, tickText } from './axis.js';
import { h } from './dom.js';
import { Plot, strokeClass } from './plot.js';
import { tip } from './tip.js';

const NEAR = 30; // px from the pointer

/** A chart of points {name, colour, x, y}; options as a Plot's, and `pick(point)`. */
export class Scatter extends Plot {
  constructor(options) {
    super({ hint: 'Arrow keys move from point to point; Enter picks one.', ...options });
    this.points = [];
    this.svg.addEventListener('pointermove', (event) => this.say(this.find(event), event));
    this.svg.addEventListener('pointerleave', () => this.say(null));
    this.svg.addEventListener('blur', () => this.say(null));
    this.svg.addEventListener('click', (event) => this.pick(this.find(event)));
    this.svg.addEventListener('keydown', (event) => this.key(event));
  }

  /** Shows points; axis: xTitle, logX, formatX, sayX, sayY. */
  show(points, axis = {}) {
    this.points = points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y)).sort((a, b) => a.x - b.x);
    this.axis = { sayX: precise, sayY: precise, formatY: tickText, ...axis };
    this.draw();
  }

  draw() {
    const { logX = false } = this.axis ?? {};
    const seen = this.points.filter(({ x, y }) => (!logX || x > 0) && (!this.log || y > 0));
    this.seen = seen;
    if (!seen.length) return;
    const xs = rangeOf([seen.map((each) => each.x)]), ys = rangeOf([seen.map((each) => each.y)]);
    const marks = this.layOut(padded(xs, logX), padded(ys, this.log), this.axis);
    if (!marks) return;
    this.ring = h('circle', { class: 'ring', r: 9, visibility: 'hidden' });
    this.svg.replaceChildren(...marks, ...seen.map((each) => h('g', { class: strokeClass(each.colour, false) },
      h('circle', { cx: this.x.place(each.x), cy: this.y.place(each.y), r: 5.5 }))), this.ring);
  }

  find(event) {
    const away = (each) => Math.hypot(this.x.place(each.x) - event.offsetX, this.y.place(each.y) - event.offsetY);
    if (!this.seen?.length) return null;
    const best = this.seen.reduce((one, other) => (away(other) < away(one) ? other : one));
    return away(best) < NEAR ? best : null;
  }

  /** Shows a point's values beside the pointer, or beside the point for the keyboard. */
  say(point, event) {
    this.at = point;
    this.ring?.setAttribute('visibility', point ? 'visible' : 'hidden');
    if (!point) {
      tip('');
      return;
    }
    const { xTitle, sayX, sayY } = this.axis, [x, y] = [this.x.place(point.x), this.y.place(point.y)];
    const text = `${point.name}\n${xTitle}: ${sayX(point.x)}\n${this.options.title}: ${sayY(point.y)}`;
    this.ring.setAttribute('cx', x);
    this.ring.setAttribute('cy', y);
    const box = this.svg.getBoundingClientRect();
    tip(text, event ?? { clientX: box.left + x, clientY: box.top + y });
    if (!event) this.readout.textContent = text.replaceAll('\n', '; ');
  }

  pick(point) {
    if (point) this.options.pick?.(point);
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === 'Enter') this.pick(this.at);
    else if (!step || !this.seen?.length) return;
    else this.say(this.seen[Math.min(Math.max(this.seen.indexOf(this.at) + step, 0), this.seen.length - 1)], null);
    event.preventDefault();
    event.stopPropagation();
  }
}

function padded([low, high], log) {
  if (log) return [low * (low / high) ** 0.06, high * (high / low) ** 0.06];
  return [low - (high - low) * 0.08, high + (high - low) * 0.08];
}

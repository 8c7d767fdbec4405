// What the KV cache saves: the time per token with it and without it, of the same text.

import { choice } from './controls.js';
import { h, number } from './dom.js';
import { LineChart } from './line_chart.js';
import { XRange } from './x_range.js';

const NAMES = new Map([[true, 'with the KV cache'], [false, 'without the KV cache']]);

export class CacheTiming {
  /** `rewrite` is called after a click, to write the text again. */
  constructor(settings, { rewrite }) {
    this.runs = new Map(); // the latest run with the cache, and without, if they are of the same text
    this.choice = choice('KV cache', [[true, 'on'], [false, 'off']], true, (isOn) => {
      settings.values.use_cache = isOn;
      rewrite();
    });
    this.said = h('p', { class: 'hint' });
    this.chart = new LineChart({ title: 'Time per token', unit: 'ms', tall: 190, shown: new XRange() });
    this.chart.element.hidden = true;
    this.element = h('div', { class: 'timing' }, this.said, this.chart.element);
  }

  /** Takes a run of the writer, which grows by a token between calls. */
  take(run) {
    const isOn = run.sampling.use_cache, other = this.runs.get(!isOn);
    if (this.runs.get(isOn) !== run && other && textOf(other) !== textOf(run)) this.runs.delete(!isOn);
    this.runs.set(isOn, run);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const lines = [...NAMES].flatMap(([isOn, name]) => {
      const [x, y] = times(this.runs.get(isOn));
      return x.length ? [{ name, x, y, colour: isOn ? 0 : 1, dash: !isOn, isOn }] : [];
    });
    this.chart.element.hidden = lines.every(({ isOn }) => isOn);
    this.said.textContent = this.say(lines);
    if (!this.chart.element.hidden) this.chart.show(lines, { xTitle: 'tokens before it' });
  }

  say(lines) {
    const [first, second] = lines.map(({ y }) => y.reduce((sum, each) => sum + each, 0) / y.length);
    if (!lines.length) return '';
    const text = `${number(first)} ms per token ${lines[0].name}`;
    if (lines.length === 1) return `${text}${lines[0].isOn ? '; switch it off to see what it saves' : ''}.`;
    const [a, b] = lines.map(({ isOn }) => this.runs.get(isOn).tokens);
    const same = a.every(({ id }, i) => i >= b.length || id === b[i].id);
    const ratio = number(Number((second / first).toPrecision(2)));
    return `${text}, ${number(second)} ms without it: ${ratio} times as long, as the model reads the whole text again for each token. `
      + (same ? 'The text is the same.' : 'The texts differ, as sums in another order round differently.');
  }
}

/** Returns positions and milliseconds of the tokens of a run; the first one also reads the prompt. */
function times(run) {
  if (!run) return [[], []];
  const { given, tokens } = run, rest = tokens.slice(1);
  return [rest.map((_, i) => given.length + 1 + i), rest.map(({ seconds }) => 1e3 * seconds)];
}

/** Returns what decides about the text of a run. */
const textOf = ({ given, sampling }) =>
  JSON.stringify([given.map(({ id }) => id), { ...sampling, use_cache: null, max_new_tokens: null }]);

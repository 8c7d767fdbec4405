// The texts that a run wrote during training.

import { menu } from './controls.js';
import { h } from './dom.js';

/** A slider over the samples of a run, with a menu of the runs. */
export function samplesView(samples) {
  const place = h('div');
  const show = (index) => place.replaceChildren(slider(samples[index]));
  show(0);
  return h('div', {}, samples.length > 1 ? menu('Run', samples.map((each) => each.run), 0, show) : null, place);
}

function slider({ texts, of }) {
  const text = h('pre', { class: 'sample' }), step = h('output', { 'aria-live': 'polite' });
  const last = texts.length - 1;
  const show = (index) => {
    text.textContent = texts[index][1];
    step.textContent = `step ${texts[index][0].toLocaleString('en')}`;
  };
  const input = h('input', {
    type: 'range', min: 0, max: last, value: last, 'aria-label': 'Sample',
    oninput: () => show(Number(input.value)),
  });
  show(last);
  return h('div', {},
    h('p', { class: 'slider' }, last ? input : null, step,
      h('span', { class: 'hint' }, of > texts.length ? ` ${texts.length} of ${of} samples` : '')),
    text);
}

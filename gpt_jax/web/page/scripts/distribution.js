// The likeliest tokens at one place, before and after the settings of sampling.

import { h, percent, visible } from './dom.js';
import { adjust, likeliest, softmax } from './sampling.js';

const WITHOUT_PENALTIES = { repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 };

export class Distribution {
  constructor(text, settings) {
    Object.assign(this, { text, settings });
    this.body = h('div', {});
    this.element = h('details', { class: 'distribution', ontoggle: () => this.draw() },
      h('summary', {}, 'What these settings do to a token'), this.body);
    text.listen(() => this.draw());
    settings.listen(() => this.draw());
  }

  /** Draws the chosen token, or else the last one. */
  draw() {
    if (!this.element.open) return;
    const { tokens, chosen } = this.text, position = chosen ?? tokens.length - 1, token = tokens[position];
    this.body.replaceChildren(...(token?.alternatives?.length ? this.parts(token, position) : [
      h('p', { class: 'hint' }, 'Generate a text and point at one of its tokens.'),
    ]));
  }

  parts({ alternatives, label }, position) {
    let settings;
    try {
      settings = this.settings.read();
    } catch (error) {
      return [h('p', { class: 'hint' }, error.message)];
    }
    const before = alternatives.map(({ logprob }) => Math.exp(logprob)), after = applied(alternatives, settings);
    const bar = (kind, part) => {
      const made = h('i', { class: kind, 'aria-hidden': 'true' });
      made.style.width = `${100 * part}%`;
      return made;
    };
    const share = (part) => (part ? percent(part) : '–');
    const all = before.reduce((sum, part) => sum + part, 0);
    const penalized = Object.entries(WITHOUT_PENALTIES).some(([name, off]) => settings[name] !== off);
    return [
      h('p', { class: 'hint' }, 'In the place of ', h('span', { class: 'token' }, visible(label)), ` (token ${position}): the model’s `,
        h('i', { class: 'patch before' }), ' probability and, with these settings, the ', h('i', { class: 'patch after' }),
        ' share of draws.'),
      h('table', { class: 'before-after' },
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'token'), h('td', {}),
          h('th', { scope: 'col', class: 'number' }, 'before'), h('th', { scope: 'col', class: 'number' }, 'after'))),
        h('tbody', {}, alternatives.map((each, i) => h('tr', {},
          h('td', {}, visible(each.label)),
          h('td', { class: 'bars' }, bar('before', before[i]), bar('after', after[i])),
          h('td', { class: 'number' }, share(before[i])),
          h('td', { class: 'number' }, share(after[i])))))),
      h('p', { class: 'hint' }, `Only the ${alternatives.length} likeliest tokens are known here, with ${percent(all)} of the probability: `
        + `“after” is a share among them.${penalized ? ' Penalties are left out.' : ''}`),
    ];
  }
}

/** Returns the share of each alternative among them, by the rules that draw a token. */
function applied(alternatives, settings) {
  const logprobs = Float32Array.from(alternatives, ({ logprob }) => logprob);
  const scores = adjust(logprobs, [], { ...settings, ...WITHOUT_PENALTIES });
  if (settings.temperature > 0) return [...softmax(scores)];
  const best = likeliest(scores);
  return alternatives.map((_, i) => (i === best ? 1 : 0));
}

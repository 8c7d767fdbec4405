// Why a token: the prediction after each layer, the parts of its logit, and what it loses without each.

import { cut, h, number, percent, table, visible } from './dom.js';

const SHOWN = 12; // parts in a list
const LETTERS = 8; // of a token in the table
const STEPS = [
  ['lens', 'reading the prediction after each layer', 'Prediction after each layer',
    'The final norm and the output layer, applied to the residual stream after each layer.', lens],
  ['attribution', 'splitting the logit into its parts', 'Largest parts of its logit',
    'What the embedding, each head and each MLP have written towards this token. All logits can rise together.', attribution],
  ['ablation', 'running the model without each head, attention layer and MLP', 'Without one part',
    'How much the log-probability changes, in nats, when the output of the part is zero.', ablation],
];

export class Explanation {
  constructor(backend, text) {
    Object.assign(this, { backend, text, wanted: null, asking: false, position: null, token: undefined });
    this.title = h('h2', { id: 'why', tabindex: -1 });
    this.status = h('p', { class: 'hint', 'aria-live': 'polite' });
    this.parts = h('div', { class: 'reasons' });
    this.element = h('section', { class: 'panel explanation', 'aria-labelledby': 'why', hidden: true },
      this.title, this.status, this.parts);
    text.listen(() => this.leave());
  }

  /** Hides the explanation of a token that the text no longer has. */
  leave() {
    if (this.text.tokens[this.position] === this.token) return;
    this.wanted = null;
    this.element.hidden = true;
  }

  /** Explains the token at a position: one question at a time, the latest next. */
  async show(position) {
    const { tokens } = this.text;
    Object.assign(this, { position, token: tokens[position] });
    this.wanted = { ids: tokens.slice(0, position + 1).map(({ id }) => id), position, label: tokens[position].label };
    this.element.hidden = false;
    this.element.scrollIntoView({ block: 'nearest' });
    if (this.asking) {
      this.status.textContent = 'waiting for the answer to the question before';
      return;
    }
    this.asking = true;
    while (this.wanted) {
      const asked = this.wanted;
      this.wanted = null;
      await this.answer(asked);
    }
    this.asking = false;
  }

  async answer({ ids, position, label }) {
    this.title.replaceChildren('Why ', h('span', { class: 'token' }, visible(label)), ` (token ${position})?`);
    this.parts.replaceChildren();
    const began = performance.now();
    for (const [name, doing, title, about, draw] of STEPS) {
      this.status.textContent = `${doing}; the first text of a length takes longer, as programs are compiled`;
      try {
        const found = await this.backend.explain(ids, position, name);
        if (this.wanted || this.element.hidden) return;
        this.parts.append(h('div', { class: 'part' }, h('h3', {}, title), h('p', { class: 'hint' }, about),
          found.obstacle ? h('p', {}, found.obstacle) : draw(found)));
      } catch (error) {
        this.status.textContent = error.message;
        return;
      }
    }
    this.status.textContent = `answered in ${number((performance.now() - began) / 1e3)} s`;
    this.element.scrollIntoView({ block: 'nearest' });
  }
}

function lens({ stages }) {
  return table([
    ['after', 'likeliest', 'share', 'this', 'rank'],
    ...stages.map((each) => [
      each.name, cut(visible(each.label), LETTERS), percent(each.probability), percent(each.probability_of_token), number(each.rank_of_token),
    ]),
  ], 'Prediction after each layer');
}

function attribution({ logit, soft_cap: cap, parts }) {
  return [
    h('p', {}, `logit ${number(logit)}${cap ? `, before the soft cap of ${cap}` : ''}, the sum of:`),
    bars(parts, 'parts that add'),
  ];
}

function ablation({ logprob, parts }) {
  return [h('p', {}, `log-probability ${number(logprob)} (${percent(Math.exp(logprob))}); it changes by:`), bars(parts)];
}

/** Returns the largest values as bars to both sides of zero; with `rest`, the sum of the others. */
function bars(parts, rest = '') {
  const sorted = [...parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)), most = Math.abs(sorted[0]?.value) || 1;
  const more = sorted.slice(SHOWN), sum = more.reduce((total, { value }) => total + value, 0);
  return [
    h('ul', { class: 'signed' }, sorted.slice(0, SHOWN).map(({ name, value }) => {
      const bar = h('i', { class: value < 0 ? 'below' : 'above', 'aria-hidden': 'true' });
      bar.style.width = `${50 * Math.abs(value) / most}%`;
      return h('li', {}, h('span', {}, name), h('span', { class: 'track' }, bar), h('span', { class: 'number' }, signed(value)));
    })),
    more.length ? h('p', { class: 'hint' }, `${more.length} more ${rest ? `${rest} ${signed(sum)}` : 'change it less'}`) : null,
  ];
}

const signed = (value) => `${value > 0 ? '+' : ''}${number(value)}`;

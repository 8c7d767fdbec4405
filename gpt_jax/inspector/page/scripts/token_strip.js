// The tokens on top, coloured by their loss; a bar below each says how much a head reads it.

import { Scale } from './colours.js';
import { h, number, percent, visible } from './dom.js';
import { choose, chosen, listen, state } from './state.js';

export class TokenStrip {
  constructor(page) {
    this.page = page;
    const data = Object.fromEntries(page.analyses.map((each) => [each.name, each.data]));
    this.loss = page.loss;
    this.weights = data.attention?.weights;
    this.tokens = page.texts.map((text, position) => {
      const bar = h('i', { 'aria-hidden': 'true' });
      const button = h('button', {
        role: 'option', 'data-position': position,
        onpointerenter: (event) => event.pointerType === 'mouse' && choose({ pointed: position }),
        onclick: () => choose({ pinned: position, pointed: null }),
        onfocus: () => choose({ pinned: position, pointed: null }),
      }, h('span', {}, visible(text)), bar);
      return { button, bar };
    });
    this.bars = h('span');
    this.key = h('p', { class: 'hint legend' });
    this.list = h('div', {
      class: 'strip', role: 'listbox', 'aria-label': 'Tokens of the text', onpointerleave: () => choose({ pointed: null }),
    }, this.tokens.map(({ button }) => button));
    this.element = h('div', {}, this.list, this.key);
    listen((changed) => this.update(changed));
  }

  draw() {
    const scale = this.loss && new Scale(0, Math.max(...this.loss.filter(Number.isFinite)), 'surprise');
    this.tokens.forEach(({ button }, position) => {
      const loss = this.loss?.[position], known = Number.isFinite(loss);
      button.setAttribute('style', known ? scale.style(loss) : '');
      button.title = `token ${position}, id ${this.page.tokens[position]}` + (known ? `, loss ${number(loss)}` : '');
    });
    this.key.replaceChildren(
      ...(this.loss ? ['Shade: loss, the surprise at the token ', scale.key('nats')] : []), this.bars);
    this.update(new Set(['pinned']));
  }

  update(changed) {
    const token = chosen();
    const reads = this.weights && state.view === 'attention'
      ? this.weights.at(state.layer, state.head, token).values : null;
    this.tokens.forEach(({ button, bar }, position) => {
      button.setAttribute('aria-selected', String(position === state.pinned));
      button.classList.toggle('pointed', position === state.pointed);
      button.tabIndex = position === state.pinned ? 0 : -1;
      bar.style.width = reads ? percent(reads[position]).replace('<', '') : '0';
    });
    this.bars.textContent = reads ? `Bar: how much layer ${state.layer}, head ${state.head} reads it` : '';
    if (!changed.has('pinned')) return;
    const { button } = this.tokens[state.pinned], list = this.list;
    const above = button.offsetTop, below = above + button.offsetHeight;
    if (above < list.scrollTop || below > list.scrollTop + list.clientHeight) list.scrollTop = above - 8;
    if (list.contains(document.activeElement)) button.focus({ preventScroll: true });
  }
}

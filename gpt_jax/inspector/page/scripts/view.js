// What all views have in common.

import { h, visible } from './dom.js';

/** A view of an analysis: `draw` makes it anew, `update` follows the choice. */
export class View {
  constructor(analysis, page) {
    Object.assign(this, { analysis, page, data: analysis.data, name: analysis.name, title: analysis.title });
    this.labels = page.texts.map(visible);
    this.element = h('div', { class: 'figures' });
  }

  /** Returns what the view shows, its source, and how it misleads. */
  note() {
    const { about, source, pitfall } = this.analysis;
    return h('div', { class: 'note' },
      h('p', {}, about),
      pitfall ? h('p', { class: 'pitfall' }, h('strong', {}, 'Pitfall '), pitfall) : null,
      source ? h('p', { class: 'source' }, h('strong', {}, 'Source '), ...linked(source)) : null);
  }

  draw() {}

  update() {}

  /** Returns a titled part of the view. */
  part(title, ...children) {
    return h('div', { class: 'part' }, h('h3', {}, title), ...children);
  }
}

/** Returns a text whose addresses and arXiv numbers are links. */
function linked(text) {
  return text.split(/(https:\/\/[^\s,;)]+|arXiv:\d{4}\.\d{4,5})/).map((piece, index) => {
    if (index % 2 === 0) return piece;
    const address = piece.startsWith('arXiv:') ? `https://arxiv.org/abs/${piece.slice(6)}` : piece;
    return h('a', { href: address, rel: 'noreferrer', target: '_blank' }, piece);
  });
}

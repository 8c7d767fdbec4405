// Colours by attention: the tokens that the chosen one reads, in a layer and one of its heads.

import { choice, menu } from './controls.js';
import { h } from './dom.js';

export class AttentionColours {
  constructor(backend, { layers, heads }, text) {
    Object.assign(this, { backend, text, layer: 0, head: -1, on: false, wanted: null });
    const numbers = (count, name) => Array.from({ length: count }, (_, i) => `${name} ${i}`);
    this.menus = h('span', { hidden: true },
      menu('Layer', numbers(layers, 'layer'), 0, (layer) => { this.layer = layer; this.show(); }),
      menu('Head', ['mean of all', ...numbers(heads, 'head')], 0, (at) => { this.head = at - 1; this.show(); }));
    this.note = h('span', { class: 'hint', role: 'alert' });
    this.element = h('div', { class: 'row' },
      choice('Colours', [['probability', 'probability'], ['attention', 'attention']], 'probability', (key) => {
        this.on = key === 'attention';
        this.menus.hidden = !this.on;
        this.show();
      }), this.menus, this.note);
    text.listen(() => this.show());
  }

  /** Asks for the attention of the chosen token: one question at a time, the latest next. */
  async show() {
    const { text } = this, position = text.chosen;
    if (!this.on || position === null) {
      this.found = null;
      if (text.weights) text.showWeights(null);
      return;
    }
    if (this.found?.position === position && this.found.tokens === text.tokens) return this.colour();
    this.wanted = position;
    if (this.asking) return;
    this.asking = true;
    this.note.textContent = '';
    try {
      while (this.wanted !== null) {
        const asked = this.wanted, { tokens } = text;
        this.wanted = null;
        const found = await this.backend.attention(tokens.slice(0, asked + 1).map(({ id }) => id), asked);
        this.found = { ...found, position: asked, tokens };
      }
    } catch (error) {
      this.found = null;
      this.note.textContent = error.message;
    }
    this.asking = false;
    if (this.found && this.on && text.chosen === this.found.position && text.tokens === this.found.tokens) this.colour();
  }

  colour() {
    const { start, heads, weights, position } = this.found, size = position + 1 - start;
    const row = (head) => weights.subarray((this.layer * heads + head) * size, (this.layer * heads + head + 1) * size);
    const mean = () => Float32Array.from({ length: size }, (_, i) => {
      let sum = 0;
      for (let head = 0; head < heads; head++) sum += row(head)[i];
      return sum / heads;
    });
    const name = `layer ${this.layer}, ${this.head < 0 ? 'mean of its heads' : `head ${this.head}`}`;
    this.text.showWeights({ start, name, values: this.head < 0 ? mean() : row(this.head) });
  }
}

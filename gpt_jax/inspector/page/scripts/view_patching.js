// Patching: how far each value of another text moves the prediction to that text's.

import { h, number, visible } from './dom.js';
import { GenericView } from './view_generic.js';

const TITLES = {
  residual: 'Residual stream before the layer', heads: 'Heads, at all positions',
  attention: 'Output of attention', mlp: 'Output of the MLP',
};

export class PatchingView extends GenericView {
  constructor(analysis, page) {
    super(analysis, page);
    const { token_text: token, other_token_text: other, difference, other_difference: end } = this.data;
    this.element.prepend(h('p', { class: 'value' },
      `From ${visible(token)} to ${visible(other)}. The difference of their logits is ${number(difference)} ` +
      `after this text and ${number(end)} after the other, whose tokens stand after the arrows.`));
  }

  /** Returns the arrays that were asked for by what they are, in the order of their use. */
  arrays() {
    return Object.entries(TITLES).filter(([name]) => name in this.data)
      .map(([name, title]) => [title, this.data[name]]);
  }

  /** Returns the labels: of a token that differs, that of both texts. */
  names(dim, count) {
    if (dim !== 'position') return super.names(dim, count);
    return this.labels.map((label, i) => {
      const other = visible(this.data.other_texts[i]);
      return label === other ? label : `${label}→${other}`;
    });
  }
}

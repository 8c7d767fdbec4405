// The residual stream: lengths at the chosen token, and maps of lengths and cosines.

import { h } from './dom.js';
import { placeChart } from './place_chart.js';
import { chosen } from './state.js';
import { GenericView } from './view_generic.js';

export class ResidualView extends GenericView {
  constructor(analysis, page) {
    super(analysis, page);
    this.here = h('div');
    this.element.prepend(this.here);
  }

  /** The cosines with the layer before begin with layer 1. */
  names(dim, count) {
    const names = super.names(dim, count + 1);
    const first = dim === 'layer' && count < this.data.norms.size('stage') - 1;
    return first ? names.slice(1) : super.names(dim, count);
  }

  update() {
    super.update();
    const token = chosen(), { norms, attention_norms: attention, mlp_norms: mlp } = this.data;
    const places = Array.from({ length: attention.size('layer') }, (_, layer) => String(layer));
    this.here.replaceChildren(this.part(`Lengths at ${this.labels[token]} (${token}), by layer`,
      placeChart('Lengths by layer', places, [
        ['stream after the layer', [...norms.column(token)].slice(1)],
        ['written by attention', [...attention.column(token)]],
        ['written by the MLP', [...mlp.column(token)]],
      ])));
  }
}

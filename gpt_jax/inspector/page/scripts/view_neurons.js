// Neurons: their activations in the text, and the tokens at which each is highest.

import { Scale } from './colours.js';
import { h, number, visible } from './dom.js';
import { GenericView } from './view_generic.js';

const EXAMPLES = 5; // examples of each neuron

export class NeuronsView extends GenericView {
  arrays() {
    return [['Activations in the text', this.data.activations]];
  }

  names(dim, count) {
    return dim === 'chosen' ? this.data.neurons.map(([layer, neuron]) => `${layer}.${neuron}`)
      : super.names(dim, count);
  }

  summary() {
    this.examples = h('div', { class: 'parts' });
    return this.part('Where each is highest', this.examples);
  }

  draw() {
    super.draw();
    this.examples.replaceChildren(...this.data.neurons.map(([layer, neuron], index) =>
      this.part(`Layer ${layer}, neuron ${neuron}`, this.list(this.data.examples[index].slice(0, EXAMPLES)))));
  }

  list(examples) {
    const scale = new Scale(0, Math.max(...examples.flatMap(({ values }) => values), 0));
    return h('ol', { class: 'examples' }, examples.map(({ value, values, texts, at }) => h('li', {},
      h('span', { class: 'amount' }, number(value)),
      texts.map((text, i) => [h('wbr'), h('span', {
        class: i === at ? 'token actual' : 'token', style: scale.style(values[i]), title: number(values[i]),
      }, visible(text))]))));
  }
}

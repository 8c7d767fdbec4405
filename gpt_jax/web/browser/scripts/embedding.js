// The first values of the residual stream: embeddings of tokens and of positions.

import { addWaves } from './parts.js';

export class Embedding {
  constructor(config, weights) {
    this.config = config;
    this.table = weights.matrix('embedding.table');
    this.positions = config.position === 'learned' ? weights.matrix('position.table') : null;
  }

  /** Writes the rows of tokens, the first of which is at position `start`. */
  write(ids, start, x) {
    const { config: { width, embeddingScale } } = this;
    ids.forEach((id, t) => {
      this.table.copyRow(id, x, t * width);
      if (embeddingScale !== 1) for (let i = t * width; i < (t + 1) * width; i++) x[i] *= embeddingScale;
      this.addPosition(x, t * width, start + t);
    });
  }

  addPosition(x, at, position) {
    const { config: { width, context, position: kind, positionOffset }, positions } = this;
    if (kind === 'sinusoidal') addWaves(x, at, width, position);
    if (kind !== 'learned') return;
    const row = (Math.min(position, context - 1) + positionOffset) * width;
    for (let i = 0; i < width; i++) x[at + i] += positions.values[row + i];
  }
}

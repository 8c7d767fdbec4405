// The views of a page: those of the analyses whose data it has.

import { AttentionView, RolloutView } from './view_attention.js';
import { LensView } from './view_lens.js';
import { TokensView } from './view_tokens.js';
import { AblationView, AttributionView } from './view_impact.js';
import { NeuronsView } from './view_neurons.js';
import { PatchingView } from './view_patching.js';
import { ResidualView } from './view_residual.js';
import { GenericView } from './view_generic.js';

// Views by the name of an analysis; any other analysis is drawn by the dimensions of its data.
const VIEWS = {
  token_loss: [TokensView],
  attention: [AttentionView, RolloutView],
  lens: [LensView],
  attribution: [AttributionView],
  ablation: [AblationView],
  residual: [ResidualView],
  patching: [PatchingView],
  neurons: [NeuronsView],
};

/** Returns the views of all analyses in the page, in their order. */
export function makeViews(page) {
  return page.analyses.flatMap((analysis) =>
    (VIEWS[analysis.name] ?? [GenericView]).map((Kind) => new Kind(analysis, page)));
}

"""A network of two layers whose weights are set by hand, so that its heads are known."""

import flax.linen as nn
import jax
import numpy as np

from gpt_jax.inspector import Inspector
from gpt_jax.model.gpt import abstract_params
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer
from tests.model_configs import make_config

TOKENS, POSITIONS = 32, 64
PREVIOUS, INDUCTION = (0, 0), (1, 1)  # (layer, head); the other two heads write nothing
SHARPNESS = 10.0  # of queries: attention then rests on one place


def make_circuit() -> Inspector:
    """A network that copies what followed the last occurrence of the token.

    The residual stream holds four groups of one-hot numbers: the token, its position, the token
    before (written by the head of layer 0), and the prediction (written by that of layer 1).
    """
    config = make_config(
        vocab_size=TOKENS,
        max_seq_len=POSITIONS,
        num_layers=2,
        num_heads=2,
        d_model=3 * TOKENS + POSITIONS,
        d_ff=8,
        head_dim=POSITIONS,
        norm='rmsnorm',
        use_bias=False,
        tie_embeddings=False,
        final_norm=False,
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), nn.unbox(abstract_params(config)))
    token, position = slice(TOKENS), slice(TOKENS, TOKENS + POSITIONS)
    before = slice(position.stop, position.stop + TOKENS)
    predicted = slice(before.stop, before.stop + TOKENS)
    params['embedding']['table'][:TOKENS, token] = np.eye(TOKENS)
    params['position']['table'][:, position] = np.eye(POSITIONS)
    params['output']['table'][:TOKENS, predicted] = 12 * np.eye(TOKENS)
    blocks = params['blocks']
    for norm in ('attention_norm', 'mlp_norm'):
        blocks[norm]['scale'][:] = 1
    query, key, value, output = (
        blocks['attention'][name]['kernel'] for name in ('query', 'key', 'value', 'output')
    )
    query[0, position, 0] = SHARPNESS * np.eye(POSITIONS, k=-1)  # position i looks for i - 1
    key[0, position, 0] = np.eye(POSITIONS)
    query[1, token, 1, :TOKENS] = SHARPNESS * np.eye(TOKENS)  # looks for itself, one place before
    key[1, before, 1, :TOKENS] = np.eye(TOKENS)
    key[1, TOKENS, 1, :TOKENS] = -1  # the first token has none before it, and reads itself
    for (layer, head), target in ((PREVIOUS, before), (INDUCTION, predicted)):
        groups = layer + 2  # of ones, by which the norm divides
        value[layer, token, head, :TOKENS] = (groups / config.d_model) ** 0.5 * np.eye(TOKENS)
        output[layer, head, :TOKENS, target] = np.eye(TOKENS)
    return Inspector(config, params, make_tokenizer(TokenizerConfig(), tuple))

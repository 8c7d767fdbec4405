"""The points of a trained model hold its stored activations."""

import base64
import json

import jax
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.tokenizer.char import CharTokenizer

torch = pytest.importorskip('torch', reason='reads the weights; pinned on 3.11 only')


def read_arrays(path):
    """The config and the float32 arrays of a JSON file of base64."""
    stored = json.loads(path.read_text())
    config = stored.pop('config')
    arrays = {
        name: np.frombuffer(base64.b64decode(entry['data']), '<f4').reshape(entry['shape'])
        for name, entry in stored.items()
    }
    return config, arrays


def test_every_stored_activation(shared_data, tmp_path):
    """minGPT's sorter, whose activations were stored by its own code."""
    folder = shared_data / 'weights' / 'mingpt_sort'
    config, weights = read_arrays(folder / 'gpt-nano-sort-model.json')
    _, stored = read_arrays(folder / 'gpt-nano-sort-t0-partials.json')
    state = {name: torch.tensor(array) for name, array in weights.items()}
    torch.save({'model': state, 'config': config}, tmp_path / 'ckpt.pt')
    gpt = GPT.from_pretrained(tmp_path / 'ckpt.pt', tokenizer=CharTokenizer('012'))
    seen = [gpt.inspect(row) for row in stored.pop('idx').astype(int).tolist()]

    def rows(point):
        return np.stack([each[point].values for each in seen])

    def by_head(name):
        return rows(f'blocks.0.attention.{name}').swapaxes(1, 2)

    def side_by_side(name):
        values = rows(f'blocks.0.attention.{name}')
        return values.reshape(*values.shape[:2], -1)

    scores = by_head('scores').swapaxes(1, 2)
    hidden = np.triu(np.ones(scores.shape[-2:], bool), 1)
    ours = {
        'tok_emb': rows('embedding'),
        'pos_emb': (rows('blocks.0.residual_before') - rows('embedding'))[:1],
        'x': rows('blocks.0.residual_before'),
        'ln1': rows('blocks.0.attention_input'),
        'qkv': np.concatenate([side_by_side(name) for name in ('query', 'key', 'value')], -1),
        'q': by_head('query'),
        'k': by_head('key'),
        'v': by_head('value'),
        'att': np.where(hidden, -np.inf, scores),
        'attSm': rows('blocks.0.attention.weights'),
        'y': side_by_side('heads'),
        'yProj': rows('blocks.0.attention_output'),
        'attnResid': rows('blocks.0.residual_middle'),
        'ln2': rows('blocks.0.mlp_input'),
        'fc': rows('blocks.0.mlp.up'),
        'gelu': rows('blocks.0.mlp.hidden'),
        'mlp': rows('blocks.0.mlp_output'),
        'mlpResid': rows('blocks.0.residual_after'),
        **{f'block{i}': rows(f'blocks.{i}.residual_after') for i in range(3)},
        'ln_f': rows('final_norm'),
        'lm_head': rows('logits'),
        'probs': np.asarray(jax.nn.softmax(rows('logits'))),
    }
    assert ours.keys() == stored.keys()
    for name, array in stored.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5, err_msg=name)

"""TransformerLens has the same values under its names; opt-in: pip install transformer-lens."""

import numpy as np
import pytest

from gpt_jax.inspector import Inspector
from gpt_jax.inspector.points import ONCE, TRANSFORMER_LENS
from tests.weights.random_source import GPT2, LLAMA, bpe_tokenizer, write_folder

pytest.importorskip('transformer_lens', reason='pip install transformer-lens')

TOLERANCE = 1e-4
TOKENS = [5, 7, 100, 42, 7, 7, 9, 200]
MODELS = {
    'gpt2': GPT2,
    'llama': LLAMA,
    'qwen2': LLAMA | dict(qkv_bias=True),
    'qwen3': LLAMA | dict(qk_norm=True, head_dim=16),
    'gpt_neox': GPT2
    | dict(
        position='rope',
        rope=dict(fraction=0.25),
        parallel_residual='two_norms',
        mlp=dict(activation='gelu', bias=True),
        tie_embeddings=False,
        use_bias=False,
        norm_bias=True,
        attention=dict(qkv_bias=True, output_bias=True),
    ),
    'gemma2': LLAMA
    | dict(
        norm_placement='sandwich',
        norm_zero_centered=True,
        scale_embedding=True,
        mlp='geglu',
        attention_soft_cap=5.0,
        output_soft_cap=3.0,
        tie_embeddings=True,
        attention=dict(query_pre_attn_scalar=4.0),
        layer_kinds=(4, 0),
    ),
}

# Names that TransformerLens has no value for.
MISSING = {
    'gpt2': {'attn.hook_rot_q', 'attn.hook_rot_k', 'mlp.hook_pre_linear'},
    'gpt_neox': {
        *('attn.hook_rot_q', 'attn.hook_rot_k', 'mlp.hook_pre_linear'),
        'hook_resid_mid',  # attention and MLP run in parallel
    },
}


def open_bridge(folder):
    """The recipe of docs/inspect.md."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation='eager'
    )
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=model, device='cpu')
    bridge.enable_compatibility_mode(no_processing=True)
    return bridge


@pytest.mark.parametrize('name', MODELS)
def test_every_name_has_the_same_values(name, tmp_path):
    import torch

    config, params = write_folder(tmp_path, **MODELS[name])
    seen = Inspector(config, params, bpe_tokenizer()).inspect(TOKENS)
    with torch.no_grad():
        _, cache = open_bridge(tmp_path).run_with_cache(torch.tensor([TOKENS]))
    missing, largest = set(), {}
    for ours, theirs in TRANSFORMER_LENS.items():
        for layer in [None] if ours in ONCE else range(config.num_layers):
            full = theirs if layer is None else f'blocks.{layer}.{theirs}'
            if full not in cache:
                missing.add(theirs)
                continue
            expected, found = cache[full][0].float().numpy(), seen[full].values
            if ours == 'attention.scores':  # masked ones are -inf there, and -1e30 here
                visible = found > -1e29
                expected, found = expected[visible], found[visible]
            scalar = config.attention.query_pre_attn_scalar
            if ours == 'attention.query' and scalar:  # ours has the scale of the scores
                found = found / (config.head_dim / scalar) ** 0.5
            assert expected.shape == found.shape, full
            difference = float(np.abs(expected - found).max())
            largest[theirs] = max(largest.get(theirs, 0.0), difference)
    print(name, largest)
    assert max(largest.values()) <= TOLERANCE, largest
    assert missing == MISSING.get(name, set())

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
        mlp='gelu',
        tie_embeddings=False,
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
    missing, different = set(), {}
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
            shape = expected.shape
            if shape != found.shape:
                different[full] = f'{shape} and {found.shape}'
            elif (difference := np.abs(expected - found).max()) > TOLERANCE:
                different[full] = float(difference)
            print(f'{full:<32} {np.abs(expected - found).max() if shape == found.shape else ""}')
    assert not different
    unknown = {'mlp.hook_pre_linear'} if config.mlp.activation.startswith('gelu') else set()
    if config.position == 'learned':
        unknown |= {'attn.hook_rot_q', 'attn.hook_rot_k'}
    assert missing == unknown

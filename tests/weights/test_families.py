"""Every family of transformers: its models come in, and go out again as they were."""

import json

import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.model.config import DType
from gpt_jax.weights import open_source, safetensors_files
from gpt_jax.weights.exporters import find_exporter
from tests.weights.random_source import bpe_tokenizer, load, logits

transformers = pytest.importorskip('transformers', reason='the reference, pinned on 3.11 only')
torch = pytest.importorskip('torch')

TOKENS = np.random.default_rng(0).integers(3, 300, (2, 28))
TOLERANCE = 1e-4  # of the largest logit
NEW = 20  # tokens

SIZES = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.2,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
GROUPED = SIZES | dict(num_key_value_heads=2)


def rope(**values) -> dict:
    return dict(rope_parameters=dict(rope_type='default', rope_theta=10000.0) | values)


OPT = {
    key: value
    for key, value in SIZES.items()
    if key not in ('intermediate_size', 'initializer_range')
} | dict(ffn_dim=48, word_embed_proj_dim=32, init_std=0.2)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
YARN = dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16)
DEEPSEEK = SIZES | dict(
    kv_lora_rank=12,
    q_lora_rank=None,
    qk_nope_head_dim=8,
    qk_rope_head_dim=6,
    v_head_dim=10,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=2,
    moe_intermediate_size=12,
    first_k_dense_replace=1,
)
GEMMA3_ROPE = dict(
    full_attention=dict(rope_type='linear', factor=8.0, rope_theta=5e4),
    sliding_attention=dict(rope_type='default', rope_theta=1e3),
)
FAMILIES = {
    'mistral': ('mistral', GROUPED | dict(sliding_window=7, head_dim=10)),
    'llama, attention_bias': ('llama', GROUPED | dict(attention_bias=True)),
    'llama, all biases': ('llama', SIZES | dict(attention_bias=True, mlp_bias=True, head_dim=10)),
    'qwen2, windows': (
        'qwen2',
        GROUPED | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    'qwen3, biases': ('qwen3', GROUPED | dict(attention_bias=True, head_dim=10)),
    'gpt_neox': ('gpt_neox', SIZES),
    'gpt_neox, sequential': (
        'gpt_neox',
        SIZES | dict(use_parallel_residual=False, attention_bias=False, hidden_act='gelu_new'),
    ),
    'gpt_neox, tied, rotated by half': (
        'gpt_neox',
        SIZES
        | dict(tie_word_embeddings=True, layer_norm_eps=1e-3)
        | rope(rope_type='linear', factor=2.0, partial_rotary_factor=0.5),
    ),
    'olmo2': ('olmo2', SIZES),
    'olmo2, grouped, biases': ('olmo2', GROUPED | dict(attention_bias=True)),
    'gemma2': (
        'gemma2',
        GROUPED
        | dict(
            head_dim=10,
            query_pre_attn_scalar=17,
            sliding_window=6,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=5.0,
        ),
    ),
    'gemma2, other layers, no caps, untied': (
        'gemma2',
        SIZES
        | dict(
            head_dim=8,
            sliding_window=5,
            num_hidden_layers=3,
            layer_types=['full_attention', 'full_attention', 'sliding_attention'],
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            tie_word_embeddings=False,
        ),
    ),
    'phi3': ('phi3', GROUPED | dict(sliding_window=6)),
    'phi3, rotated in part': (
        'phi3',
        SIZES | dict(tie_word_embeddings=True) | rope(partial_rotary_factor=0.5),
    ),
    'stablelm': ('stablelm', GROUPED),
    'stablelm, parallel, biases': (
        'stablelm',
        SIZES
        | dict(use_parallel_residual=True, use_qkv_bias=True, num_key_value_heads=4)
        | rope(partial_rotary_factor=0.5),
    ),
    'opt': ('opt', OPT),
    'opt, untied, no biases': (
        'opt',
        OPT | dict(enable_bias=False, activation_function='gelu', tie_word_embeddings=False),
    ),
    'opt, post-norm': ('opt', OPT | dict(do_layer_norm_before=False)),
    'opt, no final norm': ('opt', OPT | dict(_remove_final_layer_norm=True)),
    'mixtral': ('mixtral', GROUPED | dict(num_local_experts=3)),
    'mixtral, a window, one expert per token': (
        'mixtral',
        GROUPED
        | dict(
            num_local_experts=4,
            num_experts_per_tok=1,
            sliding_window=6,
            head_dim=10,
            tie_word_embeddings=True,
            router_aux_loss_coef=0.05,
        ),
    ),
    'olmoe': ('olmoe', SIZES | EXPERTS | dict(num_key_value_heads=4)),
    'olmoe, grouped, biases, normalized': (
        'olmoe',
        GROUPED | EXPERTS | dict(attention_bias=True, norm_topk_prob=True),
    ),
    'qwen3_moe': (
        'qwen3_moe',
        GROUPED
        | EXPERTS
        | dict(moe_intermediate_size=24, norm_topk_prob=True, head_dim=10)
        | dict(use_sliding_window=True, sliding_window=6),
    ),
    'qwen3_moe, dense layers': (
        'qwen3_moe',
        GROUPED
        | EXPERTS
        | dict(moe_intermediate_size=24, num_hidden_layers=4, attention_bias=True)
        | dict(mlp_only_layers=[1], decoder_sparse_step=2),
    ),
    'smollm3': ('smollm3', GROUPED | dict(num_hidden_layers=4)),
    'smollm3, windows, biases, untied': (
        'smollm3',
        GROUPED
        | dict(num_hidden_layers=3, no_rope_layers=[0, 1, 0], tie_word_embeddings=False)
        | dict(use_sliding_window=True, sliding_window=5, attention_bias=True, mlp_bias=True),
    ),
    'gemma3_text, scaled': (
        'gemma3_text',
        GROUPED
        | dict(head_dim=10, query_pre_attn_scalar=17, sliding_window=6, num_hidden_layers=7)
        | dict(rope_parameters=GEMMA3_ROPE),
    ),
    'gemma3_text, other layers, a cap, untied': (
        'gemma3_text',
        GROUPED
        | dict(head_dim=8, sliding_window=5, final_logit_softcapping=5.0)
        | dict(layer_types=['full_attention', 'sliding_attention'], tie_word_embeddings=False),
    ),
    'deepseek_v2, as Lite': (
        'deepseek_v2',
        DEEPSEEK | rope(**YARN, mscale=0.707, mscale_all_dim=0.707, beta_fast=8),
    ),
    'deepseek_v2, latent queries, biases, scaled gates': (
        'deepseek_v2',
        DEEPSEEK
        | dict(q_lora_rank=9, attention_bias=True, routed_scaling_factor=1.7)
        | dict(topk_method='group_limited_greedy', n_group=1, topk_group=1)
        | rope(**YARN, mscale=1.5, mscale_all_dim=0.9),
    ),
    'deepseek_v2, experts in all layers, one shared, tied': (
        'deepseek_v2',
        DEEPSEEK
        | dict(first_k_dense_replace=0, n_shared_experts=1, num_hidden_layers=1)
        | dict(tie_word_embeddings=True),
    ),
    'deepseek_v2, no experts': ('deepseek_v2', DEEPSEEK | dict(first_k_dense_replace=2)),
    'gpt2, scaled by layer': (
        'gpt2',
        dict(
            vocab_size=300,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            scale_attn_by_inverse_layer_idx=True,
        ),
    ),
    'llama, yarn': ('llama', GROUPED | rope(**YARN)),
    'llama, yarn with mscale': (
        'llama',
        GROUPED | rope(**YARN, mscale=1.5, mscale_all_dim=0.7, beta_fast=8, truncate=False),
    ),
    'llama, yarn with attention_factor': (
        'llama',
        GROUPED | rope(**YARN, attention_factor=1.3, beta_slow=2),
    ),
}


@pytest.mark.parametrize(('kind', 'values'), FAMILIES.values(), ids=FAMILIES)
def test_logits_text_and_files(kind, values, tmp_path, request):
    """Random weights of some size, biases and norms included, so that each of them counts."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **values), attn_implementation='eager'
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / 'theirs')
    source, params = load(tmp_path / 'theirs')
    config = source.model

    expected = their_logits(model, TOKENS)
    scale = np.abs(expected).max()
    difference = np.abs(logits(config, params, TOKENS) - expected).max() / scale
    request.node.user_properties.append(('difference', float(difference)))
    print(f'{request.node.callspec.id}: {difference:.1e}')
    assert difference <= TOLERANCE

    # Greedy text: each of our tokens is the most likely one of transformers.
    text = TOKENS[:, :8]
    for _ in range(NEW):
        padded = np.pad(text, ((0, 0), (0, 8 + NEW - text.shape[1])))
        last = logits(config, params, padded)[:, text.shape[1] - 1]
        text = np.concatenate([text, last.argmax(-1)[:, None]], -1)
    theirs = their_logits(model, text)[:, 7:-1].argmax(-1)
    np.testing.assert_array_equal(theirs, text[:, 8:])

    out = tmp_path / 'ours'
    export = find_exporter(kind)
    export(out, config, params, bpe_tokenizer(), dtype=DType.FLOAT32)
    before, after = (
        safetensors_files.read_file(folder / 'model.safetensors')
        for folder in (tmp_path / 'theirs', out)
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor.read(), after[name].read(), err_msg=name)
    again = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation='eager')
    assert type(again) is type(model)
    np.testing.assert_array_equal(their_logits(again, TOKENS), expected)
    assert open_source(str(out)).model == config


def their_logits(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


LATENT = dict(num_experts_per_tok=2)
REFUSED = {
    'clipped queries': ('olmoe', dict(clip_qkv=8.0), 'clip_qkv=8.0'),
    'shared experts': ('mixtral', dict(n_shared_experts=1), 'n_shared_experts=1'),
    'no experts': ('qwen3_moe', dict(num_experts=0, num_experts_per_tok=0), 'num_experts=0'),
    'no step': ('qwen3_moe', dict(decoder_sparse_step=0), 'decoder_sparse_step=0'),
    'layers without positions': ('smollm3', dict(no_rope_layers=[1]), '1 no_rope_layers'),
    'capped scores of Gemma 3': (
        'gemma3_text',
        dict(hidden_activation='gelu_pytorch_tanh', attn_logit_softcapping=50.0),
        'attn_logit_softcapping=50.0',
    ),
    'scaled local positions': (
        'gemma3_text',
        dict(
            hidden_activation='gelu_pytorch_tanh',
            rope_parameters=dict(sliding_attention=dict(rope_type='linear', factor=2.0)),
        ),
        "rope_type='linear', which is not supported",
    ),
    'longrope': (
        'llama',
        dict(rope_parameters=dict(rope_type='longrope', factor=2.0)),
        "rope_type='longrope', which is not supported; supported: 'default'",
    ),
    'part of the rotation': (
        'mistral',
        dict(rope_parameters=dict(partial_rotary_factor=0.5)),
        'partial_rotary_factor=0.5',
    ),
    'longrope of Phi-3': (
        'phi3',
        dict(rope_scaling=dict(type='longrope', short_factor=[1.0], long_factor=[2.0])),
        "rope_type='longrope', which is not supported; supported: 'default'",
    ),
    'su': ('phi3', dict(rope_scaling=dict(type='su')), "rope_type='su'"),
    'norms of heads': ('stablelm', dict(qk_layernorm=True), 'qk_layernorm=True'),
    'no norms': (
        'opt',
        dict(layer_norm_elementwise_affine=False, ffn_dim=48),
        'layer_norm_elementwise_affine=False',
    ),
    'OPT 350M': ('opt', dict(word_embed_proj_dim=16), 'word_embed_proj_dim=16.*supported: 32'),
    'both directions': (
        'gemma2',
        dict(use_bidirectional_attention=True),
        'use_bidirectional_attention=True',
    ),
    'groups of experts': (
        'deepseek_v2',
        LATENT | dict(topk_method='group_limited_greedy', n_group=8, topk_group=3),
        'n_group=8, which is not supported; supported: 1',
    ),
    'choice of experts': ('deepseek_v2', LATENT | dict(topk_method='noaux_tc'), 'topk_method='),
    'gates of a sum': ('deepseek_v2', LATENT | dict(norm_topk_prob=True), 'norm_topk_prob=True'),
    'sigmoid': ('deepseek_v2', LATENT | dict(scoring_func='sigmoid'), "scoring_func='sigmoid'"),
    'every second': ('deepseek_v2', LATENT | dict(moe_layer_freq=2), 'moe_layer_freq=2'),
    'no shared experts': ('deepseek_v2', LATENT | dict(n_shared_experts=0), 'n_shared_experts=0'),
    'heads of keys': ('deepseek_v2', LATENT | dict(num_key_value_heads=2), 'num_key_value_heads=2'),
    'biases of MLPs': ('deepseek_v2', LATENT | dict(mlp_bias=True), 'mlp_bias=True'),
    'two epsilons': ('deepseek_v2', LATENT | dict(rms_norm_eps=1e-5), 'rms_norm_eps=1e-05'),
    'kinds of layers': ('qwen2', dict(layer_types=['sliding_attention'] * 2), 'layer_types='),
}


@pytest.mark.parametrize(('kind', 'changes', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(kind, changes, message, tmp_path):
    config = dict(SIZES, model_type=kind, hidden_act='silu')
    (tmp_path / 'config.json').write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message) as raised:
        open_source(str(tmp_path))
    assert '\n' not in str(raised.value)

"""Each family of transformers that llama.cpp knows goes out to GGUF and comes back."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.attention import GroupedQuery
from gpt_jax.model.config import DropoutConfig, InitConfig
from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.weights import gguf_families
from gpt_jax.weights.export import named_tensors
from gpt_jax.weights.gguf_export import FILE, export_gguf
from gpt_jax.weights.transformers_folder import FAMILIES
from tests.weights.gguf_models import (
    DEEPSEEK,
    GEMMA,
    GROUPED,
    MODELS,
    SIZES,
    YARN,
    family,
    make,
    rope,
)
from tests.weights.random_source import bpe_tokenizer, load, logits, weight_shapes

gguf = pytest.importorskip('gguf')

TOKENS = np.random.default_rng(0).integers(0, 300, (1, 24))


def converted(name, model, tensors):
    """What llama.cpp's converter writes for tensors of transformers, by name in the file."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[name], model.num_layers)
    expected, experts = {}, {}
    for theirs, tensor in tensors:
        merged = re.sub(r'\.experts\.\d+', '.experts', theirs)
        if 'query_key_value' in theirs:
            heads = tensor.reshape(model.num_heads, 3, model.head_dim, *tensor.shape[1:])
            tensor = np.concatenate([heads[:, i].reshape(-1, *tensor.shape[1:]) for i in range(3)])
        if name in ('llama', 'smollm3') and re.search(r'[qk]_proj', theirs):
            halves = tensor.reshape(-1, 2, model.head_dim // 2, tensor.shape[-1])
            tensor = np.stack([halves[:, 0], halves[:, 1]], 2).reshape(tensor.shape)
        if name in ('gemma2', 'gemma3') and theirs.endswith('norm.weight'):
            tensor = tensor + np.float32(1)
        if 'kv_b_proj' in theirs:
            heads = tensor.reshape(model.num_heads, -1, tensor.shape[-1])
            keys, values = np.split(heads, [model.head_dim], 1)
            for part, of_heads in (('k', keys.transpose(0, 2, 1)), ('v', values)):
                module = theirs.replace('kv_b_proj', f'{part}_b_proj')
                expected[names.get_name(module, try_suffixes=('.weight',))] = of_heads
            continue
        found = names.get_name(merged, try_suffixes=('.weight', '.bias'))
        assert found, theirs
        if merged != theirs:
            experts.setdefault(found, []).append(tensor)
        else:
            expected[found] = tensor
    return expected | {found: np.stack(each) for found, each in experts.items()}


def without_training(model):
    """The architecture without knobs that change no logit, and with its own query scalar."""
    attention, mlp = model.attention, model.mlp
    if isinstance(attention, GroupedQuery):
        scalar = float(attention.query_pre_attn_scalar or model.head_dim)
        attention = dataclasses.replace(attention, query_pre_attn_scalar=scalar)
    if isinstance(mlp, MixtureOfExperts):
        mlp = dataclasses.replace(mlp, balance_loss=0.0)
    init, dropouts = InitConfig(), DropoutConfig()
    return dataclasses.replace(model, attention=attention, mlp=mlp, init=init, dropouts=dropouts)


@pytest.mark.parametrize(('name', 'kind', 'keys'), MODELS.values(), ids=MODELS)
def test_out_and_in(name, kind, keys, tmp_path):
    """The file is the converter's, and gives the same parameters.

    Bit for bit; but of zero-centered norms the same 1 + scale, which is rounded once.
    """
    model = freeze(make(kind, keys))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.normal(0, 0.2, x.shape).astype(np.float32)),
        weight_shapes(model),
    )
    export_gguf(tmp_path, model, params, bpe_tokenizer(), dtype='float32')
    file = gguf.GGUFReader(tmp_path / FILE)
    assert file.fields['general.architecture'].contents() == name
    has_pattern = f'{name}.attention.sliding_window_pattern' in file.fields
    assert has_pattern == (name == 'gemma2' and 'layer_types' in keys)
    written = {tensor.name: tensor.data for tensor in file.tensors}
    expected = converted(name, model, named_tensors(model, params, family(kind).layout(model), 'f'))
    assert written.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(written[tensor], values, err_msg=tensor)
    source, found = load(tmp_path / FILE)

    def compare(path, theirs, ours):
        rows = model.vocab_size if 'table' in str(path[-1]) else None
        theirs, ours = theirs[:rows], ours[:rows]
        if model.norm_zero_centered and 'scale' in str(path[-1]):
            theirs, ours = 1 + theirs, 1 + ours
        np.testing.assert_array_equal(theirs, ours, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, found, params)
    assert freeze(without_training(source.model)) == freeze(without_training(model))
    if model.norm_zero_centered and kind == 'gemma2':
        ours, theirs = logits(model, params, TOKENS), logits(source.model, found, TOKENS)
        np.testing.assert_array_equal(theirs, ours)
    (tmp_path / 'again').mkdir()
    export_gguf(tmp_path / 'again', source.model, found, bpe_tokenizer(), dtype='float32')
    assert (tmp_path / 'again' / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


def test_every_family_is_named():
    """A family goes to one architecture, or is refused."""
    known = [kind for each in gguf_families.ARCHITECTURES for kind in each.model_types]
    assert len(known) == len({*known})
    families = {kind for each in FAMILIES for kind in each.model_types}
    assert families - {*known} == {'opt', 'gpt_jax'}
    assert {kind for _, kind, _ in MODELS.values()} | {'gpt2', 'qwen2'} == {*known}


NEOX = SIZES | dict(hidden_act='gelu_new')
REFUSED = {
    'opt': (
        'opt',
        dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        | dict(ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
        '--format gguf has no opt; --format hf takes it',
    ),
    'window of Mistral': (
        'mistral',
        GROUPED | dict(sliding_window=8),
        "llama.cpp's llama has no config.model.layer_kinds",
    ),
    'window of Phi-3': (
        'phi3',
        GROUPED | dict(sliding_window=8) | rope(partial_rotary_factor=0.5),
        "llama.cpp's phi3 has no config.model.layer_kinds with window=8",
    ),
    'exact GELU': ('gpt_neox', SIZES, "llama.cpp's gptneox has no config.model.mlp=gelu"),
    'biases': ('gpt_neox', NEOX | dict(attention_bias=False), 'gptneox has no .*qkv_bias=False'),
    'tied': (
        'gpt_neox',
        NEOX | dict(tie_word_embeddings=True),
        'gptneox has no .*tie_embed.*=True',
    ),
    'untied': ('gemma2', GEMMA | dict(tie_word_embeddings=False), 'gemma2 has no .*=False'),
    'caps': (
        'gemma2',
        GEMMA | dict(attn_logit_softcapping=None),
        'gemma2 has no config.model.attention_soft_cap=0.0',
    ),
    'scores': (
        'gemma3_text',
        GEMMA | dict(query_pre_attn_scalar=17),
        'gemma3 has no config.model.attention.query_pre_attn_scalar=17.0',
    ),
    'layers that do not rotate': (
        'smollm3',
        GROUPED | dict(no_rope_layers=[0, 1, 1]),
        'smollm3 has no config.model.layer_kinds with rope=False',
    ),
    'gates': (
        'qwen3_moe',
        GROUPED | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
        'qwen3moe has no config.model.mlp.normalize_gates=False',
    ),
    'grouped experts': (
        'olmoe',
        GROUPED | dict(num_experts=4, num_experts_per_tok=2),
        'olmoe has no config.model.num_kv_heads=2',
    ),
    'biases of latents': (
        'deepseek_v2',
        DEEPSEEK | dict(attention_bias=True),
        'deepseek2 has no config.model.attention.bias=True',
    ),
    'latent queries of Lite': (
        'deepseek_v2',
        DEEPSEEK | dict(q_lora_rank=9, num_hidden_layers=27),
        'deepseek2 has no config.model.attention.q_rank=9 with 27 layers',
    ),
    'scores without mscale': (
        'deepseek_v2',
        DEEPSEEK | rope(**YARN),
        'deepseek2 has no config.model.attention.yarn_mscale=0.0',
    ),
    'linear scaling of latents': (
        'deepseek_v2',
        DEEPSEEK | rope(rope_type='linear', factor=2.0),
        'deepseek2 has no config.model.rope.scaling=2.0',
    ),
    'bounds of YaRN': (
        'llama',
        GROUPED
        | rope(rope_type='yarn', factor=4.0, original_max_position_embeddings=16, truncate=False),
        'llama has no config.model.rope.yarn_truncate=False',
    ),
}


@pytest.mark.parametrize(('kind', 'keys', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_lacks(kind, keys, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        export_gguf(tmp_path, make(kind, keys), None, bpe_tokenizer(), dtype='float32')
    assert '\n' not in str(raised.value)
    assert not list(tmp_path.iterdir())

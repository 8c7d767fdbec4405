"""The DeepSeek-V2 family: DeepseekV2ForCausalLM.

DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434: latent attention, of which neighbouring pairs
are rotated, and small experts besides shared ones, but for the first layers.
"""

import dataclasses
from typing import Any

from gpt_jax.model.attention import Latent
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.weights.config_parts import Key, Part, Require, Rope
from gpt_jax.weights.described_family import DescribedFamily
from gpt_jax.weights.expert_parts import INERT, BalanceLoss, FirstLayersDense, expert_tensors
from gpt_jax.weights.layer_parts import take_interval
from gpt_jax.weights.layout import ANY
from gpt_jax.weights.llama import ACTIVATION, FIXED, SIZES, TENSORS, TIED
from gpt_jax.weights.source import ConfigReader


class Heads(Part):
    """The numbers of heads, which are equal, and the width of their values."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the width."""
        c.require('num_key_value_heads', model.num_heads)
        model.attention.value_dim = c.take_int('v_head_dim', 128)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the keys."""
        return {
            'num_key_value_heads': model.num_heads,
            'v_head_dim': model.attention.value_width(model),
        }

    def capabilities(self) -> dict[str, Any]:
        """Returns any width."""
        return {'attention.value_dim': ANY}


@dataclasses.dataclass(frozen=True)
class SharedExperts(Part):
    """The number of shared experts, of which transformers needs one."""

    name: str = 'n_shared_experts'

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Sets the knob."""
        model.mlp.shared_experts = take_interval(c, self.name, 2)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Returns the key."""
        return {self.name: model.mlp.shared_experts}

    def capabilities(self) -> dict[str, Any]:
        """Returns any number."""
        return {'mlp.shared_experts': ANY}

    def obstacle(self, model: ModelConfig) -> str:
        """Returns the knob if it is 0."""
        return '' if model.mlp.shared_experts else 'config.model.mlp.shared_experts=0'


class Groups(Part):
    """The groups of experts from which a token may choose: one."""

    def read(self, c: ConfigReader, model: ModelConfig) -> None:
        """Checks the number of groups unless the choice ignores them."""
        if c.require('topk_method', 'greedy', 'group_limited_greedy') == 'greedy':
            c.take('n_group', None)
        else:
            c.require('n_group', 1)
        c.take('topk_group', None)


_ATTENTION = 'model.layers.{layer}.self_attn.'
_KV_DOWN = f'{_ATTENTION}kv_a_proj_with_mqa'
_QUERY, _QUERY_UP = f'{_ATTENTION}q_proj', f'{_ATTENTION}q_b_proj'
_MLP = 'model.layers.{layer}.mlp.'
DEEPSEEK_V2 = DescribedFamily(
    model_type='deepseek_v2',
    architecture='DeepseekV2ForCausalLM',
    attention=Latent,
    mlp=MixtureOfExperts,
    fixed=FIXED | {'mlp.normalize_gates': False},
    parts=(
        *SIZES,
        Heads(),
        Key('qk_nope_head_dim', 'head_dim', int, 128),
        Key('qk_rope_head_dim', 'attention.rope_dim', int, 64),
        Key('kv_lora_rank', 'attention.kv_rank', int, 512),
        Key('q_lora_rank', 'attention.q_rank', int, 1536, null=True),
        Key('attention_bias', 'attention.bias', bool, False),
        ACTIVATION,
        # The norms of latents have this epsilon, whatever the file says.
        Key('rms_norm_eps', 'norm_epsilon', {1e-6: 1e-6}),
        TIED,
        Rope(mscale='attention.yarn_mscale'),
        Key('moe_intermediate_size', 'mlp.d_expert', int, 1407),
        Key('n_routed_experts', 'mlp.num_experts', int, 64),
        Key('num_experts_per_tok', 'mlp.experts_per_token', int),
        Key('routed_scaling_factor', 'mlp.gate_scale', float, 1.0),
        SharedExperts(),
        Groups(),
        BalanceLoss(name='aux_loss_alpha'),
        FirstLayersDense(),
        # Published code and transformers differ in other values.
        Require('norm_topk_prob', False),
        Require('moe_layer_freq', 1),
        Require('scoring_func', 'softmax'),
        Require('mlp_bias', False),
    ),
    tensors={theirs: ours for theirs, ours in TENSORS.items() if theirs != f'{_ATTENTION}q_norm'}
    | expert_tensors('mlp', gate='gate_proj', up='up_proj', down='down_proj')
    | {
        f'{_ATTENTION}q_a_proj': 'blocks/attention/query_down',
        f'{_ATTENTION}q_a_layernorm': 'blocks/attention/query_norm',
        _QUERY_UP: 'blocks/attention/query_up',
        _KV_DOWN: 'blocks/attention/kv_down',
        f'{_ATTENTION}kv_a_layernorm': 'blocks/attention/kv_norm',
        f'{_ATTENTION}kv_b_proj': 'blocks/attention/kv_up',
        f'{_MLP}shared_experts.gate_proj': 'blocks/mlp/shared/gate',
        f'{_MLP}shared_experts.up_proj': 'blocks/mlp/shared/up',
        f'{_MLP}shared_experts.down_proj': 'blocks/mlp/shared/down',
    },
    by_head=(_QUERY, _QUERY_UP),
    in_pairs=(_QUERY, _QUERY_UP, _KV_DOWN),
    inert=(
        *INERT,
        *('head_dim', 'qk_head_dim'),  # sums of other keys, whatever the file says
        *('auto_map', 'ep_size', 'pretraining_tp', 'seq_aux'),  # code and training
    ),
)

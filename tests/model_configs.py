"""Small models that together use every entry of the model's tables."""

import itertools
import random

from gpt_jax.config_tree import freeze, from_json, to_json
from gpt_jax.model.config import (
    MLPKind,
    ModelConfig,
    NormKind,
    NormPlacement,
    PositionKind,
    finalize_model,
)

EXPERTS = dict(
    _type='mixture_of_experts',
    num_experts=4,
    experts_per_token=2,
    d_expert=16,
    router_z_loss=0.001,
)
LATENT = dict(_type='latent', kv_rank=12, rope_dim=4)
BASE = dict(vocab_size=70, max_seq_len=16, num_heads=4, d_model=32)


def make_config(**changes) -> ModelConfig:
    """A finalized, frozen small config: two periods of layers."""
    kinds = changes.get('layer_kinds', changes.get('window_pattern', ()))
    layers = 2 * max(1, len(kinds))
    config = ModelConfig(**(BASE | {'num_layers': layers} | changes))
    config = from_json(to_json(config), ModelConfig)  # 'rope' becomes PositionKind.ROPE
    finalize_model(config)
    return freeze(config)


def _others(name: str, table: type) -> dict[str, dict]:
    """A row for each entry of a table that is not the default, which has one row for all."""
    default = getattr(ModelConfig(), name)
    return {f'{name}={kind}': {name: kind} for kind in table if kind != default}


# Each entry of a table once, against the default partners.
SINGLE = {
    'default': {},
    **_others('position', PositionKind),
    **_others('norm', NormKind),
    **_others('norm_placement', NormPlacement),
    **{f'mlp={kind}': dict(mlp=kind) for kind in MLPKind if kind != MLPKind.GELU_TANH},
    'mlp=none': dict(mlp='none'),
    'mlp=none, parallel': dict(mlp='none', parallel_residual='two_norms', use_bias=False),
    'mlp=none, post-norm': dict(mlp='none', norm_placement='post', position='rope'),
    'mlp=none in some layers': dict(layer_kinds=(dict(mlp='none'), dict(mlp='swiglu'))),
    'experts': dict(mlp=EXPERTS),
    'experts, balanced by bias': dict(
        mlp=EXPERTS | dict(balance='bias', scores='sigmoid', shared_experts=1, gate_scale=2.0)
    ),
    'experts, not gated': dict(mlp=EXPERTS | dict(activation='relu2', normalize_gates=False)),
    'layers of several kinds': dict(
        position='rope',
        layer_kinds=(
            dict(mlp='swiglu', norm='rmsnorm'),
            dict(mlp=EXPERTS, rope_base=100.0),
            dict(window=3, rope=False),
        ),
    ),
    'differential': dict(attention='differential'),
    'differential rope gqa': dict(attention='differential', position='rope', num_kv_heads=2),
    'differential alibi window': dict(
        attention='differential', position='alibi', window_pattern=(5,)
    ),
    'latent': dict(attention=LATENT),
    'latent rope': dict(attention=LATENT, position='rope', use_bias=False),
    'latent rope, all ranks': dict(
        attention=LATENT | dict(q_rank=10, value_dim=6), position='rope', norm='rmsnorm'
    ),
    'latent window': dict(attention=LATENT | dict(value_dim=16), window_pattern=(5, 0)),
    'latent alibi, soft cap': dict(
        attention=LATENT | dict(rope_dim=0), position='alibi', attention_soft_cap=5.0
    ),
    'gqa': dict(num_kv_heads=2),
    'mqa': dict(num_kv_heads=1),
    'head_dim': dict(head_dim=6),
    'window': dict(window_pattern=(5,)),
    'window_period': dict(window_pattern=(3, 0)),
    'qk_norm': dict(qk_norm=True),
    'attention_soft_cap': dict(attention_soft_cap=5.0),
    'output_soft_cap': dict(output_soft_cap=3.0),
    'no_bias': dict(use_bias=False),
    'untied': dict(tie_embeddings=False),
    'no_final_norm': dict(final_norm=False),
    'rope_scaling': dict(position=PositionKind.ROPE, rope_scaling=4.0),
    'rope_original_seq_len': dict(
        position=PositionKind.ROPE, rope_scaling=4.0, rope_original_seq_len=12
    ),
    'qkv_bias': dict(use_bias=False, qkv_bias=True),
    'qk_norm_full': dict(attention=dict(qk_norm='full'), num_kv_heads=2),
    'output_bias, mlp.bias, norm_bias': dict(
        use_bias=False, attention=dict(output_bias=True), mlp=dict(bias=True), norm_bias=True
    ),
    'query_pre_attn_scalar': dict(attention=dict(query_pre_attn_scalar=3.0)),
    'inverse_layer_scale': dict(attention=dict(inverse_layer_scale=True)),
    'rope_fraction': dict(position=PositionKind.ROPE, rope=dict(fraction=0.5)),
    'rope_yarn': dict(
        position=PositionKind.ROPE,
        rope=dict(scaling=4.0, original_seq_len=12, yarn=True, attention_factor=1.2),
    ),
    'position_offset': dict(position_offset=2),
    'parallel_residual': dict(parallel_residual='two_norms'),
    'parallel_residual, one norm': dict(parallel_residual='one_norm', norm='rmsnorm'),
    'parallel_residual, output norms': dict(parallel_residual='two_norms', norm_placement='output'),
    'norm_zero_centered': dict(norm_zero_centered=True),
    'scale_embedding': dict(scale_embedding=True),
    'mup': dict(
        parametrization='mup',
        base=dict(d_model=16, num_heads=4),
        attention=LATENT,
        tie_embeddings=False,
        scale_embedding=True,
    ),
    'bfloat16': dict(compute_dtype='bfloat16'),
}

# Factors whose pairs the covering set runs together. MLPs with one matrix of inputs are alike here,
# and so are those with two.
FACTORS = {
    'position': list(PositionKind),
    'norm': list(NormKind),
    'norm_placement': list(NormPlacement),
    'mlp': [MLPKind.GELU_TANH, MLPKind.RELU2, MLPKind.SWIGLU],
    'num_kv_heads': [4, 2, 1],
    'window_pattern': [(), (5,), (3, 0)],
    'qk_norm': [False, True],
    'use_bias': [True, False],
    'tie_embeddings': [True, False],
}


def pairwise(factors: dict[str, list]) -> list[dict]:
    """A fixed set of rows in which every pair of values of two factors appears."""

    def pairs(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)}

    sizes = [len(values) for values in factors.values()]
    random_row = random.Random(0)
    missing = set().union(*(pairs(row) for row in itertools.product(*map(range, sizes))))
    rows = []
    while missing:  # greedily take the best of some random rows
        candidates = [tuple(random_row.randrange(size) for size in sizes) for _ in range(300)]
        rows.append(max(candidates, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return [
        {name: factors[name][value] for name, value in zip(factors, row, strict=True)}
        for row in rows
    ]


def _named(rows: list[dict]) -> dict[str, dict]:
    return {' '.join(str(value) for value in row.values()): row for row in rows}


PAIRWISE = _named(pairwise(FACTORS))


def _is_paired(changes: dict) -> bool:
    """Returns whether a row is one value of a factor, which PAIRWISE has with all others."""
    return len(changes) == 1 and all(
        value in FACTORS.get(name, ()) for name, value in changes.items()
    )


# What the covering set leaves.
ALONE = {name: changes for name, changes in SINGLE.items() if not _is_paired(changes)}
CORE = ('position', 'norm_placement', 'mlp', 'num_kv_heads', 'window_pattern')
FULL = _named(
    [
        dict(zip(CORE, values, strict=True))
        for values in itertools.product(*(FACTORS[name] for name in CORE))
    ]
)

"""A run made of weights from elsewhere: which of its knobs are the source's."""

from collections.abc import Mapping
from typing import Any

from gpt_jax.config import RunConfig
from gpt_jax.config_tree import from_json, to_json
from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig, PositionKind
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer
from gpt_jax.tokenizer.token_table import TableTokenizer
from gpt_jax.weights import Source

# Knobs of the model that change neither a parameter nor, but for rounding, a logit.
FREE = (
    'attention_kernel',
    'dropout',
    'attention_dropout',
    'init_std',
    'param_dtype',
    'compute_dtype',
    'scan_layers',
    'remat',
)


def adopt(source: Source, config: RunConfig, chosen: Mapping[str, Any]) -> TableTokenizer:
    """Makes `config` the source's in place; returns the tokenizer.

    Args:
      source: an opened source.
      config: the config of the run to be.
      chosen: what the user set, by key below config: 'model.param_dtype'.

    Raises:
        UserError: the user set something that only the source decides, or there is no tokenizer,
            or it has more ids than the model.
    """
    model = {key[6:]: value for key, value in chosen.items() if key.startswith('model.')}
    lengths = ('max_seq_len',) if source.model.position != PositionKind.LEARNED else ()
    for name in model:
        if name not in FREE + lengths:
            raise UserError(
                f'config.model.{name} is decided by {source.name}; to be chosen are '
                f'{", ".join(FREE + lengths)}'
            )
    values = {name: getattr(config.model, name) for name in model}
    config.model = from_json(to_json(source.model), ModelConfig)
    for name, value in values.items():
        setattr(config.model, name, value)
    tokenizer = _tokenizer(source, config, chosen)
    size = config.model.vocab_size
    if tokenizer.vocab_size == size + 1 and tokenizer.eot_id == size:
        tokenizer = tokenizer.with_ends(bos_id=tokenizer.bos_id, eot_id=None)  # it was added
    if tokenizer.vocab_size > size:
        raise UserError(
            f'{source.name} has {size} tokens, its tokenizer {tokenizer.vocab_size}; name the '
            f'right one with config.tokenizer.kind and config.tokenizer.path'
        )
    config.tokenizer = TokenizerConfig(kind=tokenizer.kind)
    return tokenizer


def _tokenizer(source: Source, config: RunConfig, chosen: Mapping[str, Any]) -> TableTokenizer:
    """The user's, else the source's."""
    if {'tokenizer.kind', 'tokenizer.path'} & set(chosen):
        return make_tokenizer(config.tokenizer, tuple)
    if source.tokenizer is None:
        raise UserError(
            f'{source.name} has no tokenizer; name one: --config.tokenizer.kind=bpe '
            f'--config.tokenizer.path=FILE (also char, sentencepiece or byte)'
        )
    return source.tokenizer

"""An export writes every parameter exactly once, or nothing."""

import copy

import jax.numpy as jnp
import pytest

from gpt_jax.errors import UserError
from gpt_jax.weights.exporters import EXPORTERS
from gpt_jax.weights.layout import TensorLayout, check_complete
from tests.weights.random_source import LLAMA, bpe_tokenizer, make_model, random_params
from tests.weights.test_llama2c_export import LAYOUT, llama_tokenizer


@pytest.mark.parametrize('format', EXPORTERS)
def test_a_parameter_that_a_format_has_no_place_for_is_an_error(format, tmp_path):
    """As a new attention has, before someone wrote how each format names its weights."""
    config = make_model(**LAYOUT if format == 'llama2c' else LLAMA)
    tokenizer = llama_tokenizer() if format == 'llama2c' else bpe_tokenizer()
    params = copy.copy(random_params(config))
    attention = params['blocks']['attention'] | {'lambda': jnp.ones((config.num_layers, 8))}
    params['blocks'] = params['blocks'] | {'attention': attention}
    with pytest.raises(UserError, match='no place for the parameter blocks/attention/lambda'):
        EXPORTERS[format](tmp_path / 'out', config, params, tokenizer, dtype='float32')
    assert not (tmp_path / 'out').exists()


def test_a_parameter_that_is_stored_twice_is_an_error():
    entries = [TensorLayout('a', ('x/kernel',)), TensorLayout('b', ('x/kernel', 'y/kernel'))]
    params = {'x': {'kernel': jnp.ones((2, 2))}, 'y': {'kernel': jnp.ones((2, 2))}}
    check_complete(entries[1:], params, format='f')
    with pytest.raises(UserError, match='f has no place for the parameter x/kernel'):
        check_complete(entries, params, format='f')

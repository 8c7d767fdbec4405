"""Files of latent attention: the older form of its tensors, and what is refused."""

import jax
import numpy as np
import pytest

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.weights import gguf_families
from gpt_jax.weights.gguf_export import FILE, export_gguf
from tests.weights.gguf_models import DEEPSEEK, YARN, make, rope
from tests.weights.random_source import bpe_tokenizer, load, weight_shapes
from tests.weights.test_gguf_families import without_training

gguf = pytest.importorskip('gguf')

KEYS = (
    DEEPSEEK
    | dict(num_hidden_layers=1, first_k_dense_replace=0)
    | rope(**YARN, attention_factor=1.25, mscale_all_dim=2.0)
)
MLA = 'deepseek2.attention.{}_length_mla'


def as_older(path, model):
    """Rewrites a file as llama.cpp's converter did before it split the up-projections."""
    file = gguf.GGUFReader(path)
    lengths = {f'deepseek2.attention.{each}_length': MLA.format(each) for each in ('key', 'value')}
    changed = {name: file.fields[mla].contents() for name, mla in lengths.items()}
    changed['deepseek2.attention.head_count_kv'] = model.num_heads
    dropped = (*lengths.values(), 'general.architecture')
    writer = gguf.GGUFWriter(path, 'deepseek2')
    for name, field in file.fields.items():
        if not name.startswith('GGUF.') and name not in dropped:
            value = changed.get(name, field.contents())
            writer.add_key_value(name, value, field.types[0], field.types[-1])
    tensors = {tensor.name: np.array(tensor.data) for tensor in file.tensors}
    keys, values = tensors.pop('blk.0.attn_k_b.weight'), tensors.pop('blk.0.attn_v_b.weight')
    tensors['blk.0.attn_kv_b.weight'] = np.concatenate(
        [row for k, v in zip(keys, values, strict=True) for row in (k.T, v)]
    )
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    path.unlink()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_older_form(tmp_path):
    """Older files join the up-projections, and give the widths of heads as they are."""
    model = freeze(make('deepseek_v2', KEYS))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), weight_shapes(model)
    )
    params = jax.device_put(params)
    export_gguf(tmp_path, model, params, bpe_tokenizer(), dtype='float32')
    as_older(tmp_path / FILE, model)
    source, found = load(tmp_path / FILE)
    assert freeze(without_training(source.model)) == freeze(without_training(model))
    jax.tree.map(np.testing.assert_array_equal, found['blocks'], params['blocks'])


REFUSED = {
    'sigmoid': ({'expert_gating_func': 2}, 'expert_gating_func=2'),
    'groups': ({'expert_group_count': 2}, 'expert_group_count=2'),
    'linear': ({'rope.scaling.type': 'linear'}, 'read as config.model.rope.scaling=4.0'),
    'width': ({'attention.key_length': 22 - 1}, 'attention.key_length=21.*supported: 22'),
    'rotary part': ({'attention.key_length_mla': 6}, 'keys of 6 and rope.dimension_count=6'),
}


@pytest.mark.parametrize(('change', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused(change, message):
    model, architecture = make('deepseek_v2', KEYS), gguf_families.DEEPSEEK2
    metadata = architecture.from_model(model)

    def read(keys):
        names = dict(vocab_size=model.vocab_size, names=['output.weight'], name='a test')
        return architecture.to_model(keys, rope_factors=None, **names)

    assert read(metadata).attention.kv_rank == 16
    with pytest.raises(UserError, match=message) as raised:
        read(metadata | change)
    assert '\n' not in str(raised.value)

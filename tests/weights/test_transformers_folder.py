"""Folders of transformers without transformers: round trips, shards of a mesh, wrong input."""

import dataclasses
import json
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from gpt_jax import GPT, files
from gpt_jax.errors import UserError
from gpt_jax.model.config import DType
from gpt_jax.model.gpt import abstract_params
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.parallel.rules import parameter_shardings, with_shardings
from gpt_jax.tokenizer import load as load_tokenizer
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.weights import load_params, open_source, safetensors_files
from gpt_jax.weights.export import export_safetensors, export_transformers
from gpt_jax.weights.source import StoredTensor
from tests.weights.random_source import (
    GPT2,
    LLAMA,
    bpe_tokenizer,
    load,
    make_model,
    random_params,
    weight_shapes,
    write_folder,
)

ARCHITECTURES = {
    'gpt2': GPT2,
    'gpt2 untied, exact GELU': GPT2 | dict(mlp='gelu', tie_embeddings=False, d_ff=40),
    'llama': LLAMA,
    'llama tied, other heads, Llama 3.1 positions': LLAMA
    | dict(
        tie_embeddings=True,
        head_dim=6,
        rope_base=5e5,
        rope_scaling=8.0,
        rope_original_seq_len=16,
        rope_high_freq_factor=3.0,
    ),
    'llama with linear scaling': LLAMA | dict(rope_scaling=2.0, num_kv_heads=4),
    'qwen2': LLAMA | dict(qkv_bias=True),
    'qwen3': LLAMA | dict(qk_norm=True, head_dim=16),
}


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _other(config, model) -> dict:
    """A knob of initialisation, which the formats do not have."""
    return {'scale_residual_init': model.init.scale_residual}


def without_padding(params, config):
    """Padding rows of tables do not travel; they come back as zeros."""
    cut = lambda path, x: x[: config.vocab_size] if 'table' in str(path[-1]) else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(cut, params)


@pytest.mark.parametrize('values', ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_out_and_in_is_bit_exact(values, tmp_path):
    config, params = write_folder(tmp_path, **values)
    source, loaded = load(tmp_path)
    assert source.model == dataclasses.replace(config, **_other(config, source.model))
    assert_equal(without_padding(loaded, config), without_padding(params, config))
    assert not np.asarray(loaded['embedding']['table'])[config.vocab_size :].any()
    assert source.tokenizer.encode('quick fox') == bpe_tokenizer().encode('quick fox')
    assert source.tokenizer.eot_id == bpe_tokenizer().eot_id
    assert source.tokenizer.bos_id is None


def test_any_architecture_travels_as_safetensors(tmp_path):
    config = make_model(**GPT2, window_pattern=(4, 0, 0), position='alibi', norm_placement='post')
    params = random_params(config)
    export_safetensors(tmp_path, config, params, bpe_tokenizer(), dtype=DType.FLOAT32)
    source, loaded = load(tmp_path)
    assert source.model == config
    assert_equal(without_padding(loaded, config), without_padding(params, config))


def test_bfloat16_stays_bit_exact(tmp_path):
    values = LLAMA | dict(param_dtype='bfloat16')
    config, params = write_folder(tmp_path, DType.BFLOAT16, **values)
    source, loaded = load(tmp_path, param_dtype='bfloat16')
    assert loaded['embedding']['table'].dtype == jax.numpy.bfloat16
    assert_equal(without_padding(loaded, config), without_padding(params, config))
    _, wide = load(tmp_path)
    assert wide['embedding']['table'].dtype == jax.numpy.float32
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype('float32'), b), loaded, wide)


def test_several_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, 'FILE_BYTES', 30_000)
    config, params = write_folder(tmp_path, **LLAMA)
    assert len(list(tmp_path.glob('model-*-of-*.safetensors'))) > 2
    assert not list(tmp_path.glob('.*'))
    _, loaded = load(tmp_path)
    assert_equal(without_padding(loaded, config), without_padding(params, config))
    next(tmp_path.glob('model-00002-*')).unlink()
    with pytest.raises(UserError, match='model-00002-of-.* is missing or damaged'):
        open_source(str(tmp_path))


@pytest.mark.parametrize('values', [GPT2, LLAMA], ids=['gpt2', 'llama'])
def test_each_device_reads_its_own_part(values, tmp_path):
    """On a mesh of 2x2x2: the same parameters, and of a sharded tensor only a part is touched."""
    write_folder(tmp_path, **values)
    source, plain = load(tmp_path)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    touched = {}

    class Watched(np.ndarray):
        def __getitem__(self, index):
            part = super().__getitem__(index)
            touched.setdefault(self.name, []).append(part.size)
            return part

        def __array_finalize__(self, made_from):
            self.name = getattr(made_from, 'name', '')

    def watch(name, tensor):
        def read():
            view = tensor.read().view(Watched)
            view.name = name
            return view

        return StoredTensor(tensor.shape, read)

    watched = dataclasses.replace(
        source, tensors={name: watch(name, t) for name, t in source.tensors.items()}
    )
    shardings = parameter_shardings(abstract_params(source.model), mesh)
    abstract = with_shardings(weight_shapes(source.model), shardings)
    sharded = load_params(watched, abstract)
    assert_equal(sharded, plain)
    assert jax.tree.all(jax.tree.map(lambda x, a: x.sharding == a.sharding, sharded, abstract))
    matrices = [name for name, t in source.tensors.items() if 'mlp' in name and len(t.shape) == 2]
    assert matrices
    for name in matrices:
        sizes = touched[name][1::2]  # first a view of all outputs, then the part that is copied
        assert set(sizes) == {np.prod(source.tensors[name].shape) // 4}


def _change(folder, **values):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | values).items() if v != 'gone'}))


WRONG_CONFIGS = {
    'a key that is not known': (dict(num_experts=8), 'num_experts=8, which is not supported'),
    'another model': (dict(model_type='bert'), "model_type='bert'.*supported: gpt2, llama"),
    'not of transformers': (dict(model_type='gone'), 'names no model_type'),
    'another head': (
        dict(architectures=['LlamaForSequenceClassification']),
        'architectures=.*not supported',
    ),
    'biases without tensors': (dict(attention_bias=True), r'has no model.*q_proj\.bias'),
    'an activation': (dict(hidden_act='relu'), "hidden_act='relu'.*'silu'"),
    'scaling of positions': (
        dict(rope_parameters={'rope_type': 'dynamic', 'factor': 4.0}),
        "rope_type='dynamic'.*'llama3', 'yarn'",
    ),
    'quantised': (dict(quantization_config={'bits': 4}), 'quantization_config'),
    'a missing key': (dict(hidden_size='gone'), "has no 'hidden_size'"),
    'another shape': (dict(intermediate_size=64), r'up_proj|gate_proj.*has the shape'),
    'more layers': (dict(num_hidden_layers=4), 'has no model.layers.3'),
    'fewer layers': (dict(num_hidden_layers=2), 'has more than the model can hold'),
}


@pytest.mark.parametrize(('changes', 'message'), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_wrong_configs(changes, message, tmp_path):
    write_folder(tmp_path, **LLAMA)
    _change(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'changes',
    [
        dict(unsloth_fixed=True),
        dict(quantization_config=None),
        dict(num_beams=1),
        dict(pruned_heads={}),
        dict(some_switch=False),
    ],
    ids=str,
)
def test_keys_that_change_no_logit_pass(changes, tmp_path):
    write_folder(tmp_path, **LLAMA)
    _change(tmp_path, **changes)
    open_source(str(tmp_path))


def test_a_refused_key_can_be_ignored(tmp_path):
    write_folder(tmp_path, **LLAMA)
    _change(tmp_path, some_switch=True)
    with pytest.raises(UserError, match='some_switch=True, .* with --ignore_key some_switch'):
        open_source(str(tmp_path))
    GPT.from_pretrained(tmp_path, ignore_keys=['some_switch'])
    with pytest.raises(UserError, match='has no key other; leave --ignore_key other out'):
        open_source(str(tmp_path), ignore_keys=['other'])


def test_openai_names_and_masks(tmp_path):
    """The hub's gpt2 has no prefix, and carries the causal masks along."""
    config, params = write_folder(tmp_path, **GPT2)
    path = tmp_path / 'model.safetensors'
    tensors = {k.removeprefix('transformer.'): v for k, v in _read(path).items()}
    tensors['h.0.attn.bias'] = np.ones((1, 1, 32, 32), np.float32)
    tensors['lm_head.weight'] = tensors['wte.weight']
    path.write_bytes(safetensors.numpy.save(tensors))
    _, loaded = load(tmp_path)
    assert_equal(without_padding(loaded, config), without_padding(params, config))
    tensors['lm_head.weight'] = tensors['wte.weight'] + 1
    path.write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(UserError, match='lm_head.weight of its own'):
        load(tmp_path)


def test_damaged_files(tmp_path):
    write_folder(tmp_path, **GPT2)
    path = tmp_path / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match='is missing or damaged'):
        load(tmp_path)
    path.write_bytes(safetensors.numpy.save({'transformer.wte.weight': np.ones(3, np.int32)}))
    with pytest.raises(UserError, match='the type I32; only F64, F32, F16, BF16'):
        load(tmp_path)
    path.unlink()
    (tmp_path / 'pytorch_model.bin').touch()
    with pytest.raises(UserError, match='save_pretrained'):
        load(tmp_path)


@pytest.mark.parametrize('name', [1, None, ['a'], '../m.safetensors', '/m.safetensors', '..'])
def test_an_index_names_files_of_its_folder(name, tmp_path):
    write_folder(tmp_path, **GPT2)
    (tmp_path / 'model.safetensors').unlink()
    index = {'weight_map': {'a': name, 'b': 'model.safetensors'}}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(UserError, match='which must be the name of a file of this folder'):
        open_source(str(tmp_path))


WRONG_TYPES = {
    'vocab_size': [[1], '64', None, 2**62],
    'num_hidden_layers': [2.5, float('nan'), True],
    'rms_norm_eps': ['1', {}, float('nan')],
    'head_dim': [2**62],
    'attention_dropout': ['x'],
    'eos_token_id': ['2', ['a'], [[1]], {}, 2.5],
    'rope_parameters': [[1], {'rope_theta': 'a'}, {'rope_type': 'linear', 'factor': None}],
    'tie_word_embeddings': ['x'],
    'model_type': [['llama']],
}


@pytest.mark.parametrize(
    ('key', 'value'), [(key, value) for key in WRONG_TYPES for value in WRONG_TYPES[key]]
)
def test_values_of_a_wrong_type(key, value, tmp_path):
    write_folder(tmp_path, **LLAMA)
    (tmp_path / 'generation_config.json').unlink()
    _change(tmp_path, **{key: value})
    with pytest.raises(UserError, match=key if key != 'rope_parameters' else 'rope') as error:
        source = open_source(str(tmp_path))
        source.check({})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('template', [[1, 2], 7, {'a': 1}])
def test_a_chat_template_is_a_text(template, tmp_path):
    write_folder(tmp_path, **LLAMA)
    path = tmp_path / 'tokenizer_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'chat_template': template}))
    with pytest.raises(UserError, match='chat_template must be a text'):
        open_source(str(tmp_path))


def test_ends_of_texts(tmp_path):
    """The tokens that begin and end a text: the tokenizer's template, the model's several ends."""
    write_folder(tmp_path, **LLAMA)
    path, end = tmp_path / 'generation_config.json', bpe_tokenizer().eot_id
    path.write_text(json.dumps({'eos_token_id': [7, end]}))
    tokenizer = open_source(str(tmp_path)).tokenizer
    assert tokenizer.eot_id == end, 'the one that the tokenizer names'
    assert tokenizer.more_ends == (7,)
    tokenizer.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').more_ends == (7,)
    path.write_text(json.dumps({'eos_token_id': [7, 8]}))
    assert open_source(str(tmp_path)).tokenizer.eot_id == 7
    config = make_model(**LLAMA)
    out = tmp_path / 'out'
    export_safetensors(out, config, random_params(config), tokenizer, dtype=DType.FLOAT32)
    again = open_source(str(out)).tokenizer
    assert (again.eot_id, again.more_ends) == (end, (7,))
    begun = bpe_tokenizer().with_ends(bos_id=end, eot_id=end)
    export_safetensors(tmp_path, config, random_params(config), begun, dtype=DType.FLOAT32)
    assert open_source(str(tmp_path)).tokenizer.bos_id == end
    settings = tmp_path / 'tokenizer_config.json'
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {'add_bos_token': False}))
    assert open_source(str(tmp_path)).tokenizer.bos_id is None


def test_an_end_that_the_tokenizer_does_not_have(tmp_path):
    """GPT2Config's eos_token_id is 50256, however small the vocabulary."""
    write_folder(tmp_path, **GPT2)
    (tmp_path / 'generation_config.json').write_text('{"eos_token_id": 50256}')
    assert open_source(str(tmp_path)).tokenizer.eot_id == bpe_tokenizer().eot_id
    settings = tmp_path / 'tokenizer_config.json'
    settings.write_text('{}')
    with pytest.raises(UserError, match='has eos_token_id=50256, but its tokenizer 2.. tokens'):
        open_source(str(tmp_path))


def test_an_end_of_another_name(tmp_path):
    """Then the tokenizer has no id more than the model."""
    path, end = tmp_path / 'tokenizer.json', bpe_tokenizer().eot_id
    write_folder(tmp_path, **LLAMA | dict(vocab_size=end + 1))
    path.write_text(path.read_text().replace('<|endoftext|>', '<|eos|>'))
    (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "<|eos|>"}')
    tokenizer = GPT.from_pretrained(tmp_path).tokenizer
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (end, end + 1)
    assert tokenizer.special_tokens == {'<|eos|>': end}
    tokenizer.save(tmp_path / 'saved')
    loaded = load_tokenizer(tmp_path / 'saved')
    assert (loaded.eot_id, loaded.vocab_size) == (end, end + 1)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    model = loaded.tokenizer_json()['model']
    assert '<|eos|>' in model['vocab'] and '<|endoftext|>' not in model['vocab']


@pytest.mark.parametrize('where', ['added_tokens.json', 'tokenizer_config.json'])
def test_tokens_beside_a_vocabulary_and_merges(where, tmp_path):
    write_folder(tmp_path, **LLAMA)
    write_pair(tmp_path)
    settings = {'tokenizer_class': 'GPT2Tokenizer'}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    size = open_source(str(tmp_path)).tokenizer.vocab_size
    added = {'<|im_start|>': size}
    if where == 'tokenizer_config.json':
        added = settings | {'added_tokens_decoder': {f'{size}': {'content': '<|im_start|>'}}}
    (tmp_path / where).write_text(json.dumps(added))
    with pytest.raises(UserError, match=f"adds '<.im_start.>' as token {size} to its tokenizer"):
        open_source(str(tmp_path))


def test_an_end_that_is_an_ordinary_token(tmp_path):
    config = make_model(**LLAMA)
    ended = bpe_tokenizer().with_ends(bos_id=None, eot_id=7)
    export_transformers(tmp_path, config, random_params(config), ended, dtype=DType.FLOAT32)
    assert 'eos_token' not in json.loads((tmp_path / 'tokenizer_config.json').read_text())
    assert open_source(str(tmp_path)).tokenizer.eot_id == 7


def test_a_tokenizer_that_ends_texts(tmp_path):
    write_folder(tmp_path, **LLAMA)
    path, end = tmp_path / 'tokenizer.json', bpe_tokenizer().eot_id
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='$A <|endoftext|>', special_tokens=[('<|endoftext|>', end)]
    )
    tokenizer.save(str(path))
    with pytest.raises(UserError, match='one token before every text and none behind'):
        open_source(str(tmp_path))


def write_pair(folder):
    """Vocabulary and merges in place of a folder's tokenizer.json."""
    model = json.loads((folder / 'tokenizer.json').read_text())['model']
    (folder / 'tokenizer.json').unlink()
    (folder / 'vocab.json').write_text(json.dumps(model['vocab'], ensure_ascii=False))
    merges = [each if isinstance(each, str) else ' '.join(each) for each in model['merges']]
    (folder / 'merges.txt').write_text('\n'.join(merges))


def test_a_vocabulary_and_merges_are_gpt2s(tmp_path):
    write_folder(tmp_path, **LLAMA)
    settings = tmp_path / 'tokenizer_config.json'
    write_pair(tmp_path)
    settings.write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert open_source(str(tmp_path)).tokenizer.encode('quick fox')
    for content, kind in (
        ('{"tokenizer_class": "Qwen2Tokenizer"}', 'Qwen2Tokenizer'),
        ('{}', 'll'),
    ):
        settings.write_text(content)
        with pytest.raises(UserError, match=f'do not say how {kind}'):
            open_source(str(tmp_path))
    settings.write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match='do not say how Qwen2Tokenizer'):
        BpeTokenizer.read(tmp_path / 'vocab.json')


def test_nothing_of_that_name(tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        open_source(str(tmp_path / 'nothing'))
    (tmp_path / 'weights.zip').touch()
    with pytest.raises(UserError, match='not a file that a reader knows'):
        open_source(str(tmp_path / 'weights.zip'))


def test_hub(tmp_path, monkeypatch):
    """A name that is no path is fetched by huggingface_hub, without what is not needed."""
    huggingface_hub = pytest.importorskip('huggingface_hub')
    write_folder(tmp_path, **GPT2)
    asked = []

    def fetch(name, *, revision, allow_patterns):
        asked.append((name, allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
    assert open_source('someone/small').model.num_layers == 3
    assert asked[0][0] == 'someone/small' and '*.safetensors' in asked[0][1]
    assert '*.bin' not in asked[0][1]
    open_source('someone/small@refs/pr/1')
    assert (asked[0][2], asked[1][0], asked[1][2]) == (None, 'someone/small', 'refs/pr/1')


def test_a_hub_that_fails_is_one_short_line(monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')

    def fetch(*_, **__):
        try:
            raise OSError('the connection\nbroke')
        except OSError as error:
            raise huggingface_hub.errors.LocalEntryNotFoundError('long\nstory ' * 50) from error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
    with pytest.raises(UserError, match='was not reached') as raised:
        open_source('someone/small')
    assert len(str(raised.value)) < 160 and '\n' not in str(raised.value)
    assert raised.value.__cause__ is raised.value.__context__ is None


def _read(path):
    return {
        name: np.array(tensor.read()) for name, tensor in safetensors_files.read_file(path).items()
    }


def test_architectures_of_no_family(tmp_path):
    config = make_model(**GPT2, position='alibi')
    with pytest.raises(UserError, match='no config.model.position=alibi in gpt2, llama'):
        export_transformers(
            tmp_path, config, random_params(config), bpe_tokenizer(), dtype=DType.FLOAT32
        )
    assert not list(tmp_path.iterdir())


def test_no_more_than_a_tensor_is_copied_at_a_time(tmp_path):
    """On the host, besides what the devices own: mapped files are not memory of the process."""
    write_folder(tmp_path, **LLAMA | dict(num_layers=6, d_model=256, d_ff=1024))
    source = open_source(str(tmp_path))
    abstract = weight_shapes(source.model)
    load_params(source, abstract)  # what is made once
    largest = max(4 * np.prod(tensor.shape) for tensor in source.tensors.values())
    tracemalloc.start()
    load_params(source, abstract)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest < peak < 1.3 * largest


@pytest.mark.parametrize(
    'branch, key, value',
    [('model', 'unk_token', -1), ('pre_tokenizer', 'add_prefix_space', None)],
)
def test_a_tokenizer_that_its_library_refuses_is_one_line(tmp_path, branch, key, value):
    write_folder(tmp_path, **LLAMA)
    spec = files.read_json(tmp_path / 'tokenizer.json')
    spec[branch][key] = value
    files.write_json(tmp_path / 'tokenizer.json', spec)
    with pytest.raises(UserError, match=r'tokenizer\.json is damaged \(invalid type'):
        open_source(str(tmp_path))

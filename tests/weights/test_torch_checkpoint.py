"""nanoGPT's and minGPT's checkpoints: a real trained model, all its activations, and refusals."""

import base64
import itertools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.api import GPT
from gpt_jax.errors import UserError
from gpt_jax.kernels.scores import ScoreOptions
from gpt_jax.model.attention import attend
from gpt_jax.model.gpt import GPT as Module
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.mlp.activation import ACTIVATIONS
from gpt_jax.weights import open_source
from tests.command_line import run
from tests.weights.random_source import GPT2, load, logits, make_model, random_params

torch = pytest.importorskip('torch', reason='reads the files; pinned on 3.11 only')


SPOILT = {
    'null': {'model': {'a': torch.ones(1)}, 'model_args': None},
    'integer names': {'model': {1: torch.ones(1)}, 'model_args': {}},
    'no tensors': {'model': {'a': [1.0]}, 'model_args': {}},
    'a text': {'model': {'a': torch.ones(1)}, 'model_args': {'n_layer': 'two'}},
    'no table': {
        'model': {'lm_head.weight': torch.ones(1)},
        'model_args': dict(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=8),
    },
    'whole numbers': {'model': {'a': torch.ones(1, dtype=torch.int64)}, 'model_args': {}},
    'eight bits': {'model': {'a': torch.ones(1).to(torch.float8_e4m3fn)}, 'model_args': {}},
    'shapes only': {'model': {'a': torch.ones(1, device='meta')}, 'model_args': {}},
}


@pytest.mark.parametrize('saved', SPOILT.values(), ids=SPOILT)
def test_what_is_no_checkpoint_is_one_line(saved, tmp_path):
    torch.save(saved, tmp_path / 'ckpt.pt')
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / 'ckpt.pt'))
    assert '\n' not in str(error.value)


def test_a_damaged_pickle_is_one_line(tmp_path):
    path = tmp_path / 'ckpt.pt'
    write_state(path, model_args=ARGS)
    whole = path.read_bytes()
    begin = whole.index(b'_rebuild_tensor_v2')  # in the pickle, among what names the tensors
    refused = 0
    for at in range(begin, begin + 600, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            open_source(str(path))
        except UserError as error:
            refused += 1
            assert '\n' not in str(error)
    assert refused > 10


def read_arrays(path):
    """The config and the float32 arrays of a JSON file of base64."""
    stored = json.loads(path.read_text())
    config = stored.pop('config')
    arrays = {
        name: np.frombuffer(base64.b64decode(entry['data']), '<f4').reshape(entry['shape'])
        for name, entry in stored.items()
    }
    return config, arrays


@pytest.fixture(scope='module')
def sorter(shared_data, tmp_path_factory):
    """minGPT's trained sorter: a folder with `ckpt.pt` and a tokenizer of three digits."""
    folder = tmp_path_factory.mktemp('sorter')
    config, arrays = read_arrays(
        shared_data / 'weights' / 'mingpt_sort' / 'gpt-nano-sort-model.json'
    )
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    torch.save({'model': state, 'config': config}, folder / 'ckpt.pt')
    (folder / 'characters.json').write_text(json.dumps({'characters': '012'}))
    return folder


@pytest.fixture(scope='module')
def workdir(sorter):
    """A run made of it by the command line."""
    output = run(
        '--mode=import_weights',
        f'--source={sorter / "ckpt.pt"}',
        f'--workdir={sorter / "run"}',
        '--config.tokenizer.kind=char',
        f'--config.tokenizer.path={sorter}',
    )
    assert 'begin with nothing, end with nothing' in output
    return sorter / 'run'


def test_sorts_every_input(workdir):
    inputs = [''.join(digits) for digits in itertools.product('012', repeat=6)]
    gpt = GPT.load(workdir)
    outputs = gpt.generate(inputs, temperature=0.0, max_new_tokens=6)
    right = [out == text + ''.join(sorted(text)) for text, out in zip(inputs, outputs, strict=True)]
    assert sum(right) == len(inputs) == 729
    flags = ('--mode=generate', '--temperature=0', '--max_new_tokens=6')
    assert '201120001122' in run(f'--workdir={workdir}', *flags, '--prompt=201120')
    refused = run(f'--workdir={workdir}', *flags, '--prompt=', status=2)
    assert 'has no token to begin with; give a prompt' in refused


def test_every_activation(workdir, shared_data):
    _, stored = read_arrays(
        shared_data / 'weights' / 'mingpt_sort' / 'gpt-nano-sort-t0-partials.json'
    )
    gpt = GPT.load(workdir)
    config, module = gpt.config.model, Module(gpt.config.model, flat=False)
    tokens = stored.pop('idx').astype(int)
    (scores, _), captured = module.apply(
        {'params': to_executed(gpt.params, config, scan=False)},
        jnp.asarray(tokens),
        capture_intermediates=True,
    )
    found = captured['intermediates']
    B, L, D, K = *tokens.shape, config.d_model, config.head_dim
    first = found['blocks']['layer_0']
    output = lambda module: np.asarray(module['__call__'][0])  # noqa: E731

    def heads(name):
        return output(first['attention'][name]).reshape(B, L, -1, K)

    q, k, v = (heads(name) for name in ('query', 'key', 'value'))
    attended = attend(*map(jnp.asarray, (q, k, v)), ScoreOptions())
    scaled = np.einsum('blhk,bshk->bhls', q, k) / np.sqrt(K)
    causal = np.tril(np.ones((L, L), bool))
    x = output(found['position'])
    blocks = [np.asarray(found['blocks'][f'layer_{i}']['__call__'][0][0]) for i in range(3)]
    attention = np.asarray(first['attention']['__call__'][0][0])
    up = output(first['mlp']['up'])
    ours = {
        'tok_emb': output(found['embedding']),
        'pos_emb': np.asarray(gpt.params['position']['table'])[None, :L],
        'x': x,
        'ln1': np.asarray(first['attention_norm']['__call__'][0][0]),
        'qkv': np.concatenate([part.reshape(B, L, D) for part in (q, k, v)], -1),
        'q': q.swapaxes(1, 2),
        'k': k.swapaxes(1, 2),
        'v': v.swapaxes(1, 2),
        'att': np.where(causal, scaled, -np.inf),
        'attSm': np.asarray(jax.nn.softmax(np.where(causal, scaled, -np.inf))),
        'y': np.asarray(attended).reshape(B, L, D),
        'yProj': attention,
        'attnResid': x + attention,
        'ln2': np.asarray(first['mlp_norm']['__call__'][0][0]),
        'fc': up,
        'gelu': np.asarray(ACTIVATIONS[config.mlp.activation].function(jnp.asarray(up))),
        'mlp': output(first['mlp']),
        'mlpResid': blocks[0],
        **{f'block{i}': block for i, block in enumerate(blocks)},
        'ln_f': np.asarray(found['final_norm']['__call__'][0][0]),
        'lm_head': np.asarray(scores),
        'probs': np.asarray(jax.nn.softmax(scores)),
    }
    assert ours.keys() == stored.keys()
    for name, array in stored.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-5, err_msg=name)


def write_state(path, *, mangle=lambda name: name, **extra):
    """A random GPT-2 as nanoGPT saves it; returns the tied model and its parameters."""
    from gpt_jax.weights import gpt2
    from gpt_jax.weights.export import named_tensors

    config = make_model(**GPT2, mlp='gelu')
    params = random_params(config)
    layout = gpt2.layout(config, linear=True)
    state = {
        mangle(name): torch.tensor(array)
        for name, array in named_tensors(config, params, layout, np.float32)
    }
    state[mangle('lm_head.weight')] = state[mangle('transformer.wte.weight')]
    torch.save({'model': state, **extra}, path)
    return config, params


ARGS = dict(n_layer=3, n_head=4, n_embd=32, block_size=32, bias=True, vocab_size=300, dropout=0.0)


def test_nanogpt(tmp_path):
    """With the exact GELU, tied tables, and the prefix that torch.compile leaves."""
    path = tmp_path / 'ckpt.pt'
    config, params = write_state(
        path, mangle='_orig_mod.{}'.format, model_args=ARGS, iter_num=7, config={'anything': 1}
    )
    source, loaded = load(path)
    assert source.model == config
    tokens = np.arange(20)[None]
    np.testing.assert_array_equal(logits(config, loaded, tokens), logits(config, params, tokens))


def test_bare_tensors_with_the_config_beside(tmp_path, sorter):
    saved = torch.load(sorter / 'ckpt.pt', weights_only=True)
    torch.save(saved['model'], tmp_path / 'model.pt')
    with pytest.raises(UserError, match='no config.json of minGPT beside it'):
        open_source(str(tmp_path / 'model.pt'))
    sizes = dict(model_type='gpt-nano', n_head=None, n_layer=None, n_embd=None)
    model = saved['config'] | sizes
    (tmp_path / 'config.json').write_text(json.dumps({'model': model, 'trainer': {}}))
    source, loaded = load(tmp_path / 'model.pt')
    _, whole = load(sorter / 'ckpt.pt')
    assert (source.model.num_layers, source.model.num_heads) == (3, 3)
    jax.tree.map(np.testing.assert_array_equal, loaded, whole)


class Executes:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_nothing_is_executed(tmp_path):
    path = tmp_path / 'ckpt.pt'
    torch.save({'model': {}, 'payload': Executes(tmp_path / 'made')}, path)
    with pytest.raises(UserError, match='would have to be executed'):
        open_source(str(path))
    assert not (tmp_path / 'made').exists()


def test_wrong_files(tmp_path):
    path = tmp_path / 'ckpt.pt'
    write_state(path, model_args=ARGS | {'rotary': True})
    with pytest.raises(UserError, match='rotary=True, which is not supported'):
        open_source(str(path))
    write_state(path, model_args=ARGS | {'n_embd': 64})
    with pytest.raises(UserError, match=r'has the shape'):
        load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match='is damaged'):
        open_source(str(path))
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r'ckpt.pt'):
        open_source(str(path))

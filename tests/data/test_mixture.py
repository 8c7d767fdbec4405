import collections

import pytest

from gpt_jax import run
from gpt_jax import tokenizer as tokenizers
from gpt_jax.data.config import DataConfig
from gpt_jax.data.mixture import Selection, open_sources, tokens_per_pass
from gpt_jax.data.shards import Shards
from gpt_jax.errors import UserError
from gpt_jax.parallel import consistency, peers
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind

BYTE = tokenizers.make_tokenizer(TokenizerConfig(), list)


@pytest.mark.parametrize('weights', [[1.0, 1.0], [0.7, 0.3], [0.1, 0.25, 0.65], [3, 1e-3], [5]])
def test_every_prefix_has_the_proportions(weights):
    selection, counts = Selection(weights), collections.Counter()
    for i in range(3000):
        source, index = selection[i]
        assert index == counts[source]  # each source is read in order, nothing left out
        counts[source] += 1
        for number, weight in enumerate(weights):
            expected = (i + 1) * weight / sum(weights)
            assert abs(counts[number] - expected) < len(weights)


def test_proportions_are_exact_over_a_period():
    # 0.1 + 0.2 + 0.7 in binary is not 1, and grain's own mixture would give 0.3 as 0.2999.
    counts = collections.Counter(Selection([0.1, 0.2, 0.7])[i][0] for i in range(1000))
    assert counts == {0: 100, 1: 200, 2: 700}


def test_a_far_index_is_found_at_once():
    source, index = Selection([0.7, 0.3])[10**15]
    assert (source, index) in {(0, 7 * 10**14), (1, 3 * 10**14)}


@pytest.fixture
def two_folders(prepare_into, write_jsonl):
    return [
        prepare_into(corpus='jsonl', source=write_jsonl([name, name], name), split='tail:0.1')
        for name in ('one.jsonl', 'two.jsonl')
    ]


def test_sources_come_from_the_corpus_and_the_mixture(two_folders):
    config = DataConfig(weight=0.25, mixture=(f'{two_folders[1]}=0.75',))
    sources = open_sources(two_folders[0], config, split='train', tokenizer=BYTE)
    assert [source.weight for source in sources] == [0.25, 0.75]
    names = [bytes(source.shards.read(0, 3).tolist()) for source in sources]
    assert names == [b'one', b'two']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'weight': 0.0}, 'config.data.weight is 0'),
        ({'weight': float('nan')}, 'config.data.weight is nan'),
        ({'mixture': ('/nowhere',)}, "config.data.mixture='/nowhere' must be FOLDER=WEIGHT"),
        ({'mixture': ('/nowhere=much',)}, 'must be FOLDER=WEIGHT'),
        ({'mixture': ('=1',)}, 'must be FOLDER=WEIGHT'),
        ({'mixture': ('/nowhere=-1',)}, 'must be a positive number'),
        ({'mixture': ('/nowhere=1',)}, 'config.data.mixture=./nowhere=1.'),
    ],
)
def test_a_wrong_mixture_names_the_key(two_folders, settings, message):
    with pytest.raises(UserError, match=message):
        open_sources(two_folders[0], DataConfig(**settings), split='train', tokenizer=BYTE)


def test_a_pass_over_the_first_source():
    assert tokens_per_pass(1000, DataConfig()) == 1000
    assert tokens_per_pass(1000, DataConfig(weight=0.25, mixture=('a=0.5', 'b=0.25'))) == 4000


def test_processes_compare_the_whole_mixture(two_folders, monkeypatch):
    compared = []
    monkeypatch.setattr(peers, 'num_processes', lambda: 2)
    monkeypatch.setattr(consistency, 'check', lambda what, facts: compared.append(facts['data']))
    for mixture in ((), (f'{two_folders[1]}=1',), (f'{two_folders[0]}=1',)):
        run.check_data(two_folders[0], BYTE, DataConfig(mixture=mixture))
    assert len(set(compared)) == 3


def test_all_sources_need_the_run_s_tokenizer(two_folders, prepare_into, write_jsonl):
    char = prepare_into(
        TokenizerConfig(kind=TokenizerKind.CHAR),
        corpus='jsonl', source=write_jsonl(['abc', 'cba']), split='tail:0.1',
    )  # fmt: skip
    assert Shards.open(char, 'train').num_tokens == 3
    with pytest.raises(UserError, match='another char tokenizer'):
        config = DataConfig(mixture=(f'{char}=1',))
        open_sources(two_folders[0], config, split='train', tokenizer=BYTE)

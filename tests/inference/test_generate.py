"""From ids to text: stop strings, streaming, order."""

import itertools
import types

import jax
import pytest
from flax import linen as nn

from gpt_jax.errors import UserError
from gpt_jax.inference import generate
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Ended, Generator
from gpt_jax.model.gpt import init_params
from gpt_jax.tokenizer.byte import ByteTokenizer
from gpt_jax.tokenizer.streaming import StreamDecoder
from tests.model_configs import make_config

EOT = 256


@pytest.fixture
def write(monkeypatch):
    """A function that makes the "model" write given texts, a few ids at a time."""

    def make(*texts: str, ending: bool = False, chunk: int = 3) -> Generator:
        rows = [[*text.encode(), *([EOT] if ending else [])] for text in texts]
        length = max(map(len, rows))

        class Decoder:
            def __init__(self, config, params, *, vocab_size, eot_id, **_):
                assert (vocab_size, eot_id) == (257, EOT)

            def generate(self, prompts, sampling, **asked):
                self.prompts, self.asked = prompts, asked
                for start in range(0, min(length, sampling.max_new_tokens), chunk):
                    end = min(start + chunk, sampling.max_new_tokens)
                    yield [row[start:end] for row in rows]

        monkeypatch.setattr(generate, 'Decoder', Decoder)
        return Generator(types.SimpleNamespace(), None, ByteTokenizer())

    return make


def _options(text: str, **changes) -> SampleConfig:
    return SampleConfig(max_new_tokens=len(text.encode()), **changes)


@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 100])
def test_stop_strings_cut_exactly(write, chunk):
    text = 'one, two; three. END and more'
    [result] = write(text, chunk=chunk).generate([''], _options(text, stop=('END', '; t')))
    assert result.text == 'one, two'
    assert result.ended == Ended.STOP


@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 100])
def test_pieces_make_up_the_text_and_hide_what_may_be_a_stop(write, chunk):
    text = 'ab«x»ENDé🙂EN'
    pieces, shown = [], ''
    for [(piece, row)] in write(text, chunk=chunk).stream([''], _options(text, stop=('ENDING',))):
        pieces.append(piece)
        shown += piece
        assert text.startswith(shown), 'half a character was shown'
        assert row.text == shown
        if row.ended is None:
            assert not shown.endswith(('E', 'EN', 'END')), 'the start of a stop string was shown'
    assert ''.join(pieces) == text, 'what was held back comes at the end'
    assert row.ended == Ended.LENGTH


OVERLAPS = {
    'inside another': ('abcdef', ('abcd', 'bc'), 'a'),
    'ends with another': ('abcdef', ('abc', 'bc'), ''),
    'begins like another': ('abcdef', ('bcx', 'bcde'), 'a'),
    'begins again inside': ('abcdcdcddef', ('cdcdd',), 'abcd'),
}


@pytest.mark.parametrize('chunk', [1, 2, 4, 100])
@pytest.mark.parametrize('text, stop, left', OVERLAPS.values(), ids=OVERLAPS.keys())
def test_the_first_complete_stop_string_wins_in_all_chunks(write, text, stop, left, chunk):
    [result] = write(text, chunk=chunk).generate([''], _options(text, stop=stop))
    assert (result.text, result.ended) == (left, Ended.STOP)
    complete = min(text.find(string) + len(string) for string in stop if string in text)
    assert bytes(result.tokens).decode() == text[:complete]


def test_nothing_is_drawn_after_all_texts_have_stopped(write):
    generator = write('ab. cdefgh', 'abcd. efgh', chunk=3)
    steps = list(generator.stream(['', ''], _options('ab. cdefgh', stop=('.',))))
    assert [[piece for piece, _ in step] for step in steps] == [['ab', 'abc'], ['', 'd']]


def test_the_host_looks_at_chunks_only_where_it_must(write):
    generator = write('abc')
    for ask, chunk in (
        (lambda: generator.generate([''], _options('abc', chunk=2)), 0),
        (lambda: generator.generate([''], _options('abc', chunk=2, stop=('x',))), 2),
        (lambda: list(generator.stream([''], _options('abc', chunk=2))), 2),
    ):
        ask()
        assert generator._decoder.asked == {'chunk': chunk}


def test_a_text_goes_on_inside_the_sentence_of_its_prompt(write, monkeypatch):
    """SentencePiece's models write a space before the first word of a text, which is no text."""
    generator = write(' on')
    tokenizer = generator._tokenizer
    monkeypatch.setattr(tokenizer, 'stream', lambda: StreamDecoder(bytes, leading_spaces=1))
    assert generator.generate([' go'], _options(' on'))[0].text == ' on'


def test_end_of_text_ends_a_row_and_its_neighbours_go_on(write):
    generator = write('short', 'a longer text', ending=True)
    first, second = generator.generate(['', ''], SampleConfig(max_new_tokens=50))
    assert (first.text, first.ended) == ('short', Ended.END_OF_TEXT)
    assert second.text == 'a longer text'
    assert first.tokens == list(b'short')


def test_a_text_cut_inside_a_character_shows_the_damage_at_the_end(write):
    [result] = write('a🙂').generate([''], SampleConfig(max_new_tokens=3))
    assert result.text.startswith('a')
    assert set(result.text[1:]) == {'\ufffd'}


def test_samples_of_a_prompt_stand_together_and_empty_prompts_start_after_a_text(write):
    generator = write('1', '2', '3', '4')
    results = generator.generate(['x', ''], SampleConfig(max_new_tokens=1, num_samples=2))
    assert [(result.prompt, result.text) for result in results] == [
        ('x', '1'),
        ('x', '2'),
        ('', '3'),
        ('', '4'),
    ]
    assert generator._decoder.prompts == [[120], [120], [EOT], [EOT]]


def test_the_text_of_a_model_is_its_decoded_ids():
    tokenizer = ByteTokenizer()
    config = make_config(vocab_size=257, max_seq_len=16, num_layers=1, d_model=16)
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    generator = Generator(config, params, tokenizer)
    sampling = SampleConfig(max_new_tokens=12, temperature=5.0, num_samples=2, chunk=5)
    results = generator.generate(['né', ''], sampling)
    prompts = [tokenizer.encode('né')] * 2 + [[EOT]] * 2
    pieces = generator._decoder.generate(prompts, sampling)
    ids = [list(itertools.chain(*row)) for row in zip(*pieces, strict=True)]
    assert [result.tokens for result in results] == ids
    assert [result.text for result in results] == [tokenizer.decode(row) for row in ids]
    assert len({result.text for result in results}) == 4
    with pytest.raises(UserError, match='the prompt has 17 tokens'):
        generator.generate(['x' * 17], sampling)


def test_every_end_ends_a_text(write):
    """Tokens beside the end of a document end a text, and so does a special token that is named."""
    generator = write('one two three')
    generator._tokenizer = generator._tokenizer.with_more_ends([ord('w')])
    [result] = generator.generate([''], _options('one two three'))
    assert (result.text, result.ended) == ('one t', Ended.END_OF_TEXT)
    assert generator._decoder.asked == {'chunk': 16}, 'it looks for the end now and then'
    generator = write('one two three')
    generator._tokenizer.special_tokens['<|im_end|>'] = ord('w')
    [result] = generator.generate([''], _options('one two three', stop=('<|im_end|>',)))
    assert (result.text, result.ended) == ('one t', Ended.STOP)

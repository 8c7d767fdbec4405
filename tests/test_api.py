"""The library door."""

import contextlib
import json
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune
from gpt_jax import GPT, files
from gpt_jax import run as runs
from gpt_jax.checkpoint import disk
from gpt_jax.checkpoint.manifest import list_steps
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.telemetry.progress import Progress
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind, make_tokenizer
from gpt_jax.train.program import Program
from tests.command_line import TINY
from tests.tiny_config import TEXT
from tests.weights.random_source import LLAMA, write_folder

SMALL = dict(num_layers=2, num_heads=2, d_model=32, max_seq_len=32)


@pytest.fixture(scope='module')
def fitted() -> GPT:
    """A tiny model after some steps on the committed text."""
    gpt = GPT(vocab_size=300, **SMALL)
    gpt.fit(TEXT, steps=60, batch_size=8, learning_rate=3e-3, quiet=True)
    return gpt


def test_as_written_in_the_readme():
    gpt = GPT(vocab_size=10000, num_layers=6, num_heads=8, d_model=512, d_ff=2048)
    text = gpt.generate('Once upon a time', max_length=20)
    assert text.startswith('Once upon a time')
    assert len(gpt.tokenizer.encode('Once upon a time')) == 16, 'bytes until fit'
    assert gpt.params['blocks']['mlp']['up']['kernel'].shape == (6, 512, 2048)


def test_fit_lowers_the_loss_and_trains_a_tokenizer(fitted):
    fresh = GPT(vocab_size=300, tokenizer=fitted.tokenizer, **SMALL)
    text = TEXT.read_text(encoding='utf-8')
    before, after = fresh.evaluate(text), fitted.evaluate(text)
    assert after.loss < before.loss - 1
    assert after.tokens == before.tokens == len(fitted.tokenizer.encode(text)) - 1
    assert fitted.tokenizer.kind == TokenizerKind.BPE
    assert fitted.tokenizer.vocab_size == 300
    assert fitted.steps == 60


def test_fit_takes_a_text_or_a_path(fitted):
    text = TEXT.read_text(encoding='utf-8')
    results = []
    for source in (text, str(TEXT), TEXT):
        gpt = GPT(vocab_size=260, **SMALL)
        results.append(gpt.fit(source, steps=2, batch_size=8, quiet=True))
    assert results[0] == results[1] == results[2]
    assert gpt.config.data.source == str(TEXT)


def test_fit_goes_on(fitted, tmp_path):
    fitted.save(tmp_path)
    gpt = GPT.load(tmp_path)
    before = gpt.evaluate(TEXT).loss
    gpt.fit(TEXT, steps=20, batch_size=8, quiet=True)
    assert gpt.steps == 80
    assert gpt.evaluate(TEXT).loss < before
    assert gpt.tokenizer.fingerprint() == fitted.tokenizer.fingerprint()


def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = GPT.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, fitted.params)
    options = dict(max_new_tokens=12, seed=1)
    assert loaded.generate('Alice', **options) == fitted.generate('Alice', **options)
    assert loaded.config.model == fitted.config.model
    loaded.params = jax.tree.map(lambda x: x + 1, loaded.params)
    loaded.save(tmp_path)  # in place of what is there
    again = GPT.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    for given in ({'compute_dtype': 'bfloat16'}, {'tokenizer': fitted.tokenizer}):
        with pytest.raises(UserError, match=f'is a run, which brings its own {[*given][0]}; leave'):
            GPT.from_pretrained(tmp_path, **given)


def test_a_run_of_another_machine_goes_on_here(tmp_path):
    arguments = [f'--config={TINY}:muon', f'--workdir={tmp_path}', '--config.train.num_steps=2']
    assert main(arguments) == 0
    config = json.loads((tmp_path / 'config.json').read_text())
    config['mesh'] |= {'data': 64, 'fsdp': 2}
    config['model']['attention_kernel'] = 'cudnn'
    config['train'] |= {'num_tokens': 10**9, 'grad_accumulation': 60, 'batch_size': 120}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    gpt = GPT.load(tmp_path)
    assert gpt.steps == 2
    with pytest.raises(UserError, match='holds a run with its optimizer state'):
        gpt.save(tmp_path)
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['2']
    before = gpt.evaluate(TEXT).loss
    gpt.fit(TEXT, steps=3, batch_size=3, quiet=True)
    assert gpt.steps == 5 and gpt.evaluate(TEXT).loss != before
    assert (gpt.config.train.num_tokens, gpt.config.mesh.data) == (0, 1)  # 3 of 8 devices: none
    assert type(gpt.config.optimizer).__name__ == 'AdamW'


def test_a_saved_model_is_a_run_of_the_command_line(fitted, tmp_path, capsys):
    fitted.save(tmp_path)
    arguments = ['--mode=generate', '--prompt=Alice', '--max_new_tokens=12', '--seed=1']
    assert main([f'--workdir={tmp_path}', *arguments]) == 0
    text = fitted.generate('Alice', max_new_tokens=12, seed=1)
    assert capsys.readouterr().out == text + '\n'


def test_lengths(fitted):
    prompt = 'Alice was beginning'
    tokens = len(fitted.tokenizer.encode(prompt))
    sampling = dict(temperature=0.0)
    whole = fitted.generate(prompt, max_length=tokens + 5, **sampling)
    assert whole == fitted.generate(prompt, max_new_tokens=5, **sampling)
    for both in ((5, 99), (99, 5)):  # the nearer limit counts
        limits = dict(max_length=tokens + both[0], max_new_tokens=both[1])
        assert fitted.generate(prompt, **limits, **sampling) == whole
    with pytest.raises(UserError, match=f'max_length={tokens} leaves no room'):
        fitted.generate(prompt, max_length=tokens)


def test_several_prompts_and_samples(fitted):
    texts = fitted.generate(['Alice', 'Down, down'], max_new_tokens=5)
    assert [text[:5] for text in texts] == ['Alice', 'Down,']
    assert len(fitted.generate('Alice', max_new_tokens=5, num_samples=3)) == 3


def test_one_stop_text(fitted):
    free = fitted.generate('Alice', max_new_tokens=40, temperature=0.0)[len('Alice') :]
    stop = free[4:6]
    stopped = fitted.generate('Alice', max_new_tokens=40, temperature=0.0, stop=stop)
    assert stopped == 'Alice' + free[: free.find(stop)]


def test_apply_gives_the_logits_that_generate_uses(fitted):
    ids = fitted.tokenizer.encode('Alice was')
    logits = fitted.apply([ids])
    assert logits.shape == (1, len(ids), 300)
    likeliest = int(jnp.argmax(logits[0, -1]))
    text = fitted.generate('Alice was', max_new_tokens=1, temperature=0.0)
    assert text == fitted.tokenizer.decode([*ids, likeliest])


def test_own_tokenizer():
    text = TEXT.read_text(encoding='utf-8')
    tokenizer = make_tokenizer(TokenizerConfig(kind=TokenizerKind.CHAR), lambda: [text])
    gpt = GPT(tokenizer=tokenizer, **SMALL)
    assert gpt.config.model.vocab_size == tokenizer.vocab_size
    gpt.fit(text, steps=2, batch_size=8, quiet=True)
    assert gpt.tokenizer is tokenizer


def test_wrong_arguments(fitted):
    with pytest.raises(UserError, match='did you mean num_layers'):
        GPT(num_layer=2)
    with pytest.raises(UserError, match='did you mean temperature'):
        fitted.generate('Alice', temperatur=1.0)
    with pytest.raises(UserError, match="weight_dtype='int4' is not one of compute, int8"):
        fitted.generate('Alice', weight_dtype='int4')
    with pytest.raises(UserError, match='vocab_size=100 is smaller than the tokenizer'):
        GPT(vocab_size=100)
    with pytest.raises(UserError, match='d_model=33 is not divisible'):
        GPT(num_heads=2, d_model=33)
    with pytest.raises(UserError, match="there is no file 'corpus.txt'"):
        fitted.fit('corpus.txt', steps=1)
    with pytest.raises(UserError, match='max_seq_len'):
        GPT(vocab_size=260, **SMALL).fit('too short', steps=1, quiet=True)
    with pytest.raises(UserError, match='holds no run'):
        GPT.load('nowhere')
    with pytest.raises(UserError, match='token 300 is not one of the 300 tokens'):
        fitted.apply([[1, 300]])
    with pytest.raises(UserError, match='33 tokens are more than the 32 of max_seq_len'):
        fitted.apply([[1] * 33])


def listing(folder) -> dict[str, bytes]:
    """Every file below a folder but the lock, with its bytes."""
    paths = [path for path in sorted(folder.rglob('*')) if path.is_file() and path.name != 'lock']
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def tiny() -> GPT:
    """An untrained model that is made in a moment."""
    return GPT(num_layers=1, num_heads=1, d_model=8, max_seq_len=16)


FOREIGN = {
    'notes': ('notes.txt', 'mine'),
    'config of something else': ('config.json', '{"model_type": "llama"}'),
    'checkpoints': ('checkpoints/7/weights.bin', 'mine'),
    'a lock': ('lock', 'of mine, to say it so'),
}


@pytest.mark.parametrize(('name', 'content'), FOREIGN.values(), ids=FOREIGN)
def test_folders_of_others_are_left_alone(name, content, tiny, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    for write in (tiny.save, tiny.export):
        with pytest.raises(UserError, match='is not empty'):
            write(tmp_path)
    with pytest.raises(UserError, match='is not empty and holds no run'), runs.lock(tmp_path):
        pass
    assert (tmp_path / name).read_text() == content
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == [tmp_path / name]


def test_save_replaces_only_what_it_wrote(tiny, tmp_path):
    tiny.save(tmp_path)
    for name in ('notes.txt', 'checkpoints/notes.txt'):
        (tmp_path / name).write_text('mine')
    tiny.params = jax.tree.map(lambda x: x + 1, tiny.params)
    tiny.steps = 3
    tiny.save(tmp_path)
    assert listing(tmp_path)['notes.txt'] == listing(tmp_path)['checkpoints/notes.txt'] == b'mine'
    assert list_steps(tmp_path / 'checkpoints') == [3]
    jax.tree.map(np.testing.assert_array_equal, GPT.load(tmp_path).params, tiny.params)


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
@pytest.mark.parametrize(
    'broken',
    [(disk.Writer, 'save'), (disk.Writer, 'wait'), (runs, 'save_run')],
    ids=lambda broken: broken[1],
)
def test_a_save_that_fails_leaves_the_old_model(broken, error, tiny, tmp_path, monkeypatch):
    tiny.save(tmp_path)
    before = listing(tmp_path)
    tiny.params = jax.tree.map(lambda x: x + 1, tiny.params)

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*broken, fail)
        with pytest.raises((KeyboardInterrupt, UserError, OSError)):
            tiny.save(tmp_path)
    assert listing(tmp_path) == before
    GPT.load(tmp_path)
    tiny.save(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, GPT.load(tmp_path).params, tiny.params)


def test_a_swap_that_fails_leaves_the_old_model(tiny, tmp_path, monkeypatch):
    tiny.save(tmp_path)
    before, renames, rename = listing(tmp_path), [], pathlib.Path.rename
    tiny.steps = 5
    for number in range(1, 8):
        renames.clear()

        def fail(source, target, number=number):
            renames.append(source)
            if len(renames) == number:
                raise OSError(5, 'Input/output error')
            return rename(source, target)

        with monkeypatch.context() as patch:
            # orbax renames too: only the swap's are counted
            patch.setattr(files.pathlib.Path, 'rename', fail)
            with pytest.raises(UserError, match='cannot write'):
                tiny.save(tmp_path)
        assert listing(tmp_path) == before


@pytest.mark.parametrize('number', range(1, 12))
def test_a_kill_between_the_moves_of_a_swap_leaves_the_old_model(
    tiny, tmp_path, monkeypatch, number
):
    tiny.save(tmp_path)
    before, moved, rename = listing(tmp_path), [], pathlib.Path.rename
    tiny.steps = 5

    class Killed(BaseException):
        """Ends the call as SIGKILL would: nothing of `files` runs after it."""

    def kill(source, target):
        moved.append(source)
        if len(moved) == number:
            raise Killed
        return rename(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(files.pathlib.Path, 'rename', kill)
        patch.setattr(files, 'undo_swap', lambda aside: None)
        tiny.save(tmp_path)
    finished = len(moved) < number
    assert GPT.load(tmp_path).steps == (5 if finished else 0)
    if not finished:
        assert listing(tmp_path) == before


def test_export_replaces_nothing_but_an_export(tiny, tmp_path):
    tiny.save(tmp_path / 'run')
    before = listing(tmp_path / 'run')
    with pytest.raises(UserError, match='folder=.*run is not empty'):
        tiny.export(tmp_path / 'run', format='safetensors')
    assert listing(tmp_path / 'run') == before
    for _ in range(2):
        tiny.export(tmp_path / 'out', format='safetensors')
    card = tmp_path / 'out' / 'README.md'
    card.write_text(card.read_text() + 'My notes.\n')
    with pytest.raises(UserError, match=r'it has README\.md'):
        tiny.export(tmp_path / 'out', format='safetensors')


def record_batches(monkeypatch) -> list[tuple[int, bytes]]:
    """Every batch that is trained on from here on: the step that it is taken for, and its bits."""
    taken, advance = [], Program.advance

    def record(self, state, batches):
        taken.extend(
            (int(state.step) + i, batch['tokens'].tobytes()) for i, batch in enumerate(batches)
        )
        return advance(self, state, batches)

    monkeypatch.setattr(Program, 'advance', record)
    return taken


def test_short_calls_of_fit_see_what_a_long_one_does(tmp_path, monkeypatch):
    taken = record_batches(monkeypatch)
    text = TEXT.read_text(encoding='utf-8')[:6000]

    def make() -> GPT:
        return GPT(num_layers=1, num_heads=1, d_model=8, max_seq_len=16)

    make().fit(text, steps=6, batch_size=2, quiet=True)
    whole = [*taken]
    taken.clear()
    gpt = make()
    for steps in (2, 1):
        gpt.fit(text, steps=steps, batch_size=2, quiet=True)
    gpt.save(tmp_path)
    gpt = GPT.load(tmp_path)
    gpt.fit(text, steps=1, batch_size=4, quiet=True)  # twice as many sequences
    assert gpt.steps == 4
    assert taken[:3] == whole[:3]
    assert (taken[3][0], len({bits for _, bits in taken})) == (3, 4)
    assert taken[3][1] == whole[4][1] + whole[5][1]  # sequence 6 begins its second batch of 4


@pytest.mark.slow
def test_fit_counts_the_passes_over_the_text(capsys):
    text = TEXT.read_text(encoding='utf-8')[:800]
    gpt = GPT(vocab_size=257, tokenizer=make_tokenizer(TokenizerConfig(), tuple), **SMALL)

    def said(*, steps: int, quiet: bool = False) -> list[str]:
        gpt.fit(text, steps=steps, batch_size=8, quiet=quiet)
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if 'over your text' in line]

    assert said(steps=9) == ['fit: 720 tokens to train on, 3.2 passes over your text']
    assert said(steps=100, quiet=True) == []
    counted, warned = said(steps=1)
    assert counted == 'fit: 720 tokens to train on, 39 passes over your text'  # in all calls
    assert warned == (
        'warning: 39 passes over your text are so many that the model will learn it by heart; '
        'lower steps or batch_size, or give it more text'
    )


def test_weights_from_elsewhere_get_the_rate_of_fine_tuning(tiny, tmp_path, capsys):
    tiny.export(tmp_path / 'out', format='safetensors')
    gpt = GPT.from_pretrained(tmp_path / 'out')
    rate = finetune.get_config().optimizer.learning_rate
    text = TEXT.read_text(encoding='utf-8')[:3000]
    gpt.fit(text, steps=1, batch_size=2)
    assert gpt.config.optimizer.learning_rate == rate
    said = [line for line in capsys.readouterr().out.splitlines() if 'learning_rate' in line]
    assert len(said) == 1 and f'{rate}' in said[0] and str(tmp_path / 'out') in said[0]
    gpt.save(tmp_path / 'saved')
    loaded = GPT.load(tmp_path / 'saved')
    loaded.fit(text, steps=1, batch_size=2, quiet=True)
    assert loaded.config.optimizer.learning_rate == rate
    loaded.fit(text, steps=1, batch_size=2, learning_rate=0.5, quiet=True)
    tiny.fit(text, steps=1, batch_size=2, quiet=True)
    rates = [each.config.optimizer.learning_rate for each in (loaded, tiny)]
    assert rates == [0.5, 1e-3]


@pytest.mark.parametrize('by', ['signal', 'a signal that the caller handles', 'error'])
def test_an_interrupted_fit_keeps_what_it_trained(by, tiny, monkeypatch, request):
    taken = record_batches(monkeypatch)
    update = Progress.update

    def interrupt(self, done, **fields):
        update(self, done, **fields)
        if self.description == 'fit' and done >= 3:
            if by == 'error':
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    if 'handles' in by:
        handler = signal.signal(signal.SIGINT, lambda *_: None)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    monkeypatch.setattr(Progress, 'update', interrupt)
    before = jax.tree.map(np.asarray, tiny.params)
    with pytest.raises(KeyboardInterrupt):
        tiny.fit(TEXT, steps=400, batch_size=2, quiet=True)
    assert 3 <= tiny.steps == len(taken) < 400
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before, tiny.params)))
    monkeypatch.setattr(Progress, 'update', update)
    done = tiny.steps
    tiny.fit(TEXT, steps=1, batch_size=2, quiet=True)
    assert tiny.steps == done + 1 == len({bits for _, bits in taken})


def test_evaluation_takes_the_size_of_the_text(monkeypatch):
    shapes, place = [], Program.place

    def record(self, batch):
        shapes.append(batch['tokens'].shape)
        return place(self, batch)

    monkeypatch.setattr(Program, 'place', record)
    gpt = GPT(num_layers=1, num_heads=1, d_model=8, max_seq_len=64)
    text = 'to be or not to be, that is the question. ' * 20
    short = gpt.evaluate(text[:38])
    assert shapes.pop()[1] == 65 and short.tokens == 37
    short = gpt.evaluate(text[:18])
    assert shapes.pop()[1] == 33 and short.tokens == 17
    whole = gpt.evaluate(text)
    assert shapes.pop() == (16, 65) and not shapes
    small = gpt.evaluate(text, batch_size=8)
    assert shapes == [(8, 65), (8, 65)]
    assert small.tokens == whole.tokens and small.loss == pytest.approx(whole.loss, rel=1e-5)
    with pytest.raises(UserError, match='batch_size=-1 must not be negative'):
        gpt.evaluate(text, batch_size=-1)


MISTYPED = ['/a path/that is.txt', './my texts', '~/no such file', 'my corpus.txt', 'a b/c d.tok']


@pytest.mark.parametrize('name', MISTYPED)
def test_a_path_that_names_nothing_is_no_text(name, tiny):
    with pytest.raises(UserError, match='there is no file'):
        tiny.evaluate(name)


def test_texts_with_slashes_and_full_stops_are_texts(tiny):
    for text in ('He and/or she came.', 'It ended.', 'a b.txt\n', 'I write node.js all day'):
        assert tiny.evaluate(text).tokens == len(text) - 1


ROWS = {
    'one row': ([1, 2, 3], 'int64 of shape'),
    'text': ('hello', 'not text'),
    'texts': (['hello'], 'not text'),
    'numbers': ([[0.5]], 'float64'),
    'ragged': ([[1, 2], [3]], 'differ in length'),
    'nothing': ([[]], 'no tokens'),
    'an object': (None, 'object'),
}


@pytest.mark.parametrize(('tokens', 'message'), ROWS.values(), ids=ROWS)
def test_apply_says_what_it_takes(tokens, message, tiny):
    with pytest.raises(UserError, match=message):
        tiny.apply(tokens)


def test_choices_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="config.model.mlp='swigloo' is not one of .*swiglu"):
        GPT(mlp='swigloo')
    with pytest.raises(UserError, match=f'^folder={tmp_path}/none holds no run'):
        GPT.load(tmp_path / 'none')


def test_sampling_settings_and_credits_of_the_source_are_the_defaults(tmp_path):
    write_folder(tmp_path / 'source', **LLAMA)
    sampling = {'do_sample': False, 'max_new_tokens': 4}
    files.write_json(tmp_path / 'source' / 'generation_config.json', sampling)
    (tmp_path / 'source' / 'README.md').write_text('---\nlicense: mit\n---\n')
    gpt = GPT.from_pretrained(tmp_path / 'source')
    gpt.save(tmp_path / 'run')
    for each in (gpt, GPT.load(tmp_path / 'run')):
        greedy = each.generate('The', temperature=0.0, max_new_tokens=4)
        assert each.generate('The') == greedy == each.generate('The', seed=1)
        hot = each.generate('The', temperature=50.0, num_samples=2)
        assert len(hot) == 2 and hot[0] != hot[1]
        assert each.generate('The', max_new_tokens=2) == each.generate('The', max_length=3)
        each.export(tmp_path / 'out')
        exported = files.read_json(tmp_path / 'out' / 'generation_config.json')
        assert (exported['do_sample'], exported['max_new_tokens']) == (False, 4)
        assert '\nlicense: mit\n' in (tmp_path / 'out' / 'README.md').read_text()

"""README and the pages of docs/ are run: their commands with tiny overrides, their Python as it is.

A fenced block is run by its language. In `bash` every command is run in order; in `console` lines
that begin with `$ ` are commands, and the others are what they print; `python` is executed, each
page in a namespace of its own. A comment before the fence says otherwise:

    <!-- not run: REASON -->       the commands of gpt_jax only have their flags parsed
    <!-- from: PATH -->            the block is a piece of that file
"""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from gpt_jax import object_store, pretrained, run
from gpt_jax.compare.__main__ import main as compare
from gpt_jax.config import RunConfig
from gpt_jax.main import main
from gpt_jax.modes import MODES
from gpt_jax.parallel import local_pod, runtime
from tests.tiny_config import TEXT

ROOT = pathlib.Path(__file__).parents[1]
# In this order: a page uses the runs of those before it.
PAGES = [
    'README.md',
    'docs/training.md',
    'docs/data.md',
    'docs/generation.md',
    'docs/serve.md',
    'docs/weights.md',
    'docs/web.md',
    'docs/evaluation.md',
    'docs/report.md',
    'docs/sweeps.md',
    'docs/compare.md',
    'docs/inspect.md',
    'docs/induction.md',
    'docs/mup.md',
    'docs/speed.md',
    'docs/scale.md',
    'docs/faults.md',
    'docs/extending.md',
    'docs/architecture.md',
    'docs/installation.md',
]
FENCE = re.compile(
    r'^(?:<!-- (?P<note>not run|from): (?P<what>[^\n]+) -->\n)?'
    r'```(?P<language>\w*)\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
COMMANDS = {'python -m gpt_jax.main ': main, 'python -m gpt_jax.compare ': compare}
MAX_WORDS = 1300


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page; `note` is what the comment before it says."""

    page: str
    language: str
    text: str
    note: str
    what: str

    @property
    def commands(self) -> list[str]:
        """Those of gpt_jax, each on one line; none where the block is no shell's."""
        prefix = {'bash': '', 'console': '$ '}.get(self.language)
        if prefix is None:
            return []
        lines = self.text.replace('\\\n', ' ').splitlines()
        found = [line for line in lines if line.startswith(tuple(prefix + x for x in COMMANDS))]
        return [line.removeprefix(prefix) for line in found]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page: str) -> list[Block]:
    return [
        Block(page, each['language'], each['text'], each['note'] or '', each['what'] or '')
        for each in FENCE.finditer(read(page))
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


# What pages say


def test_every_page_is_listed_here():
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').glob('*.md')]
    assert sorted(PAGES) == sorted(['README.md', *found])


def test_every_fence_is_found():
    for page in PAGES:
        assert 2 * len(blocks(page)) == len(re.findall('^ *```', read(page), re.MULTILINE)), page
        notes = re.findall(r'^<!-- (?:not run|from)', read(page), re.MULTILINE)
        assert len(notes) == sum(bool(block.note) for block in blocks(page)), page


def test_readme_is_short():
    assert len(read('README.md').split()) <= MAX_WORDS


def test_every_mode_is_in_a_command():
    commands = [command for block in BLOCKS for command in block.commands]
    shown = {(re.findall(r'--mode[ =](\w+)', command) or ['train'])[0] for command in commands}
    assert shown == set(MODES)


def test_pieces_of_files_are_those_of_the_files():
    pieces = [block for block in BLOCKS if block.note == 'from']
    assert 'gpt_jax/model/block.py' in [block.what for block in pieces]
    for block in pieces:
        assert block.text in read(block.what), f'{block.page} shows other lines than {block.what}'


def anchors(page: pathlib.Path) -> set[str]:
    """The names that a page's headings get on GitHub."""
    headings = re.findall('^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', each.lower()).replace(' ', '-') for each in headings}


@pytest.mark.parametrize('page', [*PAGES, 'CONTRIBUTING.md', 'benchmarks/README.md'])
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', FENCE.sub('', read(page))):
        if link.startswith('https://'):
            continue
        name, _, anchor = link.partition('#')
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f'{page} links to {link}'
        assert not anchor or anchor in anchors(target), f'{page} links to {link}'


# What pages tell to run


def test_commands_that_are_not_run_have_flags_that_exist(monkeypatch, capsys):
    """Everything happens but the mode itself, joining processes, and reading runs and buckets."""
    for mode in MODES.values():
        monkeypatch.setattr(mode, 'run', lambda *_: 0)
    monkeypatch.setattr(object_store, 'check_reachable', lambda *_, **__: None)
    monkeypatch.setattr(pretrained, 'adopt_run', lambda *_, **__: None)
    monkeypatch.setattr(run, 'read_draft', lambda _: RunConfig())
    monkeypatch.setattr(runtime, 'join', lambda *_: None)
    monkeypatch.setattr(local_pod, 'launch', lambda _, argv: main(argv))
    monkeypatch.chdir(ROOT)
    commands = [command for block in BLOCKS if block.note for command in block.commands]
    assert commands
    for command in commands:
        status = start(command)
        assert status == 0, f'{command}\n{capsys.readouterr().err}'


def start(command: str, *flags: str) -> int:
    """Runs a command of gpt_jax with more flags; returns its status."""
    entry = next(each for prefix, each in COMMANDS.items() if command.startswith(prefix))
    return entry([*shlex.split(command)[3:], *flags])


def tiny(command: str) -> list[str]:
    """Returns overrides that make a command short; they change no more than they must."""
    if 'gpt_jax.compare' in command and '.py' not in command:
        return ['--seeds=2']  # of finished runs
    flags = [
        *('--config.train.num_steps=2', '--config.train.num_epochs=0'),
        *('--config.train.batch_size=8', '--config.eval.batch_size=8', '--config.eval.batches=1'),
        '--config.sample.max_new_tokens=4',
    ]
    [mode] = re.findall(r'--mode (\w+)', command) or ['train']
    begins_anew = '--config configs/quickstart.py' in command
    if begins_anew:
        flags += ['--config.model.num_layers=1', '--config.tokenizer.vocab_size=270']
    generated = re.search(r'configs/(grokking|induction)\.py', command)
    has_data = '--config.data.source' in command or generated
    if not has_data and mode not in ('generate', 'inspect', 'export'):
        flags += ['--config.data.corpus=text', f'--config.data.source={TEXT}']
        flags += ['--config.data.split=tail:0.2']
    if '--local_pod' not in command:
        flags += ['--config.mesh.data=1']
    if 'gpt_jax.compare' in command:
        flags += ['--seeds=2']
    flags += {
        'generate': ['--max_new_tokens=4'],
        'benchmark': ['--benchmark_groups=1', '--benchmark_steps=1', '--benchmark_warmup=1']
        + ['--profile_steps=1', '--decode_prompt=4', '--decode_tokens=4'],
        'replay': ['--step=1'],
        'doctor': ['--doctor_megabytes=1'],
    }.get(mode, [])
    return flags


def labels(output: str) -> set[str]:
    """The first column of the tables in an output, whatever process wrote them."""
    return set(re.findall(r'^(?:\[\d+\] )?  (\S+(?: \S+)*)  +\S', output, re.MULTILINE))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as a user's clone, without runs and with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', str(pathlib.Path(sys.executable).parent), prepend=':')
    for name in ('configs', 'docs', 'README.md'):
        (tmp_path / name).symlink_to(ROOT / name)


@pytest.mark.slow
def test_everything_runs_in_order(workplace, capsys):
    done = set()
    for page in PAGES:
        names, printed = {}, ''
        for block in blocks(page):
            if block.note:
                printed = ''
            elif block.language in ('bash', 'console'):
                printed = run_shell(block, done, capsys)
            elif block.language == 'python':
                code = re.sub(r'\b(steps|max_new_tokens)=\d+', r'\1=2', block.text)
                exec(compile(code, page, 'exec'), names)
                printed = capsys.readouterr().out
            if block.language in ('', 'console') and printed:
                missing = labels(block.text) - labels(printed)
                assert not missing, f'{page} shows {missing}; printed was\n{printed}'


def run_shell(block: Block, done: set[tuple[str, ...]], capsys) -> str:
    """Runs the commands that were not run before; returns what they print."""
    capsys.readouterr()
    rest = block.text.replace('\\\n', ' ') if block.language == 'bash' else ''
    for command in block.commands:
        rest = rest.replace(command, '')
        shown = re.findall(r'^error: .*$', block.text, re.MULTILINE)
        if shown:
            assert start(command) == 2, command
            assert capsys.readouterr().err.strip() == shown[0]
        elif tuple(shlex.split(command)) not in done:
            status = start(command, *tiny(command))
            output = capsys.readouterr()
            assert status == 0, f'{block.page}: {command}\n{output.out}{output.err}'
            done.add(tuple(shlex.split(command)))
            print(output.out)
    if rest.strip():
        subprocess.run(['bash', '-e', '-c', rest], check=True, capture_output=True)
    return capsys.readouterr().out

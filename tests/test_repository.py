"""Guards against rot: what the repository says about itself must stay true."""

import ast
import collections
import dataclasses
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import typing
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement

from gpt_jax.config import RunConfig
from gpt_jax.model.config import LayerKind

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'gpt_jax'
MAX_LINES = 500


def repository_files() -> list[pathlib.Path]:
    """Every file that belongs to the repository: tracked, or new and not ignored by git."""
    listing = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.splitlines()]
    else:  # an unpacked archive
        ignored = {'runs', 'build', 'dist', '__pycache__'}
        files = [
            path
            for path in ROOT.rglob('*')
            if not any(
                part in ignored or (part.startswith('.') and part != '.ci')
                for part in path.relative_to(ROOT).parts[:-1]
            )
        ]
    return sorted(path for path in files if path.is_file())


FILES = repository_files()
SOURCES = [path for path in FILES if path.suffix == '.py']
MODULES = [path for path in SOURCES if path.is_relative_to(PACKAGE)]
TEXTS = [path for path in FILES if path.suffix not in {'.png', '.npz', '.model', '.bin'}]


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


# The tree of docs/architecture.md

TREE = 'docs/architecture.md'


def documented_tree() -> dict[str, bool]:
    """Path -> whether it is written as a folder, from the tree of docs/architecture.md.

    The tree is the fenced block with a line that starts with `gpt_jax/`. One entry a line: the
    name first, then two spaces and what it is; two more spaces of indentation are one level
    deeper.
    """
    blocks = re.findall(r'^```\w*\n(.*?)^```', (ROOT / TREE).read_text(), re.M | re.S)
    block = next(block for block in blocks if re.search(r'^gpt_jax/(\s|$)', block, re.M))
    entries = {}
    folders = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name = re.split(r'\s{2,}', line.strip())[0]
        folders[depth:] = [name.rstrip('/')]
        entries['/'.join(folders)] = name.endswith('/')
    return entries


def test_the_tree_names_only_what_exists():
    wrong = [
        path
        for path, is_folder in documented_tree().items()
        if not ((ROOT / path).is_dir() if is_folder else (ROOT / path).is_file())
    ]
    assert not wrong, f'{TREE} names {wrong}, which do not exist (folders end with a slash)'


def test_the_tree_is_complete():
    top_level = {path.relative_to(ROOT).parts[0] for path in FILES}
    expected = {name for name in top_level if not name.startswith('.')}
    expected |= {'/'.join(path.relative_to(ROOT).parts[:2]) for path in MODULES}
    expected.discard('gpt_jax/__init__.py')
    missing = sorted(expected - set(documented_tree()))
    assert not missing, f'the tree in {TREE} lacks {missing}'


# Files


@pytest.mark.parametrize('path', SOURCES, ids=relative)
def test_file_is_readable_in_one_sitting(path):
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= MAX_LINES, f'{relative(path)} has {lines} lines: split it by what it owns'


def test_modules_are_named_by_what_they_own():
    vague = [
        relative(path)
        for path in SOURCES
        if re.fullmatch(r'utils?|common|helpers?|misc|.*_(lib|utils?|helpers?)', path.stem)
    ]
    assert not vague, f'{vague}: name the noun that the functions belong to'


def test_no_file_names_a_machine_or_a_package_index():
    folders = '|'.join(['root', 'home', 'Users', 'work', 'opt', 'tmp'])
    places = re.compile(rf'(?<![\w./:-])/(?:{folders})/\w')
    indexes = re.compile('|'.join([r'pypi\.' + 'org', 'python' + 'hosted', '--' + 'index-url']))
    found = [
        f'{relative(path)}:{number}: {line.strip()}'
        for path in TEXTS
        for number, line in enumerate(path.read_text('utf-8', 'replace').splitlines(), 1)
        if places.search(line) or indexes.search(line)
    ]
    assert not found, '\n'.join(found)


def test_every_test_file_mirrors_a_module():
    """tests/model/test_norm*.py tests gpt_jax/model/norm.py, or the whole package model."""
    free = {'contracts', 'golden'}  # over tables and over configs; and files of the top level
    strays = []
    for path in SOURCES:
        folder = path.relative_to(ROOT).parts[:-1]
        if folder[0] != 'tests' or not path.name.startswith('test_') or len(folder) == 1:
            continue
        if folder[1] not in free and not PACKAGE.joinpath(*folder[1:]).is_dir():
            strays.append(relative(path))
    assert not strays, f'{strays} mirror no folder of gpt_jax'


def test_no_module_is_dead():
    imported = set().union(*(imported_names(path) for path in SOURCES))
    modules = {module_name(path) for path in MODULES if path.stem != '__main__'}
    dead = modules - imported - {'gpt_jax', 'gpt_jax.main'}
    assert not dead, f'nothing imports {sorted(dead)}'


def module_name(path: pathlib.Path) -> str:
    """The dotted name that imports a source file."""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def imported_names(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports: `from a.b import c` counts as a, a.b and a.b.c."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return {name[: dot.start()] for name in names for dot in re.finditer(r'\.|$', name)}


# Imports and configuration


def run_python(code: str) -> str:
    """Returns the output of `code` in a fresh interpreter, in the repository."""
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_every_module_does_no_device_work():
    names = [module_name(path) for path in MODULES]
    printed = run_python(
        'import importlib\n'
        f'for name in {names}: importlib.import_module(name)\n'
        'import jax._src.xla_bridge\n'
        'print(sorted(jax._src.xla_bridge._backends))'
    )
    assert printed == '[]\n', f'importing prints or starts a backend: {printed}'


@pytest.mark.parametrize('module', ['gpt_jax', 'gpt_jax.tokenizer', 'gpt_jax.files'])
def test_importing_does_not_import_jax(module):
    assert run_python(f"import sys, {module}; print('jax' in sys.modules)") == 'False\n'


def is_config_decorator(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    options = {keyword.arg for keyword in node.keywords}
    return {'slots', 'kw_only'} <= options and 'frozen' not in options


def test_every_config_field_is_one_line():
    """`--help` shows the comment at the end of a field's line."""
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ClassDef) and any(
                map(is_config_decorator, node.decorator_list)
            ):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and field.lineno != field.end_lineno:
                        long.append(f'{relative(path)}:{field.lineno}: {field.target.id}')
    assert not long, long


# Other names than its branch that code gives to a config dataclass; a group of the model has none.
CONFIG_NAMES = {'config', 'c', 'sampling'}
MEMBERS = {'attention', 'mlp'}  # of unions: their modules call them `options`, themselves `self`
GROUPS = {'rope', 'dropouts', 'init', 'precision', 'execution'}


def reads() -> set[tuple[str, str]]:
    """Returns (receiver, name) of each attribute that is read: `c.rope.base` gives (rope, base)."""
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                value = node.value
                found.add((getattr(value, 'attr', getattr(value, 'id', '')), node.attr))
    return found


def knobs(cls: type, branch: str) -> Iterator[tuple[str, str]]:
    """Yields (branch, knob) of a config dataclass and of those in it."""
    for field in dataclasses.fields(cls):
        inner = typing.get_args(field.type) or (field.type,)
        if dataclasses.is_dataclass(inner[0]):
            for each in filter(dataclasses.is_dataclass, inner):
                name = 'kind' if each is LayerKind else field.name
                if cls is not LayerKind:  # its MLP is in the model's union
                    yield from knobs(each, name)
        else:
            yield branch, field.name


def test_every_config_field_is_read():
    """By code that reads it from its branch, and not an attribute of something else."""
    found = reads()
    unread = {
        f'{branch}.{name}'
        for branch, name in knobs(RunConfig, 'config')
        for receivers in [
            {branch}
            if branch in GROUPS
            else {'kind'}
            if branch == 'kind'
            else {branch, 'options', 'o', 'self'}
            if branch in MEMBERS
            else {branch} | CONFIG_NAMES
        ]
        if not any((receiver, name) in found for receiver in receivers)
    }
    assert not unread, f'no code reads {sorted(unread)}'


# Requirements

REQUIREMENTS = sorted(ROOT.glob('requirements*.txt'))


def requirements(path: pathlib.Path, python: str) -> list[Requirement]:
    """Returns what a requirements file installs on one version of Python."""
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return [
        requirement
        for requirement in map(Requirement, filter(None, lines))
        if not requirement.marker or requirement.marker.evaluate({'python_version': python})
    ]


@pytest.mark.parametrize('path', REQUIREMENTS, ids=relative)
@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_requirements_pin_one_version(path, python):
    chosen = requirements(path, python)
    for requirement in chosen:
        assert re.fullmatch(r'==[\w.]+', str(requirement.specifier)), requirement
    names = collections.Counter(requirement.name for requirement in chosen)
    assert set(names.values()) == {1}, names
    base = {each.name: each.specifier for each in requirements(ROOT / 'requirements.txt', python)}
    for requirement in chosen:
        pinned = base.get(requirement.name, requirement.specifier)
        assert requirement.specifier == pinned, f'{requirement}: requirements.txt has {pinned}'


@pytest.mark.parametrize('name', ['requirements.txt', 'requirements-dev.txt'])
def test_the_tests_run_on_the_pinned_versions(name):
    for requirement in requirements(ROOT / name, '{}.{}'.format(*sys.version_info)):
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f'{requirement}: has {installed}'


# Test settings


def test_the_settings_of_conftest_are_in_force():
    import jax

    assert jax.default_backend() == 'cpu'
    assert jax.device_count() == 8
    assert jax.config.jax_numpy_rank_promotion == 'raise'
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
    assert pathlib.Path(jax.config.jax_compilation_cache_dir).name == 'tests'


# Language


@pytest.mark.parametrize('path', MODULES, ids=relative)
def test_docstrings_open_plainly(path):
    """A function's docstring opens with a verb (Returns, Computes …), no other with a question."""
    odd = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        text = ast.get_docstring(node) or ''
        decorators = map(ast.unparse, getattr(node, 'decorator_list', ()))
        is_function = isinstance(node, ast.FunctionDef) and not any(
            'property' in name for name in decorators
        )
        asks = re.match(r'(What|Which|Where|Whether|How)\b', text)
        if asks or (text and is_function and not re.match(r'[A-Z][a-z]*(s|es)\b', text)):
            odd.append(f'{relative(path)}:{getattr(node, "lineno", 1)}: {text.splitlines()[0]}')
    assert not odd, '\n'.join(odd)

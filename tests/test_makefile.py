"""The Makefile, read by `make -n`: what each target would run."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.command_line import ROOT

pytestmark = pytest.mark.skipif(not shutil.which('make'), reason='needs make')


def recipe(*arguments: str, cwd: pathlib.Path = ROOT) -> str:
    """Returns what make would run, with comments."""
    makefile = ROOT / 'Makefile'
    command = ['make', '-n', '-B', '-f', str(makefile), *arguments]
    # Under `make test` the variables of that call would be this one's too.
    of_make = {'MAKEFLAGS', 'MFLAGS', 'MAKEOVERRIDES', 'MAKELEVEL', 'PYTHON', 'VENV', 'TESTS'}
    env = {name: value for name, value in os.environ.items() if name not in of_make}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize('target', ['test', 'test-all', 'lint', 'format'])
def test_tests_and_checks_leave_the_users_environment_alone(target):
    printed = recipe(target)
    assert '.venv-test/bin/' in printed
    assert not re.search(r'\.venv(?!-test)\b', printed)
    chosen = recipe(target, 'VENV=.venv-3.12')
    assert '.venv-3.12/bin/' in chosen and '.venv-test' not in chosen


def test_the_demo_installs_what_runs_and_nothing_more():
    printed = recipe('demo')
    assert '.venv/bin/python' in printed
    assert 'requirements-dev' not in printed and '.venv-test' not in printed


def test_the_demo_shows_its_output_and_not_its_recipe():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    demo = re.search(r'^demo:.*\n((?:\t.*\n)+)', makefile, re.M)[1]
    commands = re.sub(r'\\\n', ' ', demo).splitlines()
    assert all(command.startswith('\t@') for command in commands)


def test_the_demo_ends_with_four_commands_that_fit_a_terminal():
    last = recipe('demo').partition('Next, after')[2]
    assert last.count('python -m gpt_jax.main') == 4
    shown = [line.strip(" '\\") for line in last.splitlines()]
    assert max(map(len, shown)) <= 78

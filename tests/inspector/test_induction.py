"""docs/induction.md: the model that it trains forms induction heads, and needs them to copy."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason='once is enough, on 3.11')
def test_the_page_finds_the_heads_that_copy():
    """In a process of its own, with programs optimised as a user's: about a minute."""
    page = (ROOT / 'docs' / 'induction.md').read_text(encoding='utf-8')
    code = '\n'.join(re.findall(r'^```python\n(.*?)^```$', page, re.MULTILINE | re.DOTALL))
    code += '\nprint("numbers", len(heads), *map(float, '
    code += '(loss(repeated), loss(repeated, without), loss(other), loss(other, without))))\n'
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    environment['PYTHONPATH'] = str(ROOT)
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    numbers = re.search(r'^numbers (.*)$', result.stdout, re.MULTILINE)[1].split()
    found, before, after, other, other_after = map(float, numbers)
    assert found >= 1
    assert after - before > 1
    assert other_after - other < 0.5 * (after - before)

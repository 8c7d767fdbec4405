"""The lesson runs from its first cell to its last, and is stored as it ran."""

import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'notebooks' / 'inside_gpt.ipynb'
LARGEST = 1_500_000  # bytes

nbformat = pytest.importorskip('nbformat', reason='pip install -r requirements-notebooks.txt')


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_with_its_outputs(notebook):
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < LARGEST
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert 'error' not in kinds
    assert sum('image/png' in str(cell.outputs) for cell in cells) >= 4
    assert str(ROOT) not in str(notebook)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason='runs with the pinned versions of 3.11')
def test_it_runs(notebook, tmp_path, monkeypatch):
    """With a shorter training; the weights that it may use are absent."""
    nbclient = pytest.importorskip('nbclient', reason='pip install -r requirements-notebooks.txt')
    pytest.importorskip('ipykernel', reason='pip install -r requirements-notebooks.txt')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    for cell in notebook.cells:
        cell.source = re.sub(r'steps=\d+', 'steps=20', cell.source)
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    printed = [
        output.text
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        if output.output_type == 'stream'
    ]
    assert 'skipped: there is no stories260K.bin\n' in printed

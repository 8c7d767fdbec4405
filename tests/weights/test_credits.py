"""Names, authors and licences of sources, and what exports repeat of them."""

import dataclasses

import pytest

from gpt_jax.config_tree import from_json, to_json
from gpt_jax.weights import open_source
from gpt_jax.weights.credits import NO_CREDITS, Credits, read_folder
from gpt_jax.weights.exporters import EXPORTERS
from tests.weights.random_source import LLAMA, bpe_tokenizer, make_model, random_params

STORIES = Credits(
    name='Stories: "260K"',
    author='A. Writer',
    organization='writers',
    license='other',
    license_name='stories-licence',
    license_link='https://example.org/licence',
    url='https://example.org',
    repo_url='https://huggingface.co/writers/stories',
    base_models=('meta-llama/Llama-3.2-1B', 'nameless'),
)


@pytest.mark.parametrize('form', ['hf', 'safetensors', 'gguf'])
def test_credits_go_out_and_come_in_again(form, tmp_path):
    model = make_model(**LLAMA)
    EXPORTERS[form](
        tmp_path, model, random_params(model), bpe_tokenizer(), dtype='float32', credits=STORIES
    )
    where = tmp_path / 'model.gguf' if form == 'gguf' else tmp_path
    assert open_source(str(where)).credits == STORIES
    card = (tmp_path / 'README.md').read_text()
    assert '\nlicense: other\n' in card and '\n# Stories: "260K"\n' in card


def test_credits_are_stored_with_a_checkpoint():
    assert from_json(to_json(STORIES), Credits) == STORIES
    assert from_json({}, Credits) == NO_CREDITS


def test_a_card_of_the_hub_is_read(tmp_path):
    (tmp_path / 'README.md').write_text(
        '---\r\nlicense: apache-2.0\r\nbase_model: org/base\r\nmodel_creator: [A, B]\r\n'
        'language:\r\n- en\r\n---\r\n# Whatever\r\n'
    )
    found = read_folder(tmp_path, {'_name_or_path': 'org/A-name_1.5'})
    assert found == Credits(
        name='A-name_1.5', license='apache-2.0', author='A, B', base_models=('org/base',)
    )


@pytest.mark.parametrize('path', ['/abs/model', './out', 'C:\\out', '', None, 3, ['a'], 'a/b/c'])
def test_a_path_is_no_name(path, tmp_path):
    assert read_folder(tmp_path, {'_name_or_path': path}) == NO_CREDITS


@pytest.mark.parametrize(
    'page',
    [
        b'',
        b'# No metadata\n',
        b'---\nlicense: mit\n',
        b'---\nlicense: [\n---\n',
        b'---\n- license\n---\n',
        b'---\nlicense: 3\nbase_model: {a: 1}\nmodel_name: [1, null]\n---\n',
        b'---\nlicense: !!python/object:os.system x\n---\n',
        b'---\nlicense: 2001-99-99\n---\n',
        b'---\n? [a]\n: b\n---\n',
        b'---\n' + b'[' * 50_000 + b'\n---\n',
        b'\xff\xfe---\n\x00\n---\n',
    ],
)
def test_a_broken_card_says_nothing(page, tmp_path):
    (tmp_path / 'README.md').write_bytes(page)
    assert read_folder(tmp_path, {}) == NO_CREDITS


def test_credits_are_short_and_on_one_line(tmp_path):
    (tmp_path / 'README.md').write_text(f'---\nmodel_name: "a\\n# b"\nlicense: {"x" * 999}\n---\n')
    found = read_folder(tmp_path, {})
    assert found == Credits(name='a # b', license='x' * 300)


def test_a_trained_model_keeps_the_licence_and_names_its_base():
    derived = STORIES.of_derived()
    assert derived == Credits(
        license='other',
        license_name='stories-licence',
        license_link='https://example.org/licence',
        base_models=('writers/stories',),
    )
    assert derived.of_derived() == derived
    unpublished = dataclasses.replace(STORIES, repo_url='https://example.org/git')
    assert unpublished.of_derived().base_models == ('Stories: "260K"',)


def test_a_name_of_the_hub_is_credited():
    assert NO_CREDITS.of_hub('org/name') == Credits(
        name='name', repo_url='https://huggingface.co/org/name'
    )
    assert STORIES.of_hub('org/name').name == STORIES.name

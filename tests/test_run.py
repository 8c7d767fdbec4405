"""The values of a run that were set, and those that follow from others."""

import json

import pytest

from gpt_jax import run as runs
from gpt_jax.config import finalize
from gpt_jax.main import main
from gpt_jax.modes import train
from gpt_jax.tokenizer import TokenizerConfig, make_tokenizer
from tests import tiny_config
from tests.command_line import TINY


def save(workdir, **model) -> None:
    """Writes a run of the tiny config."""
    draft = tiny_config.get_config()
    for name, value in model.items():
        setattr(draft.model, name, value)
    tokenizer = make_tokenizer(TokenizerConfig(), tuple)
    final = finalize(draft, vocab_size=tokenizer.vocab_size)
    runs.save_run(runs.Run(workdir, final, tokenizer, draft=draft), overrides={})


@pytest.mark.parametrize('written', [True, False], ids=['written', 'of an older version'])
def test_overrides_of_a_run_derive_what_follows(written, tmp_path):
    save(tmp_path)
    stored = json.loads((tmp_path / 'config.json').read_text())
    assert (stored['model']['d_ff'], stored['model']['num_kv_heads']) == (128, 2)
    if not written:
        (tmp_path / 'derived.json').unlink()
    config, fresh = runs.read_draft(tmp_path), tiny_config.get_config()
    for each in (config, fresh):
        each.model.num_heads, each.model.d_model, each.train.batch_size = 4, 64, 4
    config, fresh = (finalize(each, vocab_size=257) for each in (config, fresh))
    assert config.model == fresh.model
    assert (config.model.d_ff, config.model.num_kv_heads, config.model.head_dim) == (256, 4, 16)
    assert config.eval.batch_size == 4


def test_values_that_were_set_stay(tmp_path):
    save(tmp_path, d_ff=128, num_kv_heads=2)  # what they would be derived as
    config = runs.read_draft(tmp_path)
    assert (config.model.d_ff, config.model.num_kv_heads, config.model.head_dim) == (128, 2, 0)
    assert runs.read_config(tmp_path).model.head_dim == 16


def test_the_command_line_derives_again(tmp_path, monkeypatch):
    save(tmp_path)
    seen = []

    def take(command) -> int:
        seen.append(finalize(command.config, vocab_size=257).model)
        return 0

    monkeypatch.setattr(train, 'run', take)
    assert main([f'--workdir={tmp_path}', '--config.model.num_heads=4']) == 0
    assert main([f'--config={TINY}', f'--workdir={tmp_path}', '--config.model.num_heads=4']) == 0
    assert seen[0] == seen[1] and seen[0].num_kv_heads == 4

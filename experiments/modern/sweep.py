"""Measures each change from GPT-2's block to that of `modern_124m`.

    python -m gpt_jax.sweep experiments/modern/sweep.py --jobs 2

One change at a time, each on top of those before, at equal parameters: the width of the MLP makes
up for what a change adds or removes. `:large` is for an accelerator.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import optuna

from experiments import answers
from experiments.compute import finalized
from gpt_jax.model.gpt import count_params
from gpt_jax.sweep.definition import Sweep, Trial

CONFIG = 'experiments/small.py'
GPT2 = {'model.use_bias': True}
CHANGES = {
    'rotary positions': {'model.position': 'rope'},
    'RMSNorm': {'model.norm': 'rmsnorm'},
    'no biases': {'model.use_bias': False},
    'query-key norm': {'model.qk_norm': 'head'},
    'squared ReLU': {'model.mlp': 'relu2'},
    'untied output': {'model.tie_embeddings': False},
    'soft cap': {'model.output_soft_cap': 15.0},
}
BLOCKS = ['GPT-2', *CHANGES]
SMALL = {
    'model.d_model': 128,
    'model.num_layers': 4,
    'model.max_seq_len': 128,
    'train.num_steps': 500,
    'schedule.warmup_steps': 50,
}
LARGE = {
    'model.d_model': 768,
    'model.num_layers': 12,
    'model.num_heads': 12,
    'model.max_seq_len': 1024,
    'train.batch_size': 512,
    'train.grad_accumulation': 16,
    'train.num_steps': 5000,
    'schedule.warmup_steps': 500,
    'optimizer.learning_rate': 6e-4,
    'eval.every': 500,
    'model.precision.compute': 'bfloat16',
    'tokenizer.vocab_size': 16384,
}


def make(common: Mapping[str, Any], **fields) -> Sweep:
    """Returns the sweep over blocks with five seeds."""
    grid = {'seed': [0, 1, 2, 3, 4], 'block': BLOCKS}

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, block = (trial.suggest_categorical(name, found) for name, found in grid.items())
        return Trial(overrides={**common, **at_equal_parameters(block, common), 'seed': seed})

    return Sweep(config=CONFIG, suggest=suggest, grid=grid, answer=answer, **fields)


def at_equal_parameters(block: str, common: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the knobs of a block, with the d_ff that is nearest to GPT-2's parameters."""
    wanted = parameters(common | GPT2)
    knobs = dict(GPT2)
    for change in BLOCKS[1 : BLOCKS.index(block) + 1]:
        knobs |= CHANGES[change]
    if block == BLOCKS[0]:
        return knobs
    d_ff = 4 * common['model.d_model']
    less, more = (parameters(common | knobs | {'model.d_ff': d_ff + i}) for i in (0, 1))
    return knobs | {'model.d_ff': d_ff + round((wanted - less) / (more - less))}


def parameters(knobs: Mapping[str, Any]) -> int:
    """Returns the number of parameters of a model."""
    return count_params(finalized(CONFIG, knobs).model)


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Measures each change by its pairs of seeds, and all of them together."""
    found = {block: answers.values(results, block=block) for block in BLOCKS}
    worth = {
        change: answers.interval(found[before] - found[change])
        for before, change in zip(BLOCKS, CHANGES, strict=False)
    }
    total = answers.interval(found['GPT-2'] - found[BLOCKS[-1]])
    figure, [axes] = answers.panels(1, width=6.5)
    rows: dict[str, answers.Interval] = {**worth, 'all': total}
    colours = ['tab:orange' if each.sign < 0 else 'tab:blue' for each in rows.values()]
    axes.barh([*rows], [each.mean for each in rows.values()], color=colours)
    axes.errorbar(
        [each.mean for each in rows.values()],
        [*rows],
        xerr=[each.high - each.mean for each in rows.values()],
        fmt='none',
        color='black',
        capsize=3,
    )
    axes.invert_yaxis()
    axes.set(xlabel='validation loss removed (nats)')
    answers.save(figure, folder / 'figure.png')
    helping = [change for change, each in worth.items() if each.sign > 0]
    return {
        'verdict': {1: answers.AGREES, 0: answers.UNDECIDED, -1: answers.DISAGREES}[total.sign],
        'finding': f'all changes remove {total} nats; of these '
        + ', '.join(f'{change} {each}' for change, each in worth.items()),
        'changes_that_help': helping,
        'minutes': answers.minutes(results),
    }


sweep = make(SMALL)
large = make(LARGE)

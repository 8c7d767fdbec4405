"""Compares tokenizers by bits per byte at equal compute.

    python -m gpt_jax.sweep experiments/tokenizers/sweep.py --jobs 2

Tao et al. 2024, https://arxiv.org/abs/2407.13623: a vocabulary can be too small and too large.
`:large` is for an accelerator.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import optuna

from experiments import answers
from experiments.compute import finalized, steps_within
from gpt_jax.sweep.definition import Sweep, Trial

CONFIG = 'experiments/small.py'
SIZES = [512, 1024, 2048, 4096, 8192]
BPE = {f'BPE {size}': ('bpe', size) for size in SIZES}
OTHERS = {f'SentencePiece {size}': ('sentencepiece', size) for size in (1024, 4096)}
TOKENIZERS = {'bytes': ('byte', 0), 'characters': ('char', 0), **BPE, **OTHERS}
SMALL = {
    'model.d_model': 128,
    'model.num_layers': 4,
    'model.max_seq_len': 128,
    'model.qk_norm': 'head',  # without it some seeds are unstable at this rate
}
LARGE = {
    'model.d_model': 512,
    'model.num_layers': 8,
    'model.num_heads': 8,
    'model.max_seq_len': 1024,
    'train.batch_size': 64,
    'model.precision.compute': 'bfloat16',
}


def make(common: Mapping[str, Any], *, flops: float, **fields) -> Sweep:
    """Returns the sweep over tokenizers and seeds with a number of FLOPs per run."""
    grid = {'seed': [0, 1, 2], 'tokenizer': [*TOKENIZERS]}

    def suggest(trial: optuna.trial.Trial) -> Trial:
        seed, tokenizer = (trial.suggest_categorical(name, found) for name, found in grid.items())
        kind, vocab_size = TOKENIZERS[tokenizer]
        knobs = {**common, 'tokenizer.kind': kind, 'tokenizer.vocab_size': vocab_size}
        steps = steps_within(finalized(CONFIG, knobs), flops)
        length = {
            'train.num_steps': steps,
            'schedule.warmup_steps': steps // 10,
            'eval.every': steps,
            'train.log_every': max(1, steps // 10),
        }
        return Trial(overrides={**knobs, **length, 'eval.batches': 0, 'seed': seed})

    return Sweep(
        config=CONFIG,
        suggest=suggest,
        grid=grid,
        metric='eval/bits_per_byte',
        answer=answer,
        **fields,
    )


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Finds the best BPE vocabulary, and compares bytes and both ends with it."""
    names = answers.choices(results, 'tokenizer')
    found = {name: answers.values(results, tokenizer=name) for name in names}
    best = min(BPE, key=lambda name: found[name].mean())
    figure, [axes] = answers.panels(1, width=6.5)
    summaries = [answers.interval(found[name]) for name in names]
    for name, each in zip(names, summaries, strict=True):
        error, colour = each.high - each.mean, 'tab:orange' if name == best else 'tab:blue'
        axes.errorbar([each.mean], [name], xerr=error, fmt='o', capsize=3, color=colour)
    axes.invert_yaxis()
    axes.set(xlabel='bits per byte of the whole validation text')
    answers.save(figure, folder / 'figure.png')
    worse = {
        name: answers.interval(found[name] - found[best])
        for name in ('bytes', *BPE)
        if name != best
    }
    ends = [f'BPE {SIZES[0]}', f'BPE {SIZES[-1]}']
    verdict = answers.UNDECIDED
    if best not in ends and all(worse[name].sign == 1 for name in ('bytes', *ends)):
        verdict = answers.AGREES
    elif best in ends and all(each.sign == 1 for each in worse.values()):
        verdict = answers.DISAGREES
    return {
        'verdict': verdict,
        'finding': f'best: {best} with {answers.interval(found[best])} bits per byte; '
        'more than that: ' + ', '.join(f'{name} {each}' for name, each in worse.items()),
        'bits_per_byte': {name: str(each) for name, each in zip(names, summaries, strict=True)},
        'minutes': answers.minutes(results),
    }


sweep = make(SMALL, flops=3e12)
large = make(LARGE, flops=3e17)

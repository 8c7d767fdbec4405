"""`configs/grokking.py` with the Fourier spectrum of its embedding at the end."""

import numpy as np

from configs import grokking
from gpt_jax.config import RunConfig
from gpt_jax.inspector.inspector import Inspector
from gpt_jax.train.evaluators import Evaluator, Report


def get_config(variant: str = '') -> RunConfig:
    """The run; the variants are those of `configs/grokking.py`."""
    config = grokking.get_config(variant)
    config.train.sinks = ('jsonl',)
    config.sample.at_end = False
    config.checkpoint.save_every = 1000
    config.checkpoint.keep_best = False
    return config


def evaluators(config: RunConfig) -> list[Evaluator]:
    """Measures the spectrum when the run ends."""
    return [Evaluator(name='fourier', every=0, run=measure_spectrum)]


def measure_spectrum(trainer, state) -> Report:
    """Returns the share of each frequency in the embeddings of the numbers modulo p."""
    params = trainer.program.join(state.params, state.base)
    inspector = Inspector(trainer.config.model, params, trainer.tokenizer)
    shares = shares_of(embeddings(inspector, trainer.config.data.modulus))
    strongest = np.sort(shares)[::-1]
    row = {f'fourier/{k}': float(share) for k, share in enumerate(shares, start=1)}
    row['fourier/top5'] = float(strongest[:5].sum())
    return Report(row, [f'share of the five strongest frequencies {row["fourier/top5"]:.3f}'])


def embeddings(inspector: Inspector, modulus: int) -> np.ndarray:
    """Returns the embeddings `[p, D]` of the numbers modulo p at the first position."""
    rows = []
    for number in range(modulus):
        seen = inspector.inspect(f'{number} =', points=['embedding'])
        rows.append(np.asarray(seen['embedding'].values[0], np.float64))
    return np.array(rows)


def shares_of(rows: np.ndarray) -> np.ndarray:
    """Returns the share of frequencies 1 to (p - 1) / 2 in the power of embeddings `[p, D]`.

    The embedding of each number, in their order, is a function on the integers modulo p; its
    discrete Fourier transform is taken for each dimension, and the power summed over dimensions
    (Nanda et al. 2023, https://arxiv.org/abs/2301.05217).
    """
    power = np.abs(np.fft.rfft(rows, axis=0)) ** 2
    by_frequency = power.sum(axis=1)[1:]
    return by_frequency / by_frequency.sum()

"""Shows the numbers that a run of `configs/grokking.py` learned: their spectrum, and a circle.

python -m gpt_jax.main --config configs/grokking.py --config.checkpoint.keep_last=30
python -m experiments.grokking.look runs/grokking
"""

import pathlib
import sys

import numpy as np

from experiments import answers
from experiments.grokking.config import embeddings, shares_of
from gpt_jax import GPT
from gpt_jax.inspector.inspector import Inspector

MODULUS = 97
MEMORISED = 500  # a step at which the trained pairs are known and the others are not


def main(workdir: str) -> None:
    """Writes `look.png` beside this file, and prints the strongest frequencies."""
    before, after = (embeddings(load(workdir, step), MODULUS) for step in (MEMORISED, 'latest'))
    spectra = {f'step {MEMORISED}': shares_of(before), 'the last step': shares_of(after)}
    figure, plots = answers.panels(3, width=4.6, height=4.2)
    frequencies = np.arange(1, len(shares_of(after)) + 1)
    for (name, shares), offset in zip(spectra.items(), (-0.2, 0.2), strict=True):
        plots[0].bar(frequencies + offset, shares, width=0.4, label=name)
    plots[0].set(xlabel='frequency', ylabel='share of the embedding')
    plots[0].legend(frameon=False)
    strongest = frequencies[np.argsort(-spectra['the last step'])]
    for axes, frequency in zip(plots[1:], strongest, strict=False):
        circle(axes, after, int(frequency))
    answers.save(figure, pathlib.Path(__file__).parent / 'look.png')
    shares = spectra['the last step']
    for frequency in strongest[:5]:
        print(f'frequency {frequency}: {shares[frequency - 1]:.3f}')


def load(workdir: str, step: int | str) -> Inspector:
    """Returns the inspector of a checkpoint."""
    return GPT.load(workdir, step=step).inspector


def circle(axes, rows: np.ndarray, frequency: int) -> None:
    """Draws the embeddings `[p, D]` in the plane of the cosine and the sine of a frequency.

    A number n that is added by rotation lies at the angle 2 pi n k / p.
    """
    angles = 2 * np.pi * frequency * np.arange(len(rows)) / len(rows)
    basis = np.stack([np.cos(angles), np.sin(angles)]) @ rows  # [2, D]
    plane, _ = np.linalg.qr(basis.T)
    at = (rows - rows.mean(axis=0)) @ plane
    colours = (frequency * np.arange(len(rows))) % len(rows)
    axes.scatter(*at.T, c=colours, cmap='twilight', s=14)
    for number in range(0, len(rows), 8):
        axes.annotate(str(number), at[number], fontsize=8)
    axes.set(title=f'the numbers, frequency {frequency}', aspect='equal')


if __name__ == '__main__':
    main(sys.argv[1])

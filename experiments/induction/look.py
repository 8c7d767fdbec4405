"""Shows the heads of a run of `configs/induction.py`: their scores, and where the best one looks.

python -m gpt_jax.main --config configs/induction.py
python -m experiments.induction.look runs/induction
"""

import pathlib
import sys

import numpy as np

from experiments import answers
from gpt_jax import GPT
from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.plot import plot

LETTERS = 'q z m a x k v h'  # without order, so only the repetition predicts them
TEXT = f'{LETTERS} {LETTERS}'


def main(workdir: str) -> None:
    """Writes `look.png` beside this file, and prints the scores."""
    inspector = GPT.load(workdir).inspector
    kinds = ANALYSES['heads'].run(inspector, TEXT)
    scores = kinds.induction_random
    layer, head = np.unravel_index(scores.values.argmax(), scores.values.shape)
    weights = inspector.inspect(TEXT, points=['attention.weights'])['attention.weights']
    figure, plots = answers.panels(2, width=4.8, height=4.2)
    for axes in plots:
        axes.grid(False)
    plot(scores, title='attention to what followed the copy', axes=plots[0])
    plot(
        weights.sel(layer=int(layer), head=int(head)),
        title=f'layer {layer}, head {head}, on letters that repeat',
        texts=kinds.texts,
        axes=plots[1],
    )
    answers.save(figure, pathlib.Path(__file__).parent / 'look.png')
    for row in kinds.rows():
        print(*row, sep='\t')


if __name__ == '__main__':
    main(sys.argv[1])

"""Fits how the best size and the loss grow with compute, and tests a prediction.

    python -m gpt_jax.sweep experiments/scaling/sweep.py
    python -m gpt_jax.sweep experiments/scaling/sweep.py:prediction

Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, approaches 2 and 3. The first sweep trains
IsoFLOP curves on bytes, none of which is seen twice. The second trains one run outside of the fit,
which the first has predicted. `:large` is for an accelerator.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from scipy.optimize import least_squares

from experiments import answers
from experiments.compute import finalized, steps_within, tokens_per_step
from gpt_jax.model.gpt import count_multiplied_params
from gpt_jax.sweep.definition import Sweep, Trial

CONFIG = 'experiments/small.py'
BYTES = {
    'tokenizer.kind': 'byte',
    'tokenizer.vocab_size': 0,
    'model.max_seq_len': 128,
    'model.position': 'rope',
    'train.batch_size': 8,
    'model.parametrization': 'mup',
    'model.base.d_model': 64,
    'model.base.num_heads': 8,
    'eval.batches': 0,
    'optimizer.learning_rate': 4e-3,
}
# Width and layers.
SIZES = [(width, 2) for width in (16, 24, 32, 40, 48, 64)] + [(64, 3), (64, 4), (96, 3), (128, 3)]
# The sizes of each IsoFLOP curve. Smaller ones would see more bytes than there are, 10.5 million.
CURVES = {
    2.5e11: SIZES[0:7],
    5e11: SIZES[0:7],
    1e12: SIZES[0:8],
    2e12: SIZES[1:9],
    4e12: SIZES[3:10],
}
# The run outside of the fit: more compute, and the smallest size for which there are bytes.
PREDICTED, PREDICTED_SIZE = 1e13, (72, 2)
LARGE = BYTES | {
    'tokenizer.kind': 'bpe',
    'tokenizer.vocab_size': 16384,
    'model.max_seq_len': 1024,
    'model.base.num_heads': 1,
    'train.batch_size': 128,
    'model.precision.compute': 'bfloat16',
}
LARGE_SIZES = [(256, 4), (320, 5), (384, 6), (448, 7), (512, 8), (640, 10), (768, 12), (1024, 16)]
LARGE_CURVES = dict.fromkeys([1e17, 3e17, 1e18, 3e18], LARGE_SIZES)
SAMPLES = 500  # of the bootstrap


def knobs_of(common: Mapping[str, Any], width: int, layers: int, flops: float) -> dict[str, Any]:
    """Returns the knobs of a run of a size within a budget."""
    knobs = {
        **common,
        'model.d_model': width,
        'model.num_heads': width * common['model.base.num_heads'] // common['model.base.d_model'],
        'model.num_layers': layers,
    }
    steps = steps_within(finalized(CONFIG, knobs), flops)
    return knobs | {
        'train.num_steps': steps,
        'schedule.warmup_steps': max(1, steps // 10),
        'eval.every': steps,
        'train.log_every': max(1, steps // 10),
    }


@functools.cache
def count(width: int, layers: int) -> int:
    """Returns the parameters of a size that a token is multiplied with."""
    return count_multiplied_params(
        finalized(CONFIG, {**BYTES, 'model.d_model': width, 'model.num_layers': layers}).model
    )


def make(
    common: Mapping[str, Any], curves: Mapping[float, Sequence[tuple[int, int]]], **fields
) -> Sweep:
    """Returns the sweep over the sizes of each curve, by its FLOPs."""
    runs = {
        f'{width}x{layers} for {budget:g}': (width, layers, budget)
        for budget, sizes in curves.items()
        for width, layers in sizes
    }

    def suggest(trial: optuna.trial.Trial) -> Trial:
        width, layers, budget = runs[trial.suggest_categorical('run', [*runs])]
        return Trial(overrides=knobs_of(common, width, layers, budget))

    return Sweep(
        config=CONFIG,
        suggest=suggest,
        grid={'run': [*runs]},
        columns=['train/tokens'],
        answer=answer,
        **fields,
    )


def parse(results: Mapping[str, Any]) -> np.ndarray:
    """Returns rows of (FLOPs, parameters, tokens, loss) of the complete runs."""
    rows = []
    for run in answers.choices(results, 'run'):
        [record] = answers.select(results, run=run)
        size, budget = run.split(' for ')
        parameters = count(*map(int, size.split('x')))
        tokens = max(record['columns']['train/tokens'].values(), default=0)
        if record['value'] is not None:
            rows.append((float(budget), parameters, tokens, record['value']))
    return np.array(rows)


def loss(theta: np.ndarray, parameters: Any, tokens: Any) -> np.ndarray:
    """Computes E + A / N^alpha + B / D^beta, with N and D in units of 1e5 and 1e6."""
    irreducible, a, alpha, b, beta = np.exp(theta)
    return irreducible + a / (parameters / 1e5) ** alpha + b / (tokens / 1e6) ** beta


def size_exponent(theta: np.ndarray) -> np.ndarray:
    """Returns the exponent by which the best size of `loss` grows with compute, of each fit."""
    _, _, alpha, _, beta = np.exp(theta).T
    return beta / (alpha + beta)


def fit(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns the parameters of `loss`, robustly, as logarithms."""
    _, parameters, tokens, losses = rows.T
    return least_squares(
        lambda theta: np.log(loss(theta, parameters, tokens)) - np.log(losses),
        start,
        loss='huber',
        f_scale=1e-2,
        bounds=(-6, 3),
    ).x


def bootstrap(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fit, and fits of resampled residuals."""
    best = fit(rows, np.log([1.0, 0.3, 0.4, 0.3, 0.4]))
    expected = loss(best, rows[:, 1], rows[:, 2])
    residuals = np.log(rows[:, 3] / expected)
    generator, samples = np.random.default_rng(0), []
    for _ in range(SAMPLES):
        drawn = rows.copy()
        drawn[:, 3] = expected * np.exp(generator.choice(residuals, len(rows)))
        samples.append(fit(drawn, best))
    return best, np.array(samples)


def isoflops(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits a parabola through each IsoFLOP curve.

    Returns the logarithm of the size at its lowest point, NaN if it has none, for each budget in
    ascending order, and the losses on the parabolas for each row.
    """
    lowest, expected = [], np.empty(len(rows))
    for budget in sorted(set(rows[:, 0])):
        own = rows[:, 0] == budget
        sizes = np.log(rows[own, 1])
        parabola = np.polynomial.Polynomial.fit(sizes, rows[own, 3], 2)
        expected[own] = parabola(sizes)
        _, slope, bend = parabola.convert().coef
        lowest.append(-slope / (2 * bend) if bend > 0 else np.nan)
    return np.array(lowest), expected


def line_through(budgets: Sequence[float], log_sizes: np.ndarray) -> tuple[float, float]:
    """Returns slope and height of the line of best sizes on logarithmic axes."""
    known = np.isfinite(log_sizes)
    slope, height = np.polyfit(np.log(np.array(budgets)[known]), log_sizes[known], 1)
    return float(slope), float(height)


def bootstrap_slopes(rows: np.ndarray) -> list[float]:
    """Returns the slopes of `line_through` for resampled residuals of the parabolas."""
    budgets = sorted(set(rows[:, 0]))
    _, expected = isoflops(rows)
    residuals = rows[:, 3] - expected
    generator, slopes = np.random.default_rng(0), []
    for _ in range(SAMPLES):
        drawn = rows.copy()
        drawn[:, 3] = expected + generator.choice(residuals, len(rows))
        slopes.append(line_through(budgets, isoflops(drawn)[0])[0])
    return slopes


def band(samples: Any) -> list[float]:
    """Returns the middle 95 % of samples."""
    return [float(value) for value in np.nanpercentile(samples, [2.5, 97.5])]


def answer(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Fits the IsoFLOP curves, draws them, and predicts the run with more compute."""
    rows = parse(results)
    budgets = sorted(set(rows[:, 0]))
    best, samples = bootstrap(rows)
    exponent = float(size_exponent(best))
    figure, plots = answers.panels(2)
    for budget in budgets:
        own = rows[rows[:, 0] == budget]
        line = plots[0].plot(own[:, 1], own[:, 3], 'o', label=f'{budget:g} FLOPs')[0]
        sizes = np.geomspace(own[:, 1].min(), own[:, 1].max(), 50)
        tokens = np.exp(np.interp(np.log(sizes), np.log(own[:, 1]), np.log(own[:, 2])))
        plots[0].plot(sizes, loss(best, sizes, tokens), color=line.get_color(), linewidth=1)
    plots[0].set(xscale='log', xlabel='parameters', ylabel='last validation loss (nats per byte)')
    plots[0].legend(frameon=False)
    log_sizes, _ = isoflops(rows)
    optima = np.exp(log_sizes)
    plots[1].plot(budgets, optima, 'o', color='tab:blue', label='lowest point of each curve')
    slope, height = line_through(budgets, log_sizes)
    line = np.array([budgets[0], PREDICTED])
    plots[1].plot(line, np.exp(height) * line**slope, color='tab:blue', linewidth=1)
    plots[1].set(xscale='log', yscale='log', xlabel='FLOPs', ylabel='best number of parameters')
    plots[1].legend(frameon=False)
    answers.save(figure, folder / 'figure.png')
    knobs = knobs_of(BYTES, *PREDICTED_SIZE, PREDICTED)
    tokens = knobs['train.num_steps'] * tokens_per_step(finalized(CONFIG, knobs))
    size = count(*PREDICTED_SIZE)
    low, high = band(size_exponent(samples))
    low_slope, high_slope = band(bootstrap_slopes(rows))
    verdict = answers.UNDECIDED
    if low <= 0.5 <= high:
        verdict = answers.AGREES
    elif low > 0.6 or high < 0.4:
        verdict = answers.DISAGREES
    return {
        'verdict': verdict,
        'finding': f'the best size grows with compute to the power {exponent:.2f} '
        f'({low:.2f} to {high:.2f}) by the fit of all runs, {slope:.2f} ({low_slope:.2f} to '
        f'{high_slope:.2f}) by the IsoFLOP curves',
        'fit': dict(zip(('E', 'A', 'alpha', 'B', 'beta'), np.exp(best).tolist(), strict=True)),
        'best_sizes': dict(zip(map(str, budgets), optima.tolist(), strict=True)),
        'prediction': {
            'best_size': float(np.exp(height) * PREDICTED**slope),
            'parameters': size,
            'tokens': tokens,
            'loss': float(loss(best, size, tokens)),
            'interval': band([float(loss(each, size, tokens)) for each in samples]),
        },
        'minutes': answers.minutes(results),
    }


def suggest_prediction(trial: optuna.trial.Trial) -> Trial:
    """Returns the run whose loss the first sweep predicted."""
    seed = trial.suggest_categorical('seed', [0, 1])
    return Trial(overrides={**knobs_of(BYTES, *PREDICTED_SIZE, PREDICTED), 'seed': seed})


def check_prediction(results: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Compares the loss of the predicted run with the prediction."""
    path = pathlib.Path(__file__).with_name('results.json')
    predicted = json.loads(path.read_text(encoding='utf-8'))['answer']['prediction']
    losses = [record['value'] for record in results['trials']]
    low, high = predicted['interval']
    inside = all(low <= each <= high for each in losses)
    return {
        'verdict': answers.AGREES if inside else answers.DISAGREES,
        'finding': f'predicted {predicted["loss"]:.3f} ({low:.3f} to {high:.3f}), measured '
        + ' and '.join(f'{each:.3f}' for each in losses),
        'minutes': answers.minutes(results),
    }


sweep = make(BYTES, CURVES)
prediction = Sweep(
    config=CONFIG,
    suggest=suggest_prediction,
    grid={'seed': [0, 1]},
    answer=check_prediction,
)
large = make(LARGE, LARGE_CURVES)

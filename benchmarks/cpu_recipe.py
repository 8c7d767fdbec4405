"""Trains nanoGPT's CPU recipe with both programs and draws their validation losses.

    python benchmarks/cpu_recipe.py --nanogpt CHECKOUT --text input.txt [--seeds 1 2 3]
    python benchmarks/cpu_recipe.py --draw

The first command trains `configs/shakespeare_char.py:cpu` and nanoGPT's `train.py` with the same
sizes once per seed, in turns, and writes the losses to `results/cpu_recipe.json`. The second
draws that file to `docs/figures/cpu_recipe.svg`; it needs matplotlib.

    ours     the loss over the whole validation split (the last tenth of the text)
    nanoGPT  the mean over 200 random batches of the same split, as its `train.py` prints it
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import pairing

ROOT = pathlib.Path(pairing.ROOT)
RESULTS = ROOT / 'benchmarks' / 'results' / 'cpu_recipe.json'
FIGURE = ROOT / 'docs' / 'figures' / 'cpu_recipe.svg'
EVERY = 250  # steps between two evaluations, nanoGPT's interval for this data set
# The command of the README of nanoGPT for a CPU, with batches enough for a steady estimate.
NANOGPT_FLAGS = [
    *('--device=cpu', '--compile=False', '--eval_iters=200', '--log_interval=100'),
    *('--block_size=64', '--batch_size=12', '--n_layer=4', '--n_head=4', '--n_embd=128'),
    *('--max_iters=2000', '--lr_decay_iters=2000', '--dropout=0.0'),
]

Curve = list[tuple[int, float]]  # (step, validation loss in nats per character)


def train_ours(text: pathlib.Path, seed: int) -> Curve:
    """Returns the losses of one run of this project."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, '-m', 'gpt_jax.main'),
                *('--config', 'configs/shakespeare_char.py:cpu', '--workdir', folder),
                *('--config.data.corpus=text', f'--config.data.source={text}'),
                *(f'--config.seed={seed}', f'--config.eval.every={EVERY}'),
                '--config.eval.batches=0',
            ],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
    rows = map(json.loads, lines)
    return [(row['step'], row['eval/loss']) for row in rows if 'eval/loss' in row]


def train_nanogpt(checkout: pathlib.Path, text: pathlib.Path, seed: int, python: str) -> Curve:
    """Returns the losses of one run of nanoGPT, from a copy that differs in its seed alone."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / 'nanoGPT'
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns('.git'))
        source = (copy / 'train.py').read_text()
        seeded = source.replace('torch.manual_seed(1337', f'torch.manual_seed({seed}')
        if seeded == source:
            raise SystemExit(f'{checkout}/train.py has no seed of 1337 to replace')
        (copy / 'train.py').write_text(seeded)
        data = copy / 'data' / 'shakespeare_char'
        shutil.copyfile(text, data / 'input.txt')
        prepare = (data / 'prepare.py').read_text().replace('import requests\n', '')
        (data / 'prepare.py').write_text(prepare)  # requests would only download input.txt
        subprocess.run([python, data / 'prepare.py'], check=True, stdout=subprocess.DEVNULL)
        command = [python, 'train.py', 'config/train_shakespeare_char.py', *NANOGPT_FLAGS]
        output = subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True)
    found = re.findall(r'^step (\d+): .* val loss ([\d.]+)', output.stdout, re.MULTILINE)
    return [(int(step), float(loss)) for step, loss in found]


def measure(checkout: pathlib.Path, text: pathlib.Path, seeds: list[int], python: str) -> None:
    """Trains both once per seed and writes what they reached after each pair."""
    curves = {'ours': {}, 'nanoGPT': {}}
    for round_, seed in enumerate(seeds):
        sides = [
            ('ours', lambda seed=seed: train_ours(text, seed)),
            ('nanoGPT', lambda seed=seed: train_nanogpt(checkout, text, seed, python)),
        ]
        for name, train in sides[:: 1 if round_ % 2 else -1]:
            began = time.perf_counter()
            curve = curves[name][seed] = train()
            seconds = time.perf_counter() - began
            print(f'{name}, seed {seed}: {curve[-1][1]:.4f} after {seconds:.0f} s', flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        result = {
            'date': time.strftime('%Y-%m-%d'),
            'machine': pairing.describe_host(),
            'nanoGPT': ' '.join(['train.py config/train_shakespeare_char.py', *NANOGPT_FLAGS]),
            'curves': curves,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + '\n')


def draw() -> None:
    """Draws the measured losses: a thin line per seed, and their mean."""
    import matplotlib

    matplotlib.use('svg')
    matplotlib.rcParams.update({'svg.hashsalt': 'gpt_jax', 'font.size': 11})
    from matplotlib import pyplot

    curves = json.loads(RESULTS.read_text())['curves']
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout='constrained')
    for name, color in (('nanoGPT', '#8a8f98'), ('ours', '#d9480f')):
        runs = [[(x, y) for x, y in run if x] for run in curves[name].values()]
        steps = [step for step, _ in runs[0]]
        for run in runs:
            axes.plot(steps, [loss for _, loss in run], color=color, alpha=0.35, linewidth=1)
        losses = zip(*([loss for _, loss in run] for run in runs), strict=True)
        means = [statistics.mean(each) for each in losses]
        label = f'{"gpt_jax" if name == "ours" else name}: {means[-1]:.3f} after {steps[-1]} steps'
        axes.plot(steps, means, color=color, linewidth=2.2, label=label)
    axes.set_xlabel('training step (768 characters each)')
    axes.set_ylabel('validation loss (nats per character)')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', alpha=0.3)
    axes.legend(frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={'Date': None})


def main() -> None:
    """Measures, or draws what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--nanogpt', type=pathlib.Path, help='a checkout of nanoGPT')
    parser.add_argument('--text', type=pathlib.Path, help='the tiny Shakespeare text')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    parser.add_argument('--peer_python', default=sys.executable, help='a Python with torch')
    parser.add_argument('--draw', action='store_true', help='draw the results and measure nothing')
    options = parser.parse_args()
    if options.draw:
        draw()
    elif options.nanogpt and options.text:
        text = options.text.resolve()
        measure(options.nanogpt, text, options.seeds, options.peer_python)
    else:
        parser.error('give --nanogpt and --text, or --draw')


if __name__ == '__main__':
    main()

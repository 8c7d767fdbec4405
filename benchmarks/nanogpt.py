"""Compares the training step with nanoGPT's, whose code is read from a checkout of it.

    python benchmarks/nanogpt.py --nanogpt CHECKOUT --recipe cpu [--peer_python /with/torch/python]

Both sides stay alive, one process each, and take turns of `--steps` steps; who begins alternates,
and a round gives one ratio of speeds. A turn ends when the device is done. Prints medians of
ms/step and tokens/s, the most memory held, and the median ratio with its range. Beside a round
stands how many cores other processes kept busy during it; where some rounds were quiet and
some not, the quiet ones are also reported alone.

    ours     Program.advance, as the training loop calls it, on numpy batches: placing included
    nanoGPT  forward, backward, clip_grad_norm_, AdamW, zero_grad, on tokens already placed
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pairing

SIDES = ('ours', 'nanoGPT')
REST_SECONDS = 0.2  # between turns: idle threads stop spinning before the other side begins
QUIET_CPUS = 0.1  # kept busy by other processes, at most, in a round that counts as quiet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The sizes that both sides take; what else differs from a config is `_our_config`'s."""

    config: str  # of configs/, for our side
    num_layers: int
    num_heads: int
    d_model: int
    max_seq_len: int
    batch_size: int
    vocab_size: int
    peer_vocab_size: int  # nanoGPT rounds GPT-2's up by itself, as we do inside the model
    use_bias: bool
    gpu_dtype: str = 'bfloat16'  # of products; on a CPU always float32


def _gpt2(config: str, num_layers: int, num_heads: int, d_model: int, batch_size: int) -> Recipe:
    return Recipe(
        config=config,
        num_layers=num_layers,
        num_heads=num_heads,
        d_model=d_model,
        max_seq_len=1024,
        batch_size=batch_size,
        vocab_size=50257,
        peer_vocab_size=50304,
        use_bias=True,
    )


RECIPES = {
    'cpu': Recipe(
        config='configs/shakespeare_char.py:cpu',
        num_layers=4,
        num_heads=4,
        d_model=128,
        max_seq_len=64,
        batch_size=12,
        vocab_size=65,
        peer_vocab_size=65,
        use_bias=False,
        gpu_dtype='float32',
    ),
    'baby': Recipe(
        config='configs/shakespeare_char.py:gpu',
        num_layers=6,
        num_heads=6,
        d_model=384,
        max_seq_len=256,
        batch_size=64,
        vocab_size=65,
        peer_vocab_size=65,
        use_bias=False,
    ),
    '124m': _gpt2('configs/gpt2.py:124m', 12, 12, 768, 32),
    '350m': _gpt2('configs/gpt2.py:355m', 24, 16, 1024, 16),
    '774m': _gpt2('configs/gpt2.py:774m', 36, 20, 1280, 8),
    '1558m': _gpt2('configs/gpt2.py:1558m', 48, 25, 1600, 4),
}
SIZES = ('num_layers', 'num_heads', 'd_model', 'max_seq_len', 'vocab_size')  # of `config.model`

Run = Callable[[int], dict[str, float]]  # some steps -> seconds, last loss, peak memory


def make_ours(setup: dict[str, Any]) -> tuple[dict[str, str | int], Run]:
    """This project's program, ready to train."""
    sys.path.insert(0, pairing.ROOT)
    from gpt_jax.parallel import runtime

    recipe = Recipe(**setup['recipe'])
    config = _our_config(recipe, setup['overrides'])
    runtime.initialize(config.runtime)  # as every mode does, before the backend starts

    import jax

    from gpt_jax.benchmark.machine import describe_machine
    from gpt_jax.benchmark.training import synthetic_batches
    from gpt_jax.config import finalize
    from gpt_jax.parallel.mesh import make_mesh
    from gpt_jax.train.program import make_program

    on_cpu = jax.default_backend() == 'cpu'
    if not any(each.startswith('config.model.precision.compute=') for each in setup['overrides']):
        dtype = 'float32' if on_cpu else recipe.gpu_dtype
        config.model.precision.compute = type(config.model.precision.compute)(dtype)
    config = finalize(config, vocab_size=recipe.vocab_size)
    for name in SIZES:
        _require_equal(f'config.model.{name}', getattr(config.model, name), getattr(recipe, name))
    _require_equal('config.train.batch_size', config.train.batch_size, recipe.batch_size)
    program = make_program(config, make_mesh(config.mesh))
    batches = synthetic_batches(config)
    state = jax.block_until_ready(program.init(jax.random.key(config.seed)))
    machine = describe_machine(program.mesh)
    precision = config.model.precision.matmul
    products = '' if precision == 'default' else f' with {precision} products'

    def run(steps: int) -> dict[str, float]:
        nonlocal state
        done, metrics = 0, {}
        cpu_began, began = time.process_time(), time.perf_counter()
        while done < steps:
            count = program.call_length(done, steps)
            previous = metrics
            state, metrics = program.advance(state, [next(batches) for _ in range(count)])
            jax.device_get(previous)  # as the loop does: the host is one call ahead, not more
            done += count
        jax.block_until_ready((state, metrics))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        memory = program.mesh.devices.flat[0].memory_stats() or {}
        peak = _peak_resident() if on_cpu else memory['peak_bytes_in_use']
        loss = float(jax.numpy.ravel(metrics['loss'])[-1])
        return {'seconds': seconds, 'cpu_seconds': cpu_seconds, 'loss': loss, 'peak': peak}

    about = {
        'platform': 'cpu' if on_cpu else 'gpu',
        'device': machine['host_cpu'] if on_cpu else machine['device_kind'],
        'software': f'jax {machine["jax"]}',
        'settings': f'{config.model.precision.compute}{products}, '
        f'{program.steps_per_call} step(s) per call',
        'parameters': sum(math.prod(p.shape) for p in jax.tree.leaves(state.params)),
    }
    return about, run


def _our_config(recipe: Recipe, overrides: Sequence[str]) -> Any:
    """The recipe's config with nanoGPT's maths, on one device, and then the overrides."""
    from absl import flags as absl_flags
    from ml_collections import config_flags

    from gpt_jax.config import load_config
    from gpt_jax.config_tree import check_key

    config = load_config(os.path.join(pairing.ROOT, recipe.config))
    for name in SIZES:
        setattr(config.model, name, getattr(recipe, name))
    config.model.use_bias = recipe.use_bias
    config.model.mlp = 'gelu'  # the exact one, nanoGPT's
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.train.batch_size = recipe.batch_size
    config.train.grad_accumulation = 0  # by backend and size, as in a run of ours
    config.mesh.data = 1
    for override in overrides:
        check_key(config, override.partition('=')[0].removeprefix('config.'))
    arguments = ['', *(f'--{override}' for override in overrides)]
    flags = absl_flags.FlagValues()
    config_flags.DEFINE_config_dataclass('config', config, flag_values=flags, sys_argv=arguments)
    flags(arguments)
    return flags.config


def _require_equal(key: str, ours: int, recipe: int) -> None:
    if ours != recipe:
        raise SystemExit(f"{key}={ours} is not the recipe's {recipe}: a ratio would mean nothing")


def make_nanogpt(setup: dict[str, Any]) -> tuple[dict[str, str | int], Run]:
    """The checkout's model and optimizer, ready to train."""
    import torch

    spec = importlib.util.spec_from_file_location(
        'nanogpt_model', os.path.join(setup['nanogpt'], 'model.py')
    )
    module = sys.modules['nanogpt_model'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = Recipe(**setup['recipe'])
    torch.set_num_threads(pairing.usable_cores())
    torch.manual_seed(1337)
    on_cpu = not torch.cuda.is_available()
    device = 'cpu' if on_cpu else 'cuda'
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # its train.py
    model = module.GPT(
        module.GPTConfig(
            block_size=recipe.max_seq_len,
            vocab_size=recipe.peer_vocab_size,
            n_layer=recipe.num_layers,
            n_head=recipe.num_heads,
            n_embd=recipe.d_model,
            dropout=0.0,
            bias=recipe.use_bias,
        )
    ).to(device)
    model.train()
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    parameters = list(model.parameters())
    compiled = (not on_cpu) if setup['compile'] is None else setup['compile']
    forward = torch.compile(model) if compiled else model
    dtype = 'float32' if on_cpu else recipe.gpu_dtype
    autocast = torch.autocast(
        device, dtype=getattr(torch, dtype), enabled=dtype != 'float32', cache_enabled=True
    )
    tokens = torch.randint(0, recipe.vocab_size, (recipe.batch_size, recipe.max_seq_len + 1))
    inputs, targets = (part.contiguous().to(device) for part in (tokens[:, :-1], tokens[:, 1:]))

    def run(steps: int) -> dict[str, float]:
        cpu_began, began = time.process_time(), time.perf_counter()
        for _ in range(steps):
            with autocast:
                _, loss = forward(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not on_cpu:
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        peak = _peak_resident() if on_cpu else torch.cuda.max_memory_allocated()
        return {'seconds': seconds, 'cpu_seconds': cpu_seconds, 'loss': loss.item(), 'peak': peak}

    about = {
        'platform': 'cpu' if on_cpu else 'gpu',
        'device': 'cpu' if on_cpu else torch.cuda.get_device_name(),
        'software': f'torch {torch.__version__}',
        'settings': f'{dtype}, {"torch.compile" if compiled else "eager"}',
        'parameters': sum(each.numel() for each in parameters),
    }
    return about, run


WORKERS = dict(zip(SIDES, (make_ours, make_nanogpt), strict=True))


def _peak_resident() -> int:
    """The most memory that this process has held, in bytes."""
    kibibytes = sys.platform != 'darwin'  # getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if kibibytes else 1)


def compare(flags: argparse.Namespace) -> None:
    """Starts both sides, lets them take turns, and prints what came out."""
    recipe = RECIPES[flags.recipe]
    print(pairing.describe_host())
    setup = {
        'recipe': dataclasses.asdict(recipe),
        'nanogpt': flags.nanogpt,
        'compile': flags.compile,
        'overrides': flags.override,
    }
    script = [os.path.abspath(__file__), '--worker']
    pythons = (sys.executable, flags.peer_python)
    env = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # both fit on one GPU, and peaks are true
    ours, theirs = (
        pairing.Worker(name, [python, *script, name], env=env)
        for name, python in zip(SIDES, pythons, strict=True)
    )
    with ours, theirs:
        workers = dict(zip(SIDES, (ours, theirs), strict=True))
        about = {name: worker.ask(setup) for name, worker in workers.items()}
        for name, facts in about.items():
            print(
                f'{name}: {facts["software"]} on {facts["device"]}, {facts["settings"]}, '
                f'{facts["parameters"]:,} parameters'
            )
        if len({facts['platform'] for facts in about.values()}) > 1:
            raise SystemExit('one side has a GPU and the other has not: nothing to compare')
        rounds = _take_turns(workers, flags)
    _report('all rounds', rounds, flags)
    quiet = [each for each in rounds if each['others'] < QUIET_CPUS]
    if 0 < len(quiet) < len(rounds):
        _report(f'the {len(quiet)} quiet rounds, others below {QUIET_CPUS} CPUs', quiet, flags)


def _report(title: str, rounds: list[dict[str, Any]], flags: argparse.Namespace) -> None:
    """Medians of some rounds."""
    recipe = RECIPES[flags.recipe]
    tokens = recipe.batch_size * recipe.max_seq_len
    print(f'{flags.recipe}, {title}: {len(rounds)} of {flags.steps} steps of {tokens:,} tokens')
    speeds = {}
    for name in SIDES:
        speeds[name] = [flags.steps * tokens / each[name]['seconds'] for each in rounds]
        median, last = statistics.median(speeds[name]), rounds[-1][name]
        print(
            f'  {name}: {1e3 * tokens / median:,.2f} ms/step, {median:,.0f} tokens/s, '
            f'peak {last["peak"] / 2**20:,.0f} MiB, loss {last["loss"]:.3f}'
        )
    print('  speed of ours / nanoGPT: ' + pairing.describe_ratio(*speeds.values()))


def _take_turns(
    workers: dict[str, pairing.Worker], flags: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every round's answers by side and `others`, after a turn each that compiles."""
    for worker in workers.values():
        worker.ask(flags.steps)
    rounds: list[dict[str, Any]] = []
    for order in pairing.turns(list(workers), flags.rounds):
        answers: dict[str, Any] = {}
        others = elapsed = 0.0
        for name in order:
            time.sleep(REST_SECONDS)
            began, busy = time.perf_counter(), pairing.busy_seconds()
            answers[name] = workers[name].ask(flags.steps)
            elapsed += time.perf_counter() - began
            others += pairing.busy_seconds() - busy - answers[name]['cpu_seconds']
        rounds.append(answers | {'others': max(0.0, others / elapsed)})
        times = (f'{name} {1e3 * answers[name]["seconds"] / flags.steps:.2f} ms' for name in SIDES)
        print(
            f'round {len(rounds)}: {", ".join(times)}, others {rounds[-1]["others"]:.2f} CPUs',
            flush=True,
        )
    return rounds


def main(argv: Sequence[str] | None = None) -> None:
    """Compares, or works for the process that does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--nanogpt', help='a checkout of nanoGPT, the folder with model.py')
    parser.add_argument('--peer_python', default=sys.executable, help='has torch')
    parser.add_argument('--recipe', choices=RECIPES, default='cpu')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=20, help='of a turn')
    parser.add_argument(
        '--compile',
        action=argparse.BooleanOptionalAction,
        help='torch.compile for nanoGPT (default: on a GPU only)',
    )
    parser.add_argument(
        '--override',
        action='append',
        default=[],
        metavar='config.KEY=VALUE',
        help='a knob of our side; may be repeated',
    )
    parser.add_argument('--worker', choices=WORKERS, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.worker:
        pairing.serve(WORKERS[flags.worker])
        return
    if flags.nanogpt is None or not os.path.isfile(os.path.join(flags.nanogpt, 'model.py')):
        parser.error('--nanogpt must be a checkout of nanoGPT, the folder with model.py')
    if min(flags.rounds, flags.steps) < 1:
        parser.error('--rounds and --steps must be at least 1')
    if wrong := [each for each in flags.override if not each.startswith('config.')]:
        parser.error(f'--override {wrong[0]}: write config.KEY=VALUE')
    compare(flags)


if __name__ == '__main__':
    main()

"""Check that activations keep their scale as the model gets wider, under μP and without it."""

from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import to_json
from gpt_jax.coordinate_check.measure import Batches, measure
from gpt_jax.coordinate_check.report import as_json, describe, draw, is_flat
from gpt_jax.data.mixture import open_sources
from gpt_jax.data.pipeline import make_train_pipeline
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.data.split import TRAIN
from gpt_jax.errors import UserError
from gpt_jax.model.config import Parametrization
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers, runtime


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the widths, the steps, the seeds and the files."""
    absl_flags.DEFINE_multi_integer(
        'factor',
        [1, 2, 4, 8],
        'a width, divided by that of the base model; may be repeated',
        lower_bound=1,
        upper_bound=4096,
        flag_values=flags,
    )
    for name, default, text in (
        ('check_steps', 10, 'training steps of each model'),
        ('check_seeds', 1, 'models per width, whose scales are averaged'),
    ):
        absl_flags.DEFINE_integer(
            name, default, text, lower_bound=1, upper_bound=10**6, flag_values=flags
        )
    absl_flags.DEFINE_string(
        'out',
        'coordinate_check.png',
        'the picture; the numbers go beside it as .json',
        flag_values=flags,
    )


def run(command: Command) -> int:
    """Trains models of several widths, prints slopes, and writes numbers and a picture.

    Returns 1 if the config's parametrization is μP and its activations are not flat.
    """
    flags, config = command.flags, command.config
    factors = sorted(set(flags.factor))
    if len(factors) < 2:
        raise UserError('--factor needs two widths or more: --factor 1 --factor 4')
    path = object_store.to_path(flags.out, key='--out')
    if path.suffix != '.png':
        raise UserError(f'--out={flags.out} must end in .png')
    files.check_writable(path, key='--out')  # before the work
    runtime.initialize(config.runtime)
    if peers.num_processes() > 1:
        raise UserError('--mode coordinate_check trains small models: run it in one process')
    config.model.base.d_model = config.model.base.d_model or config.model.d_model
    config, batches = _open(config, steps=flags.check_steps)
    other = next(each for each in Parametrization if each != config.model.parametrization)
    checks = [
        measure(
            config,
            parametrization,
            batches,
            factors=factors,
            seeds=flags.check_seeds,
            done=lambda line: print(line, flush=True),
        )
        for parametrization in (config.model.parametrization, other)
    ]
    for scales in checks:
        print(describe(scales))
    report = {'config': to_json(config), 'checks': as_json(checks)}
    files.write_json(path.with_suffix('.json'), report)
    print(f'wrote {path.with_suffix(".json")}')
    print(draw(checks, path))
    failed = config.model.parametrization == Parametrization.MUP and not is_flat(checks[0])
    return 1 if failed else 0


def _open(config: RunConfig, *, steps: int) -> tuple[RunConfig, Batches]:
    """Returns the finalized config and its first batches, one more than there are steps."""
    folder = runs.prepare_data(config)
    tokenizer = make_run_tokenizer(folder, config.tokenizer)
    config = finalize(config, vocab_size=tokenizer.vocab_size)
    pipeline = make_train_pipeline(
        open_sources(folder, config.data, split=TRAIN, tokenizer=tokenizer),
        seq_len=config.model.max_seq_len,
        batch_size=config.train.batch_size,
        seed=config.seed,
        windows=config.data.windows,
        segment_ids=config.data.segment_ids,
    )
    return config, [pipeline.batch_at(step) for step in range(steps + 1)]

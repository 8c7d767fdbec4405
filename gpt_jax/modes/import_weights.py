"""Make a run from weights of other tools: transformers, llama.cpp, llama2.c, nanoGPT, minGPT."""

import jax
from absl import flags as absl_flags

from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import list_steps
from gpt_jax.config import RunConfig, finalize
from gpt_jax.config_tree import to_json
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import count_params, describe_mlps
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers, runtime
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.pretrained import adopt
from gpt_jax.telemetry.progress import Progress
from gpt_jax.telemetry.report import format_table
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.train.program import make_program
from gpt_jax.weights import load_params, open_source


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the source of the weights."""
    absl_flags.DEFINE_string(
        'source', '', 'a file, a folder, or a name of the Hugging Face hub', flag_values=flags
    )
    absl_flags.DEFINE_multi_string(
        'ignore_key', [], 'a key of the source that changes no logit; repeatable', flag_values=flags
    )
    absl_flags.DEFINE_boolean(
        'fresh', False, 'delete the checkpoints of the workdir first', flag_values=flags
    )


def run(command: Command) -> int:
    """Writes the workdir; its checkpoint of step 0 holds the weights of the source."""
    flags, config = command.flags, command.config
    workdir, overrides = command.workdir, command.overrides
    if not flags.source:
        raise UserError('--mode import_weights needs --source FILE, FOLDER or NAME')
    runtime.initialize(config.runtime)
    source = open_source(flags.source, ignore_keys=flags.ignore_key)
    tokenizer = adopt(source, config, overrides)
    config.tokenizer.path = str(workdir / runs.TOKENIZER)
    final = finalize(config, vocab_size=tokenizer.vocab_size)
    runs.check_processes(final, workdir)
    with runs.lock(workdir):
        this_run = runs.Run(workdir, final, tokenizer)
        program = make_program(final, make_mesh(final.mesh))
        if list_steps(this_run.checkpoints) and not flags.fresh:
            raise UserError(
                f'--workdir={workdir} holds a run already; choose another one, or replace its '
                f'checkpoints with --fresh'
            )
        with Progress(
            sum(leaf.size for leaf in jax.tree.leaves(program.abstract_params)),
            unit='parameters',
            description='import',
            quiet=not peers.is_primary(),
        ) as progress:
            params = load_params(source, program.abstract_params, advance=progress.update)
        meta = {
            'config': to_json(final),
            'source': source.name,
            'credits': to_json(source.credits),
        }
        runs.save_weights(this_run, step=0, params=params, meta=meta, overrides=overrides)
    print(format_table(f'{workdir}, from {source.name}', _describe(final, tokenizer)))
    print(f'See it write: --mode generate --workdir {workdir} --prompt "Once upon a time"')
    return 0


def _describe(config: RunConfig, tokenizer: Tokenizer) -> dict[str, str]:
    model = config.model
    return {
        'parameters': f'{count_params(model):,} ({model.precision.params})',
        'model': f'{model.num_layers} layers, d_model {model.d_model}, '
        f'{describe_mlps(model)}, {model.attention.describe(model)}, context '
        f'{model.max_seq_len}',
        'vocabulary': f'{model.vocab_size:,} tokens, {tokenizer.kind} tokenizer',
        'texts': f'begin with {_token(tokenizer, tokenizer.bos_id)}, end with '
        f'{_token(tokenizer, tokenizer.eot_id)}',
    }


def _token(tokenizer: Tokenizer, token_id: int | None) -> str:
    names = {each: name for name, each in tokenizer.special_tokens.items()}
    return 'nothing' if token_id is None else f'{names.get(token_id, "token")} ({token_id})'

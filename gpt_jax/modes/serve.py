"""Serve a trained run over HTTP, as OpenAI's API."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from gpt_jax import object_store
from gpt_jax import run as runs
from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.inference.config import WeightType
from gpt_jax.inspector.inspector import Inspector
from gpt_jax.inspector.token_attention import TokenAttention
from gpt_jax.inspector.token_explanation import TokenExplanation
from gpt_jax.model.weight_rounding import RoundedType, round_weights
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command
from gpt_jax.serve.engine import Engine
from gpt_jax.weights.web_export import PAGE_SAMPLING, describe_size

if TYPE_CHECKING:
    from gpt_jax.serve.http.served import ServedModel


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the weights, the address and the keys."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_string(
        'host', '127.0.0.1', 'address to listen at; another machine needs keys', flag_values=flags
    )
    absl_flags.DEFINE_integer(
        'port', 8000, 'port to listen at; 0: a free one', 0, 65535, flag_values=flags
    )
    absl_flags.DEFINE_string(
        'api_key_file', '', 'keys, one per line; a request must have one', flag_values=flags
    )
    absl_flags.DEFINE_boolean(
        'inspect',
        True,
        'show attention and explain tokens on the page; keeps a second copy of the weights',
        flag_values=flags,
    )
    absl_flags.DEFINE_multi_string(
        'also', [], "another run's workdir to serve beside; may be repeated", flag_values=flags
    )
    absl_flags.DEFINE_multi_string(
        'cors',
        [],
        'origin whose pages may call the server; may be repeated; *: all',
        flag_values=flags,
    )


def run(command: Command) -> int:
    """Listens, loads the models, and serves until it is interrupted."""
    try:
        import llguidance  # noqa: F401  # or the first text that must be JSON would miss it

        from gpt_jax.serve.http import server
        from gpt_jax.serve.http.served import ServedModels
    except ImportError as error:
        raise UserError(
            f"--mode serve needs the package {error.name}; pip install -e '.[serve]'"
        ) from error
    flags = command.flags
    key_file = flags.api_key_file and object_store.to_path(flags.api_key_file, key='--api_key_file')
    keys = server.read_keys(key_file or None)
    if not keys and not server.is_loopback(flags.host):
        raise UserError(
            f'--host={flags.host} is open to other machines, so a key is required; write one to a '
            'file and give --api_key_file, or listen at 127.0.0.1'
        )
    origins = server.read_origins(flags.cors)
    folders = [command.workdir, *(object_store.to_path(each, key='--also') for each in flags.also)]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f'--also: the models {", ".join(names)} must have different folder names')
    opened = [saved_weights.open_run(command.config, folders[0], command.overrides)]
    for folder in folders[1:]:
        opened.append(saved_weights.open_run(runs.read_config(folder), folder, {}))
    listener = server.listen(flags.host, flags.port)
    host, port = listener.getsockname()[:2]
    url = f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
    print(f'{url}: loading {", ".join(names)}; GET /readyz tells when it is ready', flush=True)

    def load() -> ServedModels:
        return ServedModels([_load(run, flags, command.overrides) for run in opened])

    def announce(models: ServedModels) -> None:
        for model in models:
            print(f'{model.name}: step {model.step}, {model.engine}')
        print(f'ready: the page at {url}, the API at {url}/v1; Ctrl-C stops it', flush=True)

    config = opened[0].config.serve
    server.HttpServer(listener, config, keys=keys, origins=origins).run(load, announce)
    return 0


def _load(
    opened: runs.Run, flags: absl_flags.FlagValues, overrides: Mapping[str, Any]
) -> 'ServedModel':
    """Returns a run's model, with all its programs compiled."""
    from gpt_jax.serve.http.served import ModelCard, ServedModel

    step, params = runs.restore_weights(
        opened,
        step=flags.step,
        weights=flags.weights,
        abstract=saved_weights.split_weights(opened.config, overrides),
    )
    config: RunConfig = opened.config
    weight_dtype = config.sample.weight_dtype
    if weight_dtype == WeightType.INT8:  # what the page explains is what is served
        params = round_weights(params, config.model, RoundedType.INT8)
    inspector = Inspector(config.model, params, opened.tokenizer)
    attention = None
    if flags.inspect and TokenAttention.has_weights(inspector):
        attention = TokenAttention(inspector)
    return ServedModel(
        step=step,
        name=pathlib.PurePath(opened.workdir).name,
        engine=Engine(
            config.model, params, opened.tokenizer, config.serve, weight_dtype=weight_dtype
        ),
        tokenizer=opened.tokenizer,
        context=config.model.max_seq_len,
        created=int(object_store.written_at(opened.workdir / runs.CONFIG)),
        fingerprint=runs.weights_hash(opened, step)[:16],
        card=ModelCard(
            about=describe_size(config.model, f'step {step}'),
            layers=config.model.num_layers,
            heads=config.model.num_heads,
            sampling={name: getattr(config.sample, name) for name in PAGE_SAMPLING},
        ),
        attention=attention,
        explanation=TokenExplanation(inspector) if flags.inspect else None,
    )

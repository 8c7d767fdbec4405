"""The library door: `from gpt_jax import GPT`. The same code as the command line, by hand.

gpt = GPT(vocab_size=10000, num_layers=6, num_heads=8, d_model=512, d_ff=2048)
gpt.fit('corpus.txt', steps=1000)
print(gpt.generate('Once upon a time', max_length=100))
gpt.save('runs/mine')
"""

import copy
import dataclasses
import functools
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint import Checkpointer
from gpt_jax.checkpoint_document import list_steps
from gpt_jax.config import EvalConfig, RunConfig, TrainConfig, finalize
from gpt_jax.config_tree import suggest
from gpt_jax.data.config import DataConfig
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.errors import UserError
from gpt_jax.evaluate import Evaluation
from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.generate import Generation, Generator, Prompt, encode_prompt
from gpt_jax.model.config import AttentionKernel, ModelConfig, PositionKind
from gpt_jax.model.gpt import abstract_params, init_params
from gpt_jax.model.layout import layers_per_period, to_executed
from gpt_jax.optim.adamw import AdamW
from gpt_jax.optim.schedule import ScheduleConfig
from gpt_jax.parallel.compiler_options import compiler_options
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.pretrained import adopt
from gpt_jax.telemetry.progress import Progress
from gpt_jax.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    TokenizerKind,
    chat_template,
    make_tokenizer,
)
from gpt_jax.tokenizer.chat_template import Message
from gpt_jax.train import loop
from gpt_jax.train.memory import explain_out_of_memory
from gpt_jax.train.program import make_program
from gpt_jax.train.session import Session, evaluate_shards
from gpt_jax.weights import load_params, open_source
from gpt_jax.weights.exporters import find_exporter


class GPT:
    """A model with its weights and its tokenizer.

    Without a tokenizer it reads bytes, until `fit` trains a byte-level BPE of `vocab_size` on the
    text. Ids of `vocab_size` that the tokenizer does not have are never drawn.
    """

    def __init__(
        self,
        vocab_size: int = 0,
        *,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        **model: Any,
    ):
        """Makes a model with random weights.

        Args:
          vocab_size: rows of the embedding; 0: as many as the tokenizer has.
          tokenizer: what turns text into ids (`gpt_jax.tokenizer`).
          seed: of the weights, and of the order of training data.
          **model: any knob of `gpt_jax.model.config.ModelConfig`.

        Raises:
            UserError: a knob is unknown, or its value cannot work.
        """
        _check_names(model, ModelConfig, 'GPT')
        self._own_tokenizer = tokenizer is not None
        self.tokenizer = tokenizer or make_tokenizer(TokenizerConfig(), tuple)
        config = RunConfig(seed=seed, model=ModelConfig(vocab_size=vocab_size, **model))
        config.tokenizer.kind = self.tokenizer.kind
        self._set_config(config)
        self._params: Any = None
        self.steps = 0  # training steps taken
        self._generator: Generator | None = None

    @property
    def module(self) -> nn.Module:
        """The flax module; it takes parameters in the executed layout (`model/layout.py`)."""
        return self._program.model

    @property
    def params(self) -> Any:
        """The weights, in the stored layout: every leaf of `blocks` is stacked over layers."""
        if self._params is None:
            draw = jax.jit(
                lambda key: nn.unbox(init_params(self.config.model, key)),
                compiler_options=compiler_options(
                    jax.default_backend(), deterministic=False, once=True
                ),
            )
            self._params = draw(jax.random.key(self.config.seed))
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params, self._generator = params, None

    def apply(self, tokens: Any) -> Float[Array, 'B L V']:
        """The logits of the token after each of `tokens` [B, L].

        Raises:
            UserError: a token is not in the vocabulary, or more are given than have positions.
        """
        model = self.config.model
        if not isinstance(tokens, jax.core.Tracer):
            tokens = np.asarray(tokens)
            wrong = tokens[(tokens < 0) | (tokens >= model.vocab_size)]
            if wrong.size:
                raise UserError(f'token {wrong[0]} is not one of the {model.vocab_size} tokens')
        if model.position == PositionKind.LEARNED and tokens.shape[1] > model.max_seq_len:
            raise UserError(
                f'{tokens.shape[1]} tokens are more than the {model.max_seq_len} of max_seq_len'
            )
        period = layers_per_period(self.config.model, scan=self.module.scan)
        executed = to_executed(self.params, period=period)
        return self.module.apply({'params': executed}, jnp.asarray(tokens))[0]

    def fit(
        self,
        text: str | os.PathLike,
        *,
        steps: int = 1000,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        quiet: bool = False,
    ) -> Evaluation:
        """Trains on a text, or on the file or folder that `text` names.

        The last tenth is kept for validation. AdamW with a cosine schedule and a warm-up of a
        tenth of the steps, on as many devices as divide `batch_size`. Calling it again goes on
        with these weights and a new optimizer.

        Returns:
          The loss on the validation part.

        Raises:
            UserError: the text is shorter than one window of `max_seq_len` tokens, or empty, or is
                the name of nothing.
        """
        config = copy.deepcopy(self._draft)
        config.optimizer = AdamW(learning_rate=learning_rate)
        config.schedule = ScheduleConfig(warmup_steps=steps // 10)
        config.train = TrainConfig(num_steps=steps, batch_size=batch_size)
        config.eval = EvalConfig(every=0)
        config.checkpoint.save_every, config.checkpoint.keep_best = 0, False
        progress = functools.partial(Progress, quiet=quiet)
        with tempfile.TemporaryDirectory(prefix='gpt_jax-') as scratch:
            config.data = _describe_text(text, pathlib.Path(scratch))
            if not self._own_tokenizer:
                kind, size = TokenizerKind.BPE, self.config.model.vocab_size
                config.tokenizer = TokenizerConfig(kind=kind, vocab_size=size)
                folder = prepare(config.data, config.tokenizer, progress=progress)
                self.tokenizer = make_run_tokenizer(folder, config.tokenizer)
                self._own_tokenizer = True
            else:
                self.tokenizer.save(pathlib.Path(scratch) / 'tokenizer')
                config.tokenizer.path = str(pathlib.Path(scratch) / 'tokenizer')
                folder = prepare(config.data, config.tokenizer, progress=progress)
                config.tokenizer.path = ''
            self._set_config(config)
            result = self._run(Session(self.config, self.tokenizer, folder), quiet)
        if not pathlib.Path(config.data.source).exists():  # a text that was given as such
            config.data = DataConfig(corpus='text', split=config.data.split)
            self._set_config(config)
        return result

    def generate(
        self,
        prompt: str | Sequence[str] = '',
        *,
        max_length: int = 0,
        max_new_tokens: int = 0,
        **sampling: Any,
    ) -> str | list[str]:
        """Continues one prompt or several; returns them with their continuations.

        Args:
          prompt: where to begin.
          max_length: most tokens in all, the prompt's included; 0: no such limit.
          max_new_tokens: most tokens after the prompt; 0: what max_length leaves, else
            SampleConfig's default. Of both limits the nearer counts.
          **sampling: any other knob of `gpt_jax.inference.config.SampleConfig`. With
            `num_samples` a list is returned.

        Raises:
            UserError: a knob is unknown or impossible, or a prompt is too long.
        """
        config = _sampling('generate', max_new_tokens, sampling)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if max_length:
            longest = max(len(encode_prompt(self.tokenizer, each)) for each in prompts)
            if max_length <= longest:
                raise UserError(
                    f'max_length={max_length} leaves no room after a prompt of {longest} tokens; '
                    f'raise it, or give max_new_tokens'
                )
            left = max_length - longest
            config.max_new_tokens = min(left, max_new_tokens) if max_new_tokens else left
        texts = [result.prompt + result.text for result in self._generate(prompts, config)]
        return texts[0] if isinstance(prompt, str) and config.num_samples == 1 else texts

    def chat(
        self, messages: str | Sequence[Message], *, max_new_tokens: int = 0, **sampling: Any
    ) -> str | list[str]:
        """Answers a conversation, put into words by the tokenizer's chat template.

        Args:
          messages: objects with `role` and `content`, the latest last; or what the user says.
          max_new_tokens: most tokens of the answer; 0: SampleConfig's default.
          **sampling: as of `generate`.

        Raises:
            UserError: a knob is impossible, the template refuses the messages, or they are too
                long.
        """
        config = _sampling('chat', max_new_tokens, sampling)
        if isinstance(messages, str):
            messages = [{'role': 'user', 'content': messages}]
        ids = chat_template.encode_prompt(messages, self.tokenizer)
        texts = [result.text for result in self._generate([ids], config)]
        return texts[0] if config.num_samples == 1 else texts

    def evaluate(self, text: str | os.PathLike) -> Evaluation:
        """The loss on a text, or on the file that `text` names.

        Raises:
            UserError: the text has fewer than two tokens, or is one word and not a file's name.
        """
        with tempfile.TemporaryDirectory(prefix='gpt_jax-') as scratch:
            shards = encode_text_file(
                _describe_text(text, pathlib.Path(scratch)).source, self.tokenizer
            )
            return evaluate_shards(self._program, self.config, self.params, shards, limit=0)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes config, tokenizer and weights; `load` and the command line read them.

        What was saved in this folder before is replaced.

        Raises:
            UserError: the folder holds a run of the command line, whose optimizer state would be
                lost, or cannot be written.
        """
        run = runs.Run(_workdir(folder), self.config, self.tokenizer)
        with (
            runs.lock(run.workdir),
            Checkpointer(run.checkpoints, self.config.checkpoint) as checkpointer,
        ):
            saved = checkpointer.meta()
            damaged = saved is None and list_steps(run.checkpoints)
            if damaged or (saved is not None and runs.is_training(saved)):
                raise UserError(
                    f'{run.workdir} holds a run with its optimizer state, which would be lost; '
                    f'save in another folder'
                )
            runs.save_run(run, overrides={})
            checkpointer.clear()
            checkpointer.save(self.steps, {'params': self.params}, {})

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, step: int | str = 'latest', weights: str = 'raw'
    ) -> Self:
        """Reads what `save` wrote, or any run of the command line.

        Args:
          folder: the run's workdir; also gs:// or s3://.
          step: which checkpoint: a number, 'latest' or 'best'.
          weights: 'raw', or 'ema' for their moving average.

        Raises:
            UserError: there is no such run or checkpoint.
        """
        workdir = _workdir(folder)
        config = runs.read_config(workdir)
        runs.train_whole(config)
        # What was chosen for the machine that trained it.
        config.train, config.eval = TrainConfig(), EvalConfig()
        config.model.attention_kernel = AttentionKernel.AUTO
        tokenizer = runs.read_tokenizer(workdir)
        gpt = cls(tokenizer=tokenizer, seed=config.seed)
        gpt._set_config(config)
        run = runs.Run(workdir, gpt.config, tokenizer)
        gpt.steps, gpt.params = runs.restore_weights(run, step=step, weights=weights)
        return gpt

    @classmethod
    def from_pretrained(
        cls,
        where: str | os.PathLike,
        *,
        tokenizer: Tokenizer | None = None,
        ignore_keys: Sequence[str] = (),
        **model: Any,
    ) -> Self:
        """Takes weights from elsewhere; docs/weights.md lists the formats.

        Args:
          where: a file or folder, a name of the Hugging Face hub, or a run of this project, which
            is loaded as by `load`.
          tokenizer: for sources that bring none; not for runs.
          ignore_keys: keys of the source's config that change no logit, where the import refuses
            them; not for runs.
          **model: knobs that change no parameter, such as `compute_dtype`; not for runs.

        Raises:
            UserError: the source is unknown, damaged, or beyond this model, naming what.
        """
        where = os.path.expanduser(where)
        if object_store.is_remote(where) or (pathlib.Path(where) / runs.CHECKPOINTS).is_dir():
            if model or tokenizer is not None or ignore_keys:
                given = [*model] + ['tokenizer'] * (tokenizer is not None)
                given = ', '.join(given + ['ignore_keys'] * bool(ignore_keys))
                raise UserError(f'{where} is a run, which brings its own {given}; leave it out')
            return cls.load(where)
        _check_names(model, ModelConfig, 'from_pretrained')
        source = open_source(where, ignore_keys=ignore_keys)
        if tokenizer is not None:
            source = dataclasses.replace(source, tokenizer=tokenizer)
        config = RunConfig(model=ModelConfig(**model))
        gpt = cls(tokenizer=adopt(source, config, {f'model.{name}': model[name] for name in model}))
        gpt._set_config(config)
        gpt.params = load_params(source, nn.unbox(abstract_params(gpt.config.model)))
        return gpt

    def export(self, folder: str | os.PathLike, *, format: str = 'hf') -> None:
        """Writes a folder for other tools: one of the formats of `--mode export`.

        Raises:
            UserError: the format is unknown or cannot express the architecture, naming why, or
                the folder is not on this machine.
        """
        exporter = find_exporter(format)
        local = object_store.local_path(folder, key='folder')
        model = self.config.model
        exporter(local, model, self.params, self.tokenizer, dtype=model.param_dtype)

    def _generate(self, prompts: Sequence[Prompt], config: SampleConfig) -> list[Generation]:
        finalize_sample(config)
        if self._generator is None:
            self._generator = Generator(self.config.model, self.params, self.tokenizer)
        return self._generator.generate(prompts, config)

    def _set_config(self, config: RunConfig) -> None:
        """Finalizes `config` and rebuilds what depends on it."""
        # As many devices as divide the batch.
        config.mesh = MeshConfig(data=math.gcd(config.train.batch_size, jax.device_count()))
        self._draft = config
        self.config = finalize(config, vocab_size=self.tokenizer.vocab_size)
        self._program = make_program(self.config, make_mesh(self.config.mesh))

    def _run(self, session: Session, quiet: bool) -> Evaluation:
        """Trains a session from this model's weights and takes the result."""
        results: dict[str, Evaluation] = {}

        def evaluate(state: Any) -> dict[str, Evaluation]:
            results.update(session.evaluate(state))
            return results

        hooks = loop.Hooks(evaluate=evaluate, throughput=session.throughput)
        steps = self.config.train.num_steps
        with (
            Progress(steps, unit='steps', description='fit', quiet=quiet) as progress,
            explain_out_of_memory(session.program, self.config),
        ):
            if self._params is None:
                state = session.init()
            else:
                shardings = jax.tree.map(lambda x: x.sharding, session.program.abstract_params)
                given = jax.tree.map(jnp.copy, jax.device_put(self._params, shardings))
                state = session.begin(given)
            state, _ = loop.run(
                session.program,
                self.config,
                state=state,
                batches=session.batches(0),
                hooks=hooks,
                progress=progress,
            )
        self.params = state.params
        self.steps += steps
        return results['eval']


def _workdir(folder: str | os.PathLike) -> pathlib.Path:
    """A folder of a run, on a disk or in an object store. Raises UserError."""
    workdir = object_store.to_path(folder, key='folder')
    object_store.check_reachable(workdir, key='folder')
    return workdir


def _describe_text(text: str | os.PathLike, scratch: pathlib.Path) -> DataConfig:
    """Where the text is: the file or folder it names, else a file made of it.

    Raises:
        UserError: it is one word and not the name of a file, so surely a mistyped one.
    """
    if not isinstance(text, str) or _exists(text):
        return DataConfig(corpus='text', source=os.fspath(text), split='tail:0.1')
    if len(text.split()) == 1:
        raise UserError(f'there is no file {text!r}, and as a text it is a single word')
    files.write_text(scratch / 'text.txt', text)
    return DataConfig(
        corpus='text',
        source=str(scratch / 'text.txt'),
        split='tail:0.1',
        cache_dir=str(scratch / 'shards'),
    )


def _exists(text: str) -> bool:
    """Whether a text is the name of something."""
    try:
        return pathlib.Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def _sampling(where: str, max_new_tokens: int, sampling: dict[str, Any]) -> SampleConfig:
    """The knobs that were given to a method. Raises UserError for one that is none."""
    _check_names(sampling, SampleConfig, where)
    config = SampleConfig(**sampling)
    config.stop = (config.stop,) if isinstance(config.stop, str) else tuple(config.stop)
    config.max_new_tokens = max_new_tokens or config.max_new_tokens
    return config


def _check_names(given: Iterable[str], config: type, where: str) -> None:
    """Refuses keywords that are not fields of `config`.

    Raises:
        UserError: naming the keyword and the nearest field.
    """
    known = [field.name for field in dataclasses.fields(config)]
    for name in given:
        if name not in known:
            raise UserError(f'{where} has no argument {name!r}; {suggest(name, known)}')

"""The Python API: `from gpt_jax import GPT`. It runs the same code as the command line.

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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt_jax import object_store
from gpt_jax import run as runs
from gpt_jax.checkpoint.manifest import list_steps, read_document, read_documents
from gpt_jax.config import EvalConfig, RunConfig, TrainConfig, finalize
from gpt_jax.config_tree import check_names, to_json
from gpt_jax.data.config import DataConfig, Windows
from gpt_jax.data.encode import encode_text_file
from gpt_jax.data.given_text import describe_text
from gpt_jax.data.prepare import prepare
from gpt_jax.data.shard_manifest import Manifest, hash_of
from gpt_jax.data.shard_tokenizer import make_run_tokenizer
from gpt_jax.data.split import TRAIN
from gpt_jax.errors import UserError
from gpt_jax.evaluate import Evaluation
from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.generate import Generation, Generator, Prompt, encode_prompt
from gpt_jax.inspector import Edit, Inspection, Inspector
from gpt_jax.inspector.inspector import Text, check_ids
from gpt_jax.model.config import AttentionKernel, ModelConfig, PositionKind
from gpt_jax.model.gpt import abstract_params, init_params
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.optim.adamw import AdamW
from gpt_jax.optim.schedule import ScheduleConfig
from gpt_jax.parallel.compiler_options import compiler_options
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.pretrained import adopt, model_values
from gpt_jax.telemetry.progress import Progress
from gpt_jax.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    TokenizerKind,
    chat_template,
    make_tokenizer,
)
from gpt_jax.tokenizer.chat_template import Message
from gpt_jax.train.fit import fit
from gpt_jax.train.program import make_program
from gpt_jax.train.startup_report import describe_passes, warn_of_passes
from gpt_jax.train.state import TrainState
from gpt_jax.train.trainer import Trainer, evaluate_shards
from gpt_jax.weights import load_params, open_source
from gpt_jax.weights.credits import NO_CREDITS
from gpt_jax.weights.export import check_folder
from gpt_jax.weights.exporters import find_exporter

LEARNING_RATE = 1e-3  # of `fit`, for random initial weights
FINE_TUNING_RATE = 3e-5  # for loaded weights, as in configs/finetune.py


class GPT:
    """A model with its weights and its tokenizer.

    Without a tokenizer it reads bytes, until `fit` trains a byte-level BPE of `vocab_size` on the
    text. Ids below `vocab_size` that the tokenizer does not have are never generated.
    """

    def __init__(
        self,
        vocab_size: int = 0,
        *,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        **model: Any,
    ):
        """Creates a model with random weights.

        Args:
          vocab_size: rows of the embedding; 0: the size of the tokenizer.
          tokenizer: a tokenizer of `gpt_jax.tokenizer`.
          seed: of the weights and the order of the training data.
          **model: any knob of `gpt_jax.model.config.ModelConfig`.

        Raises:
            UserError: a knob is unknown, or its value is invalid.
        """
        check_names(model, ModelConfig, 'GPT')
        self._own_tokenizer = tokenizer is not None
        self.tokenizer = tokenizer or make_tokenizer(TokenizerConfig(), tuple)
        config = RunConfig(seed=seed, model=ModelConfig(vocab_size=vocab_size, **model))
        config.tokenizer.kind = self.tokenizer.kind
        self._set_config(config)
        self._params: Any = None
        self.steps = 0  # training steps taken
        self._source = ''  # name of the source of loaded weights
        self._credits = NO_CREDITS
        # Sequences read by `fit`, by a hash of the text, max_seq_len and seed.
        self._seen: dict[str, int] = {}
        self._generator: Generator | None = None

    @property
    def module(self) -> nn.Module:
        """The flax module; it takes parameters in the executed layout (`model/layer_stack.py`)."""
        return self._program.model

    @property
    def params(self) -> Any:
        """The weights, in the stored layout: every leaf of `blocks` is stacked over layers."""
        if self._params is None:
            model = self.config.model
            options = compiler_options(jax.default_backend(), deterministic=False, once=True)
            draw = jax.jit(lambda key: nn.unbox(init_params(model, key)), compiler_options=options)
            self._params = draw(jax.random.key(self.config.seed))
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params, self._generator = params, None

    def apply(self, tokens: Any) -> Float[Array, 'B L V']:
        """Returns the logits of the token after each of `tokens` [B, L].

        Raises:
            UserError: these are not rows of ids, a token is not in the vocabulary, or there are
                more tokens than positions.
        """
        model = self.config.model
        if not isinstance(tokens, jax.core.Tracer):
            instead = 'gpt.apply([gpt.tokenizer.encode(text)])'
            tokens = check_ids(tokens, 'BL', model.vocab_size, instead=instead)
        if model.position == PositionKind.LEARNED and tokens.shape[1] > model.max_seq_len:
            raise UserError(
                f'{tokens.shape[1]} tokens are more than the {model.max_seq_len} of max_seq_len'
            )
        executed = to_executed(self.params, self.config.model, scan=self.module.scan)
        return self.module.apply({'params': executed}, jnp.asarray(tokens))[0]

    def fit(
        self,
        text: str | os.PathLike,
        *,
        steps: int = 1000,
        batch_size: int = 16,
        learning_rate: float | None = None,
        quiet: bool = False,
    ) -> Evaluation:
        """Trains on a text, or on the file or folder that `text` names.

        The last tenth is held out for validation. Uses AdamW with a cosine schedule and a warm-up
        of a tenth of the steps, on as many devices as divide `batch_size`. Another call continues
        with these weights and a new optimizer, at the place in the text where the last call ended.
        Ctrl-C ends training after the current step: the model keeps the weights of that step, and
        KeyboardInterrupt is raised.

        Args:
          text: a text, or the name of a file or folder.
          steps: number of training steps.
          batch_size: sequences per step.
          learning_rate: the peak; by default 1e-3, or 3e-5 for loaded weights.
          quiet: show no progress.

        Returns:
          The loss on the validation part.

        Raises:
            UserError: the text is shorter than one window of `max_seq_len` tokens, or empty, or
                looks like the name of a file that does not exist.
        """
        if steps < 1:
            raise UserError(f'steps={steps} must be at least 1')
        if learning_rate is None:
            learning_rate = FINE_TUNING_RATE if self._source else LEARNING_RATE
            if self._source and not quiet:
                print(
                    f'fit: learning_rate={learning_rate} for the weights of {self._source}; '
                    f'learning_rate={LEARNING_RATE} is that of new weights'
                )
        config = copy.deepcopy(self._draft)
        config.optimizer = AdamW(learning_rate=learning_rate)
        config.schedule = ScheduleConfig(warmup_steps=steps // 10, decay_steps=steps)
        # Steps are counted from call to call, so that each has its own dropout.
        config.train = TrainConfig(num_steps=self.steps + steps, batch_size=batch_size)
        config.eval = EvalConfig(every=0)
        config.checkpoint.save_every, config.checkpoint.keep_best = 0, False
        progress = functools.partial(Progress, quiet=quiet)
        with tempfile.TemporaryDirectory(prefix='gpt_jax-') as scratch:
            config.data = describe_text(text, pathlib.Path(scratch))
            if self._own_tokenizer:
                config.tokenizer.path = str(pathlib.Path(scratch) / 'tokenizer')
                self.tokenizer.save(pathlib.Path(config.tokenizer.path))
            else:
                kind, size = TokenizerKind.BPE, self.config.model.vocab_size
                config.tokenizer = TokenizerConfig(kind=kind, vocab_size=size)
            folder = prepare(config.data, config.tokenizer, progress=progress)
            config.tokenizer.path = ''
            if not self._own_tokenizer:
                self.tokenizer = make_run_tokenizer(folder, config.tokenizer)
                self._own_tokenizer = True
            self._set_config(config)
            try:
                return self._run(folder, quiet)
            finally:
                if config.data.cache_dir == str(pathlib.Path(scratch) / 'shards'):
                    config.data = DataConfig(corpus='text', split=config.data.split)
                    self._set_config(config)  # drop the temporary folder of a given string

    def generate(
        self,
        prompt: str | Sequence[str] = '',
        *,
        max_length: int = 0,
        max_new_tokens: int = 0,
        **sampling: Any,
    ) -> str | list[str]:
        """Continues one prompt or several; returns prompts with their continuations.

        Args:
          prompt: a text, or a list of texts.
          max_length: maximum number of tokens including the prompt; 0: no limit.
          max_new_tokens: maximum number of new tokens; 0: the rest of max_length, else the default
            of `sampling`. If both limits are given, the lower one applies.
          **sampling: other knobs of `gpt_jax.inference.config.SampleConfig`. The defaults are the
            run's, or those stated by the source of imported weights. With `num_samples` above 1
            a list is returned.

        Raises:
            UserError: a knob is unknown or invalid, or a prompt is too long.
        """
        config = self._sampling('generate', max_new_tokens, sampling)
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
        """Answers a conversation, formatted by the tokenizer's chat template.

        Args:
          messages: objects with `role` and `content`, the latest last; or one user message.
          max_new_tokens: maximum number of tokens of the answer; 0: as in `generate`.
          **sampling: as in `generate`.

        Raises:
            UserError: a knob is invalid, the template rejects the messages, or they are too
                long.
        """
        config = self._sampling('chat', max_new_tokens, sampling)
        if isinstance(messages, str):
            messages = [{'role': 'user', 'content': messages}]
        ids = chat_template.encode_prompt(messages, self.tokenizer)
        texts = [result.text for result in self._generate([ids], config)]
        return texts[0] if config.num_samples == 1 else texts

    def evaluate(self, text: str | os.PathLike, *, batch_size: int = 0) -> Evaluation:
        """Returns the loss on a text, or on the file that `text` names.

        Args:
          text: a text, or the name of a file.
          batch_size: maximum number of windows of `max_seq_len` tokens per batch; 0: the batch size
            of `fit`.

        Raises:
            UserError: the text has fewer than two tokens, or looks like the name of a file that
                does not exist.
        """
        if batch_size < 0:
            raise UserError(f'batch_size={batch_size} must not be negative')
        with tempfile.TemporaryDirectory(prefix='gpt_jax-') as scratch:
            shards = encode_text_file(
                describe_text(text, pathlib.Path(scratch)).source, self.tokenizer
            )
            return evaluate_shards(
                self._program,
                self.config,
                self.params,
                shards,
                windows=Windows.CONTINUOUS,
                limit=0,
                batch_size=batch_size,
            )

    @property
    def inspector(self) -> Inspector:
        """A view into this model, which the analyses take (`gpt_jax.inspector.analyses`)."""
        return Inspector(self.config.model, self.params, self.tokenizer)

    def inspect(self, text: Text, *, points: Iterable[str] | None = None) -> Inspection:
        """Returns the values inside the model for a text, by name; see `Inspector.inspect`."""
        return self.inspector.inspect(text, points=points)

    def run(
        self, text: Text, edits: Sequence[Edit] = (), *, points: Iterable[str] | None = None
    ) -> Inspection:
        """Returns the values inside the model in a pass with edits; see `Inspector.run`."""
        return self.inspector.run(text, edits, points=points)

    def gradients(
        self, text: Text, of: Callable[[jax.Array], jax.Array], **options: Any
    ) -> Inspection:
        """Returns gradients of a number at points; see `Inspector.gradients`."""
        return self.inspector.gradients(text, of, **options)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes config, tokenizer and weights; `load` and the command line read them.

        A model saved in this folder before is replaced after the new one is written.

        Raises:
            UserError: the folder holds a run of the command line, whose optimizer state would be
                lost, or files that are not a model's, or cannot be written.
        """
        run = runs.Run(_workdir(folder), self.config, self.tokenizer, draft=self._draft)
        with runs.lock(run.workdir, key='folder'):
            saved = read_documents(run.checkpoints)
            damaged = not saved and list_steps(run.checkpoints)
            if damaged or (saved and runs.is_training(saved[max(saved)]['meta'])):
                raise UserError(
                    f'{run.workdir} holds a run with its optimizer state, which would be lost; '
                    f'save in another folder'
                )
            meta = {'source': self._source, 'seen': self._seen}
            meta['credits'] = to_json(self._credits)
            runs.save_weights(run, step=self.steps, params=self.params, meta=meta, overrides={})

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, step: int | str = 'latest', weights: str = 'raw'
    ) -> Self:
        """Loads a model written by `save`, or any run of the command line.

        Args:
          folder: the run's workdir; also gs:// or s3://.
          step: the checkpoint: a number, 'latest' or 'best'.
          weights: 'raw', or 'ema' for the moving average.

        Raises:
            UserError: the run or checkpoint does not exist.
        """
        workdir = _workdir(folder)
        config = runs.read_config(workdir, key='folder')
        runs.train_whole(config)
        # Settings for the machine that trained it.
        config.train, config.eval = TrainConfig(), EvalConfig()
        config.model.execution.attention_kernel = AttentionKernel.AUTO
        tokenizer = runs.read_tokenizer(workdir)
        gpt = cls(tokenizer=tokenizer, seed=config.seed)
        gpt._set_config(config)
        run = runs.Run(workdir, gpt.config, tokenizer)
        gpt.steps, gpt.params = runs.restore_weights(run, step=step, weights=weights)
        meta = read_document(run.checkpoints, gpt.steps)['meta']
        origin = meta.get('init_from') or {}
        gpt._source = meta.get('source') or origin.get('workdir', '')
        gpt._seen = dict(meta.get('seen', {}))
        gpt._credits = runs.read_credits(run, gpt.steps)
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
        """Imports weights of other programs; docs/weights.md lists the formats.

        Args:
          where: a file or folder, a name on the Hugging Face hub, or a run of this project, which
            is loaded as by `load`.
          tokenizer: for sources without one; not for runs.
          ignore_keys: keys of the source's config that the import rejects although they change no
            logit; not for runs.
          **model: knobs that change no parameter, such as `precision`; not for runs.

        Raises:
            UserError: the source is unknown, damaged or not supported; names the reason.
        """
        where = os.path.expanduser(where)
        if object_store.is_remote(where) or (pathlib.Path(where) / runs.CHECKPOINTS).is_dir():
            if model or tokenizer is not None or ignore_keys:
                given = [*model] + ['tokenizer'] * (tokenizer is not None)
                given = ', '.join(given + ['ignore_keys'] * bool(ignore_keys))
                raise UserError(f'{where} is a run, which brings its own {given}; leave it out')
            return cls.load(where)
        check_names(model, ModelConfig, 'from_pretrained')
        source = open_source(where, ignore_keys=ignore_keys)
        if tokenizer is not None:
            source = dataclasses.replace(source, tokenizer=tokenizer)
        config = RunConfig(model=ModelConfig(**model))
        gpt = cls(tokenizer=adopt(source, config, model_values(config, model)))
        gpt._set_config(config)
        gpt.params = load_params(source, nn.unbox(abstract_params(gpt.config.model)))
        gpt._source, gpt._credits = source.name, source.credits
        return gpt

    def export(self, folder: str | os.PathLike, *, format: str = 'hf') -> None:
        """Writes a folder for other tools, in one of the formats of `--mode export`.

        Raises:
            UserError: the format is unknown or does not support the architecture (names why), or
                the folder is not on this machine, or holds anything but an earlier export.
        """
        exporter = find_exporter(format)
        local = object_store.local_path(folder, key='folder')
        check_folder(local, key='folder')
        model = self.config.model
        exporter(
            local,
            model,
            self.params,
            self.tokenizer,
            dtype=model.precision.params,
            credits=self._credits,
            sampling=to_json(self.config.sample),
        )

    def _generate(self, prompts: Sequence[Prompt], config: SampleConfig) -> list[Generation]:
        finalize_sample(config)
        if self._generator is None or self._generator.weight_dtype != config.weight_dtype:
            self._generator = Generator(
                self.config.model, self.params, self.tokenizer, weight_dtype=config.weight_dtype
            )
        return self._generator.generate(prompts, config)

    def _sampling(self, where: str, max_new_tokens: int, given: dict[str, Any]) -> SampleConfig:
        """Returns the run's sampling knobs with those given; `num_samples` is 1 unless given.

        Raises:
            UserError: a knob is unknown.
        """
        check_names(given, SampleConfig, where)
        config = dataclasses.replace(self._draft.sample, **{'num_samples': 1, **given})
        config.stop = (config.stop,) if isinstance(config.stop, str) else tuple(config.stop)
        config.max_new_tokens = max_new_tokens or config.max_new_tokens
        return config

    def _set_config(self, config: RunConfig) -> None:
        """Finalizes `config` and rebuilds the program."""
        # As many devices as divide the batch.
        config.mesh = MeshConfig(data=math.gcd(config.train.batch_size, jax.device_count()))
        self._draft = config
        self.config = finalize(config, vocab_size=self.tokenizer.vocab_size)
        self._program = make_program(self.config, make_mesh(self.config.mesh))

    def _run(self, folder: pathlib.Path, quiet: bool) -> Evaluation:
        """Trains this model on the shards in `folder`; returns the validation loss."""
        trainer = Trainer(self.config, self.tokenizer, folder)
        first, batch_size = self.steps, self.config.train.batch_size
        # By content, because the path of a text may change between calls.
        tokens = [shard.sha256 for shard in Manifest.read(folder).splits[TRAIN].shards]
        text = hash_of([tokens, self.config.model.max_seq_len, self.config.seed])
        first_batch = -(-self._seen.get(text, 0) // batch_size)
        if not quiet:
            passes = trainer.count_passes(first_batch + self.config.train.num_steps - first)
            print(f'fit: {trainer.text_tokens:,} tokens to train on, {describe_passes(passes)}')
            warn_of_passes(passes, keys=['steps', 'batch_size'])

        def keep(state: TrainState) -> None:
            self.params, self.steps = state.params, int(state.step)
            self._credits = self._credits.of_derived()
            self._seen[text] = (first_batch + self.steps - first) * batch_size

        return fit(
            trainer,
            params=self._params,
            step=first,
            first_batch=first_batch,
            keep=keep,
            quiet=quiet,
        )


def _workdir(folder: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a run, on a disk or in an object store. Raises UserError."""
    workdir = object_store.to_path(folder, key='folder')
    object_store.check_reachable(workdir, key='folder')
    return workdir

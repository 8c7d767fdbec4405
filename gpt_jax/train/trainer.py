"""The trainer: data, program and state, one loop over steps, and a list of evaluators."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.config import RunConfig
from gpt_jax.data.config import Windows
from gpt_jax.data.mixture import open_sources, tokens_per_pass
from gpt_jax.data.pipeline import eval_batches, make_train_pipeline
from gpt_jax.data.shards import Shards
from gpt_jax.data.skipped import parse_skip_steps
from gpt_jax.data.split import TRAIN, VALIDATION
from gpt_jax.data.windows import evaluation_spans, tokens_of_epoch
from gpt_jax.errors import UserError
from gpt_jax.evaluate import Evaluation, evaluate, task_runs
from gpt_jax.evaluate.scoring import LEAST_LENGTH, Scorer, padded_size
from gpt_jax.inference.generate import Generator, encode_prompt
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import parts
from gpt_jax.telemetry.chips import memory_in_use, peak_flops
from gpt_jax.telemetry.progress import Progress
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.train.evaluators import Evaluator, check_evaluators, default_evaluators
from gpt_jax.train.flops import train_flops_per_token
from gpt_jax.train.loop import Lane, Outcome, run_calls
from gpt_jax.train.program import Program, make_program
from gpt_jax.train.run_folder import Nowhere
from gpt_jax.train.state import TrainState
from gpt_jax.train.training_clock import TrainingClock
from gpt_jax.train.watchdog import Watchdog


class Trainer:
    """A config with its data and its program, the state that it trains, and its evaluators."""

    state: TrainState  # set by `init`, `begin` or the caller; `train` replaces it after each call
    evaluators: list[Evaluator]  # run in this order

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        folder: pathlib.Path,
        *,
        evaluators: Sequence[Evaluator] = (),
        program: Program | None = None,
    ):
        """Opens the shards in `folder` and builds the program of a finalized config.

        `evaluators` are run after those that the config asks for. `program` replaces the one that
        would be built.

        Raises:
            UserError: the data is too short, the config does not fit the devices, or two evaluators
                have one name.
        """
        self.config, self.tokenizer = config, tokenizer
        self.program = program or make_program(config, make_mesh(config.mesh))
        index, count = self.program.row_share
        sources = open_sources(folder, config.data, split=TRAIN, tokenizer=tokenizer)
        self.text_tokens = sources[0].shards.num_tokens
        self._epoch_tokens = tokens_of_epoch(
            config.data.windows, sources[0].shards, seq_len=config.model.max_seq_len
        )
        self.pipeline = make_train_pipeline(
            sources,
            seq_len=config.model.max_seq_len,
            batch_size=config.train.batch_size,
            seed=config.seed,
            windows=config.data.windows,
            process_index=index,
            process_count=count,
            segment_ids=config.data.segment_ids,
            order=parse_skip_steps(config.data.skip_steps),
            num_threads=config.data.num_threads,
            prefetch_batches=config.data.prefetch_batches,
        )
        self.validation = Shards.open(folder, VALIDATION, tokenizer=tokenizer)
        # Fail fast: rejects a split that is too short before the first evaluation.
        evaluation_batches(
            self.program, config, self.validation, windows=config.data.windows, limit=1
        )
        self.tasks = task_runs.load(
            config.eval.tasks, data=config.eval.task_data, limit=config.eval.task_limit
        )
        self.scorer = make_scorer(self.program, config, tokenizer)
        self.added = list(evaluators)
        self.evaluators = [*default_evaluators(self), *evaluators]
        check_evaluators(self.evaluators)

    def count_passes(self, steps: int) -> float:
        """Returns the number of epochs over the training text, or over a mixture's first source."""
        tokens = steps * self.config.train.batch_size * self.config.model.max_seq_len
        return tokens / tokens_per_pass(self._epoch_tokens, self.config.data)

    def check_texts(self) -> None:
        """Encodes the texts of the tasks and the sample's prompt.

        Raises:
            UserError: the tokenizer cannot encode them, or the prompt does not fit the context.
        """
        for each in self.tasks:
            each.check(self.tokenizer)
        context = self.config.model.max_seq_len
        try:
            size = len(encode_prompt(self.tokenizer, self.config.sample.prompt))
        except UserError as error:
            raise UserError(f'config.sample.prompt: {error}') from error
        if size > context:
            raise UserError(f'config.sample.prompt has {size} tokens, the context holds {context}')

    def init(self) -> None:
        """Makes a new state; its weights depend only on the seed."""
        self.state = self.program.init(jax.random.key(self.config.seed))

    def begin(self, params: Any) -> None:
        """Makes a new state with the given weights (stored layout), which are donated."""
        self.state = self.program.begin(params, jax.random.key(self.config.seed))

    def train(
        self,
        *,
        first_batch: int,
        clock: TrainingClock,
        progress: Progress,
        folder: Nowhere,
        watchdog: Watchdog,
        stop: Callable[[], bool],
        evaluate_first: bool = False,
        until: int | None = None,
    ) -> Outcome:
        """Trains to `config.train.num_steps` or the end of `clock`, in calls of several steps.

        Args:
          first_batch: number of the first batch to read.
          clock: counts the seconds of training.
          progress: shows the steps; reports are printed above it.
          folder: takes rows, checkpoints and samples.
          watchdog: is told of each call, and to be patient with everything else.
          stop: is polled after each call; True ends the training.
          evaluate_first: run the evaluators that precede a checkpoint on the given state too: those
            with `at_start` at step 0, else those that are due.
          until: save and stop after this step.

        Raises:
            Diverged: too many steps in a row were not finite, or the last ones; nothing is saved.
        """
        first = int(self.state.step)
        lane = Lane(
            self,
            state=lambda: self.state,
            clock=clock,
            folder=folder,
            progress=progress,
            first=first,
        )
        if evaluate_first:
            with watchdog.patient():
                lane.evaluate_first(first)

        def advance(calls: list[list[Any]]) -> list[dict[str, Any]]:
            self.state, metrics = self.program.advance(self.state, calls[0])
            return [metrics]

        return run_calls(
            [lane],
            advance=advance,
            streams=[self.pipeline.batches(first_batch)],
            call_length=self.program.call_length,
            first=first,
            progress=progress,
            watchdog=watchdog,
            stop=stop,
            until=until,
        )

    def weights(self, state: TrainState) -> Iterator[tuple[str, Any]]:
        """Yields the weights, then their moving average if kept, each with its metrics' prefix."""
        yield 'eval', self.program.join(state.params, state.base)
        if state.ema is not None:
            yield 'eval_ema', self.program.join(state.ema, state.base)

    def evaluate(self, state: TrainState) -> dict[str, Evaluation]:
        """Computes the validation loss of the weights and of their moving average."""
        limit = self.config.eval.batches
        return {
            prefix: evaluate_shards(
                self.program,
                self.config,
                params,
                self.validation,
                windows=self.config.data.windows,
                limit=limit,
            )
            for prefix, params in self.weights(state)
        }

    def sample(self, state: TrainState) -> str:
        """Generates a text from the moving average, or else the weights; all processes call it."""
        trained = state.params if state.ema is None else state.ema
        params = self.program.join(trained, state.base)
        config = self.config.sample
        generator = Generator(
            self.config.model, params, self.tokenizer, weight_dtype=config.weight_dtype
        )
        texts = generator.generate([config.prompt], config)
        return '\n\n'.join(text.prompt + text.text for text in texts)

    def throughput(self, tokens_per_second: float) -> dict[str, float]:
        """Returns model FLOPs utilisation and memory, where they are known for the device."""
        device = self.program.mesh.local_devices[0]
        row = {}
        peak = peak_flops(device.device_kind)
        if peak is not None:
            length = self.config.model.max_seq_len
            flops = tokens_per_second * train_flops_per_token(self.config.model, length=length)
            row['mfu'] = flops / (peak * self.program.mesh.size)
        memory = memory_in_use(device)
        if memory is not None:
            row['memory_gib'] = memory
        return row


def make_scorer(program: Program, config: RunConfig, tokenizer: Tokenizer) -> Scorer:
    """Returns a scorer of texts that runs the program's score step."""
    return Scorer(
        score_step=program.score_step,
        place=program.place,
        row_share=program.row_share,
        tokenizer=tokenizer,
        batch_size=config.eval.batch_size,
        max_seq_len=config.model.max_seq_len,
        length_parts=parts('length', program.mesh),
        stride=config.eval.stride,
    )


def evaluate_shards(
    program: Program,
    config: RunConfig,
    params: Any,
    shards: Shards,
    *,
    windows: Windows,
    limit: int,
    batch_size: int = 0,
    advance: Callable[[float], None] = lambda tokens: None,
) -> Evaluation:
    """Computes the loss on `limit` batches spread over `shards`; 0: on all of them.

    `windows` is their kind: that of the config for its own data, continuous for other texts.
    `advance` is called with the number of tokens so far.
    """
    return evaluate(
        lambda params, batch: program.eval_step(params, program.place(batch)),
        params,
        evaluation_batches(
            program, config, shards, windows=windows, limit=limit, batch_size=batch_size
        ),
        bytes_per_token=shards.num_bytes / max(1, shards.num_tokens - 1)
        if shards.all_learned
        else None,
        advance=advance,
    )


def evaluation_batches(
    program: Program,
    config: RunConfig,
    shards: Shards,
    *,
    windows: Windows,
    limit: int,
    batch_size: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's rows of the evaluation batches. Raises UserError if there are none.

    Batches have `batch_size` windows (0: `config.eval.batch_size`) of the full context. Batches of
    a short text are smaller, in powers of two, because each size compiles a program.
    """
    index, count = program.row_share
    length_parts, devices = parts('length', program.mesh), parts('batch', program.mesh)
    seq_len, size = config.model.max_seq_len, batch_size or config.eval.batch_size
    if windows == Windows.CONTINUOUS:
        least = LEAST_LENGTH * length_parts
        seq_len = min(seq_len, padded_size(max(1, shards.num_tokens - 1), least=least))
    available = evaluation_spans(windows, shards, seq_len=seq_len).count
    size = min(size, padded_size(available, least=1))
    return eval_batches(
        shards,
        seq_len=seq_len,
        windows=windows,
        batch_size=-(-size // devices) * devices,
        limit=limit,
        process_index=index,
        process_count=count,
        segment_ids=config.data.segment_ids,
    )

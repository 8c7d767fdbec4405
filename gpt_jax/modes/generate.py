"""Write text with a trained run's weights, streamed to the terminal."""

import os
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.generate import Ended, Generator, Prompt
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers
from gpt_jax.tokenizer import Tokenizer, chat_template

# Flags that set config.sample.* without the prefix, and their help.
SAMPLE_FLAGS = {
    'max_new_tokens': (absl_flags.DEFINE_integer, 'tokens after the prompt'),
    'num_samples': (absl_flags.DEFINE_integer, 'texts for each prompt'),
    'temperature': (absl_flags.DEFINE_float, '0 always takes the most likely token'),
    'top_k': (absl_flags.DEFINE_integer, 'only the k most likely tokens'),
    'top_p': (absl_flags.DEFINE_float, 'only the likeliest tokens that reach this probability'),
    'min_p': (absl_flags.DEFINE_float, 'only tokens this fraction as likely as the likeliest'),
    'repetition_penalty': (absl_flags.DEFINE_float, 'makes tokens seen before less likely'),
    'presence_penalty': (absl_flags.DEFINE_float, 'subtracted from the logits of drawn tokens'),
    'frequency_penalty': (absl_flags.DEFINE_float, 'the same, for each time they were drawn'),
    'seed': (absl_flags.DEFINE_integer, 'the same seed gives the same text'),
    'draft_tokens': (absl_flags.DEFINE_integer, 'guesses from repetitions, checked in one pass'),
    'stop': (absl_flags.DEFINE_multi_string, 'a text that ends the sample; may be repeated'),
}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the prompt, and shortcuts for `--config.sample.*`."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_multi_string(
        'prompt', None, 'text to continue, - reads stdin; may be repeated', flag_values=flags
    )
    absl_flags.DEFINE_string('prompt_file', None, 'file to continue', flag_values=flags)
    absl_flags.DEFINE_boolean(
        'chat',
        False,
        "the prompt is a user's message, answered by the chat template",
        flag_values=flags,
    )
    for name, (define, text) in SAMPLE_FLAGS.items():
        define(name, None, text, flag_values=flags)


def run(command: Command) -> int:
    """Generates and prints; a single sample is printed while it is generated."""
    flags, config = command.flags, command.config
    workdir, overrides = command.workdir, command.overrides
    for name in SAMPLE_FLAGS:
        value = flags[name].value
        if value is not None:
            setattr(config.sample, name, tuple(value) if name == 'stop' else value)
    finalize_sample(config.sample)
    prompts = read_prompts(flags, config.sample)
    opened = saved_weights.open_run(config, workdir, overrides)
    step, params = runs.restore_weights(
        opened,
        step=flags.step,
        weights=flags.weights,
        abstract=saved_weights.split_weights(opened.config, overrides),
    )
    if flags.chat:
        prompts = [_ask(prompt, opened.tokenizer) for prompt in prompts]
    sampling = opened.config.sample
    generator = Generator(
        opened.config.model,
        params,
        opened.tokenizer,
        weight_dtype=sampling.weight_dtype,
        consume=True,
    )
    if len(prompts) * sampling.num_samples == 1:
        _print_streaming(generator, prompts, sampling, echo=not flags.chat)
    else:
        for index, generation in enumerate(generator.generate(prompts, sampling)):
            print(f'--- sample {index + 1}')
            prompt = '' if flags.chat else _marked(generation.prompt)
            print(prompt + generation.text)
    if not peers.is_primary():  # only standard output is silenced there
        return 0
    if sampling.draft_tokens:
        print(f'({generator.statistics})', file=sys.stderr)
    print(f'({workdir}, {flags.weights} weights of step {step})', file=sys.stderr)
    return 0


def read_prompts(flags: absl_flags.FlagValues, sampling: SampleConfig) -> list[str]:
    """Returns the prompts of the flags, else `config.sample.prompt`."""
    if flags.prompt is not None and flags.prompt_file is not None:
        raise UserError('give either --prompt or --prompt_file')
    if flags.prompt_file is not None:
        path = object_store.to_path(flags.prompt_file, key='--prompt_file')
        try:
            return [files.read_text(path)]
        except UserError as error:
            raise UserError(f'--prompt_file: {error}') from error
    prompts = [sampling.prompt] if flags.prompt is None else flags.prompt
    if '-' in prompts and peers.num_processes() > 1:
        raise UserError(
            '--prompt=- reads the input of one process, and the run has several; use --prompt_file'
        )
    return [_read_input() if prompt == '-' else prompt for prompt in prompts]


def _read_input() -> str:
    """Returns the text on standard input."""
    return files.decode(sys.stdin.buffer.read(), name='--prompt=-: standard input')


def _ask(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a conversation that begins with one message of the user."""
    return chat_template.encode_prompt([{'role': 'user', 'content': prompt}], tokenizer)


def _marked(prompt: str) -> str:
    """Returns the prompt, in bold on a terminal to tell it from the generated text."""
    if not sys.stdout.isatty() or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        return prompt
    return f'\033[1m{prompt}\033[0m'


def _print_streaming(
    generator: Generator, prompts: Sequence[Prompt], sampling: SampleConfig, *, echo: bool
) -> None:
    """Prints one text while it is generated, after its prompt if `echo`."""
    shown = (
        _marked(prompts[0]) if echo else ''
    )  # shown with the first piece, so that a rejected prompt is not printed
    for [(piece, generation)] in generator.stream(prompts, sampling):
        print(shown + piece, end='', flush=True)
        shown = ''
        if generation.ended == Ended.END_OF_TEXT and peers.is_primary():
            print('\n(end of text)', end='', file=sys.stderr)
    print(flush=True)  # flush before standard error is written

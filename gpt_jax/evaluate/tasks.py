"""The tasks that `--tasks` and `config.eval.tasks` can name."""

import functools
from collections.abc import Sequence

from gpt_jax.config_tree import suggest
from gpt_jax.errors import UserError
from gpt_jax.evaluate import blimp, lambada, mmlu, perplexity
from gpt_jax.evaluate import multiple_choice as choice
from gpt_jax.evaluate.task import Hub, Task

_choice = functools.partial(Task, summarize=choice.accuracies)
_science = functools.partial(_choice, fields='question, choices {text, label}, answerKey')

TASKS: dict[str, Task] = {
    'blimp': Task(
        question=blimp.question,
        summarize=blimp.summarize,
        fields='sentence_good, sentence_bad, UID, linguistics_term, field',
        hub=Hub('nyu-mll/blimp', '*', 'train'),
        in_files=True,
    ),
    'lambada': Task(
        question=lambada.question,
        summarize=lambada.summarize,
        fields='text',
        hub=Hub('EleutherAI/lambada_openai', 'default', 'test'),
    ),
    'hellaswag': _choice(
        question=choice.hellaswag,
        fields='ctx_a, ctx_b, activity_label, endings, label',
        hub=Hub('Rowan/hellaswag', None, 'validation'),
    ),
    'piqa': _choice(
        question=choice.piqa,
        fields='goal, sol1, sol2, label',
        hub=Hub('baber/piqa', None, 'validation'),
    ),
    'arc_easy': _science(question=choice.arc, hub=Hub('allenai/ai2_arc', 'ARC-Easy', 'test')),
    'arc_challenge': _science(
        question=choice.arc, hub=Hub('allenai/ai2_arc', 'ARC-Challenge', 'test')
    ),
    'winogrande': Task(
        question=choice.winogrande,
        summarize=choice.accuracy,
        fields='sentence, option1, option2, answer',
        hub=Hub('allenai/winogrande', 'winogrande_xl', 'validation'),
    ),
    'openbookqa': _choice(
        question=choice.openbookqa,
        fields='question_stem, choices {text, label}, answerKey',
        hub=Hub('allenai/openbookqa', 'main', 'test'),
    ),
    'sciq': _choice(
        question=choice.sciq,
        fields='support, question, distractor1, distractor2, distractor3, correct_answer',
        hub=Hub('allenai/sciq', None, 'test'),
    ),
    'boolq': Task(
        question=choice.boolq,
        summarize=choice.accuracy,
        fields='passage, question, label',
        hub=Hub('aps/super_glue', 'boolq', 'validation'),
    ),
    'mmlu': Task(
        question=mmlu.question,
        summarize=mmlu.summarize,
        fields='subject, question, choices, answer',
        hub=Hub('cais/mmlu', 'all', 'test'),
        in_files=True,
    ),
    'perplexity': Task(
        question=perplexity.question, summarize=perplexity.summarize, fields='text', texts=True
    ),
}


def check_names(names: Sequence[str], *, key: str) -> None:
    """Rejects unknown and repeated names of tasks.

    Raises:
        UserError: a name is unknown or repeated; the error names `key` and the tasks.
    """
    for index, name in enumerate(names):
        if name not in TASKS:
            raise UserError(
                f'{key}: {name!r} is not a task; {suggest(name, [*TASKS])} ({", ".join(TASKS)})'
            )
        if name in names[:index]:
            raise UserError(f'{key}: {name} is there twice; name it once')

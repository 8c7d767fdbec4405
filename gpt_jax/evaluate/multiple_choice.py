"""Multiple choice by log-likelihood: the model's answer is the likeliest choice.

Prompts, choices and both accuracies are those of EleutherAI's lm-evaluation-harness 0.4
(`lm_eval/tasks/<name>`, `ConfigurableTask.process_results`), zero-shot.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt_jax.evaluate.scoring import Request, Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row, mean

Scores = Sequence[Sequence[Score]]


def ask(
    prompt: str, choices: Sequence[str], gold: int, groups: dict[str, str] | None = None
) -> Question:
    """Returns a question whose answers follow one prompt, each after a space."""
    if not 0 <= gold < len(choices):
        raise ValueError(f'the right answer is number {gold} of {len(choices)}')
    requests = tuple(Request(prompt, f' {choice}') for choice in choices)
    return Question(requests, tuple(choices), gold, groups or {})


def answers(
    questions: Sequence[Question], scores: Scores, *, normalized: bool = True
) -> dict[str, np.ndarray]:
    """Returns 1 for each right answer and 0 for each wrong one: `acc`, and `acc_norm` if asked.

    `acc` takes the likeliest choice. `acc_norm` takes the likeliest per character: the
    log-likelihood is divided by the number of characters (not bytes, not tokens) of the choice
    without the space before it. Ties go to the first choice.
    """
    right: dict[str, list[float]] = {'acc': []}
    if normalized:
        right['acc_norm'] = []
    for question, row in zip(questions, scores, strict=True):
        values = np.array([score.log_likelihood for score in row])
        right['acc'].append(np.argmax(values) == question.gold)
        if normalized:
            lengths = np.array([len(choice) for choice in question.choices], float)
            with np.errstate(divide='ignore'):  # an empty answer is -inf: never the likeliest
                right['acc_norm'].append(np.argmax(values / lengths) == question.gold)
    return {name: np.array(values, float) for name, values in right.items()}


def accuracies(questions: Sequence[Question], scores: Scores) -> Result:
    """Returns `acc` and `acc_norm` over all rows."""
    right = answers(questions, scores)
    return Result(rows=len(questions), metrics={name: mean(x) for name, x in right.items()})


def accuracy(questions: Sequence[Question], scores: Scores) -> Result:
    """Returns `acc` alone, for choices of similar length or in the prompt."""
    right = answers(questions, scores, normalized=False)
    return Result(rows=len(questions), metrics={'acc': mean(right['acc'])})


def accuracy_by_group(
    questions: Sequence[Question],
    scores: Scores,
    *,
    combine: Callable[[Sequence[Metric], Sequence[int]], Metric],
) -> Result:
    """Returns `acc` of each smallest group; for larger groups and all rows, `combine` of these.

    `combine` gets the metrics and the sizes of the smallest groups in the larger one.
    """
    right = answers(questions, scores, normalized=False)['acc']
    members: dict[str, list[int]] = {}
    levels: dict[str, dict[str, dict[str, None]]] = {}  # kind -> group -> the smallest in it
    for index, question in enumerate(questions):
        smallest = next(iter(question.groups.values()))
        members.setdefault(smallest, []).append(index)
        for kind, name in question.groups.items():
            levels.setdefault(kind, {}).setdefault(name, {})[smallest] = None
    sizes = {name: len(rows) for name, rows in members.items()}
    metrics = {name: mean(right[rows]) for name, rows in members.items()}

    def combined(names: Sequence[str]) -> dict[str, Metric]:
        alone = len(names) == 1
        numbers, counts = [metrics[name] for name in names], [sizes[name] for name in names]
        return {'acc': numbers[0] if alone else combine(numbers, counts)}

    return Result(
        rows=len(questions),
        metrics=combined(list(metrics)),
        tables={
            kind: {name: combined(list(smallest)) for name, smallest in sorted(table.items())}
            for kind, table in levels.items()
        },
    )


def hellaswag(row: Row) -> Question:
    """Returns a question of HellaSwag (Zellers et al. 2019): the right ending of a text."""
    context = f'{row["ctx_a"]} {row["ctx_b"].capitalize()}'
    endings = [_clean_wikihow(ending) for ending in row['endings']]
    prompt = _clean_wikihow(f'{row["activity_label"]}: {context}')
    return ask(prompt, endings, int(row['label']))


def piqa(row: Row) -> Question:
    """Returns a question of PIQA (Bisk et al. 2020): which of two ways works."""
    prompt = f'Question: {row["goal"]}\nAnswer:'
    return ask(prompt, [row['sol1'], row['sol2']], int(row['label']))


def arc(row: Row) -> Question:
    """Returns a question of ARC (Clark et al. 2018): grade-school science."""
    question, choices, gold = _ai2_question(row, 'question')
    return ask(f'Question: {question}\nAnswer:', choices, gold)


def openbookqa(row: Row) -> Question:
    """Returns a question of OpenBookQA (Mihaylov et al. 2018): science, without the book."""
    question, choices, gold = _ai2_question(row, 'question_stem')
    return ask(question, choices, gold)


def sciq(row: Row) -> Question:
    """Returns a question of SciQ (Welbl et al. 2017): science, with a supporting paragraph."""
    prompt = f'{row["support"].lstrip()}\nQuestion: {row["question"]}\nAnswer:'
    names = ('distractor1', 'distractor2', 'distractor3', 'correct_answer')
    return ask(prompt, [row[name] for name in names], 3)


def boolq(row: Row) -> Question:
    """Returns a question of BoolQ (Clark et al. 2019): yes or no (SuperGLUE's version)."""
    prompt = f'{row["passage"]}\nQuestion: {row["question"]}?\nAnswer:'
    return ask(prompt, ['no', 'yes'], int(row['label']))


def winogrande(row: Row) -> Question:
    """Returns a question of WinoGrande (Sakaguchi et al. 2020): the name that fits the blank.

    Partial evaluation (Trinh and Le 2018): the contexts differ, the continuation is the same.
    """
    sentence = row['sentence']
    blank = sentence.index('_')
    rest = f' {sentence[blank + 1 :].strip()}'
    options = [row['option1'], row['option2']]
    requests = tuple(Request(sentence[:blank] + option, rest) for option in options)
    return Question(requests, tuple(options), {'1': 0, '2': 1}[str(row['answer'])])


def _clean_wikihow(text: str) -> str:
    """Removes the WikiHow markup from a text of HellaSwag."""
    text = text.strip().replace(' [title]', '. ')
    return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')


def _ai2_question(row: Row, name: str) -> tuple[str, list[str], int]:
    """Returns the question, the choices and the right index, from the hub's or AI2's format."""
    if isinstance(row['question' if 'question' in row else name], str):
        question, choices = row[name], row['choices']
        texts, labels = list(choices['text']), list(choices['label'])
    else:
        nested: dict[str, Any] = row['question']
        question = nested['stem']
        texts = [choice['text'] for choice in nested['choices']]
        labels = [choice['label'] for choice in nested['choices']]
    return question, texts, labels.index(row['answerKey'].lstrip())

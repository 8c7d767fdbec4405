"""Prompts as lm-evaluation-harness writes them, and its two accuracies, worked out by hand."""

import pytest

from gpt_jax.evaluate import blimp, lambada, mmlu
from gpt_jax.evaluate.multiple_choice import accuracies, ask, winogrande
from gpt_jax.evaluate.scoring import Score
from gpt_jax.evaluate.task import Metric
from gpt_jax.evaluate.tasks import TASKS


def scores(*log_likelihoods: float) -> list[Score]:
    return [Score(((value, 1),), False) for value in log_likelihoods]


def test_both_accuracies():
    questions = [
        ask('q', ['a', 'bbbb'], 1),  # -2, -4: acc takes a, acc_norm the -1 a character of bbbb
        ask('q', ['ééé', 'dddd'], 0),  # -6 is 2 a character, 1 a byte; -7 is 1.75 of either
        ask('q', ['x', 'y'], 0),  # equals: the first
        ask('q', ['x', 'yy', 'zzz'], 2),
    ]
    table = [scores(-2, -4), scores(-6, -7), scores(-3, -3), scores(-3, -2, -1)]
    result = accuracies(questions, table)
    assert result.rows == 4
    # acc: wrong, right, right, right; acc_norm: right, wrong, right, right.
    assert result.metrics['acc'].value == pytest.approx(0.75)
    assert result.metrics['acc_norm'].value == pytest.approx(0.75)
    assert result.metrics['acc'].stderr == pytest.approx(0.25)  # sqrt(0.25 / 4)
    empty = accuracies([ask('q', ['', 'bb'], 1)], [scores(-0.1, -4)])
    assert (empty.metrics['acc'].value, empty.metrics['acc_norm'].value) == (0, 1)
    flipped = accuracies(questions[:2], table[:2]).metrics
    assert (flipped['acc'].value, flipped['acc_norm'].value) == (0.5, 0.5)
    assert accuracies(questions[:1], table[:1]).metrics['acc'].value == 0
    assert accuracies(questions[1:2], table[1:2]).metrics['acc_norm'].value == 0


SCIENCE = {
    'question': 'What?',
    'choices': {'text': ['t1', 't2'], 'label': ['1', '2']},
    'answerKey': '2',
}
AI2 = {
    'question': {
        'stem': 'What?',
        'choices': [{'text': 't1', 'label': 'A'}, {'text': 't2', 'label': 'B'}],
    },
    'answerKey': 'B',
}
# A row, its prompt, what follows it, and the number of the right answer.
PROMPTS = {
    'piqa': (
        {'goal': 'Go', 'sol1': 'walk', 'sol2': 'fly', 'label': 1},
        'Question: Go\nAnswer:',
        [' walk', ' fly'],
        1,
    ),
    'hellaswag': (
        {
            'activity_label': 'Cooking',
            'ctx_a': 'A man [substeps] cooks.',
            'ctx_b': 'he THEN',
            'endings': [' eats [title] now', 'sleeps  long'],
            'label': '0',
        },
        'Cooking: A man cooks. He then',
        [' eats. now', ' sleeps long'],
        0,
    ),
    'arc_easy': (SCIENCE, 'Question: What?\nAnswer:', [' t1', ' t2'], 1),
    'arc_challenge': (AI2, 'Question: What?\nAnswer:', [' t1', ' t2'], 1),
    'openbookqa': (
        {**SCIENCE, 'question_stem': 'The sun is', 'question': 'The sun is'},
        'The sun is',
        [' t1', ' t2'],
        1,
    ),
    'sciq': (
        {
            'support': ' Facts.',
            'question': 'Which?',
            'distractor1': 'a',
            'distractor2': 'b',
            'distractor3': 'c',
            'correct_answer': 'd',
        },
        'Facts.\nQuestion: Which?\nAnswer:',
        [' a', ' b', ' c', ' d'],
        3,
    ),
    'boolq': (
        {'passage': 'P.', 'question': 'is it', 'label': True},
        'P.\nQuestion: is it?\nAnswer:',
        [' no', ' yes'],
        1,
    ),
    'mmlu': (
        {
            'subject': 'high_school_physics',
            'question': ' Why? ',
            'choices': ['w', 'x', 'y', 'z'],
            'answer': 2,
        },
        'The following are multiple choice questions (with answers) about high school physics.'
        '\n\nWhy?\nA. w\nB. x\nC. y\nD. z\nAnswer:',
        [' A', ' B', ' C', ' D'],
        2,
    ),
}


@pytest.mark.parametrize('name', PROMPTS)
def test_prompts(name):
    row, prompt, continuations, gold = PROMPTS[name]
    question = TASKS[name].question(row)
    assert [request.context for request in question.requests] == [prompt] * len(continuations)
    assert [request.continuation for request in question.requests] == continuations
    assert question.gold == gold


def test_every_task_is_tested():
    assert {*PROMPTS, 'winogrande', 'lambada', 'blimp', 'perplexity'} == set(TASKS)


def test_ai2s_own_form_of_openbookqa():
    assert TASKS['openbookqa'].question(AI2) == ask('What?', ['t1', 't2'], 1)


def test_winogrande_compares_contexts():
    row = {'sentence': 'Ann met _ by day .', 'option1': 'Bo', 'option2': 'Cy', 'answer': '2'}
    question = winogrande(row)
    assert question.requests == (('Ann met Bo', ' by day .'), ('Ann met Cy', ' by day .'))
    assert question.gold == 1


def test_lambada_splits_at_the_last_space():
    question = lambada.question({'text': 'the cat sat on\nthe mat'})
    assert question.requests == (('the cat sat on\nthe', ' mat'),)
    words = [[Score(((-1.0, 2),), True)], [Score(((-2.0, 1), (-1.0, 1)), False)]]
    result = lambada.summarize([question] * 2, words)
    assert result.metrics['acc'] == Metric(0.5, 0.5)
    assert result.metrics['perplexity'].value == pytest.approx(7.389056)  # exp(2)
    assert result.metrics['perplexity'].stderr == pytest.approx(7.389056)  # times 1


def test_blimp_weighs_paradigms_alike():
    def pair(paradigm, term, field):
        row = {'sentence_good': 'G', 'sentence_bad': 'B', 'UID': paradigm}
        return blimp.question({**row, 'linguistics_term': term, 'field': field})

    a, b = pair('a', 's-selection', 'syntax'), pair('b', 'binding', 'syntax/semantics')
    c = pair('c', 'argument_structure', 'syntax')
    assert a.requests == (('', ' G'), ('', ' B'))
    right, wrong = scores(-1, -2), scores(-2, -1)
    result = blimp.summarize([a, a, b, c, a, c], [right, wrong, right, right, right, right])
    tables = {
        kind: {name: metrics['acc'].value for name, metrics in table.items()}
        for kind, table in result.tables.items()
    }
    assert tables['paradigm'] == pytest.approx({'a': 2 / 3, 'b': 1, 'c': 1})
    assert tables['phenomenon'] == pytest.approx({'argument_structure': 5 / 6, 'binding': 1})
    assert tables['field'] == pytest.approx({'syntax': 5 / 6, 'syntax_semantics': 1})
    assert result.metrics['acc'].value == pytest.approx(8 / 9)


def test_mmlu_weighs_rows_alike():
    def ask_subject(subject):
        row = {'question': 'Q', 'choices': list('wxyz'), 'answer': 0, 'subject': subject}
        return mmlu.question(row)

    law, biology = ask_subject('professional_law'), ask_subject('anatomy')
    right, wrong = scores(-1, -2, -2, -2), scores(-2, -1, -2, -2)
    result = mmlu.summarize([law] * 4 + [biology] * 2, [right] * 3 + [wrong] * 2 + [right])
    assert result.metrics['acc'].value == pytest.approx(4 / 6)
    # (3 * 4 * 0.25² + 1 * 2 * 0.5²) / (6 - 2) / 6
    assert result.metrics['acc'].stderr == pytest.approx((1.25 / 4 / 6) ** 0.5)
    assert result.tables['category']['humanities']['acc'] == Metric(0.75, 0.25)
    assert sum(len(subjects) for subjects in mmlu.SUBJECTS.values()) == 57

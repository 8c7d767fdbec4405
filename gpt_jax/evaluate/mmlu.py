"""MMLU (Hendrycks et al. 2021): 57 subjects of four choices, zero-shot.

As in lm-evaluation-harness (`mmlu`), the prompt lists the choices and the answer is a letter. The
accuracy of a category, and of everything, is over its rows.
"""

import math
from collections.abc import Sequence

from gpt_jax.evaluate.multiple_choice import accuracy_by_group, ask
from gpt_jax.evaluate.scoring import Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row

SUBJECTS = {
    'humanities': (
        'formal_logic',
        'high_school_european_history',
        'high_school_us_history',
        'high_school_world_history',
        'international_law',
        'jurisprudence',
        'logical_fallacies',
        'moral_disputes',
        'moral_scenarios',
        'philosophy',
        'prehistory',
        'professional_law',
        'world_religions',
    ),
    'other': (
        'business_ethics',
        'clinical_knowledge',
        'college_medicine',
        'global_facts',
        'human_aging',
        'management',
        'marketing',
        'medical_genetics',
        'miscellaneous',
        'nutrition',
        'professional_accounting',
        'professional_medicine',
        'virology',
    ),
    'social_sciences': (
        'econometrics',
        'high_school_geography',
        'high_school_government_and_politics',
        'high_school_macroeconomics',
        'high_school_microeconomics',
        'high_school_psychology',
        'human_sexuality',
        'professional_psychology',
        'public_relations',
        'security_studies',
        'sociology',
        'us_foreign_policy',
    ),
    'stem': (
        'abstract_algebra',
        'anatomy',
        'astronomy',
        'college_biology',
        'college_chemistry',
        'college_computer_science',
        'college_mathematics',
        'college_physics',
        'computer_security',
        'conceptual_physics',
        'electrical_engineering',
        'elementary_mathematics',
        'high_school_biology',
        'high_school_chemistry',
        'high_school_computer_science',
        'high_school_mathematics',
        'high_school_physics',
        'high_school_statistics',
        'machine_learning',
    ),
}
CATEGORIES = {subject: name for name, subjects in SUBJECTS.items() for subject in subjects}
LETTERS = 'ABCD'


def question(row: Row) -> Question:
    """Returns a question with its choices, introduced by its subject."""
    subject = row['subject']
    lines = [
        'The following are multiple choice questions (with answers) about '
        f'{subject.replace("_", " ")}.\n',
        row['question'].strip(),
        *(f'{letter}. {choice}' for letter, choice in zip(LETTERS, row['choices'], strict=True)),
        'Answer:',
    ]
    groups = {'subject': subject, 'category': CATEGORIES[subject]}
    return ask('\n'.join(lines), LETTERS, int(row['answer']), groups)


def summarize(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Result:
    """Returns the accuracy by subject and category."""
    return accuracy_by_group(questions, scores, combine=_pool)


def _pool(metrics: Sequence[Metric], sizes: Sequence[int]) -> Metric:
    """Returns the mean over the rows of all groups; its error is from the variance within them."""
    total = sum(sizes)
    value = sum(metric.value * size for metric, size in zip(metrics, sizes, strict=True)) / total
    squares = sum(
        (size - 1) * size * metric.stderr**2
        for metric, size in zip(metrics, sizes, strict=True)
        if size > 1
    )
    if total == len(sizes):
        return Metric(value, math.nan)
    return Metric(value, math.sqrt(squares / (total - len(sizes)) / total))

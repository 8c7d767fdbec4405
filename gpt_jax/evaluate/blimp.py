"""BLiMP (Warstadt et al. 2020): 67 paradigms of 1,000 pairs of sentences, one of them wrong.

A pair is right if the whole good sentence is at least as likely as the bad one. As in
lm-evaluation-harness, each sentence is scored after a space at the beginning of a text. The
accuracy over everything, over a phenomenon and over a field is the plain mean of its paradigms.
"""

import math
from collections.abc import Sequence

from gpt_jax.evaluate.multiple_choice import accuracy_by_group
from gpt_jax.evaluate.scoring import Request, Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row

# The paper's table counts s-selection as argument structure; the files spell a field in two ways.
PHENOMENA = {'s-selection': 'argument_structure'}
FIELDS = {'syntax/semantics': 'syntax_semantics'}


def question(row: Row) -> Question:
    """Returns the question of a pair, the good sentence first."""
    pair = (row['sentence_good'], row['sentence_bad'])
    phenomenon, field = row['linguistics_term'], row['field']
    groups = {
        'paradigm': row['UID'],
        'phenomenon': PHENOMENA.get(phenomenon, phenomenon),
        'field': FIELDS.get(field, field),
    }
    return Question(tuple(Request('', f' {each}') for each in pair), pair, 0, groups)


def summarize(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Result:
    """Returns the accuracy by paradigm, phenomenon and field."""
    return accuracy_by_group(questions, scores, combine=_mean_of_groups)


def _mean_of_groups(metrics: Sequence[Metric], sizes: Sequence[int]) -> Metric:
    """Returns the unweighted mean of independent metrics."""
    del sizes
    error = math.sqrt(sum(metric.stderr**2 for metric in metrics))
    return Metric(sum(metric.value for metric in metrics) / len(metrics), error / len(metrics))

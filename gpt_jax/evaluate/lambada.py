"""LAMBADA (Paperno et al. 2016): predicting the last word of a passage.

The data are OpenAI's version, as in lm-evaluation-harness (`lambada_openai`). The text is split
at its last space; the target is the space and the word. `acc` is the fraction of words whose
every token is the model's most likely one. `perplexity` is per word.
"""

from collections.abc import Sequence

from gpt_jax.evaluate.scoring import Request, Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row, exponential, mean


def question(row: Row) -> Question:
    """Returns the request to score the last word of a passage after the rest of it."""
    passage, space, word = row['text'].rpartition(' ')
    if not space:
        raise ValueError('the text is a single word')
    return Question((Request(passage, f' {word}'),))


def summarize(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Result:
    """Returns the accuracy and perplexity of the last words."""
    words = [score for row in scores for score in row]
    surprise: Metric = mean([-word.log_likelihood for word in words])
    return Result(
        rows=len(questions),
        metrics={
            'acc': mean([float(word.greedy) for word in words]),
            'perplexity': exponential(surprise),
        },
    )

"""LAMBADA (Paperno et al. 2016): the last word of a passage that only the whole passage tells.

In OpenAI's form, as lm-evaluation-harness has it (`lambada_openai`): the text is split at its
last space, the target is the space and the word. `acc` counts the words whose every token is the
model's most likely one, `perplexity` is that of whole words.
"""

from collections.abc import Sequence

from gpt_jax.evaluate.scoring import Request, Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row, exponential, mean


def question(row: Row) -> Question:
    """The passage without its last word, and that word."""
    passage, space, word = row['text'].rpartition(' ')
    if not space:
        raise ValueError('the text is a single word')
    return Question((Request(passage, f' {word}'),))


def summarize(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Result:
    """Accuracy and perplexity of the last words."""
    words = [score for row in scores for score in row]
    surprise: Metric = mean([-word.log_likelihood for word in words])
    return Result(
        rows=len(questions),
        metrics={
            'acc': mean([float(word.greedy) for word in words]),
            'perplexity': exponential(surprise),
        },
    )

"""The perplexity of texts; each token is predicted once.

A text is scored after the beginning-of-text token. A text longer than the context is scored in
windows that advance by `config.eval.stride` tokens. Perplexity per token is not comparable across
tokenizers; per word and per byte, the same log-likelihood is divided by the words or bytes of the
text. Words are separated by white space (lm-evaluation-harness, `loglikelihood_rolling`).
"""

import math
import re
from collections.abc import Sequence

from gpt_jax.evaluate.scoring import Request, Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row, exponential, ratio


def question(row: Row) -> Question:
    """Returns the request to score a text; none if it is empty, which counts as one word."""
    text = row['text']
    if not isinstance(text, str):
        raise ValueError(f'its text is {text!r}')
    return Question((Request('', text),) if text else ())


def summarize(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Result:
    """Returns the perplexities of all texts together; errors assume independent windows."""
    windows = [window for row in scores for score in row for window in score.windows]
    texts = [''.join(each.continuation for each in question.requests) for question in questions]
    counts = {
        'token': sum(tokens for _, tokens in windows),
        'word': sum(len(re.split(r'\s+', text)) for text in texts),
        'byte': sum(len(text.encode()) for text in texts),
    }
    loss = ratio([-value for value, _ in windows], [tokens for _, tokens in windows])

    def loss_per(unit: str) -> Metric:
        factor = counts['token'] / counts[unit]
        return Metric(loss.value * factor, loss.stderr * factor)

    bits = [number / math.log(2) for number in loss_per('byte')]
    return Result(
        rows=len(questions),
        metrics={
            **{f'{unit}_perplexity': exponential(loss_per(unit)) for unit in counts},
            'bits_per_byte': Metric(*bits),
        },
    )

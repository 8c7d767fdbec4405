"""The perplexity of texts, each token predicted once, with as much before it as the model reads.

A text is scored after the beginning-of-text token; what is longer than the context in windows
that move on by `config.eval.stride` tokens. Tokens say nothing across tokenizers: the word and
byte perplexities divide the same log-likelihood by what is in the text, words being what white
space parts (lm-evaluation-harness, `loglikelihood_rolling`).
"""

import math
import re
from collections.abc import Sequence

from gpt_jax.evaluate.scoring import Request, Score
from gpt_jax.evaluate.task import Metric, Question, Result, Row, exponential, ratio


def question(row: Row) -> Question:
    """A whole text; an empty one has nothing to score, and one word, as the harness counts."""
    text = row['text']
    if not isinstance(text, str):
        raise ValueError(f'its text is {text!r}')
    return Question((Request('', text),) if text else ())


def summarize(questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Result:
    """Perplexities over all texts together; errors take the windows for independent."""
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

"""A model for EleutherAI's lm-evaluation-harness (`pip install lm-eval`), and running it.

The harness provides the prompts, the requests and the metrics. Scores come from
`scoring.Scorer`, so a run on a mesh is evaluated on its mesh. `lm_eval.api.model.LM` documents
the interface.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.evaluate.scoring import Encoded, Scorer, beginning_of_text

try:
    from lm_eval.api.model import TemplateLM
except ImportError:  # an optional package: HarnessModel raises if it is missing
    TemplateLM = object

# Continues prompts: (prompts, knobs of `SampleConfig`) -> texts.
Generate = Callable[[Sequence[str], dict[str, Any]], list[str]]
DEFAULT_NEW_TOKENS = 256  # lm-evaluation-harness's
# Sampling settings that the harness and `SampleConfig` name alike.
DRAWING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')


class HarnessModel(TemplateLM):
    """A model with the interface of the harness. All processes of a run make the same calls."""

    def __init__(self, scorer: Scorer, params: Any, generate: Generate):
        """Takes a scorer, the weights to score with, and a function that continues prompts.

        Raises:
            UserError: lm-eval is not installed.
        """
        if TemplateLM is object:
            raise UserError('lm-evaluation-harness is not installed: pip install lm-eval')
        super().__init__()
        self._params, self._generate = params, generate
        self._scorer = dataclasses.replace(scorer, stride=0)  # the harness's windows do not overlap
        self._tokenizer = scorer.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The end-of-text id, else the id that a text starts after."""
        eot_id = self._tokenizer.eot_id
        return self.prefix_token_id if eot_id is None else eot_id

    @property
    def prefix_token_id(self) -> int:
        """The id that a text without a context starts after."""
        return beginning_of_text(self._tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness's cache of requests."""
        return self._tokenizer.fingerprint()

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns the ids, after the beginning-of-text id if the tokenizer has one."""
        bos_id = self._tokenizer.bos_id
        before = [] if bos_id is None or add_special_tokens is False else [bos_id]
        return before + self._tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        encoded = [
            Encoded.of(context or [self.prefix_token_id], continuation)
            for _, context, continuation in requests
        ]
        scores = self._scorer.score_encoded(self._params, encoded)
        results = [(score.log_likelihood, score.greedy) for score in scores]
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial('loglikelihood', texts, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list:
        """Returns the log-likelihood of each whole text."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        ids = [self._tokenizer.encode(text) for text in texts]
        filled = [Encoded.of([self.prefix_token_id], each) for each in ids if each]
        scores = iter(self._scorer.score_encoded(self._params, filled))
        values = [next(scores).log_likelihood if each else 0.0 for each in ids]
        for text, value in zip(texts, values, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', (text,), value)
        return values

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each context up to one of its stop strings, greedily by default.

        A context that leaves no room for the new tokens loses its beginning. Each batch has its
        own seed, so that a repeated context gets a different text.

        Raises:
            UserError: a request asks for an unsupported way of sampling.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        del disable_tqdm
        together: dict[tuple, list[int]] = {}
        for index, request in enumerate(requests):
            settings = normalize_gen_kwargs(request.args[1], DEFAULT_NEW_TOKENS)
            key = tuple(sorted(_sampling(settings).items()))
            together.setdefault(key, []).append(index)
        texts = [''] * len(requests)
        for key, indices in together.items():
            sampling = dict(key)
            for first in range(0, len(indices), self._scorer.batch_size):
                batch = indices[first : first + self._scorer.batch_size]
                count = sampling['max_new_tokens']
                prompts = [self._fit(requests[index].args[0], count) for index in batch]
                answers = self._generate(prompts, sampling | {'seed': first})
                for index, answer in zip(batch, answers, strict=True):
                    texts[index] = answer
                    self.cache_hook.add_partial('generate_until', requests[index].args, answer)
        return texts

    def _fit(self, context: str, new_tokens: int) -> str:
        """Returns the end of a context that leaves room for `new_tokens` (or half)."""
        length = self._scorer.max_seq_len
        room = length - new_tokens if new_tokens < length else length // 2
        ids = self.tok_encode(context)
        keep = room
        while len(ids) > room and keep > 0:  # cut text may have more tokens than before
            context = self._tokenizer.decode(ids[-keep:])
            ids, keep = self.tok_encode(context), keep - 1
        return context


def _sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the generation settings of the harness to fields of `SampleConfig`."""
    temperature = float(settings.get('temperature', 0.0))
    names = DRAWING if temperature else ('repetition_penalty',)
    sampling = {name: settings[name] for name in names if settings.get(name) is not None}
    others = settings.keys() - {'until', 'max_gen_toks', 'do_sample', *DRAWING}
    if temperature and others:
        raise UserError(
            f'a task of --harness sets {", ".join(sorted(others))} for sampling; only '
            f'{", ".join(DRAWING)} are supported'
        )
    stop = tuple(filter(None, settings['until']))
    count = settings['max_gen_toks']
    return sampling | {'max_new_tokens': count, 'temperature': temperature, 'stop': stop}


def run_tasks(
    model: HarnessModel, names: Sequence[str], *, definitions: str = '', limit: int = 0
) -> tuple[str, dict[str, Any]]:
    """Runs the tasks `names`; returns the harness's table and its results as JSON.

    Args:
      definitions: a folder with task files (YAML), in addition to the harness's own.
      limit: the maximum number of rows per task; 0: all.

    Raises:
        UserError: there is no such task, or its rows cannot be loaded.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    manager = TaskManager(include_path=definitions or None)
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(
                f'--harness={name} is no task of lm-evaluation-harness; lm-eval ls tasks lists them'
            )
    try:
        manager.load(list(names))
    except Exception as error:  # the loader of a data set may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'--harness={",".join(names)} cannot be loaded: {reason}') from error
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=list(names),
        limit=limit or None,
        task_manager=manager,
        log_samples=False,
    )
    tables = [make_table(results)]
    if results.get('groups'):
        tables.append(make_table(results, 'groups'))
    kept = ('results', 'groups', 'versions', 'n-samples', 'higher_is_better')
    return '\n'.join(tables), {name: results[name] for name in kept if name in results}

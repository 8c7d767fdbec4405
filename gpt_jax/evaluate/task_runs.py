"""Loading the rows of tasks, running the tasks, and storing their results."""

import contextlib
import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax import files
from gpt_jax.config_tree import from_json, to_json
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.errors import UserError
from gpt_jax.evaluate.rows import read_rows
from gpt_jax.evaluate.scoring import Request, Scorer, encode_requests
from gpt_jax.evaluate.task import Question, Result, Row, Task
from gpt_jax.evaluate.tasks import TASKS
from gpt_jax.model.config import ModelConfig
from gpt_jax.parallel import consistency, peers
from gpt_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """A task with its questions."""

    name: str
    questions: Sequence[Question]

    @property
    def num_requests(self) -> int:
        """The number of continuations to score."""
        return sum(len(question.requests) for question in self.questions)

    def fingerprint(self) -> str:
        """Returns a hash of all questions and their right answers."""
        return hash_of([self.name, self.questions])

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises a UserError if the tokenizer cannot encode the questions."""
        try:
            encode_requests(tokenizer, self._requests())
        except UserError as error:
            raise UserError(f'{self.name}: {error}') from error

    def run(
        self,
        scorer: Scorer,
        params: Any,
        *,
        advance: Callable[[int], None] = lambda done: None,
    ) -> Result:
        """Returns the result of a model; all processes must make the same call, and all get it."""
        scores = iter(scorer.score(params, self._requests(), advance=advance))
        grouped = [[next(scores) for _ in question.requests] for question in self.questions]
        return TASKS[self.name].summarize(self.questions, grouped)

    def _requests(self) -> list[Request]:
        return [request for question in self.questions for request in question.requests]


def load(names: Sequence[str], *, data: str, limit: int = 0) -> list[LoadedTask]:
    """Loads the tasks `names` with their rows.

    Args:
      data: files and folders separated by commas, or 'hub' (`rows.read_rows`).
      limit: the maximum number of rows per task, or per smallest group (a paradigm of BLiMP, a
        subject of MMLU), as in lm-evaluation-harness; 0: all.

    Raises:
        UserError: the rows are missing or malformed, or differ between processes of this run.
    """
    places = [place for place in data.split(',') if place]
    loaded = []
    for name in names:
        task = TASKS[name]
        questions = [_ask(name, task, row, place) for place, row in read_rows(name, task, places)]
        questions = _first(questions, limit)
        if not any(question.requests for question in questions):
            raise UserError(f'{data} has no rows for {name}; give another file')
        loaded.append(LoadedTask(name=name, questions=questions))
    if loaded and peers.num_processes() > 1:
        facts = {each.name: each.fingerprint() for each in loaded}
        consistency.check('comparison of benchmarks', facts)
    return loaded


def _ask(name: str, task: Task, row: Row, place: str) -> Question:
    try:
        return task.question(row)
    except KeyError as error:
        reason = f'it has no field {error}'
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        reason = str(error)
    raise UserError(f'{place} is no row of {name}: {reason}; rows have {task.fields}')


def _first(questions: Sequence[Question], limit: int) -> Sequence[Question]:
    """Returns the first `limit` questions of each smallest group; 0: all."""
    if not limit:
        return questions
    seen: Counter[str] = Counter()
    kept = []
    for question in questions:
        group = next(iter(question.groups.values()), '')
        seen[group] += 1
        if seen[group] <= limit:
            kept.append(question)
    return kept


class Results:
    """The stored results of one checkpoint, one file per task, with a hash of their inputs.

    The first process reads and writes for all.
    """

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        """Takes in `about` the inputs of every result: weights, tokenizer, settings."""
        self.folder, self._about = folder, dict(about)

    def find(self, task: LoadedTask) -> Result | None:
        """Returns the stored result of the same task, weights and settings, or None.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / f'{task.name}.json'
        stored = None
        if peers.is_primary() and path.is_file():
            stored = files.read_json(path)
            if not self._is_current(stored, task):
                stored = None
        stored = peers.gather(f'result of {task.name}', stored)[0]
        return None if stored is None else Result.from_json(stored)

    def write(self, task: LoadedTask, result: Result) -> None:
        """Stores a result."""
        if not peers.is_primary():
            return
        stored = {
            'task': task.name,
            **result.to_json(),
            'about': self._about,
            'fingerprint': _fingerprint(self._about, task),
        }
        files.write_json(self.folder / f'{task.name}.json', stored)

    def _is_current(self, stored: dict[str, Any], task: LoadedTask) -> bool:
        """Returns whether a stored result has these inputs; its config may have older keys."""
        about = stored.get('about')
        if not isinstance(about, dict) or stored.get('fingerprint') != _fingerprint(about, task):
            return False
        with contextlib.suppress(UserError, KeyError):
            model = to_json(from_json(about['model'], ModelConfig))
            return {**about, 'model': model} == self._about
        return False


def _fingerprint(about: Mapping[str, Any], task: LoadedTask) -> str:
    return hash_of({**about, 'benchmark': task.fingerprint()})

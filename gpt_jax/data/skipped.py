"""Batches that training leaves out, and the batch that each step then takes.

Batches are numbered from 1, by the step that takes them where none is left out. Step s takes the
s-th batch that is not left out. So the order is a pure function of the seed, the step and the
numbers left out.
"""

import re
from collections.abc import Sequence

from gpt_jax.config_tree import INT32_MAX
from gpt_jax.data.mixture import ENDLESS
from gpt_jax.errors import UserError

_ENTRY = re.compile(r'(\d{1,10})(?:-(\d{1,10}))?', re.ASCII)


class BatchOrder:
    """The number of the batch that each step takes, with the batches of some ranges left out.

    `order[i]` is (0, j) for the i-th step and the j-th batch, both counted from 0: the interface of
    grain's DatasetSelectionMap, for a single dataset.
    """

    def __init__(self, skipped: Sequence[range]):
        """Takes ranges of numbers, ascending and without overlap."""
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 0, self.batch_of(index + 1) - 1

    def batch_of(self, step: int) -> int:
        """Returns the number of the batch that a step takes; 0 for step 0, before the first."""
        number = step
        for each in self.skipped:
            if number < each.start:
                break
            number += len(each)
        return number

    def first_difference(self, other: 'BatchOrder') -> int | None:
        """Returns the least number that only one of the two leaves out; None if they are equal."""
        ranges = (*self.skipped, *other.skipped)
        edges = {edge for each in ranges for edge in (each.start, each.stop)}
        differing = (edge for edge in sorted(edges) if self.skips(edge) != other.skips(edge))
        return next(differing, None)

    def skips(self, number: int) -> bool:
        """Returns whether the batch of this number is left out."""
        return any(number in each for each in self.skipped)

    def spell_with(self, number: int) -> str:
        """Returns the value of `config.data.skip_steps` that also leaves out the batch `number`."""
        joined: list[list[int]] = []
        for each in sorted([*self.skipped, range(number, number + 1)], key=lambda each: each.start):
            if joined and each.start <= joined[-1][1] + 1:
                joined[-1][1] = max(joined[-1][1], each.stop - 1)
            else:
                joined.append([each.start, each.stop - 1])
        return ','.join(f'{low}-{high}' if low < high else f'{low}' for low, high in joined)


NOTHING_SKIPPED = BatchOrder(())


def parse_skip_steps(entries: Sequence[str]) -> BatchOrder:
    """Returns the order that `config.data.skip_steps` asks for.

    Raises:
        UserError: an entry is no step or range, or they do not ascend.
    """
    skipped: list[range] = []
    for entry in entries:
        key = f'config.data.skip_steps={entry!r:.40}'
        match = _ENTRY.fullmatch(entry)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= INT32_MAX:
            raise UserError(
                f'{key} must be a step such as 1200 or a range such as 1200-1210, from 1 to '
                f'{INT32_MAX}'
            )
        if skipped and low < skipped[-1].stop:
            raise UserError(
                f'{key} does not come after {skipped[-1].stop - 1}; give the steps in ascending '
                f'order, each once'
            )
        skipped.append(range(low, high + 1))
    return BatchOrder(skipped)

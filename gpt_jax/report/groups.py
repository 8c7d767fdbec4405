"""Groups of runs that differ by their seed only."""

import dataclasses
from collections.abc import Sequence

from gpt_jax.report.recorded_run import RecordedRun
from gpt_jax.report.settings import SEEDS, Setting, changed_settings, without_seeds

LONGEST_LABEL = 60


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one config with several seeds."""

    runs: Sequence[RecordedRun]

    @property
    def name(self) -> str:
        """The names of its runs."""
        names = [run.name for run in self.runs]
        return ', '.join(names) if len(names) < 4 else f'{names[0]} … {names[-1]} ({len(names)})'

    @property
    def settings(self) -> dict[str, Setting]:
        """The knobs that differ from the default; without the seeds where these vary."""
        settings = changed_settings(self.runs[0].draft)
        if len(self.runs) == 1:
            return settings
        return {key: each for key, each in settings.items() if key not in SEEDS}


def group_runs(runs: Sequence[RecordedRun]) -> list[Group]:
    """Returns the groups, in the order of their first runs."""
    found: dict[tuple, list[RecordedRun]] = {}
    for run in runs:
        found.setdefault(without_seeds(run.config), []).append(run)
    return [Group(members) for members in found.values()]


def describe_differences(groups: Sequence[Group]) -> list[str]:
    """Returns for each group the knobs by which it differs from others: 'learning_rate=0.1'."""
    all_settings = [group.settings for group in groups]
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    labels = []
    for settings in all_settings:
        parts = []
        for key in keys:
            if len({each.get(key) for each in all_settings}) > 1:
                default = next(each[key].default for each in all_settings if key in each)
                value = settings[key].value if key in settings else default
                parts.append(f'{key.rpartition(".")[2]}={value}')
        label = ', '.join(parts)
        labels.append(label if len(label) <= LONGEST_LABEL else f'{label[: LONGEST_LABEL - 1]}…')
    return labels

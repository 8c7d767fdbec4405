"""`/metrics`: counts and times for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gpt_jax.serve.http.served import ServedModels

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
GAUGES = {
    'running': 'Texts that have a row.',
    'waiting': 'Texts that wait for a row.',
    'slots': 'Slots of the cache per row, at present.',
}
COUNTERS = {
    'finished': 'Texts that ended, for whatever reason.',
    'prompt_tokens': 'Tokens of prompts that got a row.',
    'reused_tokens': 'Tokens of prompts that were found in the cache.',
    'drawn_tokens': 'Tokens that were drawn.',
}


class Metrics:
    """The metrics of a server."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self.responses = Counter(
            'gpt_jax_responses',
            'Responses by route and status.',
            ['route', 'status'],
            registry=self._registry,
        )
        self.seconds = Histogram(
            'gpt_jax_response_seconds',
            'From a request to the end of its response.',
            ['route'],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first = Histogram(
            'gpt_jax_first_piece_seconds',
            'From a request to the first part of its response.',
            ['route'],
            buckets=SECONDS,
            registry=self._registry,
        )

    def watch(self, models: ServedModels) -> None:
        """Adds the numbers of the models' engines."""
        self._registry.register(_Engines(models))

    def render(self) -> tuple[bytes, str]:
        """Returns all metrics as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Engines:
    """Reads the engines whenever the metrics are asked for."""

    def __init__(self, models: ServedModels):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yields one family for each number."""
        statuses = {model.name: model.engine.status() for model in self._models}
        for kind, names in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, text in names.items():
                family = kind(f'gpt_jax_{name}', text, labels=['model'])
                for model, status in statuses.items():
                    family.add_metric([model], getattr(status, name))
                yield family

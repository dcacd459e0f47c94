"""Metrics: what the server has done and is doing, in the text form that Prometheus reads.

    leveret_http_requests_total{endpoint,status}     leveret_answers_total{model,reason}
    leveret_prompt_tokens_total                      leveret_generated_tokens_total
    leveret_answers_running, _waiting                leveret_engine_*{model}   (engine/stats.py)
    leveret_queue_seconds, leveret_first_token_seconds, leveret_next_token_seconds, leveret_answer_seconds

The clocks start when a request is queued; a next token is timed at the step that gave it, so several tokens that came
of one step count as one. The registry belongs to one application: two servers in a process do not mix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leveret.engine.stats import EngineStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The media type of `Metrics.text`."""

NOW = frozenset(
    ["waiting_requests", "running_requests", "capacity_tokens", "used_tokens", "kept_tokens", "cache_bytes"]
)
"""The numbers of an engine that go up and down; the others only grow."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Borders of the histograms of times."""


class Metrics:
    """The counters of one server. Safe from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.num_open = 0
        """Requests to the endpoints that have come and whose responses are not handed over yet, to their last byte."""
        self.requests = self._counter("http_requests", "HTTP requests answered.", "endpoint", "status")
        self.answers = self._counter("answers", "Answers that ended, and why.", "model", "reason")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were answered.")
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated.")
        self.queue_seconds = self._times("queue_seconds", "Time in the queue.")
        self.first_token_seconds = self._times("first_token_seconds", "Time to the first token.")
        self.next_token_seconds = self._times("next_token_seconds", "Time between two steps of an answer.")
        self.answer_seconds = self._times("answer_seconds", "Time to the end of an answer.")

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Show a number that is looked up when the metrics are read."""
        Gauge(name, help_text, namespace="leveret", registry=self._registry).set_function(value)

    def watch_engines(self, stats: Callable[[], Mapping[str, EngineStats]]) -> None:
        """Show the engines of these models, looked up when the metrics are read."""
        self._registry.register(_Engines(stats))

    def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace="leveret", registry=self._registry)

    def _times(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, namespace="leveret", registry=self._registry, buckets=SECONDS)


class _Engines(Collector):
    """The numbers of `EngineStats`, for each model."""

    def __init__(self, stats: Callable[[], Mapping[str, EngineStats]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        engines = self._stats()
        for name in (field.name for field in dataclasses.fields(EngineStats)):
            kind = GaugeMetricFamily if name in NOW else CounterMetricFamily
            family = kind(f"leveret_engine_{name}", f"The engine's {name.replace('_', ' ')}.", labels=["model"])
            for model, stats in engines.items():
                family.add_metric([model], getattr(stats, name))
            yield family


class CountRequests:
    """An ASGI application that counts the answers of the one inside it, by endpoint and status, and those under way."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, endpoints: frozenset[str]) -> None:
        """`endpoints`: the paths that are counted apart; all others are "other", so that no client invents labels."""
        self._app = app
        self._metrics = metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in self._endpoints else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(endpoint, str(message["status"])).inc()
            await send(message)

        is_ours = endpoint != "other"  # a page may hold a connection open for as long as somebody looks at it
        self._metrics.num_open += is_ours
        try:
            await self._app(scope, receive, counted)
        finally:
            self._metrics.num_open -= is_ours

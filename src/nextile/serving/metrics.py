"""What happens in a server, counted for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # seconds
EACH = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class EngineFacts:
    """What an engine says of itself, asked at every look."""

    def __init__(self, statistics: Callable[[], Any]):
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """Gauges for what is, counters for what was."""
        now = self._statistics()
        yield GaugeMetricFamily("nextile_running", "Texts that are being written.", now.running)
        yield GaugeMetricFamily("nextile_waiting", "Texts that wait for a place.", now.waiting)
        yield GaugeMetricFamily("nextile_pages_used", "Pages of keys and values in use.", now.pages_used)
        yield GaugeMetricFamily("nextile_pages", "Pages of keys and values that there are.", now.pages)
        yield CounterMetricFamily("nextile_tokens_written", "Tokens written.", now.written)
        yield CounterMetricFamily("nextile_tokens_read", "Tokens of prompts read.", now.read)
        yield CounterMetricFamily("nextile_tokens_reused", "Tokens of prompts that need not be read again.", now.reused)
        yield CounterMetricFamily("nextile_steps", "Steps of the engine.", now.steps)


class Metrics:
    """A registry of one server's figures."""

    def __init__(self, statistics: Callable[[], Any]):
        self.registry = CollectorRegistry()
        self.registry.register(EngineFacts(statistics))  # type: ignore[arg-type]
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("nextile_requests", "Requests that were answered.", ["route", "status"], **own)
        self.open = Gauge("nextile_requests_open", "Requests that are being answered.", **own)
        self.first = Histogram("nextile_first_token_seconds", "From request to first token.", buckets=FIRST, **own)
        self.each = Histogram("nextile_token_seconds", "From token to token of one text.", buckets=EACH, **own)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

"""What `/metrics` shows, in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pyllamacpu.engine.generate import GenerationStats
from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.safety.shield_scanners import Finding, What
from pyllamacpu.server.models import ModelPool

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.monotonic()

        def counter(name: str, words: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"pyllamacpu_{name}", words, labels, registry=self.registry)

        self.requests = counter("requests", "HTTP requests by path and status", ("path", "status"))
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answers that were finished")
        self.cached_tokens = counter("cached_tokens", "Of those, found in the prefix cache")
        self.generated_tokens = counter("generated_tokens", "Tokens of answers that were finished")
        self.image_tokens = counter("image_tokens", "Prompt tokens of finished answers that stood for images")
        self.image_seconds = counter("image_seconds", "Seconds of vision towers for finished answers")
        self.refused = counter("refused_requests", "Requests refused because the queue was full")
        self.cancelled = counter("cancelled_requests", "Requests whose client left before the end")
        self.blocked = counter(
            "blocked", "Prompts and answers that were blocked, by input and output", ("what",)
        )
        self.findings = counter(
            "shield_findings",
            "What the guard and the shield found, by scanner, input and output, and status",
            ("scanner", "what", "status"),
        )
        self.prompt_seconds = Histogram(
            "pyllamacpu_prompt_seconds",
            "Seconds from admission to the end of the prompt",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def count(self, finished: Iterable[GenerationStats]) -> None:
        """Adds what finished answers cost."""
        for stats in finished:
            self.prompt_tokens.inc(stats.n_prompt)
            self.cached_tokens.inc(stats.n_cached)
            self.generated_tokens.inc(stats.n_generated)
            self.image_tokens.inc(stats.n_image)
            self.image_seconds.inc(stats.image_seconds)
            self.prompt_seconds.observe(stats.prompt_seconds)

    def count_blocked(self, what: What, findings: Iterable[Finding]) -> None:
        """Adds what a shield has blocked."""
        self.blocked.labels(what).inc()
        for one in findings:
            self.findings.labels(one.scanner, what, one.status).inc()

    def watch(self, models: ModelPool) -> None:
        """Shows the state of the loaded models too."""
        self.registry.register(_State(models))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _State:
    """Gauges that are read when asked for."""

    def __init__(self, models: ModelPool) -> None:
        self._models = models

    def collect(self) -> Iterator[Any]:
        models = list(self._models.loaded.values())
        rows: list[tuple[str, str, Any]] = [
            ("requests_running", "Answers in work", lambda m: m.scheduler.n_running),
            ("requests_waiting", "Answers that wait", lambda m: m.scheduler.n_waiting),
            ("kv_bytes", "Bytes of keys and values", lambda m: m.engine.cache.bytes_in_use),
            ("prefix_bytes", "Of those, kept of requests that are over", _prefix_bytes),
            ("weight_bytes", "Bytes of weights", lambda m: m.engine.weight_bytes),
            ("scratch_bytes", "Bytes of buffers", lambda m: m.engine.scratch_bytes),
            ("steps", "Steps so far", lambda m: m.scheduler.n_steps),
        ]
        for name, words, value in rows:
            gauge = GaugeMetricFamily(f"pyllamacpu_{name}", words, labels=["model"])
            for model in models:
                gauge.add_metric([model.name], value(model))
            yield gauge
        if (disk := self._models.disk) is not None:
            yield from _disk_rows(disk)


def _disk_rows(disk: PageFiles) -> Iterator[Any]:
    counts = disk.counts
    yield GaugeMetricFamily(
        "pyllamacpu_disk_cache_bytes", "Bytes of keys and values in the folder", value=disk.n_bytes
    )
    rows: list[tuple[str, str, int]] = [
        ("hits", "Pages found on the disk", counts.n_read),
        ("read_bytes", "Bytes of those", counts.bytes_read),
        ("written_pages", "Pages written", counts.n_written),
        ("written_bytes", "Bytes of those", counts.bytes_written),
        ("evicted_pages", "Pages removed to keep within the limit", counts.n_evicted),
        ("damaged_pages", "Pages removed because they were damaged", counts.n_rejected),
        ("dropped_pages", "Pages not written: the disk was slow or failed", counts.n_dropped),
        ("failures", "Reads and writes that failed", counts.n_failures),
    ]
    for name, words, value in rows:
        yield CounterMetricFamily(f"pyllamacpu_disk_cache_{name}", words, value=value)


def _prefix_bytes(model: Any) -> int:
    return len(model.scheduler.prefixes) * int(model.engine.cache.page_bytes)

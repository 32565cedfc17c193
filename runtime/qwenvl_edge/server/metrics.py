"""What Prometheus may read at /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qwenvl_edge.replies.reply import Reply

if TYPE_CHECKING:
    from qwenvl_edge.server.service import Answering

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """One server's figures."""

    def __init__(self, batcher: Answering) -> None:
        registry = self._registry = CollectorRegistry()
        self.responses = Counter(
            "qwenvl_responses_total", "Responses by route and status", ["route", "status"], registry=registry
        )
        self._ended = Counter("qwenvl_answers_total", "Answers by what ended them", ["reason"], registry=registry)
        self._ttft = Histogram(
            "qwenvl_time_to_first_token_seconds",
            "From a request's arrival in the queue to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self._speed = Histogram(
            "qwenvl_tokens_per_second", "Decoding speed of one answer", buckets=_SPEEDS, registry=registry
        )
        self._tokens = Counter("qwenvl_tokens_total", "Tokens by kind", ["kind"], registry=registry)
        self._pictures = Counter("qwenvl_pictures_encoded_total", "Pictures not found in a cache", registry=registry)
        Gauge("qwenvl_queue_length", "Requests that wait", registry=registry).set_function(lambda: batcher.waiting)
        Gauge("qwenvl_answers_running", "Answers under way", registry=registry).set_function(lambda: batcher.running)

    def answered(self, reply: Reply) -> None:
        """Count an answer."""
        stats = reply.stats
        self._ended.labels(reply.finish_reason).inc()
        if stats.new_tokens:
            self._ttft.observe(stats.ttft_ms / 1e3)
        if stats.new_tokens > 1:
            self._speed.observe(stats.tokens_per_s)
        self._tokens.labels("prompt_computed").inc(stats.prefill_tokens)
        self._tokens.labels("prompt_cached").inc(stats.reused_tokens)
        self._tokens.labels("generated").inc(stats.new_tokens)
        self._pictures.inc(stats.images_encoded)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)

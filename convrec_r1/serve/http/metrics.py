"""Prometheus metrics of the server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server. vLLM has its own in the process's registry, so these have one of theirs."""

    def __init__(self, waiting: Callable[[], int], unanswered: Callable[[], int]) -> None:
        """
        Args:
            waiting: returns the lists of which nothing is written yet.
            unanswered: returns the lists that are not complete.
        """
        self.registry = CollectorRegistry()
        kept = {"namespace": "convrec_r1", "registry": self.registry}
        self._requests = Counter("requests", "Requests that were answered.", ["path", "status"], **kept)
        self._seconds = Histogram(
            "request_seconds", "From a request's headers to the end of its answer.", ["path"], buckets=_SECONDS, **kept
        )
        self.first_item = Histogram(
            "first_item_seconds", "From a list's request to its first item.", buckets=_SECONDS, **kept
        )
        self.items = Counter("items", "Recommendations that were written.", **kept)
        self.tokens = Counter("tokens", "Tokens that were read and written.", ["kind"], **kept)
        self.cancelled = Counter("cancelled", "Lists that were not complete when their client left.", **kept)
        Gauge("waiting", "Lists of which nothing is written yet.", **kept).set_function(waiting)
        Gauge("running", "Lists that are being written.", **kept).set_function(lambda: max(0, unanswered() - waiting()))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer. status: 499 if the client was gone."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def page(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)

"""What this process counts for Prometheus, and how it is written down.

Labels come of declarations and enumerations alone: no id, no secret and no
path as it was sent ever becomes one, so their number is bounded.
"""

import bisect
import time
from collections import Counter
from dataclasses import dataclass, field

from terrapod_shared.prometheus import family, line

#: Upper bounds in seconds; the last bucket has none.
BOUNDS = (0.005, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0)
_ENDS = {"next": "listener-poll", "heartbeat": "listener-heartbeat", "events": "stream"}


@dataclass
class _Latency:
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total_s: float = 0.0


class Measured:
    """Counts since the process began; touched by the event loop's thread alone."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.latencies: dict[str, _Latency] = {}
        self.in_flight = 0
        self.ended_runs: Counter[str] = Counter()
        #: Monotonic time of each job's last turn that ended well.
        self.turns: dict[str, float] = {}
        self._classes: dict[str, str] = {}

    def answered(self, path: str, status: int, took_s: float) -> None:
        """`path` as it is declared, empty for an unknown one; `status` is 0 where the client left before an answer."""
        kind = self._classes.get(path)
        if kind is None:
            kind = self._classes[path] = route_class(path)
        self.requests[kind, status] += 1
        latency = self.latencies.get(kind)
        if latency is None:
            latency = self.latencies[kind] = _Latency()
        latency.buckets[bisect.bisect_left(BOUNDS, took_s)] += 1
        latency.total_s += took_s

    def turned(self, job: str) -> None:
        self.turns[job] = time.monotonic()

    def lines(self) -> list[str]:
        """Requests and jobs of this process."""
        now = time.monotonic()
        requests = [({"class": kind, "status": str(status)}, n) for (kind, status), n in sorted(self.requests.items())]
        return [
            *family("terrapod_http_requests_total", "counter", "Requests that are over; status 0: the client left.", requests),
            *self._histogram("terrapod_http_request_duration_seconds", "From the request's head to the answer's end."),
            *family("terrapod_http_requests_in_flight", "gauge", "Requests under way.", [({}, self.in_flight)]),
            *family(
                "terrapod_runs_ended_total",
                "counter",
                "Runs that this process brought to their end.",
                [({"status": status}, n) for status, n in sorted(self.ended_runs.items())],
            ),
            *family(
                "terrapod_job_age_seconds",
                "gauge",
                "Since a periodic job's last turn that ended well.",
                [({"job": job}, now - at) for job, at in sorted(self.turns.items())],
            ),
        ]  # fmt: skip

    def _histogram(self, name: str, about: str) -> list[str]:
        lines = [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
        for kind, latency in sorted(self.latencies.items()):
            count = 0
            for bound, n in zip((*map(str, BOUNDS), "+Inf"), latency.buckets, strict=True):
                count += n
                lines.append(line(f"{name}_bucket", {"class": kind, "le": bound}, count))
            lines.append(line(f"{name}_sum", {"class": kind}, latency.total_s))
            lines.append(line(f"{name}_count", {"class": kind}, count))
        return lines


def route_class(path: str) -> str:
    """A word for a declared path: what stands first in it, and for calls that wait a word of their own."""
    parts = [part for part in path.split("/") if part and not part.startswith("{")]
    if not parts:
        return "unknown"
    if parts[-1] in _ENDS:
        return _ENDS[parts[-1]]
    if parts[:2] == ["api", "v2"]:
        parts = parts[2:]
    if parts[0] == "organizations" and len(parts) > 1:
        parts = parts[1:]
    return parts[0].strip(".")

"""Prometheus' text format 0.0.4, and what every process says of itself."""

import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float]
_BEGUN = time.time()


def family(name: str, kind: str, about: str, samples: Iterable[Sample]) -> Sequence[str]:
    """The lines of one metric."""
    return [
        f"# HELP {name} {about}",
        f"# TYPE {name} {kind}",
        *(line(name, labels, value) for labels, value in samples),
    ]


def line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def process() -> list[str]:
    """Memory, processor time and start of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    used = resource.getrusage(resource.RUSAGE_SELF)
    return [
        *family("process_resident_memory_bytes", "gauge", "Memory.", [({}, pages * resource.getpagesize())]),
        *family("process_cpu_seconds_total", "counter", "Processor time.", [({}, used.ru_utime + used.ru_stime)]),
        *family("process_start_time_seconds", "gauge", "When it began, in seconds of the epoch.", [({}, _BEGUN)]),
    ]

"""Figures as they are measured, and the document of them."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured number. `target` is its greatest good value, or its least where `floor`."""

    name: str
    value: float
    unit: str
    target: float | None = None
    floor: bool = False
    note: str = ""

    @property
    def missed(self) -> bool:
        if self.target is None:
            return False
        return self.value < self.target if self.floor else self.value > self.target

    @property
    def shown_target(self) -> str:
        if self.target is None:
            return ""
        return f"{'at least' if self.floor else 'under'} {_number(self.target)} {self.unit}".strip()

    @property
    def verdict(self) -> str:
        return "" if self.target is None else "**missed**" if self.missed else "met"


@dataclass
class Section:
    title: str
    text: str
    figures: list[Figure] = field(default_factory=list)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def line(figure: Figure) -> str:
    target = f"   ({figure.shown_target}: {figure.verdict.strip('*')})" if figure.target is not None else ""
    return f"  {figure.name:<58} {_number(figure.value):>8} {figure.unit}{target}"


def _busy(before: float) -> str:
    """What the load before the run says about its figures."""
    if before > 1:
        return "Others used the machine meanwhile: absolute times are worse than on a quiet host."
    return "The machine was quiet when it began."


def document(sections: Sequence[Section], *, quick: bool, took_s: float, load: tuple[float, float]) -> str:
    """Markdown. `load` is the machine's one-minute load before and after."""
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    kind = "the quick run (`--quick`: fewer samples)" if quick else "the full run"
    lines = [
        "# Performance",
        "",
        "Written by `make bench`; do not edit. Everything runs on loopback, and each figure that depends on the machine",
        "stands beside a baseline that was measured in the same run. Nothing is asserted: a slow machine fails no build.",
        "",
        (
            f"Measured {day} by {kind}, in {took_s:.0f} s: {os.cpu_count()} cores, {platform.system()} "
            f"{platform.machine()}, Python {platform.python_version()}, SQLite, files on disk."
        ),
        "",
        (
            f"Noise: the machine's load was {load[0]:.1f} before and {load[1]:.1f} after the run, on {os.cpu_count()} cores. "
            "Server, listener, terraform and the load's client share these cores with whatever else runs there. "
            + _busy(load[0])
        ),
    ]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text, ""]
        lines += ["| Figure | Measured | Target | |", "|---|---:|---|---|"]
        lines += [
            f"| {f.name}{f' ({f.note})' if f.note else ''} | {_number(f.value)} {f.unit} | {f.shown_target} | {f.verdict} |"
            for f in section.figures
        ]
    return "\n".join(lines) + "\n"

"""`make bench`: the project's own figures, printed and written to docs/performance.md.

Everything runs on loopback in a temporary folder, and nothing is left running.
No time is asserted: the machine may be busy. `--quick` takes fewer samples.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging" / "demo"))

import audit
import creating
import fleet
import following
import footprint
import isolating
import latency
import loss
import protocol
import reads
import remote
import report
import rights
from processes import Site

PARTS = (
    "remote",
    "latency",
    "reads",
    "creating",
    "rights",
    "audit",
    "memory",
    "protocol",
    "isolation",
    "fleet",
    "following",
    "loss",
)


def sections(folder: Path, only: list[str], listeners: list[int], *, quick: bool) -> Iterator[report.Section]:
    engine = remote.make_engine(folder / "engine")
    archive = latency.tar({"main.tf": b"# nothing\n"})
    remote.prepare_listener(folder / "site" / "listener", engine)
    with Site(folder / "site", tls=True, listener=True) as site:
        idle = footprint.idle_of(site)
        if "remote" in only:
            yield remote.measure(folder, site, engine, quick=quick)
        if "latency" in only:
            yield latency.measure(folder, site, quick=quick)
    others: dict[str, Callable[[], report.Section]] = {
        "reads": lambda: reads.measure(folder, archive, quick=quick),
        "creating": lambda: creating.measure(folder, archive, quick=quick),
        "rights": lambda: rights.measure(folder, quick=quick),
        "audit": lambda: audit.measure(folder, quick=quick),
        "memory": lambda: footprint.measure(folder, idle, quick=quick),
        "protocol": lambda: protocol.measure(folder, quick=quick),
        "isolation": lambda: isolating.measure(folder, quick=quick),
        "fleet": lambda: fleet.measure(folder, listeners, quick=quick),
        "following": lambda: following.measure(folder, quick=quick),
        "loss": lambda: loss.measure(folder),
    }
    yield from (measure() for name, measure in others.items() if name in only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples: under a minute")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts, and no document")
    parser.add_argument(
        "--listeners", nargs="+", type=int, choices=sorted(fleet.TARGETS), default=[1_000], help="sizes of the fleet"
    )
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a fleet's connections, at both ends
    begun, load = time.monotonic(), os.getloadavg()[0]
    found = []
    with tempfile.TemporaryDirectory(prefix="terrapod-bench-") as folder:
        for section in sections(Path(folder), options.only, options.listeners, quick=options.quick):
            print(section.title)
            for figure in section.figures:
                print(report.line(figure), flush=True)
            found.append(section)
    took = time.monotonic() - begun
    print(f"{took:.0f} s")
    if len(options.only) == len(PARTS):
        text = report.document(found, quick=options.quick, took_s=took, load=(load, os.getloadavg()[0]))
        (ROOT / "docs" / "performance.md").write_text(text)


if __name__ == "__main__":
    main()

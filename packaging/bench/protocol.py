"""HTTP/1.1 against HTTP/2 over TLS, by curl: which one to offer."""

import shutil
import statistics
import subprocess
import time
from pathlib import Path

from footprint import configuration_archive
from processes import MIB, Site
from report import Figure, Section

TEXT = (
    "The same transfers by curl over TLS, once with HTTP/1.1 and once with HTTP/2, by turns, medians: an archive up as a "
    "configuration and down again, and small reads one after another on one connection, as terraform does them. HTTP/2 "
    "is framed in Python, chunk by chunk, and gives nothing back to clients that ask one thing at a time: **the server "
    "offers HTTP/1.1 alone unless `http2` is set**. Every client that takes HTTP/2 takes HTTP/1.1."
)
READS = 300


def _seconds(site: Site, version: str, *options: str) -> float:
    argv = ["curl", f"--{version}", "--silent", "--show-error", "--fail", "--cacert", str(site.data / "ca.pem")]
    begun = time.monotonic()
    subprocess.run(
        [*argv, "--header", f"Authorization: Bearer {site.token}", *options], check=True, capture_output=True
    )
    return time.monotonic() - begun


def _once(site: Site, version: str, file: Path) -> tuple[float, float, float]:
    """MiB/s up, MiB/s down, reads a second."""
    workspace = site.workspace(f"bench-{version.replace('.', '')}-{time.monotonic_ns()}")
    path = f"workspaces/{workspace}/configuration-versions"
    made = site.post(path, "configuration-versions", {"auto-queue-runs": False})
    size = file.stat().st_size / MIB
    up = _seconds(site, version, "--upload-file", str(file), made["attributes"]["upload-url"])
    url = f"{site.url}/api/v2/configuration-versions/{made['id']}"
    down = _seconds(site, version, "--output", "/dev/null", f"{url}/download")
    reads = _seconds(site, version, "--output", "/dev/null", f"{url}?[1-{READS}]")
    return size / up, size / down, READS / reads


def measure(folder: Path, *, quick: bool) -> Section:
    section = Section("HTTP/1.1 or HTTP/2", TEXT)
    if not shutil.which("curl"):
        section.text = "Not measured: there is no curl."
        return section
    file = folder / "protocol.tar.gz"
    configuration_archive(file, (32 if quick else 128) * MIB)
    found: dict[str, list[tuple[float, float, float]]] = {"http1.1": [], "http2": []}
    with Site(folder / "protocol", tls=True, settings={"TERRAPOD_HTTP2": "true"}) as site:
        for _ in range(2 if quick else 5):
            for version, figures in found.items():
                figures.append(_once(site, version, file))
    for place, (name, unit) in enumerate((("up", "MiB/s"), ("down", "MiB/s"), ("small reads", "1/s"))):
        for version, figures in found.items():
            value = statistics.median(figure[place] for figure in figures)
            section.figures.append(Figure(f"{version.upper().replace('HTTP', 'HTTP/')}, {name}", value, unit))
    return section

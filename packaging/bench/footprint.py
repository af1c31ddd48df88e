"""Memory and starts."""

import hashlib
import io
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from processes import MIB, Site, Watched, children, memory
from report import Figure, Section

TEXT = (
    "Resident memory of the server's process: the peak (VmHWM, set back before) during the upload and the work after it, over "
    "what it was before. The configuration is a gzip tar of 255 MiB that does not compress; the state is a document of "
    "511 MiB whose serial and outputs the server reads. Idle is some seconds after the start, by TLS. Ready is from the "
    "start of the process until `/ready` answers 200, the first time (keys, authority, schema) and later times."
)
LINE = 64 << 10


def configuration_archive(path: Path, size: int) -> None:
    block = hashlib.shake_256(b"bench").digest(MIB)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for number in range(size // MIB):
            entry = tarfile.TarInfo(f"files/{number}")
            entry.size = MIB
            archive.addfile(entry, io.BytesIO(block))
        entry = tarfile.TarInfo("main.tf")
        archive.addfile(entry)


def _state(size: int) -> Iterator[bytes]:
    """The document, in pieces: outputs first, then resources with long attributes."""
    yield b'{"version":4,"terraform_version":"1.15.5","serial":1,"lineage":"bench","outputs":{"greeting":{"value":"hello","type":"string"}},"resources":['
    line = (
        b'{"mode":"managed","type":"terraform_data","name":"r%d","provider":"provider[\\"terraform.io/builtin/terraform\\"]",'
        b'"instances":[{"attributes":{"id":"%d","input":"' + b"x" * LINE + b'"}}]}'
    )
    for number in range(size // (LINE + 200)):
        yield (b"," if number else b"") + line % (number, number)
    yield b"]}"


def _upload_configuration(site: Site, file: Path) -> float:
    workspace = site.workspace("bench-configuration")
    made = site.post(
        f"workspaces/{workspace}/configuration-versions", "configuration-versions", {"auto-queue-runs": False}
    )
    watched = Watched(site.pid)
    with watched.during(), file.open("rb") as content:
        headers = {"Content-Length": str(file.stat().st_size)}
        site.api.put(made["attributes"]["upload-url"], content=content, headers=headers).raise_for_status()
        _until(site, f"configuration-versions/{made['id']}", "uploaded")
    return watched.growth


def _upload_state(site: Site, size: int) -> float:
    digest, length = hashlib.md5(usedforsecurity=False), 0
    for piece in _state(size):
        digest.update(piece)
        length += len(piece)
    workspace = site.workspace("bench-state")
    site.api.post(f"workspaces/{workspace}/actions/lock", json={}).raise_for_status()
    made = site.post(
        f"workspaces/{workspace}/state-versions", "state-versions",
        {"serial": 1, "lineage": "bench", "md5": digest.hexdigest()},
    )  # fmt: skip
    watched = Watched(site.pid)
    with watched.during():
        url = made["attributes"]["hosted-state-upload-url"]
        site.api.put(url, content=_state(size), headers={"Content-Length": str(length)}).raise_for_status()
        _until(site, f"state-versions/{made['id']}", "finalized")
    outputs = site.get(f"state-versions/{made['id']}/outputs")
    if [output["attributes"]["value"] for output in outputs] != ["hello"]:
        sys.exit(f"the outputs of the large state are {outputs}")
    return watched.growth


def _until(site: Site, path: str, status: str) -> None:
    until = time.monotonic() + 60
    while (found := site.get(path)["attributes"]["status"]) != status:
        if found == "errored" or time.monotonic() > until:
            sys.exit(f"{path} is {found}")
        time.sleep(0.05)


def measure(folder: Path, idle: dict[str, float], *, quick: bool) -> Section:
    section = Section("Memory and starts", TEXT)
    share = 8 if quick else 1
    starts = []
    for _ in range(2 if quick else 4):
        with Site(folder / "starts", tls=True) as site:
            starts.append(site.ready_s)
    file = folder / "configuration.tar.gz"
    configuration_archive(file, 255 * MIB // share)
    with Site(folder / "large") as site:
        small = site.workspace("warm")
        site.get(f"workspaces/{small}")
        configuration = _upload_configuration(site, file)
    with Site(folder / "large") as site:
        state = _upload_state(site, 511 * MIB // share)
    file.unlink()
    section.figures += [
        Figure(f"{256 // share} MiB of configuration: growth of the server", configuration, "MiB", 48),
        Figure(f"{512 // share} MiB of state: growth of the server", state, "MiB", 48),
        Figure("server, idle", idle["server"], "MiB", 80),
        Figure("listener, idle", idle["listener"], "MiB", 53),
        Figure("ready at the first start", starts[0], "s", 1.0),
        Figure("ready at later starts", statistics.median(starts[1:]), "s", 1.5),
    ]
    return section


def idle_of(site: Site) -> dict[str, float]:
    """Resident memory of the server and of its listener, which have nothing to do."""
    until = time.monotonic() + 20
    while not children(site.pid) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(3)
    return {"server": memory(site.pid), "listener": max(memory(child) for child in children(site.pid))}

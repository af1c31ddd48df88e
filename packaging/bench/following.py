"""A large log as terraform follows it, and what clients leave behind that give their connections up."""

import asyncio
import hashlib
import http.client
import os
import socket
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

from latency import ENGINE, tar
from processes import MIB, Site, memory
from report import Figure, Section

from terrapod_listener.link.client import Server as Listener
from terrapod_listener.link.join import join
from terrapod_shared import wire

CHUNK = 64 << 10
TEXT = (
    "A log of 50 MB (quick: 5) at a server over its own TLS, read as the terraform CLI reads it: 64 KiB at a time, each over a "
    "connection of its own that is given up afterwards. Then connections that a client gives up after the handshake, after a "
    "request, and in the middle of the handshake, 10,000 together (quick: 1,000). Growth is the server's resident memory "
    "three seconds later, over what it was before."
)


async def _write_log(site: Site, home: Path, size: int) -> str:
    """The id of a plan whose log has that size; a listener's real calls."""
    pool = site.get("organizations/default/agent-pools?q=default")[0]["id"]
    token = site.post(f"agent-pools/{pool}/authentication-tokens", "authentication-tokens", {"description": "bench"})
    identity = await join(home, site.url, token["attributes"]["token"], "following", site.data / "ca.pem")
    listener = Listener(identity)
    local = [wire.LocalEngine(tool="terraform", version=ENGINE, sha256="0" * 64)]
    await listener.beat(wire.Beat(free_slots=1, capacity=1, local_engines=local))
    workspace = site.workspace("following", **{"terraform-version": ENGINE})
    configuration = site.configuration(workspace, tar({"main.tf": b"# nothing\n"}))
    site.post(
        "runs", "runs", {"plan-only": True},
        workspace=("workspaces", workspace), configuration_version=("configuration-versions", configuration),
    )  # fmt: skip
    work = await listener.next_work(20)
    assert work is not None  # noqa: S101
    run, lease = work.run_id, work.lease.number
    await listener.report(run, wire.Report(phase="plan", status="planning"), lease)
    line = b"aws_instance.one[0]: Refreshing state... [id=i-0123456789abcdef0]\n"
    chunk = line * (MIB // len(line))
    at = 0
    while at < size:
        await listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset={at}", body=chunk, lease=lease)
        at += len(chunk)
    report = wire.Report(phase="plan", status="errored", error_message="measured", log_bytes=at)
    await listener.report(run, report, lease)
    shown = site.get(f"runs/{run}")
    return str(shown["relationships"]["plan"]["data"]["id"])


def _follow(url: str, context: ssl.SSLContext) -> tuple[int, str]:
    """Reads a log to its end: bytes, and their digest."""
    parts, offset, digest = urlsplit(url), 0, hashlib.sha256()
    while True:
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context, timeout=60)
        connection.request("GET", f"{parts.path}?limit={CHUNK}&offset={offset}")
        chunk = connection.getresponse().read()
        connection.close()
        offset += len(chunk)
        digest.update(chunk)
        if chunk.endswith(b"\x03") or not chunk:
            return offset, digest.hexdigest()


def _give_up(port: int, context: ssl.SSLContext, number: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as plain:
        if number % 3 == 0:
            plain.sendall(b"\x16\x03\x01")
            return
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            if number % 3 == 1:
                client.sendall(b"GET /api/v2/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
                client.recv(1)


def measure(folder: Path, *, quick: bool) -> Section:
    section = Section("Following a log", TEXT)
    size, times = (5 if quick else 50) * 1_000_000, 1_000 if quick else 10_000
    with Site(folder / "following", tls=True) as site:
        plan = asyncio.run(_write_log(site, folder / "following-listener", size))
        url = site.get(f"plans/{plan}")["attributes"]["log-read-url"]
        context = ssl.create_default_context(cafile=str(site.data / "ca.pem"))
        for number in range(300):  # what is loaded and kept once
            _give_up(site.port, context, number)
        time.sleep(3)
        before, begun = memory(site.pid), time.monotonic()
        read, _ = _follow(url, context)
        took = time.monotonic() - begun
        time.sleep(3)
        section.figures += [
            Figure("growth by following the log", memory(site.pid) - before, "MiB", 16, note=f"{read} bytes"),
            Figure("a connection and its 64 KiB", took / (read / CHUNK) * 1e3, "ms"),
        ]
        before = memory(site.pid)
        for number in range(times):
            _give_up(site.port, context, number)
        time.sleep(3)
        open_files = len(os.listdir(f"/proc/{site.pid}/fd"))  # noqa: PTH208
        section.figures += [
            Figure(f"growth by {times:,} connections given up", memory(site.pid) - before, "MiB", 16),
            Figure("files open afterwards", open_files, ""),
        ]
    return section

"""What a user uploads who wants the server's harm: states, archives, and configurations whose plans and lock files hurt.

Each is answered well, or refused in the API's words; the server lives on, and gives its memory back.
"""

import base64
import functools
import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import httpx
import terraform_shim

from chaos.world import World
from kit.serving import tar

_MIB = 1 << 20
#: How much more the server may use after all of it: rooms of the allocator, and what is kept for readers.
_MORE_MIB = 256


def _state(inside: bytes) -> bytes:
    """A state with this value of an output."""
    head = b'{"version":4,"terraform_version":"1.15.5","serial":1,"lineage":"hostile","outputs":{"o":{"type":"string","value":'
    return head + inside + b'}},"resources":[]}'


STATES = (
    _state(b"9" * 5_000), _state(b"-1e" + b"9" * 5_000), _state(b"[" * 30_000), _state(b"[" * 30_000 + b"]" * 30_000),
    _state(b'{"a":' * 20_000 + b"1" + b"}" * 20_000), _state(b'{"' + b"n" * _MIB + b'":1}'),
    _state(b"{" + b",".join(b'"k%d":%d' % (at, at) for at in range(50_000)) + b"}"),
    _state(b'"\xff\xfe"'), _state(b'"\\ud800"'), _state(b'"x"')[:-3], _state(b"NaN"), b"[" * 30_000, b"", b"\x00" * 4_096,
    _state(b'"x"').decode().encode("utf-16"),
)  # fmt: skip


def _archive(*entries: tarfile.TarInfo, files: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
        for entry in entries:
            out.addfile(entry)
        for name, content in (files or {}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _link(name: str, target: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = tarfile.SYMTYPE, target
    return made


@functools.cache
def archives() -> tuple[bytes, ...]:
    """Made when they are first needed: that takes half a second, and who collects tests needs none."""
    return (
        _archive(_link("a/" * 100_000 + "l", "x")), _archive(_link("l", "a/" * 100_000)), _archive(_link("l", "../../etc")),
        _archive(*(_link(f"l{at}", "x" * 4_000) for at in range(2_000))), _archive(files={"/etc/passwd": b"x"}),
        gzip.compress(bytes(64 * _MIB)), tar({"main.tf": b""})[:-9], b"\x1f\x8b" + b"\xff" * 4_096, b"", b"PK\x03\x04",
    )  # fmt: skip


#: Configurations whose runs end, well or not: the file's name and what is in it.
CONFIGURATIONS: tuple[dict[str, bytes], ...] = (
    {"main.tf": b'resource "terraform_data" "a" {}\n', ".terraform.lock.hcl": b'provider "x" {\n' * 65_536},
    {
        "main.tf": b"""output "digits" { value = jsondecode("1e5000") }
output "wide" { value = [for at in range(1000) : { (tostring(at)) = at }] }
output "name" { value = { (join("", [for _ in range(1000) : join("", [for _ in range(500) : "x"])])) = 1 } }
"""
    },
)


async def upload(world: World, number: int) -> None:
    """All of it into a workspace of its own; what went wrong is added to `world.wrong`."""
    assert world.server.process
    pid, before = world.server.pid, _resident_mib(world.server.pid)
    attributes: dict[str, Any] = {"name": f"hostile-{number}", "terraform-version": terraform_shim.VERSION}
    path = "organizations/default/workspaces"
    workspace = str((await world.ask("POST", path, json={"data": {"attributes": attributes}}))["id"])
    await _states(world, workspace)
    for archive in archives():
        await _archived(world, workspace, archive)
    for files in CONFIGURATIONS:
        await _run(world, workspace, tar(files))
    await world.ready()
    more = _resident_mib(pid) - before
    if more > _MORE_MIB:
        world.wrong.append(f"hostile documents took {more} MiB of the server for good")


async def _states(world: World, workspace: str) -> None:
    await world.ask("POST", f"workspaces/{workspace}/actions/lock", json={})
    for place, raw in enumerate(STATES):
        announced = {"serial": place + 1, "lineage": "hostile", "md5": hashlib.md5(raw).hexdigest()}
        inline = {"state": base64.b64encode(raw).decode()} if place % 2 else {}
        document = {"data": {"attributes": announced | inline}}
        made = await _sent(world, "POST", f"workspaces/{workspace}/state-versions", json=document)
        if made and not inline:
            await _sent(world, "PUT", made["attributes"]["hosted-state-upload-url"], content=raw)
    await world.ask("POST", f"workspaces/{workspace}/actions/unlock", json={})


async def _archived(world: World, workspace: str, archive: bytes) -> str:
    """The id of the configuration version."""
    document = {"data": {"attributes": {"auto-queue-runs": False}}}
    made = await world.ask("POST", f"workspaces/{workspace}/configuration-versions", json=document)
    await _sent(world, "PUT", made["attributes"]["upload-url"], content=archive)
    return str(made["id"])


async def _run(world: World, workspace: str, archive: bytes) -> None:
    version = await _archived(world, workspace, archive)
    related = {
        "workspace": {"data": {"type": "workspaces", "id": workspace}},
        "configuration-version": {"data": {"type": "configuration-versions", "id": version}},
    }
    document = {"data": {"attributes": {"plan-only": True, "message": version}, "relationships": related}}
    made = await _sent(world, "POST", "runs", json=document)
    if made:
        world.hostile.append(made["id"])


async def _sent(world: World, method: str, path: str, **content: Any) -> Any:
    """The answer's data, or None where it was refused. A server's failure is written down."""
    what = f"a hostile {method} {path.partition('?')[0][-40:]}"
    try:
        answer = await world.api.request(method, path, **content)
    except httpx.TransportError as error:
        world.wrong.append(f"{what} was not answered: {error!r}")
        return None
    if answer.status_code >= 500:
        world.wrong.append(f"{what} was answered {answer.status_code}: {answer.text[:200]}")
    if answer.status_code >= 300 or not answer.content:
        return None
    return answer.json().get("data")


def _resident_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) // 1024

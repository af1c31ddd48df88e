"""Resolving versions, and fetching each engine once."""

import asyncio
import hashlib
import logging
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import aiofiles
from tortoise.exceptions import IntegrityError

from terrapod_server.config.settings import Engines
from terrapod_server.engines import advisories, checksums, releases, rules
from terrapod_server.engines.model import EngineFile
from terrapod_server.kit.db import database
from terrapod_server.kit.services import Services
from terrapod_server.store import keys
from terrapod_shared import programs, versions
from terrapod_shared.errors import BadGateway, Invalid, NotFound, Unreachable

log = logging.getLogger(__name__)
#: One fetch at a time of each engine.
_fetching: dict[tuple[str, ...], asyncio.Lock] = {}
#: Engines that a site has listed and could not give, and why; a run does not ask for them again for a while.
_away: dict[tuple[str, str], tuple[float, str]] = {}
_AWAY_S = 60.0


@dataclass(frozen=True)
class Settled:
    """What a wanted version means. `version` is empty where that is not known yet.

    `is_local`: no release site can give it now, so that only a listener which
    has it can run it; `why`: what the site said, where no listener is known to
    have it.
    """

    version: str
    is_local: bool
    why: str = ""


async def settle(
    services: Services,
    tool: str,
    wanted: str,
    local: Iterable[tuple[str, str]],
    *,
    may_come: bool,
    patience_s: float | None = None,
) -> Settled:
    """The version for a run, of those that the cache, the release site or a listener (`local`) has.

    `may_come`: whether a listener that is not there may have another one.
    `patience_s`: how long a site that does not answer is waited for. Raises
    Invalid for what is no version, for one with a known hole, and for one that
    nobody has though everybody could be asked.
    """
    engines = services.config.engines
    _check_sensible(tool, wanted)
    named = versions.named(wanted)
    if why := _why_not(engines, tool, named):
        raise _invalid(why)
    at_listeners = {version for name, version in local if name == tool}
    cached = await _cached(tool)
    if named and named in cached:
        return Settled(named, is_local=False)
    released, why = await _asked(engines, tool, patience_s)
    known = [*released, *cached, *at_listeners]
    found = versions.choose(wanted, [each for each in known if not _why_not(engines, tool, each)])
    if found is not None:
        away = _why_away(tool, found)
        is_local = found not in cached and (found not in released or bool(away))
        return Settled(found, is_local, (away or why) if is_local and found not in at_listeners else "")
    if newest := versions.choose(wanted, known):
        why = _why_not(engines, tool, newest)
    message = f"there is no {tool} that fits {wanted[:40]!r}{f': {why}' if why else ''}"
    if released and (newest or not may_come):
        raise _invalid(message if newest else f"{message}: {rules.ways_out(tool, named, programs.here())}")
    return Settled(named, is_local=True, why=why or message)


async def resolve(services: Services, tool: str, wanted: str) -> str:
    """The exact version that `wanted` means now, of those that the cache or the release site has. Raises Invalid."""
    engines = services.config.engines
    _check_sensible(tool, wanted)
    if why := _why_not(engines, tool, versions.named(wanted)):
        raise _invalid(why)
    cached = await _cached(tool)
    if (named := versions.named(wanted)) and named in cached:
        return named
    released, why = await _asked(engines, tool, None)
    known = [*released, *cached]
    found = versions.choose(wanted, [each for each in known if not _why_not(engines, tool, each)])
    if found is None:
        if newest := versions.choose(wanted, known):
            why = _why_not(engines, tool, newest)
        raise _invalid(f"there is no {tool} that fits {wanted[:40]!r}{f': {why}' if why else ''}")
    return found


def _invalid(message: str) -> Invalid:
    return Invalid(message, pointer="/data/attributes/terraform-version")


def _check_sensible(tool: str, wanted: str) -> None:
    if not versions.is_sensible(wanted):
        raise _invalid(f"{wanted[:40]!r} is no version of {tool}")


async def _cached(tool: str) -> set[str]:
    return {row[0] for row in await database.rows("SELECT DISTINCT version FROM engine_file WHERE tool = $1", [tool])}


async def _asked(engines: Engines, tool: str, patience_s: float | None) -> tuple[list[str], str]:
    """The versions that the site has released, or why it could not be asked."""
    try:
        return await releases.listed(engines, tool, patience_s), ""
    except BadGateway as error:
        return [], error.detail


def _why_away(tool: str, version: str) -> str:
    """Why a site that lists a version could not give it lately; empty where nobody knows of that."""
    at, why = _away.get((tool, version), (-_AWAY_S, ""))
    return why if time.monotonic() - at < _AWAY_S else ""


def _why_not(engines: Engines, tool: str, version: str) -> str:
    return advisories.why_not(tool, version, engines.terraform_floor if tool == "terraform" else engines.tofu_floor)


def check_floor(services: Services, tool: str, version: str) -> None:
    """Raises Invalid for a version with a known hole, wherever its program comes from."""
    if why := _why_not(services.config.engines, tool, version):
        raise Invalid(why)


def check_names(tool: str, version: str, system: str, arch: str) -> None:
    """Raises Invalid for what could be no engine."""
    for name, value, known in (
        ("tool", tool, rules.TOOLS),
        ("os", system, rules.SYSTEMS),
        ("arch", arch, rules.ARCHES),
    ):
        if value not in known:
            message = f"{name} must be one of {', '.join(known)}, not {value[:40]!r}"
            raise Invalid(message)
    if not versions.is_exact(version):
        message = f"{version[:40]!r} is no exact version"
        raise Invalid(message)


async def ensure(services: Services, tool: str, version: str, system: str, arch: str) -> EngineFile:
    """The engine in the cache; fetched and verified first where it is not there.

    However many ask at once, one fetches. Raises Invalid for a version with a
    known hole, NotFound where the publisher
    has no such release, Unreachable where the site does not answer, BadGateway
    where it does not sign its checksums, or its file does not have the one that
    it lists.
    """
    check_names(tool, version, system, arch)
    check_floor(services, tool, version)
    engines = services.config.engines
    row = await EngineFile.get_or_none(tool=tool, version=version, os=system, arch=arch)
    if row is not None and not _is_doubtful(engines, row):
        return row
    lock = _fetching.setdefault((tool, version, system, arch), asyncio.Lock())
    try:
        async with lock:
            row = await EngineFile.get_or_none(tool=tool, version=version, os=system, arch=arch)
            if row is not None and not _is_doubtful(engines, row):
                return row
            row = await _fetch(services, tool, version, system, arch, row)
            _away.pop((tool, version), None)
            return row
    except Unreachable as error:
        _away[tool, version] = (time.monotonic(), error.detail)
        raise
    finally:
        _fetching.pop((tool, version, system, arch), None)


def _is_doubtful(engines: Engines, row: EngineFile) -> bool:
    """Whether it came from a site before its signature had to be good; what an owner imported is the owner's word."""
    return engines.require_signatures and row.source == "fetched" and not row.signed_by


async def _fetch(
    services: Services, tool: str, version: str, system: str, arch: str, old: EngineFile | None
) -> EngineFile:
    """`old`: what is here of it; kept where the publisher vouches for it after all."""
    engines = services.config.engines
    base = f"{engines.terraform_url}/{version}" if tool == "terraform" else f"{engines.tofu_url}/v{version}"
    file = rules.filename(tool, version, system, arch)
    vouched = await checksums.fetched(engines, base, tool, version, file)
    if old is not None and old.sha256 == vouched.sha256:
        old.signed_by = vouched.signed_by
        await old.save(update_fields=["signed_by"])
        return old
    if old is not None:
        log.warning("%s %s in the cache has not the SHA-256 that its publisher signs: fetched again", tool, version)
        await old.delete()
    chunks = checksums.site().download(engines, f"{base}/{file}")
    return await _keep(services, (tool, version, system, arch), vouched, chunks, "fetched")


async def _keep(
    services: Services,
    name: tuple[str, str, str, str],
    vouched: checksums.Vouched,
    chunks: AsyncIterator[bytes],
    source: str,
) -> EngineFile:
    """Stores a file that has the digest that is vouched for; a wrong one leaves nothing."""
    wanted = vouched.sha256
    tool, version, system, arch = name
    key = keys.engine(tool, version, system, arch)

    async def verified() -> AsyncIterator[bytes]:
        digest = hashlib.sha256()
        async for chunk in chunks:
            await asyncio.to_thread(digest.update, chunk)
            yield chunk
        if digest.hexdigest() != wanted:
            message = f"{tool} {version} has the SHA-256 {digest.hexdigest()}, and its publisher lists {wanted}"
            raise BadGateway(message)

    stored = await services.store.put(key, verified())
    try:
        return await EngineFile.create(
            tool=tool, version=version, os=system, arch=arch, sha256=wanted, size=stored.size, source=source,
            signed_by=vouched.signed_by,
        )  # fmt: skip
    except IntegrityError:  # another server process was quicker with the same file
        return await EngineFile.get(tool=tool, version=version, os=system, arch=arch)


async def import_zip(
    services: Services,
    path: Path,
    *,
    sums: Path | None = None,
    signature: Path | None = None,
    unsigned: bool = False,
) -> EngineFile:
    """Takes a release's zip from disk; no site is asked.

    `sums` and `signature` are the publisher's files, by default those beside
    the zip; `unsigned`: whoever imports it vouches for it, which its row says.
    Raises Invalid.
    """
    name = rules.from_filename(path.name)
    if name is None:
        message = f"{path.name} is not named as a release, such as terraform_1.15.5_linux_amd64.zip"
        raise Invalid(message)
    check_floor(services, name[0], name[1])
    digest = await asyncio.to_thread(_inspect, path, name)
    vouched = checksums.Vouched(digest, "")
    if not unsigned:
        try:
            vouched = await checksums.on_disk(
                services.config.engines, path, name[0], name[1], sums=sums, signature=signature
            )
        except NotFound as error:
            raise Invalid(error.detail) from None
    if vouched.sha256 != digest:
        message = f"{path.name} has the SHA-256 {digest}, and its publisher lists {vouched.sha256}"
        raise Invalid(message)
    old = await EngineFile.get_or_none(tool=name[0], version=name[1], os=name[2], arch=name[3])
    if old is not None:
        if old.sha256 != digest:
            message = f"{name[0]} {name[1]} is in the cache with another SHA-256, {old.sha256}; purge it first"
            raise Invalid(message)
        if vouched.signed_by or not old.signed_by:
            old.signed_by, old.source = vouched.signed_by, "unsigned" if unsigned else "imported"
            await old.save(update_fields=["signed_by", "source"])
        return old
    if unsigned:
        log.warning("%s is imported without a signature", path.name)
    return await _keep(services, name, vouched, _read(path), "unsigned" if unsigned else "imported")


def _inspect(path: Path, name: tuple[str, str, str, str]) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            programs.program_in(archive, name[0], (name[2], name[3]))
            broken = archive.testzip()
    except programs.BadRelease as error:
        message = f"{path.name}: {error}"
        raise Invalid(message) from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        message = f"{path.name} is no zip archive: {error}"
        raise Invalid(message) from None
    if broken:
        message = f"{path.name} is damaged at {broken}"
        raise Invalid(message)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _read(path: Path) -> AsyncIterator[bytes]:
    async with aiofiles.open(path, "rb") as file:
        while chunk := await file.read(256 << 10):
            yield chunk


async def purge(services: Services, tool: str, version: str) -> int:
    """Removes a version from the cache; how many files went."""
    rows = await EngineFile.filter(tool=tool, version=version)
    for row in rows:
        await row.delete()
        await services.store.delete(keys.engine(row.tool, row.version, row.os, row.arch))
    return len(rows)


def key_of(row: EngineFile) -> str:
    return keys.engine(row.tool, row.version, row.os, row.arch)

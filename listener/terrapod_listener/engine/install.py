"""Engines on this host: fetched from the server, checked at every use, unpacked once."""

import asyncio
import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from terrapod_listener.config import LocalEngine
from terrapod_listener.engine.digests import Digests
from terrapod_listener.link.client import Server
from terrapod_shared import host_engines, programs, wire
from terrapod_shared.errors import Conflict

log = logging.getLogger(__name__)


async def announced(
    digests: Digests,
    engines: Sequence[LocalEngine],
    named: Sequence[Path] = (),
    is_reachable: Callable[[Path], bool] = Path.exists,
) -> dict[tuple[str, str], tuple[wire.LocalEngine, LocalEngine]]:
    """The host's own engines, with what the server is told of them; what cannot be one is said in the log and left out.

    `named` are programs that are asked for their version; those that the settings list win. `is_reachable` says whether
    a run can start a program.
    """
    found: dict[tuple[str, str], tuple[wire.LocalEngine, LocalEngine]] = {}
    asked = [asyncio.to_thread(_listed, each) for each in engines] + [asyncio.to_thread(_named, each) for each in named]
    for engine in await asyncio.gather(*asked):
        if engine is None or (engine.tool, engine.version) in found:
            continue
        if not await asyncio.to_thread(is_reachable, Path(engine.path)):
            log.error(
                "%s is not offered: the users of runs may not start it (chmod o+x, for it and its folders)", engine.path
            )
            continue
        digest = await asyncio.to_thread(digests.of_engine, engine)
        told = wire.LocalEngine(tool=engine.tool, version=engine.version, sha256=digest)
        found[engine.tool, engine.version] = (told, engine)
    return found


def _named(path: Path) -> LocalEngine | None:
    """A program that says itself what it is. Blocks."""
    try:
        said = host_engines.ask(path)
    except host_engines.Unfit as why:
        log.error("%s is not offered: it %s", path, why)  # noqa: TRY400  the reason is all there is
        return None
    return LocalEngine(tool=said.tool, version=said.version, path=str(said.path))


def _listed(engine: LocalEngine) -> LocalEngine | None:
    """An engine of the settings, unless its program says that it is another one. Blocks."""
    try:
        said = host_engines.ask(Path(engine.path))
    except host_engines.Unfit:  # a script of the owner's; what it runs is the owner's word
        return engine
    if (said.tool, said.version) == (engine.tool, engine.version):
        return engine
    log.error(
        "%s is not offered: the settings say %s %s, and it says %s %s",
        engine.path, engine.tool, engine.version, said.tool, said.version,
    )  # fmt: skip
    return None


class Engines:
    """Binaries by the digest that the server vouches for."""

    def __init__(
        self,
        folder: Path,
        server: Server,
        local: dict[tuple[str, str], tuple[wire.LocalEngine, LocalEngine]],
        digests: Digests,
    ) -> None:
        self._folder, self._server, self._local, self._digests = folder, server, local, digests
        self._unpacked: dict[Path, str] = {}  #: digests of the programs that this process took out of checked zips
        self._locks: dict[str, asyncio.Lock] = {}

    async def path(self, work: wire.Work) -> Path:
        """The program to run. Raises Conflict where its digest is not the one in the work."""
        engine = work.engine
        if engine.local:
            known = self._local.get((engine.tool, engine.version))
            digest = await asyncio.to_thread(self._digests.of_engine, known[1]) if known else ""
            if known is None or digest != engine.sha256:
                raise Conflict(
                    f"this host's own {engine.tool} {engine.version} is not there, or was changed since the listener "
                    "announced it: restart the listener"
                )
            return Path(known[1].path)
        async with self._locks.setdefault(engine.sha256, asyncio.Lock()):
            return await self._fetched(work)

    def files(self, work: wire.Work, binary: Path) -> list[Path]:
        """What a run must see of an engine to start it."""
        known = self._local.get((work.engine.tool, work.engine.version))
        if work.engine.local and known:
            return [binary, *(Path(file) for file in known[1].files)]
        return [binary.parent]

    def recheck(self, work: wire.Work) -> None:
        """Looks once more, right before the program is started. To be called in a thread.

        Raises Conflict where it is no longer what `path` had checked.
        """
        engine = work.engine
        if engine.local:
            known = self._local.get((engine.tool, engine.version))
            is_same = known is not None and self._digests.of_engine(known[1]) == engine.sha256
        else:
            binary = self._folder / engine.sha256 / engine.tool
            is_same = self._is_unpacked(binary)
        if not is_same:
            raise Conflict(
                f"{engine.tool} {engine.version} was changed on this host after it had been checked: it is not run"
            )

    async def _fetched(self, work: wire.Work) -> Path:
        engine = work.engine
        place = self._folder / engine.sha256
        archive, binary = place / "release.zip", place / engine.tool
        if not archive.exists() or await asyncio.to_thread(self._digests.of_file, archive) != engine.sha256:
            await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True, mode=0o700)
            await self._server.download(
                work.links["engine"].path, archive, lease=work.lease.number, sha256=engine.sha256
            )
            binary.unlink(missing_ok=True)
        await asyncio.to_thread(self._unpack, archive, binary)
        place.chmod(0o755)  # a run may be another user; the home keeps all others out
        return binary

    def _is_unpacked(self, binary: Path) -> bool:
        """Whether what is there is what this process took out of a checked zip."""
        return binary.is_file() and self._unpacked.get(binary) == self._digests.of_file(binary)

    def _unpack(self, archive: Path, binary: Path) -> None:
        """Takes the program out of the checked zip where that is not done yet. Raises Conflict."""
        if self._is_unpacked(binary):
            return
        try:
            with zipfile.ZipFile(archive) as release:
                entry = programs.program_in(release, binary.name, programs.here())
                self._unpacked[binary] = _write(release, entry, binary)
        except (programs.BadRelease, zlib.error, EOFError, zipfile.BadZipFile) as error:
            raise Conflict(f"the release's archive is not used: {error}") from None


def _write(release: zipfile.ZipFile, entry: zipfile.ZipInfo, binary: Path) -> str:
    """SHA-256 of what was written, not of what lies there later."""
    digest = hashlib.sha256()
    part = binary.with_name(f".{binary.name}.part")
    part.unlink(missing_ok=True)
    with release.open(entry) as inside, part.open("xb") as file:
        while chunk := inside.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())  # without it a power cut leaves a program with holes
    part.chmod(0o755)
    part.replace(binary)
    return digest.hexdigest()

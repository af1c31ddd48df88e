"""Keeps entries without holding an answer up: a queue in memory, batches into the database, a file if that refuses.

What is kept when: an entry waits in memory for at most a quarter of a second
or so, then it is in the database, or, where that refuses or does not answer,
in the spool, from which it goes into the database later, by this process or
the next one. A clean stop leaves nothing in memory. A process that is killed
loses what came in within that quarter of a second. Where neither database nor
disk takes entries and memory has as many as it may, requests that would be
recorded are refused until there is room.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
from starlette.requests import Request

from terrapod_server.audit import spool
from terrapod_server.audit.chain_heads import Head, Heads, Keys, Ledger
from terrapod_server.audit.insert import insert
from terrapod_server.audit.rules import (
    NOTHING,
    Chain,
    Entry,
    Refusals,
    is_recorded,
    is_refusal,
    printable,
    shape,
    shown,
)
from terrapod_server.config.settings import Config
from terrapod_server.kit.api.declare import Endpoint, Raw, Route
from terrapod_server.kit.caller import ANONYMOUS, Deed, Principal
from terrapod_server.kit.http.address import Addresses
from terrapod_server.kit.services import Services
from terrapod_server.store.cipher import KeyRing
from terrapod_shared import clock, ids
from terrapod_shared.errors import Unavailable

log = logging.getLogger("terrapod.audit")

FLUSH_S = 0.25
CHECKPOINT_S = 60.0
#: So many entries may wait in memory.
MOST = 50_000
_BATCH = 1000
_INSERT_S = 10.0
_RETRY_S = 2.0


class Writer:
    """The chain of this process. `start` and `stop` are awaited while the database is open."""

    def __init__(self, folder: Path, keys: Keys, addresses: Addresses, keep: timedelta | None) -> None:
        self.folder, self.ledger, self._keep = folder, Ledger(keys, folder), keep
        self._addresses = addresses
        self._chain = Chain(ids.tail(), keys.macs[0])
        self._queue: deque[Entry] = deque()
        self._refusals = Refusals()
        self._sealed: list[Entry] = []  #: what neither database nor disk has taken yet
        self._spool = spool.Spool(folder / f"{self._chain.name}.spool")
        self._insert: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        #: The last entry that is in the database, with all before it; and the last that a checkpoint names.
        self._stored = self._checked = (0, NOTHING)
        #: Ends of chains of processes that are gone, whose spools this one emptied.
        self._adopted: dict[str, tuple[int, str]] = {}
        self._has_adopted = False
        self._check_at = 0.0
        self._woken, self._stopping = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def made(cls, config: Config, keyring: KeyRing, addresses: Addresses) -> "Writer":
        """The writer that the settings ask for."""
        days = config.audit.retention_days
        return cls(config.folder / "audit", Keys.of(keyring), addresses, timedelta(days=days) if days else None)

    @staticmethod
    def of(services: Services) -> "Writer | None":
        """The writer of this server; None where the audit log is switched off."""
        return services.recorder if isinstance(services.recorder, Writer) else None

    @property
    def chain(self) -> str:
        return self._chain.name

    @property
    def backlog(self) -> int:
        """How many entries are in memory alone."""
        return len(self._queue) + len(self._sealed)

    @property
    def is_spooling(self) -> bool:
        """Whether entries wait in the file, since the database takes none."""
        return not self._spool.is_empty

    def record(self, request: Request, endpoint: Route | None, status: int, request_id: str, took_s: float) -> None:
        """Keeps an entry of the request, if it is one to be recorded. Never waits and never raises for its sake."""
        if endpoint is None:  # nothing of the API was reached
            return
        scope = request.scope
        if not is_recorded(endpoint.recorded, scope["method"], status, is_admitted="is_admitted" in scope):
            return
        entry = self._entry(request, endpoint, status, request_id, took_s)
        self._queue += self._refusals.take(entry, time.monotonic()) if is_refusal(entry) else [entry]
        if self._queue:
            self._woken.set()

    def note(self, deed: Deed) -> None:
        """Keeps an entry of a change that no request asked for. Never waits."""
        now = time.time_ns()
        entry = Entry(
            id=ids.make_at("ae", now // 1_000_000), chain="", number=0, at=now // 1000,
            actor_kind=deed.actor_kind, actor_id="", actor=printable(deed.actor, 254), token_id="", address="",
            action=deed.method, path=deed.path, resource_type=deed.resource_type, resource_id=shown(deed.resource_id),
            workspace_id="", status=deed.status, request_id="", user_agent=printable(deed.program), duration_us=0,
            repeats=1, mac="",
        )  # fmt: skip
        self._queue.append(entry)
        self._woken.set()

    def check(self) -> None:
        """Raises Unavailable where no further entry could be kept."""
        if len(self._queue) + len(self._sealed) >= MOST:
            message = "the audit log cannot be written, and nothing is done that it would not record"
            raise Unavailable(message)

    def _entry(self, request: Request, endpoint: Route, status: int, request_id: str, took_s: float) -> Entry:
        scope = request.scope
        principal: Principal = scope.get("principal", ANONYMOUS)
        path: dict[str, str] = scope["path_params"]
        of = endpoint.resource.type if isinstance(endpoint, Endpoint) and endpoint.resource else ""
        kind, parameter = shape(endpoint.path, of)
        is_secret = isinstance(endpoint, Raw) and endpoint.quiet
        identity = "" if is_secret else shown(path.get(parameter, ""))
        workspace = shown(path.get("workspace", "")) or principal.workspace_id
        if about := scope.get("about"):
            kind, identity, workspace = about[0], about[1], about[2] or workspace
        if not workspace and kind == "workspaces":
            workspace = identity
        now = time.time_ns()
        return Entry(
            id=ids.make_at("ae", now // 1_000_000), chain="", number=0, at=now // 1000,
            actor_kind=principal.kind, actor_id=principal.id, actor=printable(principal.name, 254),
            token_id=principal.token_id or principal.session_id, address=self._addresses.of(request)[:64],
            action=scope["method"], path=endpoint.path, resource_type=kind, resource_id=identity[:128],
            workspace_id=workspace if ids.is_valid(workspace, "ws") else "",
            status=status, request_id=request_id, user_agent=printable(request.headers.get("user-agent", "")),
            duration_us=int(took_s * 1e6), repeats=1, mac="",
        )  # fmt: skip

    async def start(self) -> None:
        if self._keep:
            before = clock.stamp(clock.now() - self._keep)
            await asyncio.to_thread(self.ledger.trim, before)
        self._task = asyncio.create_task(self._work(), name="audit")

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._stopping.is_set()

    async def stop(self) -> None:
        """Keeps all that is in memory, and writes a last checkpoint."""
        if self._task is None:
            return
        self._stopping.set()
        self._woken.set()
        await self._task
        if self._sealed:
            log.error("%s entries of the audit log are lost: neither database nor disk took them", len(self._sealed))
        await asyncio.to_thread(self._spool.close)

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._pause_s())
            self._woken.clear()
            with contextlib.suppress(TimeoutError):  # others come meanwhile, and go with it
                await asyncio.wait_for(self._stopping.wait(), FLUSH_S)
            is_last = self._stopping.is_set()
            try:
                await self._turn(is_last=is_last)
            except Exception:
                log.exception("the audit log's writer failed, and goes on")
            if is_last:
                return

    def _pause_s(self) -> float | None:
        """How long there is nothing to do unless somebody calls."""
        if self._sealed or not self._spool.is_empty or not self._has_adopted:
            return _RETRY_S
        at = min(self._refusals.next_at, self._check_at if self._stored != self._checked else math.inf)
        return None if at == math.inf else max(0.0, at - time.monotonic())

    async def _turn(self, *, is_last: bool) -> None:
        if await self._is_free() and time.monotonic() >= self._retry_at:
            await self._replay()
            if not self._has_adopted:
                await self._adopt()
        entries = [*self._queue, *(self._refusals.rest() if is_last else self._refusals.due(time.monotonic()))]
        self._queue.clear()
        for at in range(0, len(entries), _BATCH):
            self._sealed += [self._chain.seal(entry) for entry in entries[at : at + _BATCH]]
            await self._keep_sealed()
        if self._sealed:
            await self._keep_sealed()
        await self._checkpoint(is_last=is_last)

    async def _is_free(self) -> bool:
        """Whether the database has answered the last time."""
        if self._insert is None:
            return True
        if not self._insert.done():
            return False
        self._insert = None
        return True

    async def _keep_sealed(self) -> None:
        """Into the database, else into the spool, else they stay in memory."""
        rows = self._sealed
        if self._spool.is_empty and await self._is_free() and await self._store(rows):
            self._stored = (rows[-1].number, rows[-1].mac)
        else:
            try:
                await asyncio.to_thread(self._spool.append, rows)
            except OSError as error:
                log.error("the audit log's spool cannot be written: %s", error)  # noqa: TRY400  no news in the traceback
                return
        self._sealed = []

    async def _store(self, rows: Sequence[Entry]) -> bool:
        """Whether the database has them. One that does not answer is left alone: a write cannot be called back."""
        task = asyncio.create_task(insert(rows))
        await asyncio.wait({task}, timeout=_INSERT_S)
        if task.done() and task.exception() is None:
            return True
        reason = repr(task.exception()) if task.done() else f"no answer within {_INSERT_S:.0f} s"
        log.warning("the database takes no audit entries, they go to %s: %s", self._spool.file, reason)
        self._insert = None if task.done() else task
        self._retry_at = time.monotonic() + _RETRY_S
        return False

    async def _replay(self) -> None:
        """Brings into the database what waits in the spool."""
        at = 0
        while not self._spool.is_empty:
            rows, at = await asyncio.to_thread(self._spool.read, at, _BATCH)
            if not rows:
                await asyncio.to_thread(self._spool.clear)
                log.warning("the database has taken the audit entries that waited")
            elif await self._store(rows):
                self._stored = (rows[-1].number, rows[-1].mac)
            else:
                return

    async def _adopt(self) -> None:
        """The same for spools of processes that are gone."""
        for file in spool.left_behind(self.folder):
            at = 0
            while True:
                rows, at = await asyncio.to_thread(spool.read, file, at, _BATCH)
                if not rows:
                    break
                if not await self._store(rows):
                    return
                self._adopted[rows[-1].chain] = (rows[-1].number, rows[-1].mac)
            file.unlink()
        self._has_adopted = True

    async def _checkpoint(self, *, is_last: bool) -> None:
        if (self._stored == self._checked and not self._adopted) or not await self._is_free():
            return
        if time.monotonic() < self._check_at and not is_last:
            return
        self._check_at = time.monotonic() + CHECKPOINT_S
        stored, adopted = self._stored, dict(self._adopted)
        heads = await self.ledger.amend(lambda heads: self._with_ends(heads, stored, adopted))
        for name, (number, mac) in {**adopted, self.chain: stored}.items():
            await asyncio.to_thread(self.ledger.append, heads.sequence, name, number, mac)
        self._checked, self._adopted = stored, {}

    def _with_ends(self, heads: Heads, stored: tuple[int, str], adopted: dict[str, tuple[int, str]]) -> Heads:
        chains = dict(heads.chains)
        for name, (number, mac) in {**adopted, self.chain: stored}.items():
            # a chain that all had been purged of is listed no longer, and goes on from where it was
            head = chains.get(name) or (Head(*self._checked, *self._checked) if name == self.chain else Head())
            if number > head.number:
                chains[name] = msgspec.structs.replace(head, number=number, mac=mac)
        return msgspec.structs.replace(heads, chains=chains)


__all__ = ["Writer"]

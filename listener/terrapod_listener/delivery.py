"""What a phase has made, on its way to the server: artifacts, state, log, and the word that ends it."""

import asyncio
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from terrapod_listener import kept, workdir
from terrapod_listener.client import Server, digest_of
from terrapod_listener.logs import Spool
from terrapod_listener.outcomes import Undelivered
from terrapod_shared import errors, wire

_UPLOAD_S = 600.0


async def push(server: Server, run_id: str, number: int, path: Path, mark: wire.StateRef) -> None:
    """One state, until the server answers. Raises its refusal."""
    query = f"serial={mark.serial}&lineage={quote(mark.lineage, safe='')}&md5={mark.md5}"
    target = f"{server.base}/runs/{run_id}/state?{query}"
    await server.persist("PUT", target, file=path, lease=number, timeout_s=_UPLOAD_S)


class Delivery:
    """Of one phase. `state` is the word for the report; `is_folder_needed` says that the state is nowhere else."""

    def __init__(self, server: Server, work: wire.Work, spools: Path) -> None:
        self.state: Literal["unchanged", "uploaded", "spooled"] = "unchanged"
        self.is_folder_needed = False
        self._digests: dict[str, str] = {}
        self._server, self._work, self._spools = server, work, spools

    async def artifact(self, name: str, path: Path) -> None:
        digest = (await digest_of(path)).hex()
        target = f"{self._server.base}/runs/{self._work.run_id}/{name}"
        await self._server.persist("PUT", target, file=path, lease=self._work.lease.number, timeout_s=_UPLOAD_S)
        self._digests[name] = digest

    async def left_state(self, module: Path, state: Path, before: wire.StateRef | None, log: Spool) -> None:
        """The state that terraform left, also when it failed: kept on disk until the server has it. Raises Undelivered."""
        errored = module / "errored.tfstate"
        state = errored if errored.is_file() else state
        mark = await asyncio.to_thread(workdir.state_mark, state)
        if mark is None or mark == before:
            self.is_folder_needed = False
            return
        self.state = "spooled"
        run_id, number = self._work.run_id, self._work.lease.number
        try:
            kept_ = await asyncio.to_thread(kept.keep, state, self._spools, run_id, number, mark)
            self.is_folder_needed = False
        except OSError as error:
            log.line(f"\nThe state could not be copied to the spool ({error}); it stays in the work folder.")
            kept_ = state
        try:
            await push(self._server, run_id, number, kept_, mark)
        except errors.TerrapodError as error:
            message = f"the server did not take the state ({error.detail}); it is kept on the listener at {kept_}"
            raise Undelivered(message) from None
        self.state, self.is_folder_needed = "uploaded", False
        if kept_ != state:
            await asyncio.to_thread(kept.drop, kept_)

    async def end(self, report: wire.Report, log: Spool) -> None:
        """The rest of the log, then the word that ends the phase; artifacts are there already."""
        await log.finish()
        full = msgspec.structs.replace(report, digests=self._digests, log_bytes=log.end)
        try:
            await self._server.report(self._work.run_id, full, self._work.lease.number)
        except errors.LeaseEnded:
            raise
        except errors.Conflict as error:
            if full.status == "errored":
                raise
            failed = wire.Report(
                phase=self._work.phase,
                status="errored",
                error_message=error.detail,
                log_bytes=log.end,
                state=self.state,
            )
            await self._server.report(self._work.run_id, failed, self._work.lease.number)

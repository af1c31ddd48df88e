"""What a phase has made, on its way to the server: artifacts, state, log, and the word that ends it."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any, Literal

import msgspec

from terrapod_listener.engine import argv
from terrapod_listener.link.client import Server, digest_of
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import Failed, Undelivered
from terrapod_listener.supervise import spool, statefile
from terrapod_listener.supervise.journal import Record, Step
from terrapod_shared import errors, wire

log = logging.getLogger(__name__)
_UPLOAD_S = 600.0


async def _noted(record: Record, step: Step) -> None:
    """After the apply a full disk must not stand in the way of the state: without the note a step is done twice."""
    try:
        await asyncio.to_thread(record.write, step)
    except OSError as error:
        log.error("the journal of %s stays at %s: %s", record.folder.name, record.facts.step, error)  # noqa: TRY400


def is_final(error: BaseException) -> bool:
    """Whether the server would refuse the same state again: its content, size, serial or lineage are what is wrong."""
    return type(error) is errors.Conflict or isinstance(error, errors.Invalid | errors.TooLarge)


async def push(server: Server, run_id: str, number: int, path: Path, mark: wire.StateRef) -> None:
    """One state, until the server answers. Raises its refusal."""
    target = server.state_path(run_id, msgspec.to_builtins(mark))
    await server.persist("PUT", target, file=path, lease=number, timeout_s=_UPLOAD_S)


async def send(server: Server, home: Path, facts: dict[str, Any]) -> bool:
    """One state of the spool, if the server answers now; whether it is there. The spool is freed then, and only then."""
    run_id, number = facts["run_id"], facts["number"]
    state = spool.place(home, run_id, number)
    try:
        await server.call("PUT", server.state_path(run_id, facts), file=state, lease=number, timeout_s=_UPLOAD_S)
    except (errors.TerrapodError, OSError) as error:
        reason, final = str(getattr(error, "detail", error)), is_final(error)
        log.error("the state of %s stays in the spool: %s", run_id, reason)  # noqa: TRY400
        await asyncio.to_thread(lambda: spool.blame(state, reason, is_final=final))
        return False
    await asyncio.to_thread(spool.drop, state)
    text = "the listener was restarted while it applied; the state that it left is here"
    report = wire.Report(phase="apply", status="errored", state="uploaded", error_message=text, unknown=text)
    with contextlib.suppress(errors.TerrapodError):  # most often the phase is over
        await server.report(run_id, report, number)
    return True


class Delivery:
    """Of one phase. `state` is the word for the report; `is_folder_needed` says that the state is nowhere else.

    `unknown` says why the state that was found may not hold all that was made,
    `left` why the work folder stays though nothing of it can be delivered.
    """

    def __init__(self, server: Server, work: wire.Work, home: Path) -> None:
        self.state: Literal["unchanged", "uploaded", "spooled"] = "unchanged"
        self.is_folder_needed = False
        self.unknown = self.left = ""
        self._digests: dict[str, str] = {}
        self._server, self._work, self._home = server, work, home

    async def artifact(self, name: str, path: Path) -> None:
        """Raises Failed for one that the server would not take, before it is read."""
        size, most = (await asyncio.to_thread(path.stat)).st_size, wire.ARTIFACT_MOST[name]
        if size > most:
            raise Failed(f"the {name.replace('-', ' ')} has {size} bytes, and {most} are the most that are kept")
        digest = (await digest_of(path)).hex()
        target = f"{self._server.base}/runs/{self._work.run_id}/{name}"
        await self._server.persist("PUT", target, file=path, lease=self._work.lease.number, timeout_s=_UPLOAD_S)
        self._digests[name] = digest

    async def left_state(self, record: Record, log_spool: LogSpool, folder: Path, code: int | None) -> None:
        """The state that terraform left, also when it failed: kept on disk until the server has it. Raises Undelivered.

        `code` is terraform's exit code; None where nobody knows it.
        """
        try:
            await self._left_state(record, log_spool, folder, code)
        except Undelivered as error:
            self.unknown = str(error)
            raise

    async def _left_state(self, record: Record, log_spool: LogSpool, folder: Path, code: int | None) -> None:
        facts = record.facts
        target = spool.place(self._home, self._work.run_id, self._work.lease.number)
        candidates = [*(Path(path) for path in facts.states), target]
        found, whole = await asyncio.to_thread(statefile.newest, folder, candidates), True
        if found is None:  # what terraform, or its death, made of it is the server's to judge
            found, whole = await asyncio.to_thread(statefile.newest, folder, candidates, whole=False), False
        if code != 0 or found is None:
            await self._look_for_torn(folder, candidates, found[0] if found else None, code)
        if found is not None and wire.StateRef(**found[1]) != facts.before:
            await self._deliver(record, log_spool, folder, found, target, whole=whole)
            return
        self.is_folder_needed = bool(self.left)
        if found is None and self.left:
            raise Undelivered(self.left)
        if found is None and facts.before is not None:
            raise Undelivered("the state that terraform was given is no longer there: what was made may be in no state")
        log.info("%s left its state as it was", self._work.run_id)
        await _noted(record, "acknowledged")

    async def _deliver(
        self,
        record: Record,
        log_spool: LogSpool,
        folder: Path,
        found: tuple[Path, dict[str, Any]],
        target: Path,
        *,
        whole: bool,
    ) -> None:
        """A state that changed: to the spool (`target`), then to the server. Raises Undelivered."""
        self.state = "spooled"
        state, mark = found[0], wire.StateRef(**found[1])
        if state != target:
            try:
                await asyncio.to_thread(statefile.keep, folder, state, target, whole=whole)
            except OSError as error:
                log_spool.line(f"\nThe state could not be copied to the spool ({error}); it stays in the work folder.")
        kept_ = target if await asyncio.to_thread(target.exists) else state
        self.is_folder_needed = kept_ == state or bool(self.left)
        if kept_ == target:
            await _noted(record, "spooled")
        try:
            await push(self._server, self._work.run_id, self._work.lease.number, kept_, mark)
        except errors.TerrapodError as error:
            if kept_ == target:
                why, final = error.detail, is_final(error)
                await asyncio.to_thread(lambda: spool.blame(target, why, is_final=final))
            else:
                self.left = ""  # it is delivered from the work folder, again and again
            raise Undelivered(
                f"the server did not take the state ({error.detail}); it is kept on the listener at {kept_}"
            ) from None
        log.info("the server has the state of %s, serial %d", self._work.run_id, mark.serial)
        self.state, self.is_folder_needed = "uploaded", bool(self.left)
        await _noted(record, "acknowledged")
        await asyncio.to_thread(spool.drop, target)

    async def _look_for_torn(self, folder: Path, candidates: list[Path], found: Path | None, code: int | None) -> None:
        """Sets `left` and `unknown` where a newer state than the one that was found is not whole: it stays for people."""
        newer = candidates[: candidates.index(found)] if found else candidates
        size = await asyncio.to_thread(statefile.torn, folder, newer)
        if size is None:
            return
        if size:
            self.left = f"the state that was left is not whole; it is kept on the listener in {folder}"
            self.state = "spooled"
        elif code is None or argv.cut_short(self._work.engine.tool, code):
            self.left = f"{self._work.engine.tool} was killed before it had written a state"
        else:
            self.left = f"{self._work.engine.tool} could not write its state: the file is empty"
        if found:
            self.left += "; an older copy of the state is delivered"
        self.unknown, self.is_folder_needed = self.left, True

    async def end(self, report: wire.Report, log: LogSpool) -> None:
        """The rest of the log, then the word that ends the phase; artifacts are there already."""
        await log.finish()
        full = msgspec.structs.replace(
            report, digests=self._digests, log_bytes=log.end, error_message=log.masked(report.error_message)
        )
        try:
            await self._report(full, log)
        except errors.LeaseEnded:
            raise
        except errors.Conflict as error:
            if full.status == "errored":
                raise
            failed = wire.Report(
                phase=self._work.phase,
                status="errored",
                error_message=log.masked(error.detail),
                log_bytes=log.end,
                state=self.state,
            )
            await self._server.report(self._work.run_id, failed, self._work.lease.number)

    async def _report(self, report: wire.Report, log: LogSpool) -> None:
        """Once more where the server has lost a part of the log since it took it: by a power cut, or it is a backup."""
        try:
            await self._server.report(self._work.run_id, report, self._work.lease.number)
        except errors.Conflict as error:
            if isinstance(error, errors.LeaseEnded) or not await log.send_again(error.meta.get("expected")):
                raise
            await self._server.report(self._work.run_id, report, self._work.lease.number)

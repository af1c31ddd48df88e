"""Watching a run from its beginning to its end: why it waits, its logs as they come, and its outcome."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from terrapod_cli import logs
from terrapod_cli.connected import Session, finding, part
from terrapod_cli.exits import Exit
from terrapod_cli.output import Row, flat
from terrapod_shared.client import Resource

FINAL = frozenset({"planned_and_finished", "applied", "discarded", "canceled", "errored"})
GOOD = frozenset({"planned_and_finished", "applied"})
#: A person has the word.
ASKING = frozenset({"planned", "planned_and_saved"})
_BEFORE_PLAN = frozenset({"pending", "plan_queued"})
_BEFORE_APPLY = frozenset({"confirmed", "apply_queued"})
_PLANNING = _BEFORE_PLAN | {"planning"}
_PAUSE_S, _PAUSE_MOST_S = 0.2, 3.0
#: A server that is started again is waited for.
PATIENCE_S = 300.0


def outcome(run: Row) -> Exit:
    """The exit code of a run in this status."""
    if run["status"] in GOOD:
        return Exit.DONE
    return Exit.WAITING if run["status"] in ASKING else Exit.FAILED


class Follower:
    """Follows one run. `to_stderr` keeps stdout free for the command's own answer."""

    def __init__(self, session: Session, run_id: str, *, raw: bool = False, to_stderr: bool = False) -> None:
        self._session, self._client, self._out = session, session.client, session.out
        self._id, self._raw, self._to_stderr = run_id, raw, to_stderr
        self._said = ""
        session.client.patience_s = PATIENCE_S

    def say(self, text: str) -> None:
        """Says something once, until something else was said."""
        if text != self._said:
            self._said = text
            self._out.say(text, "dim")

    async def run(self) -> Row:
        with finding(self._session, "run", self._id):
            return flat(await self._client.get(f"runs/{part(self._id)}"))

    async def until(self, is_so: Callable[[Row], bool]) -> Row:
        """Waits until it is so of the run, and says why it waits."""
        looked = 0
        while True:
            run = await self.run()
            if is_so(run):
                return run
            if looked and (why := self._why(run)):
                self.say(why)
            looked += 1
            await asyncio.sleep(min(_PAUSE_MOST_S, _PAUSE_S * 2 ** (looked / 5)))

    @staticmethod
    def _why(run: Row) -> str:
        return str((run.get("waits-for") or {}).get("text") or run.get("status-message") or "")

    async def log(self, kind: str, *, follow: bool = True) -> None:
        """Shows the log of `plan` or `apply`."""

        async def phase() -> Resource:
            return await self._client.get(f"runs/{self._id}/{kind}")

        as_json = self._out.as_json and not self._to_stderr
        to = sys.stderr if self._to_stderr else sys.stdout
        printer = logs.Printer(kind, to, colour=self._out.colour, as_json=as_json, raw=self._raw)
        try:
            async for piece in logs.pieces(self._client, phase, follow=follow):
                await self._out.free()
                printer.feed(piece)
        finally:
            printer.end()

    async def plan(self) -> Row:
        """Follows the plan; the run as it is behind it."""
        await self.until(lambda run: run["status"] not in _BEFORE_PLAN)
        await self.log("plan")
        return await self.until(lambda run: run["status"] not in _PLANNING)

    async def apply(self) -> Row:
        """Follows the apply of a run that was approved, or is over already; the run at its end."""
        run = await self.until(lambda run: run["status"] not in _BEFORE_APPLY)
        if run["status"] in FINAL and not run["status-timestamps"].get("applying-at"):
            return run
        await self.log("apply")
        return await self.until(lambda run: run["status"] in FINAL)

    async def to_the_end(self, asked: Callable[[Row], Awaitable[Row]]) -> Row:
        """Plan and apply; `asked` is awaited where a person has the word, and gives the run behind that."""
        run = await self.plan()
        if run["status"] in ASKING:
            run = await asked(run)
        return run if run["status"] in ASKING else await self.apply()

    async def answered(self, _run: Row | None = None) -> Row:
        """Waits until somebody has approved or discarded the run."""
        return await self.until(lambda run: run["status"] not in ASKING)

    def conclude(self, run: Row) -> None:
        """Says how it ended."""
        if run.get("error-message"):
            self._out.say(f"error: {run['error-message']}", "red")
        self._out.say(f"run {run['id']} is {run['status'].replace('_', ' ')}", "bold")

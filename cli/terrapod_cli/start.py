"""`terrapod runs start`: a folder becomes a configuration version and a run, which is followed to its end."""

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from terrapod_cli import hcl
from terrapod_cli.connected import ORG, Session, workspace
from terrapod_cli.exits import Exit
from terrapod_cli.following import ASKING, FINAL, Follower, outcome
from terrapod_cli.output import Row, flat
from terrapod_cli.pack import check_configuration, check_folder, packed, root_of
from terrapod_shared import errors, ids

_CONFIGURATION_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for on the command line."""

    workspace: str
    create: bool = False  #: the workspace, where it is not there
    plan_only: bool = False
    auto_approve: bool = False
    wait: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)  #: of the run, as the API names them
    variables: dict[str, str] = field(default_factory=dict)
    expressions: dict[str, str] = field(default_factory=dict)


async def start(session: Session, folder: Path, wanted: Wanted) -> int:
    """Begins the run and follows it; the exit code."""
    found, version = await _send(session, folder, wanted)
    variables = {name: hcl.quoted(text) for name, text in wanted.variables.items()} | wanted.expressions
    attributes: Row = {**wanted.attributes, "plan-only": wanted.plan_only, "auto-apply": wanted.auto_approve or None}
    attributes["variables"] = [{"key": name, "value": value} for name, value in variables.items()]
    run = flat(
        await session.client.send(
            "POST", "runs", "runs", {name: value for name, value in attributes.items() if value is not None},
            {"workspace": ("workspaces", found["id"]), "configuration-version": ("configuration-versions", version)},
        )
    )  # fmt: skip
    session.out.say(f"run {run['id']} in workspace {found['name']} on {session.host.name}", "bold")
    if not wanted.wait:
        session.out.done(run, run["id"])
        return Exit.DONE
    return await _Watch(session, run["id"]).to_the_end()


async def _workspace(session: Session, wanted: Wanted) -> Row | None:
    """The workspace; None where it is to be made."""
    try:
        return flat(await workspace(session, wanted.workspace))
    except errors.NotFound as error:
        if ids.is_valid(wanted.workspace, "ws"):
            raise
        if wanted.create:
            return None
        raise errors.NotFound(f"{error.detail}; --create makes it") from None


async def _create(session: Session, name: str) -> Row:
    """Makes the workspace, or takes the one that somebody else has made meanwhile."""
    try:
        made = flat(await session.client.send("POST", f"{ORG}/workspaces", "workspaces", {"name": name}))
    except errors.Invalid as refused:
        try:
            return flat(await workspace(session, name))
        except errors.NotFound:
            raise refused from None
    session.out.say(f"made workspace {made['name']} ({made['id']})", "dim")
    return made


async def _send(session: Session, folder: Path, wanted: Wanted) -> tuple[Row, str]:
    """Packs, looks whether there is anything to plan, and uploads; workspace and id of the configuration version.

    A workspace that is to be made is made last, so that a folder that is refused leaves none behind.
    """
    found = await _workspace(session, wanted)
    working_directory = (found or {}).get("working-directory") or ""
    root = root_of(folder, working_directory)
    check_folder(root, working_directory)
    console = session.out.side
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        ) as progress,
        contextlib.ExitStack() as stack,
    ):
        task = progress.add_task("packing", total=None)
        made = packed(root, lambda entries: progress.update(task, description=f"packing {entries} entries"))
        archive = await asyncio.to_thread(stack.enter_context, made)
        if not wanted.attributes.get("is-destroy"):
            engine = found["execution-backend"] if found else "terraform"
            check_configuration(root, working_directory, engine, archive)
        found = found or await _create(session, wanted.workspace)
        attributes = {"auto-queue-runs": False, "speculative": wanted.plan_only}
        path = f"workspaces/{found['id']}/configuration-versions"
        version = await session.client.send("POST", path, "configuration-versions", attributes)
        progress.update(task, description="uploading", total=archive.size_bytes, completed=0)
        url = version["attributes"]["upload-url"]
        await session.client.upload(url, archive.file, lambda sent: progress.update(task, completed=sent))
    session.out.say(
        f"uploaded {archive.entries} {'entry' if archive.entries == 1 else 'entries'} of {root} ({archive.size_bytes:,} bytes)",
        "dim",
    )
    version_id: str = version["id"]
    async with asyncio.timeout(_CONFIGURATION_S):
        while (facts := flat(await session.client.get(f"configuration-versions/{version_id}")))["status"] != "uploaded":
            if facts["status"] == "errored":
                raise errors.Invalid(f"the configuration was refused: {facts.get('error-message')}")
            await asyncio.sleep(0.2)
    return found, version_id


class _Watch:
    """A run that this command began: followed, approved or discarded at the terminal, canceled by Ctrl-C."""

    def __init__(self, session: Session, run_id: str) -> None:
        self._session, self._id = session, run_id
        self._out, self._client = session.out, session.client
        self._follower = Follower(session, run_id, to_stderr=session.out.as_json)
        self._main: asyncio.Task[Any] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._is_asking = False

    async def to_the_end(self) -> int:
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        try:
            run = await self._follower.to_the_end(self._asked)
            if self._stopping:
                await asyncio.wait({self._stopping}, timeout=0)
            self._follower.conclude(run)
        except asyncio.CancelledError:
            self._out.say(f"\nno longer followed; see terrapod runs show {self._id}")
            return Exit.INTERRUPTED
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            if self._stopping:
                self._stopping.cancel()
        if self._out.as_json:
            self._out.done(run, "")
        return outcome(run)

    def _interrupted(self) -> None:
        """The first Ctrl-C offers to cancel the run; the second, or one at a question, leaves it alone."""
        if self._stopping is None and not self._is_asking:
            self._stopping = asyncio.ensure_future(self._stop())
        elif self._main:
            self._main.cancel()

    async def _stop(self) -> None:
        with self._out.question() if sys.stdin.isatty() else contextlib.nullcontext():
            if sys.stdin.isatty() and not await self._is_to_be_canceled():
                self._stopping = None
                return
            try:
                await self._client.call("POST", f"runs/{self._id}/actions/cancel", {})
                self._out.say("asked the run to stop; Ctrl-C again leaves it alone")
            except errors.TerrapodError as error:
                self._out.say(f"not canceled: {error.detail}", "red")

    async def _is_to_be_canceled(self) -> bool:
        """Asks; a run that ends meanwhile answers the question."""
        question = "\nCancel the run? Only yes cancels it; Ctrl-C again leaves it running: "
        asking = asyncio.ensure_future(_ask(self._out, question))
        over = asyncio.ensure_future(self._follower.until(lambda run: run["status"] in FINAL))
        try:
            await asyncio.wait({asking, over}, return_when=asyncio.FIRST_COMPLETED)
            return asking.done() and asking.result() == "yes"
        finally:
            await _ended(asking, over)

    async def _asked(self, run: Row) -> Row:
        """The run behind a person's answer; as it is, if there is nobody to ask."""
        if run.get("auto-apply") and run["status"] == "planned":
            return await self._follower.answered()
        if not run["permissions"].get("can-apply") or not sys.stdin.isatty():
            self._out.say(f"it waits for approval: terrapod runs approve {self._id}")
            return run
        await self._out.free()  # the other question, whether to cancel, may be open
        self._out.say("\nApply this plan? yes applies it, no discards it, anything else leaves it waiting.")
        self._is_asking = True
        with self._out.question():
            question = asyncio.ensure_future(_ask(self._out, "> "))
            elsewhere = asyncio.ensure_future(self._follower.answered())
            try:
                await asyncio.wait({question, elsewhere}, return_when=asyncio.FIRST_COMPLETED)
                answer = question.result() if question.done() else None
                found = elsewhere.result() if answer is None else run
            finally:
                self._is_asking = False
                await _ended(question, elsewhere)
        if answer is None:
            self._out.say("answered elsewhere")
            return found
        return await self._acted(answer)

    async def _acted(self, answer: str) -> Row:
        verb = {"yes": "confirm", "no": "discard"}.get(answer)
        if verb is None:
            self._out.say(f"it waits for approval: terrapod runs approve {self._id}")
            return await self._follower.run()
        try:
            await self._client.call("POST", f"runs/{self._id}/actions/{verb}", {})
        except errors.Conflict as error:
            run = await self._follower.run()
            if run["status"] in FINAL | ASKING:
                raise
            self._out.say(error.detail)
        return await self._follower.answered()


async def _ask(out: Any, question: str) -> str:
    """A line from the terminal, without holding anything else up."""
    out.side.print(question, end="")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def ready() -> None:
        line = sys.stdin.readline()
        if not line.endswith("\n"):
            out.side.print()
        if not answer.done():
            answer.set_result(line.strip())

    loop.add_reader(sys.stdin.fileno(), ready)
    try:
        return await answer
    except asyncio.CancelledError:  # nobody has answered, and the cursor still stands behind the question
        out.side.print()
        raise
    finally:
        loop.remove_reader(sys.stdin.fileno())


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what is not done, and waits until it is: what its end prints comes first."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()

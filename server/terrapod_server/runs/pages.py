"""The page of a run, at the address that terraform prints: plain, to be read, and the same without a script.

It shows what the API shows of the run to whoever may read the workspace, and
the commands by which one goes on; it changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.responses import Response, StreamingResponse

from terrapod_server.identity import actions as identity
from terrapod_server.kit import html
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Page
from terrapod_server.kit.caller import Level
from terrapod_server.runs import actions, api, logs, ports, states
from terrapod_server.runs.model import Phase, Run
from terrapod_server.runs.states import Status
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared.errors import NotFound
from terrapod_shared.logtext import LogText

#: Of a log, what of its end stands in the page.
_SHOWN = 256 << 10
_PHASES = ("plan", "apply")
_NOT_BEGUN = frozenset({"pending", "queued", "unreachable"})


@dataclass(frozen=True)
class Log:
    """A phase's log as the page has it."""

    title: str
    text: str
    cut: bool  #: only its end is shown
    size: str
    href: str


def _href(workspace: workspaces.Row, run: Run) -> str:
    return f"/app/default/{workspace.name}/runs/{run.id}"


async def show(call: Call) -> Response | dict[str, Any]:
    """The page of a run."""
    run = await actions.get(call.path["run"])
    workspace = await workspaces.get(run.workspace_id)
    href = _href(workspace, run)
    if call.request.url.path.rstrip("/") != href:  # by HCP's address, or by a name that the workspace had
        return html.redirect(href)
    plan, apply = [await actions.phase(key) for key in (run.plan_id, run.apply_id)]
    found = [await _log(call, phase, run, href) for phase in (plan, apply) if _has_log(phase)]
    waiting = await call.services.ask(ports.WAITS).explain(run, call.principal)
    status = run.status.value.replace("_", " ")
    return {
        "title": f"Run of {workspace.name}", "width": "widest", "run": run, "workspace": workspace, "href": href,
        "said": f"{status[:1].upper()}{status[1:]}", "waits": _sentence(waiting["text"]) if waiting else "",
        "kind": _kind(run), "changes": _changes(plan), "moments": await _moments(run),
        "commands": list(_commands(run, call.level)), "logs": found,
    }  # fmt: skip


def _has_log(phase: Phase) -> bool:
    return phase.kind == "plan" or phase.status not in _NOT_BEGUN


async def _log(call: Call, phase: Phase, run: Run, href: str) -> Log:
    size = await logs.raw_size(call.services, phase, run)
    start = max(0, size - _SHOWN)
    await call.memory.add(3 * (size - start))
    raw = b"".join([piece async for piece in logs.raw(call.services, phase, run, start, size)])
    if start:  # the line that was cut says nothing
        raw = raw[raw.find(b"\n") + 1 :]
    async with _turn(call):
        text = await asyncio.to_thread(_text, raw)
    return Log(f"Log of the {phase.kind}", text, start > 0, _bytes(size), f"{href}/logs/{phase.kind}")


def _turn(call: Call) -> asyncio.Semaphore:
    """Held while a piece of a log is made text: one at a time, so that long logs keep nobody else from the processor."""
    found: asyncio.Semaphore = call.services.remembered.setdefault("log text", asyncio.Semaphore(1))
    return found


def _text(raw: bytes) -> str:
    reader = LogText()
    return reader.feed(raw) + reader.end()


def _bytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.0f} KiB"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _kind(run: Run) -> str:
    word = "Destroy" if run.is_destroy else "Refresh only" if run.refresh_only else "Plan and apply"
    return (
        f"{word}, plan only" if run.plan_only and word != "Plan and apply" else "Plan only" if run.plan_only else word
    )


def _changes(plan: Phase) -> str:
    if plan.status != "finished":
        return ""
    counts = ((plan.resource_imports, "import"), (plan.resource_additions, "add"), (plan.resource_changes, "change"),
        (plan.resource_destructions, "destroy"))  # fmt: skip
    return ", ".join(f"{count} to {verb}" for count, verb in counts if count or verb != "import")


async def _moments(run: Run) -> list[tuple[str, datetime, str]]:
    """What happened, when, and by whom."""
    names = {row.id: row.email for row in await identity.users([run.created_by_id, run.confirmed_by_id])}
    found = [("Made", run.created_at, names.get(run.created_by_id, ""))]
    if run.confirmed_at is not None:
        found.append(("Approved", run.confirmed_at, names.get(run.confirmed_by_id, "")))
    if run.is_final and (ended := run.status_timestamps.get(states.timestamp_name(run.status))):
        found.append(("Ended", datetime.fromisoformat(ended), ""))
    return found


def _commands(run: Run, level: Level) -> Iterator[tuple[str, str]]:
    """What may be done now and how, or why the reader may not."""
    may, can = api.permitted(level), api.possible(run)
    verbs = (
        ("approve", "is-confirmable", "can-apply", "Approve it, so that it is applied:"),
        ("discard", "is-discardable", "can-discard", "Discard it, so that nothing is changed:"),
        ("cancel", "is-cancelable", "can-cancel", "Cancel it:"),
    )
    found = [(verb, permission, text) for verb, action, permission, text in verbs if can[action]]
    for verb, permission, text in found:
        if may[permission]:
            yield text, f"terrapod runs {verb} {run.id}"
    if missing := [verb for verb, permission, _ in found if not may[permission]]:
        yield f"You have {level.name.lower()} on the workspace: to {' or '.join(missing)} the run, write is needed.", ""
    if run.status not in (Status.PENDING, Status.PLAN_QUEUED) and not run.is_final:
        yield "Follow it in a terminal:", f"terrapod runs logs --follow {run.id}"


async def log(call: Call) -> Response:
    """The whole log of a run's plan or apply, as text without escapes."""
    kind = call.path["phase"]
    if kind not in _PHASES:
        raise NotFound
    run = await actions.get(call.path["run"])
    phase = await actions.phase(run.plan_id if kind == "plan" else run.apply_id)
    size = await logs.raw_size(call.services, phase, run)

    async def text() -> AsyncIterator[str]:
        reader = LogText()
        async for piece in logs.raw(call.services, phase, run, 0, size):
            async with _turn(call):
                shown = await asyncio.to_thread(reader.feed, piece)
            yield shown
        yield reader.end()

    return StreamingResponse(text(), media_type="text/plain; charset=utf-8")


_RUN = "/app/{org}/{workspace_name}/runs/{run}"
_TEMPLATE = "runs/run.html"
PAGES: tuple[Page, ...] = (
    Page("GET", _RUN, show, Level.READ, guards="run", template=_TEMPLATE),
    Page(
        "GET", "/app/{org}/workspaces/{workspace_name}/runs/{run}", show, Level.READ, guards="run", template=_TEMPLATE
    ),
    Page("GET", _RUN + "/logs/{phase}", log, Level.READ, guards="run", gives="text/plain"),
)

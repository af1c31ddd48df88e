"""The audit log as admins and auditors read it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from terrapod_server.audit import actions
from terrapod_server.audit.model import AuditEntry
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Raw, Recorded, Resource
from terrapod_server.kit.caller import Access
from terrapod_server.kit.paging import Rows
from terrapod_shared.errors import Invalid


def _of(column: str) -> Callable[[AuditEntry, Call], Any]:
    """The column, or null where it is empty."""
    return lambda row, _: getattr(row, column) or None


ENTRY = Resource(
    type="audit-log-entries",
    attributes=(
        Attr(
            "timestamp", datetime, "when the answer was given",
            value=lambda row, _: datetime.fromtimestamp(row.at / 1e6, UTC),
        ),
        Attr("actor-email", str, "who asked: a user's e-mail, else a name", value=_of("actor")),
        Attr("actor-type", str, "user, run, listener, anonymous, server or operator", value=_of("actor_kind")),
        Attr("actor-id", str, "id of who asked", value=_of("actor_id")),
        Attr("token-id", str, "id of the token or session that was shown", value=_of("token_id")),
        Attr("actor-ip", str, "the client's address, behind trusted proxies as they tell it", value=_of("address")),
        Attr("action", str, "the HTTP method"),
        Attr("path", str, "the path as it is declared, with names for its parameters"),
        Attr("resource-type", str, "type of what it was about"),
        Attr("resource-id", str, "id or name of what it was about, where one was named", value=_of("resource_id")),
        Attr("workspace-id", str, "the workspace that it belongs to", value=_of("workspace_id")),
        Attr("status-code", int, "status of the answer; 0: the client left before", value=lambda row, _: row.status),
        Attr("request-id", str, "the answer's X-Request-ID", value=_of("request_id")),
        Attr("user-agent", str, "what the client called itself, cut", value=_of("user_agent")),
        Attr("duration-ms", float, "how long the answer took", value=lambda row, _: row.duration_us / 1e3),
        Attr("repeats", int, "so many refusals for too many requests this one stands for"),
        Attr("chain", str, "the server process that wrote it"),
        Attr("number", int, "its place in that process' chain"),
        Attr("mac", str, "the seal over it and the one before"),
    ),
)  # fmt: skip


def _time(call: Call, name: str) -> datetime | None:
    text = call.param(name)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))  # an unquoted `+` of a zone arrives as a space
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        message = f"{name} must be a time such as 2026-01-31T12:00:00Z, not {text[:40]!r}"
        raise Invalid(message)
    return at


async def index(call: Call) -> Rows:
    """The entries, newest first."""
    actor = call.param("filter[actor]") or ""
    asked = {
        "actor": actor.lower() if "@" in actor else actor,
        "resource_type": call.param("filter[resource-type]") or "",
        "action": (call.param("filter[action]") or "").upper(),
    }
    equal = {name: value for name, value in asked.items() if value}
    counts = call.services.remembered.setdefault("audit counts", actions.Counts())
    return await actions.page(call.page, counts, equal, _time(call, "filter[since]"), _time(call, "filter[until]"))


_FILTERS = ("filter[actor]", "filter[resource-type]", "filter[action]", "filter[since]", "filter[until]")
RESOURCES = (ENTRY,)
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint(
        "GET", "/api/v2/admin/audit-log", ENTRY, index, Access.AUDIT,
        many=True, filters=_FILTERS, recorded=Recorded.READS,
    ),
)  # fmt: skip

"""Who may have which work, as conditions in SQL: which pools are open to a workspace, and what a listener's host takes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from terrapod_server.kit.db import database
from terrapod_server.workspaces import actions as workspaces


def open_to(pool: str, workspace_id: str) -> str:
    """Whether the row `pool` of agent_pool is open to a workspace: to all or to this one, and it is not excluded."""
    mine = f"o.pool_id = {pool}.id AND o.workspace_id = {workspace_id}"
    return (
        f"(({pool}.organization_scoped OR EXISTS (SELECT 1 FROM agent_pool_workspace o WHERE {mine}))"  # noqa: S608
        f" AND NOT EXISTS (SELECT 1 FROM agent_pool_excluded o WHERE {mine}))"
    )


def condition(accepts: Mapping[str, Any], values: list[Any]) -> str:
    """Of the phases `p` with their run `r`, those that `accepts` (`wire.Accepts`) takes; AND comes first.

    Values are appended to `values`, whose places the text names.
    """

    def mark(value: str) -> str:
        values.append(value)
        return f"${len(values)}"

    def like(column: str, pattern: str) -> str:
        if database.is_postgres():
            escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            return f"{column} LIKE {mark(escaped.replace('*', '%').replace('?', '_'))}"
        return f"{column} GLOB {mark(pattern.replace('[', '[[]'))}"

    parts = []
    for column, allowed in (("p.kind", accepts.get("phases")), ("r.engine_tool", accepts.get("tools"))):
        if allowed:
            parts.append(f"{column} IN ({', '.join(mark(each) for each in allowed)})")
    if patterns := accepts.get("workspaces"):
        parts.append(
            workspaces.has_name("p.workspace_id", lambda column: " OR ".join(like(column, each) for each in patterns))
        )
    for key, pattern in accepts.get("labels", {}).items():
        parts.append(workspaces.has_label("p.workspace_id", mark(key), partial(like, pattern=pattern)))
    return "".join(f" AND {part}" for part in parts)

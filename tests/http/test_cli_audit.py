"""`terrapod audit list` against the server's own log."""

import re
from pathlib import Path

from kit.cli import of_server
from kit.serving import Running, until


async def test_what_was_changed_and_refused_is_listed(server: Running, tmp_path: Path) -> None:
    admin = of_server(server, tmp_path)
    workspace = await admin.ok("workspaces", "create", "watched")
    bob = of_server(server, tmp_path, token=await server.person("bob@example.com"))
    assert (await bob("pools", "create", "his")).code == 4
    assert (await bob("audit", "list")).code == 4

    async def listed() -> bool:
        rows = await admin.ok("audit", "list", "--actor", "bob@example.com", "--action", "POST")
        return [(row["resource-type"], row["status-code"]) for row in rows] == [("agent-pools", 403)]

    await until(listed)
    table = await admin("audit", "list", "--type", "workspaces", "--since", "2020-01-01T00:00:00Z")
    assert re.search(
        rf"^2\S+Z +admin@localhost +127\.0\.0\.1 +POST +workspaces +(-|{workspace['id']}) +201$",
        table.out,
        re.MULTILINE,
    ), table.out
    assert await admin.ok("audit", "list", "--until", "2020-01-01T00:00:00Z") == []

"""A list that is filtered by rights, against the same list for who may see all."""

import hashlib
import sqlite3
import statistics
from pathlib import Path

from processes import Site
from reads import copy_rows, load
from report import Figure, Section

TEXT = (
    "A page of 20 workspaces among 10,000, at eight keep-alive clients: asked for by a platform admin, and by a user who "
    "has 50 custom roles, each with a label to allow and one to deny, which let it see half of them. The ratio is how "
    "many times slower the user's list is; by turns."
)
ROLES, WORKSPACES = 50, 10_000
_TOKEN = "tpod_bench"  # noqa: S105  of a user of this run alone


def _fill(database: Path, template: str, user: str) -> None:
    """Workspaces with one of a hundred labels, and a token of the user's, whom no API call can make one for."""
    changed = {
        "id": "'ws-bench' || printf('%08d', n)",
        "name": "'bench-' || n",
        "labels": "json_object('team', 't' || (n % 100))",
        "owner_id": "'user-nobody'",
    }
    copy_rows(database, "workspace", template, WORKSPACES, changed)
    with sqlite3.connect(database, timeout=30) as connection:
        connection.execute(
            "INSERT INTO workspace_label (workspace_id, key, value) "
            "SELECT id, 'team', json_extract(labels, '$.team') FROM workspace WHERE id LIKE 'ws-bench%'"
        )
        connection.execute(
            "INSERT INTO api_token (id, user_id, hash, description, provider, read_only, workspace_id, created_at) "
            "VALUES ('at-bench', ?, ?, '', 'local', 0, '', '2026-01-01 00:00:00+00:00')",
            (user, hashlib.sha256(_TOKEN.encode()).hexdigest()),
        )
    connection.close()


def measure(folder: Path, *, quick: bool) -> Section:
    section = Section("Rights", TEXT)
    seconds, rounds = (0.3, 2) if quick else (1.0, 4)
    with Site(folder / "rights") as site:
        names = [f"role-{number}" for number in range(ROLES)]
        for number, name in enumerate(names):
            site.post(
                "roles",
                "roles",
                {
                    "name": name,
                    "workspace-permission": "write",
                    "allow-labels": {"team": f"t{number}"},
                    "deny-labels": {"secret": f"s{number}"},
                },
            )
        user = site.post("organizations/default/users", "users", {"email": "bench@example.org"})["id"]
        body = {"data": {"attributes": {"provider-name": "local", "email": "bench@example.org", "roles": names}}}
        site.api.put("role-assignments", json=body).raise_for_status()
        _fill(site.data / "terrapod.sqlite3", site.workspace("template"), user)
        url = f"{site.url}/api/v2/organizations/default/workspaces?page%5Bsize%5D=20"
        rates: dict[str, list[float]] = {site.token: [], _TOKEN: []}
        for _ in range(rounds):
            for token, found in rates.items():
                found.append(load(url, token, seconds).rate)
    admin, restricted = (statistics.mean(found) for found in rates.values())
    note = f"{restricted:.0f}/s against {admin:.0f}/s"
    section.figures.append(
        Figure("list of 20 with 50 roles against an admin's list", admin / restricted, "times", 1.3, note=note)
    )
    return section

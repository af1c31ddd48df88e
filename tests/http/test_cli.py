"""`terrapod` against the real server, on both databases."""

import asyncio
import dataclasses
import json
import os
import re
from pathlib import Path

import httpx
import pytest

from kit.cli import Cli, Here, of_server
from kit.postgres import free_port
from kit.serving import Running, running
from kit.site import BIN

pytestmark = pytest.mark.sqlite_alone(
    reason="the command line shows what the API answers, and tests/http ask the API on both"
)


@pytest.fixture
def cli(server: Running, tmp_path: Path) -> Cli:
    return of_server(server, tmp_path)


async def test_workspaces(cli: Cli) -> None:
    made = await cli.ok(
        "workspaces", "create", "prod", "--description", "all of it", "--terraform-version", "1.15.5",
        "--label", "env=prod", "--label", "team=core", "--working-directory", "infra",
    )  # fmt: skip
    assert made["id"].startswith("ws-")
    assert (made["labels"], made["working-directory"]) == ({"env": "prod", "team": "core"}, "infra")
    await cli.ok("workspaces", "create", "other", "--auto-apply", "--execution-mode", "local")
    assert [row["name"] for row in await cli.ok("workspaces", "list")] == ["other", "prod"]
    assert [row["name"] for row in await cli.ok("workspaces", "list", "--label", "env")] == ["prod"]
    assert [row["name"] for row in await cli.ok("workspaces", "list", "--search", "oth")] == ["other"]
    one = await cli("workspaces", "list", "--limit", "1")
    assert (one.code, "1 of 2" in one.err) == (0, True)
    assert (await cli.ok("workspaces", "show", "prod"))["id"] == made["id"]
    assert (await cli.ok("workspaces", "show", made["id"]))["name"] == "prod"
    table = await cli("workspaces", "list")
    assert re.search(r"^prod +remote +1\.15\.5 +0 +no +env=prod, team=core", table.out, re.MULTILINE), table.out
    assert "ws-" not in table.out
    assert re.search(rf"^prod +{made['id']} +remote ", (await cli("workspaces", "list", "--ids")).out, re.MULTILINE)
    assert "\x1b" not in table.out

    assert (await cli.ok("workspaces", "lock", "prod", "--reason", "audit"))["locked"] is True
    assert "audit" in (await cli("workspaces", "show", "prod")).out
    again = await cli("workspaces", "lock", "prod")
    assert (again.code, "locked" in again.err) == (6, True)
    assert (await cli.ok("workspaces", "unlock", "prod"))["locked"] is False
    assert (await cli("workspaces", "unlock", "prod", "--force")).code == 6

    asked = await cli("workspaces", "delete", "prod")
    assert (asked.code, "--yes" in asked.err) == (2, True), "without a terminal nobody is asked"
    assert await cli.ok("workspaces", "delete", "prod", "--yes") == {"id": made["id"], "deleted": True}
    gone = await cli("workspaces", "show", "prod", "--json")
    assert (gone.code, gone.out) == (5, "")
    assert json.loads(gone.err)["error"]["code"] == 5
    await cli.ok("workspaces", "delete", "other", "--force", "--yes")


async def test_exit_codes_are_the_errors(cli: Cli, server: Running, tmp_path: Path) -> None:
    taken = await cli("workspaces", "create", "a/b")
    assert (taken.code, "/data/attributes/name" in taken.err) == (2, True)
    await cli.ok("workspaces", "create", "taken")
    twice = await cli("workspaces", "create", "taken")
    assert twice.code == 2, twice
    assert (await cli("workspaces", "nonsense")).code == 2
    assert (await cli("runs", "show", "run-none")).code == 5
    assert (await of_server(server, tmp_path, token="tpod_wrong")("whoami")).code == 3
    nobody = await Here(tmp_path, TERRAPOD_ADDRESS=server.url)("whoami", "--json")
    assert (nobody.code, json.loads(nobody.err)["error"]["title"]) == (3, "unauthorized")
    assert (await Here(tmp_path)("whoami")).code == 2
    nowhere = await Here(tmp_path, TERRAPOD_ADDRESS="http://127.0.0.1:9", TERRAPOD_TOKEN="t")("whoami")
    assert (nowhere.code, "cannot be reached" in nowhere.err) == (7, True)
    plain = await Here(tmp_path, TERRAPOD_TOKEN="t")("whoami", "--host", "http://example.com")
    assert (plain.code, "in the clear" in plain.err) == (2, True)
    no_ca = await cli("whoami", "--ca", "/nowhere")
    assert no_ca.code == 2


async def test_pools_tokens_and_listeners(cli: Cli, server: Running, tmp_path: Path) -> None:
    pool = await cli.ok("pools", "create", "dmz", "--description", "behind the wall", "--only-allowed")
    assert pool["organization-scoped"] is False
    assert {row["name"] for row in await cli.ok("pools", "list")} == {"default", "dmz"}
    assert (await cli.ok("pools", "show", "dmz"))["id"] == pool["id"]
    assert (await cli("pools", "show", "dm")).code == 5, "a part of a name is no name"

    said = await cli("pools", "tokens", "create", "dmz", "--description", "host two", "--max-uses", "2")
    token = said.out.strip()
    assert re.fullmatch(r"tpodjoin_\S+", token), said
    assert token not in said.err
    listed = await cli("pools", "tokens", "list", "dmz", "--json")
    assert token not in listed.out
    assert [(row["description"], row["max-uses"], "token" in row) for row in listed.json] == [("host two", 2, False)]
    await cli.ok("pools", "tokens", "revoke", listed.json[0]["id"])
    assert await cli.ok("pools", "tokens", "list", "dmz") == []
    made = await cli.ok("pools", "tokens", "create", "dmz", "--expires", "2090-01-01T00:00:00Z")
    assert (made["token"][:9], made["expires-at"][:10], made["max-uses"]) == ("tpodjoin_", "2090-01-01", 1)

    listener = await server.listener(tmp_path / "listener", "one", pool_id=pool["id"])
    rows = await cli.ok("pools", "listeners", "dmz")
    assert [(row["name"], row["status"]) for row in rows] == [("one", "online")]
    assert (await cli.ok("pools", "drain", "dmz", "one"))["status"] == "draining"
    assert (await cli.ok("pools", "drain", "dmz", rows[0]["id"], "--undo"))["status"] == "online"
    assert (await cli("pools", "drain", "dmz", "two")).code == 5
    table = await cli("pools", "listeners", "dmz", "--ids")
    assert re.search(r"^one +listener-\w+ +online +5/5 ", table.out, re.MULTILINE), table.out
    assert (await cli.ok("pools", "listeners", "allow-rejoin", "dmz", "one"))["id"] == rows[0]["id"]
    again = await server.listener(tmp_path / "again", "one", pool_id=pool["id"])
    assert again.identity.kept.listener_id == rows[0]["id"], "the same listener, by another key"
    asked = await cli("pools", "listeners", "remove", "dmz", "one")
    assert (asked.code, "--yes" in asked.err) == (2, True)
    nobody = await cli("pools", "listeners", "remove", "dmz", "two", "--yes")
    host = server.url.removeprefix("http://")
    assert nobody.err == f'error: listener "two" of pool "dmz" not found on {host}, or you lack access\n'
    for argv in (["pools", "listeners", "dmz"], ["pools", "listeners", "list", "dmz"]):
        assert re.search(r"^one +online +5/5 ", (await cli(*argv)).out, re.MULTILINE)
    assert (await cli.ok("pools", "listeners", "--json", "dmz"))[0]["name"] == "one"
    gone = {"id": rows[0]["id"], "deleted": True}
    assert await cli.ok("pools", "listeners", "remove", "dmz", "one", "--yes") == gone
    assert await cli.ok("pools", "listeners", "dmz") == []
    await again.close()
    await listener.close()
    empty = await cli.ok("pools", "create", "empty")
    await cli.ok("pools", "delete", "empty", "--yes")
    assert (await cli("pools", "show", empty["id"])).code == 5


async def test_what_is_not_found_is_named(cli: Cli, server: Running, tmp_path: Path) -> None:
    """In one form, whether it is not there or may not be seen."""
    host = server.url.removeprefix("http://")
    await cli.ok("workspaces", "create", "hidden")
    stranger = of_server(server, tmp_path, token=await server.person("eve@example.com"))
    for who, kind, name, argv in (
        (stranger, "workspace", "hidden", ("workspaces", "show", "hidden")),
        (stranger, "workspace", "hidden", ("runs", "list", "-w", "hidden")),
        (cli, "workspace", "x", ("workspaces", "delete", "x", "--yes")),
        (cli, "run", "run-x", ("runs", "show", "run-x")),
        (cli, "run", "run-x", ("runs", "approve", "run-x")),
        (cli, "run", "run-x", ("runs", "logs", "run-x")),
        (cli, "pool", "x", ("pools", "show", "x")),
        (cli, "pool", "apool-00000000000000000000000000", ("pools", "show", "apool-00000000000000000000000000")),
        (cli, "pool", "x", ("workspaces", "create", "new", "--pool", "x")),
        (cli, "token", "at-x", ("tokens", "delete", "at-x")),
        (cli, "join token", "at-x", ("pools", "tokens", "revoke", "at-x")),
        (cli, "user", "x@example.com", ("users", "show", "x@example.com")),
        (cli, "role", "x", ("roles", "show", "x")),
        (cli, "late state", "late-x", ("states", "pull", "late-x", str(tmp_path / "file"))),
        # what a script gives whose variable is not set; and what would lead to another path
        *((cli, "workspace", name, ("workspaces", "show", name)) for name in ("", ".", "..")),
        *((cli, "role", name, ("roles", "delete", name, "--yes")) for name in ("", ".", "..")),
        *((cli, "run", name, ("runs", "logs", name)) for name in ("", ".", "..")),
        (cli, "workspace", "", ("runs", "list", "-w", "")),
        (cli, "workspace", "", ("tokens", "create", "--description", "for one workspace", "-w", "")),
        (cli, "user", "", ("tokens", "list", "--user", "")),
        (cli, "pool", "", ("workspaces", "create", "new", "--pool", "")),
    ):
        said = await who(*argv)
        assert (said.code, said.err) == (5, f'error: {kind} "{name}" not found on {host}, or you lack access\n'), argv
    assert [row["description"] for row in await cli.ok("tokens", "list")] == ["test"], "no token that is good for all"


async def test_a_listener_that_calls_itself_by_anothers_id(cli: Cli, server: Running, tmp_path: Path) -> None:
    """Nobody is removed in the place of another."""
    good = (await server.listener(tmp_path / "good", "good")).identity.kept.listener_id
    bad = (await server.listener(tmp_path / "bad", good)).identity.kept.listener_id
    said = await cli("pools", "listeners", "remove", "default", good, "--yes")
    assert (said.code, "the id of one listener and the name of another" in said.err) == (6, True), said
    assert (await cli.ok("pools", "listeners", "remove", "default", bad, "--yes"))["id"] == bad
    assert (await cli.ok("pools", "listeners", "remove", "default", good, "--yes"))["id"] == good


async def test_runs_that_wait(cli: Cli, server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "main.tf").write_text("# nothing\n")
    workspace = await server.workspace("waits", **{"terraform-version": "1.15.5"})
    listener = await server.listener(tmp_path / "listener")
    said = await cli(
        "runs", "start", str(folder), "-w", "waits", "--no-wait", "--message", "\x1b]0;title\x07[bold]first"
    )
    assert said.code == 0, said
    first = said.out.strip()
    second = (await cli.ok("runs", "start", str(folder), "-w", workspace["id"], "--no-wait", "--destroy"))["id"]
    rows = await cli.ok("runs", "list", "-w", "waits")
    assert [row["id"] for row in rows] == [second, first]
    assert (rows[0]["is-destroy"], rows[0]["position-in-queue"]) == (True, 1)
    table = await cli("runs", "list")
    assert "[bold]first" in table.out
    assert not {"\x1b", "\x07"} & set(table.out), "what others wrote moves nothing on the terminal"
    assert [row["id"] for row in await cli.ok("runs", "list", "--status", "pending")] == [second]
    assert (await cli("runs", "approve", second)).code == 6
    assert (await cli.ok("runs", "discard", second, "--comment", "no"))["status"] == "discarded"
    assert (await cli.ok("runs", "cancel", first))["status"] == "canceled"
    assert (await cli("runs", "cancel", first, "--force")).code == 6
    shown = await cli("runs", "show", first, "--json")
    assert not {"log-read-url", "upload-url"} & shown.json.keys()
    followed = await cli("runs", "logs", first, "--follow")
    assert (followed.code, "The run was canceled." in followed.out) == (1, True), followed
    assert (await cli("runs", "logs", "run-none")).code == 5
    both = await cli("runs", "start", str(folder), "-w", "waits", "--plan-only", "--auto-approve")
    assert both.code == 2
    await listener.close()


async def test_a_server_that_is_started_again_is_waited_for(postgres_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with running(tmp_path / "data", postgres_url, port=port) as first:
        server = at_port(first, port)
        listener = await server.listener(tmp_path / "listener")
        workspace = await server.workspace()
        configuration = await server.configuration(workspace["id"])
        run = (await server.run(workspace["id"], configuration["id"])).json()["data"]["id"]
        process = await asyncio.create_subprocess_exec(
            str(BIN / "terrapod"), "runs", "logs", "--follow", run, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "TERRAPOD_ADDRESS": server.url, "TERRAPOD_TOKEN": server.token},
        )  # fmt: skip
        assert process.stderr
        async with asyncio.timeout(30):
            assert b"waits for a listener" in await process.stderr.readline()
        await listener.close()
    async with asyncio.timeout(60):
        while b"trying again" not in await process.stderr.readline():
            pass
        async with running(tmp_path / "data", postgres_url, port=port) as second:
            await at_port(second, port).api.post(f"/runs/{run}/actions/cancel", json={})
            out, err = await process.communicate()
    assert (process.returncode, b"The run was canceled." in out) == (1, True), err


def at_port(server: Running, port: int) -> Running:
    url = f"http://127.0.0.1:{port}"
    server.api.base_url = httpx.URL(f"{url}/api/v2/")
    return dataclasses.replace(server, url=url)


async def test_a_folder_that_is_refused_begins_no_run(cli: Cli, server: Running, tmp_path: Path) -> None:
    await server.workspace("picky")
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "loop").symlink_to("loop")
    assert (await cli("runs", "start", str(folder), "-w", "picky", "--no-wait")).code == 2
    assert (await cli("runs", "start", str(folder), "-w", "nowhere", "--no-wait")).code == 5
    assert await cli.ok("runs", "list") == []


async def test_a_workspace_is_made_for_a_run_where_that_is_asked_for(cli: Cli, server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    begin = ("runs", "start", str(folder), "--no-wait", "-w")
    assert (await cli(*begin, "made", "--create")).code == 2, "there is no configuration"
    (folder / "main.tf").write_text("# nothing\n")
    said = await cli(*begin, "made")
    assert (said.code, "--create makes it" in said.err) == (5, True), said
    assert await cli.ok("workspaces", "list") == [], "nothing was made"
    said = await cli(*begin, "made", "--create")
    assert (said.code, "made workspace made (ws-" in said.err) == (0, True), said
    assert await cli.ok(*begin, "made", "--create", "--message", "again")
    [made] = await cli.ok("workspaces", "list")
    assert len(await cli.ok("runs", "list", "-w", made["id"])) == 2
    both = Cli(tmp_path, TERRAPOD_ADDRESS=server.url, TERRAPOD_TOKEN=server.token)
    raced = await asyncio.gather(*(both(*begin, "raced", "--create", "--message", text) for text in ("one", "two")))
    assert [said.code for said in raced] == [0, 0], raced
    assert len(await cli.ok("runs", "list", "-w", "raced")) == 2
    said = await cli(*begin, "no name", "--create")
    assert (said.code, "name" in said.err) == (2, True), said
    said = await cli(*begin, f"{made['id'][:-4]}zzzz", "--create")
    assert said.code == 5, "an id is no name for a new one"
    assert "--create" not in said.err


async def test_whoami_and_signing_in_with_a_token(server: Running, tmp_path: Path) -> None:
    cli = Here(tmp_path)
    said = await cli("login", server.url, "--token-stdin", stdin=f"{server.token}\n")
    assert said.code == 0, said
    assert server.token not in said.out + said.err
    file = tmp_path / ".terraform.d" / "credentials.tfrc.json"
    name = server.url.removeprefix("http://")
    assert json.loads(file.read_text()) == {"credentials": {name: {"token": server.token}}}
    assert file.stat().st_mode & 0o777 == 0o600

    who = await cli("whoami", "--host", server.url, "--json")
    assert who.json["host"] == name
    assert who.json["token-source"] == str(file)
    assert server.token not in who.out
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {server.token}"}) as api:
        details = (await api.get(f"{server.url}/api/v2/account/details")).json()["data"]
    assert (who.json["id"], who.json["email"]) == (details["id"], details["attributes"]["email"])
    assert who.json["email"] in (await cli("whoami", "--host", server.url)).out

    refused = await cli("login", server.url, "--token-stdin", stdin="tpod_wrong\n")
    assert refused.code == 3
    assert server.token in file.read_text(), "a token that is not good replaces none"
    assert (await cli("login", server.url, "--token-stdin", stdin="\n")).code == 2
    assert (await cli.ok("logout", server.url)) == {"host": name, "deleted": True}
    assert (await cli("logout", server.url)).code == 5
    assert (await cli("whoami", "--host", server.url)).code == 3


async def test_own_tokens_and_their_limits(cli: Cli, server: Running, tmp_path: Path) -> None:
    workspace = await cli.ok("workspaces", "create", "mine")
    said = await cli("tokens", "create", "--description", "for CI", "--expires", "30d", "--read-only", "-w", "mine")
    text = said.out.strip()
    assert re.fullmatch(r"tpod_\S+", text), said
    assert text not in said.err
    listed = await cli("tokens", "list", "--json")
    assert text not in listed.out
    row = next(row for row in listed.json if row["description"] == "for CI")
    assert (row["read-only"], row["workspace-id"], "token" in row) == (True, workspace["id"], False)
    assert row["expired-at"] > row["created-at"]

    limited = of_server(server, tmp_path, token=text)
    assert (await limited.ok("workspaces", "show", "mine"))["id"] == workspace["id"]
    assert (await limited("workspaces", "lock", "mine")).code == 4
    assert (await limited("workspaces", "create", "more")).code == 4
    assert (await cli("tokens", "list")).out.count("for CI") == 1
    await cli.ok("tokens", "delete", row["id"])
    assert (await limited("whoami")).code == 3, "it is no longer good at once"
    assert (await cli("tokens", "delete", row["id"])).code == 5
    for wrong in ("yesterday", "2001-01-01T00:00:00Z", "99999999999999d"):
        assert (await cli("tokens", "create", "--description", "x", "--expires", wrong)).code == 2, wrong
    made = await cli.ok("tokens", "create", "--description", "x", "--expires", "2090-01-01T00:00:00+02:00")
    assert made["expired-at"].startswith("2089-12-31T22:00:00")
    assert made["token"].startswith("tpod_")


async def test_users_and_roles(cli: Cli, server: Running, tmp_path: Path) -> None:
    user = await cli.ok("users", "create", "Alice@example.com", "--name", "Alice")
    assert user["email"] == "alice@example.com"
    assert (await cli("users", "create", "alice@example.com")).code == 6
    assert (await cli("users", "create", "nonsense")).code == 2
    assert [row["id"] for row in await cli.ok("users", "list", "--search", "alice")] == [user["id"]]
    assert (await cli.ok("users", "show", "alice@example.com"))["display-name"] == "Alice"

    alice = of_server(server, tmp_path, token=await server.person("bob@example.com"))
    assert (await alice("users", "list")).code == 4
    assert (await alice("roles", "list")).code == 4
    await cli.ok("workspaces", "create", "dev", "--label", "env=dev")
    assert (await alice("workspaces", "show", "dev")).code == 5, "what may not be read is not there"

    role = await cli.ok(
        "roles", "create", "developer", "--level", "plan", "--description", "develops",
        "--allow-label", "env=dev", "--allow-label", "env=test", "--deny-name", "prod",
    )  # fmt: skip
    assert (role["workspace-permission"], role["allow-labels"], role["deny-names"]) == (
        "plan",
        {"env": ["dev", "test"]},
        ["prod"],
    )
    table = await cli("roles", "list")
    assert re.search(r"^developer +plan +env=dev\|test +prod +develops", table.out, re.MULTILINE), table.out
    assert {row["name"] for row in await cli.ok("roles", "list")} == {"admin", "audit", "everyone", "developer"}
    given = await cli.ok("roles", "assign", "bob@example.com", "developer")
    assert [row["role-name"] for row in given] == ["developer"]
    assert (await alice.ok("workspaces", "lock", "dev"))["locked"] is True
    assert (await alice("workspaces", "delete", "dev", "--yes")).code == 4

    await cli.ok("roles", "update", "developer", "--level", "read", "--clear", "deny-names")
    shown = await cli.ok("roles", "show", "developer")
    assert (shown["workspace-permission"], shown["deny-names"], shown["allow-labels"]) == (
        "read",
        [],
        {"env": ["dev", "test"]},
    )
    assert (await cli("roles", "update", "developer")).code == 2
    assert (await alice("workspaces", "unlock", "dev")).code == 4
    await cli.ok("roles", "assign", "bob@example.com", "audit")
    mine = await cli.ok("roles", "assignments", "--email", "bob@example.com")
    assert [row["role-name"] for row in mine] == ["audit", "developer"], "others stay"
    assert (await alice("users", "list")).code == 0
    await cli.ok("roles", "unassign", "bob@example.com", "developer")
    assert [row["role-name"] for row in await cli.ok("roles", "assign", "bob@example.com", "developer", "--only")] == [
        "developer"
    ]
    assert (await cli("roles", "assign", "bob@example.com", "nonsense")).code == 2
    assert (await cli("roles", "unassign", "bob@example.com", "audit")).code == 5
    assert (await cli("roles", "delete", "admin", "--yes")).code == 2

    me = (await cli.ok("whoami"))["email"]
    lockout = await cli("roles", "unassign", me, "admin")
    assert lockout.code == 6, "nobody shuts itself out by mistake"
    assert (await cli("users", "deactivate", me)).code == 6
    assert (await cli.ok("users", "deactivate", "bob@example.com"))["is-active"] is False
    assert (await alice("whoami")).code == 3
    assert (await cli.ok("users", "activate", "bob@example.com"))["is-active"] is True
    await cli.ok("roles", "delete", "developer", "--yes")
    assert await cli.ok("roles", "assignments", "--email", "bob@example.com") == []
    await cli.ok("users", "delete", "bob@example.com", "--yes")
    assert (await cli("users", "show", "bob@example.com")).code == 5

"""Private modules: made, published, listed, fetched as terraform fetches them, removed."""

import asyncio
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from tortoise import connections

from kit.serving import Running, running, tar

LIST = "/organizations/default/registry-modules"
FILES = tar({"main.tf": b'output "word" { value = "hello" }\n'})


def one(name: str = "vpc", provider: str = "aws") -> str:
    return f"{LIST}/private/default/{name}/{provider}"


async def make(server: Running, name: str = "vpc", provider: str = "aws", **more: Any) -> dict[str, Any]:
    made = await server.post(LIST, {"name": name, "provider": provider, **more}, "registry-modules")
    assert made.status_code == 201, made.text
    data: dict[str, Any] = made.json()["data"]
    return data


async def announce(server: Running, version: str, path: str = "") -> str:
    made = await server.post(
        f"{path or one()}/versions", {"version": version, "commit-sha": None}, "registry-module-versions"
    )
    assert made.status_code == 201, made.text
    link: str = made.json()["data"]["links"]["upload"]
    return link


async def put(link: str, content: bytes = FILES, headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as anybody:
        return await anybody.put(link, content=content, headers=headers)


async def publish(server: Running, *versions: str, content: bytes = FILES) -> None:
    for version in versions:
        landed = await put(await announce(server, version), content)
        assert landed.status_code == 200, landed.text


async def listed(server: Running, names: str = "default/vpc/aws") -> list[str]:
    answer = await server.api.get(f"/registry/modules/{names}/versions")
    assert answer.status_code == 200, answer.text
    return [entry["version"] for entry in answer.json()["modules"][0]["versions"]]


async def fetched(server: Running, version: str, method: str = "GET") -> httpx.Response:
    """The archive as go-getter has it: without a token, from where the header says."""
    found = await server.api.get(f"/registry/modules/default/vpc/aws/{version}/download")
    assert (found.status_code, found.content) == (204, b""), found.text
    async with httpx.AsyncClient(timeout=30) as anybody:
        return await anybody.request(method, server.url + found.headers["X-Terraform-Get"])


async def stored(server: Running) -> list[str]:
    return await server.services.store.keys("modules/")


async def test_a_module_from_its_creation_to_its_end(server: Running) -> None:
    module = await make(server, labels={"team": "net"})
    assert module["id"].startswith("mod-")
    shown = module["attributes"]
    assert (shown["name"], shown["provider"], shown["namespace"], shown["registry-name"]) == (
        "vpc", "aws", "default", "private",
    )  # fmt: skip
    assert (shown["status"], shown["version-statuses"], shown["labels"]) == ("pending", [], {"team": "net"})
    assert shown["owner-email"] == "admin@localhost"
    assert set(shown["permissions"]) >= {"can-update", "can-destroy", "can-create-version", "can-delete", "can-resync",
                                         "can-retry"}  # fmt: skip
    assert all(shown["permissions"].values())
    await publish(server, "1.9.0", "1.10.0-rc.1", "1.10.0", "2.0.0+meta.1")
    pending = await announce(server, "3.0.0")
    assert await listed(server) == ["2.0.0+meta.1", "1.10.0", "1.10.0-rc.1", "1.9.0"], "only what is uploaded"
    for path in (one(), f"/registry-modules/{module['id']}", one().replace("/vpc/", "/vpc//"), one() + "/"):
        answer = await server.api.get(path)
        assert answer.status_code == 200, answer.text
        found = answer.json()["data"]["attributes"]
        assert found["status"] == "setup_complete"
        assert [(each["version"], each["status"]) for each in found["version-statuses"]] == [
            ("3.0.0", "pending"), ("2.0.0+meta.1", "ok"), ("1.10.0", "ok"), ("1.10.0-rc.1", "ok"), ("1.9.0", "ok"),
        ]  # fmt: skip
    assert (await fetched(server, "1.10.0")).content == FILES
    assert (await fetched(server, "2.0.0+meta.1")).content == FILES
    head = await fetched(server, "1.10.0", "HEAD")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(FILES)), b"")
    unready = await server.api.get("/registry/modules/default/vpc/aws/3.0.0/download")
    assert (unready.status_code, "not uploaded yet" in unready.text) == (404, True)
    version = await server.api.get(f"{one()}/version?module_version=1.10.0&include=registry-module")
    assert version.json()["data"]["attributes"]["status"] == "ok"
    assert version.json()["data"]["links"] == {}
    assert version.json()["included"][0]["id"] == module["id"]
    kept = await server.api.get("/registry/modules/default/vpc/aws/1.9.0/download")
    for path in (f"{one()}/versions/1.9.0", f"{one()}/2.0.0+meta.1"):
        assert (await server.api.delete(path)).status_code == 204
        assert (await server.api.delete(path)).status_code == 404
    assert await listed(server) == ["1.10.0", "1.10.0-rc.1"]
    async with httpx.AsyncClient() as anybody:
        gone = await anybody.get(server.url + kept.headers["X-Terraform-Get"])
        assert gone.status_code == 404, "a URL of a removed version is worth nothing"
    assert len(await stored(server)) == 2
    await publish(server, "1.9.0", content=tar({"other.tf": b""}))
    assert (await server.api.request("DELETE", one(), json=None)).status_code == 204
    assert (await server.api.get(one())).status_code == 404
    assert (await server.api.get("/registry/modules/default/vpc/aws/versions")).status_code == 404
    assert (await put(pending)).status_code == 404
    assert await stored(server) == []
    assert (await make(server))["attributes"]["version-statuses"] == []


async def test_an_upload_is_taken_once(server: Running) -> None:
    await make(server)
    link = await announce(server, "1.0.0")
    assert urlsplit(link).path.startswith("/api/v2/uploads/modules/")
    again = await announce(server, "1.0.0")  # what never came may be announced again
    sent = {"Content-Type": "application/vnd.api+json", "Authorization": f"Bearer {server.token}"}  # as terrasnek
    assert (await put(link, headers=sent)).status_code == 200
    assert (await put(link)).status_code == 200, "the same bytes again"
    assert (await put(again)).status_code == 200
    other = await put(link, tar({"other.tf": b""}))
    assert (other.status_code, "other bytes" in other.json()["errors"][0]["detail"]) == (409, True)
    taken = await server.post(f"{one()}/versions", {"version": "1.0.0"})
    assert (taken.status_code, taken.json()["errors"][0]["source"]["pointer"]) == (422, "/data/attributes/version")
    assert len(await stored(server)) == 1
    assert (await fetched(server, "1.0.0")).content == FILES
    assert (await put(link[:-1] + ("A" if link[-1] != "A" else "B"))).status_code == 404, "a forged URL"
    assert (await put(link.replace("uploads/modules", "uploads/configurations"))).status_code == 404
    download = link.replace("uploads/modules", "downloads/modules") + "/module.tar.gz"
    async with httpx.AsyncClient() as anybody:
        assert (await anybody.get(download)).status_code == 404, "the right to upload is no right to read"


async def test_uploads_at_once_leave_one(server: Running) -> None:
    await make(server)
    link = await announce(server, "1.0.0")
    archives = [tar({f"{number}.tf": b""}) for number in range(6)]
    answers = await asyncio.gather(*(put(link, archive) for archive in archives))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]
    won = archives[[answer.status_code for answer in answers].index(200)]
    assert (await fetched(server, "1.0.0")).content == won
    assert len(await stored(server)) == 1


async def test_what_is_no_archive_is_refused_and_nothing_is_kept(server: Running) -> None:
    await make(server)
    link = await announce(server, "1.0.0")
    for bad, word in (
        (b"", "empty"),
        (b"plain text", "not a gzip"),
        (tar({"../evil.tf": b""}), "outside"),
        (tar({"/evil.tf": b""}), "outside"),
        (tar({"a/../evil.tf": b""}), "'..'"),
        (FILES[:-20], "cut off"),
        (FILES + b"more", "follows"),
    ):
        answer = await put(link, bad)
        assert answer.status_code == 422, (bad[:20], answer.text)
        assert word in answer.json()["errors"][0]["detail"], answer.text
    assert await stored(server) == []
    assert await listed(server) == []
    assert (await server.api.get(one())).json()["data"]["attributes"]["status"] == "pending"
    assert (await put(link)).status_code == 200, "a refused upload spends nothing"


async def test_a_bomb_is_refused(server: Running) -> None:
    head = tarfile.TarInfo("zeros")
    head.size = 4 << 30
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    begun = packer.compress(head.tobuf()) + packer.flush(zlib.Z_FULL_FLUSH)
    mib = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    await make(server)
    answer = await put(await announce(server, "1.0.0"), begun + mib * 1025)
    assert (answer.status_code, "holds more than" in answer.text) == (422, True)
    assert await stored(server) == []


async def spoken(link: str, *head: str, body: bytes = b"") -> bytes:
    """What the server answers to a request that is said by hand, and then ends."""
    address = urlsplit(link)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    lines = [f"PUT {address.path} HTTP/1.1", "Host: x", *head, "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_an_upload_that_is_too_large_or_cut_is_refused(database_url: str, tmp_path: Path) -> None:
    most = 100_000
    async with running(tmp_path / "data", database_url, limits={"module_bytes": most}) as server:
        await make(server)
        link = await announce(server, "1.0.0")
        assert b" 413 " in await spoken(link, f"Content-Length: {most + 1}")
        large = tar({"noise": os.urandom(most)})[: most + 1]
        chunked = f"{len(large):x}\r\n".encode() + large + b"\r\n"
        assert b" 413 " in await spoken(link, "Transfer-Encoding: chunked", body=chunked)
        await spoken(link, f"Content-Length: {len(FILES)}", body=FILES[:40])
        assert await stored(server) == []
        assert await listed(server) == []
        assert (await put(link)).status_code == 200


async def test_lists_are_searched_filtered_and_paged(server: Running) -> None:
    for name, provider in (("vpc", "aws"), ("vpc", "google"), ("my_db", "aws"), ("mydb", "azurerm")):
        await make(server, name, provider)

    async def found(query: str) -> list[str]:
        answer = await server.api.get(f"{LIST}?{query}")
        assert answer.status_code == 200, answer.text
        assert all(all(each["attributes"]["permissions"].values()) for each in answer.json()["data"])
        return [f"{e['attributes']['name']}/{e['attributes']['provider']}" for e in answer.json()["data"]]

    every = ["my_db/aws", "mydb/azurerm", "vpc/aws", "vpc/google"]
    assert sorted(await found("")) == every
    assert sorted(await found("q=default")) == every
    assert sorted(await found("q=VPC")) == ["vpc/aws", "vpc/google"]
    assert await found("q=y_d") == ["my_db/aws"], "an underscore is no wildcard"
    assert await found("q=%25") == []
    assert await found("q=goog") == ["vpc/google"]
    assert sorted(await found("filter%5Bprovider%5D=aws")) == ["my_db/aws", "vpc/aws"]
    assert await found("filter%5Bprovider%5D=aws&q=vpc") == ["vpc/aws"]
    assert sorted(await found("filter[registry_name]=private&filter[organization_name]=default")) == every
    assert await found("filter[registry_name]=public") == await found("filter[organization_name]=other") == []
    page = (await server.api.get(f"{LIST}?page[size]=3&page[number]=2")).json()
    assert (len(page["data"]), page["meta"]["pagination"]["total-count"]) == (1, 4)


async def test_labels_are_shown_and_can_be_searched(server: Running) -> None:
    module = await make(server, labels={"team": "net", "tier": "1"})

    async def labels() -> set[tuple[str, str]]:
        rows = await connections.get("default").execute_query_dict("SELECT * FROM registry_module_label")
        return {(row["key"], row["value"]) for row in rows if row["module_id"] == module["id"]}

    assert await labels() == {("team", "net"), ("tier", "1")}

    async def patch(attributes: dict[str, Any]) -> httpx.Response:
        return await server.api.patch(one(), json={"data": {"type": "registry-modules", "attributes": attributes}})

    for asked in ({"no-code": True}, {"test-config": {"tests-enabled": True}}):
        assert (await patch({"labels": {"team": "x"}, **asked})).status_code == 422
    changed = await patch({"labels": {"team": "db"}, "no-code": False, "test-config": {"tests-enabled": False}})
    assert (changed.status_code, changed.json()["data"]["attributes"]["labels"]) == (200, {"team": "db"})
    assert await labels() == {("team", "db")}
    assert (await patch({})).json()["data"]["attributes"]["labels"] == {"team": "db"}
    assert (await patch({"labels": ["x"]})).json()["errors"][0]["source"]["pointer"] == "/data/attributes/labels"
    assert (await patch({"name": "other"})).status_code == 422
    assert (await patch({"name": "vpc", "provider": "aws"})).status_code == 200
    answers = await asyncio.gather(*(patch({"labels": {"team": str(number)}}) for number in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    shown = (await server.api.get(one())).json()["data"]["attributes"]["labels"]
    assert await labels() == set(shown.items())
    assert (await server.api.delete(one())).status_code == 204
    assert await labels() == set()


async def test_every_way_to_remove(server: Running) -> None:
    for provider in ("aws", "google", "azurerm"):
        await make(server, "vpc", provider)
        await announce(server, "1.0.0", one("vpc", provider))
        await announce(server, "1.1.0-b+c", f"/registry-modules/default/vpc/{provider}")
    act = "/registry-modules/actions/delete/default/vpc"
    assert (await server.api.post(f"{act}/aws/1.1.0-b+c")).status_code == 204
    assert (await server.api.get(f"{one()}/version?module_version=1.1.0-b%2Bc")).status_code == 404
    assert (await server.api.get(f"{one()}/version?module_version=1.0.0")).status_code == 200
    assert (await server.api.post(f"{act}/aws")).status_code == 204
    assert (await server.api.get(one())).status_code == 404
    assert (await server.api.post(act)).status_code == 204
    assert (await server.api.post(act)).status_code == 404
    assert (await server.api.get(LIST)).json()["data"] == []
    await make(server)
    await make(server, "vpc", "google")
    assert (await server.api.delete(f"{LIST}/public/default/vpc")).status_code == 404
    assert (await server.api.delete(f"{LIST}/private/default/vpc")).status_code == 204
    assert (await server.api.get(LIST)).json()["data"] == []


async def test_versions_of_a_module_that_goes_leave_nothing(pg_server: Running) -> None:
    for _ in range(5):
        await make(pg_server)
        announced = (pg_server.post(f"{one()}/versions", {"version": f"1.0.{number}"}) for number in range(6))
        answers = await asyncio.gather(pg_server.api.delete(one()), *announced)
        assert answers[0].status_code == 204
        assert {answer.status_code for answer in answers[1:]} <= {201, 404}
        left = await connections.get("default").execute_query_dict("SELECT * FROM registry_module_version")
        assert left == []


async def test_modules_and_versions_made_at_once(pg_server: Running) -> None:
    attributes = {"name": "vpc", "provider": "aws"}
    made = await asyncio.gather(*(pg_server.post(LIST, attributes) for _ in range(6)))
    assert sorted(answer.status_code for answer in made) == [201, 422, 422, 422, 422, 422]
    answers = await asyncio.gather(*(pg_server.post(f"{one()}/versions", {"version": "1.0.0"}) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1


async def test_bad_names_are_refused(server: Running) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "name"), ({"name": "vpc"}, "provider"), ({"name": "..", "provider": "aws"}, "name"),
        ({"name": "a/b", "provider": "aws"}, "name"), ({"name": "é", "provider": "aws"}, "name"),
        ({"name": "vpc", "provider": "AWS"}, "provider"), ({"name": "vpc", "provider": "a-b"}, "provider"),
        ({"name": 7, "provider": "aws"}, "name"), ({"name": "vpc", "provider": "aws", "labels": 7}, "labels"),
        ({"name": "vpc", "provider": "aws", "namespace": "other"}, "namespace"),
        ({"name": "vpc", "provider": "aws", "registry-name": "public"}, "registry-name"),
    ]  # fmt: skip
    for attributes, wrong in cases:
        answer = await server.post(LIST, attributes)
        assert answer.status_code == 422, (attributes, answer.text)
        assert answer.json()["errors"][0]["source"]["pointer"] == f"/data/attributes/{wrong}"
    more: dict[str, Any] = {"namespace": "default", "registry-name": "private", "no-code": False}
    await make(server, **more)
    assert (await server.post(LIST, {"name": "vpc", "provider": "aws"})).status_code == 422
    for version in ("1.0", "v1.0.0", "../x", "1.0.0/x", "", "1.0.0 ", "٣.0.0"):
        answer = await server.post(f"{one()}/versions", {"version": version})
        assert answer.status_code == 422, (version, answer.text)
        assert answer.json()["errors"][0]["source"]["pointer"] == "/data/attributes/version"
    assert (await server.post(f"{one()}/versions", {})).status_code == 422
    long = {"version": "1.0.0", "commit-sha": "a" * 65}
    assert (await server.post(f"{one()}/versions", long)).status_code == 422
    for names in ("default/../aws", "default/%2e%2e/aws", "default/vpc%2Faws/aws", "other/vpc/aws", "default/vpc/AWS",
                  "default/%C3%A9/aws", "default/vpc/aws%2f", "default/" + "a" * 300 + "/aws"):  # fmt: skip
        for path in (f"/registry/modules/{names}/versions", f"/registry/modules/{names}/1.0.0/download",
                     f"{LIST}/private/{names}"):  # fmt: skip
            answer = await server.api.get(path)
            assert answer.status_code == 404, (path, answer.text)
    for version in ("..", "%2e%2e%2f", "1.0.0%00", "9" * 300, "%F0%9F%92%A9"):
        answer = await server.api.get(f"/registry/modules/default/vpc/aws/{version}/download")
        assert answer.status_code == 404, answer.text


async def test_discovery_names_the_registry_and_a_stranger_gets_nothing(server: Running) -> None:
    await make(server)
    await publish(server, "1.0.0")
    async with httpx.AsyncClient(base_url=server.url) as anybody:
        services = (await anybody.get("/.well-known/terraform.json")).json()
        assert services["modules.v1"] == "/api/v2/registry/modules/"
        for rest in ("versions", "1.0.0/download"):
            answer = await anybody.get(f"{services['modules.v1']}default/vpc/aws/{rest}")
            assert answer.status_code == 401


async def test_rights_come_from_labels_names_and_owner(server: Running) -> None:
    for name, level in (("reader", "read"), ("planner", "plan"), ("writer", "write")):
        attributes = {"name": name, "workspace-permission": level, "allow-labels": {"for": name}}
        assert (await server.post("/roles", attributes)).status_code == 201
    made = {}
    for name in ("reader", "planner", "writer", "nobody"):
        made[name] = await make(server, name, labels={"for": name})
        landed = await put(await announce(server, "1.0.0", one(name)))
        assert landed.status_code == 200
    async with server.as_(await server.person("ann@example.org", "reader", "planner", "writer")) as ann:
        listed = (await ann.get(LIST)).json()
        assert listed["meta"]["pagination"]["total-count"] == 3
        flags = {row["attributes"]["name"]: row["attributes"]["permissions"] for row in listed["data"]}
        assert {name: flag["can-create-version"] for name, flag in flags.items()} == {
            "reader": False, "planner": False, "writer": True,
        }  # fmt: skip
        assert not any(flag["can-update"] or flag["can-destroy"] or flag["can-delete"] for flag in flags.values())
        for path in (one("nobody"), f"/registry-modules/{made['nobody']['id']}", f"{one('nobody')}/version?module_version=1.0.0",
                     "/registry/modules/default/nobody/aws/versions",
                     "/registry/modules/default/nobody/aws/1.0.0/download"):  # fmt: skip
            assert (await ann.get(path)).status_code == 404, path
        assert (await ann.get("/registry/modules/default/planner/aws/1.0.0/download")).status_code == 204
        version = {"data": {"attributes": {"version": "2.0.0"}}}
        removal: dict[str, Any] = {"data": {"attributes": {"labels": {}}}}
        assert (await ann.post(f"{one('reader')}/versions", json=version)).status_code == 403
        assert (await ann.post("/registry-modules/default/planner/aws/versions", json=version)).status_code == 403
        assert (await ann.post("/registry-modules/default/nobody/aws/versions", json=version)).status_code == 404
        assert (await ann.post(f"{one('writer')}/versions", json=version)).status_code == 201
        assert (await ann.patch(one("writer"), json=removal)).status_code == 403
        for path in (one("writer"), f"{LIST}/private/default/writer", f"{one('writer')}/1.0.0",
                     f"{one('writer')}/versions/1.0.0"):  # fmt: skip
            assert (await ann.delete(path)).status_code == 403, path
        assert (await ann.delete(f"{LIST}/private/default/nobody")).status_code == 404
        assert (await ann.post("/registry-modules/actions/delete/default/nobody/aws/1.0.0")).status_code == 404
        owned = await ann.post(LIST, json={"data": {"attributes": {"name": "mine", "provider": "aws"}}})
        assert (owned.status_code, owned.json()["data"]["attributes"]["owner-email"]) == (201, "ann@example.org")
        assert all(owned.json()["data"]["attributes"]["permissions"].values())
        assert (await ann.patch(one("mine"), json=removal)).status_code == 200
        await make(server, "mine", "google")
        assert (await ann.delete(f"{LIST}/private/default/mine")).status_code == 404, "one of them is not hers"
        assert (await ann.get(one("mine"))).status_code == 200, "all or none"
        assert (await ann.delete(one("mine"))).status_code == 204


async def test_nobody_takes_its_own_rights_by_mistake(server: Running) -> None:
    attributes = {"name": "lead", "workspace-permission": "admin", "allow-labels": {"team": "net"}}
    assert (await server.post("/roles", attributes)).status_code == 201
    await make(server, labels={"team": "net"})
    async with server.as_(await server.person("ann@example.org", "lead")) as ann:
        sent: dict[str, Any] = {"labels": {"team": "db"}}
        refused = await ann.patch(one(), json={"data": {"attributes": sent}})
        assert (refused.status_code, "from admin to none" in refused.text) == (409, True)
        assert (await ann.get(one())).json()["data"]["attributes"]["labels"] == {"team": "net"}
        done = await ann.patch(one(), json={"data": {"attributes": {**sent, "force": True}}})
        assert (done.status_code, "force" in done.json()["data"]["attributes"]) == (200, False)
        assert (await ann.get(one())).status_code == 404


async def test_tokens_with_limits_make_no_module(server: Running) -> None:
    workspace = await server.workspace()
    await make(server, labels={"access": "everyone"})
    for limits, level in (({"read_only": True}, 200), ({"workspace_id": workspace["id"]}, 404)):
        async with server.as_(await server.person(f"{level}@example.org", "admin", **limits)) as limited:
            made = await limited.post(LIST, json={"data": {"attributes": {"name": "x", "provider": "aws"}}})
            assert made.status_code == 403, made.text
            assert (await limited.get(one())).status_code == level
            assert (await limited.delete(one())).status_code in {403, 404}

"""Engines from a release site on loopback, and from files: what is signed, by whom, and what is not."""

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kit.openpgp import Signer
from kit.release_site import ReleaseSite, release_site, release_zip
from kit.serving import Running, running
from terrapod_server.agents.model import Listener
from terrapod_server.agents.protocol import work
from terrapod_server.config.settings import Engines
from terrapod_server.engines import actions
from terrapod_server.engines.model import EngineFile
from terrapod_server.runs.model import Run
from terrapod_shared import errors

pytestmark = pytest.mark.sqlite_alone(
    reason="sites, signatures and files; what is kept of them is one table without a condition of its own"
)


@pytest.fixture
async def cached(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Running, ReleaseSite]]:
    with release_site() as site:
        site.index("1.11.3", "1.11.4", "1.12.0-rc1")
        async with running(tmp_path / "data", database_url, engines=site.engines) as server:
            yield server, site


async def test_a_binary_is_fetched_verified_and_kept(cached: tuple[Running, ReleaseSite]) -> None:
    server, site = cached
    raw = site.release("terraform", "1.11.4")
    path = "/binary-cache/terraform/1.11/linux/amd64"
    answers = await asyncio.gather(*(server.api.get(path) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {302}
    assert sum(asked.endswith(".zip") for asked in site.asked) == 1, "fifty first requests fetch once"
    got = await server.api.get(answers[0].headers["location"], headers={"Authorization": ""})
    assert got.content == raw
    listed = (await server.api.get("/admin/binary-cache")).json()["data"][0]["attributes"]
    assert (listed["version"], listed["sha256"]) == ("1.11.4", hashlib.sha256(raw).hexdigest())
    assert (listed["source"], listed["signed-by"]) == ("fetched", site.signer.fingerprint)
    assert (await server.api.delete("/admin/binary-cache/terraform/1.11.4")).json() == {"purged": 1}
    assert (await server.api.delete("/admin/binary-cache/terraform/1.11.4")).status_code == 404


async def test_a_wrong_checksum_is_refused_and_not_kept(cached: tuple[Running, ReleaseSite]) -> None:
    server, site = cached
    site.release("terraform", "1.11.4", listed="0" * 64)
    answer = await server.api.get("/binary-cache/terraform/1.11.4/linux/amd64")
    assert (answer.status_code, "SHA-256" in answer.text) == (502, True)
    assert (await server.api.get("/admin/binary-cache")).json()["data"] == []
    site.release("terraform", "1.11.4")
    assert (await server.api.get("/binary-cache/terraform/1.11.4/linux/amd64")).status_code == 302


async def test_warm_tofu_and_bad_names(cached: tuple[Running, ReleaseSite]) -> None:
    server, site = cached
    site.index("1.11.3", "1.11.7")
    site.release("tofu", "1.11.7")
    warmed = await server.api.post("/admin/binary-cache/warm", json={"tool": "tofu", "version": "latest"})
    assert warmed.status_code == 200, warmed.text
    assert warmed.json()["data"]["attributes"]["version"] == "1.11.7"
    for path in ("packer/1.0.0/linux/amd64", "terraform/1.11.4/plan9/amd64", "terraform/nine/linux/amd64"):
        assert (await server.api.get(f"/binary-cache/{path}")).status_code == 422, path
    assert (await server.api.get("/binary-cache/terraform/1.11.3/linux/amd64")).status_code == 404


PATH = "/binary-cache/terraform/1.11.4/linux/amd64"
SUMS = "/terraform/1.11.4/terraform_1.11.4_SHA256SUMS"


async def test_checksums_that_are_not_signed_are_not_believed(cached: tuple[Running, ReleaseSite]) -> None:
    server, site = cached
    site.release("terraform", "1.11.4")
    signature = site.files.pop(f"{SUMS}.sig")
    answer = await server.api.get(PATH)
    assert (answer.status_code, "engines.require_signatures" in answer.text) == (502, True)
    site.release("terraform", "1.11.4", signer=(other := Signer("other")))
    answer = await server.api.get(PATH)
    assert (answer.status_code, site.signer.fingerprint in answer.text) == (502, True)
    site.files[f"{SUMS}.sig"] = b"<html>" * 10
    assert (await server.api.get(PATH)).status_code == 502
    # another list under the signature of the true one, then the true list under a signature of another release's
    site.files[SUMS] = f"{'0' * 64}  terraform_1.11.4_linux_amd64.zip\n".encode()
    site.files[f"{SUMS}.sig"] = signature
    assert (await server.api.get(PATH)).status_code == 502
    site.release("terraform", "1.11.4")
    site.release("terraform", "1.11.3", b"another release")
    site.files[f"{SUMS}.sig"] = site.files["/terraform/1.11.3/terraform_1.11.3_SHA256SUMS.sig"]
    assert (await server.api.get(PATH)).status_code == 502
    assert other.fingerprint != site.signer.fingerprint
    assert not [asked for asked in site.asked if asked.endswith(".zip")], "nothing is fetched for a bad list"
    assert (await server.api.get("/admin/binary-cache")).json()["data"] == []
    del site.files[f"{SUMS}.sig"]
    site.release("terraform", "1.11.4", signature=".72D7468F.sig")
    assert (await server.api.get(PATH)).status_code == 302, "HashiCorp's other name of it"


async def test_a_good_list_of_another_version_says_nothing_of_this_one(cached: tuple[Running, ReleaseSite]) -> None:
    server, site = cached
    site.release("terraform", "1.11.3")
    site.release("terraform", "1.11.4")
    for suffix in ("", ".sig"):
        site.files[SUMS + suffix] = site.files[f"/terraform/1.11.3/terraform_1.11.3_SHA256SUMS{suffix}"]
    answer = await server.api.get(PATH)
    assert (answer.status_code, "list no terraform_1.11.4_linux_amd64.zip" in answer.text) == (404, True)


async def test_what_came_unsigned_is_looked_at_again_once_signatures_are_needed(empty_url: str, tmp_path: Path) -> None:
    """A site that signs nothing is an owner's choice; its files are not believed after the choice was taken back."""
    with release_site() as site:
        site.index("1.11.3", "1.11.4")
        good = site.release("terraform", "1.11.4")
        signature = site.files.pop(f"{SUMS}.sig")
        loose = {**site.engines, "require_signatures": False}
        async with running(tmp_path / "data", empty_url, engines=loose) as server:
            assert (await server.api.get(PATH)).status_code == 302
            (row,) = (await server.api.get("/admin/binary-cache")).json()["data"]
            assert row["attributes"]["signed-by"] == ""
            site.release("terraform", "1.11.3", signer=Signer("other"))
            bad = await server.api.get("/binary-cache/terraform/1.11.3/linux/amd64")
            assert bad.status_code == 502, "a bad signature is worse than none"
        async with running(tmp_path / "data", empty_url, engines=site.engines) as server:
            assert (await server.api.get(PATH)).status_code == 502
            site.files[f"{SUMS}.sig"] = signature
            assert (await server.api.get(PATH)).status_code == 302
            (row,) = (await server.api.get("/admin/binary-cache")).json()["data"]
            assert row["attributes"]["signed-by"] == site.signer.fingerprint
            assert sum(asked.endswith(".zip") for asked in site.asked) == 1, "the file was good and stayed"
        async with running(tmp_path / "data", empty_url, engines=loose) as server:
            site.files.pop(f"{SUMS}.sig")
            await server.api.delete("/admin/binary-cache/terraform/1.11.4")
            site.release("terraform", "1.11.4", release_zip("terraform", b"#!/bin/sh\necho evil\n"))
            del site.files[f"{SUMS}.sig"]
            assert (await server.api.get(PATH)).status_code == 302
        async with running(tmp_path / "data", empty_url, engines=site.engines) as server:
            site.release("terraform", "1.11.4", good)
            location = (await server.api.get(PATH)).headers["location"]
            assert (await server.api.get(location, headers={"Authorization": ""})).content == good


async def test_without_a_site_what_is_imported_counts(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "terraform_1.9.8_linux_amd64.zip"
    path.write_bytes(release_zip("terraform"))
    made = await actions.import_zip(server.services, path, unsigned=True)
    assert (made.version, made.source, made.signed_by) == ("1.9.8", "unsigned", "")
    assert await actions.resolve(server.services, "terraform", "1.9") == "1.9.8"
    assert (await server.api.get("/binary-cache/terraform/latest/linux/amd64")).status_code == 302
    (listed,) = (await server.api.get("/admin/binary-cache")).json()["data"]
    assert (listed["attributes"]["source"], listed["attributes"]["signed-by"]) == ("unsigned", "")
    with pytest.raises(errors.Invalid, match="cannot be reached"):
        await actions.resolve(server.services, "terraform", "1.10")
    for name, content in (
        ("terraform.zip", b""),
        ("terraform_1.9.9_linux_amd64.zip", b"no zip"),
        ("tofu_1.9.9_linux_amd64.zip", release_zip("terraform")),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        with pytest.raises(errors.Invalid):
            await actions.import_zip(server.services, bad, unsigned=True)


async def test_an_import_needs_its_signed_checksums(empty_url: str, tmp_path: Path) -> None:
    ours, other = Signer("ours"), Signer("other")
    keys = {"terraform_keys": ours.write(tmp_path / "keys.asc")}
    zip_ = tmp_path / "terraform_1.9.8_linux_amd64.zip"
    zip_.write_bytes(release_zip("terraform"))
    digest = hashlib.sha256(zip_.read_bytes()).hexdigest()
    sums, signature = tmp_path / "terraform_1.9.8_SHA256SUMS", tmp_path / "terraform_1.9.8_SHA256SUMS.sig"
    line = f"{digest}  {zip_.name}\n".encode()
    async with running(tmp_path / "data", empty_url, engines=keys) as server:

        async def refused(why: str) -> None:
            with pytest.raises(errors.Invalid, match=why):
                await actions.import_zip(server.services, zip_)
            assert (await server.api.get("/admin/binary-cache")).json()["data"] == []

        await refused("--unsigned")
        sums.write_bytes(line)
        await refused("no signature")
        signature.write_bytes(other.sign(line))
        await refused("not to be believed")
        signature.write_bytes(ours.sign(line.replace(digest.encode(), b"0" * 64)))
        await refused("not to be believed")
        sums.write_bytes(line.replace(digest.encode(), b"0" * 64))
        await refused("its publisher lists 0000")
        wrong = line.replace(b"linux", b"darwin")
        sums.write_bytes(wrong)
        signature.write_bytes(ours.sign(wrong))
        await refused("list no terraform_1.9.8_linux_amd64.zip")
        elsewhere, its = tmp_path / "sums", tmp_path / "signature"
        elsewhere.write_bytes(line)
        its.write_bytes(ours.sign(line, armor=True))
        first = await actions.import_zip(server.services, zip_, unsigned=True)
        assert (first.source, first.signed_by) == ("unsigned", "")
        again = await actions.import_zip(server.services, zip_, sums=elsewhere, signature=its)
        assert (again.id, again.source, again.signed_by) == (first.id, "imported", ours.fingerprint)
        kept = await actions.import_zip(server.services, zip_, unsigned=True)
        assert kept.signed_by == ours.fingerprint, "what was checked stays checked"


async def test_versions_with_known_holes_are_not_used(cached: tuple[Running, ReleaseSite], tmp_path: Path) -> None:
    """A signature says who made a release, not that it is any good: an old one is signed as well as a new one."""
    server, site = cached
    site.index("1.4.6", "1.5.6", "1.5.7", "1.10.9", "1.11.6")
    for tool, version in (("terraform", "1.5.6"), ("tofu", "1.11.6"), ("tofu", "1.10.9")):
        site.release(tool, version)
        answer = await server.api.get(f"/binary-cache/{tool}/{version}/linux/amd64")
        assert (answer.status_code, "known hole" in answer.text) == (422, True), answer.text
        warmed = await server.api.post("/admin/binary-cache/warm", json={"tool": tool, "version": version})
        assert (warmed.status_code, f"engines.{tool}_floor" in warmed.text) == (422, True)
        zip_ = tmp_path / f"{tool}_{version}_linux_amd64.zip"
        zip_.write_bytes(release_zip(tool))
        with pytest.raises(errors.Invalid, match="known hole"):
            await actions.import_zip(server.services, zip_, unsigned=True)
    assert not [asked for asked in site.asked if asked.endswith((".zip", "SHA256SUMS"))]
    local = [("terraform", "1.5.6"), ("tofu", "1.9.0")]
    for tool, wanted in (("terraform", "1.5.6"), ("terraform", "v1.4"), ("terraform", "< 1.5"), ("tofu", "latest")):
        with pytest.raises(errors.Invalid, match=r"CVE-2023-4782|GHSA-wcmj-x466-56mm"):
            await actions.settle(server.services, tool, wanted, local, may_come=True)
    assert (await actions.settle(server.services, "terraform", "1.5", local, may_come=True)).version == "1.5.7"


async def test_a_row_from_before_the_floor_is_not_handed_out(cached: tuple[Running, ReleaseSite]) -> None:
    server, site = cached
    raw = site.release("terraform", "1.5.6")
    old = await EngineFile.create(
        tool="terraform",
        version="1.5.6",
        os="linux",
        arch="amd64",
        sha256=hashlib.sha256(raw).hexdigest(),
        size=len(raw),
    )
    with pytest.raises(errors.Invalid, match="known hole"):
        await actions.ensure(server.services, "terraform", "1.5.6", old.os, old.arch)
    with pytest.raises(errors.Invalid, match="known hole"):
        await actions.resolve(server.services, "terraform", "1.5.6")


async def test_an_owner_sets_another_floor(empty_url: str, tmp_path: Path) -> None:
    with release_site() as site:
        site.index("1.4.6", "1.9.0", "1.11.4")
        site.release("terraform", "1.4.6")
        floors = {"terraform_floor": "1.4.0", "tofu_floor": "1.11.0"}
        async with running(tmp_path / "data", empty_url, engines={**site.engines, **floors}) as server:
            assert (await server.api.get("/binary-cache/terraform/1.4/linux/amd64")).status_code == 302
            assert await actions.resolve(server.services, "tofu", "1.11") == "1.11.4"
            with pytest.raises(errors.Invalid, match=r"tofu 1\.9\.0 is below engines\.tofu_floor, 1\.11\.0"):
                await actions.resolve(server.services, "tofu", "1.9.0")


async def test_a_listeners_own_engine_is_under_the_floor_too(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home", engine="1.5.6")
    workspace = (await server.workspace(**{"terraform-version": "1.5.6"}))["id"]
    configuration = (await server.configuration(workspace))["id"]
    refused = await server.run(workspace, configuration)
    assert (refused.status_code, "CVE-2023-4782" in refused.text) == (422, True), refused.text
    await listener.close()


async def test_a_run_that_was_made_before_the_floor_rose_is_not_handed_out(empty_url: str, tmp_path: Path) -> None:
    async with running(tmp_path / "data", empty_url, engines={"terraform_floor": "1.4.0"}) as server:
        client = await server.listener(tmp_path / "home", engine="1.5.6")
        workspace = (await server.workspace(**{"terraform-version": "1.5.6"}))["id"]
        made = await server.run(workspace, (await server.configuration(workspace))["id"])
        assert made.status_code == 201, made.text
        run, listener = await Run.get(), await Listener.get()
        assert (await work._engine(server.services, listener, run)).local
        config = msgspec.structs.replace(server.services.config, engines=Engines())
        with pytest.raises(errors.Invalid, match="known hole"):
            await work._engine(dataclasses.replace(server.services, config=config), listener, run)
        await client.close()

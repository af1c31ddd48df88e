"""Engines from a release site on loopback, and from files."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.release_site import ReleaseSite, release_site, release_zip
from kit.serving import Running, running
from terrapod_server.mirror import actions
from terrapod_shared import errors


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
    site.release("tofu", "1.11.4")
    warmed = await server.api.post("/admin/binary-cache/warm", json={"tool": "tofu", "version": "latest"})
    assert warmed.status_code == 200, warmed.text
    assert warmed.json()["data"]["attributes"]["version"] == "1.11.4"
    for path in ("packer/1.0.0/linux/amd64", "terraform/1.11.4/plan9/amd64", "terraform/nine/linux/amd64"):
        assert (await server.api.get(f"/binary-cache/{path}")).status_code == 422, path
    assert (await server.api.get("/binary-cache/terraform/1.11.3/linux/amd64")).status_code == 404


async def test_without_a_site_what_is_imported_counts(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "terraform_1.9.8_linux_amd64.zip"
    path.write_bytes(release_zip("terraform"))
    made = await actions.import_zip(server.services, path)
    assert made.version == "1.9.8"
    assert await actions.resolve(server.services, "terraform", "1.9") == "1.9.8"
    assert (await server.api.get("/binary-cache/terraform/latest/linux/amd64")).status_code == 302
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
            await actions.import_zip(server.services, bad)

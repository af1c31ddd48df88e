"""`terrapod-server check`: every mistake at once and in words, and with `--connect` what a start would meet."""

import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kit.oidc import lying_provider
from kit.postgres import Postgres, free_port
from kit.process import FAKETIME, shifted
from kit.serving import running
from kit.site import BIN
from terrapod_server import app
from terrapod_server.commands import check, tls
from terrapod_server.config.load import Mistakes, load
from terrapod_server.kit.db import database
from terrapod_server.kit.http import certificates
from terrapod_server.store.cipher import KeyRing

MISTAKES = """
port = "x"
hots = "terrapod.example.com"
log_level = "loud"
trusted_proxies = "10.0.0.0/8"
public_url = "terrapod.example.com"
[storage]
kind = "tape"
[audit]
enabled = 1
[[auth.oidc]]
name = "corp"
isuer = "https://id.example.com"
scopes = "openid"
"""
IN_WORDS = [
    "port: must be a whole number, and is 'x'",
    "hots: there is no such setting; did you mean host?",
    "log_level: must be debug, info, warning or error, and is 'loud'",
    "trusted_proxies: must be a list of texts, and is '10.0.0.0/8'",
    "storage.kind: must be files or s3, and is 'tape'",
    "audit.enabled: must be true or false, and is 1",
    "auth.oidc[1].isuer: there is no such setting; did you mean issuer?",
    "auth.oidc[1].scopes: must be a list of texts, and is 'openid'",
    "auth.oidc[1].issuer: is missing",
    "auth.oidc[1].client_id: is missing",
    "TERRAPOD_AUTH__OIDC: can only be set in the settings file",
    "TERRAPOD_DATABASE_POOL: must be a whole number, and is 'many'",
    "TERRAPOD_STORAGE__BUKET: there is no such setting; did you mean TERRAPOD_STORAGE__BUCKET?",
    "public_url: must be https://NAME or https://NAME:PORT, and is 'terrapod.example.com'",
]


def test_mistakes_are_told_at_once_and_in_words(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(MISTAKES)
    environment = {
        "TERRAPOD_STORAGE__BUKET": "b",
        "TERRAPOD_DATABASE_POOL": "many",
        "TERRAPOD_AUTH__OIDC": "x",
        "TERRAPOD_PORT": "80",
    }
    with pytest.raises(Mistakes) as caught:
        load(environment, file)
    assert caught.value.lines == IN_WORDS


@pytest.mark.parametrize(
    "url",
    [
        "postgres://[::1",
        "postgres://h:abc/d",
        "mysql://x",
        "sqlite://",
        "postgres://u:s3cret@",
        "postgres://u:a@s3cret:5@h/d",
    ],
)
def test_a_database_url_that_is_none_is_not_repeated(url: str) -> None:
    with pytest.raises(Mistakes) as caught:
        load({"TERRAPOD_DATABASE_URL": url})
    (line,) = caught.value.lines
    assert line.startswith("database_url: ")
    assert "s3cret" not in line


def test_urls_that_hold_a_password_are_refused_without_it(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for scheme in ("https", "ftp"):
        url = f"{scheme}://u:s3cret@id.example.com"
        file.write_text(
            f'public_url = "{url}"\n[storage]\nendpoint = "{url}"\n'
            f'[[auth.oidc]]\nname = "corp"\nclient_id = "c"\nissuer = "{url}"\n'
        )
        with pytest.raises(Mistakes) as caught:
            load({}, file)
        assert sum("holds a user or a password before its host" in line for line in caught.value.lines) == 3
        assert "s3cret" not in str(caught.value.lines)


@pytest.mark.parametrize(
    ("text", "said"), [("a = " + "[" * 5000, "is nested too deep"), ("#" * (1 << 20) + "\n", "is larger than 1 MiB")]
)
def test_a_file_that_is_none_of_settings_is_told_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(Mistakes) as caught:
        load({}, file)
    assert caught.value.lines == [next(line for line in caught.value.lines if said in line)]


async def found(url: str, data: Path, **settings: Any) -> dict[str, list[str]]:
    """What `check --connect` finds, by level."""
    config = load({}, None, data=str(data), database_url=url, port=free_port(), **settings)
    return by_level([*check.of_settings(config, time.time()), *[each async for each in check.of_connections(config)]])


def by_level(findings: Iterable[check.Finding]) -> dict[str, list[str]]:
    levels: dict[str, list[str]] = {"ok": [], "warning": [], "error": []}
    for each in findings:
        levels[each.level].append(f"{each.what}: {each.text}")
    return levels


def provider(issuer: str) -> dict[str, Any]:
    return {"oidc": [{"name": "corp", "issuer": issuer, "client_id": "c"}]}


async def test_what_works_is_said_and_nothing_is_left(database_url: str, tmp_path: Path) -> None:
    async with running(tmp_path / "data", database_url) as server:
        assert (await server.workspace("one"))["id"]
    async with lying_provider() as corp:
        said = await found(
            database_url, tmp_path / "data", auth=provider(corp.issuer), public_url="https://terrapod.example.com"
        )
    assert (said["warning"], said["error"]) == ([], []), said
    shown = "\n".join(said["ok"])
    assert "its tables may be made, read and changed" in shown
    assert "storage: " in shown
    assert "an object was written, read and deleted" in shown
    assert f"auth.oidc corp: {corp.issuer} answers, and has keys" in shown
    assert "clock: agrees with " in shown
    assert not list((tmp_path / "data" / "store").glob("check-*"))
    await database.open_(database_url, app.MODELS)
    try:
        assert "terrapod_check" not in await database.tables()
    finally:
        await database.close()


async def test_a_first_start_is_tried_and_makes_nothing(tmp_path: Path) -> None:
    said = await found("", tmp_path / "data")
    assert said["error"] == []
    assert f"database: {tmp_path}/data/terrapod.sqlite3 is made at the first start" in said["ok"]
    assert [line for line in said["warning"] if "terraform speaks https only" in line]
    assert not (tmp_path / "data").exists()
    said = await found("", Path("/proc/terrapod"))
    assert [line.partition(":")[0] for line in said["error"]] == ["database", "storage"]


async def test_what_fails_is_told_all_at_once(postgres: Postgres, tmp_path: Path) -> None:
    url = await postgres.fresh("of_another")
    (tmp_path / "store").write_text("a file")
    nobody = f"http://127.0.0.1:{free_port()}"
    absent = url.replace("of_another", "absent")
    plain = "http://terrapod.example.com"
    said = await found(absent, tmp_path, auth=provider(nobody), public_url=plain)
    assert [line.partition(":")[0] for line in said["error"]] == ["database", "storage", "auth.oidc corp"]
    assert 'database "absent" does not exist: make it (CREATE DATABASE absent' in said["error"][0]
    assert f"{tmp_path}/store: File exists" in said["error"][1]
    assert "ConnectError (All connection attempts failed)" in said["error"][2]
    (line,) = said["warning"]
    assert line.startswith(
        f"public_url: clients are told {plain}, and terraform speaks https only: set public_url to the"
    )


async def test_rights_that_the_database_role_lacks_are_told(postgres: Postgres, tmp_path: Path) -> None:
    url = await postgres.fresh("with_tables")
    async with running(tmp_path / "data", url):
        pass
    owner = await asyncpg.connect(url)
    try:
        await owner.execute("DROP ROLE IF EXISTS reader")
        await owner.execute("CREATE ROLE reader LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        theirs = url.replace("postgres@", "reader@", 1)
        (line,) = (await found(theirs, tmp_path / "data"))["error"]
        assert "belong to postgres, so that reader cannot migrate them: REASSIGN OWNED BY postgres TO reader" in line
        empty = theirs.replace("with_tables", "empty_for_reader")
        await postgres.fresh("empty_for_reader")
        other = await asyncpg.connect(empty.replace("reader@", "postgres@"))
        await other.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        await other.close()
        (line,) = (await found(empty, tmp_path / "data"))["error"]
        assert "permission denied for schema public: let the role own the database" in line
    finally:
        await owner.close()


@pytest.mark.skipif(not FAKETIME.exists(), reason="faketime gives the program another clock")
def test_a_clock_that_is_wrong_is_told_with_the_exit_code(postgres: Postgres, tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "terrapod-server", "check", "--connect"],
        env={"PATH": os.environ["PATH"], "TERRAPOD_DATA": str(tmp_path), "TERRAPOD_DATABASE_URL": f"{postgres.base}/postgres", **shifted(95)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: clock: this host's is 95 s ahead of that of the database 'postgres'" in done.stderr
    assert "let NTP set it" in done.stderr
    assert "the settings are good" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_certificate_that_ends_soon_is_told(tmp_path: Path) -> None:
    certificate, key = tls.ensure(tmp_path, "localhost", KeyRing.create(tmp_path / "keys"), ())
    config = load({}, None, data=str(tmp_path), tls={"certificate": str(certificate), "key": str(key)})
    end = certificates.end_of(certificate.read_bytes())
    assert list(check.of_settings(config, end - 15 * 86400)) == []
    soon = by_level(check.of_settings(config, end - 7 * 86400))
    assert soon["warning"] == ["tls.certificate: ends in 7.0 days: renew it"]
    assert by_level(check.of_settings(config, end + 1))["error"] == ["tls.certificate: has ended: renew it"]

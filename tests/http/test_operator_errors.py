"""What an operator can mend ends a program with one line that says what, where and what to do, never with a stack trace."""

import asyncio
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import click
import httpx
import pytest
from click.testing import CliRunner

from kit.postgres import Postgres, free_port
from kit.process import Process
from kit.serving import until
from kit.site import BIN
from terrapod_cli.main import main as terrapod
from terrapod_listener.__main__ import main as listener
from terrapod_server.__main__ import main as server

#: Takes a package away from a program, as where the extra that brings it is not installed.
WITHOUT = "import sys\nfor name in {names!r}:\n    sys.modules[name] = None\n"
NOBODY = 65534


def one_line(commands: click.Group, *argv: str, code: int = 1, **environment: str) -> str:
    """The line by which a command ends."""
    done = CliRunner(env=environment).invoke(commands, argv)
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, len(done.stderr.splitlines())) == (code, 1), done.stderr
    return done.stderr.strip()


def program(*argv: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of `terrapod-server` as a program."""
    done = subprocess.run(
        [BIN / "terrapod-server", *argv], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


async def _of_somebody_else(postgres: Postgres) -> None:
    owner = await asyncpg.connect(await postgres.fresh("not_ours"))
    try:
        await owner.execute("DROP ROLE IF EXISTS guest")
        await owner.execute("CREATE ROLE guest LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    finally:
        await owner.close()


def test_a_database_that_cannot_be_used(postgres: Postgres, tmp_path: Path) -> None:
    at = postgres.base.partition("@")[2]
    asyncio.run(_of_somebody_else(postgres))
    (tmp_path / "text").write_text("no database")
    closed = free_port()
    said = {
        f"postgres://ann:s3cret@127.0.0.1:{closed}/x": (
            f"cannot reach the database 'x' at 127.0.0.1:{closed}: Connection refused: start it"
        ),
        f"postgres://ann:s3cret@{at}/x": f"the database 'x' at {at}: role \"ann\" does not exist: make the role (CREATE ROLE",
        f"postgres://postgres@{at}/absent": 'database "absent" does not exist: make it (CREATE DATABASE absent OWNER postgres)',
        f"postgres://guest@{at}/not_ours": f"cannot use the database 'not_ours' at {at}: ",
        f"postgres://postgres@{at}/postgres?sslmode=require": "correct sslmode in database_url",
        "sqlite:///nowhere/at/all.sqlite3": "unable to open database file: let the server's user make and write files",
        f"sqlite://{tmp_path}/text": "file is not a database",
    }
    settings: dict[str, Any] = {"TERRAPOD_DATA": f"{tmp_path}/data", "TERRAPOD_PORT": str(free_port())}
    found = [one_line(server, "serve", **settings, TERRAPOD_DATABASE_URL=url) for url in said]
    for line, wanted in zip(found, said.values(), strict=True):
        assert line.startswith("Error: cannot "), line
        assert wanted in line
        assert "s3cret" not in line
    code, line = program("serve", **settings, TERRAPOD_DATABASE_URL=next(iter(said)))
    assert (code, line.strip()) == (1, found[0])
    assert "let the role own the database and all in it (ALTER DATABASE not_ours OWNER TO guest)" in found[3]


def test_folders_and_ports_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        said = [
            ({"TERRAPOD_DATA": f"{tmp_path}/file"}, f"cannot make the data folder (`data`): {tmp_path}/file: File exists"),
            ({"TERRAPOD_DATA": f"{tmp_path}/file/x"}, "Not a directory: a part of this path is a file: correct the path"),
            ({"TERRAPOD_DATA": "/proc/terrapod"}, "/proc/terrapod: No such file or directory: make it, or correct its path"),
            (
                {"TERRAPOD_DATA": f"{tmp_path}/a", "TERRAPOD_STORAGE__PATH": f"{tmp_path}/file"},
                f"cannot make the folder of the store (`storage.path`): {tmp_path}/file",
            ),
            ({"TERRAPOD_DATA": f"{tmp_path}/b", "TERRAPOD_KEY_FILE": str(tmp_path)}, f"the key file {tmp_path} cannot be read"),
            (
                {"TERRAPOD_DATA": f"{tmp_path}/c", "TERRAPOD_PORT": str(number)},
                f"127.0.0.1 port {number} cannot be listened on: Address already in use: end the program that has it",
            ),
        ]  # fmt: skip
        free: dict[str, Any] = {"TERRAPOD_PORT": str(free_port())}
        found = [one_line(server, "serve", **free | settings) for settings, _ in said]
    for line, (_, wanted) in zip(found, said, strict=True):
        assert wanted in line


def test_a_folder_that_is_a_link_to_itself(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    for program, *argv in (
        (server, "up", "--data"), (server, "users", "create", "--email", "a@example.org", "--password-stdin", "--data"),
        (server, "keys", "list", "--data"), (listener, "run", "--home"), (listener, "status", "--home"),
        (listener, "drain", "--home"), (listener, "join", "--server", "http://x", "--token", "t", "--home"),
    ):  # fmt: skip
        said = one_line(program, *argv, str(link))
        assert f"{link}: Too many levels of symbolic links: links lead in a circle" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be somebody else")
def test_a_home_of_another_user_is_named_with_its_owner(tmp_path: Path) -> None:
    for program, argv in (
        (server, ("up", "--data")),
        (listener, ("run", "--home")),
        (listener, ("status", "--home")),
        (listener, ("drain", "--home")),
        (listener, ("rescue", "run-x", "--home")),
    ):
        folder = tmp_path / argv[0]
        folder.mkdir(mode=0o700)
        os.chown(folder, NOBODY, NOBODY)
        line = one_line(program, *argv, str(folder))
        assert line == f"Error: {folder} belongs to nobody: call this as that user (`runuser -u nobody -- …`)"
        assert list(folder.iterdir()) == []


def test_packages_that_are_not_installed_are_named_with_their_pip_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(names=["tortoise", "aioboto3", "signxml"]))
    code, line = program("serve", PYTHONPATH=str(tmp_path))
    assert (code, len(line.splitlines())) == (1, 1), line
    assert "terrapod-server lacks the package tortoise: " in line
    assert line.strip().endswith("-m pip install 'terrapod[server]'")
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(names=["aioboto3", "signxml"]))
    file = tmp_path / "server.toml"
    file.write_text(
        '[storage]\nkind = "s3"\nbucket = "b"\n[[auth.saml]]\nname = "a"\nissuer = "i"\n'
        f'sign_on_url = "https://a"\ncertificate = "{file}"\n'
    )
    code, said = program("serve", "--config", str(file), PYTHONPATH=str(tmp_path))
    assert code == 2
    assert "storage.kind: s3 needs an extra: " in said
    assert "-m pip install 'terrapod[s3]'" in said
    assert "-m pip install 'terrapod[saml]'" in said
    assert "Traceback" not in said


def test_files_that_are_something_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "broken.toml").write_text("port = \n")
    line = one_line(server, "serve", "--config", str(tmp_path / "broken.toml"), code=2)
    assert line == f"error: {tmp_path}/broken.toml: Invalid value (at line 1, column 8)"
    (home / "listener.toml").write_text("capacity = \n")
    line = one_line(listener, "run", "--home", str(home), code=2)
    assert line == f"error: {home}/listener.toml: Invalid value (at line 1, column 12)"
    (home / "identity.json").write_text("{")
    line = one_line(listener, "status", "--home", str(home))
    assert f"{home}/identity.json is no identity of a listener" in line
    join = ("join", "--token", "t", "--home", str(home))
    line = one_line(listener, *join, "--server", "https://x", "--ca", str(tmp_path / "broken.toml"))
    assert f"{tmp_path}/broken.toml holds no certificate" in line
    line = one_line(listener, *join, "--server", "x:8443")
    assert "'x:8443' is no address of a server: name it as https://HOST" in line
    shutil.rmtree(home)
    home.write_text("a file")
    line = one_line(listener, "join", "--token", "t", "--server", "https://x", "--home", f"{home}/x")
    assert f"cannot make the listener's home (--home): {home}/x: Not a directory" in line


def test_what_the_command_line_cannot_read(tmp_path: Path) -> None:
    (tmp_path / ".terraformrc").mkdir()
    (tmp_path / ".terraform.d").mkdir()
    (tmp_path / ".terraform.d" / "credentials.tfrc.json").write_text("{")
    line = one_line(terrapod, "whoami", "--host", "localhost:1", HOME=str(tmp_path), TF_CLI_CONFIG_FILE="")
    assert f"{tmp_path}/.terraform.d/credentials.tfrc.json cannot be read" in line


def shell(line: str, tmp_path: Path) -> tuple[int, str]:
    """Exit code, and all that a line of the shell prints."""
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERRAPOD_TOKEN": "t"}
    done = subprocess.run(
        ["sh", "-c", line], env={**environment, "TERRAPOD_ADDRESS": "http://127.0.0.1:9"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_nobody_else_reads_the_database_of_a_folder_that_is_open_to_all(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    code, said = shell(f"umask 022; terrapod-server tokens create --admin --data {data}", tmp_path)
    assert code == 0, said
    assert (data / "terrapod.sqlite3").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in data.iterdir() if file.is_file() and file.stat().st_mode & 0o077] == []


@pytest.mark.slow
def test_programs_that_were_started_without_standard_files(tmp_path: Path) -> None:
    asked = shell("terrapod users create ann@example.com --password-stdin <&-", tmp_path)
    assert (asked[0], "there is no password on stdin" in asked[1]) == (2, True), asked
    joining = f"terrapod-listener join --server https://x --home {tmp_path}/home --token-stdin <&-"
    assert shell(joining, tmp_path) == (1, "Error: standard input holds no join token: it is empty\n")
    said = shell("terrapod whoami --host a/b >&-", tmp_path)
    assert (said[0], "is no host" in said[1]) == (2, True), said
    made = shell(
        f"terrapod-server users create --email ann@example.com --password-stdin --data {tmp_path} <&-", tmp_path
    )
    assert (made[0], "there is no password on stdin" in made[1]) == (2, True), made
    open_files = shell("terrapod-server --version >&- 2>&- && terrapod-listener --version <&-", tmp_path)
    assert open_files[0] == 0, open_files


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    """Bytes of another encoding, as arguments and on standard input."""
    named = shell(r"terrapod workspaces show $(printf 'caf\351')", tmp_path)
    assert named == (2, "Error: this is no text in UTF-8: caf\\xe9\n")
    joined = shell(
        rf"terrapod-listener join --server https://x --home {tmp_path}/h --token t --name $(printf '\351')", tmp_path
    )
    assert (joined[0], "this is no text in UTF-8: \\xe9" in joined[1]) == (2, True), joined
    typed = shell(r"printf '\351\n' | terrapod login --token-stdin", tmp_path)
    assert (typed[0], "the token on stdin is no text in UTF-8" in typed[1]) == (2, True), typed


@pytest.mark.slow
async def test_a_database_that_goes_away_fills_the_log_with_lines_not_with_stack_traces(tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres.log") as own:
        server = Process(tmp_path, await own.fresh("away"))
        try:
            await server.start()
            own.kill()
            async with httpx.AsyncClient(base_url=server.url, headers={"Authorization": "Bearer tpod_x"}) as api:

                async def is_told() -> bool:
                    return "failed: cannot reach the database 'away' at 127.0.0.1:" in server.log

                await until(is_told)
                begun = len(server.log)
                for number in range(3):
                    answer = await api.get("/api/v2/account/details", headers={"X-Request-ID": f"request-{number}"})
                    assert answer.status_code == 503
                    assert (await api.get("/ready")).status_code == 503
                said = server.log[begun:]
                for number in range(3):
                    assert f"request request-{number} failed: cannot reach the database 'away'" in said
                assert "the check of the database failed: cannot reach the database 'away'" in said
                assert "Traceback" not in said
                own.start()

                async def is_ready() -> bool:
                    return (await api.get("/ready")).status_code == 200

                await until(is_ready)
        finally:
            await server.kill()

"""`terrapod`: as a process of its own, with nothing but what is given in its environment, or in this one."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from kit.serving import Running
from kit.site import BIN, Site
from terrapod_cli.main import main


@dataclass
class Said:
    """Exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def command(*argv: str, stdin: str = "", cwd: Path | None = None, **environment: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        str(BIN / "terrapod"), *argv, cwd=cwd, env={"PATH": os.environ["PATH"], **environment},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    said = Said(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in said.err, said.err
    return said


class Cli:
    """A person at a shell: a home, a server, and perhaps a token. Each call is a process."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.environment = {"HOME": str(home), **environment}

    async def __call__(self, *argv: str, stdin: str = "", cwd: Path | None = None) -> Said:
        return await command(*argv, stdin=stdin, cwd=cwd, **self.environment)

    async def ok(self, *argv: str, stdin: str = "", cwd: Path | None = None) -> Any:
        """The JSON that the command answers."""
        said = await self(*argv, "--json", stdin=stdin, cwd=cwd)
        assert said.code == 0, f"{argv}: {said}"
        return said.json


class Here(Cli):
    """The same through click in a thread of this process, which takes a tenth of the time; it takes no signals."""

    async def __call__(self, *argv: str, stdin: str = "", cwd: Path | None = None) -> Said:
        assert cwd is None
        foreign = {name: None for name in os.environ if name.startswith(("TF_", "TERRAPOD_", "SSL_"))}
        result = await asyncio.to_thread(
            CliRunner().invoke, main, list(argv), input=stdin, env={**foreign, **self.environment}
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)


def of_server(server: Running, home: Path, token: str | None = None) -> Cli:
    return Here(home, TERRAPOD_ADDRESS=server.url, TERRAPOD_TOKEN=server.token if token is None else token)


def of_site(site: Site, home: Path) -> Cli:
    """By terraform's own file, which `terrapod-server up` has written."""
    return Cli(
        home, SSL_CERT_FILE=str(site.data / "ca.pem"), TF_CLI_CONFIG_FILE=str(site.data / "terraform.rc"),
    )  # fmt: skip

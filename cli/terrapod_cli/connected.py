"""What every command that calls the server has in common: its options, its client, its exit code."""

import asyncio
import functools
import importlib.metadata
import ssl
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from terrapod_cli.exits import Exit, code_of
from terrapod_cli.hosts import Credentials, Host, Token
from terrapod_cli.output import Output
from terrapod_shared import errors, ids
from terrapod_shared.client import Client, Resource

AGENT = f"terrapod/{importlib.metadata.version('terrapod')}"
ORG = "organizations/default"

Command = Callable[..., Coroutine[Any, Any, int | None]]
Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


@dataclass
class Session:
    """One command's dealings with one server."""

    client: Client
    out: Output
    host: Host
    credentials: Credentials
    token: Token | None


_HOST = click.option(
    "--host",
    metavar="HOST[:PORT]",
    help="The server; default: TERRAPOD_ADDRESS, or the only one that you signed in to.",
)
_CA = click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file of the authority to trust; default: SSL_CERT_FILE, or the system's.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
_COLOUR = click.option("--no-color", is_flag=True, help="No colours.")


def common(do: Wrapped) -> Wrapped:
    """The options of every command."""
    for option in (_COLOUR, _JSON, _CA, _HOST):
        do = option(do)
    return do


def run(out: Output, work: Callable[[], Coroutine[Any, Any, int | None]]) -> None:
    """Runs a command to its exit code: the one place where errors become codes."""
    try:
        code = asyncio.run(work()) or Exit.DONE
    except errors.TerrapodError as error:
        code = code_of(error)
        out.error(error, code)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    if code != Exit.DONE:
        sys.exit(int(code))


def client_for(host: Host, token: str, ca: Path | None) -> Client:
    try:
        return Client(host.url, token, ca=ca, agent=AGENT)
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"{ca or 'SSL_CERT_FILE'} cannot be used: {error}") from None


def connected(do: Command) -> Callable[..., None]:
    """A command whose first argument is a Session with a token."""

    @common
    @functools.wraps(do)
    def command(*, host: str | None, ca: Path | None, as_json: bool, no_color: bool, **more: Any) -> None:
        out = Output(as_json=as_json, colour=not no_color)
        credentials = Credentials()
        chosen = credentials.choose(host)

        async def work() -> int | None:
            token = credentials.token(chosen)
            if token is None:
                message = f"not signed in to {chosen.name}: terrapod login {chosen.name}"
                raise errors.Unauthorized(message)
            client = client_for(chosen, token.text, ca)
            client.told = out.told
            try:
                return await do(Session(client, out, chosen, credentials, token), **more)
            finally:
                await client.close()

        run(out, work)

    return command


def part(text: str) -> str:
    """One segment of a path."""
    return quote(text, safe="")


async def workspace(session: Session, named: str) -> Resource:
    """A workspace by id or by name."""
    if ids.is_valid(named, "ws"):
        return await session.client.get(f"workspaces/{named}")
    return await session.client.get(f"{ORG}/workspaces/{part(named)}")


def agreed(question: str, *, yes: bool) -> None:
    """Asks before what cannot be undone; without a terminal only `--yes` does."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone: add --yes to do it without being asked")
    click.confirm(question, abort=True, err=True)


LIMIT = click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, help="How many at most; 0: all."
)
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def pairs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Options of the form KEY=VALUE."""
    found = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE")
        found[key] = value
    return found

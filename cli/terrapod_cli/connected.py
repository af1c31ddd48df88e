"""What every command that calls the server has in common: its options, its client, its exit code."""

import asyncio
import contextlib
import functools
import importlib.metadata
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from terrapod_cli.exits import Exit, code_of
from terrapod_cli.hosts import Credentials, Host, Token
from terrapod_cli.output import Output, Row, flat
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
_IDS = click.option("--ids", is_flag=True, help="Show ids too, or in the place of names.")
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
    @_IDS
    @functools.wraps(do)
    def command(*, host: str | None, ca: Path | None, as_json: bool, no_color: bool, ids: bool, **more: Any) -> None:
        out = Output(as_json=as_json, colour=not no_color, ids=ids)
        credentials = Credentials()
        chosen = credentials.choose(host)

        async def work() -> int | None:
            token = credentials.token(chosen)
            if token is None:
                raise errors.Unauthorized(f"not signed in to {chosen.name}: terrapod login {chosen.name}")
            client = client_for(chosen, token.text, ca)
            client.told = out.told
            try:
                return await do(Session(client, out, chosen, credentials, token), **more)
            finally:
                await client.close()

        run(out, work)

    return command


def part(text: str) -> str:
    """One segment of a path. Raises NotFound for what is no name of a thing: it would lead to another path."""
    if text in ("", ".", ".."):
        raise errors.NotFound
    return quote(text, safe="")


def missing(session: Session, what: str) -> errors.NotFound:
    """The error for a thing that the server does not show; it does not say whether there is one."""
    return errors.NotFound(f"{what} not found on {session.host.name}, or you lack access")


@contextlib.contextmanager
def finding(session: Session, kind: str, named: str) -> Iterator[None]:
    """Where the server finds nothing within, the error names what was looked for: the server's own does not."""
    try:
        yield
    except errors.NotFound:
        raise missing(session, f'{kind} "{named}"') from None


async def workspace(session: Session, named: str, include: str | None = None) -> Resource:
    """A workspace by id or by name; with the names of what `include` names. Raises NotFound."""
    with finding(session, "workspace", named):
        path = f"workspaces/{named}" if ids.is_valid(named, "ws") else f"{ORG}/workspaces/{part(named)}"
        document = await session.client.call("GET", path, params={"include": include})
    found: Resource = document["data"]
    found["attributes"] |= names_of(found, included_in(document))
    return found


async def pool(session: Session, named: str) -> Resource:
    """A pool by id or by name. Raises NotFound."""
    with finding(session, "pool", named):
        if ids.is_valid(named, "apool"):
            return await session.client.get(f"agent-pools/{named}")
        found = await session.client.listing(f"{ORG}/agent-pools", q=named)
        for each in found.rows:
            if each["attributes"]["name"] == named:
                return each
        raise errors.NotFound


Included = Mapping[tuple[str, str], Resource]


def included_in(document: Mapping[str, Any]) -> Included:
    """What came with a document, by type and id."""
    return {(item["type"], item["id"]): item for item in document.get("included", ())}


def names_of(resource: Resource, included: Included) -> Row:
    """For each relation the name, or names, at its other side, as `<relation>-name`, where they came along."""
    found: Row = {}
    for relation, other in resource.get("relationships", {}).items():
        data = other.get("data")
        linked = data if isinstance(data, list) else [data] if data else []
        names = [_name_of(included.get((each["type"], each["id"]))) for each in linked]
        if names and all(names):
            found[f"{relation}-name"] = names if isinstance(data, list) else names[0]
    return found


def _name_of(resource: Resource | None) -> str:
    attributes = resource["attributes"] if resource else {}
    return attributes.get("email") or attributes.get("name") or ""


def with_names(resource: Resource, included: Included) -> Row:
    """A flat row with the names of what came along."""
    return flat(resource) | names_of(resource, included)


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

"""`terrapod-server keys`: which keys encrypt at rest, a new one in front of them, and giving up lost ones."""

import asyncio
from pathlib import Path

import click

from terrapod_server import app
from terrapod_server.commands import options
from terrapod_server.config.settings import Config
from terrapod_server.encryption import known_keys
from terrapod_server.kit.db import database
from terrapod_server.store.cipher import KeyRing
from terrapod_shared.operator_errors import OperatorError


class Unreadable(OperatorError):
    """There is no key file, or it holds something else; the text is for the operator."""


def opened(config: Config) -> KeyRing:
    """The ring of the key file; unlike a start it makes none. Raises Unreadable."""
    try:
        return KeyRing.load(config.keys)
    except FileNotFoundError:
        message = f"there is no key file {config.keys}: the first start of a server on a new database makes it"
        raise Unreadable(message) from None
    except (OSError, ValueError) as error:
        raise Unreadable(str(error)) from None


def rotate(config: Config) -> str:
    """Puts a new key in front, and gives its id. Raises Unreadable."""
    return opened(config).rotate(config.keys).ids[0]


async def check(config: Config) -> None:
    """Whether a start would find all keys that are in use; changes nothing. Raises Unusable."""
    ring = known_keys.load(config.keys)
    if config.has_database:
        async with app.database_of(config):
            await app.known_keys_of(config).check(ring)


async def forget(config: Config, *, is_certain: bool) -> list[str]:
    """Ids of the keys in use that the key file lacks; they are given up where it `is_certain`. Raises Unusable."""
    ring = known_keys.load(config.keys)
    async with app.database_of(config):
        if not is_certain:
            return await app.known_keys_of(config).lost(ring)
        await database.migrate()
        return await app.known_keys_of(config).forget(ring)


@click.group(name="keys")
def command() -> None:
    """The keys that encrypt at rest."""


@command.command(name="list")
@options.CONFIG
@options.DATA
def list_(file: Path | None, data: Path | None) -> None:
    """Say which keys there are, by id: the first encrypts, all decrypt."""
    current, *older = opened(options.read(file, data)).ids
    click.echo(f"{current}  encrypts")
    for each in older:
        click.echo(f"{each}  decrypts what it has encrypted")


@command.command(name="rotate")
@options.CONFIG
@options.DATA
def put_in_front(file: Path | None, data: Path | None) -> None:
    """Put a new key in front of the others.

    What older keys encrypted stays readable, so they stay in the file. Start every server process again afterwards,
    and keep a copy of the file: without it nothing at rest can be read.
    """
    config = options.owned(options.read(file, data))
    made = rotate(config)
    click.echo(f"{made} is the key that encrypts from the next start on: start every server process again.")
    click.echo(f"Keep a copy of {config.keys} apart from the database.")


@command.command(name="forget")
@click.option("--yes", is_flag=True, help="Do it: what these keys have encrypted is lost for good.")
@options.CONFIG
@options.DATA
def give_up(yes: bool, file: Path | None, data: Path | None) -> None:
    """Give up keys that are lost.

    For a server that does not start since its key file lacks keys that encrypted data of the database, when no copy of
    them is left. What they encrypted (states, variables, logs, the listeners' authority) can never be read again.
    """
    config = options.owned(options.read(file, data))
    lost = asyncio.run(forget(config, is_certain=yes))
    for each in lost:
        click.echo(f"{each}  is in use, and {config.keys} lacks it")
    if yes:
        click.echo("Given up. The server starts without them.")
    else:
        click.echo("With --yes they are given up, and what they have encrypted is lost for good.")

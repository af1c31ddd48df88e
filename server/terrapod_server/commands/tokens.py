"""`terrapod-server tokens`: API tokens, made on the server's host."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from terrapod_server.commands import accounts, options
from terrapod_server.kit.services import Services

#: Letters, as in the API.
_DESCRIPTION_MOST = 254


@click.group(name="tokens")
def command() -> None:
    """API tokens, made on the server's host."""


@command.command(name="create")
@click.option(
    "--admin", is_flag=True, help=f"For the first administrator, {accounts.ADMIN_EMAIL}, who is made if missing."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="New file for the token, mode 0600.")
@click.option(
    "--days", type=click.IntRange(0, 36500), default=30, show_default=True, help="How long it is good; 0: for ever."
)
@click.option("--description", default="terrapod-server tokens create", help="What it is for.")
@options.CONFIG
@options.DATA
def create_token(
    admin: bool, output: Path | None, days: int, description: str, file: Path | None, data: Path | None
) -> None:
    """Make a first token without a browser; the server may be running.

    The token is printed once, or written to a file that only you can read. The audit log says who made it. Other users
    make tokens of their own: `terrapod login`, `terrapod tokens create`.
    """
    if not admin:
        message = "--admin is needed: a token made here is the first administrator's"
        raise click.UsageError(message)
    if len(description) > _DESCRIPTION_MOST:
        message = f"--description: at most {_DESCRIPTION_MOST} letters"
        raise click.UsageError(message)
    config = options.read_own(file, data)

    async def make(services: Services) -> None:
        token_id, text = await accounts.create_admin_token(services, description, days)
        until = f"for {days} days" if days else "until it is deleted"
        click.echo(f"token {token_id} of {accounts.ADMIN_EMAIL}, good {until}; it is shown this once", err=True)
        if kept is None:
            click.echo(text)
        else:
            kept.write(f"{text}\n")

    with _new_file(output) as kept:
        accounts.in_app(config, make)


@contextlib.contextmanager
def _new_file(path: Path | None) -> Iterator[TextIO | None]:
    """A file that was not there, for its owner alone; it goes again where its content is not written."""
    if path is None:
        yield None
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        message = f"cannot make {path}: {error.strerror or error}"
        raise click.ClickException(message) from None
    try:
        with os.fdopen(handle, "w") as opened:
            yield opened
    except BaseException:
        path.unlink(missing_ok=True)
        raise

"""`terrapod-server users`: accounts with a password of this server."""

from pathlib import Path

import click

from terrapod_server.commands import accounts, options
from terrapod_shared import operator_errors

_STDIN = click.option("--password-stdin", is_flag=True, help="Read the password from standard input; else it is asked.")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return operator_errors.line_of_stdin("password")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))


@click.group(name="users")
def command() -> None:
    """Accounts with a password of this server."""


@command.command()
@click.option("--email", required=True, help="Address by which the user signs in.")
@click.option("--admin", is_flag=True, help="Make the user a platform administrator.")
@_STDIN
@options.CONFIG
@options.DATA
def create(email: str, admin: bool, password_stdin: bool, file: Path | None, data: Path | None) -> None:
    """Make a user, such as the first administrator.

    The server may be running.
    """
    config, password = options.read_own(file, data), _password(password_stdin)
    accounts.in_app(config, lambda services: accounts.make_user(services, email, password, is_admin=admin))
    click.echo(f"{email.lower()} can sign in now")


@command.command(name="set-password")
@click.option("--email", required=True, help="Address of the user.")
@_STDIN
@options.CONFIG
@options.DATA
def set_password(email: str, password_stdin: bool, file: Path | None, data: Path | None) -> None:
    """Give a user another password; all its sessions end."""
    config, password = options.read_own(file, data), _password(password_stdin)
    accounts.in_app(config, lambda services: accounts.set_password(services, email, password))
    click.echo(f"{email.lower()} has a new password, and no session any more")

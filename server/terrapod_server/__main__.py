"""`terrapod-server`: up, serve, check, users, tokens, binaries, keys, audit, install-service."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from terrapod_server.config.load import Mistakes, load, own_file
from terrapod_server.config.settings import Config
from terrapod_shared import operator_errors, services
from terrapod_shared.files import real_path

try:
    from terrapod_server import app, serving
    from terrapod_server.commands import accounts, up
    from terrapod_server.commands import audit as auditing
    from terrapod_server.commands import binaries as engines
    from terrapod_server.commands import check as checking
    from terrapod_server.commands import keys as keyring
    from terrapod_server.commands.install_service import install_service
except ModuleNotFoundError as missing:
    sys.exit(f"Error: {operator_errors.missing_extra('terrapod-server', 'server', missing)}")


@click.group(
    cls=operator_errors.Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="terrapod")
def main() -> None:
    """The Terrapod control server: remote runs and state for terraform and tofu."""


_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TERRAPOD_CONFIG",
    help="TOML file with settings; TERRAPOD_… variables win over it.",
)


_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="Data folder of `up`, without a file.",
)


def _load(file: Path | None, data: Path | None = None) -> Config:
    over: dict[str, Any] = {"data": str(real_path(data))} if data else {}
    if data and file is None:  # as `up` does
        file = own_file(data)
    try:
        return load(os.environ, file, **over)
    except Mistakes as error:
        for line in error.lines:
            click.echo(f"error: {line}", err=True)
        raise SystemExit(2) from None


def _owned(config: Config) -> Config:
    """What root would write into another user's data folder, that user's server could not read."""
    services.check_owner(config.folder)
    return config


@main.command()
@_CONFIG
def serve(file: Path | None) -> None:
    """Serve the API in production.

    Settings come from a file and from the environment; docs/settings.md lists them. The first start makes the data folder with the keys; the database is brought to this release's schema.
    """
    serving.run(_owned(_load(file)))


@main.command()
@click.option("--connect", is_flag=True, help="Try what the settings name: database, store, OIDC providers, the clock.")
@_CONFIG
def check(connect: bool, file: Path | None) -> None:
    """Check the settings, and report every mistake at once.

    Looks also whether the key file has all keys that the database names, and changes nothing. With --connect it says
    what a start would meet, and leaves nothing behind. Exit code 2 for mistakes in the settings, 1 for what failed.
    """
    config = _load(file)

    async def look() -> bool:
        is_good = _tell(checking.of_settings(config, time.time()))
        if connect:
            async for each in checking.of_connections(config):
                is_good = _tell([each]) and is_good
        found = await checking.of_keys(config)
        return (_tell([found]) if connect or found.level != "ok" else True) and is_good

    if not asyncio.run(look()):
        sys.exit(1)
    click.echo(f"the settings are good: {config.url}, data in {config.data}")


def _tell(findings: Iterable[checking.Finding]) -> bool:
    """Says what was found; whether none of it keeps the server from its work."""
    is_good = True
    for each in findings:
        click.echo(each, err=each.level != "ok")
        is_good = is_good and each.level != "error"
    return is_good


@main.command(name="up")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="Folder of everything.",
)
@click.option("--host", help="Address or name to listen on, such as 0.0.0.0 for all.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: 8443]")
@click.option(
    "--name", "names", multiple=True, help="Name or address by which other hosts call it; may be given again."
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A terraform or tofu of this host that its listener brings; may be given again.",
)
@click.option("--no-path-engines", is_flag=True, help="Leave out the terraform and tofu that are on the PATH.")
@click.option("--plain-http", is_flag=True, help="Speak HTTP without TLS; on loopback only.")
@click.option("--no-listener", is_flag=True, help="Start no listener on this host.")
def start_all(no_path_engines: bool, no_listener: bool, data: Path, **more: Any) -> None:
    """Start a server, and one listener, for one host.

    The first start writes an administrator's token (DIR/admin-token), the certificate of an authority of its own
    (DIR/ca.pem), keys and database; later starts keep them. Settings may stand in DIR/server.toml.

    The listener brings the terraform and tofu that are on the PATH: real programs, not the scripts of version switchers.

    Other hosts reach it where --host is not loopback: its certificate names this host, its addresses, and each --name.
    SIGTERM or Ctrl-C stops it cleanly.
    """
    services.check_owner(real_path(data))
    options = up.Options(real_path(data), with_path_engines=not no_path_engines, with_listener=not no_listener, **more)
    try:
        up.run(options)
    except up.Refused as error:
        raise click.ClickException(str(error)) from None


@main.group()
def users() -> None:
    """Accounts with a password of this server."""


_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="Data folder of `up`, without a file.",
)
_STDIN = click.option("--password-stdin", is_flag=True, help="Read the password from standard input; else it is asked.")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return operator_errors.line_of_stdin("password")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))


def _config_of(file: Path | None, data: Path | None) -> Config:
    """Settings of `up`, whose file is in its data folder, or those of a file."""
    if data is None:
        return _load(file)
    try:
        return load(up.own_variables(), file or own_file(data), data=str(real_path(data)))
    except Mistakes as error:
        raise click.ClickException(str(error)) from None


def _in_app(config: Config, work: Callable[[app.App], Awaitable[None]]) -> None:
    _owned(config)

    async def run() -> None:
        async with app.opened(config) as made:
            await work(made)

    asyncio.run(run())


@users.command()
@click.option("--email", required=True, help="Address by which the user signs in.")
@click.option("--admin", is_flag=True, help="Make the user a platform administrator.")
@_STDIN
@_CONFIG
@_DATA
def create(email: str, admin: bool, password_stdin: bool, file: Path | None, data: Path | None) -> None:
    """Make a user, such as the first administrator; the server may be running."""
    config, password = _config_of(file, data), _password(password_stdin)
    _in_app(config, lambda made: accounts.make_user(made.services, email, password, is_admin=admin))
    click.echo(f"{email.lower()} can sign in now")


@users.command(name="set-password")
@click.option("--email", required=True, help="Address of the user.")
@_STDIN
@_CONFIG
@_DATA
def set_password(email: str, password_stdin: bool, file: Path | None, data: Path | None) -> None:
    """Give a user another password; all its sessions end."""
    config, password = _config_of(file, data), _password(password_stdin)
    _in_app(config, lambda made: accounts.set_password(made.services, email, password))
    click.echo(f"{email.lower()} has a new password, and no session any more")


#: Letters, as in the API.
_DESCRIPTION_MOST = 254


@main.group()
def tokens() -> None:
    """API tokens, made on the server's host."""


@tokens.command(name="create")
@click.option(
    "--admin", is_flag=True, help=f"For the first administrator, {accounts.ADMIN_EMAIL}, who is made if missing."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="New file for the token, mode 0600.")
@click.option(
    "--days", type=click.IntRange(0, 36500), default=30, show_default=True, help="How long it is good; 0: for ever."
)
@click.option("--description", default="terrapod-server tokens create", help="What it is for.")
@_CONFIG
@_DATA
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
    config = _config_of(file, data)

    async def make(made: app.App) -> None:
        token_id, text = await accounts.create_admin_token(made.services, description, days)
        until = f"for {days} days" if days else "until it is deleted"
        click.echo(f"token {token_id} of {accounts.ADMIN_EMAIL}, good {until}; it is shown this once", err=True)
        if kept is None:
            click.echo(text)
        else:
            kept.write(f"{text}\n")

    with _new_file(output) as kept:
        _in_app(config, make)


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


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@main.group()
def binaries() -> None:
    """The cache of terraform and tofu binaries."""


@binaries.command(name="import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--sums", type=_FILE, help="The release's SHA256SUMS; default: the one beside each archive.")
@click.option("--signature", type=_FILE, help="Its OpenPGP signature; default: the one beside each archive.")
@click.option("--unsigned", is_flag=True, help="Vouch for the archives yourself: no signature is checked.")
@_CONFIG
@_DATA
def import_(
    files: tuple[Path, ...],
    sums: Path | None,
    signature: Path | None,
    unsigned: bool,
    file: Path | None,
    data: Path | None,
) -> None:
    """Import release archives.

    For hosts without internet. A file is named as its release is, such as terraform_1.15.5_linux_amd64.zip, and its
    publisher's signed checksums are needed beside it. What comes in unsigned is listed as such.
    """
    if unsigned and (sums or signature):
        message = "--unsigned goes with neither --sums nor --signature"
        raise click.UsageError(message)
    importing = engines.import_all(_owned(_load(file, data)), files, sums=sums, signature=signature, unsigned=unsigned)
    sys.exit(asyncio.run(importing))


@main.group()
def keys() -> None:
    """The keys that encrypt at rest."""


@keys.command(name="list")
@_CONFIG
@_DATA
def list_(file: Path | None, data: Path | None) -> None:
    """Say which keys there are, by id: the first encrypts, all decrypt."""
    current, *older = keyring.opened(_load(file, data)).ids
    click.echo(f"{current}  encrypts")
    for each in older:
        click.echo(f"{each}  decrypts what it has encrypted")


@keys.command()
@_CONFIG
@_DATA
def rotate(file: Path | None, data: Path | None) -> None:
    """Put a new key in front of the others.

    What older keys encrypted stays readable, so they stay in the file. Start every server process again afterwards,
    and keep a copy of the file: without it nothing at rest can be read.
    """
    config = _owned(_load(file, data))
    made = keyring.rotate(config)
    click.echo(f"{made} is the key that encrypts from the next start on: start every server process again.")
    click.echo(f"Keep a copy of {config.keys} apart from the database.")


@keys.command()
@click.option("--yes", is_flag=True, help="Do it: what these keys have encrypted is lost for good.")
@_CONFIG
@_DATA
def forget(yes: bool, file: Path | None, data: Path | None) -> None:
    """Give up keys that are lost.

    For a server that does not start since its key file lacks keys that encrypted data of the database, when no copy of
    them is left. What they encrypted (states, variables, logs, the listeners' authority) can never be read again.
    """
    config = _owned(_load(file, data))
    lost = asyncio.run(keyring.forget(config, is_certain=yes))
    for each in lost:
        click.echo(f"{each}  is in use, and {config.keys} lacks it")
    if yes:
        click.echo("Given up. The server starts without them.")
    else:
        click.echo("With --yes they are given up, and what they have encrypted is lost for good.")


@main.group()
def audit() -> None:
    """The record of who changed what."""


@audit.command()
@_CONFIG
@_DATA
@click.option(
    "--checkpoints",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Checkpoint file of a further server on the same database; may be given again.",
)
def verify(file: Path | None, data: Path | None, checkpoints: tuple[Path, ...]) -> None:
    """Say whether the audit log is as it was written.

    Exit code 1 where an entry was altered, moved, put in or removed, 2 where the log cannot be read.
    """
    sys.exit(asyncio.run(auditing.verify(_owned(_load(file, data)), checkpoints)))


main.add_command(install_service)

if __name__ == "__main__":
    main()

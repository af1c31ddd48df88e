"""`terrapod-listener`: join, run, status, drain, rescue, install-service."""

import asyncio
import contextlib
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from terrapod_listener import config as settings
from terrapod_listener.daemon import loop, recover
from terrapod_listener.daemon.install_service import install_service
from terrapod_listener.daemon.parent import Parent
from terrapod_listener.link import identity, join
from terrapod_shared import operator_errors, services
from terrapod_shared.errors import TerrapodError
from terrapod_shared.files import real_path

_HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    envvar="TERRAPOD_LISTENER_HOME",
    default=Path("/var/lib/terrapod-listener"),
    show_default=True,
    help="Folder of keys, settings, engines and runs; only the listener's user may read it.",
)


@click.group(
    cls=operator_errors.Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="terrapod")
def main() -> None:
    """A Terrapod listener: joins a pool, waits for runs, does the work, streams the logs back."""


@main.command("join")
@click.option(
    "--server", required=True, envvar="TERRAPOD_LISTENER_SERVER", help="Address, such as https://terrapod.example.com."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TERRAPOD_LISTENER_TOKEN_FILE",
    help="File that holds a join token of the pool.",
)
@click.option("--token-stdin", is_flag=True, help="Read the join token from standard input.")
@click.option(
    "--token",
    envvar="TERRAPOD_LISTENER_TOKEN",
    help="The join token itself. Everybody on this host can read it while the command runs: better use a file.",
)
@click.option("--name", default="", envvar="TERRAPOD_LISTENER_NAME", help="Name of this listener; default: the host's.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="TERRAPOD_LISTENER_CA",
    help="PEM file of the authority that vouches for the server; default: the system's.",
)
@_HOME
@click.pass_context
def join_command(
    context: click.Context,
    server: str,
    token_file: Path | None,
    token_stdin: bool,
    token: str | None,
    name: str,
    ca: Path | None,
    home: Path,
) -> None:
    """Join a pool.

    It makes the keys here, spends the token, and keeps the certificate. The token comes from exactly one of
    --token-file, --token-stdin and --token; an option wins over the variables.
    """
    services.check_owner(real_path(home))
    token = _join_token(context, token_file, token_stdin, token)
    operator_errors.make_folder(real_path(home), "the listener's home (--home)")  # before the token is spent
    try:
        joined = asyncio.run(join.join(real_path(home), server, token, name, ca))
    except TerrapodError as error:
        raise click.ClickException(error.detail) from None
    me = joined.kept
    click.echo(f"joined pool {me.pool_id} as {me.name} ({me.listener_id}); certificate until {joined.expires()}")


def _join_token(context: click.Context, file: Path | None, from_stdin: bool, text: str | None) -> str:
    """The one token that was given. Raises UsageError for none and for several, ClickException for a bad one."""
    given = {"token_file": file is not None, "token_stdin": from_stdin, "token": text is not None}
    typed = {name for name in given if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    chosen = typed or {name for name, is_given in given.items() if is_given}
    if len(chosen) != 1:
        said = "several were given" if chosen else "none was given"
        raise click.UsageError(f"a join token is needed, from one of --token-file, --token-stdin and --token: {said}")
    try:
        if chosen == {"token_stdin"}:
            return join.token_of(sys.stdin.buffer.readline(join.TOKEN_MOST + 1), "standard input")
        if chosen == {"token_file"} and file is not None:
            with file.open("rb") as opened:
                return join.token_of(opened.read(join.TOKEN_MOST + 1), str(file))
        return join.token_of(os.fsencode(text or ""), "--token")
    except join.NoToken as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot read the join token from {file}: {error.strerror or error}") from None


def _opened(home: Path) -> identity.Identity:
    services.check_owner(home)
    found = identity.load(home)
    if found is None:
        raise click.ClickException(f"{home} has no identity: join a pool first")
    return found


@main.command()
@click.option(
    "--hide",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or folder that runs are not to see, besides the settings' `hide`; may be repeated.",
)
@click.option(
    "--parent",
    type=click.IntRange(min=1),
    metavar="PID",
    help="The process that starts it: the listener ends with it, and applies go on without both.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A terraform or tofu of this host to offer, besides the settings' `engines`; may be given again.",
)
@click.option("--server", default="", help="Address of the server, where it is no longer the one of `join`.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file of its authority, where it is no longer the one of `join`.",
)
@_HOME
def run(
    hide: tuple[Path, ...], parent: int | None, engines: tuple[Path, ...], server: str, ca: Path | None, home: Path
) -> None:
    """Wait for runs and do them, until SIGTERM.

    The first SIGTERM drains: no new work, running work finishes. A second interrupts terraform, a third kills it.
    """
    watched = Parent(parent) if parent else None
    home = real_path(home)
    services.check_owner(home)
    try:
        config = settings.load(home, os.environ)
    except settings.Mistakes as error:
        for line in error.lines:
            click.echo(f"error: {line}", err=True)
        raise SystemExit(2) from None
    config = msgspec.structs.replace(config, hide=[*config.hide, *(str(real_path(path)) for path in hide)])
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.umask(0o077)
    with contextlib.suppress(
        OSError
    ):  # what is in memory is not for the disk; the unit has said so already, and forbids it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    who = _opened(home)
    who.move(server, ca.read_text() if ca else "")
    asyncio.run(loop.Daemon(home, who, config, watched, engines).run())


@main.command()
@_HOME
def status(home: Path) -> None:
    """Say who this listener is, and what waits here."""
    home = real_path(home)
    for line in recover.lines(home, _opened(home)):
        click.echo(line)


@main.command()
@click.option("--wait", is_flag=True, help="Return when it has left.")
@_HOME
def drain(wait: bool, home: Path) -> None:
    """Tell the running listener to take no more work.

    It leaves when its runs are over.
    """
    home = real_path(home)
    services.check_owner(home)
    if not recover.drain(home) and not wait:
        raise click.ClickException(f"no listener runs with {home}")
    if wait:
        recover.wait_until_gone(home)


@main.command()
@click.argument("run_id", metavar="RUN")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write it to, mode 0600.")
@click.option("--push", is_flag=True, help="Send it to the server, and say what came of it.")
@click.option("--drop", is_flag=True, help="Throw away what this host has of the run: its folder, and its states.")
@click.option("--yes", is_flag=True, help="With --drop: though a whole state of the run is here.")
@_HOME
def rescue(run_id: str, output: Path | None, push: bool, drop: bool, yes: bool, home: Path) -> None:
    """Print, push or drop the state of a run.

    The newest whole one that this host has of RUN: in the spool, or in the work folder.
    """
    home = real_path(home)
    services.check_owner(home)
    found = recover.find(home, run_id)
    if drop:
        _drop(home, run_id, found[2] if found and not yes else None)
        return
    if found is None:
        raise click.ClickException(f"this host has no state of {run_id}")
    if push:
        if recover.is_under_way(home, run_id):
            raise click.ClickException(f"{run_id} is still applied: its state is delivered when it is over")
        try:
            click.echo(asyncio.run(recover.push(home, _opened(home), run_id)))
        except TerrapodError as error:
            raise click.ClickException(f"the server did not take it: {error.detail}") from None
        return
    path, _, mark = found
    try:
        recover.copy(home, run_id, path, output)
    except OSError as error:
        raise click.ClickException(f"the state at {path} could not be copied: {error.strerror or error}") from None
    click.echo(f"{run_id}: serial {mark['serial']}, lineage {mark['lineage']}, from {path}", err=True)


def _drop(home: Path, run_id: str, mark: dict[str, Any] | None) -> None:
    """`mark` is of a whole state that would go with it, which nobody has agreed to."""
    if mark is not None:
        raise click.ClickException(
            f"this host has a whole state of {run_id} (serial {mark['serial']}), which the server may not have: save it "
            "with --output or --push first, and then say --drop --yes"
        )
    try:
        click.echo(recover.drop(home, run_id))
    except TerrapodError as error:
        raise click.ClickException(error.detail) from None


main.add_command(install_service)

if __name__ == "__main__":
    main()

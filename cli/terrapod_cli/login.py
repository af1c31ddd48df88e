"""`terrapod login`, `logout` and `whoami`."""

import os
import subprocess
import sys
from pathlib import Path

import click

from terrapod_cli import loopback
from terrapod_cli.connected import Session, client_for, common, connected, run
from terrapod_cli.hosts import Credentials, Host, is_token, parse
from terrapod_cli.output import Fields, Output, flat
from terrapod_shared import errors
from terrapod_shared.operator_errors import line_of_stdin

FIELDS: Fields = (
    ("Signed in as", "email"),
    ("Name", "display-name"),
    ("Id", "id"),
    ("Platform admin", "is-admin"),
    ("Server", "host"),
    ("By the token of", "token-source"),
)


def _named(argument: str | None, option: str | None, credentials: Credentials) -> Host:
    if argument and option and parse(argument) != parse(option):
        raise click.UsageError("two different hosts were given")
    return credentials.choose(option if argument is None else argument)


def _open_browser(url: str) -> None:
    """Starts a browser, if this host has one with windows of its own: one in the terminal would take it over."""
    if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")) or sys.platform == "darwin":
        null = subprocess.DEVNULL
        command = [sys.executable, "-m", "webbrowser", url]
        subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)  # noqa: S603


def _typed_token() -> str:
    token = line_of_stdin("token").strip()
    if not is_token(token):
        raise click.UsageError("what is on stdin is no token: one line is read")
    return token


@click.command()
@click.argument("server", required=False, metavar="[HOST]")
@click.option("--token-stdin", is_flag=True, help="Read a token from stdin, on hosts without a browser.")
@click.option("--no-browser", is_flag=True, help="Only print the address to open.")
@click.option("--timeout", default=300, show_default=True, type=click.IntRange(min=1), help="Seconds to wait for you.")
@common
def login(
    server: str | None,
    token_stdin: bool,
    no_browser: bool,
    timeout: int,
    host: str | None,
    ca: Path | None,
    as_json: bool,
    no_color: bool,
) -> None:
    """Sign in to HOST with the browser, and keep the token where terraform and tofu find it.

    The token goes into ~/.terraform.d/credentials.tfrc.json; tokens of other hosts stay there.
    """
    out = Output(as_json=as_json, colour=not no_color)
    credentials = Credentials()
    chosen = _named(server, host, credentials)
    typed = _typed_token() if token_stdin else ""

    def shown(url: str) -> None:
        out.say("Sign in with a browser on this host, at:")
        out.say(f"  {url}")
        if not no_browser:
            _open_browser(url)

    async def work() -> None:
        stranger = client_for(chosen, "", ca)
        try:
            token = typed or await loopback.sign_in(stranger, shown, timeout)
        finally:
            await stranger.close()
        client = client_for(chosen, token, ca)
        try:
            user = flat(await client.get("account/details"))
        finally:
            await client.close()
        credentials.save(chosen, token)
        row = {**user, "host": chosen.name, "token-source": str(credentials.file)}
        out.done(row, f"signed in to {chosen.name} as {user['email']}; the token is in {credentials.file}")
        if not credentials.is_file_read:
            out.say("TF_CLI_CONFIG_FILE is set: terraform and terrapod read that file, and not this one", "yellow")

    run(out, work)


@click.command()
@click.argument("server", required=False, metavar="[HOST]")
@common
def logout(server: str | None, host: str | None, ca: Path | None, as_json: bool, no_color: bool) -> None:
    """Take HOST's token out of terraform's credentials file.

    The token itself stays good; `terrapod tokens delete` ends it.
    """
    del ca  # the server is not asked
    out = Output(as_json=as_json, colour=not no_color)
    credentials = Credentials()
    chosen = _named(server, host, credentials)

    async def work() -> None:
        if not credentials.forget(chosen):
            raise errors.NotFound(f"{credentials.file} has no token for {chosen.name}")
        out.done({"host": chosen.name, "deleted": True}, f"signed out of {chosen.name}")

    run(out, work)


@click.command()
@connected
async def whoami(session: Session) -> None:
    """Say who you are to the server, and where your token comes from."""
    user = flat(await session.client.get("account/details"))
    source = session.token.source if session.token else None
    session.out.row({**user, "host": session.host.name, "token-source": source}, FIELDS)

"""`terrapod-server up`: server and one listener on one host, from nothing, in one command.

The listener is a process of its own, joined through the API as any other: this
program imports nothing of it.
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import click
import msgspec
import uvloop

from terrapod_server import app, serving
from terrapod_server.agents import join_tokens
from terrapod_server.commands import accounts, tls
from terrapod_server.commands import options as shared
from terrapod_server.config.hosts import in_url, is_loopback, is_name, is_unspecified, not_a_name
from terrapod_server.config.load import Mistakes, load, own_file
from terrapod_server.config.settings import Config, Tls
from terrapod_shared import host_engines, services
from terrapod_shared.errors import TerrapodError
from terrapod_shared.files import real_path, write_private
from terrapod_shared.host_engines import HostEngine

log = logging.getLogger("terrapod")
_AGAIN_S = 5.0
_PATIENCE_S = (10.0, 30.0, 5.0)


class Refused(Exception):
    """Why it cannot start, for the user."""


@dataclass(frozen=True)
class Options:
    """What the command line says. `host`, `port` and `names` are None or empty where it says nothing."""

    data: Path
    host: str | None = None
    port: int | None = None
    names: tuple[str, ...] = ()
    engines: tuple[Path, ...] = ()
    with_path_engines: bool = True
    plain_http: bool = False
    with_listener: bool = True


def run(options: Options) -> None:
    """Serves until SIGTERM or SIGINT."""
    if options.plain_http and options.host and not is_loopback(options.host):
        message = f"--plain-http is for loopback only, and {options.host} is not"
        raise Refused(message)
    if options.engines and not options.with_listener:
        message = "--engine is for the listener of this host, and --no-listener starts none"
        raise Refused(message)
    serving.log_as("warning")
    serving.allow_connections()
    config = prepare(options)
    for file in options.engines:
        try:
            host_engines.ask(file)
        except host_engines.Unfit as why:
            message = f"--engine: {file} {why}"
            raise Refused(message) from None
    uvloop.run(serving.until_signalled(lambda stop: _run(config, options, stop)))


def prepare(options: Options) -> Config:
    """The data folder, and the settings by it; the certificate that they name is made at the start."""
    options.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    over: dict[str, Any] = {"data": str(options.data)}
    over |= {"host": options.host} if options.host is not None else {}
    over |= {"port": options.port} if options.port is not None else {}
    over |= {"names": options.names} if options.names else {}
    try:
        config = load(shared.own_variables(), own_file(options.data), makes_certificate=not options.plain_http, **over)
    except Mistakes as error:
        raise Refused(str(error)) from None
    if config.tls != Tls():
        message = (
            "tls: `up` makes a certificate of its own: use `serve` with yours, or leave out tls.certificate and tls.key"
        )
        raise Refused(message)
    if not (is_unspecified(config.host) or is_name(config.host)):
        raise Refused(not_a_name("host", config.host))
    config = msgspec.structs.replace(config, port=config.port or _free_port(config.host))
    if options.plain_http:
        return config
    certificate, key = tls.files(options.data)
    return msgspec.structs.replace(config, tls=Tls(certificate=str(certificate), key=str(key)))


async def _first_things(config: Config, options: Options, built: app.App) -> None:
    """What a first start makes once the keys are known to be those of the database: whoever finds the server ready
    finds its certificate and token too.
    """
    if not options.plain_http:
        try:
            tls.ensure(options.data, config.host, built.services.cipher, config.names)
        except TerrapodError as error:
            message = f"{config.keys} is not the key file of {options.data}: {error.detail}"
            raise Refused(message) from None
    await _first_token(options.data)


def host_here(config: Config) -> str:
    """`host:port` by which this host itself calls the server; terraform wants a name where the address has colons."""
    host = config.host
    if is_unspecified(host) or (is_loopback(host) and _is_of_localhost(host)):
        host = "localhost"
    elif ":" in host:
        host = next((name for name in config.names if ":" not in name), host)
    return f"{in_url(host)}:{config.port}"


def _is_of_localhost(address: str) -> bool:
    """Whether who calls localhost comes to this address of loopback: 127.0.0.2 is another, and ::1 is on some hosts."""
    if address in {"localhost", "127.0.0.1"}:
        return True
    with contextlib.suppress(OSError):
        return any(known[4][0] == address for known in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM))
    return False


def hosts_elsewhere(config: Config) -> list[str]:
    """`host:port` by which other hosts may call it: the names that were given, else all that this host knows of itself."""
    return [f"{in_url(name)}:{config.port}" for name in config.names or tls.names_of(config.host)]


def _url(config: Config) -> str:
    return f"{'https' if config.tls.certificate else 'http'}://{host_here(config)}"


def _free_port(host: str) -> int:
    with serving.bound(host, 0) as server:
        return int(server.getsockname()[1])


async def _run(config: Config, options: Options, stop: asyncio.Event) -> None:
    ready, server_stop = asyncio.Event(), asyncio.Event()
    first = partial(_first_things, config, options)
    server = asyncio.create_task(serving.serve_until(config, server_stop, ready, before=first))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({server, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.is_set():
        waiting.cancel()
        await server
        return
    listener: asyncio.Task[None] | None = None
    try:
        _welcome(config, options)
        if options.with_listener and importlib.util.find_spec("terrapod_listener") is None:
            log.warning("the listener is not installed, so none is started")
        elif options.with_listener:
            engines, left_out = await asyncio.to_thread(_engines, options)
            _show_engines(engines, left_out, options)
            listener = asyncio.create_task(_keep_listener(config, options, stop, engines))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({server, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        if listener:  # first, so that what it still delivers finds the server there
            await asyncio.wait({listener})
        server_stop.set()
        await server
    if listener:
        await listener


async def _first_token(data: Path) -> None:
    """The file of a first start; made again where a start was killed before it was written, or where it is empty."""
    file = data / "admin-token"
    if not file.exists() or not file.read_bytes().strip():
        write_private(file, (await accounts.admin_token("made by terrapod-server up")).encode())


def _welcome(config: Config, options: Options) -> None:
    name, elsewhere = host_here(config), [each for each in hosts_elsewhere(config) if each != host_here(config)]
    data = options.data
    click.echo(f"Terrapod is ready at {_url(config)}")
    if elsewhere and not is_loopback(config.host):
        click.echo(f"Other hosts reach it with {data / 'ca.pem'} at:\n")
        click.echo("".join(f"  https://{each}\n" for each in elsewhere), nl=False)
    click.echo()
    if options.plain_http:
        click.echo("The terraform CLI speaks https only: use this for the API, or start without --plain-http.\n")
    click.echo("In your configuration:\n")
    click.echo(f'  terraform {{\n    cloud {{\n      hostname     = "{name}"\n      organization = "default"')
    click.echo('      workspaces { name = "my-workspace" }\n    }\n  }\n')
    click.echo("In your shell:\n")
    if not options.plain_http:
        click.echo(f"  export SSL_CERT_FILE={quote(str(data / 'ca.pem'))}")
    # a TF_TOKEN_ variable cannot name a port, so terraform gets a file
    credentials, token = data / "terraform.rc", (data / "admin-token").read_text().strip()
    hosts = dict.fromkeys(each for each in (name, *config.hosts, *elsewhere) if "[" not in each)
    write_private(
        credentials, "".join(f'credentials "{each}" {{\n  token = "{token}"\n}}\n' for each in hosts).encode()
    )
    click.echo(f"  export TF_CLI_CONFIG_FILE={quote(str(credentials))}")
    click.echo(f'  export TERRAPOD_TOKEN="$(cat {quote(str(data / "admin-token"))})"      # for curl and scripts\n')
    click.echo("To sign in by browser and `terraform login`, make yourself an account:\n")
    click.echo(f"  {_program()} users create --admin --email you@example.org --data {quote(str(data))}\n")
    click.echo("`terraform login` wants TF_CLI_CONFIG_FILE unset: terraform takes no second token for a host.\n")
    sys.stdout.flush()


def _program() -> str:
    """How a shell calls this program from any folder."""
    found, own = shutil.which("terrapod-server"), Path(sys.executable).with_name("terrapod-server")
    if not own.exists() or (found and os.path.realpath(found) == os.path.realpath(own)):
        return "terrapod-server"
    return quote(str(own))


def _engines(options: Options) -> tuple[list[HostEngine], list[str]]:
    """This host's own engines, and what was left out and why. Blocks until the programs have said what they are."""
    search = os.environ.get("PATH", "") if options.with_path_engines else ""
    return host_engines.choose((*options.engines, *host_engines.on_path(search)))


def _show_engines(engines: list[HostEngine], left_out: list[str], options: Options) -> None:
    if engines:
        click.echo("Its listener brings these engines of this host; others are fetched from their publishers:\n")
    else:
        click.echo("No terraform or tofu of this host is used: engines are fetched from their publishers.")
        click.echo("Without internet, give it one (up --engine FILE), or import a release's archive:\n")
        click.echo(f"  {_program()} binaries import terraform_VERSION_OS_ARCH.zip --data {quote(str(options.data))}")
    for each in engines:
        click.echo(f"  {each}")
    for why in left_out:
        click.echo(f"  not used: {why}")
    click.echo()
    sys.stdout.flush()


class Child:
    """A program in a session of its own, which inherits no descriptor: uvloop's subprocesses inherit what is inheritable.

    `ended` is its exit code, once it has one. Raises OSError.
    """

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(argv, env=env, start_new_session=True)  # noqa: S603  our own programs
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._note_end)

    def _note_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        if not self.ended.done():
            self.ended.set_result(code)

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        self._process.send_signal(number)


def _begun(argv: list[str], environment: dict[str, str]) -> Child | None:
    """The listener's program, or None and a line in the log where the system does not start it."""
    try:
        return Child(argv, environment)
    except OSError as error:
        log.error("the listener cannot be started: %s: %s", argv[0], error.strerror)  # noqa: TRY400  nothing of ours
        return None


async def _keep_listener(config: Config, options: Options, stop: asyncio.Event, engines: list[HostEngine]) -> None:
    """A listener process that is started again when it ends; joined at its first start, for which `engines` are."""
    is_first = True
    home = options.data / "listener"
    url = _url(config)
    trust = [] if options.plain_http else ["--ca", str(options.data / "ca.pem")]
    command = [sys.executable, "-m", "terrapod_listener"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TERRAPOD_") or name.startswith("TERRAPOD_LISTENER_")
    }
    while not stop.is_set():
        if not (home / "identity.json").exists():
            token = await join_tokens.make("default", "terrapod-server up")
            join = [
                *command,
                "join",
                "--server",
                url,
                "--name",
                f"local-{socket.gethostname()}",
                "--home",
                str(home),
            ]
            join += trust
            own = {**environment, "TERRAPOD_LISTENER_TOKEN": token}  # everybody on the host may read an argv
            joining = _begun(join, own)
            if joining is None or await joining.ended != 0:
                log.warning("the listener could not join; trying again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _AGAIN_S)
                continue
        run = [*command, "run", "--home", str(home), "--hide", str(options.data), "--parent", str(os.getpid())]
        run += ["--server", url, *trust]  # both may be others than at the last start
        if not is_first:  # they may have been upgraded
            engines, _ = await asyncio.to_thread(_engines, options)
        is_first = False
        run += [word for each in engines for word in ("--engine", str(each.path))]
        process = _begun(run, environment)
        if process is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _AGAIN_S)
            continue
        ended, stopping = process.ended, asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {ended, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for patience_s in _PATIENCE_S:  # drain, then interrupt terraform, then kill it
            if ended.done():
                break
            process.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), patience_s)
        if not ended.done():
            process.send(signal.SIGKILL)
        await ended
        if not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)


@click.command(name="up")
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
def command(no_path_engines: bool, no_listener: bool, data: Path, **more: Any) -> None:
    """Start a server, and one listener, for one host.

    The first start writes an administrator's token (DIR/admin-token), the certificate of an authority of its own
    (DIR/ca.pem), keys and database; later starts keep them. Settings may stand in DIR/server.toml.

    The listener brings the terraform and tofu that are on the PATH: real programs, not the scripts of version switchers.

    Other hosts reach it where --host is not loopback: its certificate names this host, its addresses, and each --name.
    SIGTERM or Ctrl-C stops it cleanly.
    """
    services.check_owner(real_path(data))
    options = Options(real_path(data), with_path_engines=not no_path_engines, with_listener=not no_listener, **more)
    try:
        run(options)
    except Refused as error:
        raise click.ClickException(str(error)) from None

"""The listener's settings: `listener.toml` in its home and `TERRAPOD_LISTENER_…` variables, all mistakes at once."""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

import msgspec

from terrapod_shared import settings, wire
from terrapod_shared.operator_errors import explain_os_error

FILE = "listener.toml"
PREFIX = "TERRAPOD_LISTENER_"
#: Below are users of the system and people; -1 and its neighbours are nobody's.
_UID_LEAST, _UID_MOST = 1_000, 4_000_000_000
_PROCESSES_LEAST = 64
#: Letters of a pattern in `accept`, and how many there are.
PATTERN_MOST, _PATTERNS_MOST = 254, 100
_DAY_S = 86_400


WantedIsolation = Literal["auto", "bubblewrap", "user", "none"]


class LocalEngine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A binary that the host's owner vouches for."""

    tool: Literal["terraform", "tofu"]  #: `terraform` or `tofu`
    version: str  #: exact, such as `1.15.5`
    path: str  #: absolute path of the program
    files: list[str] = []  #: all files that its digest covers; default: `path`


class AcceptSettings(wire.Accepts, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which work the host's owner lets this listener take; what is left out leaves all open.

    In patterns `*` stands for any letters and `?` for one.
    """


class HookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each hook is a program's absolute path and its arguments; no shell reads them."""

    pre_init: list[str] = []  #: before `init`, in both phases; where it fails the phase is errored
    post_init: list[str] = []  #: after `init`, however it ended
    pre_plan: list[str] = []  #: before `plan`; where it fails the phase is errored
    post_plan: list[str] = []  #: after `plan`, however it ended
    pre_apply: list[str] = []  #: before `apply`; where it fails nothing is applied and the phase is errored
    post_apply: list[str] = []  #: after `apply`, however it ended, once its state is delivered or in the spool
    timeout_s: float = 300.0  #: seconds that one hook may take; then it is killed and has failed


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the listener."""

    capacity: int = 2  #: runs at once
    engines: list[LocalEngine] = []
    pass_environment: list[str] = []  #: names of variables of the listener's that runs get, such as HTTPS_PROXY
    accept: AcceptSettings = AcceptSettings()  #: which work it takes: workspaces, labels, phases, tools; default: all
    hooks: HookSettings = HookSettings()  #: the host owner's commands before and after init, plan and apply
    isolation: WantedIsolation = "auto"  #: how runs are kept apart; auto: the strongest of bubblewrap, user, none
    run_uid: int = 90_000  #: first of up to 1,000 user ids that runs get where the listener is root
    readable: list[str] = []  #: paths in what is hidden from runs (such as /home) that they may read
    writable: list[str] = []  #: paths that runs may change besides their own folder
    hide: list[str] = []  #: more files and folders that runs do not see; with bubblewrap
    block_metadata: bool = False  #: runs do not reach the cloud's metadata address; refused where that cannot be had
    run_limits: bool = True  #: memory, processor and process limits by systemd, where it gives them
    run_processes: int = 4096  #: processes and threads that one run may have
    plugin_cache: bool = True  #: keep provider packages, and give runs what their lock files ask for
    plugin_cache_bytes: int = 10 << 30  #: of all packages that are kept; the longest unused go first
    provider_mirror: str = ""  #: https URL of a network mirror from which runs take all their providers
    ca_file: str = ""  #: PEM file of further authorities that runs trust, as the mirror's
    keep_work: bool = False  #: leave the folders of runs that are over, to look into them
    poll_s: float = 30.0  #: seconds of a long poll; the server ends it after 30
    health_host: str = "127.0.0.1"  #: address of the port for health and metrics
    health_port: int | None = None  #: 0: there is none; not set: 9846, or the next one that is free
    health_public: bool = False  #: whether `health_host` may be another than loopback; whoever reaches it may read
    log_level: Literal["debug", "info", "warning", "error"] = "info"  #: `debug`, `info`, `warning` or `error`


class Mistakes(Exception):
    """What is wrong with the settings, a line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def load(home: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Raises Mistakes with all of them."""
    mistakes: list[str] = []
    table: dict[str, Any] = {}
    try:
        table = settings.read(home / FILE)
    except FileNotFoundError:
        pass
    except OSError as error:
        mistakes.append(explain_os_error(error))
    except ValueError as error:
        mistakes.append(str(error))
    fields = {field.name: field.type for field in msgspec.structs.fields(Config)}
    for name, text in environ.items():
        if not name.startswith(PREFIX):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key in ("home", "server", "token", "token_file", "name", "ca"):  # options of the command line
            continue
        if key not in fields:
            mistakes.append(f"{name}: {settings.unknown(name, (PREFIX + each.upper() for each in fields))}")
            continue
        try:
            is_text = fields[key] is str or get_origin(fields[key]) is Literal
            table[key] = text if is_text else msgspec.json.decode(text.encode())
        except msgspec.DecodeError:
            mistakes.append(f"{name}: {text!r} is no JSON value")
    config = msgspec.convert(settings.checked(table, Config, "", mistakes), Config)
    known = msgspec.structs.asdict(config)
    mistakes += _out_of_range(known)
    mistakes += _mistakes_of_health(known)
    mistakes += [f"engines: {e.path} is not there" for e in config.engines if not Path(e.path).is_file()]
    mistakes += _mistakes_of_providers(known)
    mistakes += _mistakes_of_accept(config.accept)
    mistakes += _mistakes_of_hooks(config.hooks)
    if mistakes:
        raise Mistakes(mistakes)
    return config


def _out_of_range(known: Mapping[str, Any]) -> Iterator[str]:
    if known.get("capacity", 1) < 1:
        yield "capacity: must be at least 1"
    if not _UID_LEAST <= known.get("run_uid", _UID_LEAST) <= _UID_MOST:
        yield f"run_uid: must be from {_UID_LEAST} to {_UID_MOST}"
    if known.get("run_processes", _PROCESSES_LEAST) < _PROCESSES_LEAST:
        yield f"run_processes: must be at least {_PROCESSES_LEAST}; terraform alone has a few dozen"
    for name in ("readable", "writable", "hide"):
        yield from (
            f"{name}: {path} is no absolute path" for path in known.get(name, ()) if not Path(path).is_absolute()
        )


def _mistakes_of_providers(known: Mapping[str, Any]) -> list[str]:
    wrong = []
    if known.get("plugin_cache_bytes", 1) < 1:
        wrong.append("plugin_cache_bytes: must be at least 1; plugin_cache = false keeps nothing")
    if (url := known.get("provider_mirror", "")) and not re.fullmatch(r"https://[^\s/\"$%]+(/[^\s\"$%]*)?", url):
        wrong.append(f"provider_mirror: {url!r} is no https URL")
    if (file := known.get("ca_file", "")) and not Path(file).is_file():
        wrong.append(f"ca_file: {file} is not there")
    return wrong


def _mistakes_of_health(known: Mapping[str, Any]) -> Iterator[str]:
    host = known.get("health_host", "")
    if not 0 <= (known.get("health_port") or 0) <= 65535:  # noqa: PLR2004
        yield "health_port: must be between 0 and 65535"
    if not host or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        yield f"health_host: {host!r} is no address"
        return
    if not is_loopback and not known.get("health_public"):
        yield f"health_host: {host} is not loopback: others could read it; health_public = true allows that"


def _mistakes_of_accept(accept: wire.Accepts) -> Iterator[str]:
    if len(accept.workspaces) + len(accept.labels) > _PATTERNS_MOST:
        yield f"accept: at most {_PATTERNS_MOST} patterns"
    for each in (*accept.workspaces, *accept.labels, *accept.labels.values()):
        if len(each) > PATTERN_MOST:
            yield f"accept: a pattern has at most {PATTERN_MOST} letters: {each[:40]}..."
    if "" in accept.workspaces or "" in accept.labels:
        yield "accept: an empty name matches nothing"


def _mistakes_of_hooks(hooks: HookSettings) -> Iterator[str]:
    for field in msgspec.structs.fields(HookSettings):
        argv = getattr(hooks, field.name)
        if not isinstance(argv, list) or not argv:
            continue
        if not argv[0].startswith("/") or not os.access(argv[0], os.X_OK) or not Path(argv[0]).is_file():
            yield f"hooks.{field.name}: {argv[0]} is no absolute path of a program"
    if not 0 < hooks.timeout_s <= _DAY_S:
        yield "hooks.timeout_s: must be above 0, and a day at most"

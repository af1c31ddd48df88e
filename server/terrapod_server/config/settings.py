"""The server's settings: one frozen struct, read once from a TOML file and the environment.

`TERRAPOD_…` variables win over the file; `__` goes one level down, so that
`TERRAPOD_STORAGE__BUCKET` is `bucket` of the table `[storage]`. Every mistake
is reported at once, unknown names included.
"""

import importlib.util
import ipaddress
import math
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from terrapod_shared import settings
from terrapod_shared.operator_errors import explain_os_error, install_line

MIB = 1 << 20
#: Less is no slow hash any more.
LEAST_ARGON2_KIB = 8192
_VERSION = re.compile(r"\d{1,6}\.\d{1,6}\.\d{1,6}")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*")
_NAME_MOST = 253
_LOGIN = re.compile(r"//[^/?#]*@")
_NO_LOGIN = "holds a user or a password before its host: messages would show it"
_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: Variables of ours that are no settings: where the file is, and the command line's.
_NOT_SETTINGS = frozenset({"TERRAPOD_CONFIG", "TERRAPOD_TOKEN", "TERRAPOD_ADDRESS"})


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of all tables."""


class Limits(Section, frozen=True, kw_only=True):
    """Greatest sizes of request bodies, in bytes, what may be spent on reading them, times in seconds, and numbers of connections."""

    json_bytes: int = 2 * MIB  #: of any document but the following
    configuration_bytes: int = 256 * MIB  #: of a configuration's archive
    state_bytes: int = 512 * MIB  #: of a state; a document carries one of 16 MiB at most
    module_bytes: int = 64 * MIB  #: of one version's archive of a module
    memory_bytes: int = 256 * MIB  #: that the bodies and answers of all requests together may take in the server
    readers: int = 2  #: processes at once that read large states and plans; they end when there are none
    reader_bytes: int = 1024 * MIB  #: of memory that one of them may take
    document_s: float = 60.0  #: in which a document must be here that is no upload
    stall_s: float = 30.0  #: in which the next byte of an upload must come; it needs 60 KiB a minute too
    connections: int = 0  #: at once; 0: three quarters of the files that the system lets the server open
    connections_per_address: int = 2000  #: at once from one address; not for loopback and trusted proxies


class Storage(Section, frozen=True, kw_only=True):
    """Where files are kept: on disk below the data folder, or in an S3 bucket."""

    kind: Literal["files", "s3"] = "files"  #: `files` on disk, or `s3`
    path: str = ""  #: of `files`; default `DATA/store`
    bucket: str = ""  #: of `s3`; its credentials are taken as Amazon's own tools take them
    prefix: str = ""  #: what the names of all objects in the bucket begin with
    region: str = ""  #: of the bucket
    endpoint: str = ""  #: of another S3 than Amazon's


class Engines(Section, frozen=True, kw_only=True):
    """Where terraform and tofu come from."""

    terraform_url: str = "https://releases.hashicorp.com/terraform"  #: where terraform's versions are
    tofu_url: str = "https://github.com/opentofu/opentofu/releases/download"  #: where tofu's versions are
    tofu_index_url: str = "https://get.opentofu.org/tofu/api.json"  #: where the list of tofu's versions is
    timeout_s: float = 300.0  #: of one download
    require_signatures: bool = True  #: whether a site's checksums must be signed; a bad signature is refused anyhow
    terraform_keys: str = ""  #: file of the OpenPGP keys that may sign terraform's checksums; default: HashiCorp's
    tofu_keys: str = ""  #: file of the OpenPGP keys that may sign tofu's checksums; default: OpenTofu's
    terraform_floor: str = ""  #: oldest terraform that is used; default: what has no known hole, see engines.md
    tofu_floor: str = ""  #: oldest tofu that is used; default: what has no known hole, see engines.md


class Tls(Section, frozen=True, kw_only=True):
    """PEM files. Without them `serve` speaks plain HTTP on loopback only."""

    certificate: str = ""  #: the server's, and those between it and its authority
    key: str = ""  #: of the certificate, without a passphrase


class Runs(Section, frozen=True, kw_only=True):
    """Limits of a phase; what a listener is told with its work."""

    plan_s: float = 7200.0  #: how long a plan may take
    apply_s: float = 86400.0  #: how long an apply may take
    cancel_grace_s: float = 120.0  #: how long an interrupted terraform may take to save its state
    log_bytes: int = 1 << 30  #: how much of a phase's log is kept
    default_version: str = "latest"  #: of the engine, for new workspaces that name none


class RateLimits(Section, frozen=True, kw_only=True):
    """Requests a second, by who asks; 0 sets no limit. `burst_s` seconds' worth may come at once."""

    anonymous_per_s: float = 20.0  #: from one address, without a credential or with a bad one
    user_per_s: float = 1000.0  #: with one user's token
    session_per_s: float = 1000.0  #: in one session
    run_per_s: float = 100.0  #: with one run's token
    listener_per_s: float = 100.0  #: of one listener, where its calls are metered at all
    burst_s: float = 60.0  #: how many seconds' worth may come at once


class Audit(Section, frozen=True, kw_only=True):
    """The record of who changed what, and of who was refused."""

    enabled: bool = True  #: whether anything is recorded
    retention_days: int = 90  #: 0 keeps entries for ever


class Retention(Section, frozen=True, kw_only=True):
    """How long what nobody needs any more is kept."""

    deleted_days: int = 30  #: the last state of a deleted workspace, out of reach of every API; 0: it goes at once


class Listeners(Section, frozen=True, kw_only=True):
    """What becomes of listeners that do not come back."""

    forget_after: int = 30  #: days offline after which a listener is removed; 0: never. One that has work is kept


class ClaimRule(Section, frozen=True, kw_only=True):
    """Whoever has `value` as the claim, or in its list, has these roles."""

    claim: str  #: its name; `a.b` is `b` inside of `a`
    value: str  #: what it is, or what its list holds
    roles: tuple[str, ...]  #: what that gives


class SignInProvider(Section, frozen=True, kw_only=True):
    """What providers of all kinds have; see docs/sign-in.md."""

    name: str  #: in URLs and role assignments: small letters, digits and hyphens
    title: str = ""  #: on the button of the sign-in page; default: the name
    issuer: str  #: OIDC: the issuer's URL; SAML: the provider's entity id
    roles_claim: str = "groups"  #: claim, or SAML attribute, whose values may name roles
    role_prefixes: tuple[str, ...] = ("terrapod:", "terrapod-")  #: a value that begins so names a role
    rules: tuple[ClaimRule, ...] = ()  #: further claims that give roles
    trust_email: bool = False  #: believe addresses of which the provider does not say that they are verified
    email_domains: tuple[str, ...] = ()  #: only people whose address is in one of these
    create_users: bool = True  #: whether somebody new may come in

    @property
    def shown(self) -> str:
        return self.title or self.name


class Oidc(SignInProvider, frozen=True, kw_only=True):
    """An OpenID Connect provider."""

    client_id: str  #: ours at the provider
    client_secret: str = ""  #: ours too; none for a public client
    client_secret_file: str = ""  #: read at each use, so that it can be changed
    scopes: tuple[str, ...] = ("openid", "email", "profile")  #: what is asked for
    userinfo: bool = False  #: whether claims that the ID token lacks are asked for


class Saml(SignInProvider, frozen=True, kw_only=True):
    """A SAML 2.0 identity provider; needs the extra `terrapod[saml]`."""

    sign_on_url: str  #: HTTP-Redirect binding
    certificate: str  #: PEM file with the certificates by which it signs
    entity_id: str = ""  #: ours; default: where our metadata is
    email_attribute: str = "email"  #: the attribute with the address
    name_attribute: str = "displayName"  #: the attribute with the person's name


class Auth(Section, frozen=True, kw_only=True):
    """How people sign in."""

    local: bool = True  #: whether accounts with a password of this server may
    login_token_days: int = 0  #: how long a token of `terraform login` is good; 0: until it is removed
    argon2_kib: int = 32768  #: memory of one password's hash
    argon2_passes: int = 3  #: over that memory
    argon2_lanes: int = 1  #: that are filled side by side
    oidc: tuple[Oidc, ...] = ()  #: OpenID Connect providers, each a table `[[auth.oidc]]`; see sign-in.md
    saml: tuple[Saml, ...] = ()  #: SAML providers, each a table `[[auth.saml]]`; see sign-in.md


class Config(Section, frozen=True, kw_only=True):
    """All settings of the server."""

    data: str = "/var/lib/terrapod"  #: folder of keys, SQLite database and files
    host: str = "127.0.0.1"  #: address to listen on; another than loopback needs TLS
    port: int = 8443  #: to listen on
    public_url: str = ""  #: as clients see it; default: made from host and port
    names: tuple[str, ...] = ()  #: more names and addresses that clients use; `up` puts them into its certificate
    database_url: str = ""  #: `postgres://…`; default: SQLite below the data folder
    database_pool: int = 10  #: greatest number of PostgreSQL connections
    key_file: str = ""  #: of the keys that encrypt at rest; default `DATA/keys`
    trusted_proxies: tuple[str, ...] = ()  #: networks of proxies; only what they say of a client's address is believed
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"  #: where those proxies say it
    access_log: bool = False  #: whether each request is a line of the log
    log_level: Literal["debug", "info", "warning", "error"] = "info"  #: `debug`, `info`, `warning` or `error`
    http2: bool = False  #: whether HTTP/2 is offered over TLS; HTTP/1.1 moves large files faster
    shutdown_s: float = 30.0  #: how long requests under way may take at a stop
    tls: Tls = Tls()
    limits: Limits = Limits()
    rate_limits: RateLimits = RateLimits()
    audit: Audit = Audit()
    retention: Retention = Retention()
    listeners: Listeners = Listeners()
    storage: Storage = Storage()
    engines: Engines = Engines()
    runs: Runs = Runs()
    auth: Auth = Auth()

    @property
    def folder(self) -> Path:
        return Path(self.data)

    @property
    def keys(self) -> Path:
        """The file of the keys that encrypt at rest."""
        return Path(self.key_file) if self.key_file else self.folder / "keys"

    @property
    def url(self) -> str:
        """Base of all absolute URLs, without a slash at its end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        scheme = "https" if self.tls.certificate else "http"
        return f"{scheme}://{in_url(self.host)}:{self.port}"

    @property
    def hosts(self) -> list[str]:
        """As configurations may name this server: modules need a name with a dot, which `localhost` is not."""
        names = [f"{in_url(name)}:{self.port}" for name in self.names]
        if self.public_url:
            return [urlsplit(self.public_url).netloc, *names]
        here = ("localhost", "127.0.0.1") if is_loopback(self.host) or is_unspecified(self.host) else (self.host,)
        return list(dict.fromkeys((*(f"{in_url(name)}:{self.port}" for name in here), *names)))

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite://{self.folder / 'terrapod.sqlite3'}"

    @property
    def has_database(self) -> bool:
        """False where SQLite would make a new file."""
        return not self.database.startswith("sqlite:") or Path(self.database.removeprefix("sqlite://")).exists()


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether it stands for all addresses of this host."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def in_url(host: str) -> str:
    """A name or an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def is_name(text: str) -> bool:
    """Whether a certificate can name it: a DNS name in ASCII, or the address of one host."""
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        above, _, last = text.rpartition(".")
        is_mistyped_address = bool(above) and last.isdigit()  # 10.0.0.300
        return len(text) <= _NAME_MOST and _NAME.fullmatch(text) is not None and not is_mistyped_address


def not_a_name(setting: str, text: str) -> str:
    """What is said of a value that `is_name` refuses."""
    without = ": leave out scheme and port" if "/" in text or text.count(":") == 1 else ""
    return f"{setting}: {text!r} is neither a name nor an address of a host{without}"


def own_file(data: Path) -> Path | None:
    """Settings in a data folder, if it has any. A link that leads nowhere is there: its settings are not to be left out."""
    file = data / "server.toml"
    return file if file.exists() or file.is_symlink() else None


class Mistakes(Exception):
    """What is wrong with the settings, a line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _from_environment(environ: Mapping[str, str], mistakes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith("TERRAPOD_") or name.startswith(("TERRAPOD_LISTENER_", "TERRAPOD_TEST_")):
            continue
        if name in _NOT_SETTINGS:
            continue
        path = name.removeprefix("TERRAPOD_").lower().split("__")
        kind: Any = Config
        for part in path:
            kind = msgspec.structs.fields(kind) if settings.is_table(kind) else ()
            kind = next((field.type for field in kind if field.name == part), None)
        if kind is None or settings.is_table(kind):
            mistakes.append(f"{name}: {settings.unknown(name, _variables(Config))}")
            continue
        try:
            value = settings.from_text(text, kind)
        except ValueError as error:
            mistakes.append(f"{name}: {error}")
            continue
        table = found
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = value
    return found


def _variables(table: type[msgspec.Struct], at: str = "TERRAPOD_") -> Iterator[str]:
    """The names of all variables that set something."""
    for field in msgspec.structs.fields(table):
        name = f"{at}{field.name.upper()}"
        if settings.is_table(field.type):
            yield from _variables(field.type, f"{name}__")
        elif settings.table_of_list(field.type) is None:
            yield name


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def load(
    environ: Mapping[str, str], file: Path | None = None, *, makes_certificate: bool = False, **over: Any
) -> Config:
    """Settings from `file`, then the environment, then `over`; raises `Mistakes` with all of them.

    `makes_certificate`: the caller makes one once the database is open, so none has to be there yet.
    """
    mistakes: list[str] = []
    table: dict[str, Any] = {}
    if file is not None:
        try:
            table = settings.read(file)
        except OSError as error:
            mistakes.append(explain_os_error(error))
        except ValueError as error:
            mistakes.append(str(error))
    table = settings.checked(table, Config, "", mistakes)
    table = _merge(table, _from_environment(environ, mistakes))
    table = _merge(table, settings.checked(over, Config, "", mistakes))
    config = msgspec.convert(table, Config)
    mistakes += [] if makes_certificate else _tls(config)
    mistakes += _contradictions(config)
    if mistakes:
        raise Mistakes(mistakes)
    return config


#: Ten years; more than that no clock can be counted back by.
_DAYS_MOST = 3650
#: Where 0 means without a limit, or any port that is free; checked apart.
_MAY_BE_ZERO = frozenset(
    {
        "port",
        "audit.retention_days",
        "retention.deleted_days",
        "listeners.forget_after",
        "limits.connections",
        "auth.login_token_days",
        *(f"rate_limits.{name}" for name in RateLimits.__struct_fields__),
    }
)


def _too_small(section: Section, at: str = "") -> list[str]:
    """Sizes, numbers and times that would let nothing through."""
    wrong = []
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            wrong += _too_small(value, f"{at}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and f"{at}{name}" not in _MAY_BE_ZERO:
            wrong += [] if 0 < value < math.inf else [f"{at}{name}: must be greater than 0, and is {value}"]
    return wrong


def _tls(config: Config) -> list[str]:
    certificate, key = config.tls.certificate, config.tls.key
    if not certificate and not key:
        if is_loopback(config.host):
            return []
        advice = "set tls.certificate and tls.key, or listen on 127.0.0.1 behind a proxy"
        return [f"host: {config.host} is not loopback: {advice}"]
    if not certificate or not key:
        return ["tls: certificate and key go together"]
    wrong = [
        f"tls.{name}: {path} cannot be read"
        for name, path in (("certificate", certificate), ("key", key))
        if not Path(path).is_file()
    ]
    if not wrong:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
        except (OSError, ValueError) as error:  # which SSLError is one of
            wrong.append(f"tls: {certificate} and {key} are no certificate with its key: {error}")
    return wrong


_MEMORY_LEAST = 32 * MIB
#: What a process that reads documents takes by itself, and something to read.
_READER_LEAST = 256 * MIB


def _contradictions(config: Config) -> list[str]:
    wrong = [*_too_small(config), *_engine_mistakes(config.engines)]
    wrong += [not_a_name("names", name) for name in config.names if not is_name(name)]
    for network in config.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            wrong.append(f"trusted_proxies: {network!r} is neither an address nor a network")
    rates = msgspec.structs.asdict(config.rate_limits)
    wrong += [f"rate_limits.{name}: must not be negative" for name, rate in rates.items() if not rate >= 0]
    if config.audit.retention_days < 0:
        wrong.append("audit.retention_days: must not be negative")
    if not 0 <= config.retention.deleted_days <= _DAYS_MOST:
        wrong.append(f"retention.deleted_days: must be between 0 and {_DAYS_MOST}")
    if not 0 <= config.listeners.forget_after <= _DAYS_MOST:
        wrong.append(f"listeners.forget_after: must be between 0 and {_DAYS_MOST} days")
    if config.storage.kind == "s3" and not config.storage.bucket:
        wrong.append("storage.bucket: needed when storage.kind is s3")
    if config.storage.kind == "s3" and importlib.util.find_spec("aioboto3") is None:
        wrong.append(f"storage.kind: s3 needs an extra: {install_line('s3')}")
    if not 0 <= config.port <= 65535:  # noqa: PLR2004
        wrong.append("port: must be between 0 and 65535")
    wrong += _auth_mistakes(config.auth)
    wrong += _limit_mistakes(config.limits)
    return [*wrong, *_url_mistakes(config)]


def _url_mistakes(config: Config) -> Iterator[str]:
    if (url := config.public_url) and not _is_url(url, "https", "http"):
        yield f"public_url: must be https://NAME or https://NAME:PORT, and is {_without_login(url)!r}"
    if (url := config.storage.endpoint) and not _is_url(url, "https", "http"):
        yield f"storage.endpoint: must be an https:// or http:// URL, and is {_without_login(url)!r}"
    for name, url in (("public_url", config.public_url), ("storage.endpoint", config.storage.endpoint)):
        if url != _without_login(url):
            yield f"{name}: {_NO_LOGIN}"
    url = config.database_url
    if url.startswith("sqlite://") and not Path(url.removeprefix("sqlite://")).name:
        yield "database_url: names no file, as sqlite:///FOLDER/FILE does"
    elif (
        url
        and not url.startswith("sqlite://")
        and (not _is_url(url, "postgres", "postgresql", "asyncpg") or urlsplit(url).netloc.count("@") > 1)
    ):
        # never the URL itself: it may hold a password
        yield "database_url: must be postgres://ROLE:PASSWORD@HOST:PORT/DATABASE (a / or @ in the password as %2F, %40), or sqlite:///FILE"


def _without_login(url: str) -> str:
    """A URL as a message may hold it: what stands before the host may be a password."""
    return _LOGIN.sub("//", url)


def _is_url(text: str, *schemes: str) -> bool:
    """Whether it is a URL of one of the schemes, with a host or, in its query, a way to one."""
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname or parts.query) and (parts.port or 0) >= 0
    except ValueError:
        return False


def _limit_mistakes(limits: Limits) -> list[str]:
    wrong = [
        f"limits.{name}: must be at least {least}"
        for name, least in (("memory_bytes", _MEMORY_LEAST), ("reader_bytes", _READER_LEAST))
        if getattr(limits, name) < least
    ]
    if limits.connections < 0:
        wrong.append("limits.connections: must not be negative")
    return wrong


def _engine_mistakes(engines: Engines) -> list[str]:
    files = {"terraform_keys": engines.terraform_keys, "tofu_keys": engines.tofu_keys}
    return [
        f"engines.{name}: {file} cannot be read" for name, file in files.items() if file and not Path(file).is_file()
    ]


def _auth_mistakes(auth: Auth) -> list[str]:
    wrong = []
    if auth.argon2_kib < LEAST_ARGON2_KIB:
        wrong.append(f"auth.argon2_kib: must be at least {LEAST_ARGON2_KIB}")
    if auth.login_token_days < 0:
        wrong.append("auth.login_token_days: must not be negative")
    if auth.saml and importlib.util.find_spec("signxml") is None:
        wrong.append(f"auth.saml: SAML needs an extra: {install_line('saml')}")
    providers: list[Oidc | Saml] = [*auth.oidc, *auth.saml]
    names = [provider.name for provider in providers]
    for provider in providers:
        own = [*_provider_mistakes(provider)]
        if names.count(provider.name) > 1:
            own.append("another has this name too")
        wrong += [f"auth: provider {provider.name!r}: {why}" for why in own]
    return wrong


def _provider_mistakes(provider: Oidc | Saml) -> Iterator[str]:
    if not _PROVIDER_NAME.fullmatch(provider.name) or provider.name == "local":
        yield "a name is made of small letters, digits and hyphens, and is not local"
    if not all(provider.role_prefixes):
        yield "an empty role prefix would make every group a role"
    if isinstance(provider, Oidc):
        url, file = provider.issuer, provider.client_secret_file
        if "openid" not in provider.scopes:
            yield "scopes must hold openid"
    else:
        url, file = provider.sign_on_url, provider.certificate
    if not is_safe_url(url):
        yield f"{_without_login(url)} must be an https URL (http on loopback only)"
    if url != _without_login(url):
        yield f"{_without_login(url)} {_NO_LOGIN}"
    if file and not Path(file).is_file():
        yield f"{file} cannot be read"


def is_safe_url(url: str) -> bool:
    """https, or http on this host's loopback, as tests and development have it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    try:
        return parts.scheme == "http" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False

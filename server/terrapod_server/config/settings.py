"""The server's settings, as one frozen struct; `load` reads it and `check` judges it."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from terrapod_server.config.hosts import in_url, is_loopback, is_unspecified

MIB = 1 << 20


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

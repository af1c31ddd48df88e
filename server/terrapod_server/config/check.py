"""What is wrong with settings that are each of the right kind: contradictions, and files that cannot be read."""

import importlib.util
import ipaddress
import math
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from terrapod_server.config.hosts import is_loopback, is_name, is_safe_url, not_a_name
from terrapod_server.config.settings import MIB, Auth, Config, Engines, Limits, Oidc, RateLimits, Saml, Section
from terrapod_shared.operator_errors import install_line

#: Less is no slow hash any more.
LEAST_ARGON2_KIB = 8192
_LOGIN = re.compile(r"//[^/?#]*@")
_NO_LOGIN = "holds a user or a password before its host: messages would show it"
_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
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


def tls(config: Config) -> list[str]:
    """What is wrong with the certificate and its key."""
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


def contradictions(config: Config) -> list[str]:
    """A line for each mistake; for the certificate see `tls`."""
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

"""Names, addresses and URLs of hosts, as settings hold them. Pure."""

import ipaddress
import re
from urllib.parse import urlsplit

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*")
_NAME_MOST = 253
_AUTHORITY = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


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


def is_authority(text: str) -> bool:
    """Whether it is a host with or without its port, as a client names it that calls one."""
    if not _AUTHORITY.fullmatch(text):
        return False
    try:
        return urlsplit(f"//{text}").port != 0
    except ValueError:
        return False


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

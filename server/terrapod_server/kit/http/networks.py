"""Addresses as text, and what of them is counted as one client. Pure."""

import functools
import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: So much of an IPv6 address is one customer's: counting by single addresses would count nothing.
_GROUP_BITS = 64


@functools.lru_cache(4096)
def parsed(text: str) -> Address | None:
    """An address, with or without a port; None for what is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@functools.lru_cache(4096)
def group(text: str) -> str:
    """What is counted as one client: an IPv4 address, or the /64 of an IPv6 one."""
    address = parsed(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _GROUP_BITS), strict=False))
    return text if address is None else str(address)

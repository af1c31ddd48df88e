"""Where a request comes from: the peer, or what trusted proxies say of the client behind them.

A header about the client is read from the right: each proxy adds the address
that it saw, so only what trusted ones added can be believed. What stands left
of the first untrusted address was written by the client itself.
"""

import ipaddress
import logging
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Scope

from terrapod_server.kit.http.networks import Address, parsed

log = logging.getLogger(__name__)


class Addresses:
    """Tells clients' addresses. `header` is the one that the trusted proxies set."""

    def __init__(self, trusted: Sequence[str] = (), header: str = "x-forwarded-for") -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in trusted]
        self._header, self._raw_header = header, header.encode()
        self._has_warned = False

    def of(self, request: Request) -> str:
        """The client's address; empty where there is none, as on a socket of the host."""
        scope = request.scope
        if (found := scope.get("address")) is None:
            peer = scope["client"][0] if scope.get("client") else ""
            found = scope["address"] = self._behind(request, peer) if self._networks else self._alone(scope, peer)
        return str(found)

    def _behind(self, request: Request, peer: str) -> str:
        """The client behind a peer, if that is a proxy which is trusted."""
        address = parsed(peer)
        if address is None or not self._trusts(address):
            return peer
        for said in reversed(self._chain(request)):
            hop = parsed(said)
            if hop is None:
                break
            address = hop
            if not self._trusts(hop):
                break
        return str(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)

    def is_many(self, peer: str) -> bool:
        """Whether a peer stands for many clients: a trusted proxy, or one on this host."""
        address = parsed(peer)
        return address is not None and (address.is_loopback or self._trusts(address))

    def _chain(self, request: Request) -> list[str]:
        parts = [part.strip() for line in request.headers.getlist(self._header) for part in line.split(",")]
        if self._header == "forwarded":
            return [_forwarded_for(part) for part in parts if part]
        return [part for part in parts if part]

    def _alone(self, scope: Scope, peer: str) -> str:
        """The peer. Behind a proxy that is not named all clients share its address, and its limits: told once."""
        if not self._has_warned and any(name == self._raw_header for name, _ in scope["headers"]):
            self._has_warned = True
            log.warning(
                "%s sends %s and is not in trusted_proxies: its own address counts as the client's", peer, self._header
            )
        return peer


def _forwarded_for(element: str) -> str:
    """The `for` of one element of a Forwarded header (RFC 7239); empty where it has none."""
    for pair in element.split(";"):
        name, _, value = pair.strip().partition("=")
        if name.lower() == "for":
            return value.strip('"')
    return ""

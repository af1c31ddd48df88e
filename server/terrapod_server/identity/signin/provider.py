"""What the sign-in asks of a provider, whatever its kind: one module a kind implements it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from terrapod_server.identity.rules import Proof

CALLBACK = "/api/v2/auth/callback"


@dataclass(frozen=True)
class Trip:
    """One way to a provider and back; kept while the person is away.

    `base` is how URLs of this server begin for that person. `nonce`,
    `verifier` and `request` are secrets of this trip, of which each kind of provider uses its own.
    """

    state: str
    nonce: str
    verifier: str
    request: str
    base: str

    @property
    def back(self) -> str:
        """The address to which the provider sends the person."""
        return self.base + CALLBACK


@dataclass(frozen=True)
class Assertion:
    """An answer that came past the person's browser session: the proof, and what makes a second use of it known."""

    proof: Proof
    id: str
    good_until: datetime


class Provider(Protocol):
    """A provider of the settings. A kind answers by redirect or by POST, and refuses the other with BadRequest."""

    kind: str
    settings: Any

    async def start(self, trip: Trip) -> str:
        """The URL at the provider to which the browser goes."""
        ...

    async def finish(self, answer: Mapping[str, str], trip: Trip) -> Proof:
        """Who came back by a redirect. Raises Forbidden where the provider, or what it sent, lets nobody in."""
        ...

    async def finish_posted(self, form: Mapping[str, str], trip: Trip) -> Assertion:
        """Whom an answer lets in that the provider's site posts. Raises as `finish`."""
        ...

    def metadata(self, base: str) -> bytes:
        """Who this server is to the provider. Raises NotFound for a kind that has no such document."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...

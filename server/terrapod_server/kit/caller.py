"""Who calls, and what a caller may do. Pure."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Literal


class Level(IntEnum):
    """What a caller may do with a workspace, pool, module or provider; higher holds lower."""

    NONE = 0
    READ = 1
    PLAN = 2
    WRITE = 3
    ADMIN = 4


class Access(StrEnum):
    """Who may call an endpoint that is not about one thing with levels."""

    PUBLIC = "public"  #: anybody, without a credential
    CAPABILITY = "capability"  #: the URL's own secret is the credential; the handler checks it
    USER = "user"  #: anybody with a good token; lists show what the caller may read
    SELF = "self"  #: a person, by a session or a token without limits; the handler checks that the thing is its own
    PLATFORM = "platform"  #: platform admins
    AUDIT = "audit"  #: platform admins and auditors
    LISTENER = "listener"  #: a listener's signed request


Needs = Level | Access


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls. A person (`user`) has rights; runs and listeners have what their endpoints check."""

    kind: Literal["user", "run", "listener", "anonymous"] = "anonymous"
    id: str = ""
    name: str = ""
    token_id: str = ""
    session_id: str = ""
    provider: str = ""  #: which way of signing in vouches for the person
    rights: Any = None  #: a person's `access.rules.Rights`
    lease: int = 0
    workspace_id: str = ""
    phase: str = ""
    pool_id: str = ""

    @property
    def is_admin(self) -> bool:
        """A platform admin, by a token that is not limited to one workspace."""
        return self.rights is not None and self.rights.is_admin and not self.rights.only_workspace

    @property
    def is_auditor(self) -> bool:
        """May look into all that admins may look into."""
        return self.rights is not None and self.rights.sees_all

    @property
    def is_limited(self) -> bool:
        """Whether the token gives less than the person has."""
        return self.rights is not None and (self.rights.is_read_only or bool(self.rights.only_workspace))


ANONYMOUS = Principal()


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A change that no request asked for, in the words of the request that would have made the same one."""

    actor_kind: Literal["server", "operator"]  #: the server by itself, or whoever calls its command line
    actor: str
    method: str
    path: str  #: as it is declared
    resource_type: str
    resource_id: str
    status: int
    program: str = ""

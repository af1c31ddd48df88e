"""A person in a browser: who is signed in there, and by which cookies a browser is known again."""

import hashlib
import secrets

from starlette.responses import Response

from terrapod_server.identity import sessions
from terrapod_server.identity.model import Session, User
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.http.browser import SESSION
from terrapod_shared.errors import NotFound, Unauthorized

_DEVICE = "terrapod-device"
_DEVICE_S = 180 * 86400.0


def person(user: User, session: Session | None = None, provider: str = "") -> Principal:
    """Somebody who came in by the pages, for the record."""
    kept = (session.id, session.provider) if session else ("", provider)
    return Principal(kind="user", id=user.id, name=user.email, session_id=kept[0], provider=kept[1])


async def signed_in(call: Call) -> tuple[Session, User] | None:
    """The session of the browser's cookie as it is now: the guard's answer may be some seconds old."""
    found = await sessions.find(call.browser.session)
    return found[:2] if found else None


async def own_session(call: Call) -> tuple[Session, User]:
    """As `signed_in`. Raises Unauthorized where the session has ended since the guard has looked."""
    found = await signed_in(call)
    if found is None:
        raise Unauthorized("your session is over: sign in again")
    return found


def sign_in(call: Call, response: Response, token: str, user: User, device: str) -> None:
    """Gives the browser the session, and the name by which the user's own guesses at the password are told from others'."""
    call.browser.set(response, SESSION, token)
    shown = call.services.signer.sign("device", f"{user.id}.{_password_mark(user)}.{device}", _DEVICE_S)
    call.browser.set(response, _DEVICE, shown, int(_DEVICE_S))


def sign_out(call: Call, response: Response) -> None:
    call.browser.set(response, SESSION, "", 0)


def device(call: Call, user: User | None) -> str:
    """The name by which the user signed in here before, since the last change of password; else a new one."""
    return (_known_device(call, user) if user else "") or secrets.token_hex(16)


def _known_device(call: Call, user: User) -> str:
    """The name of a device of the user's, or nothing."""
    try:
        user_id, mark, found = call.services.signer.check("device", call.browser.cookie(_DEVICE)).split(".")
    except (NotFound, ValueError):
        return ""
    return found if (user_id, mark) == (user.id, _password_mark(user)) else ""


def _password_mark(user: User) -> str:
    return hashlib.sha256(user.password_hash.encode()).hexdigest()[:16]

"""What a browser carries: the session's cookie, a cookie that names the browser, and the proof that a form is ours.

Over https the cookies have the prefix `__Host-`, so that no other host and no
plain connection can set them. Over http, which is for loopback and development,
they have neither that prefix nor `Secure`.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from terrapod_server.identity import sessions
from terrapod_server.identity.model import Session, User
from terrapod_server.kit.api.call import Call, base_of
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.http.signed import Signer
from terrapod_server.kit.services import Services
from terrapod_shared.errors import BadRequest, Forbidden, NotFound, UnsupportedMedia

FORM = "application/x-www-form-urlencoded"
#: Of a form, larger than any of ours; a SAML answer is larger still.
FORM_BYTES, SAML_BYTES = 16 << 10, 512 << 10
_FIELDS = 40
_CSRF_S = 12 * 3600.0
_DEVICE_S = 180 * 86400.0
_BROWSER = re.compile(r"[A-Za-z0-9_-]{43}")


def person(user: User, session: Session | None = None, provider: str = "") -> Principal:
    """Somebody who came in by the pages, for the record."""
    kept = (session.id, session.provider) if session else ("", provider)
    return Principal(kind="user", id=user.id, name=user.email, session_id=kept[0], provider=kept[1])


class Visitor:
    """One browser's request."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_secure = call.base.startswith("https://")
        self._signer: Signer = call.services.signer
        self.token = self._cookie("terrapod")
        shown = self._cookie("terrapod-browser")
        self._is_new = not _BROWSER.fullmatch(shown)
        self._browser = secrets.token_urlsafe(32) if self._is_new else shown
        self.signed_in: tuple[Session, User] | None = None

    async def identify(self) -> "Visitor":
        """Finds the session that the cookie names."""
        found = await sessions.find(self.token) if self.token else None
        self.signed_in = found[:2] if found else None
        if self.signed_in:
            session, user = self.signed_in
            self._call.request.scope["principal"] = person(user, session)  # known to the record, whatever is answered
        return self

    @property
    def id(self) -> str:
        """Names this browser to us, and is no secret."""
        return hashlib.sha256(self._browser.encode()).hexdigest()

    @property
    def csrf(self) -> str:
        """Goes into each form; good for this browser and this session only."""
        return self._signer.sign("form", self._bound(), _CSRF_S)

    def check_csrf(self, form: Mapping[str, str]) -> None:
        """Raises Forbidden for a form that another site, or another browser, has made."""
        try:
            is_ours = self._signer.check("form", form.get("csrf", "")) == self._bound()
        except NotFound:
            is_ours = False
        site = self._call.request.headers.get("sec-fetch-site", "same-origin")
        if not is_ours or self._is_new or site not in ("same-origin", "none"):
            message = "this form is too old, or was not made for this browser: open the page again and repeat it"
            raise Forbidden(message)

    def _bound(self) -> str:
        return hashlib.sha256(f"{self._browser}\0{self.token}".encode()).hexdigest()

    def keep(self, response: Response) -> Response:
        """Lets the browser keep its name."""
        if self._is_new:
            self._set(response, "terrapod-browser", self._browser)
        return response

    def sign_in(self, response: Response, token: str, user: User, device: str) -> None:
        self._set(response, "terrapod", token)
        shown = self._signer.sign("device", f"{user.id}.{_password_mark(user)}.{device}", _DEVICE_S)
        self._set(response, "terrapod-device", shown, int(_DEVICE_S))

    def sign_out(self, response: Response) -> None:
        self._set(response, "terrapod", "", 0)

    def device(self, user: User | None) -> str:
        """The name by which the user signed in here before, since the last change of password; else a new one."""
        known = device_of(self._call.request, user, self._signer) if user else ""
        return known or secrets.token_hex(16)

    def _cookie(self, name: str) -> str:
        return self._call.request.cookies.get(_name(name, is_secure=self._is_secure), "")

    def _set(self, response: Response, name: str, value: str, max_age: int | None = None) -> None:
        response.set_cookie(
            _name(name, is_secure=self._is_secure),
            value,
            max_age,
            path="/",
            secure=self._is_secure,
            httponly=True,
            samesite="lax",
        )


def _name(cookie: str, *, is_secure: bool) -> str:
    return f"__Host-{cookie}" if is_secure else cookie


async def caller(request: Request, services: Services) -> Principal | None:
    """Who the browser's session is of; None where nobody is signed in. For pages alone: nothing else looks at a cookie."""
    is_secure = base_of(request, services.config).startswith("https://")
    token = request.cookies.get(_name("terrapod", is_secure=is_secure), "")
    found: Principal | None = None
    if token.startswith(sessions.PREFIX):
        found = await services.authenticator.bearer(token)
    return found


def device_of(request: Request, user: User, signer: Signer) -> str:
    """The name of a device of the user's, or nothing."""
    shown = request.cookies.get("__Host-terrapod-device") or request.cookies.get("terrapod-device", "")
    try:
        user_id, mark, device = signer.check("device", shown).split(".")
    except (NotFound, ValueError):
        return ""
    return device if (user_id, mark) == (user.id, _password_mark(user)) else ""


def _password_mark(user: User) -> str:
    return hashlib.sha256(user.password_hash.encode()).hexdigest()[:16]


async def form_of(call: Call, most: int = FORM_BYTES) -> dict[str, str]:
    """The fields of a form. Raises UnsupportedMedia, TooLarge, or BadRequest, also for a field that is sent twice."""
    media = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != FORM:
        message = f"the body must be {FORM}, not {media[:80]!r}"
        raise UnsupportedMedia(message)
    call.limit_bytes = most
    raw = b"".join([chunk async for chunk in call.stream()])
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS, errors="strict")
    except ValueError:
        message = "the body is not a form"
        raise BadRequest(message) from None
    return single(pairs)


def single(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Raises BadRequest for a name that comes twice, or for a NUL."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        message = "a parameter is given twice"
        raise BadRequest(message)
    if any("\0" in value for value in fields.values()):
        message = "a parameter may not contain a NUL character"
        raise BadRequest(message)
    return fields

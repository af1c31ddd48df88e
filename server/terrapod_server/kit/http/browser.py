"""What a browser carries: the session's cookie, a cookie that names the browser, and the proof that a form is ours.

Over https the cookies have the prefix `__Host-`, so that no other host and no
plain connection can set them. Over http, which is for loopback and development,
they have neither that prefix nor `Secure`.

A form is taken if the browser says that it comes from a page of ours, and if
it holds a token that we have made for this browser and this session.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from terrapod_server.kit.http.signed import Signer
from terrapod_shared.errors import Forbidden, NotFound

SESSION = "terrapod"
#: The field of a form, and the header of a request without one, that holds the token.
CSRF, CSRF_HEADER = "csrf", "x-csrf-token"
_BROWSER, _FLASH = "terrapod-browser", "terrapod-flash"
_CSRF_S = 12 * 3600.0
_FLASH_S = 60
_FLASH_MOST = 500
_NAME = re.compile(r"[A-Za-z0-9_-]{43}")


class Browser:
    """One browser's request, and the cookies of the answer. `base` is how our URLs begin for it."""

    def __init__(self, request: Request, signer: Signer, base: str) -> None:
        self._headers, self._cookies, self._signer = request.headers, request.cookies, signer
        self._base = urlsplit(base)
        self.is_secure = self._base.scheme == "https"
        self.session = self.cookie(SESSION)  #: the session's token, or nothing
        shown = self.cookie(_BROWSER)
        self._is_new = not _NAME.fullmatch(shown)
        self._name = secrets.token_urlsafe(32) if self._is_new else shown
        self._is_kept = False
        self._flash = ""
        self._has_shown_flash = False

    @property
    def id(self) -> str:
        """Names this browser to us, and is no secret."""
        self._is_kept = True
        return hashlib.sha256(self._name.encode()).hexdigest()

    @property
    def csrf(self) -> str:
        """Goes into each form; good for this browser and this session only."""
        self._is_kept = True
        return self._signer.sign("form", self._bound(), _CSRF_S)

    def check_site(self) -> None:
        """Raises Forbidden for a request that a page of another site has made."""
        headers = self._headers
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:  # the browser's own word: it also knows which address it has really called
            if site not in ("same-origin", "none"):
                raise Forbidden("this form was sent by a page of another site")
        elif origin is not None and not self._is_ours(origin):
            raise Forbidden(
                f"this form was sent by a page of {origin[:200]}, and this server is {self._base.geturl()} "
                "(the setting public_url names another address)"
            )

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        hosts = {self._base.netloc, self._headers.get("host", "")} - {""}
        return parts.netloc in hosts and parts.scheme in ("https", self._base.scheme)

    def check_form(self, form: Mapping[str, str]) -> None:
        """Raises Forbidden for a form that was not made for this browser in this session."""
        shown = form.get(CSRF) or self._headers.get(CSRF_HEADER, "")
        try:
            is_ours = self._signer.check("form", shown) == self._bound()
        except NotFound:
            is_ours = False
        if not is_ours or self._is_new:
            raise Forbidden("this form is too old, or was not made for this browser: open the page again and repeat it")

    def _bound(self) -> str:
        return hashlib.sha256(f"{self._name}\0{self.session}".encode()).hexdigest()

    def say(self, text: str) -> None:
        """The next page says this, once: for what was done by a form whose answer leads on."""
        self._flash = text[:_FLASH_MOST]
        self._is_kept = True

    def said(self) -> str:
        """What `say` left for this page."""
        shown = self.cookie(_FLASH)
        if not shown:
            return ""
        self._has_shown_flash = True
        try:
            name, _, text = self._signer.check("flash", shown).partition(".")
        except NotFound:
            return ""
        return text if name == self.id else ""

    def keep(self, response: Response) -> Response:
        """Adds the cookies that the answer needs."""
        if self._is_new and self._is_kept:
            self.set(response, _BROWSER, self._name)
        if self._flash:
            self.set(response, _FLASH, self._signer.sign("flash", f"{self.id}.{self._flash}", _FLASH_S), _FLASH_S)
        elif self._has_shown_flash:
            self.set(response, _FLASH, "", 0)
        return response

    def cookie(self, name: str) -> str:
        return self._cookies.get(f"__Host-{name}" if self.is_secure else name, "")

    def set(self, response: Response, name: str, value: str, max_age: int | None = None) -> None:
        """A cookie for this host; with `max_age` 0 it goes."""
        response.set_cookie(
            f"__Host-{name}" if self.is_secure else name,
            value,
            max_age,
            path="/",
            secure=self.is_secure,
            httponly=True,
            samesite="lax",
        )


__all__ = ["CSRF", "CSRF_HEADER", "SESSION", "Browser"]

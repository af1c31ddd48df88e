"""Pages: templates that escape all that they are given, the headers of a page, and how an error looks to a person.

A page needs no script and holds no style: what it loads are files of ours
(`kit.http.static`), and its policy allows nothing else.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from terrapod_server.kit.http import static
from terrapod_server.kit.http.browser import Browser
from terrapod_shared.errors import Invalid, NotFound, TerrapodError
from terrapod_shared.terminal import cleaned

SIGN_IN = "/sign-in"
#: What else than its own form an error has, by status.
_TITLES = {403: "Not allowed", 404: "Not found", 405: "Not found", 429: "Too many requests"}
_SERVER_ERROR = 500
_NOTHING = "there is nothing at this address, or nothing that this account may see"
#: A dome with a gate.
ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#4a3fc0"><path fill-rule="evenodd" d="M12 4.5c5.3 0 '
    b'9.5 4.2 9.5 9.5v1.5h-19V14c0-5.3 4.2-9.5 9.5-9.5zM12 7.2l-3.7 2.2v3.9h7.4V9.4z"/><path d="M2.5 17.5h19v2h-19z"/></svg>'
)


def minute(at: datetime) -> str:
    """A time as pages show it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _shown(value: object) -> object:
    """What a template is given, without escapes and marks that turn the direction of text around."""
    return cleaned(value, colour=False) if type(value) is str else value


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("terrapod_server"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_shown,
    )
    made.globals |= {"static": static.url, "title": "", "width": "", "wrong": False, "csrf": "", "flash": ""}
    made.filters["minute"] = minute
    return made


_TEMPLATES = _environment()


def page(
    template: str, browser: Browser | None = None, *, status: int = 200, forms: str = "", **values: Any
) -> HTMLResponse:
    """The page that a template makes of these values; `title` is its heading.

    `wrong` says in the window's title that there is an error, `width` is a class
    of the style. `forms` is the origin besides ours to which a form's answer
    leads: browsers hold redirects to the same rule. A `browser` gives the forms
    their token, and what the form before this page has said.
    """
    if browser is not None:
        values = {"csrf": browser.csrf, "flash": browser.said(), **values}
    policy = (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        f"form-action 'self'{' ' + forms if forms else ''}; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(_TEMPLATES.get_template(template).render(values), status, headers)


@dataclass(frozen=True)
class Paging:
    """Where a page of a list stands, for the macro `pager`; an empty address: there is none."""

    number: int
    pages: int
    size: int
    before: str
    behind: str

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.size


def paging(request: Request, path: str, size: int, total: int) -> Paging:
    """Of the list of a page at `path`, by `size` rows. Raises Invalid for a `page` of the query that is no number.

    The last page is shown in place of one behind it, whose rows may be gone since its link was made.
    """
    text = request.query_params.get("page") or "1"
    if not text.isascii() or not text.isdigit() or not int(text[:12]):
        raise Invalid(f"page must be a whole number from 1, not {text[:40]!r}")
    pages = max(1, -(-total // size))
    number = min(int(text[:12]), pages)

    def address(there: int) -> str:
        query = {**request.query_params, "page": str(there)}
        return f"{path}?{urlencode(query)}" if 1 <= there <= pages else ""

    return Paging(number, pages, size, address(number - 1), address(number + 1))


def redirect(url: str) -> Response:
    """With GET, whatever the request was; nothing of this address goes along."""
    return RedirectResponse(url, 303, {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"})


def message(
    title: str, text: str, status: int = 200, link: tuple[str, str] = ("/", "Go to your account")
) -> HTMLResponse:
    """A page that only says something; `link`, its way on or back, is (address, text)."""
    return page("message.html", status=status, title=title, text=text, link=link)


def refusal(error: TerrapodError, request: Request, request_id: str = "") -> Response:
    """An error as a page; who is not signed in is led to sign in, and back."""
    if error.status == 401:  # noqa: PLR2004
        back = _address(request.url) if request.method in ("GET", "HEAD") else _page_of_form(request)
        return redirect(sign_in(back))
    said = _NOTHING if isinstance(error, NotFound) and error.detail == NotFound().detail else error.detail
    text = f"{said[:1].upper()}{said[1:]}."
    if error.status >= _SERVER_ERROR:
        text = f"{text} The server's log says more about request {request_id}."
    response = message(_TITLES.get(error.status, "This did not work"), text, error.status)
    for name, value in error.headers.items():
        response.headers[name] = value
    return response


def sign_in(back: str) -> str:
    """The address of the sign-in page, from which one goes on to a page of ours."""
    return f"{SIGN_IN}?{urlencode({'next': back})}" if back.strip("/") else SIGN_IN


def _address(url: Any) -> str:
    return f"{url.path}?{url.query}" if url.query else str(url.path)


def _page_of_form(request: Request) -> str:
    """The page of ours that holds the form which was sent, as the browser says; else nothing."""
    try:
        parts = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return ""
    return _address(parts) if parts.netloc == request.headers.get("host") else ""


def wants_page(request: Request) -> bool:
    """Whether somebody has typed an address into a browser that is none of ours, and none of the API's."""
    is_of_api = request.url.path.startswith(("/api/", "/.well-known/"))
    return not is_of_api and "text/html" in request.headers.get("accept", "")


__all__ = [
    "ICON",
    "SIGN_IN",
    "Paging",
    "message",
    "minute",
    "page",
    "paging",
    "redirect",
    "refusal",
    "sign_in",
    "wants_page",
]

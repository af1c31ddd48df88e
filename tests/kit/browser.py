"""A browser without a screen: keeps cookies, follows redirects, reads forms and sends them as a person would."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import urljoin

import httpx

from kit.serving import PLAIN


@dataclass
class Form:
    """What a form would send, and the buttons that send it."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str, str]] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[str] = []
        self.labels: set[str] = set()
        self.ids: set[str] = set()
        self.described: set[str] = set()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids.add(given.get("id", ""))
        self.described.update(given.get("aria-describedby", "").split())
        if tag == "form":
            self.forms.append(Form(given.get("action", "")))
        elif tag == "a":
            self.links.append(given["href"])
        elif tag == "label":
            self.labels.add(given.get("for", ""))
        elif tag == "input" and self.forms and "name" in given:
            self.forms[-1].fields[given["name"]] = given.get("value", "")
            self.forms[-1].types[given["name"]] = "hidden" if "hidden" in given else given.get("type", "text")
        elif tag == "button" and self.forms:
            self.forms[-1].buttons.append((given.get("name", ""), given.get("value", "")))


class Browser:
    """One person's browser. `origin` is the server; a redirect to another site is where it stops."""

    def __init__(self, origin: str, **client: Any) -> None:
        self.origin = origin
        self.client = httpx.AsyncClient(
            timeout=30, headers={"User-Agent": "Test browser"}, **{"verify": PLAIN} | client
        )
        self.page: httpx.Response = httpx.Response(204)
        self.left_to = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    @property
    def read(self) -> _Reader:
        reader = _Reader()
        reader.feed(self.page.text)
        return reader

    async def open(self, url: str) -> httpx.Response:
        """Goes there, as if it was typed; gives the page that comes of it."""
        return await self._sent(self.client.build_request("GET", urljoin(self.origin, url)))

    async def submit(self, button: str = "", *, action: str = "", **typed: str) -> httpx.Response:
        """Sends the form that has all these fields, by the button with that value."""
        form = next(
            form
            for form in self.read.forms
            if typed.keys() <= form.fields.keys()
            and form.action.startswith(action)
            and (not button or button in [value for _, value in form.buttons])
        )
        fields = {**form.fields, **typed}
        fields |= {name: value for name, value in form.buttons if button and value == button}
        url = urljoin(str(self.page.url), form.action)
        headers = {"Sec-Fetch-Site": "same-origin"}
        return await self._sent(self.client.build_request("POST", url, data=fields, headers=headers))

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        self.left_to = ""
        self.page = await self.client.send(request)
        while self.page.is_redirect:
            url = urljoin(str(self.page.url), self.page.headers["location"])
            if not url.startswith(self.origin):
                self.left_to = url
                break
            self.page = await self.client.get(url)
        return self.page

    async def sign_in(self, email: str, password: str, page: str = "/sign-in") -> httpx.Response:
        await self.open(page)
        return await self.submit(email=email, password=password)

"""Answers of pages: forms are checked before a handler sees them, and what a handler gives becomes a page."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response, StreamingResponse

from terrapod_server.kit import html
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Page
from terrapod_server.kit.asgi.guard import Guard
from terrapod_server.kit.caller import Access
from terrapod_server.kit.http import forms

_SAFE = frozenset({"GET", "HEAD"})
_OPEN = frozenset({Access.PUBLIC, Access.CAPABILITY})


async def answer(page: Page, call: Call, guard: Guard) -> Response:
    """What the page's handler gives, with the browser's cookies. Raises what the handler raises, and of a form
    Forbidden, BadRequest, UnsupportedMedia and TooLarge."""
    if page.method not in _SAFE:
        await _read_form(page, call)
    found = await page.do(call)
    response = found if isinstance(found, Response) else html.page(page.template, call.browser, **found)
    if isinstance(response, StreamingResponse) and page.needs not in _OPEN:
        response.body_iterator = _while_admitted(response.body_iterator, page, call, guard)
    return call.browser.keep(response)


async def _read_form(page: Page, call: Call) -> None:
    """The form's fields; its files are read by the handler. What another site has sent is not read at all."""
    if not page.is_cross_site:
        call.browser.check_site()
    media = call.request.headers.get("content-type", "")
    if page.has_files:
        call.form, call.files = await forms.with_files(media, call.stream())
    else:
        call.form = await forms.fields_of(media, call.stream())
    if not page.is_cross_site:
        call.browser.check_form(call.form)


async def _while_admitted(chunks: Any, page: Page, call: Call, guard: Guard) -> AsyncIterator[Any]:
    """The chunks, for as long as the session lasts and its rights are enough; else the answer breaks off.

    Who the session is of is remembered, so asking costs next to nothing; only
    another answer than before makes it ask for the rights too.
    """
    principal = call.principal
    async with aclosing(chunks):
        async for chunk in chunks:
            now = await guard.visitor(call.request)
            if now is not principal:
                principal, _ = await guard.admit(page, call.request, call.path, call.services)
            yield chunk


__all__ = ["answer"]

"""Declarations: a resource and its endpoints are values, and all else reads them.

Routing, parsing, rendering, paging, `include` and the OpenAPI document are
made of the values below and in `resources`. This module holds no behaviour beyond their shape.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.responses import Response

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.resources import (
    Accepts,
    Added,
    Attr,
    Extension,
    Limit,
    Many,
    One,
    Prepare,
    Recorded,
    Resource,
    Row,
    Value,
)
from terrapod_server.kit.caller import Needs

_PARAMETER = re.compile(r"\{(\w+)\}")


#: What a document may carry of a state, in bytes before base64.
INLINE_MOST = 16 << 20
INLINE_HINT = "create the state version without `state`, and PUT the bytes to the hosted-state-upload-url of the answer"


@dataclass(frozen=True)
class Query:
    """A query parameter that an endpoint understands. `kind` is `str`, `int`, `float`, `bool` or `datetime`."""

    name: str
    kind: type = str
    doc: str = ""
    required: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A JSON:API endpoint: `do(call)` gives a row, a `Rows` (with `many`), or None.

    `status` is the success status; None as result gives 204 unless `status` is
    202. `guards` names the path parameter whose thing the level is about
    (default: the first of the path); `a/b` is a thing that two of them name. `takes` is the resource whose attributes
    the body carries (default: `resource`); `body=False` ignores the body.
    `run_token` opens it to run tokens; the handler then checks what of it.
    """

    method: str
    path: str
    resource: Resource | None
    do: Callable[[Call], Awaitable[Any]]
    needs: Needs
    status: int = 200
    many: bool = False
    takes: Resource | None = None
    body: bool = True
    body_many: bool = False  #: `data` is a list of resources: `call.items`
    guards: str | None = None
    limit: Limit = Limit.JSON
    run_token: bool = False
    view: str | None = None
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    recorded: Recorded = Recorded.CHANGES
    notes: tuple[str, ...] = ()  #: texts that a body without `data` may carry, for the documents
    #: Attributes and relationships without which the body is refused; a test holds the handler to it.
    requires: tuple[str, ...] = ()
    filters: tuple[str | Query, ...] = ()  #: query parameters it understands, for the documents
    doc: str = ""  #: default: the first line of `do`'s docstring

    @property
    def guarded(self) -> str:
        """The path parameter whose thing the level is about."""
        return _guarded(self)


@dataclass(frozen=True)
class Raw:
    """Uploads, logs, streams, discovery: no JSON:API, but guard, limits and docs all the same."""

    method: str
    path: str
    do: Callable[[Call], Awaitable[Response]]
    needs: Needs
    guards: str | None = None
    limit: Limit = Limit.NONE
    run_token: bool = False
    quiet: bool = False  #: the path holds a secret: blanked in the access log
    unmetered: bool = False  #: exempt from rate limits (log reads, uploads)
    recorded: Recorded = Recorded.CHANGES
    doc: str = ""
    or_listener: bool = False  #: the listener that the path names may do it too, by a signed request
    # For the documents: what the body is (a media type, the type of a JSON message, or a form's names), what a success
    # gives (a media type or a type), and with which statuses it succeeds.
    takes: Any = None
    gives: Any = None
    answers: tuple[int, ...] = (200,)
    filters: tuple[str | Query, ...] = ()

    @property
    def guarded(self) -> str:
        """The path parameter whose thing the level is about."""
        return _guarded(self)


@dataclass(frozen=True)
class Page:
    """A page for browsers, or a form of one that is posted: their session says who calls, and errors are pages.

    `do` gives the values of the `template`, or a response: a redirect, a file, a
    stream, a fragment. Of a POST the form was read and its token checked
    before: `call.form` has the fields, and with `has_files` `call.files` gives
    the files behind them as they come.
    """

    method: str
    path: str
    do: Callable[[Call], Awaitable[Response | Mapping[str, Any]]]
    needs: Needs
    template: str = ""
    guards: str | None = None
    form: tuple[str, ...] = ()  #: the names of a form's fields
    has_files: bool = False
    is_cross_site: bool = False  #: a form that another site posts, with a secret of its own: no token of ours is in it
    limit: Limit = Limit.FORM
    recorded: Recorded = Recorded.CHANGES
    doc: str = ""
    # For the documents, as of a `Raw`. That a page may lead to sign in need not be said.
    gives: str = "text/html"
    answers: tuple[int, ...] = (200,)
    filters: tuple[str | Query, ...] = ()

    run_token: ClassVar[bool] = False  #: no page knows tokens

    @property
    def guarded(self) -> str:
        """The path parameter whose thing the level is about."""
        return _guarded(self)


#: What a path leads to.
Route = Endpoint | Raw | Page


def _guarded(endpoint: Route) -> str:
    return endpoint.guards or next((name for name in _PARAMETER.findall(endpoint.path) if name != "org"), "")


@dataclass(frozen=True)
class Thing:
    """How the thing with rights is found that a path parameter names.

    `source` is what stands behind FROM, with the thing's table as `t` (which has
    `id`, `name`, `labels` and `owner_id`); `key` is compared with the parameter.
    """

    parameter: str
    source: str
    key: str = 't."id"'


__all__ = [
    "Accepts",
    "Added",
    "Attr",
    "Endpoint",
    "Extension",
    "Limit",
    "Many",
    "One",
    "Page",
    "Prepare",
    "Query",
    "Raw",
    "Recorded",
    "Resource",
    "Route",
    "Row",
    "Thing",
    "Value",
]

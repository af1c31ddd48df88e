"""Declarations: a resource and its endpoints are values, and all else reads them.

Routing, parsing, rendering, paging, `include` and the OpenAPI document are
made of the values below. This module holds no behaviour beyond their shape.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Protocol

from starlette.responses import Response

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.caller import Needs

_PARAMETER = re.compile(r"\{(\w+)\}")
Row = Any
Value = Callable[[Row, Call], Any]


#: What a document may carry of a state, in bytes before base64.
INLINE_MOST = 16 << 20
INLINE_HINT = "create the state version without `state`, and PUT the bytes to the hosted-state-upload-url of the answer"


class Limit(Enum):
    """Which setting bounds the request's body."""

    JSON = "json"
    CONFIGURATION = "configuration"
    STATE = "state"
    INLINE = "inline"  #: a document that may carry a small state
    MODULE = "module"
    FORM = "form"  #: some fields that a person fills in
    LARGE_FORM = "large form"  #: one that carries a document of another program
    NONE = "none"  #: the handler streams and bounds by itself


class Recorded(Enum):
    """Which calls of an endpoint the audit log records. Refused ones always are."""

    CHANGES = "changes"  #: of every method but GET and HEAD
    READS = "reads"  #: those too that give something away: state, secrets, the log itself
    REFUSALS = "refusals"  #: no others: what listeners do all the time


@dataclass(frozen=True)
class Attr:
    """One attribute. The wire name is written once; the column is its snake case.

    `kind` is `str`, `int`, `float`, `bool`, `dict`, `list`, `datetime` or `object`
    (anything). A value that is `write`able may be set by clients; one that is
    `nullable` may be set to null. `value` computes what is shown; without it the
    column of the same name is read. `parse` turns a checked value into what
    actions expect and may raise `ValueError(text)`, which becomes a 422.
    """

    name: str
    kind: type
    doc: str
    write: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None  #: of a number; for a string its greatest length
    items: type | None = None  #: of a list: the kind of each item
    value: Value | None = None
    parse: Callable[[Any], Any] | None = None
    only_in: str | None = None  #: shown only by endpoints whose `view` is this
    kept: bool = False  #: written and shown, while what would act by it is not there yet

    @property
    def column(self) -> str:
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Accepts:
    """A member that clients define and nothing here implements.

    It may ask for what happens anyway: null, or one of `values` (for a
    relationship: nothing linked). Any other value is 422 with its pointer, so
    that whatever is sent is done or refused.
    """

    name: str
    doc: str  #: what it would be
    values: tuple[Any, ...] = ()
    related: bool = False  #: a relationship


@dataclass(frozen=True)
class One:
    """A to-one relationship; names the other side by its type string.

    `key` gives the other's id (or None) from the row: by default the column
    `<name>_id`. `type` may be a function of the row where it varies.
    `write`able ones are parsed: `call.related("name")` is the id or None.
    """

    name: str
    type: str | Callable[[Row], str]
    doc: str = ""
    key: Value | None = None
    write: bool = False
    link: Value | None = None  #: `links.related`

    @property
    def column(self) -> str:
        return self.name.replace("-", "_") + "_id"


@dataclass(frozen=True)
class Many:
    """A to-many relationship. `keys` gives the ids; where absent only the link is shown.

    Written ones are read by `call.related_many("name")`: a list of `Linked`,
    whose members may carry attributes in place of an id, as the terraform CLI
    sends tags.
    """

    name: str
    type: str
    doc: str = ""
    keys: Value | None = None
    write: bool = False
    link: Value | None = None


class Prepare(Protocol):
    """Fetches for a whole page at once what `value=` functions read of each row."""

    def __call__(self, rows: Sequence[Row], call: Call) -> Awaitable[None]: ...


@dataclass(frozen=True)
class Resource:
    """A JSON:API resource type.

    `load` gives rows by ids (in any order, missing ones left out) for
    `?include=`; `prepare` is called with the rows of one answer before they
    are rendered, to avoid a query for each. `id` is the row's column or function.
    `lasts` tells of a row that what is shown of it depends on nothing but the
    row itself, the caller's level and the base of URLs: then it is rendered once.
    `accepts` are further spellings of the type that clients send, `unsupported`
    the members that clients know and we do not have.
    """

    type: str
    attributes: tuple[Attr, ...] = ()
    relations: tuple[One | Many, ...] = ()
    load: Callable[[Sequence[str]], Awaitable[Sequence[Row]]] | None = None
    prepare: Prepare | None = None
    lasts: Callable[[Row], bool] | None = None
    links: Mapping[str, Value] = field(default_factory=dict)
    id: Callable[[Row], str] = lambda row: str(row.id)
    accepts: tuple[str, ...] = ()
    unsupported: tuple[Accepts, ...] = ()
    has_rights: bool = False  #: rows are things with rights of their own: `id`, `name`, `labels`, `owner_id`
    run_token: bool = False  #: a run's token may see it as an included resource
    extensions: "tuple[Extension, ...]" = ()  #: what other rooms have added, filled in by `kit.room`


@dataclass(frozen=True)
class Added:
    """What the values of an extension read: a row, and the fact that was loaded for it."""

    row: Row
    fact: Any = None  #: None where nothing was loaded for the row


class LoadFacts(Protocol):
    """Gives what a room knows of the rows with these ids, by id; for all of them in one statement."""

    def __call__(self, ids: Sequence[str], call: "Call") -> Awaitable[Mapping[str, Any]]: ...


@dataclass(frozen=True)
class Extension:
    """Attributes and relations that a room adds to the resource `of` a lower room.

    `load` gives the facts for the rows of one answer. A `value` or `key` gets
    `(added, call)`, with the row and its fact in `added`; without one the
    fact's column of the same name is shown, or null where there is no fact.

    A rendered row is remembered as long as the row does not change. So where
    facts change by themselves they are loaded at each answer, for all rows
    that `is_loaded` names; what is shown of the others must depend on nothing
    but the row, the caller's level and the base of URLs.
    """

    of: str
    attributes: tuple[Attr, ...] = ()
    relations: tuple[One | Many, ...] = ()
    load: LoadFacts | None = None
    is_loaded: Callable[[Row], bool] = lambda _row: True

    def loads(self, row: Row) -> bool:
        """Whether facts are loaded for this row."""
        return self.load is not None and self.is_loaded(row)


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

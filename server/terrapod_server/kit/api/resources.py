"""What is declared without handlers: resources, and how an endpoint is bounded and recorded. Pure.

What computes a value gets the row and the `Call`, which is not named here: it knows the whole server.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

Row = Any
Value = Callable[[Row, Any], Any]


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

    def __call__(self, rows: Sequence[Row], call: Any) -> Awaitable[None]: ...


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

    def __call__(self, ids: Sequence[str], call: Any, /) -> Awaitable[Mapping[str, Any]]: ...


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

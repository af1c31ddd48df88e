"""Rows -> JSON:API documents, with `include` and pagination."""

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
from tortoise.models import Model

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Added, Extension, Many, One, Resource, Row
from terrapod_server.kit.caller import Level
from terrapod_server.kit.db.row_cache import Record
from terrapod_server.kit.paging import PageRequest, Rows

Document = dict[str, Any]
#: How deep `include=a.b.c` is followed.
INCLUDE_DEPTH = 3
#: How many paths of one `include` are followed: each costs reads of its own, and clients name a handful.
INCLUDE_PATHS = 16


@dataclass(frozen=True)
class Partial:
    """What a row says of its own document: which extensions load facts of it, by place, and whether the rest lasts."""

    id: str
    loaded: tuple[int, ...]
    lasts: bool


class Remembered:
    """The rows that were rendered last, by what else they depend on; the oldest go when they grow too many."""

    def __init__(self, most: int = 4096, most_bytes: int = 8 << 20) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._documents: dict[Hashable, dict[Hashable, msgspec.Raw | Partial]] = {}
        self._order: deque[tuple[Hashable, Hashable]] = deque()

    def of(self, context: Hashable) -> Mapping[Hashable, msgspec.Raw | Partial]:
        return self._documents.get(context, {})

    def put(self, context: Hashable, raw: Hashable, document: msgspec.Raw | Partial) -> None:
        known = self._documents.setdefault(context, {})
        if raw in known:
            return
        known[raw] = document
        self._order.append((context, raw))
        self._bytes += _size(document)
        while len(self._order) > self._most or self._bytes > self._most_bytes:
            self._forget(*self._order.popleft())

    def _forget(self, context: Hashable, raw: Hashable) -> None:
        known = self._documents[context]
        self._bytes -= _size(known.pop(raw))
        if not known:
            del self._documents[context]


def _size(document: msgspec.Raw | Partial) -> int:
    return 0 if isinstance(document, Partial) else len(memoryview(document))


#: What the extensions of a resource have loaded: for each of them the facts by the row's id.
Facts = Sequence[Mapping[str, Any]]
#: What the extensions of a resource show of a row: for each of them its attributes and relationships.
ShownBeside = Sequence[tuple[Document, Document]]


class Renderer:
    """Renders one resource type; what depends on the declaration alone is worked out once."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        added = {id(member) for each in resource.extensions for member in (*each.attributes, *each.relations)}
        self._attributes = [
            (attr.name, attr.value or _column(attr.column), attr.only_in)
            for attr in resource.attributes
            if id(attr) not in added
        ]
        self._relations = [(relation, _keys(relation)) for relation in resource.relations if id(relation) not in added]
        self._extensions = [Extended(each) for each in resource.extensions]
        self.remembered = Remembered()

    async def prepare(self, rows: Sequence[Row], call: Call) -> Facts:
        """Fetches for all rows at once what is shown beside their own columns."""
        if self.resource.prepare is not None:
            await self.resource.prepare(rows, call)
        return [await each.load(self.resource, rows, call) for each in self._extensions]

    async def prepare_for(self, name: str, rows: Sequence[Row], call: Call) -> Facts:
        """Fetches what the relation of this name is made of, where the rows alone do not tell."""
        if self.resource.prepare is not None and any(relation.name == name for relation, _ in self._relations):
            await self.resource.prepare(rows, call)
        return [await each.load(self.resource, rows, call) if each.relates(name) else {} for each in self._extensions]

    def lasts(self, row: Row) -> bool:
        """Whether what the resource itself shows of the row depends on nothing but the row, the level and the base of URLs."""
        return self.resource.lasts is not None and self.resource.lasts(row)

    def partial(self, row: Row) -> "Partial":
        loaded = tuple(place for place, each in enumerate(self.resource.extensions) if each.loads(row))
        return Partial(self.resource.id(row), loaded, lasts=self.lasts(row))

    async def facts(self, partials: Sequence["Partial"], records: Sequence[Record[Any]], call: Call) -> Facts:
        """The facts of these rows; what else is fetched beforehand needs the rows themselves."""
        if self.resource.prepare is not None:
            await self.resource.prepare([record.row for record in records], call)
        return [
            await each.load_ids([partial.id for partial in partials if place in partial.loaded], call)
            for place, each in enumerate(self._extensions)
        ]

    def key(self, record: Record[Any], partial: "Partial", call: Call, view: str | None, facts: Facts) -> Hashable:
        """By what the document of a row is kept: all that it depends on."""
        if not partial.loaded:
            return record.as_read
        told = tuple([facts[place].get(partial.id) for place in partial.loaded])
        try:
            hash(told)
        except TypeError:  # what is shown of them says as much
            return record.as_read, encode(self.shown_beside(record.row, call, view, facts))
        return record.as_read, told

    def shown_beside(self, row: Row, call: Call, view: str | None, facts: Facts) -> ShownBeside:
        """What the extensions show of the row: the rest of what is rendered is of the row itself."""
        if not self._extensions:
            return ()
        row_id = self.resource.id(row)
        return [
            each.shown(Added(row, found.get(row_id)), call, view)
            for each, found in zip(self._extensions, facts, strict=True)
        ]

    def render(self, row: Row, call: Call, view: str | None, beside: ShownBeside) -> Document:
        document: Document = {
            "id": self.resource.id(row),
            "type": self.resource.type,
            "attributes": {
                name: value(row, call)
                for name, value, only_in in self._attributes
                if only_in is None or only_in == view
            },
        }
        relationships = {relation.name: _relationship(relation, keys, row, call) for relation, keys in self._relations}
        for attributes, related in beside:
            document["attributes"] |= attributes
            relationships |= related
        if relationships:
            document["relationships"] = relationships
        if self.resource.links:
            links = {name: value(row, call) for name, value in self.resource.links.items()}
            document["links"] = {name: link for name, link in links.items() if link is not None}
        return document

    def encoded(self, row: Row, call: Call, view: str | None, beside: ShownBeside) -> msgspec.Raw:
        return msgspec.Raw(encode(self.render(row, call, view, beside)))

    def related(self, row: Row, name: str, call: Call, facts: Facts) -> tuple[str, list[str]] | None:
        """The type and ids at the other side of a relation, or None where there is no such relation."""
        candidates: list[tuple[One | Many, Any, Row]] = [(*each, row) for each in self._relations]
        for extended, loaded in zip(self._extensions, facts, strict=True):
            added = Added(row, loaded.get(self.resource.id(row)))
            candidates += [(*each, added) for each in extended.relations]
        for relation, keys, subject in candidates:
            if relation.name != name or keys is None:
                continue
            found = keys(subject, call)
            ids = [found] if isinstance(found, str) else [key for key in found or () if key]
            return _type(relation, subject), ids
        return None


class Extended:
    """Renders what one extension adds."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension
        self._attributes = [
            (attr.name, attr.value or _fact(attr.column), attr.only_in) for attr in extension.attributes
        ]
        self.relations = [
            (relation, (relation.key or _fact(relation.column)) if isinstance(relation, One) else relation.keys)
            for relation in extension.relations
        ]

    def relates(self, name: str) -> bool:
        return any(relation.name == name for relation, _ in self.relations)

    async def load(self, resource: Resource, rows: Sequence[Row], call: Call) -> Mapping[str, Any]:
        if self._extension.load is None:
            return {}
        return await self.load_ids([resource.id(row) for row in rows if self._extension.is_loaded(row)], call)

    async def load_ids(self, ids: Sequence[str], call: Call) -> Mapping[str, Any]:
        return await self._extension.load(ids, call) if ids and self._extension.load else {}

    def shown(self, added: Added, call: Call, view: str | None) -> tuple[Document, Document]:
        """Its attributes and relationships."""
        attributes = {
            name: value(added, call) for name, value, only_in in self._attributes if only_in is None or only_in == view
        }
        related = {relation.name: _relationship(relation, keys, added, call) for relation, keys in self.relations}
        return attributes, related


class Registry:
    """All resource types of the server, by name."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.renderers: dict[str, Renderer] = {}
        for resource in resources:
            if resource.type in self.renderers and self.renderers[resource.type].resource is not resource:
                message = f"resource type {resource.type} is declared twice"
                raise ValueError(message)
            self.renderers[resource.type] = Renderer(resource)

    def check(self) -> list[str]:
        """Relations that name a type which nobody declares."""
        return [
            f"{name}.{relation.name}: no resource {relation.type}"
            for name, renderer in self.renderers.items()
            for relation in renderer.resource.relations
            if isinstance(relation.type, str) and relation.type not in self.renderers
        ]

    async def one(self, resource: Resource, row: Row, call: Call, view: str | None = None) -> Document:
        document: Document = {"data": await self._render(resource, [row], call, view, single=True)}
        await self._include(document, resource, [row], call)
        return document

    async def many(self, resource: Resource, page: Rows, call: Call, view: str | None = None) -> Document:
        rows = list(page.rows)
        document: Document = {"data": await self._render(resource, rows, call, view)}
        await self._include(document, resource, rows, call)
        document["meta"] = {"pagination": pagination(call.page, page.total, len(rows))}
        return document

    async def _render(
        self, resource: Resource, rows: Sequence[Row], call: Call, view: str | None, *, single: bool = False
    ) -> Any:
        renderer = self.renderers[resource.type]
        if resource.lasts is not None and rows and isinstance(rows[0], Record):
            documents = await self._remembered(renderer, rows, call, view)
        else:
            rows = [opened(row) for row in rows]
            facts = await renderer.prepare(rows, call)
            documents = [
                renderer.encoded(row, call, view, renderer.shown_beside(row, call, view, facts)) for row in rows
            ]
        return documents[0] if single else documents

    @staticmethod
    async def _remembered(
        renderer: Renderer, records: Sequence[Record[Any]], call: Call, view: str | None
    ) -> list[msgspec.Raw]:
        """The records' documents, of which only those that were not kept are rendered.

        A row with facts that change by themselves is kept together with them, and what is kept of the row alone is its
        `Partial`: where the facts are as they were it is not even opened.
        """
        contexts = {
            level: (view, call.level if level is None else level, call.base) for level in {r.level for r in records}
        }
        known = {level: renderer.remembered.of(context) for level, context in contexts.items()}
        documents: list[Any] = [known[record.level].get(record.as_read) for record in records]
        todo: dict[int, Partial] = {}
        for place, kept in enumerate(documents):
            if kept is None:
                record = records[place]
                todo[place] = partial = renderer.partial(record.row)
                if partial.lasts and partial.loaded:
                    renderer.remembered.put(contexts[record.level], record.as_read, partial)
            elif isinstance(kept, Partial):
                todo[place] = kept
        if not todo:
            return documents
        facts = await renderer.facts(list(todo.values()), [records[place] for place in todo], call)
        for place, partial in todo.items():
            record = records[place]
            if not partial.lasts:
                beside = renderer.shown_beside(record.row, call, view, facts)
                documents[place] = renderer.encoded(record.row, call, view, beside)
                continue
            key = renderer.key(record, partial, call, view, facts)
            document = known[record.level].get(key)
            if document is None:
                beside = renderer.shown_beside(record.row, call, view, facts)
                document = renderer.encoded(record.row, call, view, beside)
                renderer.remembered.put(contexts[record.level], key, document)
                known[record.level] = renderer.remembered.of(contexts[record.level])
            documents[place] = document
        return documents

    async def _include(self, document: Document, resource: Resource, rows: Sequence[Row], call: Call) -> None:
        """`?include=`; names that nobody knows are passed over, since an error would end terraform's plan."""
        wanted = call.param("include")
        if not wanted:
            return
        rows = [opened(row) for row in rows]
        included: dict[tuple[str, str], Any] = {}
        for path in itertools.islice(dict.fromkeys(wanted.replace("_", "-").split(",")), INCLUDE_PATHS):
            level: list[tuple[Resource, Sequence[Row]]] = [(resource, rows)]
            for name in path.strip().split(".")[:INCLUDE_DEPTH]:
                level = await self._step(level, name, call, included)
        for row in rows:
            included.pop((resource.type, resource.id(row)), None)
        document["included"] = list(included.values())

    async def _step(
        self,
        level: list[tuple[Resource, Sequence[Row]]],
        name: str,
        call: Call,
        included: dict[tuple[str, str], Any],
    ) -> list[tuple[Resource, Sequence[Row]]]:
        wanted: dict[str, dict[str, Level]] = {}
        for resource, rows in level:
            renderer = self.renderers[resource.type]
            facts = await renderer.prepare_for(name, rows, call)
            for row in rows:
                found = renderer.related(row, name, call, facts)
                if found:
                    at = call.level_on(row)
                    others = wanted.setdefault(found[0], {})
                    others.update({key: max(at, others.get(key, at)) for key in found[1]})
        reached: list[tuple[Resource, Sequence[Row]]] = []
        for kind, ids in wanted.items():
            renderer = self.renderers[kind]
            if renderer.resource.load is None or not ids:
                continue
            rows = _shown(renderer.resource, await renderer.resource.load(list(ids)), ids, call)
            reached.append((renderer.resource, rows))
            entries = await self._render(renderer.resource, rows, call, None)
            included.update(
                {(kind, renderer.resource.id(row)): entry for row, entry in zip(rows, entries, strict=True)}
            )
        return reached


def _shown(resource: Resource, rows: Sequence[Row], levels: Mapping[str, Level], call: Call) -> Sequence[Row]:
    """What may be included, each row with its level: a thing's own, else that of the row which led to it."""
    if call.principal.kind == "run":
        return rows if resource.run_token else []
    if resource.has_rights:
        return call.readable(rows)
    for row in rows:
        if isinstance(row, Model):
            row.level = levels[resource.id(row)]
    return rows


def pagination(page: PageRequest, total: int | None, shown: int) -> Mapping[str, int | None]:
    """The five numbers; `current-page` echoes what was asked for, also past the end."""
    if total is None:
        return {"current-page": 1, "prev-page": None, "next-page": None, "total-pages": 1, "total-count": shown}
    pages = max(1, -(-total // page.size))
    return {
        "current-page": page.number,
        "prev-page": page.number - 1 if page.number > 1 else None,
        "next-page": page.number + 1 if page.number < pages else None,
        "total-pages": pages,
        "total-count": total,
    }


def encode(document: Any) -> bytes:
    """JSON bytes; aware times in UTC come out as RFC 3339 with a literal Z."""
    return msgspec.json.encode(document)


def opened(row: Row) -> Row:
    """The row as an object, whichever way it was read."""
    return row.row if isinstance(row, Record) else row


def _column(name: str) -> Callable[[Row, Call], Any]:
    read = attrgetter(name)
    return lambda row, _call: read(row)


def _fact(name: str) -> Callable[[Added, Call], Any]:
    """A column of the fact; None where there is no fact."""

    def value(added: Added, _call: Call) -> Any:
        if isinstance(added.fact, Mapping):
            return added.fact.get(name)
        return None if added.fact is None else getattr(added.fact, name)

    return value


def _keys(relation: One | Many) -> Callable[[Row, Call], Any] | None:
    if isinstance(relation, One):
        return relation.key or _column(relation.column)
    return relation.keys


def _type(relation: One | Many, row: Row) -> str:
    kind = relation.type
    return kind if isinstance(kind, str) else kind(row)


def _relationship(relation: One | Many, keys: Callable[[Row, Call], Any] | None, row: Row, call: Call) -> Document:
    document: Document = {}
    if isinstance(relation, One) and keys is not None:
        key = keys(row, call)
        document["data"] = {"id": key, "type": _type(relation, row)} if key else None
    elif keys is not None:
        kind = _type(relation, row)
        document["data"] = [{"id": key, "type": kind} for key in keys(row, call)]
    if relation.link is not None:
        document["links"] = {"related": relation.link(row, call)}
    return document

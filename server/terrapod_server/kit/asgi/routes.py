"""Finding an endpoint by method and path in time that does not grow with the number of endpoints.

Starlette tries its routes one after another, a regular expression each; with
150 of them that was a third of a small request's time. A tree of path
segments costs one dictionary look-up a segment. A trailing or doubled slash
is no other path: terrasnek sends both and follows no redirect.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

from terrapod_server.kit.api.declare import Route
from terrapod_shared.errors import MethodNotAllowed, NotFound


@dataclass
class _Node:
    children: dict[str, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    endpoints: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)


class Routes:
    """The tree. Literal segments win over parameters; `{rest*}` at the end takes all that is left."""

    def __init__(self, endpoints: Iterable[Route]) -> None:
        self._root = _Node()
        self.endpoints = tuple(endpoints)
        for endpoint in self.endpoints:
            self._add(endpoint)

    def _add(self, endpoint: Route) -> None:
        node, names = self._root, []
        for segment in _segments(endpoint.path):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.children.setdefault(segment, _Node())
        if endpoint.method in node.endpoints:
            message = f"{endpoint.method} {endpoint.path} is declared twice"
            raise ValueError(message)
        node.endpoints[endpoint.method] = (endpoint, tuple(names))

    def find(self, method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        """The endpoint and its path parameters. Raises NotFound or MethodNotAllowed."""
        segments = [unquote(segment) for segment in _segments(raw_path)]
        if "\0" in "".join(segments):  # no name and no id holds one, and PostgreSQL takes none
            raise NotFound
        found = self._walk(self._root, segments, 0, [])
        if found is None:
            message = f"there is nothing at {raw_path[:200]}"
            raise NotFound(message)
        node, values = found
        match = node.endpoints.get(method) or (node.endpoints.get("GET") if method == "HEAD" else None)
        if match is None:
            allowed = ", ".join(sorted({*node.endpoints, *(("HEAD",) if "GET" in node.endpoints else ())}))
            error = MethodNotAllowed(f"{method[:20]} is not possible here; {allowed} is")
            error.headers["Allow"] = allowed
            raise error
        endpoint, names = match
        return endpoint, dict(zip(names, values, strict=True))

    def _walk(self, node: _Node, segments: list[str], at: int, values: list[str]) -> tuple[_Node, list[str]] | None:
        if at == len(segments):
            return (node, values) if node.endpoints else None
        child = node.children.get(segments[at])
        found = self._walk(child, segments, at + 1, values) if child else None
        if found is None and node.parameter is not None:
            found = self._walk(node.parameter, segments, at + 1, [*values, segments[at]])
        return found


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]

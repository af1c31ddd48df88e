"""Declarations -> the page that says who may call what (`docs/permissions.md`)."""

from collections.abc import Iterable

from terrapod_server.kit.api.declare import Raw, Route
from terrapod_server.kit.api.openapi import summary
from terrapod_server.kit.caller import Access, Level

_HEAD = """\
# Who may do what

Written by `make docs` from the declarations that the server is made of; do not edit. A test calls every line of it as
every kind of caller.

| Needs | Who that is | Everybody else gets |
|---|---|---|
| `read` `plan` `write` `admin` | people whose roles give at least this level on the thing that the path names, its owner, platform admins; auditors have `read` on everything | 404 where they may not even read the thing, else 403 |
| `user` | everybody who is signed in; lists show what the caller may read, and what the body names is checked by its own level | 401 |
| `self` | a signed-in person, by a session or a token without limits, for what is its own | 401, 403; 404 for what is somebody else's |
| `audit` | platform admins and auditors | 403 |
| `platform` | platform admins | 403 |
| `listener` | the listener that the path names, by a request signed with its key | 401, 403; 404 for another listener |
| `capability` | who holds the secret that is in the URL or the body | 404, 401 for a join token, 400 for a sign-in that is over |
| `public` | everybody | |

Pages (`GET` and `POST` without `/api`, but `/oauth/token`; and the way to a sign-in provider and back) are for browsers: a session
is asked for, and no token. Who is not signed in is led to sign in. A form is refused (403) if it is not one of ours.

A read-only token changes nothing (403), and has at most `read`. A token for one workspace sees no other (404). A
run's token reads what is marked with a column of its own, and only what its run needs of it; everything else is 404 or
403 for it.

| Method | Path | Needs | On | Run's token | What |
|---|---|---|---|---|---|
"""


def page(endpoints: Iterable[Route]) -> str:
    """The document, in Markdown."""
    lines = [
        f"| {endpoint.method} | `{endpoint.path}` | `{_needs(endpoint)}` | {_on(endpoint)} | "
        f"{'may' if endpoint.run_token else ''} | {summary(endpoint)} |\n"
        for endpoint in sorted(endpoints, key=lambda endpoint: (endpoint.path, endpoint.method))
    ]
    return _HEAD + "".join(lines)


def _needs(endpoint: Route) -> str:
    needs = endpoint.needs
    word = needs.name.lower() if isinstance(needs, Level) else needs.value
    return f"{word}` or `listener" if isinstance(endpoint, Raw) and endpoint.or_listener else word


def _on(endpoint: Route) -> str:
    is_about_one = isinstance(endpoint.needs, Level) or endpoint.needs is Access.LISTENER
    return endpoint.guarded.replace("_", " ") if is_about_one else ""

"""Which work the host's owner lets this listener take. Pure.

The server is told, and hands out nothing else; the listener looks again, since
the host's owner need not trust the server.
"""

from terrapod_shared import wire


def refusal(accepts: wire.Accepts, work: wire.Work) -> str | None:
    """Why a phase may not run here, or None."""
    if accepts.phases and work.phase not in accepts.phases:
        return f"the listener's settings let it take no {work.phase}"
    if accepts.tools and work.engine.tool not in accepts.tools:
        return f"the listener's settings do not let it run {work.engine.tool}"
    if accepts.workspaces and not any(_matches(each, work.workspace_name) for each in accepts.workspaces):
        return f"the listener's settings do not let it take workspace {work.workspace_name}"
    for key, pattern in accepts.labels.items():
        if key not in work.labels or not _matches(pattern, work.labels[key]):
            return f"the listener's settings ask for the label {key}={pattern}, which the workspace does not have"
    return None


def _matches(pattern: str, text: str) -> bool:
    """`*` stands for any letters, `?` for one; nothing else is special. At most as many steps as both lengths' product."""
    at = place = 0
    star, tried = -1, 0  # the last `*`, and how far what follows it was tried
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, tried, at = at, place, at + 1
        elif at < len(pattern) and pattern[at] in ("?", text[place]):
            at, place = at + 1, place + 1
        elif star >= 0:
            at, place, tried = star + 1, tried + 1, tried + 1
        else:
            return False
    return not pattern[at:].strip("*")

"""The verbs of variables."""

from collections.abc import Mapping, Sequence
from typing import Any

from tortoise.exceptions import IntegrityError

from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.services import Services
from terrapod_server.variables import rules
from terrapod_server.variables.model import Variable
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound
from terrapod_shared.variables import oversize, refusal

_AT = "/data/attributes/"


async def get(services: Services, workspace_id: str, variable_id: str) -> Variable:
    """Raises NotFound, also for a variable of another workspace."""
    row = await Variable.get_or_none(id=variable_id, workspace_id=workspace_id)
    if row is None:
        raise NotFound
    return opened(services, [row])[0]


def opened(services: Services, rows: Sequence[Variable]) -> Sequence[Variable]:
    """The rows with the values that may be shown: a sensitive one never may."""
    for row in rows:
        row.shown = None if row.sensitive else _value(services, row)
    return rows


def _value(services: Services, row: Variable) -> str:
    return services.cipher.unseal(row.value, f"variable {row.id}").decode()


def _check(key: str, category: str, value: str) -> None:
    if why := refusal(key, category, value):
        raise Invalid(why, pointer=_AT + "key")
    if why := oversize(key, category, value):
        raise Invalid(why, pointer=_AT + "value")


async def create(services: Services, workspace_id: str, values: Mapping[str, Any]) -> Variable:
    """Raises Invalid for a reserved name, and for one that is there already."""
    key = values.get("key", "")
    if not key:
        message = "a variable needs a key"
        raise Invalid(message, pointer=_AT + "key")
    category, text = values.get("category", "terraform"), values.get("value") or ""
    _check(key, category, text)
    identity = ids.make("var")
    try:
        async with in_transaction():
            await workspaces.held(workspace_id)
            row = await Variable.create(
                id=identity,
                workspace_id=workspace_id,
                key=key,
                category=category,
                value=services.cipher.seal(text.encode(), f"variable {identity}"),
                description=values.get("description") or "",
                hcl=values.get("hcl", False),
                sensitive=values.get("sensitive", False),
                version_id=ids.tail(),
            )
    except IntegrityError:
        raise _taken(key, category) from None
    return opened(services, [row])[0]


async def update(services: Services, row: Variable, values: Mapping[str, Any]) -> Variable:
    """Raises Invalid, also where a sensitive variable would become readable."""
    if row.sensitive and values.get("sensitive") is False:
        message = f"{row.key} is sensitive for good; delete it and make a new one"
        raise Invalid(message, pointer=_AT + "sensitive")
    text = values["value"] or "" if "value" in values else None
    columns = ("key", "category", "hcl", "sensitive", "description")
    changed: dict[str, Any] = {
        name: values[name] if values[name] is not None else "" for name in columns if name in values
    }
    kept = _value(services, row) if text is None else text  # what was fine as terraform's may be too large for env
    _check(changed.get("key", row.key), changed.get("category", row.category), kept)
    if text is not None:
        changed["value"] = services.cipher.seal(text.encode(), f"variable {row.id}")
    found = Variable.filter(id=row.id)
    if not changed.get("sensitive", True):
        found = found.filter(sensitive=False)  # whoever made it sensitive meanwhile wins
    try:
        done = await found.update(**changed, version_id=ids.tail(), updated_at=clock.now())
    except IntegrityError:
        raise _taken(changed.get("key", row.key), changed.get("category", row.category)) from None
    if not done:
        message = f"{row.key} was changed or removed by somebody else meanwhile"
        raise Conflict(message)
    return await get(services, row.workspace_id, row.id)


async def delete(row: Variable) -> None:
    await row.delete()


async def resolve(services: Services, workspace_id: str) -> list[rules.Resolved]:
    """What a run of the workspace gets; for its listener's eyes."""
    rows = await Variable.filter(workspace_id=workspace_id)
    own = [rules.Resolved(row.key, row.category, _value(services, row), row.hcl, row.sensitive) for row in rows]
    return rules.resolve([own])


async def delete_for_workspace(workspace_id: str) -> None:
    await Variable.filter(workspace_id=workspace_id).delete()


def _taken(key: str, category: str) -> Invalid:
    return Invalid(f"there is a {category} variable {key} already", pointer=_AT + "key")

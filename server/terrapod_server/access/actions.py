"""Making roles, giving them to people, and reading the level that they give on a thing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from tortoise.exceptions import IntegrityError

from terrapod_server.access import rules
from terrapod_server.access.model import Role, RoleAssignment
from terrapod_server.access.rules import ADMIN, AUDIT, BUILT_IN, LEVELS, Rights
from terrapod_server.kit.api.declare import Thing
from terrapod_server.kit.caller import Level, Principal
from terrapod_server.kit.db import database
from terrapod_server.kit.db.database import in_transaction
from terrapod_shared import clock
from terrapod_shared.errors import Invalid, NotFound


async def role(name: str) -> Role:
    """Raises NotFound."""
    found = await Role.get_or_none(name=name)
    if found is None:
        raise NotFound
    return found


async def create_role(values: Mapping[str, Any]) -> Role:
    """Raises Invalid where the name is taken or the level is missing."""
    for column, attribute in (("name", "name"), ("level", "workspace-permission")):
        if not values.get(column):
            message = f"a role needs {attribute}"
            raise Invalid(message, pointer=f"/data/attributes/{attribute}")
    try:
        return await Role.create(**values)
    except IntegrityError:
        raise Invalid(f"there is a role {values['name']} already", pointer="/data/attributes/name") from None


async def update_role(name: str, values: Mapping[str, Any]) -> Role:
    """Changes what is named; a built-in role is Invalid."""
    found = await _custom(name)
    if values.get("name", name) != name:
        message = "a role keeps its name"
        raise Invalid(message, pointer="/data/attributes/name")
    found.update_from_dict(dict(values))
    found.updated_at = clock.now()
    await found.save(update_fields=[*values, "updated_at"])
    return found


async def delete_role(name: str) -> None:
    """Removes the role and takes it from everybody; a built-in one is Invalid."""
    await _custom(name)
    async with in_transaction():
        await RoleAssignment.filter(role=name).delete()
        await Role.filter(name=name).delete()


async def _custom(name: str) -> Role:
    if name in BUILT_IN:
        message = f"the role {name} is built in: it can be neither changed nor deleted"
        raise Invalid(message)
    return await role(name)


async def assign(provider: str, email: str, names: Sequence[str], caller: Principal, *, force: bool) -> None:
    """The person has exactly these roles from now on. Raises Invalid for one that is not there.

    Raises Conflict where the caller would lose the role admin by it, without `force`.
    """
    wanted = list(dict.fromkeys(names))
    known = {ADMIN, AUDIT, *await Role.filter(name__in=wanted).values_list("name", flat=True)}
    for name in wanted:
        if name not in known:
            message = f"there is no role {name} that can be assigned"
            raise Invalid(message, pointer="/data/attributes/roles")
    async with in_transaction():
        if ADMIN not in wanted:
            await _check_own(provider, email, caller, force=force)
        await RoleAssignment.filter(provider=provider, email=email).delete()
        await RoleAssignment.bulk_create([RoleAssignment(provider=provider, email=email, role=name) for name in wanted])


async def unassign(provider: str, email: str, name: str, caller: Principal, *, force: bool) -> None:
    """Takes one role. Raises NotFound, or Conflict as `assign` does."""
    async with in_transaction():
        if name == ADMIN:
            await _check_own(provider, email, caller, force=force)
        if not await RoleAssignment.filter(provider=provider, email=email, role=name).delete():
            raise NotFound


async def _check_own(provider: str, email: str, caller: Principal, *, force: bool) -> None:
    is_own = (caller.provider, caller.name) == (provider, email)
    if is_own and await RoleAssignment.exists(provider=provider, email=email, role=ADMIN):
        rules.check_lockout(Level.ADMIN, Level.NONE, force=force)


async def make_admin(provider: str, email: str) -> None:
    """Gives the role admin; a repeat is no error."""
    await RoleAssignment.get_or_create(provider=provider, email=email, role=ADMIN)


async def delete_for_email(email: str) -> None:
    """Takes all roles of the address, whoever vouches for it: it may be somebody else's one day."""
    await RoleAssignment.filter(email=email).delete()


async def admins(emails: Iterable[str]) -> set[tuple[str, str]]:
    """(provider, address) of those among the addresses who are platform admins."""
    found = RoleAssignment.filter(email__in=list(emails), role=ADMIN).values_list("provider", "email")
    return {(str(provider), str(email)) for provider, email in await found}


async def roles_for(provider: str, email: str, granted: Iterable[str] = ()) -> list[str]:
    """Names of the roles that the person has: assigned ones, and those that its provider's claims gave."""
    assigned = await RoleAssignment.filter(provider=provider, email=email).values_list("role", flat=True)
    return sorted({*(str(name) for name in assigned), *granted})


async def rights_of(
    user_id: str,
    provider: str,
    email: str,
    granted: Iterable[str] = (),
    *,
    is_read_only: bool = False,
    only_workspace: str = "",
) -> Rights:
    """What the person may do who came in by the provider; with the limits of the token that was shown."""
    names = await roles_for(provider, email, granted)
    custom = [name for name in names if name not in BUILT_IN]
    return Rights(
        user_id=user_id,
        is_admin=ADMIN in names,
        is_reader=AUDIT in names,
        roles=tuple(_rule(row) for row in await Role.filter(name__in=custom).order_by("name")) if custom else (),
        is_read_only=is_read_only,
        only_workspace=only_workspace,
    )


def _rule(row: Role) -> rules.Role:
    return rules.Role(
        name=row.name,
        level=LEVELS[row.level],
        allow=rules.flat(row.allow_labels),
        allow_names=frozenset(row.allow_names),
        deny=rules.flat(row.deny_labels),
        deny_names=frozenset(row.deny_names),
    )


class Levels:
    """The one function that the guard asks: the level of a caller on the thing that a path parameter names."""

    def __init__(self, things: Iterable[Thing]) -> None:
        self._statements = {
            thing.parameter: f'SELECT t."id", t."name", t."labels", t."owner_id" FROM {thing.source} '  # noqa: S608
            f"WHERE {thing.key} = $1"
            for thing in things
        }

    def knows(self, parameter: str) -> bool:
        return parameter in self._statements

    async def level(self, principal: Principal, parameter: str, identity: str, *, is_certain: bool = False) -> Level:
        """NONE where there is no such thing, or the caller may not know of it.

        An admin is told by the handler that there is none, unless `is_certain`.
        """
        rights: Rights | None = principal.rights
        if rights is None:
            return Level.NONE
        if rights.is_admin and not rights.only_workspace and not is_certain:
            return Level.READ if rights.is_read_only else Level.ADMIN
        found = await database.rows(self._statements[parameter], [identity])
        if not found:
            return Level.NONE
        thing_id, name, labels, owner_id = found[0]
        return rights.level(
            thing_id, name, msgspec.json.decode(labels) if isinstance(labels, str) else labels, owner_id
        )

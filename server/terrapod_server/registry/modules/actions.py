"""The verbs of modules and their versions."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from tortoise.exceptions import IntegrityError

from terrapod_server.access import visible
from terrapod_server.identity import actions as identity
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db.conditions import Where, like
from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.db.row_cache import Reader
from terrapod_server.kit.services import Services
from terrapod_server.registry.modules import rules
from terrapod_server.registry.modules.model import Module, ModuleLabel, ModuleVersion
from terrapod_server.store import keys
from terrapod_server.store.archive import checked
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

READER = Reader(Module)
KIND = visible.Kind("registry_module_label", "module_id")
#: What one version may hold when it is unpacked: terraform unpacks it on every user's host, without a limit.
UNPACKED_MOST = 1 << 30


async def get(module_id: str) -> Module:
    """Raises NotFound, also for a text that could be no id."""
    found = await Module.get_or_none(id=module_id) if ids.is_valid(module_id, "mod") else None
    if found is None:
        raise NotFound
    return found


async def named(namespace: str, name: str, provider: str) -> Module:
    """Raises NotFound, also for names that could be none."""
    found = None
    if namespace == rules.NAMESPACE and _is_name(name, provider):
        found = await Module.get_or_none(address=f"{name}/{provider}")
    if found is None:
        message = f"there is no module {namespace[:64]}/{name[:64]}/{provider[:64]}"
        raise NotFound(message)
    return found


def _is_name(name: str, provider: str) -> bool:
    try:
        return bool(rules.name(name) and rules.provider(provider))
    except ValueError:
        return False


async def of_name(namespace: str, name: str) -> list[Module]:
    """The modules of that name, one a provider. Raises NotFound where there is none."""
    found = []
    if namespace == rules.NAMESPACE and _is_name(name, "any"):
        found = await Module.filter(name=name).order_by("provider")
    if not found:
        raise NotFound
    return found


async def by_ids(module_ids: Iterable[str]) -> list[Module]:
    return await Module.filter(id__in=list(module_ids))


def search(query: Mapping[str, str]) -> Where | None:
    """What a list's parameters ask for; None where nothing can fit."""
    if query.get("filter[registry_name]", "") not in ("", rules.REGISTRY):
        return None
    if query.get("filter[organization_name]", "") not in ("", rules.NAMESPACE):
        return None
    where = Where()
    if provider := query.get("filter[provider]"):
        where &= Where('t."provider" = $1', (provider,))
    text = query.get("q", "")
    if text and text != rules.NAMESPACE:
        where &= like('t."address"', text)
    return where


async def create(principal: Principal, values: Mapping[str, Any]) -> Module:
    """Raises Invalid for a name that is taken."""
    module = Module(
        id=ids.make("mod"),
        name=values["name"],
        provider=values["provider"],
        address=f"{values['name']}/{values['provider']}",
        labels=values.get("labels", {}),
        owner_id=principal.id,
        owner_email=principal.name,
    )
    try:
        async with in_transaction():
            await module.save(force_create=True)
            await _write_labels(module)
    except IntegrityError:
        message = f"the name {module.name} has already been taken for the provider {module.provider}"
        raise Invalid(message, pointer="/data/attributes/name") from None
    return module


async def set_labels(module: Module, labels: Mapping[str, str]) -> Module:
    module.labels, module.updated_at = dict(labels), clock.now()
    async with in_transaction():
        await module.save(update_fields=["labels", "updated_at"])  # the row's lock comes first
        await _write_labels(module)
    return module


async def _write_labels(module: Module) -> None:
    await ModuleLabel.filter(module_id=module.id).delete()
    await ModuleLabel.bulk_create(
        [ModuleLabel(module_id=module.id, key=key, value=value) for key, value in module.labels.items()]
    )


async def delete(services: Services, modules: Sequence[Module]) -> None:
    """Removes modules with all their versions, all or none."""
    gone = [module.id for module in modules]
    async with in_transaction():
        await Module.select_for_update().filter(id__in=gone).order_by("id")  # no version is announced meanwhile
        await ModuleVersion.filter(module_id__in=gone).delete()
        await ModuleLabel.filter(module_id__in=gone).delete()
        await Module.filter(id__in=gone).delete()
    for module_id in gone:
        await services.store.delete_prefix(keys.module(module_id))


async def versions(module_ids: Iterable[str]) -> dict[str, list[ModuleVersion]]:
    """All versions of each module, newest first; without those of no module."""
    found: dict[str, list[ModuleVersion]] = {module_id: [] for module_id in module_ids}
    for row in await ModuleVersion.filter(module_id__in=list(found)):
        found[row.module_id].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: rules.order(row.version), reverse=True)
    return found


async def version(module: Module, text: str) -> ModuleVersion:
    """Raises NotFound."""
    found = None
    if len(text) <= rules.VERSION_LONGEST:
        found = await ModuleVersion.get_or_none(module_id=module.id, version=text)
    if found is None:
        message = f"module {module.name}/{module.provider} has no version {text[: rules.VERSION_LONGEST]}"
        raise NotFound(message)
    return found


async def published(module: Module, text: str) -> ModuleVersion:
    """A version whose archive is here. Raises NotFound."""
    found = await version(module, text)
    if found.status != "ok":
        message = f"version {found.version} of module {module.name}/{module.provider} is not uploaded yet"
        raise NotFound(message)
    return found


async def announce(principal: Principal, module: Module, text: str, commit_sha: str) -> ModuleVersion:
    """A version whose archive is to come. One that never came may be announced again. Raises Invalid."""
    async with in_transaction():
        if await Module.select_for_update().get_or_none(id=module.id) is None:
            raise NotFound
        found = await ModuleVersion.get_or_none(module_id=module.id, version=text)
        if found is None:
            return await ModuleVersion.create(
                id=ids.make("modver"),
                module_id=module.id,
                version=text,
                commit_sha=commit_sha,
                created_by_id=principal.id,
            )
        if found.status == "pending":
            found.commit_sha = commit_sha
            await found.save(update_fields=["commit_sha", "updated_at"])
            return found
    message = f"version {text} of module {module.name}/{module.provider} is published already"
    raise Invalid(message, pointer="/data/attributes/version")


async def upload(services: Services, version_id: str, chunks: AsyncIterator[bytes]) -> None:
    """Takes a version's archive, once: the same bytes again are no error.

    Raises Invalid for what is no archive, Conflict for other bytes than those
    that were published; nothing is kept then.
    """
    row = await _by_id(version_id)
    await identity.check_still_in(row.created_by_id)
    fresh = keys.module_version(row.module_id, row.id, ids.tail())
    stored = await services.store.put(fresh, checked(chunks, "module", UNPACKED_MOST))
    if await ModuleVersion.filter(id=row.id, status="pending").update(
        status="ok", size=stored.size, sha256=stored.sha256, stored_key=fresh, updated_at=clock.now()
    ):
        return
    await services.store.delete(fresh)
    if (await _by_id(version_id)).sha256 != stored.sha256:
        message = f"version {row.version} is published already with other bytes; publish a new version"
        raise Conflict(message)


async def _by_id(version_id: str) -> ModuleVersion:
    found = await ModuleVersion.get_or_none(id=version_id)
    if found is None:
        raise NotFound
    return found


async def archive(version_id: str) -> ModuleVersion:
    """The version that a download URL names. Raises NotFound, also when it was removed since."""
    found = await _by_id(version_id)
    if found.status != "ok":
        raise NotFound
    return found


async def delete_version(services: Services, row: ModuleVersion) -> None:
    """Removes a version; its number may be published again."""
    await ModuleVersion.filter(id=row.id).delete()
    for key in await services.store.keys(keys.module(row.module_id)):
        if key.startswith(keys.module_version(row.module_id, row.id, "")):
            await services.store.delete(key)

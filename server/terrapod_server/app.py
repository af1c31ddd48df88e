"""The composition root: picks adapters, collects declarations and jobs, checks them, and hands functions upward.

Nothing else knows all rooms. What a lower room needs of a higher one (a
configuration was uploaded: which runs wait for it?) is a function that is put
into `Services` here.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from starlette.responses import Response

from terrapod_server import metrics
from terrapod_server.access import actions as access
from terrapod_server.access import api as access_api
from terrapod_server.agents import api as agents_api
from terrapod_server.agents import jobs as agents_jobs
from terrapod_server.agents import model as agents_model
from terrapod_server.agents import pools, waits
from terrapod_server.agents.late import actions as late
from terrapod_server.agents.late import api
from terrapod_server.agents.protocol import auth as listener_auth
from terrapod_server.agents.protocol import deliveries
from terrapod_server.audit import api as audit_api
from terrapod_server.audit import jobs as audit_jobs
from terrapod_server.audit.chain_heads import Keys, is_signed_by
from terrapod_server.audit.writer import Writer
from terrapod_server.config.settings import Config
from terrapod_server.configs import actions as configs
from terrapod_server.configs import api as configs_api
from terrapod_server.configs import model as configs_model
from terrapod_server.encryption import known_keys
from terrapod_server.encryption.known_keys import KnownKeys, Unusable, Witnesses
from terrapod_server.engines import api as mirror_api
from terrapod_server.engines import model as mirror_model
from terrapod_server.identity import actions as identity
from terrapod_server.identity import api as identity_api
from terrapod_server.identity import auth_api, oauth, oauth_api, rules
from terrapod_server.identity import jobs as identity_jobs
from terrapod_server.identity import pages as identity_pages
from terrapod_server.identity.signin.providers import SignIn
from terrapod_server.kit import html
from terrapod_server.kit.api import openapi
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint, Raw, Resource, Route, Thing
from terrapod_server.kit.api.render import Registry, encode
from terrapod_server.kit.asgi import idempotency
from terrapod_server.kit.asgi.application import Server
from terrapod_server.kit.asgi.guard import Guard
from terrapod_server.kit.asgi.routes import Routes
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.db import database, database_errors
from terrapod_server.kit.http import lockout, static
from terrapod_server.kit.http.address import Addresses
from terrapod_server.kit.http.budget import Budget
from terrapod_server.kit.http.rate_limits import Limiter
from terrapod_server.kit.http.signed import Signer
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.bus import Bus
from terrapod_server.kit.work.periodic import Job, Periodic
from terrapod_server.kit.work.workers import Workers
from terrapod_server.registry.modules import api as registry_api
from terrapod_server.registry.modules import model as registry_model
from terrapod_server.registry.modules import protocol as registry_protocol
from terrapod_server.runs import actions as runs
from terrapod_server.runs import api as runs_api
from terrapod_server.runs import deleted, leases
from terrapod_server.runs import jobs as runs_jobs
from terrapod_server.runs import model as runs_model
from terrapod_server.runs import pages as runs_pages
from terrapod_server.states import actions as states
from terrapod_server.states import api as states_api
from terrapod_server.states import model as states_model
from terrapod_server.store.cipher import EncryptedStore, KeyRing
from terrapod_server.store.sealed import SealedColumn, SealedObjects
from terrapod_server.store.select import open_store
from terrapod_server.variables import actions as variables
from terrapod_server.variables import api as variables_api
from terrapod_server.variables import model as variables_model
from terrapod_server.workspaces import api as workspaces_api
from terrapod_server.workspaces import organization
from terrapod_shared.operator_errors import make_folder

log = logging.getLogger(__name__)

#: Every module that declares tables, for the ORM and for migrations.
MODELS = tuple(
    f"terrapod_server.{room}.model"
    for room in (
        "kit",
        "encryption",
        "access",
        "identity",
        "workspaces",
        "variables",
        "configs",
        "states",
        "registry.modules",
        "engines",
        "runs",
        "agents",
        "audit",
    )
)
#: All that is encrypted, as the rooms declare it.
SEALED: tuple[SealedColumn | SealedObjects, ...] = (
    SealedColumn("repeat", "body", "{id}"),
    *variables_model.SEALED,
    *configs_model.SEALED,
    *states_model.SEALED,
    *registry_model.SEALED,
    *mirror_model.SEALED,
    *runs_model.SEALED,
    *agents_model.SEALED,
)
_DISCOVERY = {
    "tfe.v2": "/api/v2/",
    "tfe.v2.1": "/api/v2/",
    "tfe.v2.2": "/api/v2/",
    "state.v2": "/api/v2/",
    "modules.v1": "/api/v2/registry/modules/",
    "login.v1": {
        "client": next(iter(oauth.CLIENTS)),
        "grant_types": ["authz_code"],
        "authz": "/oauth/authorize",
        "token": "/oauth/token",
        "ports": list(rules.PORTS),
    },
}


async def health(_call: Call) -> Response:
    """Whether the process runs; asks nothing else."""
    return Response(encode({"status": "healthy"}), media_type="application/json")


async def ready(call: Call) -> Response:
    """Whether the database and the store answer, and the key file has the keys that are in use."""
    checks = {}
    for name, check in (("database", _database_answers), ("storage", call.services.store.healthy)):
        try:
            checks[name] = "healthy" if await check() else "unhealthy"
        except Exception as error:  # noqa: BLE001  whatever it is, the answer says that it is not healthy
            database_errors.log_failure(log, f"the check of the {name}", error, call.services.config.database)
            checks[name] = "unhealthy"
    if checks["database"] == "healthy" and not await _has_keys(call.services):
        checks["keys"] = "unhealthy"
    healthy = all(state == "healthy" for state in checks.values()) and not call.services.bus.is_closing
    body = encode({"status": "ready" if healthy else "not ready", "checks": checks})
    return Response(body, 200 if healthy else 503, media_type="application/json")


async def _database_answers() -> bool:
    return bool(await database.query("SELECT 1 AS one"))


async def _has_keys(services: Services) -> bool:
    """Whether this process, and one that would start now, can read all that is encrypted."""
    path = services.config.keys
    try:
        missing = await known_keys.missing(path, services.cipher)
    except Unusable as error:
        log.warning("%s", error)
        return False
    if missing:
        log.warning("keys are in use that this process or %s lacks: %s", path, ", ".join(sorted(missing)))
    return not missing


async def discovery(_call: Call) -> Response:
    """Which services this host has; only what is served is named."""
    return Response(encode(_DISCOVERY), media_type="application/json")


async def icon(_call: Call) -> Response:
    """The icon of the pages."""
    return Response(html.ICON, media_type="image/svg+xml", headers={"Cache-Control": "public, max-age=86400"})


async def file(call: Call) -> Response:
    """A file of the pages, such as their style."""
    return static.answer(call.request, call.path["digest"], call.path["file"])


async def ping(call: Call) -> Response:
    """The version handshake: terraform reads the headers and nothing else, so no token is asked for."""
    announced = call.services.limits.announced
    limit = {"X-RateLimit-Limit": announced} if announced else {}
    return Response(status_code=204, headers={"X-TFE-Version": "v202505-1", **limit})


#: What the endpoints of each room are about, as the OpenAPI document has it.
TAGS: openapi.Tags = {
    "workspaces": ("workspaces", "workspaces with their labels and locks; the one organization and project"),
    "variables": ("variables", "variables of workspaces"),
    "configs": ("configurations", "configuration versions and their upload"),
    "runs": ("runs", "runs, plans, applies and logs"),
    "states": ("states", "state versions and outputs"),
    "agents": ("pools", "pools and their listeners, and what listeners call; late states"),
    "registry": ("modules", "private modules"),
    "engines": ("engines", "the cache of terraform and tofu"),
    "identity": ("identity", "accounts, tokens, sessions, and the ways to sign in"),
    "access": ("access", "roles and who has them"),
    "audit": ("audit", "the record of changes and refusals"),
    "metrics": ("server", "the server itself"),
    "app": ("server", "the server itself"),
}


class _Documents:
    """The OpenAPI document, made once it is asked for."""

    def __init__(self) -> None:
        self.endpoints: tuple[Route, ...] = ()
        self._bytes = b""

    async def show(self, _call: Call) -> Response:
        """This API as an OpenAPI 3.1 document."""
        self._bytes = self._bytes or encode(openapi.document(self.endpoints, TAGS))
        return Response(self._bytes, media_type="application/json")


_documents = _Documents()

OWN: tuple[Endpoint | Raw, ...] = (
    Raw("GET", "/health", health, Access.PUBLIC, unmetered=True, gives=dict[str, str]),
    Raw("GET", "/ready", ready, Access.PUBLIC, unmetered=True, gives=dict[str, Any]),
    Raw("GET", "/.well-known/terraform.json", discovery, Access.PUBLIC, unmetered=True, gives=dict[str, Any]),
    Raw("GET", "/favicon.svg", icon, Access.PUBLIC, unmetered=True),
    Raw("GET", "/favicon.ico", icon, Access.PUBLIC, unmetered=True),
    Raw("GET", static.PATH, file, Access.PUBLIC, unmetered=True, answers=(200, 304), gives="text/css"),
    Raw("GET", "/api/v2/ping", ping, Access.PUBLIC, unmetered=True, answers=(204,)),
    Raw("GET", "/api/v2/openapi.json", _documents.show, Access.PUBLIC, unmetered=True, gives=dict[str, Any]),
)
ENDPOINTS: tuple[Route, ...] = (
    *OWN,
    *organization.ENDPOINTS,
    *access_api.ENDPOINTS,
    *identity_api.ENDPOINTS,
    *auth_api.ENDPOINTS,
    *oauth_api.ENDPOINTS,
    *identity_pages.PAGES,
    *workspaces_api.ENDPOINTS,
    *variables_api.ENDPOINTS,
    *configs_api.ENDPOINTS,
    *states_api.ENDPOINTS,
    *registry_api.ENDPOINTS,
    *registry_protocol.ENDPOINTS,
    *mirror_api.ENDPOINTS,
    *runs_api.ENDPOINTS,
    *runs_pages.PAGES,
    *agents_api.ENDPOINTS,
    *api.ENDPOINTS,
    *audit_api.ENDPOINTS,
    *metrics.ENDPOINTS,
)
_documents.endpoints = ENDPOINTS
RESOURCES: tuple[Resource, ...] = (
    *organization.RESOURCES,
    *access_api.RESOURCES,
    *identity_api.RESOURCES,
    *auth_api.RESOURCES,
    *workspaces_api.RESOURCES,
    *variables_api.RESOURCES,
    *configs_api.RESOURCES,
    *states_api.RESOURCES,
    *registry_api.RESOURCES,
    *mirror_api.RESOURCES,
    *runs_api.RESOURCES,
    *agents_api.RESOURCES,
    *api.RESOURCES,
    *audit_api.RESOURCES,
)
JOBS: tuple[Job[Services], ...] = (
    *idempotency.JOBS,
    *lockout.JOBS,
    *identity_jobs.JOBS,
    *runs_jobs.JOBS,
    *agents_jobs.JOBS,
    *audit_jobs.JOBS,
)


#: How the things are found whose level a path is about.
THINGS: tuple[Thing, ...] = (
    *workspaces_api.THINGS,
    *configs_api.THINGS,
    *states_api.THINGS,
    *registry_api.THINGS,
    *runs_api.THINGS,
    *agents_api.THINGS,
    *api.THINGS,
)


@dataclass
class App:
    """A server that is made and not yet started."""

    config: Config
    services: Services
    asgi: Server


def build(config: Config) -> App:
    """Puts all parts together. Opens nothing but the key file; where there is none, a new key is in memory until the
    database has shown that it is a new one too. Raises OperatorError.
    """
    make_folder(config.folder, "the data folder (`data`)")
    keyring = known_keys.load(config.keys) or KeyRing.fresh()
    signer = Signer(*_signing_keys(keyring))
    dsn = database.postgres_dsn(config.database) if not config.database.startswith("sqlite:") else None
    bus = Bus(dsn)
    authenticator = identity.Authenticator(signer, leases.lease_is_live, bus)
    levels = access.Levels(THINGS)
    guard = Guard(authenticator.bearer, listener_auth.authenticate, levels.level, authenticator.session)
    services = Services(
        config=config,
        store=EncryptedStore(open_store(config), keyring),
        cipher=keyring,
        bus=bus,
        signer=signer,
        addresses=Addresses(config.trusted_proxies, config.forwarded_header),
        limits=Limiter(config.rate_limits),
        memory=Budget(config.limits.memory_bytes),
        workers=Workers(config.limits.readers, config.limits.reader_bytes),
        guard=guard,
        authenticator=authenticator,
        sign_in=SignIn(config.auth, lockout),
        on_configuration_uploaded=runs.on_configuration_uploaded,
        configuration_in_use=runs.configuration_in_use,
        on_state_finalized=runs.on_state_finalized,
        on_workspace_unlocked=runs.on_workspace_unlocked,
        release_run_lock=runs.release_lock,
        run_has_status=runs.run_has_status,
        local_engines=pools.local_engines,
        pool_for=pools.pool_for,
        explain_waits=waits.prepare,
        has_run=runs.has_run,
        before_workspace_deleted=[deleted.before_workspace_deleted, states.before_workspace_deleted],
        clear_deleted=deleted.clear,
        on_workspace_deleted=[
            deleted.on_workspace_deleted,
            states.delete_for_workspace,
            configs.delete_for_workspace,
            variables.delete_for_workspace,
            pools.delete_for_workspace,
            late.delete_for_workspace,
        ],
    )
    if config.audit.enabled:
        services.audit = writer = _audit_writer(config, services)
        services.record, services.check_record, services.note = writer.record, writer.check, writer.note
    registry = Registry(RESOURCES)
    if wrong := [*registry.check(), *_unfound(levels)]:
        raise RuntimeError("; ".join(wrong))
    life = _Life(config, services)
    return App(config, services, Server(Routes(ENDPOINTS), registry, services, guard, life.start, life.stop))


def known_keys_of(config: Config) -> KnownKeys:
    columns = [each for each in SEALED if isinstance(each, SealedColumn)]
    objects = [each for each in SEALED if isinstance(each, SealedObjects)]

    def opened_store(ring: KeyRing) -> EncryptedStore:
        return EncryptedStore(open_store(config), ring)

    witnesses = Witnesses(columns, objects, lambda ring: is_signed_by(audit_keys(ring)))
    return KnownKeys(config.keys, opened_store, witnesses)


def _unfound(levels: access.Levels) -> list[str]:
    """Endpoints that need a level on a thing which nobody knows how to find."""
    return [
        f"{endpoint.method} {endpoint.path}: no thing is declared for {endpoint.guarded}"
        for endpoint in ENDPOINTS
        if isinstance(endpoint.needs, Level) and not levels.knows(endpoint.guarded)
    ]


def audit_keys(keyring: KeyRing) -> Keys:
    return Keys(keyring.derive("audit checkpoints"), keyring.derive("audit chains"))


def _audit_writer(config: Config, services: Services) -> Writer:
    days = config.audit.retention_days
    keep = timedelta(days=days) if days else None
    return Writer(config.folder / "audit", audit_keys(services.cipher), services.addresses, keep)


def _signing_keys(keyring: KeyRing) -> tuple[bytes, tuple[bytes, ...]]:
    current, *older = keyring.derive("signed urls")
    return current, tuple(older)


class _Life:
    """What begins and ends with the server."""

    def __init__(self, config: Config, services: Services) -> None:
        self._config, self._services = config, services
        self._periodic = Periodic(JOBS, services, services.measured.turned, config.database)
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await database.open_(self._config.database, MODELS, self._config.database_pool)
        try:
            with database_errors.explained(self._config.database):
                await database.migrate()
                await known_keys_of(self._config).settle(self._services.cipher)
                await self._services.bus.start()
                await pools.ensure_default_pool()
                await leases.on_start()
        except BaseException:
            await self.stop()
            raise
        if self._services.audit is not None:
            await self._services.audit.start()
        else:
            log.warning("audit.enabled is false: nothing of what is done is recorded")
        self._periodic.start()
        self._following = asyncio.create_task(self._services.authenticator.follow())

    async def stop(self) -> None:
        """Ends all parts, the last named first, each whatever became of the one before."""
        services = self._services
        async with contextlib.AsyncExitStack() as ending:
            ending.push_async_callback(database.close)
            ending.push_async_callback(services.store.close)
            ending.push_async_callback(services.workers.close)
            ending.push_async_callback(services.sign_in.close)
            ending.push_async_callback(services.bus.stop)
            if services.audit is not None:
                ending.push_async_callback(services.audit.stop)
            await self._periodic.stop()
            await deliveries.settle()
            services.bus.close()
            if self._following:
                await self._following


@contextlib.asynccontextmanager
async def opened(config: Config) -> AsyncIterator[App]:
    """An app with its database open and migrated, for commands that serve nothing. Raises OperatorError."""
    app = build(config)
    try:
        async with database_of(config):
            await database.migrate()
            await known_keys_of(config).settle(app.services.cipher)
            yield app
    finally:
        await app.services.sign_in.close()
        await app.services.store.close()


@contextlib.asynccontextmanager
async def database_of(config: Config) -> AsyncIterator[None]:
    await database.open_(config.database, MODELS, config.database_pool)
    try:
        with database_errors.explained(config.database):
            yield
    finally:
        await database.close()


__all__ = ["ENDPOINTS", "JOBS", "MODELS", "RESOURCES", "App", "Unusable", "build", "opened"]

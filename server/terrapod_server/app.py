"""The composition root: lists the rooms, picks adapters, and makes a server of them.

Nothing else knows all rooms. What a lower room asks of a higher one is a port
(see `kit.ports`), which the higher one provides in its `ROOM`.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from terrapod_server.access import actions as access
from terrapod_server.agents.protocol import auth as listener_auth
from terrapod_server.audit.chain_heads import Keys, is_signed_by
from terrapod_server.audit.writer import Writer
from terrapod_server.config.settings import Config
from terrapod_server.encryption import known_keys
from terrapod_server.encryption.known_keys import KnownKeys, Unusable, Witnesses
from terrapod_server.identity import actions as identity
from terrapod_server.identity.ports import LEASES
from terrapod_server.identity.signin.providers import SIGN_IN, SignIn
from terrapod_server.kit import room
from terrapod_server.kit.api.render import Registry
from terrapod_server.kit.asgi import idempotency
from terrapod_server.kit.asgi.application import Server
from terrapod_server.kit.asgi.guard import Guard
from terrapod_server.kit.asgi.routes import Routes
from terrapod_server.kit.caller import Level
from terrapod_server.kit.db import database, database_errors
from terrapod_server.kit.http import lockout
from terrapod_server.kit.http.address import Addresses
from terrapod_server.kit.http.budget import Budget
from terrapod_server.kit.http.rate_limits import Limiter
from terrapod_server.kit.http.signed import Signer
from terrapod_server.kit.ports import Providers
from terrapod_server.kit.room import Composition, InvalidComposition, Room
from terrapod_server.kit.services import NotRecorded, Services
from terrapod_server.kit.work.bus import Bus
from terrapod_server.kit.work.outbox import Outbox
from terrapod_server.kit.work.periodic import Periodic
from terrapod_server.kit.work.workers import Workers
from terrapod_server.runs import change
from terrapod_server.store.cipher import EncryptedStore, KeyRing
from terrapod_server.store.sealed import SealedColumn, SealedObjects
from terrapod_server.store.select import open_store
from terrapod_server.system.ports import DECLARED
from terrapod_shared.operator_errors import make_folder

#: What the kit itself keeps.
KIT = Room(
    name="kit",
    models=("model",),
    sealed=(SealedColumn("repeat", "body", "{id}"),),
    jobs=(*idempotency.JOBS, *lockout.JOBS),
)
#: All rooms, from the floor up: of each the folder, whose `room.py` says what it has.
ROOMS = (
    "encryption",
    "access",
    "identity",
    "workspaces",
    "variables",
    "configs",
    "states",
    "registry",
    "engines",
    "runs",
    "agents",
    "audit",
    "metrics",
    "system",
)
COMPOSITION = Composition((KIT, *room.load(ROOMS)), own=(DECLARED, SIGN_IN))
MODELS, RESOURCES, ENDPOINTS, JOBS, TAGS = (
    COMPOSITION.models,
    COMPOSITION.resources,
    COMPOSITION.endpoints,
    COMPOSITION.jobs,
    COMPOSITION.tags,
)


@dataclass
class App:
    """A server that is made and not yet started."""

    config: Config
    services: Services
    asgi: Server


def build(config: Config, composition: Composition = COMPOSITION) -> App:
    """Puts all parts together. Opens nothing but the key file; where there is none, a new key is in memory until the
    database has shown that it is a new one too. Raises OperatorError.
    """
    if wrong := composition.check():
        raise InvalidComposition("; ".join(wrong))
    levels, registry = access.Levels(composition.things), Registry(composition.resources)
    if wrong := [*registry.check(), *_unfound(composition, levels)]:
        raise InvalidComposition("; ".join(wrong))
    make_folder(config.folder, "the data folder (`data`)")
    keyring = known_keys.load(config.keys) or KeyRing.fresh()
    signer = Signer(*_signing_keys(keyring))
    bus = Bus(None if config.database.startswith("sqlite:") else database.postgres_dsn(config.database))
    own = (DECLARED.by(composition), SIGN_IN.by(SignIn(config.auth, lockout)))
    providers = Providers((*composition.provides, *own))
    addresses = Addresses(config.trusted_proxies, config.forwarded_header)
    authenticator = identity.Authenticator(signer, providers.ask(LEASES), bus)
    guard = Guard(authenticator.bearer, listener_auth.authenticate, levels.level, authenticator.session)
    services = Services(
        config=config,
        store=EncryptedStore(open_store(config), keyring),
        cipher=keyring,
        bus=bus,
        signer=signer,
        addresses=addresses,
        limits=Limiter(config.rate_limits),
        memory=Budget(config.limits.memory_bytes),
        workers=Workers(config.limits.readers, config.limits.reader_bytes),
        outbox=Outbox(composition.outlets, change.load, bus, config.database),
        guard=guard,
        authenticator=authenticator,
        recorder=Writer.made(config, keyring, addresses) if config.audit.enabled else NotRecorded(),
        providers=providers,
    )
    life = _Lifespan(services, composition)
    return App(
        config, services, Server(Routes(composition.endpoints), registry, services, guard, life.start, life.stop)
    )


def known_keys_of(config: Config) -> KnownKeys:
    columns = [each for each in COMPOSITION.sealed if isinstance(each, SealedColumn)]
    objects = [each for each in COMPOSITION.sealed if isinstance(each, SealedObjects)]

    def opened_store(ring: KeyRing) -> EncryptedStore:
        return EncryptedStore(open_store(config), ring)

    witnesses = Witnesses(columns, objects, lambda ring: is_signed_by(Keys.of(ring)))
    return KnownKeys(config.keys, opened_store, witnesses)


def _unfound(composition: Composition, levels: access.Levels) -> list[str]:
    """Endpoints that need a level on a thing which nobody knows how to find."""
    return [
        f"{endpoint.method} {endpoint.path}: no thing is declared for {endpoint.guarded}"
        for endpoint in composition.endpoints
        if isinstance(endpoint.needs, Level) and not levels.knows(endpoint.guarded)
    ]


def _signing_keys(keyring: KeyRing) -> tuple[bytes, tuple[bytes, ...]]:
    current, *older = keyring.derive("signed urls")
    return current, tuple(older)


class _Lifespan:
    """What begins and ends with the server."""

    def __init__(self, services: Services, composition: Composition) -> None:
        self._services, self._composition = services, composition
        url, turned = services.config.database, services.measured.turned
        self._periodic = Periodic(composition.jobs, services, turned, url)

    async def start(self) -> None:
        config, services = self._services.config, self._services
        await database.open_(config.database, self._composition.models, config.database_pool)
        try:
            with database_errors.explained(config.database):
                await database.migrate()
                await known_keys_of(config).settle(services.cipher)
                await services.bus.start()
                await self._composition.start(services)
                await services.outbox.start(services)
        except BaseException:
            await self.stop()
            raise
        self._periodic.start()

    async def stop(self) -> None:
        """Ends all parts, the last named first, each whatever became of the one before."""
        services = self._services
        async with contextlib.AsyncExitStack() as ending:
            ending.push_async_callback(database.close)
            ending.push_async_callback(services.store.close)
            ending.push_async_callback(services.workers.close)
            ending.push_async_callback(services.bus.stop)
            ending.push_async_callback(self._composition.stop, services)
            await services.outbox.stop()
            await self._periodic.stop()
            services.bus.close()


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
        await app.services.ask(SIGN_IN).close()
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

"""`terrapod-server keys`: which keys encrypt at rest, a new one in front of them, and giving up lost ones."""

from terrapod_server import app
from terrapod_server.config.settings import Config
from terrapod_server.encryption import known_keys
from terrapod_server.kit.db import database
from terrapod_server.store.cipher import KeyRing
from terrapod_shared.operator_errors import OperatorError


class Unreadable(OperatorError):
    """There is no key file, or it holds something else; the text is for the operator."""


def opened(config: Config) -> KeyRing:
    """The ring of the key file; unlike a start it makes none. Raises Unreadable."""
    try:
        return KeyRing.load(config.keys)
    except FileNotFoundError:
        message = f"there is no key file {config.keys}: the first start of a server on a new database makes it"
        raise Unreadable(message) from None
    except (OSError, ValueError) as error:
        raise Unreadable(str(error)) from None


def rotate(config: Config) -> str:
    """Puts a new key in front, and gives its id. Raises Unreadable."""
    return opened(config).rotate(config.keys).ids[0]


async def check(config: Config) -> None:
    """Whether a start would find all keys that are in use; changes nothing. Raises Unusable."""
    ring = known_keys.load(config.keys)
    if config.has_database:
        async with app.database_of(config):
            await app.known_keys_of(config).check(ring)


async def forget(config: Config, *, is_certain: bool) -> list[str]:
    """Ids of the keys in use that the key file lacks; they are given up where it `is_certain`. Raises Unusable."""
    ring = known_keys.load(config.keys)
    async with app.database_of(config):
        if not is_certain:
            return await app.known_keys_of(config).lost(ring)
        await database.migrate()
        return await app.known_keys_of(config).forget(ring)

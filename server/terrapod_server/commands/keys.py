"""`terrapod-server keys`: which keys encrypt at rest, and a new one in front of them."""

from terrapod_server.config.settings import Config
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

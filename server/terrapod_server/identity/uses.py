"""Writes down when a token or session was used: where the database takes no writes, people can still read."""

import logging
import math
import time
from collections.abc import Awaitable

log = logging.getLogger(__name__)
#: How long none is noted after one could not be.
_PAUSE_S = 60.0
_again_at = -math.inf


async def note(update: Awaitable[object]) -> None:
    """Does the update, if it can be done."""
    global _again_at  # noqa: PLW0603  it is about the database, which all share
    if time.monotonic() < _again_at:
        return
    try:
        await update
    except Exception as error:  # noqa: BLE001  whatever it is, the caller is known
        _again_at = time.monotonic() + _PAUSE_S
        log.warning("the last uses of tokens and sessions are not noted for a minute: %s", " ".join(str(error).split()))

"""The listener's certificate: renewed in time, or taken from a join that a person made meanwhile."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from terrapod_listener.link import identity, join
from terrapod_listener.link.client import Server
from terrapod_shared import errors

log = logging.getLogger("terrapod.listener")
_LONGEST_WAIT_S = 3600.0
_PAUSE_S = 30.0


class Renewal:
    """Of one daemon. `on_rejoin` is called when the listener goes on under another identity."""

    def __init__(self, home: Path, server: Server, on_rejoin: Callable[[], None]) -> None:
        self._home, self._server, self._on_rejoin = home, server, on_rejoin
        self.asked = asyncio.Event()  #: renew at once
        self.rejoined = asyncio.Event()  #: set when it joined again; whoever waits for it clears it

    async def run(self) -> None:
        """Renews again and again, until it is cancelled."""
        while True:
            left = self._server.identity.renew_at() - time.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.asked.wait(), min(max(left, 0.0), _LONGEST_WAIT_S))
            if left > 0 and not self.asked.is_set():
                continue
            self.asked.clear()
            self.look_again()
            try:
                await join.renew(self._server)
                log.info("the certificate is renewed until %s", self._server.identity.expires())
            except errors.TerrapodError as error:
                log.warning("the certificate could not be renewed: %s", error.detail)
                await asyncio.sleep(_PAUSE_S)

    def look_again(self, error: errors.TerrapodError | None = None) -> None:
        """Goes on as who `terrapod-listener join` has made it meanwhile; the work that is under way is kept.

        `error` is what the server answered; most answers say nothing about the identity.
        """
        if error is not None and not isinstance(error, errors.Unauthorized | errors.NotFound):
            return
        found, mine = identity.load(self._home), self._server.identity.kept
        if mine.next_key and isinstance(error, errors.Unauthorized):
            self.asked.set()  # the answer to a renewal was lost: the server may know the next key alone
        if found is None or found.kept.certificate == mine.certificate or found.kept.server != mine.server:
            return
        log.warning("this listener joined again: it is %s from now on", found.kept.listener_id)
        self._server.identity = found
        self.rejoined.set()
        self._on_rejoin()

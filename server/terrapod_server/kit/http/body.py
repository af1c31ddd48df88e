"""A request's body: how long it may take, and what becomes of what nobody read of it."""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Send

from terrapod_shared.errors import TooSlow

#: For so long a client may go on sending what is thrown away, so that it comes to read its answer.
LINGER_S = 5.0


@dataclass(frozen=True)
class Pace:
    """How slowly a body may come; times in seconds. Only waiting for the client counts, not what is done with the bytes."""

    document_s: float = 60.0  #: for all of a document that is read whole
    stall_s: float = 30.0  #: for the next byte of an upload
    span_s: float = 60.0  #: the time over which an upload's bytes are counted
    least: int = 60 << 10  #: of an upload, in that time


class Body:
    """Receives for the application, and knows whether all was received.

    It is a document, which has its time in all, until `expect_upload` says that
    it may take as long as it comes steadily. Raises TooSlow for one that does not.
    """

    def __init__(self, request: Request, pace: Pace | None = None) -> None:
        self._receive = request.receive
        self._pace = pace or Pace()
        self._is_upload = False
        self._waited_s = 0.0  #: of an upload: since bytes are counted
        self._counted = 0
        announced = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        self.has_ended = request.method in {"GET", "HEAD"} and not announced

    def expect_upload(self) -> None:
        """What comes may be large: it has no time in all, but must not stand still."""
        self._is_upload = True

    async def __call__(self) -> Message:
        if self.has_ended:
            return await self._receive()
        loop = asyncio.get_running_loop()
        begun, patience_s = loop.time(), self._patience_s()
        try:
            async with asyncio.timeout(patience_s):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(self._reason()) from None
        self._count(loop.time() - begun, len(message.get("body", b"")))
        return self._seen(message)

    def _patience_s(self) -> float:
        pace = self._pace
        if not self._is_upload:
            return max(0.0, pace.document_s - self._waited_s)
        left_s = max(0.0, pace.span_s - self._waited_s)
        return pace.stall_s if self._counted >= pace.least else min(pace.stall_s, left_s)

    def _count(self, waited_s: float, size: int) -> None:
        self._waited_s += waited_s
        self._counted += size
        if self._is_upload and self._counted >= self._pace.least:  # enough for the time that it took: count anew
            self._waited_s = self._counted = 0

    def _reason(self) -> str:
        pace = self._pace
        if not self._is_upload:
            return f"the body did not come within {pace.document_s:g} s"
        return f"no byte of the body came for {pace.stall_s:g} s, or less than {pace.least} bytes in {pace.span_s:g} s"

    def _seen(self, message: Message) -> Message:
        self.has_ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def leave(self, response: Response, send: Send) -> None:
        """Answers a request whose body nobody reads.

        Many clients read no answer before all is written, and get none where
        the connection is closed on what is unread. And Hypercorn waits for
        good, with the connection, where it has more chunks for an application
        than it queues: also only to say that the answer is out. So what comes
        is thrown away, until all is here or the client's time is up.
        """
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        rest = asyncio.create_task(self._rest())
        try:
            await asyncio.wait({rest}, timeout=LINGER_S)
            await send({"type": "http.response.body"})
        finally:
            rest.cancel()

    async def _rest(self) -> None:
        while not self.has_ended:
            self._seen(await self._receive())


def of(request: Request) -> Body:
    """That of a request which the server has handed to a handler."""
    body = request.receive
    assert isinstance(body, Body)  # noqa: S101  the server makes every request so
    return body

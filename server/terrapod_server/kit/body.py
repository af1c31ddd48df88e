"""A request's body, and what becomes of what nobody read of it."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Send

#: For so long a client may go on sending what is thrown away, so that it comes to read its answer.
LINGER_S = 5.0


class Body:
    """Receives for the application, and knows whether all was received."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        announced = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        self.has_ended = request.method in {"GET", "HEAD"} and not announced

    async def __call__(self) -> Message:
        message = await self._receive()
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
            await self()

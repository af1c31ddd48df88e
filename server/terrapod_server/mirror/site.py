"""Reading release sites. Imported at the first such read: most servers never fetch, and the client is not small."""

import asyncio
from collections.abc import AsyncIterator

import httpx

from terrapod_server.config import Engines
from terrapod_shared.errors import BadGateway, NotFound

_ZIP_MOST = 1 << 30


async def small(engines: Engines, url: str, most: int) -> bytes:
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(min(30.0, engines.timeout_s), connect=5.0), follow_redirects=True
    ) as client:
        try:
            async with client.stream("GET", url) as answer:
                _expect(answer, url)
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > most:
                        message = f"{url} is larger than {most} bytes"
                        raise BadGateway(message)
                return bytes(body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = f"{url} cannot be reached: {str(error) or type(error).__name__}"
            raise BadGateway(message) from None


def _expect(answer: httpx.Response, url: str) -> None:
    if answer.status_code == 404:  # noqa: PLR2004
        message = f"there is nothing at {url}"
        raise NotFound(message)
    if answer.status_code != 200:  # noqa: PLR2004
        message = f"{url} answered {answer.status_code}"
        raise BadGateway(message)


async def download(engines: Engines, url: str) -> AsyncIterator[bytes]:
    size = 0
    async with httpx.AsyncClient(timeout=httpx.Timeout(30.0), follow_redirects=True) as client:
        try:
            async with asyncio.timeout(engines.timeout_s), client.stream("GET", url) as answer:
                _expect(answer, url)
                async for chunk in answer.aiter_bytes(256 << 10):
                    size += len(chunk)
                    if size > _ZIP_MOST:
                        message = f"{url} is larger than {_ZIP_MOST} bytes"
                        raise BadGateway(message)
                    yield chunk
        except (httpx.HTTPError, TimeoutError) as error:
            message = f"{url} broke off after {size} bytes: {str(error) or type(error).__name__}"
            raise BadGateway(message) from None

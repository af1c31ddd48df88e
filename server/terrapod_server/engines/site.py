"""Reading release sites. Imported at the first such read: most servers never fetch, and the client is not small."""

import asyncio
import functools
import os
import ssl
from collections.abc import AsyncIterator

import httpx

from terrapod_server.config.settings import Engines
from terrapod_shared.errors import BadGateway, NotFound, Unreachable

_ZIP_MOST = 1 << 30
#: What the client raises: ValueError and ImportError come of a proxy in the environment that it cannot use.
_FAILED = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError)


async def _trusted() -> ssl.SSLContext:
    """The authorities that httpx trusts; read by a thread, once, since that takes tens of milliseconds."""
    named = (os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))
    return await asyncio.to_thread(_trust, named)


@functools.lru_cache(4)
def _trust(_named: tuple[str, str]) -> ssl.SSLContext:
    return httpx.create_ssl_context()


async def small(engines: Engines, url: str, most: int) -> bytes:
    """Raises NotFound, Unreachable where the site does not answer in time, BadGateway for more than `most` bytes."""
    seconds = min(30.0, engines.timeout_s)
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                verify=await _trusted(), timeout=httpx.Timeout(seconds, connect=5.0), follow_redirects=True
            ) as client,
            client.stream("GET", url) as answer,
        ):
            _expect(answer, url)
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > most:
                    message = f"{url} is larger than {most} bytes"
                    raise BadGateway(message)
            return bytes(body)
    except TimeoutError:
        message = f"{url} did not answer within {seconds:.0f} s"
        raise Unreachable(message) from None
    except _FAILED as error:
        message = f"{url} cannot be reached: {str(error) or type(error).__name__}"
        raise Unreachable(message) from None


def _expect(answer: httpx.Response, url: str) -> None:
    if answer.status_code == 404:  # noqa: PLR2004
        message = f"there is nothing at {url}"
        raise NotFound(message)
    if answer.status_code != 200:  # noqa: PLR2004
        message = f"{url} answered {answer.status_code}"
        raise Unreachable(message)


async def download(engines: Engines, url: str) -> AsyncIterator[bytes]:
    size = 0
    try:
        async with (
            asyncio.timeout(engines.timeout_s),
            httpx.AsyncClient(verify=await _trusted(), timeout=httpx.Timeout(30.0), follow_redirects=True) as client,
            client.stream("GET", url) as answer,
        ):
            _expect(answer, url)
            async for chunk in answer.aiter_bytes(256 << 10):
                size += len(chunk)
                if size > _ZIP_MOST:
                    message = f"{url} is larger than {_ZIP_MOST} bytes"
                    raise BadGateway(message)
                yield chunk
    except _FAILED as error:
        message = f"{url} broke off after {size} bytes: {str(error) or type(error).__name__}"
        raise Unreachable(message) from None

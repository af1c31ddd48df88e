"""The baseline of API reads: a bare Starlette app on the server's Hypercorn settings.

It answers fixed bytes of memory: `bare.py PORT FOLDER [CERTIFICATE KEY]`, where FOLDER holds a file for each path
`/NAME`; `/poll/ANY?wait=S` is answered by 204 after so many seconds.
"""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def build(folder: Path) -> Starlette:
    answers = {file.name: file.read_bytes() for file in folder.iterdir()}

    async def answer(request: Request) -> Response:
        body = answers[request.path_params["name"]]
        return Response(body, media_type="application/vnd.api+json") if body else Response(status_code=204)

    async def poll(request: Request) -> Response:
        await asyncio.sleep(float(request.query_params["wait"]))
        return Response(status_code=204)

    return Starlette(routes=[Route("/{name}", answer), Route("/poll/{who}", poll)])


async def main(port: int, folder: Path, *tls: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    hypercorn = Config()
    hypercorn.bind = [f"127.0.0.1:{port}"]
    hypercorn.alpn_protocols = ["http/1.1"]
    hypercorn.keep_alive_timeout = 75
    hypercorn.keep_alive_max_requests = 100_000
    if tls:
        hypercorn.certfile, hypercorn.keyfile = tls
    hypercorn.accesslog = None
    hypercorn.errorlog = logging.getLogger("hypercorn.error")
    hypercorn.include_server_header = False
    await serve(build(folder), hypercorn, shutdown_trigger=stop.wait, mode="asgi")  # type: ignore[arg-type]


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))

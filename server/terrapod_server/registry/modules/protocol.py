"""The module registry protocol, `modules.v1`, as terraform and tofu ask at `init`.

https://developer.hashicorp.com/terraform/internals/module-registry-protocol:
a list of versions, then where one version's archive is. The archive is
fetched without the token, so its URL carries its own right and ends soon.
Open to tokens of runs: a run may read every module.
"""

from typing import Any

from starlette.responses import Response, StreamingResponse

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint, Raw
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Access, Level
from terrapod_server.registry.modules import actions
from terrapod_server.registry.modules.model import Module

_BASE = "/api/v2/registry/modules/{namespace}/{name}/{provider}"
_PURPOSE = "module download"
#: How long a download URL is good; it is used at once.
DOWNLOAD_S = 900


async def _find(call: Call) -> Module:
    return await actions.named(call.path["namespace"], call.path["name"], call.path["provider"])


async def versions(call: Call) -> Response:
    """The published versions of a module, newest first."""
    module = await _find(call)
    rows = (await actions.versions([module.id]))[module.id]
    found = [{"version": row.version} for row in rows if row.status == "ok"]
    return Response(encode({"modules": [{"versions": found}]}), media_type="application/json")


async def download(call: Call) -> Response:
    """Where a version's archive is, in `X-Terraform-Get`; relative, so it is right behind every proxy."""
    row = await actions.published(await _find(call), call.path["version"])
    token = call.services.signer.sign(_PURPOSE, row.id, DOWNLOAD_S)
    # by its ending the client knows what kind of archive it is
    return Response(status_code=204, headers={"X-Terraform-Get": f"/api/v2/downloads/modules/{token}/module.tar.gz"})


async def archive(call: Call) -> Response:
    """A version's archive as it was uploaded; the URL is the right to have it."""
    row = await actions.archive(call.services.signer.check(_PURPOSE, call.path["token"]))
    headers = {"Content-Length": str(row.size)}
    if call.request.method == "HEAD":  # terraform asks so first
        return Response(headers=headers, media_type="application/gzip")
    return StreamingResponse(call.services.store.get(row.stored_key), media_type="application/gzip", headers=headers)


ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Raw("GET", _BASE + "/versions", versions, Level.READ, guards="name/provider", run_token=True, gives=dict[str, Any]),
    Raw(
        "GET",
        _BASE + "/{version}/download",
        download,
        Level.READ,
        guards="name/provider",
        run_token=True,
        answers=(204,),
    ),
    Raw(
        "GET",
        "/api/v2/downloads/modules/{token}/module.tar.gz",
        archive,
        Access.CAPABILITY,
        quiet=True,
        unmetered=True,
    ),
)

"""The binary cache: download for users, and its care for admins."""

from collections.abc import Mapping

from starlette.responses import RedirectResponse, Response

from terrapod_server.engines import actions
from terrapod_server.engines.model import EngineFile
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Raw, Resource
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Access
from terrapod_server.kit.paging import Rows
from terrapod_shared.errors import Invalid, NotFound

_PURPOSE = "engine download"
ENGINE = Resource(
    type="cached-binaries",
    attributes=(
        Attr("tool", str, "terraform or tofu", write=True),
        Attr("version", str, "exact, partial or latest", write=True),
        Attr("os", str, "operating system; linux where not said", write=True),
        Attr("arch", str, "architecture; amd64 where not said", write=True),
        Attr("sha256", str, "of the zip"),
        Attr("size", int, "bytes of the zip"),
        Attr("source", str, "fetched, imported, or unsigned: imported without a signature on purpose"),
        Attr("signed-by", str, "fingerprint of the key that signed its checksum; empty where no signature was checked"),
        Attr("cached-at", str, "when it came in"),
    ),
)


async def download(call: Call) -> Response:
    """Redirects to the release's zip; it is fetched and verified first where it is not in the cache."""
    tool, system, arch = (call.path[name] for name in ("tool", "os", "arch"))
    actions.check_names(tool, "0.0.0", system, arch)
    version = await actions.resolve(call.services, tool, call.path["version"])
    row = await actions.ensure(call.services, tool, version, system, arch)
    token = call.services.signer.sign(_PURPOSE, str(row.id), 3600)
    return RedirectResponse(call.url(f"/api/v2/downloads/engines/{token}"), 302)


async def raw(call: Call) -> Response:
    """The zip; the URL is the right to have it."""
    row = await EngineFile.get_or_none(id=int(call.services.signer.check(_PURPOSE, call.path["token"])))
    if row is None:
        raise NotFound
    return await call.stored(actions.key_of(row), "application/zip", row.size)


async def index(call: Call) -> Rows:
    """What is in the cache."""
    return await call.rows(EngineFile.all().order_by("tool", "version", "os", "arch"))


async def warm(call: Call) -> EngineFile:
    """Bring a version into the cache before anybody needs it."""
    sent = call.attributes
    if not sent and isinstance(call.document, Mapping):  # the reference's form has no document around it
        sent = {key: value for key, value in call.document.items() if isinstance(value, str)}
    tool, system, arch = sent.get("tool", "terraform"), sent.get("os", "linux"), sent.get("arch", "amd64")
    if not sent.get("version"):
        message = "version is needed"
        raise Invalid(message, pointer="/data/attributes/version")
    actions.check_names(tool, "0.0.0", system, arch)
    version = await actions.resolve(call.services, tool, sent["version"])
    return await actions.ensure(call.services, tool, version, system, arch)


async def purge(call: Call) -> Response:
    """Remove a version from the cache; the answer says how many files went."""
    call.about(ENGINE.type, f"{call.path['tool']} {call.path['version']}"[:128])
    count = await actions.purge(call.services, call.path["tool"], call.path["version"])
    if count == 0:
        raise NotFound
    return Response(encode({"purged": count}), media_type="application/json")


RESOURCES = (ENGINE,)
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Raw(
        "GET",
        "/api/v2/binary-cache/{tool}/{version}/{os}/{arch}",
        download,
        Access.USER,
        run_token=True,
        answers=(302,),
    ),
    Raw("GET", "/api/v2/downloads/engines/{token}", raw, Access.CAPABILITY, quiet=True, unmetered=True),
    Endpoint("GET", "/api/v2/admin/binary-cache", ENGINE, index, Access.PLATFORM, many=True),
    Endpoint("POST", "/api/v2/admin/binary-cache/warm", ENGINE, warm, Access.PLATFORM, requires=("version",)),
    Raw("DELETE", "/api/v2/admin/binary-cache/{tool}/{version}", purge, Access.PLATFORM, gives=dict[str, int]),
)

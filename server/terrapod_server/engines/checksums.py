"""The digest that a publisher lists for a file, believed once its signature has been checked."""

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrapod_server.config.settings import Engines
from terrapod_server.engines import rules
from terrapod_shared.errors import BadGateway, Invalid, NotFound

_SUMS_MOST = 1 << 20
_SIGNATURE_MOST = 64 << 10


@dataclass(frozen=True)
class Vouched:
    """SHA-256 in hexadecimal, and the fingerprint of the key that signed the list; empty: nobody did."""

    sha256: str
    signed_by: str


def site() -> Any:
    """Reading over HTTP, imported late."""
    return importlib.import_module("terrapod_server.engines.site")


async def fetched(engines: Engines, base: str, tool: str, version: str, file: str) -> Vouched:
    """What the release site at `base` vouches for.

    Raises NotFound where there is no such release or file, BadGateway where
    the site cannot be reached or its list is not signed as it must be.
    """
    sums = await site().small(engines, f"{base}/{rules.sums_name(tool, version)}", _SUMS_MOST)
    signer = await _signer_on_site(engines, base, tool, version, sums)
    return Vouched(_listed(sums, tool, version, file), signer)


async def _signer_on_site(engines: Engines, base: str, tool: str, version: str, sums: bytes) -> str:
    for name in rules.signature_names(tool, version):
        try:
            signature = await site().small(engines, f"{base}/{name}", _SIGNATURE_MOST)
        except NotFound:
            continue
        return await _signer(engines, tool, version, sums, signature, BadGateway)
    if engines.require_signatures:
        message = (
            f"{base} has no signature of the checksums of {tool} {version};"
            " a site that signs nothing needs engines.require_signatures = false"
        )
        raise BadGateway(message)
    return ""


async def on_disk(
    engines: Engines, zip_: Path, tool: str, version: str, *, sums: Path | None = None, signature: Path | None = None
) -> Vouched:
    """The same from files, by default those beside the zip with the publisher's names. Raises Invalid."""
    listed = await _read(sums or zip_.with_name(rules.sums_name(tool, version)), _SUMS_MOST)
    if listed is None:
        message = (
            f"{zip_.name}: there is no {(sums or Path(rules.sums_name(tool, version))).name} beside it;"
            " give --sums and --signature, or vouch for the file yourself with --unsigned"
        )
        raise Invalid(message)
    for name in [signature] if signature else [zip_.with_name(n) for n in rules.signature_names(tool, version)]:
        raw = await _read(name, _SIGNATURE_MOST)
        if raw is not None:
            signer = await _signer(engines, tool, version, listed, raw, Invalid)
            return Vouched(_listed(listed, tool, version, zip_.name), signer)
    message = f"{zip_.name}: there is no signature of its checksums; give --signature, or --unsigned"
    raise Invalid(message)


async def _read(path: Path, most: int) -> bytes | None:
    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(most + 1)

    try:
        raw = await asyncio.to_thread(read)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise Invalid(message) from None
    if len(raw) > most:
        message = f"{path.name} is larger than {most} bytes"
        raise Invalid(message)
    return raw


async def _signer(
    engines: Engines, tool: str, version: str, sums: bytes, signature: bytes, refusal: Callable[[str], Exception]
) -> str:
    signatures = importlib.import_module("terrapod_server.engines.signatures")
    file = engines.terraform_keys if tool == "terraform" else engines.tofu_keys

    def check() -> str:
        return str(signatures.verify(signatures.keys(tool, file), sums, signature))

    try:
        return await asyncio.to_thread(check)
    except signatures.NotSigned as error:
        message = f"the checksums of {tool} {version} are not to be believed: {error}"
        raise refusal(message) from None


def _listed(sums: bytes, tool: str, version: str, file: str) -> str:
    wanted = rules.checksum(sums.decode("utf-8", "replace"), file)
    if wanted is None:
        message = f"the checksums of {tool} {version} list no {file}"
        raise NotFound(message)
    return wanted
